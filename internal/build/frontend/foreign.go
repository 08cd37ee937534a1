package frontend

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/moby/buildkit/client/llb"
	"github.com/moby/buildkit/client/llb/sourceresolver"
	gateway "github.com/moby/buildkit/frontend/gateway/client"
	gwpb "github.com/moby/buildkit/frontend/gateway/pb"
	"github.com/moby/buildkit/solver/errdefs"
	"github.com/moby/buildkit/solver/pb"
	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	"github.com/opencontainers/go-digest"
	"google.golang.org/grpc"

	"corten.dev/corten/internal/build"
	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/reference"
)

// maxMessage bounds what a frontend says in one message; BuildKit's clients are held to the same.
const maxMessage = 16 << 20

// foreign runs a frontend that comes as an image: its program speaks the gateway's protocol over its stdin and stdout, and is the client of it.
func (g *Gateway) foreign(ctx context.Context, source string, attrs map[string]string, inputs map[string]*pb.Definition) (_ *gateway.Result, err error) {
	if g.Containers == nil {
		return nil, errs.New(errs.NotImplemented, "frontend image %s: this engine runs the built-in docker/dockerfile only", source)
	}
	c := &client{gw: g, attrs: attrs, inputs: inputs}
	img, out, err := g.frontendImage(ctx, c, source)
	if err != nil {
		return nil, fmt.Errorf("frontend image %s: %w", source, err)
	}
	if err := capable(img.Config.Labels["moby.buildkit.frontend.caps"], attrs["frontend.caps"], len(inputs) > 0); err != nil {
		return nil, fmt.Errorf("frontend image %s: %w", source, err)
	}
	spec := ContainerSpec{Mounts: []Mount{rootMount(out)}}
	if none, err := strconv.ParseBool(img.Config.Labels["moby.buildkit.frontend.network.none"]); err == nil && none {
		spec.Net = pb.NetMode_NONE
	}
	ctr, err := g.Containers.New(ctx, spec)
	if err != nil {
		return nil, fmt.Errorf("frontend image %s: %w", source, err)
	}
	defer func() { err = errors.Join(err, ctr.Release(context.WithoutCancel(ctx))) }()
	env, err := g.environment(img.Config.Env, attrs)
	if err != nil {
		return nil, err
	}
	proc := ProcessSpec{Args: img.Config.Entrypoint, Env: env, Cwd: img.Config.WorkingDir, User: img.Config.User}
	if len(proc.Args) == 0 {
		proc.Args = []string{"/run"}
	}
	if proc.Cwd == "" {
		proc.Cwd = "/"
	}
	p, done := g.Job.Progress(digest.FromString(rand.Text()), "[frontend] "+source)
	res, err := g.converse(ctx, ctr, proc, c, p)
	done(err)
	if err != nil {
		return nil, fmt.Errorf("frontend image %s: %w", source, err)
	}
	return res, nil
}

// frontendImage gets the image and its tree here.
func (g *Gateway) frontendImage(ctx context.Context, c *client, source string) (img dockerspec.DockerOCIImage, out build.Output, err error) {
	ref, err := reference.Parse(source)
	if err != nil {
		return img, out, err
	}
	name, dgst, config, err := c.ResolveImageConfig(ctx, ref.WithDefaultTag().String(), sourceresolver.Opt{LogName: "resolve image config for " + ref.WithDefaultTag().String()})
	if err != nil {
		return img, out, err
	}
	if err := json.Unmarshal(config, &img); err != nil {
		return img, out, errs.New(errs.Invalid, "config: %w", err)
	}
	if dgst != "" && !strings.Contains(name, "@") {
		name += "@" + dgst.String()
	}
	def, err := llb.Image(name, llb.WithCustomName("[frontend] load "+source)).Marshal(ctx)
	if err != nil {
		return img, out, err
	}
	res, err := g.Job.Solve(ctx, def.ToPB())
	if err != nil {
		return img, out, err
	}
	out, err = res.Bring(ctx)
	return img, out, err
}

// capable refuses what was asked of a frontend that does not say it can.
func capable(has, wanted string, inputs bool) error {
	names := func(list string) (all []string) {
		for name := range strings.SplitSeq(list, ",") {
			if name, _, _ = strings.Cut(name, "+"); name != "" {
				all = append(all, name)
			}
		}
		return all
	}
	want := names(wanted)
	if inputs {
		want = append(want, "moby.buildkit.frontend.inputs")
	}
	can := names(has)
	for _, w := range want {
		if !slices.Contains(can, w) {
			return errs.As(errs.NotImplemented, errdefs.NewUnsupportedFrontendCapError(w))
		}
	}
	return nil
}

// environment tells the program what it was asked.
func (g *Gateway) environment(env []string, attrs map[string]string) ([]string, error) {
	env = slices.Clone(env)
	i := 0
	for k, v := range attrs {
		env = append(env, fmt.Sprintf("BUILDKIT_FRONTEND_OPT_%d=%s=%s", i, k, v))
		i++
	}
	workers, err := json.Marshal([]gateway.WorkerInfo{{ID: Product, Platforms: g.Platforms}})
	if err != nil {
		return nil, err
	}
	return append(env, "BUILDKIT_SESSION_ID="+g.Session, "BUILDKIT_WORKERS="+string(workers), "BUILDKIT_EXPORTEDPRODUCT="+Product), nil
}

// converse runs the program and answers it, until it has returned or ended.
func (g *Gateway) converse(ctx context.Context, ctr Container, spec ProcessSpec, gw gateway.Client, p build.Progress) (_ *gateway.Result, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	here, there := net.Pipe()
	bridge := NewBridge(gw)
	defer func() { err = errors.Join(err, bridge.Close(context.WithoutCancel(ctx))) }()
	server := grpc.NewServer(append(Contained(g.Log), grpc.ConnectionTimeout(30*time.Second), grpc.MaxRecvMsgSize(maxMessage), grpc.MaxSendMsgSize(maxMessage))...)
	gwpb.RegisterLLBBridgeServer(server, bridge)
	served := make(chan struct{})
	listener := &oneConn{conn: here, closed: make(chan struct{})}
	go func() {
		defer close(served)
		_ = server.Serve(listener) // it ends by Stop
	}()
	defer func() {
		_ = there.Close() // a server that waits for its peer does not stop
		_ = here.Close()
		server.Stop()
		<-served
	}()

	spec.Stdin, spec.Stdout, spec.Stderr = there, there, logWriter{p, 2}
	proc, err := ctr.Start(ctx, spec)
	if err != nil {
		return nil, err
	}
	ended := make(chan error, 1)
	go func() { ended <- proc.Wait() }()
	select {
	case <-bridge.Returned(): // the program ends by itself, or with its container
		return bridge.Result()
	case end := <-ended:
		select {
		case <-bridge.Returned():
			return bridge.Result()
		default:
		}
		if end == nil {
			end = errs.New(errs.Invalid, "its program ended without a result")
		}
		return nil, end
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// oneConn is a listener with one connection to give.
type oneConn struct {
	once   sync.Once
	conn   net.Conn
	close  sync.Once
	closed chan struct{}
}

func (l *oneConn) Accept() (conn net.Conn, err error) {
	l.once.Do(func() { conn = l.conn })
	if conn != nil {
		return conn, nil
	}
	<-l.closed
	return nil, net.ErrClosed
}

func (l *oneConn) Close() error {
	l.close.Do(func() { close(l.closed) })
	return nil
}

func (l *oneConn) Addr() net.Addr { return l.conn.LocalAddr() }

// logWriter shows what a program writes.
type logWriter struct {
	p      build.Progress
	stream int
}

func (w logWriter) Write(data []byte) (int, error) {
	if w.p != nil {
		w.p.Log(w.stream, data)
	}
	return len(data), nil
}
