package steps

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/buildkit/solver/pb"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"corten.dev/corten/internal/build/step"
	"corten.dev/corten/internal/container"
	"corten.dev/corten/internal/engine/hostspec"
	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/network"
	"corten.dev/corten/internal/runtime"
	"corten.dev/corten/internal/safefs"
	"corten.dev/corten/internal/task"
)

// defaultHostname is what BuildKit's steps are called: it shows in what they build.
const defaultHostname = "buildkitsandbox"

// Start implements [step.Executor].
//
//	join the network ───────┐
//	user, working directory ┴─▶ spec ─▶ pipes ─▶ create (cloned on the launcher's thread) ─▶ running
func (e *Executor) Start(ctx context.Context, s step.Step) (_ step.Process, err error) {
	if err := context.Cause(ctx); err != nil {
		return nil, err
	}
	if !e.begin() {
		return nil, errs.New(errs.Unavailable, "the engine is ending")
	}
	p := &process{exec: e, id: s.ID, ctx: ctx, step: s, done: make(chan struct{})}
	var undo task.Undo
	defer func() {
		if err != nil {
			undo.OnError(ctx, &err)
			e.work.Done()
		}
	}()
	joined := make(chan error, 1)
	go func() { joined <- p.join(ctx) }()
	undo.Push(func(ctx context.Context) error { return e.opts.Networks.Leave(ctx, p.id) })
	uerr := p.enter()
	err = errors.Join(<-joined, uerr)
	defer p.closeNS()
	if err != nil {
		return nil, err
	}
	undo.Push(func(context.Context) error { e.opts.Maker.Security.ReleaseLabels(p.label); return nil })
	sources, err := p.configure()
	if err != nil {
		return nil, err
	}
	if err := p.io.open(e, &s.Command); err != nil {
		return nil, err
	}
	undo.Push(func(context.Context) error { return p.io.abandon() })
	opts := runtime.RunOptions{
		ID: p.id, Bundle: "/", Spec: p.spec, Root: s.Root.Root, RootDetached: s.Root.Detached, NetNS: p.ns(), Sources: sources, DieWithLauncher: true,
		Launcher: e.launcher.with(p.io.child, p.io.console),
	}
	ctr, err := e.rt.Create(ctx, opts)
	if err != nil {
		return nil, inner(err)
	}
	p.ctr = ctr
	if err := p.io.start(&s.Command); err != nil {
		e.log.Warn("the output of a step", "step", p.id, "err", err)
	}
	e.add(p)
	go p.attend()
	return p, nil
}

// inner takes the runtime's own "create container id:" away: the id means nothing to anybody.
func inner(err error) error {
	if in := errors.Unwrap(err); in != nil {
		return in
	}
	return err
}

// join makes the network of the step.
func (p *process) join(ctx context.Context) (err error) {
	defer task.Contain(p.exec.log, "join the network of step "+p.id, &err)
	req := network.JoinRequest{Owner: p.id, Name: p.id, Hostname: p.hostname()}
	switch p.step.Network {
	case pb.NetMode_HOST:
		req.Endpoints = []network.EndpointRequest{{Network: "host"}}
	case pb.NetMode_NONE:
		req.Endpoints = []network.EndpointRequest{{Network: "none"}}
	default:
		if name := p.exec.opts.Network; name != "" {
			req.Endpoints = []network.EndpointRequest{{Network: name}}
		}
	}
	p.sandbox, err = p.exec.opts.Networks.Join(ctx, req)
	return err
}

func (p *process) hostname() string {
	if p.step.Hostname != "" {
		return p.step.Hostname
	}
	return defaultHostname
}

func (p *process) ns() *os.File {
	if p.sandbox == nil {
		return nil
	}
	return p.sandbox.NS
}

// closeNS lets go of the namespace: the process holds it now.
func (p *process) closeNS() {
	if p.sandbox != nil {
		_ = p.sandbox.CloseHandles()
	}
}

// enter finds the user in the tree, and makes the working directory, which is the user's.
func (p *process) enter() (err error) {
	root := p.step.Root.Root
	if p.user, err = hostspec.ResolveUser(root, p.step.User, nil); err != nil {
		return err
	}
	cwd := clean(p.step.Cwd)
	if cwd == "/" {
		return nil
	}
	dir, err := safefs.MkdirAllOwned(root, cwd, 0o755, int(p.user.UID), int(p.user.GID))
	if err != nil {
		return err
	}
	return dir.Close()
}

// host is what a container would ask for.
func (p *process) host(mode pb.SecurityMode) *container.Host {
	host := &container.Host{NetworkMode: cmp.Or(p.exec.opts.Network, "bridge"), IpcMode: "private", CgroupnsMode: "private", Privileged: mode == pb.SecurityMode_INSECURE, ShmSize: 64 << 20}
	switch p.step.Network {
	case pb.NetMode_HOST:
		host.NetworkMode = "host"
	case pb.NetMode_NONE:
		host.NetworkMode = "none"
	}
	return host
}

func clean(cwd string) string { return path.Clean("/" + cwd) }

// configure writes the configuration: that of a container which asks for the same.
func (p *process) configure() (map[string]*os.File, error) {
	s := &p.step
	host := p.host(s.Security)
	host.ReadonlyRootfs, host.Resources = s.ReadOnly, limits(s.Resources)
	host.Resources.CgroupParent = s.CgroupParent
	if most := p.exec.mostPids(); most > 0 {
		host.Resources.PidsLimit = &most
	}
	for _, u := range s.Ulimits {
		name := strings.ToLower(u.GetName())
		if _, ok := hostspec.Rlimit(name); !ok {
			return nil, errs.New(errs.Invalid, "invalid ulimit type: %s", u.GetName())
		}
		host.Resources.Ulimits = append(host.Resources.Ulimits, container.Ulimit{Name: name, Soft: u.GetSoft(), Hard: u.GetHard()})
	}
	cfg := &container.Config{Hostname: p.hostname(), Tty: s.Tty}
	cfg.WorkingDir = clean(s.Cwd)
	extra, err := p.etc()
	if err != nil {
		return nil, err
	}
	sources := map[string]*os.File{}
	for i, m := range s.Mounts {
		name := "mount " + strconv.Itoa(i)
		sources[name] = m.Tree
		opts := append([]string{"bind", "rprivate"}, m.Options...)
		if m.ReadOnly {
			opts = append(opts, "ro")
		}
		extra = slices.DeleteFunc(extra, func(e specs.Mount) bool { return e.Destination == m.Dest })
		extra = append(extra, specs.Mount{Type: "bind", Source: name, Destination: m.Dest, Options: opts})
	}
	run := &hostspec.Run{ID: p.id, Args: s.Args, Config: cfg, Host: host, User: p.user, Extra: extra}
	if run.ProcessLabel, run.MountLabel, err = p.exec.opts.Maker.Security.Labels(host, ""); err != nil {
		return nil, err
	}
	p.label = run.ProcessLabel
	if run.MountLabel != "" {
		for _, m := range s.Mounts {
			if err := hostspec.LabelScratch(run.MountLabel, m.Tree); err != nil {
				return nil, fmt.Errorf("label %s: %w", m.Dest, err)
			}
		}
		for _, m := range extra {
			if !path.IsAbs(m.Source) {
				continue // a tree that came open
			}
			if err := hostspec.Share(run.MountLabel, m.Source); err != nil {
				return nil, fmt.Errorf("label %s: %w", m.Destination, err)
			}
		}
	}
	spec, err := p.exec.opts.Maker.Spec(run)
	if err != nil {
		return nil, err
	}
	spec.Process.Env = environment(&s.Command, p.user.Home)
	if names, err := chosen(s.Devices, p.exec.opts.Maker.CDI); err != nil {
		return nil, err
	} else if err := p.exec.opts.Maker.CDI.Inject(spec, names); err != nil { // last: devices may come with variables
		return nil, err
	}
	p.spec = spec
	return sources, nil
}

// etc are the files that tell of names and addresses. Nobody writes them in a step, as in BuildKit's.
func (p *process) etc() (list []specs.Mount, err error) {
	names, err := hosts(p.hostname(), p.step.ExtraHosts, p.exec.opts.Networks.HostGateway())
	if err != nil {
		return nil, err
	}
	for _, f := range []struct {
		at      string
		content []byte
	}{{"/etc/resolv.conf", p.sandbox.ResolvConf}, {"/etc/hosts", names}} {
		path, err := p.exec.files.path(f.content)
		if err != nil {
			return nil, err
		}
		list = append(list, specs.Mount{Type: "bind", Source: path, Destination: f.at, Options: []string{"bind", "rprivate", "ro", "nosuid", "noexec", "nodev"}})
	}
	return list, nil
}

// environment is the command's own, and HOME. A step of BuildKit knows no HOSTNAME, and neither does ours.
func environment(c *step.Command, home string) []string {
	env := hostspec.Override(nil, c.Env)
	has := func(key string) bool {
		return slices.ContainsFunc(env, func(kv string) bool { return strings.HasPrefix(kv, key+"=") })
	}
	if home != "" && !has("HOME") {
		env = append(env, "HOME="+home)
	}
	if c.Tty && !has("TERM") {
		env = append(env, "TERM=xterm")
	}
	return env
}

func limits(res *pb.LinuxResources) container.Resources {
	return container.Resources{
		Memory: res.GetMemory(), MemorySwap: res.GetMemorySwap(), CPUShares: int64(res.GetCpuShares()), CPUPeriod: int64(res.GetCpuPeriod()), CPUQuota: res.GetCpuQuota(),
		CpusetCpus: res.GetCpusetCpus(), CpusetMems: res.GetCpusetMems(),
	}
}
