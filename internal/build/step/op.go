package step

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/moby/buildkit/solver/pb"
	"github.com/opencontainers/go-digest"

	"corten.dev/corten/internal/build"
	"corten.dev/corten/internal/errs"
)

// Make makes the work of an exec vertex; it is a [build.Maker].
func (s *Steps) Make(v *build.Vertex) (build.Op, error) {
	exec := givesNothing(v.Op.GetExec())
	if err := check(exec, len(v.Inputs)); err != nil {
		return nil, err
	}
	return &op{steps: s, v: v, exec: exec, platform: v.Op.GetPlatform(), inputs: len(v.Inputs)}, nil
}

// givesNothing marks mounts of secrets and agents as such: LLB leaves their output at zero, which is that of the root.
func givesNothing(exec *pb.ExecOp) *pb.ExecOp {
	of := func(m *pb.Mount) bool {
		return m.GetMountType() == pb.MountType_SECRET || m.GetMountType() == pb.MountType_SSH
	}
	if !slices.ContainsFunc(exec.GetMounts(), of) {
		return exec
	}
	exec = exec.CloneVT() // the vertex belongs to others
	for _, m := range exec.Mounts {
		if of(m) {
			m.Output = int64(pb.SkipOutput)
		}
	}
	return exec
}

// check refuses what no client of good will sends.
func check(exec *pb.ExecOp, inputs int) error {
	switch {
	case exec == nil:
		return errs.New(errs.Invalid, "not an exec op")
	case exec.Meta == nil:
		return errs.New(errs.Invalid, "invalid exec op: no meta")
	case len(exec.Meta.Args) == 0:
		return errs.New(errs.Invalid, "invalid exec op: no args")
	case len(exec.Mounts) == 0:
		return errs.New(errs.Invalid, "invalid exec op: no mounts")
	}
	if _, ok := pb.NetMode_name[int32(exec.Network)]; !ok {
		return errs.New(errs.Invalid, "invalid exec op: network mode %d", exec.Network)
	}
	if _, ok := pb.SecurityMode_name[int32(exec.Security)]; !ok {
		return errs.New(errs.Invalid, "invalid exec op: security mode %d", exec.Security)
	}
	for _, env := range exec.Secretenv {
		if env == nil || env.ID == "" {
			return errs.New(errs.Invalid, "secret ID missing for %q environment variable", env.GetName())
		}
	}
	return checkMounts(exec.Mounts, inputs)
}

func checkMounts(mounts []*pb.Mount, inputs int) error {
	root, outputs := false, map[int64]bool{}
	for _, m := range mounts {
		if m == nil {
			return errs.New(errs.Invalid, "invalid exec op: a mount is missing")
		}
		if m.Dest == pb.RootMount {
			if m.MountType != pb.MountType_BIND {
				return errs.New(errs.Invalid, "invalid mount type %s for %s", m.MountType, m.Dest)
			}
			if root {
				return errs.New(errs.Invalid, "invalid exec op: two root mounts")
			}
			root = true
		}
		if m.Input < int64(pb.Empty) || m.Input >= int64(inputs) {
			return errs.New(errs.Invalid, "mount %s: missing input %d", m.Dest, m.Input)
		}
		if m.Output != int64(pb.SkipOutput) {
			if m.Output < 0 || m.Output >= int64(len(mounts)) || outputs[m.Output] {
				return errs.New(errs.Invalid, "mount %s: invalid output %d", m.Dest, m.Output)
			}
			outputs[m.Output] = true
		}
		if strings.ContainsRune(m.Dest, 0) || strings.ContainsRune(m.Selector, 0) {
			return errs.New(errs.Invalid, "mount %q: a path has a zero byte", m.Dest)
		}
		if err := checkKind(m); err != nil {
			return err
		}
	}
	if !root {
		return errs.New(errs.Invalid, "invalid exec op: no root mount")
	}
	for i := range int64(len(outputs)) {
		if !outputs[i] {
			return errs.New(errs.Invalid, "invalid exec op: no mount has output %d", i)
		}
	}
	return nil
}

func checkKind(m *pb.Mount) error {
	switch m.MountType {
	case pb.MountType_BIND, pb.MountType_TMPFS:
	case pb.MountType_CACHE:
		if m.CacheOpt == nil {
			return errs.New(errs.Invalid, "mount %s: missing cache mount options", m.Dest)
		}
		if _, ok := pb.CacheSharingOpt_name[int32(m.CacheOpt.Sharing)]; !ok {
			return errs.New(errs.Invalid, "mount %s: invalid cache sharing option: %d", m.Dest, m.CacheOpt.Sharing)
		}
	case pb.MountType_SECRET:
		if m.SecretOpt == nil || m.SecretOpt.ID == "" {
			return errs.New(errs.Invalid, "mount %s: secret ID missing from mount options", m.Dest)
		}
	case pb.MountType_SSH:
		if m.SSHOpt == nil {
			return errs.New(errs.Invalid, "mount %s: invalid SSH mount options", m.Dest)
		}
	default:
		return errs.New(errs.Invalid, "mount %s: mount type %s not implemented", m.Dest, m.MountType)
	}
	return nil
}

// op is the work of one exec vertex.
type op struct {
	steps    *Steps
	v        *build.Vertex
	exec     *pb.ExecOp
	platform *pb.Platform
	inputs   int

	mu   sync.Mutex      // guards sums
	sums []digest.Digest // by mount, of what the last Key was made of
}

// Traits implements [build.Op].
func (o *op) Traits() build.Traits { return build.Traits{Heavy: true} }

// newID names a run of a step: its tree, its processes' cgroups and its place on the network. Behind the dash it looks like the id of a container, which some doors call it.
func newID() string {
	var id [16]byte
	_, _ = rand.Read(id[:]) // it never fails
	return "step-" + hex.EncodeToString(id[:])
}

// Run implements [build.Op].
func (o *op) Run(ctx context.Context, env build.Env, in []build.Output) (_ build.Made, err error) {
	if err := runnable(o.platform); err != nil {
		return build.Made{}, err
	}
	vars, err := o.environment(ctx, env)
	if err != nil {
		return build.Made{}, err
	}
	o.mu.Lock()
	sums := o.sums
	o.mu.Unlock()
	set, err := o.steps.mount(ctx, env, request{mounts: o.exec.Mounts, in: in, cwd: o.exec.Meta.Cwd, stubParents: o.exec.Meta.RemoveMountStubsRecursive, sums: sums})
	if err != nil {
		return build.Made{}, err
	}
	code, err := o.run(ctx, env, set, vars)
	if err == nil && !o.valid(code) {
		err = fmt.Errorf("exit code: %d", code)
	}
	if err != nil {
		if cause := context.Cause(ctx); cause != nil {
			return build.Made{}, errors.Join(cause, set.close(context.WithoutCancel(ctx)))
		}
		return build.Made{}, o.failed(ctx, set, in, code, err)
	}
	outs, err := set.outputs(ctx)
	if err != nil {
		return build.Made{}, errors.Join(err, set.close(context.WithoutCancel(ctx)))
	}
	return build.Made{Outputs: outs, Volatile: set.volatile}, set.close(ctx)
}

func (o *op) valid(code int) bool {
	if len(o.exec.Meta.ValidExitCodes) == 0 {
		return code == 0
	}
	return slices.Contains(o.exec.Meta.ValidExitCodes, int32(code))
}

// run runs the program; a code of -1 says that it never ran.
func (o *op) run(ctx context.Context, env build.Env, set *mounted, vars []string) (int, error) {
	meta := o.exec.Meta
	if told, ok := env.Progress.(build.Runs); ok {
		told.Running(set.id)
	}
	proc, err := o.steps.opts.Executor.Start(ctx, Step{
		ID: set.id, Root: set.root, ReadOnly: set.readOnly, Mounts: set.list(),
		Command: Command{
			Args: meta.Args, Env: vars, Cwd: meta.Cwd, User: meta.User, Security: o.exec.Security, Stdout: stream{env.Progress, 1}, Stderr: stream{env.Progress, 2},
		},
		Hostname: meta.Hostname, ExtraHosts: meta.ExtraHosts, Network: o.exec.Network, Ulimits: meta.Ulimit, CgroupParent: meta.CgroupParent, Resources: o.v.Meta.GetLinuxResources(), Devices: o.exec.CdiDevices,
	})
	if err != nil {
		return -1, err
	}
	return proc.Wait()
}

// stream passes output on. The solver bounds it.
type stream struct {
	to build.Progress
	n  int
}

// Write implements [io.Writer]. It never fails: a step does not end because nobody listens.
func (s stream) Write(p []byte) (int, error) {
	if s.to != nil {
		s.to.Log(s.n, p)
	}
	return len(p), nil
}

// failed says so in BuildKit's words, and leaves the trees for who wants to look.
func (o *op) failed(ctx context.Context, set *mounted, in []build.Output, code int, cause error) error {
	ctx = context.WithoutCancel(ctx)
	err := fmt.Errorf("process %q did not complete successfully: %w", strings.Join(o.exec.Meta.Args, " "), cause)
	keys, cerr := set.keep(ctx)
	if cerr != nil {
		o.steps.log.Warn("keep what a failed step left", "step", o.v.Name, "err", cerr)
	}
	return &build.StepError{Vertex: o.v, ExitCode: code, Inputs: in, Mounts: keys, Err: err}
}
