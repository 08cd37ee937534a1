package buildkitapi

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"strconv"
	"time"

	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/session/auth"
	"github.com/moby/buildkit/session/filesync"
	"github.com/moby/buildkit/session/secrets"
	"github.com/moby/buildkit/session/sshforward"
	"github.com/moby/buildkit/session/upload"
	"github.com/moby/buildkit/util/grpcerrors"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"

	"corten.dev/corten/internal/build"
	"corten.dev/corten/internal/build/source/mirror"
	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/task"
)

// sessionWait is how long a build waits for the session that it names; clients open both at the same time.
const sessionWait = 5 * time.Second

// authWait bounds a question for credentials: helpers of clients may ask people, but not for ever.
const authWait = time.Minute

// BuildSession is the session of a client as the build room knows it; errs.NotFound when there is none.
func (d *Door) BuildSession(ctx context.Context, id string) (*build.Session, error) {
	waiting, cancel := context.WithTimeout(ctx, sessionWait)
	defer cancel()
	caller, err := d.sessions.Get(waiting, id, false)
	if err != nil || caller == nil {
		return nil, errs.New(errs.NotFound, "no active session for %s", id)
	}
	s := &client{caller: caller, door: d}
	out := &build.Session{ID: id, Contexts: s, Secrets: s, SSH: s, Credentials: s, Outputs: s, Blobs: s, Uploads: s}
	out.OnEnd = func(fn func()) { context.AfterFunc(caller.Context(context.Background()), fn) }
	return out, nil
}

// client asks one session for what its client has.
type client struct {
	caller session.Caller
	door   *Door
}

// kind translates what the client answered.
func kind(err error, what string) error {
	switch grpcerrors.Code(err) {
	case codes.NotFound, codes.Unimplemented:
		return errs.New(errs.NotFound, "%s", what)
	case codes.Unavailable, codes.Canceled:
		return fmt.Errorf("%s: the client is gone: %w", what, err)
	}
	return fmt.Errorf("%s: %w", what, err)
}

// Open implements [build.Contexts] by the client's file sync service.
func (c *client) Open(ctx context.Context, name string, opts build.ContextOptions) (*build.Files, func(), error) {
	if !c.caller.Supports(session.MethodURL(filesync.FileSync_ServiceDesc.ServiceName, "diffcopy")) {
		return nil, nil, errs.New(errs.NotFound, "no local sources enabled: the client offers no directory %q", name)
	}
	head := metadata.MD{}
	for key, values := range map[string][]string{"include-patterns": opts.Include, "exclude-patterns": opts.Exclude, "followpaths": opts.Follow, "dir-name": {name}} {
		if values != nil {
			setHeader(head, key, values)
		}
	}
	// The stream is the client's; it ends with this call, and with the session.
	ctx, cancel := context.WithCancel(c.caller.Context(ctx))
	defer cancel()
	stream, err := filesync.NewFileSyncClient(c.caller.Conn()).DiffCopy(metadata.NewOutgoingContext(ctx, head))
	if err != nil {
		return nil, nil, kind(err, "context "+name)
	}
	files, release, err := c.door.Mirrors.Receive(ctx, stream, mirror.Request{SharedKey: c.sharedKey(opts), Name: name, Context: opts})
	if err != nil {
		return nil, nil, kind(err, "context "+name)
	}
	if err := stream.CloseSend(); err != nil {
		release()
		return nil, nil, kind(err, "context "+name)
	}
	return files, release, nil
}

// Upload implements [build.Uploads] by the client's upload service.
func (c *client) Upload(ctx context.Context, path string) (io.ReadCloser, error) {
	ctx, cancel := context.WithCancel(ctx)
	up, err := upload.New(ctx, c.caller, &url.URL{Scheme: "http", Host: "buildkit-session", Path: path})
	if err != nil {
		cancel()
		return nil, kind(err, "upload "+path)
	}
	r, w := io.Pipe()
	go func() {
		var err error
		defer cancel()
		defer func() { _ = w.CloseWithError(err) }() // never fails
		defer task.Contain(c.door.Logger, "upload of a build", &err)
		_, err = up.WriteTo(w)
	}()
	return &uploaded{PipeReader: r, cancel: cancel}, nil
}

// uploaded is what a client sends; who closes it early stops the sending.
type uploaded struct {
	*io.PipeReader
	cancel context.CancelFunc
}

func (u *uploaded) Close() error {
	u.cancel()
	return u.PipeReader.Close()
}

// sharedKey is the client's own key, which nobody else knows, with what the source of LLB adds to it.
func (c *client) sharedKey(opts build.ContextOptions) string {
	if c.caller.SharedKey() == "" {
		return ""
	}
	return c.caller.SharedKey() + ":" + opts.SharedKey
}

// setHeader writes values as the file sync service reads them: what a header cannot carry is escaped, and said to be.
func setHeader(head metadata.MD, key string, values []string) {
	escape := false
	for _, v := range values {
		for _, r := range v {
			escape = escape || r > '~' || r < ' '
		}
	}
	if !escape {
		head[key] = values
		return
	}
	out := make([]string, len(values))
	for i, v := range values {
		out[i] = url.QueryEscape(v)
	}
	head[key], head[key+"-encoded"] = out, []string{"1"}
}

// Secret implements [build.Secrets].
func (c *client) Secret(ctx context.Context, id string) ([]byte, error) {
	data, err := secrets.GetSecret(ctx, c.caller, id)
	if errors.Is(err, secrets.ErrNotFound) {
		return nil, errs.New(errs.NotFound, "secret %s: not found", id)
	}
	return data, err
}

// Offers implements [build.SSH].
func (c *client) Offers(ctx context.Context, id string) error {
	if id == "" {
		id = sshforward.DefaultID
	}
	if err := sshforward.CheckSSHID(ctx, c.caller, id); err != nil {
		return kind(err, "unset ssh forward key "+id)
	}
	return nil
}

// Dial implements [build.SSH]: one stream for each connection.
func (c *client) Dial(ctx context.Context, id string) (io.ReadWriteCloser, error) {
	if id == "" {
		id = sshforward.DefaultID
	}
	ctx, cancel := context.WithCancel(c.caller.Context(context.WithoutCancel(ctx)))
	ctx = metadata.NewOutgoingContext(ctx, metadata.Pairs(sshforward.KeySSHID, id))
	stream, err := sshforward.NewSSHClient(c.caller.Conn()).ForwardAgent(ctx)
	if err != nil {
		cancel()
		return nil, kind(err, "ssh agent "+id)
	}
	ours, theirs := net.Pipe()
	go func() {
		defer cancel()
		defer task.Contain(c.door.Logger, "ssh agent of a build", nil)
		if err := sshforward.Copy(ctx, theirs, stream, stream.CloseSend); err != nil {
			c.door.Logger.Debug("ssh agent of a build", "id", id, "err", err)
		}
	}()
	return ours, nil
}

// Credentials implements [build.Credentials].
func (c *client) Credentials(ctx context.Context, host string) (user, secret string, err error) {
	ctx, cancel := context.WithTimeout(c.caller.Context(ctx), authWait)
	defer cancel()
	if host == "docker.io" { // docker's clients know it by this name
		host = "registry-1.docker.io"
	}
	resp, err := auth.NewAuthClient(c.caller.Conn()).Credentials(ctx, &auth.CredentialsRequest{Host: host})
	if grpcerrors.Code(err) == codes.Unimplemented {
		return "", "", nil
	}
	if err != nil {
		return "", "", fmt.Errorf("credentials of %s from the client: %w", host, err)
	}
	return resp.Username, resp.Secret, nil
}

// File implements [build.Outputs].
func (c *client) File(ctx context.Context, id string, meta map[string]string) (io.WriteCloser, error) {
	n, err := exporterID(id)
	if err != nil {
		return nil, err
	}
	w, err := filesync.CopyFileWriter(ctx, meta, n, c.caller)
	if err != nil {
		return nil, fmt.Errorf("output %s: %w", id, err)
	}
	return w, nil
}

// Tree implements [build.Outputs].
func (c *client) Tree(ctx context.Context, id string, tar io.Reader) error {
	n, err := exporterID(id)
	if err != nil {
		return err
	}
	tree, err := spool(tar)
	if err != nil {
		return fmt.Errorf("output %s: %w", id, err)
	}
	err = filesync.CopyToCaller(ctx, tree, n, c.caller, nil, filesync.WithExporterMultiPlatformTransfer())
	if err = errors.Join(err, tree.close()); err != nil {
		return fmt.Errorf("output %s: %w", id, err)
	}
	return nil
}

// exporterID is the number that BuildKit's clients know an exporter by.
func exporterID(id string) (int, error) {
	if id == "" {
		return 0, nil
	}
	n, err := strconv.Atoi(id)
	if err != nil {
		return 0, errs.New(errs.Invalid, "exporter %q has no number", id)
	}
	return n, nil
}
