package step

import (
	"context"
	"path"
	"time"

	"github.com/opencontainers/go-digest"

	"corten.dev/corten/internal/build"
	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/snapshot"
)

// chain is that of the input. A directory outside of the store is made layers: a step may write into what it mounts, must not see what the patterns of the context leave out, and must not see it
// change. Those layers are kept like what steps make: the next step, or build, that mounts the same content finds them.
func (set *mounted) chain(ctx context.Context, env build.Env, p *part) (snapshot.ChainID, error) {
	if p.from.Files == nil {
		return p.from.Chain, nil
	}
	opts := &set.steps.opts
	if opts.Layers == nil {
		return "", errs.New(errs.NotImplemented, "a directory of the asker cannot be mounted")
	}
	sel := path.Join("/", p.m.Selector)
	if p.sum == "" || opts.Cache == nil {
		chain, _, err := set.layers(ctx, env, p, sel)
		return chain, err
	}
	key := digest.FromString("corten directory 1\n" + string(p.sum) + "\n" + sel)
	release := opts.Cache.Use(ctx, key)
	set.unmount = append(set.unmount, func(context.Context) error { release(); return nil })
	rec, ok, err := opts.Cache.Lookup(ctx, key)
	if err != nil {
		return "", err
	}
	if ok && len(rec.Outputs) == 1 {
		if _, err := opts.Trees.Stat(ctx, rec.Outputs[0]); err == nil || rec.Outputs[0] == "" {
			return rec.Outputs[0], nil
		}
	}
	start := time.Now()
	chain, same, err := set.layers(ctx, env, p, sel)
	if err != nil || !same {
		return chain, err
	}
	return chain, opts.Cache.Save(ctx, build.Record{
		Key: key, Outputs: []snapshot.ChainID{chain}, Kind: "source.local", Description: "local source for " + p.dest, Created: start, Taken: time.Since(start),
	})
}

// layers makes layers of a directory, for this step. same tells whether they are what the key was made of; else the step's result does not belong under the key.
func (set *mounted) layers(ctx context.Context, env build.Env, p *part, sel string) (chain snapshot.ChainID, same bool, err error) {
	opts := &set.steps.opts
	if chain, err = opts.Layers(ctx, env, p.from, sel); err != nil {
		return "", false, err
	}
	if opts.Hold != nil {
		release := opts.Hold(chain)
		set.unmount = append(set.unmount, func(context.Context) error { release(); return nil })
	}
	if p.sum == "" {
		return chain, false, nil
	}
	sum, err := opts.Checksums.Checksum(ctx, env, build.Output{Chain: chain}, sel)
	same = err == nil && sum == p.sum
	set.volatile = set.volatile || !same
	return chain, same, err
}
