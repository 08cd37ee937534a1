package solve

import (
	"context"

	"corten.dev/corten/internal/build"
)

// Result is one output of a graph.
type Result struct {
	job   *Job
	graph *Graph
	root  *node // nil for the empty tree
	index int
}

// Graph is the definition that the result is of; nil for the empty tree.
func (r *Result) Graph() *Graph { return r.graph }

// Evaluate gives the output. Its layers need not be here: Fetch may bring them, Bring does in any case.
func (r *Result) Evaluate(ctx context.Context) (build.Output, error) {
	if r.root == nil {
		return build.Output{}, nil
	}
	ctx, done := r.job.join(ctx)
	defer done()
	res, err := r.root.result(ctx)
	if err != nil {
		return build.Output{}, err
	}
	return r.root.output(res, r.index)
}

// Bring evaluates, and brings the layers here. They stay until the job is closed.
func (r *Result) Bring(ctx context.Context) (build.Output, error) {
	if r.root == nil {
		return build.Output{}, nil
	}
	ctx, done := r.job.join(ctx)
	defer done()
	return r.root.local(ctx, r.index)
}

// Walk gives each vertex that was evaluated for this result, inputs first, nested builds included.
func (r *Result) Walk(fn func(Step) error) error {
	if r.root == nil {
		return nil
	}
	seen := map[*node]bool{}
	var visit func(n *node) error
	visit = func(n *node) error {
		if seen[n] {
			return nil
		}
		seen[n] = true
		for _, in := range n.inputs {
			if err := visit(in.node); err != nil {
				return err
			}
		}
		res := n.latest()
		if res == nil {
			return nil
		}
		if res.nested != nil {
			if err := visit(res.nested.root); err != nil {
				return err
			}
		}
		return fn(Step{
			Vertex: n.vertex, Source: n.traits.Source, Key: res.key, Inputs: res.inputs, Outputs: res.outputs,
			Cached: res.cached, Started: res.started, Completed: res.completed, Taken: res.taken, Loose: res.loose, Imported: res.imported,
		})
	}
	return visit(r.root)
}
