package runtime

import (
	"context"
	"errors"
	"fmt"
	"os"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/linux/launch"
	"corten.dev/corten/internal/linux/ns"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// joinProcess has the plan join every namespace in which the container differs from us.
func (ctr *Container) joinProcess(p *plan) error {
	self := "self"
	pid := fmt.Sprint(ctr.rec.Pid)
	for _, flag := range joinOrder {
		if flag == unix.CLONE_NEWTIME && !exists("/proc/self/ns/time") {
			continue
		}
		if ns.Same(pid, self, flag) {
			continue
		}
		f, err := ns.OfPid(ctr.rec.Pid, flag)
		if err != nil {
			return err
		}
		p.joins[flag] = p.take(f)
	}
	if !ctr.alive() { // else the namespaces could be those of whoever has the number now
		return errs.New(errs.Conflict, "container not running")
	}
	_, p.joined = p.joins[unix.CLONE_NEWUSER]
	p.userns = p.joined
	p.forked = p.joined
	return nil
}

// Exec starts another process in the container and returns when its program was executed. The process is the Launcher's child.
func (ctr *Container) Exec(ctx context.Context, x Exec) (pid int, pidfd *os.File, err error) {
	defer func() { err = ctr.wrap("exec in", err) }()
	if err := validateProcess(x.Process); err != nil {
		return 0, nil, err
	}
	if !ctr.alive() {
		return 0, nil, errs.New(errs.Conflict, "container not running")
	}
	if frozen, err := ctr.cg.Frozen(); err != nil {
		return 0, nil, err
	} else if frozen && !x.IgnorePaused {
		return 0, nil, errs.New(errs.Conflict, "container is paused, unpause the container before exec")
	}
	x.Process = withHome(x.Process, func() (*os.File, error) {
		return os.OpenFile(fmt.Sprintf("/proc/%d/root", ctr.rec.Pid), unix.O_PATH|unix.O_DIRECTORY, 0)
	})
	spec := &specs.Spec{Linux: &specs.Linux{}, Process: x.Process}
	p := newPlan(spec, &RunOptions{ID: ctr.rec.ID, PreserveFDs: x.PreserveFDs, Rootless: ctr.rec.Rootless, DieWithLauncher: x.DieWithLauncher})
	defer p.close()
	cg := ctr.cg
	if len(x.Cgroups) > 0 {
		if cg, err = cg.Below(x.Cgroups); err != nil {
			return 0, nil, err
		}
	}
	p.cgroup.names, p.cgroup.v2 = cg.JoinNames()
	files, dir, err := openCgroups(cg)
	if err != nil {
		return 0, nil, err
	}
	p.joinCgroups(files, dir)
	if err := ctr.joinProcess(p); err != nil {
		return 0, nil, err
	}
	ours, theirs, err := syncSocket()
	if err != nil {
		return 0, nil, err
	}
	defer ours.Close()
	p.own = append(p.own, theirs)
	p.execInside(x.Process, theirs, &ctr.rec)
	code, err := p.encode()
	if err != nil {
		return 0, nil, err
	}
	if err := p.fill(); err != nil {
		return 0, nil, err
	}
	pid, pidfd, err = x.Launcher.Launch(ctx, code, p.files)
	if err != nil {
		return 0, nil, err
	}
	p.close()
	h := &handshake{conn: ours, explain: p.b.Explain, on: map[byte]func(int) error{
		launch.TellListener: func(fd int) error {
			return sendListener(pidfd, fd, ctr.rec.Agent, ctr.oci(specs.StateRunning), pid)
		},
	}}
	if err := h.wait(ctx, 0); err != nil {
		killAndWait(pidfd)
		var f *failure
		if errors.As(err, &f) {
			err = explainExec(f, x.Process)
		}
		return 0, nil, errors.Join(err, pidfd.Close())
	}
	return pid, pidfd, nil
}

// execInside is the life of an exec'd process before its program.
func (p *plan) execInside(proc *specs.Process, sync *os.File, rec *record) {
	b := p.b
	p.syncSlot = p.file(sync)
	b.Sync(p.syncSlot)
	p.protect()
	p.openProc()
	if a := proc.ExecCPUAffinity; a != nil {
		p.affinity(a.Initial)
	}
	p.procWrites(proc)
	p.enter()
	p.dieWithLauncher()
	if a := proc.ExecCPUAffinity; a != nil {
		p.affinity(a.Final)
	}
	p.label(proc)
	p.note("open root")
	p.root = p.open("/", dirOnly)
	if proc.Terminal {
		p.terminal(proc, false)
	}
	p.session(proc)
	p.stdio(proc, p.syncSlot)
	p.limits(proc)
	p.credentials(proc, rec.filter())
	p.exec(proc)
}
