package frontend

import (
	"context"
	"errors"
	"io"
	"sync"

	gateway "github.com/moby/buildkit/frontend/gateway/client"
	gwpb "github.com/moby/buildkit/frontend/gateway/pb"
	"github.com/moby/buildkit/util/grpcerrors"
	"github.com/moby/sys/signal"
	spb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// NewContainer implements the protocol.
func (b *Bridge) NewContainer(ctx context.Context, req *gwpb.NewContainerRequest) (*gwpb.NewContainerResponse, error) {
	if req.ContainerID == "" {
		return nil, status.Error(codes.InvalidArgument, "the container has no id")
	}
	spec := gateway.NewContainerRequest{
		Hostname: req.Hostname, NetMode: req.Network, ExtraHosts: req.ExtraHosts, Platform: req.Platform, Constraints: req.Constraints,
	}
	for _, m := range req.Mounts {
		mount := gateway.Mount{
			Selector: m.GetSelector(), Dest: m.GetDest(), ResultID: m.GetResultID(), Readonly: m.GetReadonly(), MountType: m.GetMountType(),
			CacheOpt: m.GetCacheOpt(), SecretOpt: m.GetSecretOpt(), SSHOpt: m.GetSSHOpt(),
		}
		if mount.ResultID != "" {
			ref, err := b.find(mount.ResultID)
			if err != nil {
				return nil, err
			}
			mount.Ref = ref
		}
		spec.Mounts = append(spec.Mounts, mount)
	}
	// The container outlives this request: it ends with ReleaseContainer or with the bridge.
	ctr, err := b.gw.NewContainer(context.WithoutCancel(ctx), spec)
	if err != nil {
		return nil, WireError(ctx, err)
	}
	b.mu.Lock()
	_, taken := b.containers[req.ContainerID]
	if !taken && !b.over {
		b.containers[req.ContainerID] = ctr
		ctr = nil
	}
	b.mu.Unlock()
	if ctr == nil {
		return &gwpb.NewContainerResponse{}, nil
	}
	if err := ctr.Release(ctx); err != nil {
		return nil, WireError(ctx, err)
	}
	if taken {
		return nil, status.Errorf(codes.AlreadyExists, "container %s exists", req.ContainerID)
	}
	return nil, status.Error(codes.Canceled, "the build is over")
}

// ReleaseContainer implements the protocol.
func (b *Bridge) ReleaseContainer(ctx context.Context, req *gwpb.ReleaseContainerRequest) (*gwpb.ReleaseContainerResponse, error) {
	b.mu.Lock()
	ctr, ok := b.containers[req.ContainerID]
	delete(b.containers, req.ContainerID)
	b.mu.Unlock()
	if !ok {
		return nil, status.Errorf(codes.NotFound, "no such container: %s", req.ContainerID)
	}
	return &gwpb.ReleaseContainerResponse{}, WireError(ctx, ctr.Release(ctx))
}

func (b *Bridge) container(id string) (gateway.Container, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if ctr, ok := b.containers[id]; ok {
		return ctr, nil
	}
	return nil, status.Errorf(codes.NotFound, "no such container: %s", id)
}

// ReadFileContainer implements the protocol.
func (b *Bridge) ReadFileContainer(ctx context.Context, req *gwpb.ReadFileRequest) (*gwpb.ReadFileResponse, error) {
	ctr, err := b.container(req.Ref)
	if err != nil {
		return nil, err
	}
	data, err := ctr.ReadFile(ctx, gateway.ReadContainerRequest{ReadRequest: readRequest(req), MountIndex: int(req.MountIndex)})
	return &gwpb.ReadFileResponse{Data: data}, WireError(ctx, err)
}

// ReadDirContainer implements the protocol.
func (b *Bridge) ReadDirContainer(ctx context.Context, req *gwpb.ReadDirRequest) (*gwpb.ReadDirResponse, error) {
	ctr, err := b.container(req.Ref)
	if err != nil {
		return nil, err
	}
	list, err := ctr.ReadDir(ctx, gateway.ReadDirContainerRequest{
		ReadDirRequest: gateway.ReadDirRequest{Path: req.DirPath, IncludePattern: req.IncludePattern}, MountIndex: int(req.MountIndex),
	})
	return &gwpb.ReadDirResponse{Entries: list}, WireError(ctx, err)
}

// StatFileContainer implements the protocol.
func (b *Bridge) StatFileContainer(ctx context.Context, req *gwpb.StatFileRequest) (*gwpb.StatFileResponse, error) {
	ctr, err := b.container(req.Ref)
	if err != nil {
		return nil, err
	}
	st, err := ctr.StatFile(ctx, gateway.StatContainerRequest{StatRequest: gateway.StatRequest{Path: req.Path}, MountIndex: int(req.MountIndex)})
	return &gwpb.StatFileResponse{Stat: st}, WireError(ctx, err)
}

// ExecProcess implements the protocol: processes of containers, all of a frontend over one stream.
//
//	frontend                      here
//	Init(container, args, fds) ─▶ starts
//	                           ◀─ Started
//	File(0, data | EOF)        ─▶ stdin
//	Resize, Signal             ─▶ the process
//	                           ◀─ File(1 | 2, data), at the end of each EOF
//	                           ◀─ Exit(code, error), then Done
func (b *Bridge) ExecProcess(stream gwpb.LLBBridge_ExecProcessServer) error {
	ctx, cancel := context.WithCancel(stream.Context())
	x := &execs{bridge: b, stream: stream, procs: map[string]*process{}}
	err := x.receive(ctx)
	cancel() // what still runs ends with its stream
	x.mu.Lock()
	for _, p := range x.procs {
		p.stdin.CloseWithError(io.ErrClosedPipe)
	}
	x.mu.Unlock()
	x.running.Wait()
	return err
}

// execs are the processes of one stream.
type execs struct {
	bridge  *Bridge
	stream  gwpb.LLBBridge_ExecProcessServer
	sending sync.Mutex // a stream takes one message at a time
	running sync.WaitGroup

	mu    sync.Mutex // guards procs
	procs map[string]*process
}

type process struct {
	gateway.ContainerProcess
	stdin *io.PipeWriter
	input chan []byte // on their way to stdin; nil is its end
}

func (x *execs) send(msg *gwpb.ExecMessage) error {
	x.sending.Lock()
	defer x.sending.Unlock()
	return x.stream.Send(msg)
}

func (x *execs) receive(ctx context.Context) error {
	for {
		msg, err := x.stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if msg.ProcessID == "" {
			return status.Error(codes.InvalidArgument, "a message without a process id")
		}
		if init := msg.GetInit(); init != nil {
			if err := x.start(ctx, msg.ProcessID, init); err != nil {
				return err
			}
			continue
		}
		x.mu.Lock()
		p, ok := x.procs[msg.ProcessID]
		x.mu.Unlock()
		if !ok {
			continue // it ended while the message was on its way
		}
		if err := x.tell(ctx, p, msg); err != nil {
			return err
		}
	}
}

func (x *execs) tell(ctx context.Context, p *process, msg *gwpb.ExecMessage) error {
	switch in := msg.GetInput().(type) {
	case *gwpb.ExecMessage_File:
		for _, data := range [][]byte{in.File.Data, nil} {
			if len(data) == 0 && !(data == nil && in.File.EOF) {
				continue
			}
			select {
			case p.input <- data:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
	case *gwpb.ExecMessage_Resize:
		return WireError(ctx, p.Resize(ctx, gateway.WinSize{Rows: in.Resize.Rows, Cols: in.Resize.Cols}))
	case *gwpb.ExecMessage_Signal:
		sig, ok := signal.SignalMap[in.Signal.Name]
		if !ok {
			return status.Errorf(codes.InvalidArgument, "unknown signal %s", in.Signal.Name)
		}
		return WireError(ctx, p.Signal(ctx, sig))
	}
	return nil
}

func (x *execs) start(ctx context.Context, id string, init *gwpb.InitMessage) error {
	if init.Meta == nil {
		return status.Error(codes.InvalidArgument, "the process has no arguments")
	}
	ctr, err := x.bridge.container(init.ContainerID)
	if err != nil {
		return err
	}
	x.mu.Lock()
	_, taken := x.procs[id]
	x.mu.Unlock()
	if taken {
		return status.Errorf(codes.AlreadyExists, "process %s exists", id)
	}
	req := gateway.StartRequest{
		Args: init.Meta.Args, Env: init.Meta.Env, SecretEnv: init.Secretenv, User: init.Meta.User, Cwd: init.Meta.Cwd, Tty: init.Tty, SecurityMode: init.Security,
		RemoveMountStubsRecursive: init.Meta.RemoveMountStubsRecursive,
	}
	stdin, stdinW := io.Pipe()
	started := make(chan struct{})
	var outputs []*output
	for _, fd := range init.Fds {
		switch fd {
		case 0:
			req.Stdin = stdin
		case 1, 2:
			out := &output{x: x, id: id, fd: fd, started: started}
			outputs = append(outputs, out)
			if fd == 1 {
				req.Stdout = out
			} else {
				req.Stderr = out
			}
		}
	}
	proc, err := ctr.Start(ctx, req)
	if err != nil {
		return WireError(ctx, err)
	}
	p := &process{ContainerProcess: proc, stdin: stdinW, input: make(chan []byte, 16)}
	x.mu.Lock()
	x.procs[id] = p
	x.mu.Unlock()
	err = x.send(&gwpb.ExecMessage{ProcessID: id, Input: &gwpb.ExecMessage_Started{Started: &gwpb.StartedMessage{}}})
	close(started)
	ended := make(chan struct{})
	x.running.Go(func() { p.feed(ended) })
	x.running.Go(func() {
		x.wait(ctx, id, p, outputs)
		close(ended)
	})
	return err
}

// feed writes to stdin what came; a process that does not read holds up nobody but itself and its stream.
func (p *process) feed(ended <-chan struct{}) {
	for {
		select {
		case data := <-p.input:
			if data == nil {
				p.stdin.Close()
				continue
			}
			_, _ = p.stdin.Write(data) // a process that closed its stdin does not want the rest
		case <-ended:
			return
		}
	}
}

// wait tells the end of a process. What cannot be told any more is told to nobody: the stream is gone.
func (x *execs) wait(ctx context.Context, id string, p *process, outputs []*output) {
	err := p.Wait()
	p.stdin.CloseWithError(io.ErrClosedPipe)
	for _, out := range outputs {
		_ = out.Close()
	}
	x.mu.Lock()
	delete(x.procs, id)
	x.mu.Unlock()
	exit := &gwpb.ExitMessage{}
	if err != nil {
		exit.Code = gwpb.UnknownExitStatus
		var code *gwpb.ExitError
		if errors.As(err, &code) {
			exit.Code = code.ExitCode
		}
		st := status.Convert(grpcerrors.ToGRPC(ctx, err)).Proto()
		exit.Error = &spb.Status{Code: st.Code, Message: st.Message, Details: st.Details}
	}
	_ = x.send(&gwpb.ExecMessage{ProcessID: id, Input: &gwpb.ExecMessage_Exit{Exit: exit}})
	_ = x.send(&gwpb.ExecMessage{ProcessID: id, Input: &gwpb.ExecMessage_Done{Done: &gwpb.DoneMessage{}}})
}

// output sends what a process writes.
type output struct {
	x       *execs
	id      string
	fd      uint32
	started <-chan struct{} // nothing is told before Started
	closed  sync.Once
}

func (o *output) Write(data []byte) (int, error) {
	<-o.started
	if err := o.x.send(o.message(data, false)); err != nil {
		return 0, err
	}
	return len(data), nil
}

func (o *output) Close() error {
	var err error
	o.closed.Do(func() {
		<-o.started
		err = o.x.send(o.message(nil, true))
	})
	return err
}

func (o *output) message(data []byte, eof bool) *gwpb.ExecMessage {
	return &gwpb.ExecMessage{ProcessID: o.id, Input: &gwpb.ExecMessage_File{File: &gwpb.FdMessage{Fd: o.fd, Data: data, EOF: eof}}}
}
