package solve

import (
	"context"
	"fmt"
	"sync"

	"github.com/moby/buildkit/solver/pb"
	"github.com/opencontainers/go-digest"

	"corten.dev/corten/internal/build"
	"corten.dev/corten/internal/errs"
)

// maxDepth bounds builds in builds: a definition may lie in a context that has the same definition in it, and so on.
const maxDepth = 8

// scope is the nodes of one job; a build in a build has a scope of its own, so that it can never wait for itself.
type scope struct {
	job   *Job
	depth int

	mu    sync.Mutex // guards nodes
	nodes map[nodeID]*node
}

// nodeID names a node: definitions of one job share the vertices that they have in common, unless one of them wants them, or what is below them, without the cache.
type nodeID struct {
	digest digest.Digest
	fresh  digest.Digest // which vertices here and below are to be run; "" for none
}

// solve loads a definition into the scope.
func (s *scope) solve(ctx context.Context, def *pb.Definition) (*Result, error) {
	j := s.job
	if j.ctx.Err() != nil {
		return nil, context.Cause(j.ctx)
	}
	g, err := load(def, func(op *pb.Op) (*pb.Op, error) {
		if j.opts.SourcePolicy == nil {
			return op, nil
		}
		return j.opts.SourcePolicy(ctx, op)
	})
	if err != nil {
		return nil, fmt.Errorf("failed to load LLB: %w", err)
	}
	for _, v := range g.Vertices {
		if err := j.grants.check(v); err != nil {
			return nil, fmt.Errorf("failed to load LLB: %w", located(def.Source, v.Digest, err))
		}
	}
	nodes, err := s.add(g)
	if err != nil {
		return nil, err
	}
	j.announce(nodes)
	root := nodes[len(nodes)-1] // what everything else is an input of comes last
	root.want(g.Root.Index)
	return &Result{job: j, graph: g, root: root, index: g.Root.Index}, nil
}

// add gives the nodes of a graph in its order; those that are there already are shared.
func (s *scope) add(g *Graph) ([]*node, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := make([]*node, len(g.Vertices))
	at := make(map[*build.Vertex]*node, len(g.Vertices))
	for i, v := range g.Vertices {
		inputs := make([]edge, len(v.Inputs))
		for k, in := range v.Inputs {
			inputs[k] = edge{at[in.Vertex], in.Index}
		}
		id := nodeID{digest: v.Digest, fresh: freshOf(v, inputs)}
		n := s.nodes[id]
		if n == nil {
			var err error
			if n, err = s.newNode(g, v, id, inputs); err != nil {
				return nil, err
			}
			s.nodes[id] = n
		}
		for _, in := range n.inputs {
			in.node.want(in.index)
		}
		all[i], at[v] = n, n
	}
	return all, nil
}

func freshOf(v *build.Vertex, inputs []edge) digest.Digest {
	fresh := v.Meta.IgnoreCache
	for _, in := range inputs {
		fresh = fresh || in.node.id.fresh != ""
	}
	if !fresh {
		return ""
	}
	text := fmt.Sprint(v.Meta.IgnoreCache)
	for _, in := range inputs {
		text += " " + string(in.node.id.fresh)
	}
	return digest.FromString(text)
}

func (s *scope) newNode(g *Graph, v *build.Vertex, id nodeID, inputs []edge) (*node, error) {
	n := &node{scope: s, job: s.job, id: id, vertex: v, inputs: inputs, voice: newVoice(s.job.rep, v), sources: g.Locations(v.Digest)}
	n.noCache = s.job.opts.NoCache || v.Meta.IgnoreCache
	n.kind = kindOf(v.Op)
	if n.kind == "build" || n.kind == "passthrough" {
		return n, nil
	}
	maker := s.job.solver.opts.Make.of(n.kind)
	if maker == nil {
		return nil, n.failed(errs.New(errs.NotImplemented, "%s: this engine has no steps of the kind %s", v.Name, n.kind))
	}
	op, err := maker(v)
	if err != nil {
		return nil, n.failed(err)
	}
	n.op, n.traits = op, op.Traits()
	return n, nil
}

func (m Makers) of(kind string) build.Maker {
	switch kind {
	case "source":
		return m.Source
	case "exec":
		return m.Exec
	case "file":
		return m.File
	case "merge":
		return m.Merge
	case "diff":
		return m.Diff
	}
	return nil
}
