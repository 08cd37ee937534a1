package containers

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"syscall"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"corten.dev/corten/internal/container"
	"corten.dev/corten/internal/engine/hostspec"
	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/linux/cgroup"
	"corten.dev/corten/internal/linux/pidfd"
	"corten.dev/corten/internal/monitor"
	"corten.dev/corten/internal/network"
	"corten.dev/corten/internal/runtime"
	"corten.dev/corten/internal/safefs"
	"corten.dev/corten/internal/snapshot"
	"corten.dev/corten/internal/task"
)

// run is one run of a container while it is being put together.
type run struct {
	ctr     *live
	rec     *container.Record // as it was when the start was claimed
	mounted *snapshot.Mounted
	user    hostspec.Identity
	sandbox *network.Sandbox
	files   hostspec.Files
	sources map[string]string // target of a mount → directory or file on the host
	shm     string            // host path of a shared /dev/shm; empty for one of its own
	env     []string          // of links
	init    string            // host path of the init program; empty without --init
	joins   map[specs.LinuxNamespaceType]string
	trees   map[string]*os.File // detached mounts by what sources calls them
	idmaps  map[string]hostspec.Mapping
	held    []*os.File     // open while the start lasts
	closers []func() error // of trees that the container holds itself once it runs
}

// Start runs a container's program and returns once it was executed.
func (s *Service) Start(ctx context.Context, ref string, detachKeys string) error {
	if detachKeys != "" {
		return errs.New(errs.Invalid, "detach keys belong to attach: start itself attaches nobody")
	}
	ctr, err := s.find(ref)
	if err != nil {
		return err
	}
	return s.startFound(ctx, ctr)
}

func (s *Service) startFound(ctx context.Context, ctr *live) error {
	if err := ctr.claimStart(ctx); err != nil {
		return err
	}
	ctr.mu.Lock()
	ctr.failures = 0
	ctr.changeLocked(func(rec *container.Record) { rec.RestartCount = 0 })
	stop := ctr.stopBack
	ctr.stopBack = nil
	ctr.mu.Unlock()
	if stop != nil {
		stop()
	}
	if err := s.guard(ctr, func() error { return s.reachLogs(ctx, ctr) }); err != nil {
		s.startFailed(context.WithoutCancel(ctx), ctr, err)
		return err
	}
	return s.start(ctx, ctr)
}

// claimStart makes the container ours to start. Where somebody else is starting it, what comes of that is waited for: mostly there is nothing left to do then.
func (ctr *live) claimStart(ctx context.Context) error {
	for {
		if err := ctr.started(ctx); err != nil {
			return err
		}
		switch status := ctr.record().State.Status; status {
		case container.Running:
			return errs.New(errs.NotModified, "container %s is already running", ctr.record().Name)
		case container.Paused:
			return errs.New(errs.Conflict, "cannot start a paused container, try unpause instead")
		case container.Removing, container.Dead:
			return errs.New(errs.Conflict, "container is marked for removal and cannot be started")
		}
		if err := ctr.claimRun(); err == nil {
			return nil
		} // somebody was faster: look again
	}
}

// start puts a claimed container into motion:
//
//	what the last run left is gone ─┬─▶ mount the tree ─▶ mark, workdir, user ─▶ volumes ─┬─▶ spec ─▶ create (the monitor clones) ─▶ running
//	                                └─▶ join the networks ─▶ generated files ─────────────┘
//
// A client that goes away does not stop it half way. When a step fails, all before it are taken back and the container is what it was.
func (s *Service) start(ctx context.Context, ctr *live) (err error) {
	ctx = context.WithoutCancel(ctx)
	var undo task.Undo
	defer func() {
		if err != nil {
			undo.OnError(ctx, &err)
			s.startFailed(ctx, ctr, err)
		}
	}()
	return s.guard(ctr, func() error { return s.startSteps(ctx, ctr, &undo) })
}

// guard makes an error of a bug: a panic must neither leave the container between two states, where everyone waits for it, nor end the engine.
func (s *Service) guard(ctr *live, fn func() error) (err error) {
	defer task.Contain(s.Log, "start container "+ctr.record().Name, &err)
	return fn()
}

func (s *Service) startSteps(ctx context.Context, ctr *live, undo *task.Undo) error {
	if err := s.settleFirst(ctr); err != nil {
		return err
	}
	ctr.waitCleaned()
	r := &run{ctr: ctr, rec: ctr.record(), sources: map[string]string{}, trees: map[string]*os.File{}, idmaps: map[string]hostspec.Mapping{}, joins: map[specs.LinuxNamespaceType]string{}}
	r.files = s.generatedFiles(r.rec)
	defer r.release()
	if _, err := s.followers(ctr); err != nil {
		return err
	}

	joined := make(chan error, 1)
	go func() { joined <- s.guard(ctr, func() error { return s.joinNetwork(ctx, r) }) }()
	undo.Push(func(ctx context.Context) error { return s.Networks.Leave(ctx, ctr.id) })
	terr := s.guard(ctr, func() error { return s.prepareTree(ctx, r, undo) }) // guarded apart: what is taken back must not meet a join under way
	jerr := <-joined
	undo.Push(func(context.Context) error { return closeNS(r) })
	switch {
	case terr != nil && jerr != nil:
		return fmt.Errorf("%w; and %w", terr, jerr)
	case terr != nil:
		return terr
	case jerr != nil:
		return jerr
	}
	if err := s.joinOthers(r, undo); err != nil {
		return err
	}
	if err := s.prepareInit(r); err != nil {
		return err
	}
	var err error
	if r.env, err = s.linkEnv(r.rec); err != nil {
		return err
	}
	spec, err := s.maker.Spec(r.hostspec())
	if err != nil {
		return err
	}
	if err := r.relabel(); err != nil {
		return err
	}
	return s.execute(ctx, r, spec, undo)
}

// release closes what was open for the time of the start only.
func (r *run) release() {
	for _, f := range r.held {
		f.Close()
	}
}

// hostspec is what the configuration of a run is made of.
func (r *run) hostspec() *hostspec.Run {
	return &hostspec.Run{
		ID: r.rec.ID, Args: append([]string{r.rec.Path}, r.rec.Args...), Config: &r.rec.Config, Host: &r.rec.Host, Mounts: r.rec.Mounts, User: r.user,
		Files: r.files, Sources: r.sources, IDMaps: r.idmaps, Shm: r.shm, Init: r.init, Env: r.env, Joins: r.joins, ProcessLabel: r.rec.ProcessLabel, MountLabel: r.rec.MountLabel,
	}
}

func closeNS(r *run) error {
	if r.sandbox == nil {
		return nil
	}
	return r.sandbox.CloseHandles()
}

// prepareTree mounts the tree, finds the user in it, makes the working directory, and mounts and fills the volumes.
func (s *Service) prepareTree(ctx context.Context, r *run, undo *task.Undo) error {
	mounted, err := s.Trees.Mount(ctx, r.rec.TreeKey())
	if err != nil {
		return fmt.Errorf("mount the file tree: %w", err)
	}
	r.mounted = mounted
	undo.Push(func(context.Context) error { return mounted.Close() })
	// Programs look for this file to learn that they are in a container.
	mark, err := safefs.Open(mounted.Root, "/.dockerenv", syscall.O_RDONLY|syscall.O_CREAT|syscall.O_NOFOLLOW, 0o755)
	if err != nil {
		return err
	}
	mark.Close()
	if err := linkMtab(mounted.Root); err != nil {
		return err
	}
	if err := behindLinks(mounted.Root, "/etc/resolv.conf", "/etc/hosts", "/etc/hostname"); err != nil {
		return err
	}
	if r.user, err = hostspec.ResolveUser(mounted.Root, r.rec.Config.User, r.rec.Host.GroupAdd); err != nil {
		return err
	}
	if dir := r.rec.Config.WorkingDir; dir != "" && dir != "/" {
		f, err := safefs.MkdirAllOwned(mounted.Root, path.Clean("/"+dir), 0o755, 0, 0)
		if err != nil {
			return err
		}
		f.Close()
	}
	for _, mnt := range r.rec.Mounts {
		if err := s.prepareMount(ctx, r, mnt, undo); err != nil {
			return err
		}
	}
	return nil
}

// linkMtab: programs with an old C library look there for what is mounted, as in Docker's containers. An image's own file stays; a root without /etc goes without.
func linkMtab(root *os.File) error {
	etc, err := safefs.Open(root, "/etc", safefs.Handle|syscall.O_DIRECTORY, 0)
	if hostspec.Missing(err) || errors.Is(err, syscall.ENOTDIR) {
		return nil
	}
	if err != nil {
		return err
	}
	defer etc.Close()
	if err := safefs.Symlink("/proc/mounts", etc, "mtab"); err != nil && !errors.Is(err, syscall.EEXIST) {
		return fmt.Errorf("link /etc/mtab: %w", err)
	}
	return nil
}

// behindLinks makes the files that links lead to which are mounted over: in images of systems that use systemd-resolved, /etc/resolv.conf is a link into /run, where nothing is yet. What
// cannot be made is left to the mount, which says why.
func behindLinks(root *os.File, names ...string) error {
	for _, name := range names {
		link, err := safefs.Open(root, name, safefs.Handle|syscall.O_NOFOLLOW, 0)
		if hostspec.Missing(err) {
			continue
		}
		if err != nil {
			return err
		}
		target, err := safefs.Readlink(link)
		if cerr := link.Close(); err != nil || cerr != nil {
			continue // a file, as nearly always
		}
		if !path.IsAbs(target) {
			target = path.Join(path.Dir(name), target)
		}
		dir, err := safefs.MkdirAll(root, path.Dir(target), 0o755)
		if err != nil {
			continue
		}
		if err := dir.Close(); err != nil {
			return err
		}
		if file, err := safefs.Open(root, name, syscall.O_RDONLY|syscall.O_CREAT|syscall.O_NONBLOCK, 0o644); err == nil {
			if err := file.Close(); err != nil {
				return err
			}
		}
	}
	return nil
}

// What stands before the reason when a program could not be started: Docker's words, by which people and tools know it.
const (
	notCreated  = "failed to create task for container: failed to create shim task: OCI runtime create failed: unable to start container process: error during container init"
	notExecuted = "OCI runtime exec failed: exec failed: unable to start container process"
)

// execute is the last step: the runtime makes a program of the spec, the monitor clones the process that walks it.
func (s *Service) execute(ctx context.Context, r *run, spec *specs.Spec, undo *task.Undo) error {
	ctr, rec := r.ctr, r.rec
	if err := os.Remove(s.exitFile(ctr.id)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	var mon monitor.Monitor
	launcher := runtime.LauncherFunc(func(ctx context.Context, program []byte, files []*os.File) (int, *os.File, error) {
		launch, err := s.launch(r, program, files)
		if err != nil {
			return 0, nil, err
		}
		if mon, err = s.Monitors.Launch(ctx, launch); err != nil {
			ctr.putBack(launch.Attached)
			return 0, nil, err
		}
		return mon.PID(), mon.PIDFD(), nil
	})
	undo.Push(func(context.Context) error {
		if mon == nil {
			return nil
		}
		return endMonitor(mon)
	})
	opts := runtime.RunOptions{ID: ctr.id, Bundle: s.dir(ctr.id), Spec: spec, Root: r.mounted.Root, RootDetached: r.mounted.Detached, Launcher: launcher, SystemdCgroup: s.SystemdCgroup}
	opts.NetNS, opts.DieWithLauncher, opts.Sources = r.sandbox.NS, true, r.trees
	proc, err := s.Runtime.Create(ctx, rec.Host.Runtime, opts)
	if err != nil {
		return fmt.Errorf("%s: %w", notCreated, err)
	}
	mounts := keepMounts(rec, mon)
	now := time.Now().UTC()
	kept := *r.sandbox
	kept.NS, kept.Sysfs = nil, nil // handles are not part of a record
	ctr.mu.Lock()
	ctr.mon, ctr.proc, ctr.mounts = mon, proc, mounts
	ctr.changeLocked(func(rec *container.Record) {
		rec.State = container.State{Status: container.Running, PID: mon.PID(), StartedAt: now, FinishedAt: rec.State.FinishedAt, Boot: s.BootID, Health: firstHealth(&rec.Config)}
		rec.Sandbox = &kept
	})
	ctr.mu.Unlock()
	if err := closeNS(r); err != nil {
		s.Log.Warn("close a network namespace", "container", rec.Name, "error", err)
	}
	// The container's own mount namespace holds the tree now.
	for _, done := range append(r.closers, r.mounted.Close) {
		if err := done(); err != nil {
			s.Log.Warn("release the file tree", "container", rec.Name, "error", err)
		}
	}
	if err := s.save(ctr, false); err != nil {
		s.Log.Error("the container runs, but its record could not be written", "container", rec.Name, "error", err)
		s.owe(ctr, err)
	}
	s.emitNetworks(ctx, rec, "connect", r.sandbox)
	s.emitMounts(ctr, rec.Mounts)
	s.emit(ctr, "start", nil)
	s.relink(ctr)
	s.attachLate(ctx, ctr, mon)
	s.followLogs(ctr, mon.Exited())
	s.watch(ctr, mon)
	s.watchHealth(ctr, mon, proc)
	s.limitRun(ctr, mon)
	return nil
}

// endMonitor kills what a monitor holds, waits for its end, and lets it go.
func endMonitor(mon monitor.Monitor) error {
	if fd := mon.PIDFD(); fd != nil {
		if err := pidfd.Kill(fd); err != nil {
			return err
		}
	}
	select {
	case <-mon.Exited():
	case <-time.After(task.UndoTimeout / 2):
	}
	return mon.Close()
}

// oomPath is the file of the container's memory cgroup that counts kills; empty where there is none.
func (s *Service) oomPath(rec *container.Record) string {
	host, err := s.host()
	if err != nil {
		return "" // the runtime has said so already
	}
	group, err := cgroup.New(cgroup.Options{Path: s.maker.CgroupsPath(rec.ID, &rec.Host), ID: rec.ID, Systemd: s.SystemdCgroup, Host: host})
	if err != nil {
		return ""
	}
	if file := group.OOMEvents(); file != "" {
		return file
	}
	if dir := group.Paths()["memory"]; dir != "" {
		return dir + "/memory.oom_control"
	}
	return ""
}

func (s *Service) launch(r *run, program []byte, files []*os.File) (monitor.Launch, error) {
	cfg, host := &r.rec.Config, &r.rec.Host
	log, err := s.ownLog(r.rec)
	if err != nil {
		return monitor.Launch{}, err
	}
	return monitor.Launch{
		ID: r.ctr.id, Program: program, Files: files, OOMPath: s.oomPath(r.rec), Log: log, ExitPath: s.exitFile(r.ctr.id), Durable: !host.AutoRemove, Attached: r.ctr.takePending(),
		Stdio: monitor.Stdio{Terminal: cfg.Tty, Rows: uint16(host.ConsoleSize[0]), Cols: uint16(host.ConsoleSize[1]), Stdin: cfg.OpenStdin, StdinOnce: cfg.StdinOnce},
	}, nil
}

// startFailed keeps why a start failed, in the state that the container had before.
func (s *Service) startFailed(ctx context.Context, ctr *live, cause error) {
	code := 128
	switch {
	case errors.Is(cause, errs.NoCommand):
		code = 127
	case errors.Is(cause, errs.NotExecutable):
		code = 126
	}
	ctr.mu.Lock()
	back := ctr.from
	if back == container.Restarting { // no more tries: the policy is about programs that end, not about ones that cannot begin
		back = container.Exited
	}
	ctr.mon, ctr.proc = nil, nil
	for _, f := range ctr.shipping {
		f.Unreach()
	}
	ctr.changeLocked(func(rec *container.Record) {
		rec.State.Status, rec.State.PID, rec.State.ExitCode, rec.State.Error, rec.Sandbox = back, 0, code, cause.Error(), nil
	})
	ctr.mu.Unlock()
	ctr.turnAway()
	if err := s.save(ctr, false); err != nil {
		s.Log.Error("keep the state of a container that did not start", "container", ctr.id, "error", err)
		s.owe(ctr, err)
	}
	ctr.tell(Ended{Code: code}, NotRunning)
	if back == container.Exited {
		ctr.tell(Ended{Code: code}, NextExit)
	}
	if goesByItself(ctr.record()) {
		if err := s.removeFound(ctx, ctr, RemoveOptions{Volumes: true}); err != nil {
			s.Log.Warn("remove a container that did not start", "container", ctr.id, "error", err)
		}
	}
}
