package solve

import (
	"context"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"corten.dev/corten/internal/build"
	"corten.dev/corten/internal/errs"
)

// imported is an import of a job. One that fails is not asked again.
type imported struct {
	Import
	broken atomic.Bool
}

// recorded fills res with what was kept under its key: by the own cache, or in an import. For one that is looked for again only counts what can be had here.
func (n *node) recorded(ctx context.Context, res *result, how attempt) (bool, error) {
	s := n.job.solver
	rec, ok, err := s.opts.Cache.Lookup(ctx, res.key)
	if err != nil {
		return false, n.ended(ctx, fmt.Errorf("look up %s: %w", n.vertex.Name, err))
	}
	if ok && len(rec.Outputs) >= n.wide() {
		if how.again {
			if ok, err = s.allHere(ctx, rec); err != nil {
				return false, n.ended(ctx, err)
			}
		}
		if ok {
			res.outputs, res.cached, res.taken = outputsOf(rec), true, rec.Taken
			return true, nil
		}
	}
	if how.noImports {
		return false, nil
	}
	return n.importedRecord(ctx, res, how)
}

// importedRecord fills res with what an import has under its key. Not every import has the layers of all that it knows.
func (n *node) importedRecord(ctx context.Context, res *result, how attempt) (bool, error) {
	s := n.job.solver
	n.job.mu.Lock()
	imports := slices.Clone(n.job.imports)
	n.job.mu.Unlock()
	for _, imp := range imports {
		if imp.broken.Load() {
			continue
		}
		rec, outputs, ok, err := imp.Lookup(ctx, res.key)
		if ctx.Err() != nil {
			return false, context.Cause(ctx)
		}
		if err != nil {
			imp.broken.Store(true)
			s.opts.Log.Warn("an imported build cache is left out", "err", err)
			n.voice.Warn(build.Warning{Level: 1, Short: fmt.Appendf(nil, "imported cache is left out: %v", err)})
			continue
		}
		mere := func(out build.Output) bool { return out.Chain != "" && out.Fetch == nil }
		if !ok || len(outputs) < n.wide() || how.again && slices.ContainsFunc(outputs, mere) {
			continue
		}
		rec.Key, rec.Inputs, rec.Outputs = res.key, res.inputs, nil
		for _, out := range outputs {
			rec.Outputs = append(rec.Outputs, out.Chain)
		}
		res.outputs, res.cached, res.taken, res.imported = outputs, true, rec.Taken, &rec
		return true, n.adopt(ctx, res)
	}
	return false, nil
}

// adopt keeps an imported record as one's own: as an identity until its layers are here.
func (n *node) adopt(ctx context.Context, res *result) error {
	if res.imported == nil {
		return nil
	}
	if err := n.job.solver.opts.Cache.Save(ctx, *res.imported); err != nil {
		return n.ended(ctx, fmt.Errorf("keep what was imported for %s: %w", n.vertex.Name, err))
	}
	return nil
}

func outputsOf(rec build.Record) []build.Output {
	outs := make([]build.Output, len(rec.Outputs))
	for i, chain := range rec.Outputs {
		outs[i].Chain = chain
	}
	return outs
}

func (s *Solver) allHere(ctx context.Context, rec build.Record) (bool, error) {
	for _, chain := range rec.Outputs {
		if ok, err := s.here(ctx, chain); !ok || err != nil {
			return false, err
		}
	}
	return true, nil
}

// local gives an output with its layers here.
func (n *node) local(ctx context.Context, index int) (build.Output, error) {
	res, err := n.result(ctx)
	if err != nil {
		return build.Output{}, err
	}
	out, err := n.output(res, index)
	if err != nil || out.Files != nil || out.Chain == "" {
		return out, err
	}
	n.mu.Lock()
	f := n.layers[index]
	if f == nil {
		f = new(future[build.Output])
		if n.layers == nil {
			n.layers = map[int]*future[build.Output]{}
		}
		n.layers[index] = f
	}
	n.mu.Unlock()
	return f.wait(ctx, n.job.ctx, &n.job.running, func(ctx context.Context) (build.Output, error) { return n.bring(ctx, index) })
}

// bring brings the layers of an output here: they are; they can be fetched; the step is run again, or an import has them.
func (n *node) bring(ctx context.Context, index int) (build.Output, error) {
	how := attempt{again: true}
	for range maxTurns {
		res := n.latest()
		out, err := n.output(res, index)
		if err != nil || out.Files != nil {
			return out, err
		}
		if res.alias != nil {
			return n.bringAlias(ctx, res, index)
		}
		here, err := n.job.hold(ctx, out.Chain)
		if err != nil {
			return out, n.ended(ctx, err)
		}
		if here {
			return out, n.adopt(ctx, res)
		}
		if out.Fetch != nil {
			err := n.fetch(ctx, res, out)
			if err == nil {
				continue
			}
			if ctx.Err() != nil || res.imported == nil {
				return out, n.ended(ctx, err)
			}
			n.job.solver.opts.Log.Warn("layers of an imported build cache cannot be had: the step is run", "step", n.vertex.Name, "err", err)
			how.noImports = true
		}
		if res, err = n.make(ctx, how); err != nil {
			return out, err
		}
		n.replace(res)
	}
	return build.Output{}, n.failed(errs.New(errs.Conflict, "%s: its layers are not here, however often they are brought", n.vertex.Name))
}

// fetch brings layers from where the output comes from. A step whose layers an import has was not run: it stays a cached one.
func (n *node) fetch(ctx context.Context, res *result, out build.Output) error {
	n.voice.begin(time.Now())
	if err := out.Fetch(ctx, n.voice); err != nil {
		if ctx.Err() != nil {
			n.voice.drop()
		}
		return err
	}
	n.voice.end("", res.imported != nil, res.name())
	return nil
}

// bringAlias brings the layers of an output that another node made.
func (n *node) bringAlias(ctx context.Context, res *result, index int) (build.Output, error) {
	of := res.alias[index]
	out, err := of.node.local(ctx, of.index)
	if err != nil || out.Chain == res.outputs[index].Chain {
		return out, err
	}
	next := *res
	next.outputs = append([]build.Output(nil), res.outputs...)
	next.outputs[index] = out
	n.replace(&next)
	return out, nil
}

// bringInputs brings the layers of all inputs here.
func (n *node) bringInputs(ctx context.Context) error {
	return n.together(ctx, len(n.inputs), func(ctx context.Context, i int) error {
		_, err := n.inputs[i].node.local(ctx, n.inputs[i].index)
		return err
	})
}
