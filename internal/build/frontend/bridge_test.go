package frontend_test

import (
	"bytes"
	"context"
	"io"
	"net"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/moby/buildkit/frontend/dockerfile/builder"
	gateway "github.com/moby/buildkit/frontend/gateway/client"
	"github.com/moby/buildkit/frontend/gateway/grpcclient"
	gwpb "github.com/moby/buildkit/frontend/gateway/pb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"corten.dev/corten/internal/build/frontend"
	"corten.dev/corten/internal/snapshot"
)

// programs stands for containers: a process is a function of this test, which speaks over its streams.
type programs struct {
	run func(ctx context.Context, spec frontend.ProcessSpec) error
}

func (p programs) New(context.Context, frontend.ContainerSpec) (frontend.Container, error) {
	return p, nil
}

func (p programs) Start(ctx context.Context, spec frontend.ProcessSpec) (gateway.ContainerProcess, error) {
	done := make(chan error, 1)
	go func() { done <- p.run(ctx, spec) }()
	return &program{done: done}, nil
}

func (programs) Open(context.Context, int) (*snapshot.Mounted, error) { return nil, io.EOF }
func (programs) Release(context.Context) error                        { return nil }

type program struct {
	done    chan error
	signals []syscall.Signal
}

func (p *program) Wait() error                                   { return <-p.done }
func (p *program) Resize(context.Context, gateway.WinSize) error { return nil }
func (p *program) Signal(_ context.Context, s syscall.Signal) error {
	p.signals = append(p.signals, s)
	return nil
}

// dial is the connection that a frontend image's program makes of its streams.
func dial(t *testing.T, conn net.Conn) gwpb.LLBBridgeClient {
	t.Helper()
	cc, err := grpc.NewClient("passthrough:///", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(context.Context, string) (net.Conn, error) { return conn, nil }))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cc.Close() })
	return gwpb.NewLLBBridgeClient(cc)
}

type stdio struct {
	io.Reader
	io.Writer
	net.Conn
}

func (s stdio) Read(p []byte) (int, error)  { return s.Reader.Read(p) }
func (s stdio) Write(p []byte) (int, error) { return s.Writer.Write(p) }
func (s stdio) Close() error                { return nil }

// BuildKit's own client, in the place of a frontend image's program, builds the Dockerfile through the gateway's protocol.
func TestFrontendImage(t *testing.T) {
	gw, job := newGateway(t, "# syntax=example.org/my/frontend:1\n"+sixSteps)
	gw.Containers = programs{run: func(ctx context.Context, spec frontend.ProcessSpec) error {
		opts := map[string]string{}
		for _, env := range spec.Env {
			if strings.HasPrefix(env, "BUILDKIT_FRONTEND_OPT_") {
				_, kv, _ := strings.Cut(env, "=")
				k, v, _ := strings.Cut(kv, "=")
				opts[k] = v
			}
		}
		here, _ := net.Pipe()
		c, err := grpcclient.New(ctx, opts, "s", "corten", dial(t, stdio{spec.Stdin, spec.Stdout, here}), nil)
		if err != nil {
			return err
		}
		return c.Run(ctx, builder.Build)
	}}
	res, err := gw.Run(t.Context(), frontend.Dockerfile, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	out, err := res.Ref.(*frontend.Ref).Result().Evaluate(t.Context())
	if err != nil || out.Chain != "sha256:built" {
		t.Errorf("output %v, %v; tasks %q", out, err, job.runs)
	}
	if !strings.Contains(string(res.Metadata["containerimage.config"]), `"WorkingDir":"/src"`) {
		t.Errorf("metadata: %q", res.Metadata)
	}
}

// A frontend that ends without a word, or says nonsense, fails the build with its name.
func TestFrontendImageThatFails(t *testing.T) {
	for name, run := range map[string]func(context.Context, frontend.ProcessSpec) error{
		"ends": func(context.Context, frontend.ProcessSpec) error { return nil },
		"nonsense": func(_ context.Context, spec frontend.ProcessSpec) error {
			go io.Copy(io.Discard, spec.Stdin)
			_, err := spec.Stdout.Write(bytes.Repeat([]byte("x"), 1000))
			return err
		},
	} {
		gw, _ := newGateway(t, "# syntax=example.org/my/frontend:1\n"+sixSteps)
		gw.Containers = programs{run: run}
		if _, err := gw.Run(t.Context(), frontend.Dockerfile, nil, nil); err == nil || !strings.Contains(err.Error(), "example.org/my/frontend:1") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestBridgeRunsProcesses(t *testing.T) {
	gw, _ := newGateway(t, sixSteps)
	gw.Containers = programs{run: func(_ context.Context, spec frontend.ProcessSpec) error {
		data, err := io.ReadAll(spec.Stdin)
		if err != nil {
			return err
		}
		if _, err := spec.Stdout.Write(bytes.ToUpper(data)); err != nil {
			return err
		}
		return &gwpb.ExitError{ExitCode: 7}
	}}
	here, there := net.Pipe()
	bridge := frontend.NewBridge(gw.Client(nil, nil))
	server := grpc.NewServer()
	gwpb.RegisterLLBBridgeServer(server, bridge)
	l := &listener{conns: make(chan net.Conn, 1), done: make(chan struct{})}
	l.conns <- here
	go server.Serve(l)
	defer server.Stop()

	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	c, err := grpcclient.New(ctx, nil, "s", "corten", dial(t, there), nil)
	if err != nil {
		t.Fatal(err)
	}
	ctr, err := c.NewContainer(ctx, gateway.NewContainerRequest{})
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	proc, err := ctr.Start(ctx, gateway.StartRequest{Args: []string{"cat"}, Stdin: io.NopCloser(strings.NewReader("hello")), Stdout: nopCloser{&out}})
	if err != nil {
		t.Fatal(err)
	}
	err = proc.Wait()
	var exit *gwpb.ExitError
	if !asExit(err, &exit) || exit.ExitCode != 7 || out.String() != "HELLO" {
		t.Errorf("%v, %q", err, out.String())
	}
	if err := ctr.Release(ctx); err != nil {
		t.Error(err)
	}
}
