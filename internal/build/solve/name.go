package solve

import (
	"strings"

	"github.com/moby/buildkit/solver/pb"

	"corten.dev/corten/internal/build"
	"corten.dev/corten/internal/errs"
)

// maxName bounds a name that is made of others' names: merges of merges would double it at each step.
const maxName = 4 << 10

// nameOf is what people see: the name that the frontend gave, or what BuildKit calls such an op.
func nameOf(v *build.Vertex) string {
	if name := v.Meta.Description["llb.customname"]; name != "" {
		return name
	}
	name := opName(v)
	if len(name) > maxName {
		name = strings.ToValidUTF8(name[:maxName], "") + "…"
	}
	return name
}

func opName(v *build.Vertex) string {
	switch op := v.Op.Op.(type) {
	case *pb.Op_Source:
		return op.Source.Identifier
	case *pb.Op_Exec:
		return strings.Join(op.Exec.Meta.Args, " ")
	case *pb.Op_File:
		return fileName(op.File.Actions)
	case *pb.Op_Build:
		return "build"
	case *pb.Op_Merge:
		names := make([]string, len(v.Inputs))
		for i, in := range v.Inputs {
			names[i] = in.Vertex.Name
		}
		return "merge (" + strings.Join(names, ", ") + ")"
	case *pb.Op_Diff:
		return "diff " + sideName(v, op.Diff.Lower.Input) + " -> " + sideName(v, op.Diff.Upper.Input)
	case *pb.Op_Passthrough:
		return "passthrough " + op.Passthrough.Id
	}
	return "unknown"
}

func sideName(v *build.Vertex, input int64) string {
	if input == int64(pb.Empty) {
		return "scratch"
	}
	return "(" + v.Inputs[input].Vertex.Name + ")"
}

func fileName(actions []*pb.FileAction) string {
	names := make([]string, 0, len(actions))
	for _, action := range actions {
		switch a := action.GetAction().(type) {
		case *pb.FileAction_Mkdir:
			names = append(names, "mkdir "+a.Mkdir.GetPath())
		case *pb.FileAction_Mkfile:
			names = append(names, "mkfile "+a.Mkfile.GetPath())
		case *pb.FileAction_Symlink:
			names = append(names, "symlink "+a.Symlink.GetNewpath()+" -> "+a.Symlink.GetOldpath())
		case *pb.FileAction_Rm:
			names = append(names, "rm "+a.Rm.GetPath())
		case *pb.FileAction_Copy:
			names = append(names, "copy "+a.Copy.GetSrc()+" "+a.Copy.GetDest())
		}
	}
	return strings.Join(names, ", ")
}

// kindOf is the kind of an op, as keys have it; "" for what there is no such op.
func kindOf(op *pb.Op) string {
	switch op.Op.(type) {
	case *pb.Op_Source:
		return "source"
	case *pb.Op_Exec:
		return "exec"
	case *pb.Op_File:
		return "file"
	case *pb.Op_Build:
		return "build"
	case *pb.Op_Merge:
		return "merge"
	case *pb.Op_Diff:
		return "diff"
	case *pb.Op_Passthrough:
		return "passthrough"
	}
	return ""
}

// checkOp verifies the shape of an op: that its parts are there, and that the inputs it names are inputs. What they mean is for those who do the work.
func checkOp(op *pb.Op) error {
	inputs := int64(len(op.Inputs))
	input := func(what string, i, least int64) error {
		if i < least || i >= inputs {
			return errs.New(errs.Invalid, "invalid %s input index %d", what, i)
		}
		return nil
	}
	switch o := op.Op.(type) {
	case *pb.Op_Source:
		return checkSourceOp(o.Source, inputs)
	case *pb.Op_Exec:
		return checkExec(o.Exec, input)
	case *pb.Op_File:
		if o.File == nil || len(o.File.Actions) == 0 {
			return errs.New(errs.Invalid, "invalid file op with no actions")
		}
	case *pb.Op_Build:
		return checkBuild(o.Build, input)
	case *pb.Op_Merge:
		if o.Merge == nil || int64(len(o.Merge.Inputs)) != inputs {
			return errs.New(errs.Invalid, "invalid merge op with %d inner inputs and %d outer inputs", len(o.Merge.GetInputs()), inputs)
		}
		for _, in := range o.Merge.Inputs {
			if err := input("merge", in.GetInput(), 0); err != nil {
				return err
			}
		}
	case *pb.Op_Diff:
		if o.Diff == nil || o.Diff.Lower == nil || o.Diff.Upper == nil {
			return errs.New(errs.Invalid, "invalid diff op with nil lower or upper input")
		}
		for _, in := range []int64{o.Diff.Lower.Input, o.Diff.Upper.Input} {
			if err := input("diff", in, int64(pb.Empty)); err != nil {
				return err
			}
		}
	case *pb.Op_Passthrough:
		return checkPassthrough(o.Passthrough, input)
	default:
		return errs.New(errs.Invalid, "invalid op of an unknown kind")
	}
	return nil
}

func checkSourceOp(src *pb.SourceOp, inputs int64) error {
	if src == nil || src.Identifier == "" {
		return errs.New(errs.Invalid, "invalid source op with no identifier")
	}
	if inputs != 0 {
		return errs.New(errs.Invalid, "invalid source op with %d inputs", inputs)
	}
	return nil
}

func checkExec(exec *pb.ExecOp, input func(string, int64, int64) error) error {
	if exec == nil || exec.Meta == nil {
		return errs.New(errs.Invalid, "invalid exec op with no meta")
	}
	if len(exec.Meta.Args) == 0 {
		return errs.New(errs.Invalid, "invalid exec op with no args")
	}
	if len(exec.Mounts) == 0 {
		return errs.New(errs.Invalid, "invalid exec op with no mounts")
	}
	root := false
	for _, m := range exec.Mounts {
		if m == nil {
			return errs.New(errs.Invalid, "invalid exec op with a mount that is nothing")
		}
		root = root || m.Dest == pb.RootMount
		if err := input("mount", m.Input, int64(pb.Empty)); err != nil {
			return err
		}
	}
	if !root {
		return errs.New(errs.Invalid, "invalid exec op with no rootfs")
	}
	return nil
}

func checkBuild(op *pb.BuildOp, input func(string, int64, int64) error) error {
	if op == nil || op.Builder != int64(pb.LLBBuilder) {
		return errs.New(errs.Invalid, "only LLB builder is currently allowed")
	}
	def, ok := op.Inputs[pb.LLBDefinitionInput]
	if !ok {
		return errs.New(errs.Invalid, "no llb definition input %s found", pb.LLBDefinitionInput)
	}
	return input("build", def.GetInput(), 0)
}

func checkPassthrough(op *pb.PassthroughOp, input func(string, int64, int64) error) error {
	if op == nil || op.Id == "" {
		return errs.New(errs.Invalid, "invalid passthrough op with no id")
	}
	if len(op.Outputs) == 0 {
		return errs.New(errs.Invalid, "invalid passthrough op with no outputs")
	}
	for _, in := range op.Outputs {
		if err := input("passthrough output", in, 0); err != nil {
			return err
		}
	}
	return nil
}
