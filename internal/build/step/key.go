package step

import (
	"context"
	"errors"
	"fmt"
	"path"
	"runtime"

	"github.com/moby/buildkit/solver/pb"
	"github.com/opencontainers/go-digest"
	"google.golang.org/protobuf/proto"

	"corten.dev/corten/internal/build"
	"corten.dev/corten/internal/errs"
)

// Key implements [build.Op]. It is made of
//
//	the op, without      proxies, addresses of extra hosts, ids and sharing of caches, and selectors whose content counts instead
//	the platform
//	for each mount       the content of what it shows, where the step cannot hand on more of the input than that; else the input's chain (always of the root)
//
// Values of secrets and answers of agents are not in it: a step is not run again because a password changed.
func (o *op) Key(ctx context.Context, env build.Env, in []build.Output) (digest.Digest, error) {
	if len(in) != o.inputs {
		return "", errs.New(errs.Invalid, "%s: %d inputs, not %d", o.v.Name, len(in), o.inputs)
	}
	h := digest.SHA256.Digester()
	exec := proto.Clone(o.exec).(*pb.ExecOp)
	exec.Meta.ProxyEnv = nil
	for _, host := range exec.Meta.ExtraHosts {
		host.IP = ""
	}
	sums := make([]digest.Digest, len(exec.Mounts))
	for i, m := range exec.Mounts {
		m.CacheOpt, m.ResultID = nil, ""
		if m.Input == int64(pb.Empty) || !reads(m) {
			continue
		}
		id, err := o.identity(ctx, env, m, in[m.Input])
		if err != nil {
			return "", fmt.Errorf("mount %s: %w", m.Dest, err)
		}
		fmt.Fprintf(h.Hash(), "mount %d %s\n", i, id)
		if o.byContent(m, in[m.Input]) {
			m.Selector, sums[i] = "", id
		}
	}
	data, err := proto.MarshalOptions{Deterministic: true}.Marshal(exec)
	if err != nil {
		return "", err
	}
	p := o.platform
	if p == nil {
		p = &pb.Platform{OS: "linux", Architecture: runtime.GOARCH}
	}
	fmt.Fprintf(h.Hash(), "corten exec op 1\nplatform %q %q %q %q %q\nop %d ", p.OS, p.Architecture, p.Variant, p.OSVersion, p.OSFeatures, len(data))
	h.Hash().Write(data)
	o.mu.Lock()
	o.sums = sums
	o.mu.Unlock()
	return h.Digest(), nil
}

// reads tells whether a mount shows something of its input.
func reads(m *pb.Mount) bool {
	return m.MountType == pb.MountType_BIND || m.MountType == pb.MountType_CACHE
}

// byContent tells whether what a mount shows is all that counts of its input. It is not when the step hands the whole on although it saw only a part of it: what else is in there would
// come from another build. And the root would have to be read in full each time.
func (o *op) byContent(m *pb.Mount, in build.Output) bool {
	if in.Files != nil {
		return true
	}
	if o.steps.opts.Checksums == nil {
		return false
	}
	safe := m.Output == int64(pb.SkipOutput) || m.Readonly || path.Join("/", m.Selector) == "/"
	switch m.ContentCache {
	case pb.MountContentCache_OFF:
		return false
	case pb.MountContentCache_ON:
		return safe
	}
	return safe && m.Dest != pb.RootMount
}

// identity is what a mount's input counts as.
func (o *op) identity(ctx context.Context, env build.Env, m *pb.Mount, in build.Output) (digest.Digest, error) {
	if !o.byContent(m, in) {
		return digest.FromString("chain " + string(in.Chain)), nil
	}
	if o.steps.opts.Checksums == nil {
		return "", errs.New(errs.NotImplemented, "a directory of the asker cannot be mounted")
	}
	sel := path.Join("/", m.Selector)
	sum, err := o.steps.opts.Checksums.Checksum(ctx, env, in, sel)
	if errors.Is(err, errs.NotFound) && env.Bring != nil { // its layers may not be here
		if in, err = env.Bring(ctx, int(m.Input)); err == nil {
			sum, err = o.steps.opts.Checksums.Checksum(ctx, env, in, sel)
		}
	}
	if errors.Is(err, errs.NotFound) {
		return "", errs.New(errs.NotFound, "%q: not found", sel)
	}
	return sum, err
}
