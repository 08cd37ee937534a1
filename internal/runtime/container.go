package runtime

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/linux/cgroup"
	"corten.dev/corten/internal/linux/launch"
	"corten.dev/corten/internal/linux/pidfd"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// Container is a container that was created. Its methods may be called by several goroutines; the kernel is the only judge of its state.
type Container struct {
	rt    *Runtime
	dir   string // folder of the record, "" if there is none
	rec   record
	cg    *cgroup.Manager
	pidfd *os.File // nil when the process was gone at Load
	sync  *os.File
}

// State is a container as the specification's state describes it, and a bit more for lists.
type State struct {
	ID, Bundle, Rootfs string
	Pid                int
	Status             Status
	Created            time.Time
	Owner              int
	Annotations        map[string]string
}

// ID is the container's id.
func (ctr *Container) ID() string { return ctr.rec.ID }

// Pid is the first process, as the host numbers it.
func (ctr *Container) Pid() int { return ctr.rec.Pid }

// PIDFD is the first process's pidfd; nil when it was gone at Load. It belongs to the container.
func (ctr *Container) PIDFD() *os.File { return ctr.pidfd }

// Cgroup is the manager of the container's cgroups.
func (ctr *Container) Cgroup() *cgroup.Manager { return ctr.cg }

// openPidfd finds the process of a loaded container, if it is still the same one.
func (ctr *Container) openPidfd() {
	fd, err := unix.PidfdOpen(ctr.rec.Pid, 0)
	if err != nil {
		return
	}
	if start, _, err := processStat(ctr.rec.Pid); err != nil || start != ctr.rec.StartTime {
		unix.Close(fd)
		return
	}
	ctr.pidfd = os.NewFile(uintptr(fd), "pidfd")
}

func (ctr *Container) alive() bool { return ctr.pidfd != nil && !pidfd.Ended(ctr.pidfd, 0) }

// waiting tells whether the container still waits at its gate.
func (ctr *Container) waiting() bool {
	return ctr.dir != "" && exists(filepath.Join(ctr.dir, gateName))
}

// State asks the kernel how the container is.
func (ctr *Container) State() (State, error) {
	st := State{
		ID: ctr.rec.ID, Bundle: ctr.rec.Bundle, Rootfs: ctr.rec.Rootfs, Pid: ctr.rec.Pid, Created: ctr.rec.Created, Owner: ctr.rec.Owner, Annotations: ctr.rec.Annotations,
	}
	switch {
	case !ctr.alive():
		st.Status, st.Pid = Stopped, 0
		return st, nil
	case ctr.waiting():
		st.Status = Created
	default:
		st.Status = Running
	}
	frozen, err := ctr.cg.Frozen()
	if err != nil {
		if !ctr.alive() { // it went meanwhile, and its cgroups with it
			st.Status, st.Pid = Stopped, 0
			return st, nil
		}
		return st, fmt.Errorf("state of container %s: %w", ctr.rec.ID, err)
	}
	if frozen {
		st.Status = Paused
	}
	return st, nil
}

// OCI is the state in the specification's form.
func (ctr *Container) oci(status specs.ContainerState) *specs.State {
	st := &specs.State{Version: specs.Version, ID: ctr.rec.ID, Status: status, Pid: ctr.rec.Pid, Bundle: ctr.rec.Bundle, Annotations: ctr.rec.Annotations}
	if status == specs.StateStopped {
		st.Pid = 0 // somebody else may have it
	}
	return st
}

func (ctr *Container) wrap(verb string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s container %s: %w", verb, ctr.rec.ID, err)
}

// Start lets a container go that was created with a gate, and returns when its program was executed.
func (ctr *Container) Start(ctx context.Context) (err error) {
	defer func() { err = ctr.wrap("start", err) }()
	if !ctr.alive() {
		return errs.New(errs.Conflict, "container is stopped")
	}
	if !ctr.waiting() {
		return errs.New(errs.Conflict, "container is running already")
	}
	conn, err := openGate(ctr.dir)
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := os.Remove(filepath.Join(ctr.dir, gateName)); err != nil {
		return fmt.Errorf("gate: %w", err)
	}
	if err := ctr.runInside(ctx, hooksOf(ctr.rec.Hooks).StartContainer, specs.StateCreated); err != nil {
		return errors.Join(err, pidfd.Kill(ctr.pidfd))
	}
	h := &handshake{conn: conn, explain: explainNotes(ctr.rec.Notes), on: map[byte]func(int) error{
		launch.TellListener: func(fd int) error { return ctr.handListener(fd) },
	}}
	if err := h.tellGo(); err != nil {
		return err
	}
	if err := h.wait(ctx, 0); err != nil {
		var f *failure
		if errors.As(err, &f) {
			return explainExec(f, ctr.rec.Process)
		}
		return err
	}
	if err := ctr.runHooks(ctx, hooksOf(ctr.rec.Hooks).Poststart, specs.StateRunning); err != nil {
		return errors.Join(err, pidfd.Kill(ctr.pidfd)) // the specification: stop the container
	}
	return nil
}

func (ctr *Container) handListener(fd int) error {
	if ctr.rec.Agent == nil {
		return errs.New(errs.Invalid, "seccomp: a listener that nobody asked for")
	}
	return sendListener(ctr.pidfd, fd, ctr.rec.Agent, ctr.oci(specs.StateCreated), ctr.rec.Pid)
}

// Kill sends a signal to the first process, or to all.
func (ctr *Container) Kill(_ context.Context, sig unix.Signal, all bool) error {
	if all {
		return ctr.wrap("kill", ctr.cg.Kill(sig))
	}
	if !ctr.alive() {
		return ctr.wrap("kill", errs.New(errs.Conflict, "container not running"))
	}
	err := pidfd.Signal(ctr.pidfd, sig)
	if errors.Is(err, errs.Conflict) {
		err = errs.New(errs.Conflict, "container not running")
	}
	return ctr.wrap("kill", err)
}

// Pause freezes all processes.
func (ctr *Container) Pause(context.Context) error {
	if !ctr.alive() {
		return ctr.wrap("pause", errs.New(errs.Conflict, "container not running"))
	}
	if frozen, err := ctr.cg.Frozen(); err != nil || frozen {
		if frozen {
			err = errs.New(errs.Conflict, "container is paused already")
		}
		return ctr.wrap("pause", err)
	}
	return ctr.wrap("pause", ctr.cg.Freeze())
}

// Resume thaws them.
func (ctr *Container) Resume(context.Context) error {
	frozen, err := ctr.cg.Frozen()
	if err == nil && !frozen {
		err = errs.New(errs.Conflict, "container not paused")
	}
	if err == nil {
		err = ctr.cg.Thaw()
	}
	return ctr.wrap("resume", err)
}

// Update changes limits; what is nil stays.
func (ctr *Container) Update(_ context.Context, res *specs.LinuxResources) error {
	if !ctr.alive() {
		return ctr.wrap("update", errs.New(errs.Conflict, "container not running"))
	}
	return ctr.wrap("update", ctr.cg.Set(res))
}

// Pids are all processes of the container, as the host numbers them.
func (ctr *Container) Pids() ([]int, error) {
	pids, err := ctr.cg.Pids()
	return pids, ctr.wrap("list processes of", err)
}

// Wait returns when the first process ended, however long that takes; it does not reap it.
func (ctr *Container) Wait(ctx context.Context) error {
	for ctr.alive() {
		if pidfd.Ended(ctr.pidfd, 100*time.Millisecond) {
			return nil
		}
		if ctx.Err() != nil {
			return ctr.wrap("wait for", context.Cause(ctx))
		}
	}
	return nil
}

// killLimit bounds how long a forced delete waits for processes to go.
const killLimit = 10 * time.Second

// Delete removes a stopped container's cgroups and record, and runs its poststop hooks. With force it is killed first.
func (ctr *Container) Delete(ctx context.Context, force bool) (err error) {
	defer func() { err = ctr.wrap("delete", err) }()
	if ctr.alive() {
		if !force && !ctr.waiting() {
			return errs.New(errs.Conflict, "container is not stopped")
		}
		if err := pidfd.Kill(ctr.pidfd); err != nil {
			return fmt.Errorf("kill: %w", err)
		}
		if frozen, _ := ctr.cg.Frozen(); frozen {
			if err := ctr.cg.Thaw(); err != nil {
				return err
			}
		}
		if !pidfd.Ended(ctr.pidfd, killLimit) {
			return errs.New(errs.Unavailable, "process %d did not end within %s of being killed", ctr.rec.Pid, killLimit)
		}
	}
	if pids, perr := ctr.cg.Pids(); perr == nil && len(pids) > 0 { // left behind where the pid namespace is shared
		if err := ctr.cg.Kill(unix.SIGKILL); err != nil {
			return err
		}
	}
	if err := ctr.cg.Destroy(); err != nil {
		return err
	}
	ctr.runPoststop(ctx)
	if ctr.dir != "" {
		if err := ctr.removeFolder(); err != nil {
			return fmt.Errorf("record: %w", err)
		}
	}
	return ctr.Close()
}

// Close gives back what the handle holds; the container goes on. For who has the handle yet, it has ended.
func (ctr *Container) Close() error {
	if ctr.pidfd == nil {
		return nil
	}
	if err := ctr.pidfd.Close(); err != nil && !errors.Is(err, os.ErrClosed) {
		return err
	}
	return nil
}
