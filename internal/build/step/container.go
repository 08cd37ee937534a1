package step

import (
	"context"
	"errors"
	"slices"
	"sync"

	"github.com/moby/buildkit/solver/pb"

	"corten.dev/corten/internal/build"
	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/safefs"
	"corten.dev/corten/internal/snapshot"
)

// ContainerSpec describes a container without its processes.
type ContainerSpec struct {
	Mounts     []*pb.Mount    // their inputs are numbers in Inputs; their outputs do not count
	Inputs     []build.Output // whose layers are here
	Hostname   string
	Network    pb.NetMode
	ExtraHosts []*pb.HostIP
	Platform   *pb.Platform
	Ulimits    []*pb.Ulimit
	Resources  *pb.LinuxResources
	Devices    []*pb.CDIDevice
	// Granted are the entitlements of the build, as BuildKit writes them. Without "network.host" a container has no network of the host's, and without "security.insecure" no process
	// of it has privileges: what is asked of the solver in a definition is not had here by another door (BuildKit's CVE-2024-23653).
	Granted []string

	cwd   string
	trees []string
	args  []string // of the step that failed
}

// Container is a tree with mounts, in which processes are started by and by: a frontend's, or what a failed step left. The first process is the init of the rest.
type Container struct {
	steps  *Steps
	env    build.Env
	spec   ContainerSpec
	ctx    context.Context // of all its processes; ends with Release
	cancel context.CancelFunc

	mu       sync.Mutex // guards what follows; held over the start of the first process, for which the others have to wait
	set      *mounted
	first    Process
	released bool
}

// NewContainer prepares the mounts. What is written into them goes with the container.
func (s *Steps) NewContainer(ctx context.Context, env build.Env, spec ContainerSpec) (*Container, error) {
	if err := runnable(spec.Platform); err != nil {
		return nil, err
	}
	if spec.Network == pb.NetMode_HOST && !slices.Contains(spec.Granted, "network.host") {
		return nil, errs.New(errs.Forbidden, "network.host is not allowed")
	}
	for i, m := range spec.Mounts {
		if m != nil && m.Output != int64(pb.SkipOutput) {
			spec.Mounts = slices.Clone(spec.Mounts)
			m = m.CloneVT()
			m.Output = int64(pb.SkipOutput)
			spec.Mounts[i] = m
		}
	}
	if err := checkMounts(spec.Mounts, len(spec.Inputs)); err != nil {
		return nil, err
	}
	set, err := s.mount(ctx, env, request{mounts: spec.Mounts, in: spec.Inputs, cwd: spec.cwd, stubParents: true, trees: spec.trees})
	if err != nil {
		return nil, err
	}
	c := &Container{steps: s, env: env, spec: spec, set: set}
	c.ctx, c.cancel = context.WithCancel(context.WithoutCancel(ctx))
	return c, nil
}

// Failed prepares what a failed step left, with its mounts as they were, and gives what the step would run with: its environment, directory and user.
func (s *Steps) Failed(ctx context.Context, env build.Env, failed *build.StepError) (*Container, Command, error) {
	exec := failed.Vertex.Op.GetExec()
	if exec == nil || len(failed.Mounts) != len(exec.Mounts) {
		return nil, Command{}, errs.New(errs.Invalid, "the step that failed left nothing to look at")
	}
	o := &op{steps: s, v: failed.Vertex, exec: exec}
	vars, err := o.environment(ctx, env)
	if err != nil {
		return nil, Command{}, err
	}
	meta := exec.Meta
	c, err := s.NewContainer(ctx, env, ContainerSpec{
		Mounts: exec.Mounts, Inputs: failed.Inputs, Hostname: meta.Hostname, Network: exec.Network, ExtraHosts: meta.ExtraHosts, Platform: failed.Vertex.Op.GetPlatform(),
		Ulimits: meta.Ulimit, Resources: failed.Vertex.Meta.GetLinuxResources(), Devices: exec.CdiDevices, cwd: meta.Cwd, trees: failed.Mounts, args: meta.Args,
		Granted: hadBy(exec),
	})
	if err != nil {
		return nil, Command{}, err
	}
	return c, Command{Args: c.shell(), Env: vars, Cwd: meta.Cwd, User: meta.User, Security: exec.Security}, nil
}

// hadBy are the entitlements that a step had: it was let through with them.
func hadBy(exec *pb.ExecOp) (list []string) {
	if exec.Network == pb.NetMode_HOST {
		list = append(list, "network.host")
	}
	if exec.Security == pb.SecurityMode_INSECURE {
		list = append(list, "security.insecure")
	}
	return list
}

// shell is the one that the step was run by, if it was run by one.
func (c *Container) shell() []string {
	args := c.spec.args
	if len(args) == 3 && args[1] == "-c" {
		return args[:1]
	}
	return []string{"/bin/sh"}
}

// Start runs a process; all end with Release, or with the first one.
func (c *Container) Start(cmd Command, secrets []*pb.SecretEnv) (Process, error) {
	vars, err := secretEnv(c.ctx, c.env, secrets)
	if err != nil {
		return nil, err
	}
	cmd.Env = append(withPath(slices.Clone(cmd.Env)), vars...)
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.released:
		return nil, errs.New(errs.Conflict, "the container is gone")
	case len(cmd.Args) == 0:
		return nil, errs.New(errs.Invalid, "no program is named")
	case cmd.Security == pb.SecurityMode_INSECURE && !slices.Contains(c.spec.Granted, "security.insecure"):
		return nil, errs.New(errs.Forbidden, "security.insecure is not allowed")
	case c.first != nil:
		return c.first.Exec(c.ctx, cmd)
	}
	proc, err := c.steps.opts.Executor.Start(c.ctx, Step{
		ID: c.set.id, Root: c.set.root, ReadOnly: c.set.readOnly, Mounts: c.set.list(), Command: cmd, Hostname: c.spec.Hostname, ExtraHosts: c.spec.ExtraHosts,
		Network: c.spec.Network, Ulimits: c.spec.Ulimits, Resources: c.spec.Resources, Devices: c.spec.Devices,
	})
	if err != nil {
		return nil, err
	}
	c.first = proc
	return proc, nil
}

// Open gives the root of a mount's tree, as the processes see it.
func (c *Container) Open(i int) (*snapshot.Mounted, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.released {
		return nil, errs.New(errs.Conflict, "the container is gone")
	}
	if i < 0 || i >= len(c.set.parts) || c.set.parts[i].tree == nil {
		return nil, errs.New(errs.NotFound, "the container has no mount %d", i)
	}
	f, err := safefs.Reopen(c.set.parts[i].tree, safefs.Handle)
	if err != nil {
		return nil, err
	}
	var once sync.Once
	return &snapshot.Mounted{Root: f, Close: func() (err error) {
		once.Do(func() { err = f.Close() })
		return err
	}}, nil
}

// Release ends the processes and takes everything away, except trees that a failed step left. A second call is no harm.
func (c *Container) Release(ctx context.Context) error {
	c.cancel()
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.released {
		return nil
	}
	c.released = true
	var err error
	if c.first != nil {
		_, err = c.first.Wait()
	}
	return errors.Join(err, c.set.close(context.WithoutCancel(ctx)))
}
