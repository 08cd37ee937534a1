package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"sync"

	"github.com/opencontainers/go-digest"

	"corten.dev/corten/internal/build"
	"corten.dev/corten/internal/buildwire"
	"corten.dev/corten/internal/engine/builds"
	"corten.dev/corten/internal/errs"
)

// buildSession asks the client of one build for what only it has.
type buildSession struct {
	door    *buildwire.Conn
	asked   *buildwire.Request
	mirrors BuildMirrors

	mu      sync.Mutex // guards all below
	handed  map[string]*os.File
	ending  []func()
	isEnded bool
}

func newBuildSession(door *buildwire.Conn, asked *buildwire.Request, mirrors BuildMirrors) *buildSession {
	return &buildSession{door: door, asked: asked, mirrors: mirrors, handed: map[string]*os.File{}}
}

// offer is the session as the build room knows it.
func (b *buildSession) offer() *build.Session {
	return &build.Session{ID: b.asked.Ref, Contexts: b, Secrets: b, SSH: b, Credentials: b, Outputs: b, Blobs: b, OnEnd: b.onEnd}
}

func (b *buildSession) onEnd(f func()) {
	b.mu.Lock()
	if !b.isEnded {
		b.ending = append(b.ending, f)
		b.mu.Unlock()
		return
	}
	b.mu.Unlock()
	f()
}

// end lets go of everything; a second time does nothing.
func (b *buildSession) end() {
	b.mu.Lock()
	ending, handed := b.ending, b.handed
	b.ending, b.handed, b.isEnded = nil, nil, true
	b.mu.Unlock()
	for _, f := range slices.Backward(ending) {
		f()
	}
	for _, f := range handed {
		_ = f.Close() // of a directory that was read
	}
}

// question is a stream that ends with its context.
type question struct {
	*buildwire.Stream
	stop func() bool
}

func (b *buildSession) ask(ctx context.Context, ask buildwire.Ask) (*question, error) {
	s, err := b.door.Ask(ask)
	if err != nil {
		return nil, err
	}
	return &question{Stream: s, stop: context.AfterFunc(ctx, func() { _ = s.Fail(context.Cause(ctx)) })}, nil
}

// Close ends the question.
func (q *question) Close() error {
	q.stop()
	return q.Stream.Close()
}

// Open gives a directory of the client: in place where it can be handed over, else as a copy that is kept up to date.
func (b *buildSession) Open(ctx context.Context, name string, opts build.ContextOptions) (*build.Files, func(), error) {
	if !slices.Contains(b.asked.Contexts, name) {
		return nil, nil, errs.New(errs.NotFound, "no local directory %q was given for this build", name)
	}
	if b.asked.Descriptors {
		dir, key, err := b.directory(ctx, name)
		if err != nil {
			return nil, nil, err
		}
		if dir != nil {
			files := &build.Files{Root: dir, Include: opts.Include, Exclude: opts.Exclude, Follow: opts.Follow, Key: key, Owner: &[2]uint32{0, 0}}
			return files, func() {}, nil
		}
	}
	return b.mirrored(ctx, name, opts)
}

// directory has the client hand a directory over, once; nil when the descriptor was lost on the way: something between us and the client passes on bytes only.
func (b *buildSession) directory(ctx context.Context, name string) (*os.File, string, error) {
	b.mu.Lock()
	dir := b.handed[name]
	b.mu.Unlock()
	if dir == nil {
		q, err := b.ask(ctx, buildwire.Ask{What: buildwire.AskContext, Name: name, Options: &buildwire.ContextOptions{Descriptor: true}})
		if err != nil {
			return nil, "", err
		}
		defer q.Close()
		var tree buildwire.Tree
		if err := q.Heard(&tree); err != nil {
			return nil, "", fmt.Errorf("context %s: %w", name, err)
		}
		if dir, err = q.Handed(); err != nil || dir == nil {
			return nil, "", err
		}
		if err := checkHanded(dir); err != nil {
			return nil, "", errors.Join(err, dir.Close())
		}
		if dir, err = b.keep(name, dir); err != nil {
			return nil, "", err
		}
	}
	key, err := handedKey(dir)
	return dir, key, err
}

// keep remembers a directory until the session ends; of two that came at once the first stays.
func (b *buildSession) keep(name string, dir *os.File) (*os.File, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if first := b.handed[name]; first != nil || b.isEnded {
		_ = dir.Close() // of a directory
		if b.isEnded {
			return nil, errs.New(errs.Unavailable, "the build has ended")
		}
		return first, nil
	}
	b.handed[name] = dir
	return dir, nil
}

// maxSecret is BuildKit's bound on one secret.
const maxSecret = 500 << 10

// Secret asks for a value.
func (b *buildSession) Secret(ctx context.Context, id string) ([]byte, error) {
	if !slices.Contains(b.asked.Secrets, id) {
		return nil, errs.New(errs.NotFound, "secret %s: not found", id)
	}
	q, err := b.ask(ctx, buildwire.Ask{What: buildwire.AskSecret, Name: id})
	if err != nil {
		return nil, err
	}
	defer q.Close()
	value, err := io.ReadAll(io.LimitReader(q, maxSecret+1))
	if err != nil {
		return nil, fmt.Errorf("secret %s: %w", id, err)
	}
	if len(value) > maxSecret {
		return nil, errs.New(errs.Invalid, "secret %s is larger than %d bytes", id, maxSecret)
	}
	return value, nil
}

// Offers tells whether the client named this agent.
func (b *buildSession) Offers(_ context.Context, id string) error {
	if !slices.Contains(b.asked.SSH, id) {
		return errs.New(errs.NotFound, "no SSH key %q forwarded from the client", id)
	}
	return nil
}

// Dial opens a connection to an agent of the client.
func (b *buildSession) Dial(ctx context.Context, id string) (io.ReadWriteCloser, error) {
	if err := b.Offers(ctx, id); err != nil {
		return nil, err
	}
	return b.ask(ctx, buildwire.Ask{What: buildwire.AskSSH, Name: id})
}

// Credentials asks what the client is known by at a registry.
func (b *buildSession) Credentials(ctx context.Context, host string) (user, secret string, err error) {
	q, err := b.ask(ctx, buildwire.Ask{What: buildwire.AskCredentials, Name: host})
	if err != nil {
		return "", "", err
	}
	defer q.Close()
	var login buildwire.Login
	if err := q.Heard(&login); err != nil {
		return "", "", fmt.Errorf("credentials for %s: %w", host, err)
	}
	return login.User, login.Secret, nil
}

// File opens a stream to the client for an archive.
func (b *buildSession) File(ctx context.Context, id string, meta map[string]string) (io.WriteCloser, error) {
	q, err := b.ask(ctx, buildwire.Ask{What: buildwire.AskFile, Name: id, Meta: meta})
	if err != nil {
		return nil, err
	}
	return kept{q}, nil
}

// kept is a stream whose Close waits until the client has all of it. A build that fails later tells the client to drop it.
type kept struct{ *question }

func (k kept) Close() error {
	defer k.question.Close()
	if err := k.End(); err != nil {
		return err
	}
	return k.Ended()
}

// Tree hands over a directory as a tar.
func (b *buildSession) Tree(ctx context.Context, id string, tar io.Reader) error {
	return b.push(ctx, buildwire.Ask{What: buildwire.AskTree, Name: id}, tar)
}

// push sends r behind a question and waits for the client's end.
func (b *buildSession) push(ctx context.Context, ask buildwire.Ask, r io.Reader) error {
	q, err := b.ask(ctx, ask)
	if err != nil {
		return err
	}
	defer q.Close()
	if _, err := io.Copy(q.Stream, r); err != nil {
		return err
	}
	if err := q.End(); err != nil {
		return err
	}
	return q.Ended()
}

// Reader opens a blob at the client.
func (b *buildSession) Reader(ctx context.Context, store string, dgst digest.Digest) (io.ReadCloser, int64, error) {
	q, err := b.ask(ctx, buildwire.Ask{What: buildwire.AskBlob, Store: store, Name: dgst.String()})
	if err != nil {
		return nil, 0, err
	}
	var size buildwire.Size
	if err := q.Heard(&size); err != nil {
		_ = q.Close() // it failed already
		return nil, 0, err
	}
	return q, size.Size, nil
}

// Write puts a blob to the client.
func (b *buildSession) Write(ctx context.Context, store string, dgst digest.Digest, size int64, r io.Reader) error {
	return b.push(ctx, buildwire.Ask{What: buildwire.AskPutBlob, Store: store, Name: dgst.String(), Size: size}, r)
}

// Ref reads what a name of a store leads to.
func (b *buildSession) Ref(ctx context.Context, store, name string) ([]byte, error) {
	q, err := b.ask(ctx, buildwire.Ask{What: buildwire.AskRef, Store: store, Name: name})
	if err != nil {
		return nil, err
	}
	defer q.Close()
	var raw json.RawMessage
	if err := q.Heard(&raw); err != nil {
		return nil, err
	}
	return raw, nil
}

// SetRef writes it.
func (b *buildSession) SetRef(ctx context.Context, store, name string, descriptor []byte) error {
	q, err := b.ask(ctx, buildwire.Ask{What: buildwire.AskSetRef, Store: store, Name: name, Descriptor: descriptor})
	if err != nil {
		return err
	}
	defer q.Close()
	return q.Ended()
}

// shell offers the client a shell in the failed step, and stays until it is over.
func (b *buildSession) shell(ctx context.Context, failed builds.Failed) {
	step := failed.Step()
	ask := buildwire.Ask{What: buildwire.AskShell, Step: &buildwire.Step{Error: step.Error(), ExitCode: step.ExitCode, Sources: errorSources(step)}}
	if step.Vertex != nil {
		ask.Step.Name = step.Vertex.Name
	}
	q, err := b.ask(ctx, ask)
	if err != nil {
		return // the client has gone, and with it the build
	}
	defer q.Close()
	var terminal buildwire.Terminal
	if err := q.Heard(&terminal); err != nil {
		return // no shell is wanted
	}
	t := &buildTerminal{Stream: q.Stream}
	if terminal.TTY {
		t.sizes = make(chan [2]uint16, 1)
		t.sizes <- [2]uint16{terminal.Columns, terminal.Rows}
		go t.follow()
	}
	code, err := failed.Shell(ctx, terminal.Args, t)
	if err != nil {
		_ = q.Fail(err) // else the client has gone
		return
	}
	if q.Answer(buildwire.Exit{Code: code}) == nil {
		_ = q.End()
	}
}

// buildTerminal joins the client's terminal with the shell.
type buildTerminal struct {
	*buildwire.Stream
	sizes chan [2]uint16
}

func (t *buildTerminal) Sizes() <-chan [2]uint16 { return t.sizes }

// follow passes new sizes on; of those that come faster than they are taken, the last counts.
func (t *buildTerminal) follow() {
	for {
		var size buildwire.Terminal
		if t.Heard(&size) != nil {
			return
		}
		select {
		case <-t.sizes:
		default:
		}
		t.sizes <- [2]uint16{size.Columns, size.Rows}
	}
}

func itoa(n uint64) string { return strconv.FormatUint(n, 10) }
