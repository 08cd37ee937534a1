package runtime

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"time"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/linux/launch"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// hooksOf makes no hooks of nil.
func hooksOf(h *specs.Hooks) *specs.Hooks {
	if h == nil {
		return &specs.Hooks{}
	}
	return h
}

// prestart is the deprecated kind of hook.
func prestart(h *specs.Hooks) []specs.Hook {
	return h.Prestart //lint:ignore SA1019 dockerd still uses it
}

func hooksBeforePivot(h *specs.Hooks) bool {
	return h != nil && len(prestart(h))+len(h.CreateRuntime)+len(h.CreateContainer) > 0
}

// hooksBeforePivot runs the hooks that see the root mounted but not entered.
func (ctr *Container) hooksBeforePivot(ctx context.Context) error {
	h := hooksOf(ctr.rec.Hooks)
	for _, list := range [][]specs.Hook{prestart(h), h.CreateRuntime} {
		if err := ctr.runHooks(ctx, list, specs.StateCreating); err != nil {
			return err
		}
	}
	return ctr.runInside(ctx, h.CreateContainer, specs.StateCreating)
}

// runHooks runs hooks in the runtime's own namespaces.
func (ctr *Container) runHooks(ctx context.Context, hooks []specs.Hook, status specs.ContainerState) error {
	for _, h := range hooks {
		body, err := marshal(ctr.oci(status))
		if err != nil {
			return err
		}
		hctx, cancel := hookContext(ctx, &h)
		cmd := exec.CommandContext(hctx, h.Path)
		if len(h.Args) > 0 {
			cmd.Args = h.Args
		}
		cmd.Env = append([]string{}, h.Env...)
		cmd.Stdin = bytes.NewReader(body)
		cmd.WaitDelay = time.Second
		var out bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &out
		if ctr.rec.Bundle != "" {
			cmd.Dir = ctr.rec.Bundle
		}
		err = cmd.Run()
		if hctx.Err() != nil {
			err = fmt.Errorf("timed out: %w", context.Cause(hctx))
		}
		cancel()
		if err != nil {
			return fmt.Errorf("hook %s: %w%s", h.Path, err, said(out.Bytes()))
		}
	}
	return nil
}

// runPoststop runs the hooks that come after the container. The specification: of one that fails a warning is logged, and the remaining ones run as if it had not.
func (ctr *Container) runPoststop(ctx context.Context) {
	for _, h := range hooksOf(ctr.rec.Hooks).Poststop {
		if err := ctr.runHooks(ctx, []specs.Hook{h}, specs.StateStopped); err != nil {
			ctr.rt.log.Warn("poststop hook", "container", ctr.rec.ID, "error", err)
		}
	}
}

func said(out []byte) string {
	out = bytes.TrimSpace(out)
	if len(out) == 0 {
		return ""
	}
	return ": " + string(out[max(0, len(out)-2048):])
}

func hookContext(ctx context.Context, h *specs.Hook) (context.Context, context.CancelFunc) {
	if h.Timeout != nil {
		return context.WithTimeout(ctx, time.Duration(*h.Timeout)*time.Second)
	}
	return context.WithCancel(ctx)
}

// runInside runs hooks in the container's namespaces, as programs of their own: the child joins them and executes the hook.
func (ctr *Container) runInside(ctx context.Context, hooks []specs.Hook, status specs.ContainerState) error {
	for _, h := range hooks {
		hctx, cancel := hookContext(ctx, &h)
		err := ctr.hookInside(hctx, &h, status)
		cancel()
		if err != nil {
			return fmt.Errorf("hook %s: %w", h.Path, err)
		}
	}
	return nil
}

func (ctr *Container) hookInside(ctx context.Context, h *specs.Hook, status specs.ContainerState) error {
	st := ctr.oci(status)
	var err error
	if st.Pid, err = innerPid(ctr.rec.Pid); err != nil { // the specification: as seen by the container
		return err
	}
	body, err := marshal(st)
	if err != nil {
		return err
	}
	in, err := os.CreateTemp("", "hook")
	if err != nil {
		return fmt.Errorf("state for the hook: %w", err)
	}
	defer in.Close()
	if err := os.Remove(in.Name()); err != nil {
		return fmt.Errorf("state for the hook: %w", err)
	}
	if _, err := in.WriteAt(body, 0); err != nil {
		return fmt.Errorf("state for the hook: %w", err)
	}
	out, outW, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("output of the hook: %w", err)
	}
	defer out.Close()
	defer outW.Close()
	args := h.Args
	if len(args) == 0 {
		args = []string{h.Path}
	}
	spec := &specs.Spec{Linux: &specs.Linux{}, Process: &specs.Process{Args: args, Env: h.Env, Cwd: "/"}}
	p := newPlan(spec, &RunOptions{ID: ctr.rec.ID})
	defer p.close()
	if err := ctr.joinProcess(p); err != nil {
		return err
	}
	p.syncSlot = p.b.NewSlot()
	ours, theirs, err := syncSocket()
	if err != nil {
		return err
	}
	defer ours.Close()
	defer theirs.Close()
	p.files = append(p.files, theirs)
	p.b.Sync(p.syncSlot)
	p.protect()
	p.openProc()
	p.enter()
	p.stdio(spec.Process, p.syncSlot)
	p.note("exec %s", h.Path)
	p.b.Exec([]string{h.Path}, args, h.Env)
	code, err := p.encode()
	if err != nil {
		return err
	}
	pid, pidfd, err := launchWith(code, []*os.File{in, outW, outW}, p.files)
	if err != nil {
		return err
	}
	defer pidfd.Close()
	theirs.Close()
	outW.Close()
	hs := &handshake{conn: ours, explain: p.b.Explain}
	werr := hs.wait(ctx, 0)
	text, code2, err := collect(ctx, pid, pidfd, out)
	if err := errors.Join(werr, err); err != nil {
		return err
	}
	if code2 != 0 {
		return errs.New(errs.Unavailable, "exit status %d%s", code2, said(text))
	}
	return nil
}

// collect waits for a process of our own and returns what it said.
func collect(ctx context.Context, pid int, pidfd *os.File, out *os.File) ([]byte, int, error) {
	stop := context.AfterFunc(ctx, func() {
		_ = unix.PidfdSendSignal(int(pidfd.Fd()), unix.SIGKILL, nil, 0)
		_ = out.SetReadDeadline(time.Now())
	})
	defer stop()
	var text bytes.Buffer
	_, _ = text.ReadFrom(out) // ends at the deadline or the end of file
	var ws unix.WaitStatus
	for {
		_, err := unix.Wait4(pid, &ws, 0, nil)
		if err == unix.EINTR {
			continue
		}
		if ctx.Err() != nil {
			return text.Bytes(), -1, fmt.Errorf("timed out: %w", context.Cause(ctx))
		}
		if err != nil {
			return text.Bytes(), -1, fmt.Errorf("wait for process %d: %w", pid, err)
		}
		if ws.Signaled() {
			return text.Bytes(), 128 + int(ws.Signal()), nil
		}
		return text.Bytes(), ws.ExitStatus(), nil
	}
}

func direct(_ context.Context, program []byte, files []*os.File) (int, *os.File, error) {
	return launchWith(program, []*os.File{os.Stdin, os.Stdout, os.Stderr}, files)
}

// WithStdio launches as a child of this process with the given first descriptors, and the socket for the terminal's master (nil: none).
func WithStdio(stdio [3]*os.File, console *os.File) Launcher {
	return LauncherFunc(func(_ context.Context, program []byte, files []*os.File) (int, *os.File, error) {
		return launchWith(program, []*os.File{stdio[0], stdio[1], stdio[2], console}, files)
	})
}

func launchWith(program []byte, stdio []*os.File, files []*os.File) (int, *os.File, error) {
	p, err := launch.Decode(program)
	if err != nil {
		return 0, nil, err
	}
	fds := []int{-1, -1, -1, -1}
	for i, f := range stdio {
		if f != nil {
			fds[i] = int(f.Fd())
		} else if i < 3 {
			null, err := os.OpenFile("/dev/null", os.O_RDWR, 0)
			if err != nil {
				return 0, nil, fmt.Errorf("start process: %w", err)
			}
			defer null.Close()
			fds[i] = int(null.Fd())
		}
	}
	for _, f := range files {
		fds = append(fds, int(f.Fd()))
	}
	pid, pidfd, err := p.Start(fds)
	if err != nil {
		return 0, nil, fmt.Errorf("start process: %w", err)
	}
	return pid, os.NewFile(uintptr(pidfd), "pidfd"), nil
}
