package runtime

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/linux/cgroup"
	"corten.dev/corten/internal/linux/launch"
	"corten.dev/corten/internal/linux/pidfd"
	"corten.dev/corten/internal/linux/seccomp"
	"corten.dev/corten/internal/task"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// creation is a container in the making.
type creation struct {
	rt     *Runtime
	opts   *RunOptions
	ctr    *Container
	plan   *plan
	filter *seccomp.Filter
	gate   *os.File
	undo   *task.Undo
	hooked bool // the hooks of the creation began
}

// Create makes the container. Without a gate it returns once its program was executed; with one, once everything but that is done, and [Container.Start] does the rest.
// What was made is taken down again when it fails.
func (rt *Runtime) Create(ctx context.Context, opts RunOptions) (ctr *Container, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("create container %s: %w", opts.ID, err)
		}
	}()
	if err := checkID(opts.ID); err != nil {
		return nil, err
	}
	opts.SystemdCgroup = opts.SystemdCgroup || rt.opts.Systemd
	opts.Rootless = opts.Rootless || rt.opts.Rootless
	if err := validate(&opts); err != nil {
		return nil, err
	}
	opts.Spec.Process = withHome(opts.Spec.Process, opts.openRoot)
	var undo task.Undo
	defer undo.OnError(ctx, &err)
	defer task.Contain(rt.log, "make container "+opts.ID, &err) // what was made must be taken down whatever ends this; the caller may go on
	c := &creation{rt: rt, opts: &opts, ctr: &Container{rt: rt}, undo: &undo}
	undo.Push(func(ctx context.Context) error { // the last to be undone: the specification goes on with these once the container is no more
		if c.hooked {
			c.ctr.runPoststop(ctx)
		}
		return nil
	})
	for _, step := range []func(context.Context) error{c.folder, c.prepare, c.launch, c.record, c.settle} {
		if err := step(ctx); err != nil {
			return nil, err
		}
	}
	return c.ctr, nil
}

// newFolder begins the name of a folder in the making, or in the unmaking; no id has such a letter. The number of the process that makes it follows.
const newFolder = ":new-"

// folder makes the container's folder with a record in it; who makes it owns the id. The record says where the cgroups will be before they are there, so that whoever is
// killed in the middle of a start leaves none that nobody knows of. It names no process yet: what Load makes of it can only be deleted.
func (c *creation) folder(context.Context) (err error) {
	host, err := c.rt.host()
	if err != nil {
		return err
	}
	c.ctr.cg, err = cgroup.New(cgroup.Options{
		Path: c.opts.Spec.Linux.CgroupsPath, ID: c.opts.ID, Systemd: c.opts.SystemdCgroup, Rootless: c.opts.Rootless, Host: host,
	})
	if err != nil {
		return err
	}
	rec := record{ID: c.opts.ID, Bundle: c.opts.Bundle, Created: time.Now().UTC(), Owner: os.Geteuid(), Cgroup: c.ctr.cg.State(), Version: c.opts.Spec.Version}
	if c.opts.StateDir != "" {
		return c.callersFolder(&rec)
	}
	if c.rt.opts.Root == "" {
		if c.opts.Gate {
			return errs.New(errs.Invalid, "a gate needs a folder for its state")
		}
		return nil
	}
	made, err := c.rt.newFolder()
	if err != nil {
		return fmt.Errorf("folder: %w", err)
	}
	dir := c.rt.dir(c.opts.ID)
	if err = rec.save(made); err == nil {
		err = unix.Rename(made, dir) // an empty one, of someone who was killed, is replaced
	}
	switch {
	case errors.Is(err, unix.ENOTEMPTY), errors.Is(err, unix.EEXIST):
		return errors.Join(errs.New(errs.Conflict, "container with id exists: %s", c.opts.ID), os.RemoveAll(made))
	case err != nil:
		return errors.Join(fmt.Errorf("folder: %w", err), os.RemoveAll(made))
	}
	c.undo.Push(func(context.Context) error { return c.ctr.removeFolder() })
	c.ctr.dir = dir
	return nil
}

// newFolder makes one without a name.
func (rt *Runtime) newFolder() (string, error) {
	prefix := newFolder + strconv.Itoa(os.Getpid()) + "-"
	if rt.folders != nil {
		if name := prefix + rand.Text(); rt.folders.Mkdir(name, 0o700) == nil {
			return filepath.Join(rt.opts.Root, name), nil
		}
	}
	if err := os.MkdirAll(rt.opts.Root, 0o700); err != nil {
		return "", err
	}
	return os.MkdirTemp(rt.opts.Root, prefix)
}

// removeFolder takes the container's folder away under another name first: killed in the middle, it would be one without a record, that nobody dares to remove.
func (ctr *Container) removeFolder() error {
	root := filepath.Clean(ctr.rt.opts.Root)
	if filepath.Dir(ctr.dir) != root { // a folder of the caller's, who looks after it
		return os.RemoveAll(ctr.dir)
	}
	aside := filepath.Join(root, newFolder+strconv.Itoa(os.Getpid())+"-"+filepath.Base(ctr.dir))
	if err := unix.Rename(ctr.dir, aside); err == unix.ENOENT {
		return nil
	} else if err != nil {
		return fmt.Errorf("remove %s: %w", ctr.dir, err)
	}
	return os.RemoveAll(aside)
}

// callersFolder uses a folder that the caller named, and may have other files in.
func (c *creation) callersFolder(rec *record) error {
	dir := c.opts.StateDir
	switch err := os.Mkdir(dir, 0o700); {
	case err == nil:
		c.undo.Push(func(context.Context) error { return os.RemoveAll(dir) })
	case !errors.Is(err, os.ErrExist):
		return fmt.Errorf("folder: %w", err)
	case exists(filepath.Join(dir, recordName)):
		return errs.New(errs.Conflict, "container with id exists: %s", c.opts.ID)
	default:
		c.undo.Push(func(context.Context) error { return os.Remove(filepath.Join(dir, recordName)) })
	}
	c.ctr.dir = dir
	return rec.save(dir)
}

// prepare makes the cgroups, the container's sysfs and its program side by side: the first two are the kernel's work, and grow with the number of containers.
func (c *creation) prepare(ctx context.Context) error {
	cgroups := make(chan error, 1)
	var files []*os.File
	var dir *os.File
	names, v2 := c.ctr.cg.JoinNames()
	make := func() {
		err := c.ctr.cg.Create(withDefaultRules(c.opts.Spec.Linux.Resources))
		if err == nil {
			c.undo.Push(func(context.Context) error { return c.ctr.cg.Destroy() }) // nobody else pushes meanwhile
			files, dir, err = openCgroups(c.ctr.cg)
		}
		cgroups <- err
	}
	if c.opts.Rootless || slices.ContainsFunc(c.opts.Spec.Linux.Namespaces, func(n specs.LinuxNamespace) bool { return n.Type == specs.UserNamespace }) {
		// Then it is the program's maker who opens them.
		make()
	} else {
		go make()
	}
	settled := false
	defer func() { // a bug in the program must not be taken back while the cgroups are being made
		if !settled {
			<-cgroups
		}
	}()
	perr := c.program(names, v2)
	cerr := <-cgroups
	settled = true
	if err := errors.Join(cerr, perr); err != nil {
		closeAll(append(files, dir))
		c.plan.close()
		return err
	}
	if now, nowV2 := c.ctr.cg.JoinNames(); nowV2 != v2 || !slices.Equal(now, names) { // some were denied: another program
		c.plan.close()
		if err := c.program(now, nowV2); err != nil {
			closeAll(append(files, dir))
			c.plan.close()
			return err
		}
	}
	c.plan.joinCgroups(files, dir)
	return nil
}

// openCgroups opens what a child needs to join.
func openCgroups(cg *cgroup.Manager) (files []*os.File, dir *os.File, err error) {
	if files, err = cg.JoinFiles(); err != nil {
		return nil, nil, err
	}
	if dir, err = cg.V2Dir(); err != nil {
		closeAll(files)
		return nil, nil, err
	}
	return files, dir, nil
}

func closeAll(files []*os.File) {
	for _, f := range files {
		if f != nil {
			f.Close()
		}
	}
}

// withDefaultRules lets the devices that every container has through, after what the spec says. A spec without rules keeps them all.
func withDefaultRules(res *specs.LinuxResources) *specs.LinuxResources {
	if res == nil || len(res.Devices) == 0 {
		return res
	}
	out := *res
	out.Devices = append([]specs.LinuxDeviceCgroup(nil), res.Devices...)
	for _, d := range defaultDevices {
		out.Devices = append(out.Devices, specs.LinuxDeviceCgroup{Allow: true, Type: d.Type, Major: &d.Major, Minor: &d.Minor, Access: "rwm"})
	}
	for _, typ := range []string{"c", "b"} { // to make a node is harmless, and the nodes that the spec asks for are made inside; to open it is another matter
		out.Devices = append(out.Devices, specs.LinuxDeviceCgroup{Allow: true, Type: typ, Access: "m"})
	}
	for _, n := range [][2]int64{{5, 2}, {136, -1}} { // ptmx and the terminals behind it
		rule := specs.LinuxDeviceCgroup{Allow: true, Type: "c", Major: &n[0], Access: "rwm"}
		if n[1] >= 0 {
			rule.Minor = &n[1]
		}
		out.Devices = append(out.Devices, rule)
	}
	return &out
}

// program writes the list of what the child will do.
func (c *creation) program(names []string, v2 bool) (err error) {
	spec := c.opts.Spec
	p := newPlan(spec, c.opts)
	c.plan = p
	if c.filter, err = c.rt.filters.compile(spec.Linux.Seccomp); err != nil {
		return err
	}
	p.cgroup.names, p.cgroup.v2 = names, v2
	p.cgroup.paths = c.ctr.cg.Paths()
	p.cgroup.top = strings.TrimSuffix(p.cgroup.paths[""], c.ctr.cg.Path())
	if c.opts.Gate {
		if c.gate, err = listenGate(c.ctr.dir); err != nil {
			return err
		}
		p.own = append(p.own, c.gate)
	}
	return p.create(c.filter, c.gate, c.rt.bareNS())
}

// create is the whole life of a first process before its program, in order.
func (p *plan) create(filter *seccomp.Filter, gate *os.File, bareNS *bare) error {
	b, proc := p.b, p.spec.Process
	if err := p.namespaces(); err != nil {
		return err
	}
	p.useBare(bareNS)
	p.syncSlot = p.later(func() *os.File { return p.sync })
	b.Sync(p.syncSlot)
	p.openProc()
	p.procWrites(proc)
	p.handshake = p.newFlags&unix.CLONE_NEWUSER != 0 || p.opts.SystemdCgroup
	p.enter()
	p.dieWithLauncher()
	p.personality(p.spec.Linux.Personality)
	p.hostnames()
	if !p.ownProc() {
		p.sysctls(p.proc)
	}
	p.label(proc)
	if !p.has(unix.CLONE_NEWNS) {
		return p.createShared(filter, gate)
	}
	p.rootFS()
	if proc.Terminal {
		p.terminal(proc, true)
	}
	if hooksBeforePivot(p.spec.Hooks) {
		p.note("wait for hooks")
		b.Tell(launch.TellHooks, null)
		b.Await(launch.Go)
	}
	p.readOnly()
	p.mask()
	p.pivot()
	p.last(proc, filter, gate)
	return p.err
}

// createShared is for a container that shares the host's mount namespace: it gets a root and nothing else.
func (p *plan) createShared(filter *seccomp.Filter, gate *os.File) error {
	if len(p.spec.Mounts)+len(p.spec.Linux.MaskedPaths)+len(p.spec.Linux.ReadonlyPaths) > 0 || p.spec.Process.Terminal || p.spec.Root.Readonly {
		return errs.New(errs.Invalid, "mounts, masked and read-only paths and terminals need a mount namespace")
	}
	at := p.opts.rootPath()
	p.note("enter root file system %s", at)
	if p.opts.Root != nil {
		p.b.Sys(unix.SYS_FCHDIR, p.file(p.opts.Root))
	} else {
		p.b.Sys(unix.SYS_CHDIR, p.b.Str(at))
	}
	p.b.Sys(unix.SYS_CHROOT, p.b.Str("."))
	if hooksBeforePivot(p.spec.Hooks) {
		p.b.Tell(launch.TellHooks, null)
		p.b.Await(launch.Go)
	}
	p.last(p.spec.Process, filter, gate)
	return p.err
}

// last is what comes after the root was entered.
func (p *plan) last(proc *specs.Process, filter *seccomp.Filter, gate *os.File) {
	b := p.b
	p.protect()
	p.session(proc)
	if gate != nil {
		p.lookAhead(proc)
		slot, conn := p.file(gate), b.NewReg()
		p.stdio(proc, p.syncSlot, slot)
		p.note("wait for the start")
		b.Tell(launch.TellReady, null)
		b.Sys(unix.SYS_ACCEPT4, slot, null, null, launch.Imm(unix.SOCK_CLOEXEC)).To(conn)
		b.Sys(unix.SYS_DUP3, conn, p.syncSlot, launch.Imm(closeExec))
		b.Keep(3+p.opts.PreserveFDs, p.syncSlot)
		b.Await(launch.Go)
	} else {
		p.stdio(proc, p.syncSlot)
	}
	p.limits(proc)
	p.credentials(proc, filter)
	p.exec(proc)
}

// protect keeps others in the container's namespaces from looking into the process (its memory, its descriptors, its executable) until execve makes it one of them.
func (p *plan) protect() {
	p.note("protect the process")
	p.b.Sys(unix.SYS_PRCTL, launch.Imm(unix.PR_SET_DUMPABLE), null, null, null, null)
}

func (p *plan) hostnames() {
	b := p.b
	if (p.spec.Hostname != "" || p.spec.Domainname != "") && !p.has(unix.CLONE_NEWUTS) {
		p.fail(errs.New(errs.Invalid, "hostname or domain name: the container has the host's uts namespace, and would change the host's"))
		return
	}
	if h := p.spec.Hostname; h != "" {
		p.note("set hostname %s", h)
		b.Sys(unix.SYS_SETHOSTNAME, b.Str(h), launch.Imm(len(h)))
	}
	if d := p.spec.Domainname; d != "" {
		p.note("set domain name %s", d)
		b.Sys(unix.SYS_SETDOMAINNAME, b.Str(d), launch.Imm(len(d)))
	}
}

// launch has the process cloned.
func (c *creation) launch(ctx context.Context) error {
	defer c.plan.close()
	ours, theirs, err := syncSocket()
	if err != nil {
		return err
	}
	defer theirs.Close()
	c.ctr.sync, c.plan.sync = ours, theirs
	code, err := c.plan.encode()
	if err = errors.Join(err, c.plan.fill()); err != nil {
		ours.Close()
		return err
	}
	pid, fd, err := c.opts.Launcher.Launch(ctx, code, c.plan.files)
	if err != nil {
		ours.Close()
		return err
	}
	c.ctr.pidfd = fd
	c.ctr.rec = record{ID: c.opts.ID, Pid: pid}
	c.undo.Push(func(context.Context) error {
		ours.Close()
		killAndWait(fd)
		return fd.Close()
	})
	return nil
}

// record stores what later verbs need, before the process can do anything irreversible.
func (c *creation) record(context.Context) error {
	spec := c.opts.Spec
	start, _, err := processStat(c.ctr.rec.Pid)
	if err != nil {
		start = 0 // it failed already; settle tells how
	}
	c.ctr.rec = record{
		ID: c.opts.ID, Bundle: c.opts.Bundle, Pid: c.ctr.rec.Pid, StartTime: start, Created: time.Now().UTC(), Owner: os.Geteuid(),
		Cgroup: c.ctr.cg.State(), Annotations: spec.Annotations, Hooks: spec.Hooks, Filter: c.rt.filters.pack(c.filter),
		UserNS: c.plan.userns, Rootless: c.opts.Rootless, Version: spec.Version,
	}
	rec := &c.ctr.rec
	if spec.Root.Path != "" {
		rec.Rootfs = c.opts.rootPath()
	}
	if c.filter != nil {
		rec.Flags, rec.Notify = c.filter.Flags, c.filter.Notify
		if c.filter.Notify {
			rec.Agent = &specs.LinuxSeccomp{ListenerPath: spec.Linux.Seccomp.ListenerPath, ListenerMetadata: spec.Linux.Seccomp.ListenerMetadata}
		}
	}
	if c.opts.Gate {
		rec.Process, rec.Notes = spec.Process, packNotes(c.plan.b.Notes())
	}
	defer func() { rec.Cgroup = cgroup.State{} }() // from here on the manager knows
	if c.ctr.dir == "" {
		return nil
	}
	return rec.save(c.ctr.dir)
}

// settle answers the child until it is where Create ends.
func (c *creation) settle(ctx context.Context) error {
	ctr, spec := c.ctr, c.opts.Spec
	h := &handshake{conn: ctr.sync, explain: c.plan.b.Explain, on: map[byte]func(int) error{}}
	h.on[launch.TellNamespaces] = func(int) error {
		if c.opts.SystemdCgroup {
			if err := ctr.cg.Add(ctr.rec.Pid); err != nil {
				return err
			}
		}
		return c.writeMaps()
	}
	h.on[launch.TellHooks] = func(int) error {
		c.hooked = true
		return ctr.hooksBeforePivot(ctx)
	}
	h.on[launch.TellListener] = func(fd int) error { return ctr.handListener(fd) }
	until := byte(0)
	if c.opts.Gate {
		until = launch.TellReady
	}
	if err := h.wait(ctx, until); err != nil {
		return c.explain(err)
	}
	err := ctr.sync.Close()
	ctr.sync = nil
	if err == nil && !c.opts.Gate {
		c.hooked = c.hooked || len(hooksOf(spec.Hooks).Poststart) > 0
		err = ctr.runHooks(ctx, hooksOf(spec.Hooks).Poststart, specs.StateRunning)
	}
	return err
}

func (c *creation) writeMaps() error {
	if c.plan.newFlags&unix.CLONE_NEWUSER == 0 {
		return nil
	}
	return mapsOf(c.opts.Spec.Linux).Write(c.ctr.rec.Pid)
}

func (c *creation) explain(err error) error {
	if errors.Is(err, errDied) {
		if killed, _ := c.ctr.cg.OOMKilled(); killed {
			return fmt.Errorf("%w: the container's memory limit is too low for it", err)
		}
	}
	var f *failure
	if !errors.As(err, &f) {
		return err
	}
	return explainExec(f, c.opts.Spec.Process)
}

// killAndWait ends a process that failed half-way; the parent (a monitor, or this process) reaps it.
func killAndWait(fd *os.File) {
	_ = pidfd.Kill(fd) // what it fails of is that the process does not end
	pidfd.Ended(fd, 5*time.Second)
	_ = unix.Waitid(unix.P_PIDFD, int(fd.Fd()), nil, unix.WEXITED|unix.WNOHANG, nil) // only if it is our own child
}
