package solve

import (
	"github.com/moby/buildkit/solver/errdefs"
	"github.com/moby/buildkit/solver/pb"
	"github.com/opencontainers/go-digest"

	"corten.dev/corten/internal/build"
	"corten.dev/corten/internal/errs"
)

// Bounds of a definition. Real ones have some hundred vertices in some hundred kilobytes.
const (
	maxDefinition = 64 << 20
	maxVertices   = 16 << 10
	maxEdges      = 256 << 10
	maxIndex      = 1 << 10
)

// Graph is a verified definition: every input is there, and there is no circle.
type Graph struct {
	// Root is the output that the definition stands for.
	Root build.Edge
	// Vertices are all that Root needs, inputs first.
	Vertices []*build.Vertex

	source *pb.Source
}

// load reads and verifies a definition; each source is as policy makes it. Vertices keep the digests of the definition, which is what inputs, metadata and source locations name them by.
func load(def *pb.Definition, policy func(*pb.Op) (*pb.Op, error)) (*Graph, error) {
	ops, last, err := parse(def)
	if err != nil {
		return nil, err
	}
	if err := checkSource(def.Source); err != nil {
		return nil, err
	}
	l := loader{def: def, ops: ops, policy: policy, vertices: make(map[digest.Digest]*build.Vertex, len(ops))}
	root := ops[last]
	if root.Op != nil || len(root.Inputs) == 0 {
		return nil, errs.New(errs.Invalid, "invalid LLB with no inputs on last vertex")
	}
	top := root.Inputs[0]
	if err := l.visit(digest.Digest(top.Digest)); err != nil {
		return nil, err
	}
	return &Graph{
		Root:     build.Edge{Vertex: l.vertices[digest.Digest(top.Digest)], Index: int(top.Index)},
		Vertices: l.order,
		source:   def.Source,
	}, nil
}

// parse reads the ops of a definition by their digests, and tells the last one.
func parse(def *pb.Definition) (ops map[digest.Digest]*pb.Op, last digest.Digest, err error) {
	if def == nil || len(def.Def) == 0 {
		return nil, "", errs.New(errs.Invalid, "invalid empty definition")
	}
	if len(def.Def) > maxVertices {
		return nil, "", errs.New(errs.Invalid, "invalid definition of %d vertices: more than %d", len(def.Def), maxVertices)
	}
	ops = make(map[digest.Digest]*pb.Op, len(def.Def))
	var size, edges int
	for _, data := range def.Def {
		if size += len(data); size > maxDefinition {
			return nil, "", errs.New(errs.Invalid, "invalid definition: larger than %d MiB", maxDefinition>>20)
		}
		op := new(pb.Op)
		if err := op.UnmarshalVT(data); err != nil {
			return nil, "", errs.New(errs.Invalid, "parse llb proto op: %w", err)
		}
		if edges += len(op.Inputs); edges > maxEdges {
			return nil, "", errs.New(errs.Invalid, "invalid definition: more than %d inputs", maxEdges)
		}
		for i, in := range op.Inputs {
			if in == nil || in.Index < 0 || in.Index > maxIndex {
				return nil, "", errs.New(errs.Invalid, "invalid input %d output index %d", i, in.GetIndex())
			}
		}
		last = digest.FromBytes(data)
		ops[last] = op
	}
	if len(ops) < 2 {
		return nil, "", errs.New(errs.Invalid, "invalid LLB with %d vertexes", len(ops))
	}
	return ops, last, nil
}

type loader struct {
	def      *pb.Definition
	ops      map[digest.Digest]*pb.Op
	policy   func(*pb.Op) (*pb.Op, error)
	vertices map[digest.Digest]*build.Vertex // nil while its inputs are visited
	order    []*build.Vertex
}

// visit makes the vertex of a digest after those of its inputs, without recursion: a chain may be as long as the definition.
func (l *loader) visit(top digest.Digest) error {
	stack := []digest.Digest{top}
	for len(stack) > 0 {
		dgst := stack[len(stack)-1]
		op, ok := l.ops[dgst]
		if !ok {
			return errs.New(errs.Invalid, "invalid missing input digest %s", dgst)
		}
		if l.vertices[dgst] != nil {
			stack = stack[:len(stack)-1]
			continue
		}
		l.vertices[dgst] = nil
		ready := true
		for _, in := range op.Inputs {
			below, begun := l.vertices[digest.Digest(in.Digest)]
			if below != nil {
				continue
			}
			if begun {
				return errs.New(errs.Invalid, "invalid definition: %s is an input of itself", in.Digest)
			}
			ready = false
			stack = append(stack, digest.Digest(in.Digest))
		}
		if !ready {
			continue
		}
		v, err := l.vertex(dgst, op)
		if err != nil {
			return err
		}
		l.vertices[dgst] = v
		l.order = append(l.order, v)
		stack = stack[:len(stack)-1]
	}
	return nil
}

func (l *loader) vertex(dgst digest.Digest, op *pb.Op) (*build.Vertex, error) {
	if err := checkOp(op); err != nil {
		return nil, err
	}
	if op.GetSource() != nil {
		var err error
		if op, err = l.policy(op); err != nil {
			return nil, located(l.def.Source, dgst, err)
		}
		if op.GetSource() == nil || len(op.Inputs) > 0 {
			return nil, errs.New(errs.Invalid, "a source policy made something else of a source")
		}
	}
	meta := l.def.Metadata[string(dgst)]
	if meta == nil {
		meta = &pb.OpMetadata{}
	}
	v := &build.Vertex{Digest: dgst, Op: op, Meta: meta, Inputs: make([]build.Edge, len(op.Inputs))}
	for i, in := range op.Inputs {
		v.Inputs[i] = build.Edge{Vertex: l.vertices[digest.Digest(in.Digest)], Index: int(in.Index)}
	}
	v.Name = nameOf(v)
	return v, nil
}

// checkSource verifies that locations point into the sources that are there.
func checkSource(src *pb.Source) error {
	for dgst, locs := range src.GetLocations() {
		for i, loc := range locs.GetLocations() {
			if loc == nil {
				return errs.New(errs.Invalid, "invalid nil source location %d for vertex %s", i, dgst)
			}
			if loc.SourceIndex < 0 || int(loc.SourceIndex) >= len(src.Infos) {
				return errs.New(errs.Invalid, "invalid source index %d for vertex %s", loc.SourceIndex, dgst)
			}
		}
	}
	return nil
}

// Locations tells where a vertex comes from: lines of a Dockerfile.
func (g *Graph) Locations(dgst digest.Digest) []*errdefs.Source { return locations(g.source, dgst) }

// located gives the refusal of a vertex the lines that it comes from.
func located(src *pb.Source, dgst digest.Digest, err error) error {
	for _, at := range locations(src, dgst) {
		err = errdefs.WithSource(err, at)
	}
	return err
}

func locations(src *pb.Source, dgst digest.Digest) []*errdefs.Source {
	var all []*errdefs.Source
	for _, loc := range src.GetLocations()[string(dgst)].GetLocations() {
		info := src.Infos[loc.SourceIndex]
		if info == nil || len(loc.Ranges) == 0 {
			continue
		}
		all = append(all, &errdefs.Source{Info: info, Ranges: loc.Ranges})
	}
	return all
}
