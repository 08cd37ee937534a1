package solve

import (
	"context"
	"fmt"
	"os"
	"time"

	"github.com/moby/buildkit/solver/pb"
	"github.com/opencontainers/go-digest"

	"corten.dev/corten/internal/build"
	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/safefs"
)

// nest solves the definition that lies in a file of an input. What it gives is what the vertices of that definition made, each with its own record.
func (n *node) nest(ctx context.Context) (*result, error) {
	if n.scope.depth >= maxDepth {
		return nil, n.failed(errs.New(errs.Invalid, "builds in builds are nested deeper than %d", maxDepth))
	}
	n.voice.begin(time.Now())
	def, err := n.definition(ctx)
	if err != nil {
		return nil, n.ended(ctx, err)
	}
	below := &scope{job: n.job, depth: n.scope.depth + 1, nodes: map[nodeID]*node{}}
	sub, err := below.solve(ctx, def)
	if err != nil {
		return nil, n.ended(ctx, err)
	}
	inner, err := sub.root.result(ctx)
	if err != nil {
		return nil, err
	}
	out, err := sub.root.output(inner, sub.index)
	if err != nil {
		return nil, err
	}
	_, keys := n.inputsNow()
	return &result{key: inner.key, inputs: keys, outputs: []build.Output{out}, alias: []edge{{sub.root, sub.index}}, nested: sub}, nil
}

// definition reads the definition of a build op.
func (n *node) definition(ctx context.Context) (*pb.Definition, error) {
	op := n.vertex.Op.GetBuild()
	name := op.Attrs[pb.AttrLLBDefinitionFilename]
	if name == "" {
		name = pb.LLBDefaultDefinitionFile
	}
	from := n.inputs[op.Inputs[pb.LLBDefinitionInput].Input]
	out, err := from.node.local(ctx, from.index)
	if err != nil {
		return nil, err
	}
	data, err := n.job.solver.readFile(ctx, out, name)
	if err != nil {
		return nil, fmt.Errorf("read the definition of a build: %w", err)
	}
	def := new(pb.Definition)
	if err := def.UnmarshalVT(data); err != nil {
		return nil, errs.New(errs.Invalid, "parse the definition of a build in %s: %w", name, err)
	}
	return def, nil
}

// readFile reads a file of a tree, whose links lead nowhere outside of it.
func (s *Solver) readFile(ctx context.Context, out build.Output, name string) ([]byte, error) {
	if out.Files != nil {
		root, err := os.Open(fmt.Sprintf("/proc/self/fd/%d", out.Files.Root.Fd()))
		if err != nil {
			return nil, err
		}
		defer root.Close()
		return safefs.ReadFile(root, name, maxDefinition)
	}
	if out.Chain == "" {
		return nil, errs.New(errs.NotFound, "%s: no such file in an empty tree", name)
	}
	tree, err := s.opts.Trees.View(ctx, out.Chain)
	if err != nil {
		return nil, err
	}
	defer tree.Close()
	return safefs.ReadFile(tree.Root, name, maxDefinition)
}

// pass gives outputs of inputs as outputs.
func (n *node) pass() (*result, error) {
	op := n.vertex.Op.GetPassthrough()
	in, keys := n.inputsNow()
	res := &result{inputs: keys, cached: true}
	text := keyFormat + "\npassthrough"
	for _, i := range op.Outputs {
		res.outputs = append(res.outputs, in[i])
		res.alias = append(res.alias, n.inputs[i])
		text += fmt.Sprintf("\n%s %d", keys[i], n.inputs[i].index)
	}
	res.key = digest.FromString(text)
	return res, nil
}
