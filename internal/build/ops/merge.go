package ops

import (
	"context"
	"fmt"
	"sync"

	"github.com/moby/buildkit/solver/pb"
	"github.com/opencontainers/go-digest"

	"corten.dev/corten/internal/build"
	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/snapshot"
)

// Merging lays the layers of one tree on another, by their diff ids: nothing is unpacked that is on disk already, and what a layer deletes or replaces is deleted and replaced in
// what it comes to lie on. A difference is the other way round: the layers that one tree has above another, on nothing.

// mergeOp is a list of trees, the later ones above, by the numbers of the inputs; -1 is the empty tree.
type mergeOp struct {
	o      *Ops
	inputs []int
	wholes
}

// wholes are the checksums of inputs in place, as the key has them.
type wholes struct {
	mu   sync.Mutex
	sums map[int]digest.Digest
}

func (w *wholes) put(i int, sum digest.Digest) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.sums == nil {
		w.sums = map[int]digest.Digest{}
	}
	w.sums[i] = sum
}

func (w *wholes) get(i int) digest.Digest {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.sums[i]
}

// Merge is the maker of merge ops.
func (o *Ops) Merge(v *build.Vertex) (build.Op, error) {
	op, ok := v.Op.GetOp().(*pb.Op_Merge)
	if !ok || op.Merge == nil {
		return nil, errs.New(errs.Invalid, "%s is no merge", v.Name)
	}
	if len(op.Merge.Inputs) < 2 {
		return nil, errs.New(errs.Invalid, "%s: a merge of fewer than two trees", v.Name)
	}
	m := &mergeOp{o: o}
	for _, in := range op.Merge.Inputs {
		if in.Input < -1 || in.Input >= int64(len(v.Inputs)) {
			return nil, errs.New(errs.Invalid, "%s: there is no input %d", v.Name, in.Input)
		}
		m.inputs = append(m.inputs, int(in.Input))
	}
	return m, nil
}

// Traits: only names of files are made, not their content.
func (m *mergeOp) Traits() build.Traits { return build.Traits{} }

// Key is the chains in their order.
func (m *mergeOp) Key(ctx context.Context, _ build.Env, in []build.Output) (digest.Digest, error) {
	return m.o.stackKey(ctx, "merge", m.inputs, in, &m.wholes)
}

// stackKey names an op by the identities of whole trees.
func (o *Ops) stackKey(ctx context.Context, kind string, inputs []int, in []build.Output, seen *wholes) (digest.Digest, error) {
	h := digest.SHA256.Digester()
	fmt.Fprintf(h.Hash(), "corten %s op 1\n", kind)
	for _, i := range inputs {
		id := ""
		if i >= 0 {
			id = string(in[i].Chain)
			if in[i].Files != nil {
				sum, err := o.sums.Files(ctx, in[i].Files, everything)
				if err != nil {
					return "", err
				}
				seen.put(i, sum)
				id = "files " + string(sum)
			}
		}
		fmt.Fprintf(h.Hash(), "%s\n", id)
	}
	return h.Digest(), nil
}

// chainOf gives the layers of an input; a directory in place is made layers.
func (o *Ops) chainOf(ctx context.Context, in []build.Output, i int, seen *wholes, volatile *bool) (snapshot.ChainID, error) {
	if i < 0 {
		return "", nil
	}
	if in[i].Files == nil {
		return in[i].Chain, nil
	}
	out, changed, err := o.tree(ctx, in[i].Files, everything, seen.get(i))
	*volatile = *volatile || changed
	return out.Chain, err
}

// Run stacks.
func (m *mergeOp) Run(ctx context.Context, _ build.Env, in []build.Output) (build.Made, error) {
	var made build.Made
	var top snapshot.ChainID
	for _, i := range m.inputs {
		chain, err := m.o.chainOf(ctx, in, i, &m.wholes, &made.Volatile)
		if err != nil {
			return build.Made{}, err
		}
		if top == "" {
			top = chain
			continue
		}
		layers, err := m.o.above(ctx, chain, "")
		if err != nil {
			return build.Made{}, err
		}
		if top, err = m.o.stack(ctx, top, layers); err != nil {
			return build.Made{}, fmt.Errorf("merge: %w", err)
		}
	}
	made.Outputs = []build.Output{{Chain: top}}
	return made, nil
}

// stack lays layers, lowest first, on a chain.
func (o *Ops) stack(ctx context.Context, on snapshot.ChainID, layers []snapshot.Layer) (snapshot.ChainID, error) {
	for _, l := range layers {
		next, err := o.trees.Stack(ctx, on, l.DiffID, nil, snapshot.Stacking{Relaxed: true})
		if err != nil {
			return "", err
		}
		on = next.Chain
	}
	return on, nil
}

// above lists the layers of a chain down to another one below it, lowest first. errNotAbove when that is not below it.
func (o *Ops) above(ctx context.Context, chain, below snapshot.ChainID) ([]snapshot.Layer, error) {
	var layers []snapshot.Layer
	for chain != below {
		if chain == "" {
			return nil, errNotAbove
		}
		l, err := o.trees.Stat(ctx, chain)
		if err != nil {
			return nil, err
		}
		layers = append(layers, l)
		chain = l.Parent
	}
	for i, j := 0, len(layers)-1; i < j; i, j = i+1, j-1 {
		layers[i], layers[j] = layers[j], layers[i]
	}
	return layers, nil
}

var errNotAbove = errs.New(errs.Invalid, "the one chain does not stand on the other")

// diffOp is what upper has that lower has not; -1 is the empty tree.
type diffOp struct {
	o            *Ops
	lower, upper int
	wholes
}

// Diff is the maker of diff ops.
func (o *Ops) Diff(v *build.Vertex) (build.Op, error) {
	op, ok := v.Op.GetOp().(*pb.Op_Diff)
	if !ok || op.Diff == nil {
		return nil, errs.New(errs.Invalid, "%s is no difference", v.Name)
	}
	d := &diffOp{o: o, lower: -1, upper: -1}
	if op.Diff.Lower != nil {
		d.lower = int(op.Diff.Lower.Input)
	}
	if op.Diff.Upper != nil {
		d.upper = int(op.Diff.Upper.Input)
	}
	for _, i := range []int{d.lower, d.upper} {
		if i < -1 || i >= len(v.Inputs) {
			return nil, errs.New(errs.Invalid, "%s: there is no input %d", v.Name, i)
		}
	}
	return d, nil
}

// Traits: seldom more than names.
func (d *diffOp) Traits() build.Traits { return build.Traits{} }

// Key is the two chains.
func (d *diffOp) Key(ctx context.Context, _ build.Env, in []build.Output) (digest.Digest, error) {
	return d.o.stackKey(ctx, "diff", []int{d.lower, d.upper}, in, &d.wholes)
}

// Run takes the layers above, or compares the trees.
func (d *diffOp) Run(ctx context.Context, _ build.Env, in []build.Output) (made build.Made, err error) {
	lower, err := d.o.chainOf(ctx, in, d.lower, &d.wholes, &made.Volatile)
	if err != nil {
		return build.Made{}, err
	}
	upper, err := d.o.chainOf(ctx, in, d.upper, &d.wholes, &made.Volatile)
	if err != nil {
		return build.Made{}, err
	}
	var chain snapshot.ChainID
	if lower == "" {
		chain = upper
	} else if layers, aerr := d.o.above(ctx, upper, lower); aerr == nil {
		chain, err = d.o.stack(ctx, "", layers)
	} else if aerr == errNotAbove {
		chain, err = d.o.compare(ctx, lower, upper)
	} else {
		err = aerr
	}
	if err != nil {
		return build.Made{}, fmt.Errorf("diff: %w", err)
	}
	made.Outputs = []build.Output{{Chain: chain}}
	return made, nil
}
