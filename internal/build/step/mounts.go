package step

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path"
	"slices"
	"strings"

	"github.com/moby/buildkit/solver/pb"
	"github.com/opencontainers/go-digest"

	"corten.dev/corten/internal/build"
	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/linux/mount"
	"corten.dev/corten/internal/safefs"
	"corten.dev/corten/internal/snapshot"
)

// request asks for the mounts of a step.
type request struct {
	mounts []*pb.Mount
	in     []build.Output
	cwd    string
	// stubParents: directories that were made only to have a mount point in them go too.
	stubParents bool
	// sums are the checksums of the key, by mount; empty: none was taken.
	sums []digest.Digest
	// trees, if set, are writable trees that are there already, by mount: those of a failed step.
	trees []string
}

// part is one mount of a step.
type part struct {
	m    *pb.Mount
	dest string        // absolute, clean
	key  string        // of the writable tree
	own  bool          // the tree is this step's alone
	sum  digest.Digest // of what is shown of a directory outside of the store, as the key has it
	from build.Output
	tree *os.File // detached, what is attached; nil: nothing is mounted (an optional secret that is not there)
	opts []string
}

// mounted is everything that a step sees, while it is there.
type mounted struct {
	steps    *Steps
	id       string
	parts    []*part           // in the order of the request
	root     *snapshot.Mounted // what is attached; it may be made read-only
	top      *os.File          // the same tree by another mount
	readOnly bool
	stubs    *stubs
	volatile bool
	// undo are taken backwards: release what the trees stand on, and then remove them.
	unmount, remove []func(context.Context) error
}

// mount prepares all mounts of a step.
func (s *Steps) mount(ctx context.Context, env build.Env, req request) (_ *mounted, err error) {
	set := &mounted{steps: s, id: newID()}
	defer func() {
		if err != nil {
			err = errors.Join(err, set.close(context.WithoutCancel(ctx)))
		}
	}()
	for i, m := range req.mounts {
		p := &part{m: m, dest: destination(m.Dest, req.cwd)}
		if p.dest == "/" && m.Dest != pb.RootMount {
			return nil, errs.New(errs.Invalid, "mount %s: the root is another mount", m.Dest)
		}
		if m.Input != int64(pb.Empty) {
			p.from = req.in[m.Input]
		}
		set.parts = append(set.parts, p)
		if i < len(req.trees) {
			p.key = req.trees[i]
		}
		if i < len(req.sums) {
			p.sum = req.sums[i]
		}
	}
	if err := set.acquire(ctx, env); err != nil {
		return nil, err
	}
	for i, p := range set.parts {
		if err := set.prepare(ctx, env, i, p); err != nil {
			return nil, err
		}
	}
	set.stubs, err = makeStubs(set.top, set.points(req.stubParents))
	return set, err
}

// destination is where a mount goes; a relative one is below the working directory.
func destination(dest, cwd string) string {
	if !path.IsAbs(dest) {
		dest = path.Join("/", cwd, dest)
	}
	return path.Clean(dest)
}

// points are the mount points in the root, with what they must be: the executor's own, and those of mounts that are not inside of another one.
func (set *mounted) points(parents bool) []point {
	list := []point{{"/proc", true, true}, {"/sys", true, true}, {"/dev", true, true}, {"/etc/resolv.conf", false, true}, {"/etc/hosts", false, true}}
	for _, p := range set.parts {
		if p.tree == nil || p.dest == "/" || set.covered(p) {
			continue
		}
		dir := true
		if fi, err := p.tree.Stat(); err == nil {
			dir = fi.IsDir()
		}
		list = append(list, point{p.dest, dir, parents})
	}
	return list
}

// usual are the places where every step has a file system of its own.
var usual = [...]string{"/proc", "/sys", "/dev"}

func (set *mounted) covered(p *part) bool {
	inside := func(dir string) bool { return strings.HasPrefix(p.dest, dir+"/") }
	return slices.ContainsFunc(usual[:], func(dir string) bool { return p.dest == dir || inside(dir) }) ||
		slices.ContainsFunc(set.parts, func(other *part) bool {
			return other != p && other.tree != nil && other.dest != "/" && inside(other.dest)
		})
}

// list is what the executor attaches; its order is that of the destinations, so that what lies inside comes later.
func (set *mounted) list() (list []Mount) {
	for _, p := range set.parts {
		if p.tree != nil && p.dest != "/" {
			list = append(list, Mount{Dest: p.dest, Tree: p.tree, ReadOnly: p.m.Readonly || p.m.MountType == pb.MountType_SECRET, Options: p.opts})
		}
	}
	slices.SortStableFunc(list, func(a, b Mount) int { return strings.Compare(a.Dest, b.Dest) })
	return list
}

func (set *mounted) prepare(ctx context.Context, env build.Env, i int, p *part) error {
	var err error
	switch p.m.MountType {
	case pb.MountType_SECRET: // the errors of these two name what was asked for
		return set.secret(ctx, env, p)
	case pb.MountType_SSH:
		return set.ssh(ctx, env, p)
	case pb.MountType_BIND:
		err = set.bind(ctx, env, i, p)
	case pb.MountType_CACHE:
		err = set.cache(ctx, p)
	case pb.MountType_TMPFS:
		err = set.tmpfs(p)
	}
	if err != nil {
		return fmt.Errorf("mount %s: %w", p.dest, err)
	}
	return nil
}

// bind mounts a tree: the step's own where it may write, else the input.
//
//	output   read-only   what is mounted     what becomes of it
//	yes      no          own tree            a layer
//	yes      yes         the input           is the output (the root: own tree, a layer)
//	no       no          own tree            is thrown away
//	no       yes         the input           (the root: own tree, for its mount points)
func (set *mounted) bind(ctx context.Context, env build.Env, i int, p *part) error {
	root := p.dest == "/"
	chain, err := set.chain(ctx, env, p)
	if err != nil {
		return err
	}
	if p.m.Readonly && !root && p.m.Input != int64(pb.Empty) {
		fs, err := set.steps.opts.Trees.View(ctx, chain)
		if err != nil {
			return err
		}
		return set.show(p, fs)
	}
	if p.key == "" {
		p.key, p.own = fmt.Sprintf("%s-%d", set.id, i), true
		if err := set.steps.opts.Trees.Prepare(ctx, p.key, chain, snapshot.Options{Labels: map[string]string{label: ""}, Bare: !root, Skeleton: snapshot.StepSkeleton}); err != nil {
			return err
		}
		set.remove = append(set.remove, func(ctx context.Context) error { return set.steps.opts.Trees.Remove(ctx, p.key) })
	}
	fs, err := set.steps.opts.Trees.Mount(ctx, p.key)
	if err != nil {
		return err
	}
	if err := set.show(p, fs); err != nil || !root {
		return err
	}
	set.top = fs.Root
	set.root, set.readOnly = &snapshot.Mounted{Root: p.tree, Detached: true}, p.m.Readonly
	return nil
}

// show takes what the selector names of a tree. It is resolved inside of it, by descriptor, and what was found is what gets mounted, whatever its name leads to later.
func (set *mounted) show(p *part, fs *snapshot.Mounted) error {
	set.unmount = append(set.unmount, func(context.Context) error { return fs.Close() })
	at := fs.Root
	if sel := path.Join("/", p.m.Selector); sel != "/" {
		f, err := safefs.Open(fs.Root, sel, safefs.Handle, 0)
		if err != nil {
			return missing(sel, err)
		}
		defer f.Close()
		at = f
	}
	return set.clone(p, fs.Root, at)
}

// clone makes a mount of its own of what is open of the mount whole; who has that mounted too (a shared cache, a view) keeps what he has.
func (set *mounted) clone(p *part, whole, at *os.File) error {
	tree, release, err := set.steps.holder.Clone(whole, at)
	if err != nil {
		return err
	}
	p.tree = tree
	set.unmount = append(set.unmount, func(context.Context) error { return errors.Join(tree.Close(), release()) })
	return nil
}

func missing(sel string, err error) error {
	if errors.Is(err, os.ErrNotExist) {
		return errs.New(errs.NotFound, "%q: not found", sel)
	}
	return err
}

// acquire gets the trees of all cache mounts, each once, in the order of their ids: two steps that lock the same caches must not wait for each other.
func (set *mounted) acquire(ctx context.Context, env build.Env) error {
	type cache struct {
		id   string
		base snapshot.ChainID
	}
	wanted := map[cache][]*part{}
	for _, p := range set.parts {
		if p.m.MountType != pb.MountType_CACHE {
			continue
		}
		if set.steps.opts.Caches == nil {
			return errs.New(errs.NotImplemented, "mount %s: cache mounts are not available", p.dest)
		}
		base, err := set.chain(ctx, env, p)
		if err != nil {
			return fmt.Errorf("mount %s: %w", p.dest, err)
		}
		c := cache{p.m.CacheOpt.ID, base}
		wanted[c] = append(wanted[c], p)
	}
	order := slices.SortedFunc(maps.Keys(wanted), func(a, b cache) int {
		return cmp.Or(strings.Compare(a.id, b.id), strings.Compare(string(a.base), string(b.base)))
	})
	for _, c := range order {
		parts := wanted[c]
		key, release, err := set.steps.opts.Caches.Acquire(ctx, c.id, c.base, parts[0].m.CacheOpt.Sharing)
		if err != nil {
			return fmt.Errorf("mount %s: %w", parts[0].dest, err)
		}
		set.unmount = append(set.unmount, func(context.Context) error { release(); return nil }) // backwards: after its mounts
		for _, p := range parts {
			p.key = key
		}
	}
	return nil
}

func (set *mounted) cache(ctx context.Context, p *part) error {
	fs, err := set.steps.opts.Trees.Mount(ctx, p.key)
	if err != nil {
		return err
	}
	return set.show(p, fs)
}

func (set *mounted) tmpfs(p *part) error {
	o := mount.Options{Data: []string{"mode=0755"}}
	if size := p.m.TmpfsOpt.GetSize(); size > 0 {
		o.Data = append(o.Data, fmt.Sprintf("size=%d", size))
	}
	tree, err := mount.FS("tmpfs", "tmpfs", o)
	if err != nil {
		return err
	}
	p.tree, p.opts = tree, []string{"nosuid"}
	set.unmount = append(set.unmount, func(context.Context) error { return tree.Close() })
	return nil
}

// outputs makes layers of what was written.
func (set *mounted) outputs(ctx context.Context) ([]build.Output, error) {
	if err := set.down(ctx); err != nil {
		return nil, err
	}
	var outs []build.Output
	for _, p := range set.parts {
		if p.m.Output != int64(pb.SkipOutput) {
			outs = append(outs, build.Output{})
		}
	}
	for _, p := range set.parts {
		if p.m.Output == int64(pb.SkipOutput) {
			continue
		}
		outs[p.m.Output] = p.from
		if !p.own {
			continue
		}
		layer, err := set.steps.opts.Trees.Turn(ctx, p.key, snapshot.TurnOptions{Relaxed: true, Empty: true})
		if err != nil {
			return nil, err
		}
		outs[p.m.Output] = build.Output{Chain: layer.Chain}
	}
	return outs, nil
}

// down takes the mounts down and removes what was made only to be mounted over; the trees stay.
func (set *mounted) down(ctx context.Context) (err error) {
	if set.stubs != nil {
		err = set.stubs.remove()
		set.stubs = nil
	}
	for _, fn := range slices.Backward(set.unmount) {
		err = errors.Join(err, fn(ctx))
	}
	set.unmount = nil
	return err
}

// keep leaves the writable trees to who wants to look at what a failed step left; it gives their keys in the order of the mounts.
func (set *mounted) keep(ctx context.Context) ([]string, error) {
	err := set.down(ctx)
	keys := make([]string, len(set.parts))
	for i, p := range set.parts {
		if p.own {
			keys[i] = p.key
		}
	}
	set.remove = nil
	return keys, err
}

// close gives everything back.
func (set *mounted) close(ctx context.Context) error {
	err := set.down(ctx)
	for _, fn := range slices.Backward(set.remove) {
		err = errors.Join(err, fn(ctx))
	}
	set.remove = nil
	return err
}
