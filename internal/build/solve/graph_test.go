package solve_test

import (
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/moby/buildkit/solver/errdefs"
	"github.com/moby/buildkit/solver/pb"
	"github.com/opencontainers/go-digest"

	"corten.dev/corten/internal/build"
	"corten.dev/corten/internal/build/solve"
	"corten.dev/corten/internal/errs"
)

func TestLoadRefuses(t *testing.T) {
	exec := func(change func(*pb.ExecOp)) func(*graph) *pb.Definition {
		return func(g *graph) *pb.Definition {
			op := &pb.ExecOp{Meta: &pb.Meta{Args: []string{"true"}}, Mounts: []*pb.Mount{{Input: -1, Dest: "/"}}}
			change(op)
			g.op(&pb.Op{Op: &pb.Op_Exec{Exec: op}})
			return g.end()
		}
	}
	for _, c := range []struct {
		name, want string
		make       func(g *graph) *pb.Definition
	}{
		{"nothing", "invalid empty definition", func(*graph) *pb.Definition { return nil }},
		{"no op", "invalid empty definition", func(g *graph) *pb.Definition { return &g.def }},
		{"one op", "invalid LLB with 1 vertexes", func(g *graph) *pb.Definition { g.step("a"); return &g.def }},
		{"no end", "invalid LLB with no inputs on last vertex", func(g *graph) *pb.Definition { g.step("b", g.step("a")); return &g.def }},
		{"rubbish", "parse llb proto op", func(g *graph) *pb.Definition { g.def.Def = [][]byte{[]byte("rubbish"), {1}}; return &g.def }},
		{"missing input", "invalid missing input digest", func(g *graph) *pb.Definition {
			in := g.step("a")
			g.def.Def = nil
			g.step("b", in)
			return g.end()
		}},
		{"negative index", "output index -1", func(g *graph) *pb.Definition { in := g.step("a"); in.Index = -1; g.step("b", in); return g.end() }},
		{"huge index", "output index 1000000", func(g *graph) *pb.Definition { in := g.step("a"); in.Index = 1000000; g.step("b", in); return g.end() }},
		{"unknown op", "unknown kind", func(g *graph) *pb.Definition {
			g.op(&pb.Op{Inputs: []*pb.Input{g.step("a")}})
			g.step("x", g.last)
			return g.end()
		}},
		{"no args", "no args", exec(func(op *pb.ExecOp) { op.Meta.Args = nil })},
		{"no meta", "no meta", exec(func(op *pb.ExecOp) { op.Meta = nil })},
		{"no mounts", "no mounts", exec(func(op *pb.ExecOp) { op.Mounts = nil })},
		{"no root", "no rootfs", exec(func(op *pb.ExecOp) { op.Mounts[0].Dest = "/x" })},
		{"mount of no input", "invalid mount input index 3", exec(func(op *pb.ExecOp) { op.Mounts[0].Input = 3 })},
		{"mount below none", "invalid mount input index -2", exec(func(op *pb.ExecOp) { op.Mounts[0].Input = -2 })},
		{"diff of no input", "invalid diff input index 1", func(g *graph) *pb.Definition {
			g.op(&pb.Op{Inputs: []*pb.Input{g.step("a")}, Op: &pb.Op_Diff{Diff: &pb.DiffOp{Lower: &pb.LowerDiffInput{Input: -1}, Upper: &pb.UpperDiffInput{Input: 1}}}})
			return g.end()
		}},
		{"source with an input", "invalid source op with 1 inputs", func(g *graph) *pb.Definition {
			g.op(&pb.Op{Inputs: []*pb.Input{g.step("a")}, Op: &pb.Op_Source{Source: &pb.SourceOp{Identifier: "local://x"}}})
			return g.end()
		}},
		{"passthrough of no input", "invalid passthrough output input index 7", func(g *graph) *pb.Definition {
			g.op(&pb.Op{Inputs: []*pb.Input{g.step("a")}, Op: &pb.Op_Passthrough{Passthrough: &pb.PassthroughOp{Id: "x", Outputs: []int64{7}}}})
			return g.end()
		}},
		{"location of no source", "invalid source index 2", func(g *graph) *pb.Definition {
			in := g.step("a")
			g.def.Source = &pb.Source{Locations: map[string]*pb.Locations{in.Digest: {Locations: []*pb.Location{{SourceIndex: 2}}}}}
			return g.end()
		}},
		{"too many", "more than 16384", func(g *graph) *pb.Definition {
			g.def.Def = make([][]byte, 20000)
			return &g.def
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := solve.Load(c.make(newGraph()))
			if err == nil || !strings.Contains(err.Error(), c.want) || !errors.Is(err, errs.Invalid) {
				t.Errorf("got %v, want %q", err, c.want)
			}
		})
	}
}

func TestNames(t *testing.T) {
	g := newGraph()
	src := g.source("docker-image://docker.io/library/busybox")
	file := g.op(&pb.Op{Inputs: []*pb.Input{src}, Op: &pb.Op_File{File: &pb.FileOp{Actions: []*pb.FileAction{
		{Action: &pb.FileAction_Mkdir{Mkdir: &pb.FileActionMkDir{Path: "/d"}}},
		{Action: &pb.FileAction_Mkfile{Mkfile: &pb.FileActionMkFile{Path: "/f"}}},
		{Action: &pb.FileAction_Rm{Rm: &pb.FileActionRm{Path: "/r"}}},
		{Action: &pb.FileAction_Symlink{Symlink: &pb.FileActionSymlink{Oldpath: "/o", Newpath: "/n"}}},
		{Action: &pb.FileAction_Copy{Copy: &pb.FileActionCopy{Src: "/a", Dest: "/b"}}},
	}}}})
	run := g.step("sh -c true", file)
	g.meta(run).Description["llb.customname"] = "[1/2] RUN true"
	merge := g.op(&pb.Op{Inputs: []*pb.Input{src, run}, Op: &pb.Op_Merge{Merge: &pb.MergeOp{Inputs: []*pb.MergeInput{{Input: 0}, {Input: 1}}}}})
	g.op(&pb.Op{Inputs: []*pb.Input{merge}, Op: &pb.Op_Diff{Diff: &pb.DiffOp{Lower: &pb.LowerDiffInput{Input: -1}, Upper: &pb.UpperDiffInput{Input: 0}}}})
	got, err := solve.Load(g.end())
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		"docker-image://docker.io/library/busybox",
		"mkdir /d, mkfile /f, rm /r, symlink /n -> /o, copy /a /b",
		"[1/2] RUN true",
		"merge (docker-image://docker.io/library/busybox, [1/2] RUN true)",
		"diff scratch -> (merge (docker-image://docker.io/library/busybox, [1/2] RUN true))",
	}
	for i, v := range got.Vertices {
		if v.Name != want[i] {
			t.Errorf("%d is %q, want %q", i, v.Name, want[i])
		}
	}
	if got.Root.Vertex != got.Vertices[4] || got.Root.Index != 0 {
		t.Error("the root is another")
	}
}

// Each merge has the name of the one below twice: forty of them would have a name of a terabyte.
func TestNamesDoNotExplode(t *testing.T) {
	g := newGraph()
	in := g.step("x")
	for range 40 {
		in = g.op(&pb.Op{Inputs: []*pb.Input{in, in}, Op: &pb.Op_Merge{Merge: &pb.MergeOp{Inputs: []*pb.MergeInput{{Input: 0}, {Input: 1}}}}})
	}
	got, err := solve.Load(g.end())
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range got.Vertices {
		if len(v.Name) > 5000 {
			t.Fatal("a name of ", len(v.Name), " bytes")
		}
	}
}

func TestFailureKnowsItsLines(t *testing.T) {
	w := newWorld(t)
	w.on("bad", act{run: fails(errors.New("exit code: 1"))})
	g := newGraph()
	bad := g.step("bad")
	g.def.Source = &pb.Source{
		Infos: []*pb.SourceInfo{{Filename: "Dockerfile", Data: []byte("FROM scratch\nRUN bad\n")}},
		Locations: map[string]*pb.Locations{bad.Digest: {Locations: []*pb.Location{
			{SourceIndex: 0, Ranges: []*pb.Range{{Start: &pb.Position{Line: 2}, End: &pb.Position{Line: 2}}}},
		}}},
	}
	_, err := w.build(g.end())
	sources := errdefs.Sources(err)
	if len(sources) != 1 || sources[0].Info.Filename != "Dockerfile" || sources[0].Ranges[0].Start.Line != 2 {
		t.Fatalf("%v: %v", err, sources)
	}
	var vertex *errdefs.VertexError
	var step *build.StepError
	if !errors.As(err, &vertex) || vertex.Digest != bad.Digest || !errors.As(err, &step) || step.ExitCode != -1 {
		t.Errorf("%v %v", vertex, step)
	}
	var out strings.Builder
	if err := sources[0].Print(&out); err != nil || !strings.Contains(out.String(), ">>> RUN bad") {
		t.Error(out.String(), err)
	}
}

func TestEntitlements(t *testing.T) {
	host := func(op *pb.ExecOp) { op.Network = pb.NetMode_HOST }
	insecure := func(op *pb.ExecOp) { op.Security = pb.SecurityMode_INSECURE }
	gpu := func(op *pb.ExecOp) { op.CdiDevices = []*pb.CDIDevice{{Name: "vendor.com/gpu=0"}} }
	two := func(op *pb.ExecOp) { op.CdiDevices = []*pb.CDIDevice{{Name: "a.com/x=0"}, {Name: "b.com/y=1"}} }
	for _, c := range []struct {
		op      func(*pb.ExecOp)
		granted []string
		want    string
	}{
		{host, nil, "network.host is not allowed"},
		{host, []string{"security.insecure"}, "network.host is not allowed"},
		{host, []string{"network.host"}, ""},
		{insecure, []string{"network.host"}, "security.insecure is not allowed"},
		{insecure, []string{"security.insecure"}, ""},
		{gpu, nil, "device vendor.com/gpu=0 is requested by the build but not allowed"},
		{gpu, []string{"device"}, ""},
		{gpu, []string{"device=vendor.com/gpu=0"}, ""},
		{gpu, []string{"device=vendor.com/gpu"}, ""},
		{gpu, []string{"device=vendor.com/gpu=1"}, "device vendor.com/gpu=0 is requested"},
		{gpu, []string{"device=other.com/real=3,alias=vendor.com/gpu=0"}, ""},
		{two, nil, "devices a.com/x=0, b.com/y=1 are requested by the build but not allowed"},
	} {
		w := newWorld(t)
		g := newGraph()
		op := &pb.ExecOp{Meta: &pb.Meta{Args: []string{"x"}}, Mounts: []*pb.Mount{{Input: -1, Dest: "/"}}}
		c.op(op)
		g.op(&pb.Op{Op: &pb.Op_Exec{Exec: op}})
		_, err := w.build(g.end(), solve.JobOptions{Entitlements: c.granted})
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want) || !errors.Is(err, errs.Forbidden)) {
			t.Errorf("%v with %v: %v, want %q", op, c.granted, err, c.want)
		}
	}
}

// A definition comes out of a file that a step made; what it makes is shared with the build around it by its records.
func TestBuildInBuild(t *testing.T) {
	w := newWorld(t)
	inner := newGraph()
	inner.step("inner", inner.step("base"))
	data, err := inner.end().MarshalVT()
	if err != nil {
		t.Fatal(err)
	}
	w.trees.dir = t.TempDir()
	if err := os.WriteFile(w.trees.dir+"/buildkit.llb.definition", data, 0o644); err != nil {
		t.Fatal(err)
	}
	g := newGraph()
	made := g.step("generator", g.step("base"))
	nested := g.op(buildOp(made))
	g.step("after", nested)
	j := w.job()
	res, err := j.Solve(t.Context(), g.end())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := res.Bring(t.Context()); err != nil {
		t.Fatal(err)
	}
	if w.ran("inner") != 1 || w.ran("base") != 1 || w.ran("after") != 1 {
		t.Error("ran", w.runs)
	}
	var names []string
	if err := res.Walk(func(s solve.Step) error { names = append(names, s.Vertex.Name); return nil }); err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(names, " "); got != "base generator base inner build after" {
		t.Error(got)
	}
	// all of it from the cache, the layers of the nested one's result gone
	w.trees.drop(digest.FromString("inner0 "+string(digest.FromString("base0"))), digest.FromString("after0 "+string(digest.FromString("inner0 "+string(digest.FromString("base0"))))))
	w.mustBuild(&g.def)
	if w.ran("inner") != 2 || w.ran("after") != 2 || w.ran("generator") != 1 {
		t.Error("ran", w.runs)
	}
}

func buildOp(in *pb.Input) *pb.Op {
	return &pb.Op{Inputs: []*pb.Input{in}, Op: &pb.Op_Build{Build: &pb.BuildOp{Builder: -1, Inputs: map[string]*pb.BuildInput{pb.LLBDefinitionInput: {Input: 0}}}}}
}

// The file of a context has a definition that builds the file of the context.
func TestBuildOfItselfEnds(t *testing.T) {
	w := newWorld(t)
	w.trees.dir = t.TempDir()
	g := newGraph()
	g.op(buildOp(g.source("local://context")))
	def := g.end()
	data, err := def.MarshalVT()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(w.trees.dir+"/buildkit.llb.definition", data, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := w.build(def); err == nil || !strings.Contains(err.Error(), "nested deeper than 8") {
		t.Error(err)
	}
}

func TestPassthrough(t *testing.T) {
	w := newWorld(t)
	g := newGraph()
	a, b := g.step("a"), g.step("b")
	p := g.op(&pb.Op{Inputs: []*pb.Input{a, b}, Op: &pb.Op_Passthrough{Passthrough: &pb.PassthroughOp{Id: "x", Outputs: []int64{1, 0}}}})
	g.step("end", &pb.Input{Digest: p.Digest, Index: 0}, &pb.Input{Digest: p.Digest, Index: 1})
	out := w.mustBuild(g.end())
	if want := digest.FromString("end0 " + string(digest.FromString("b0")) + " " + string(digest.FromString("a0"))); out.Chain != want {
		t.Error("not the inputs in the order of the outputs")
	}
	w.trees.drop()
	w.on("end", act{})
	if w.mustBuild(&g.def).Chain != out.Chain || w.ran("a") != 2 {
		t.Error("ran", w.runs)
	}
}

func TestOutputThatIsNotThere(t *testing.T) {
	w := newWorld(t)
	g := newGraph()
	in := g.step("a")
	g.step("b", &pb.Input{Digest: in.Digest, Index: 4})
	if _, err := w.build(g.end()); err == nil || !strings.Contains(err.Error(), "invalid output index 4 of a, which has 1") {
		t.Error(err)
	}
	w.on("two", act{outs: 2})
	g = newGraph()
	two := g.step("two")
	g.step("b", &pb.Input{Digest: two.Digest, Index: 1})
	if out := w.mustBuild(g.end()); out.Chain != digest.FromString("b0 "+string(digest.FromString("two1"))) {
		t.Error("not the second output")
	}
}

func TestEmptyDefinitionIsTheEmptyTree(t *testing.T) {
	w := newWorld(t)
	for _, def := range []*pb.Definition{nil, {}} {
		if out, err := w.build(def); err != nil || out.Chain != "" || out.Files != nil {
			t.Error(out, err)
		}
	}
}

func FuzzLoad(f *testing.F) {
	for _, n := range []int{1, 3} {
		data, err := chain(n).MarshalVT()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	g := newGraph()
	a, b := g.step("a"), g.step("b")
	g.op(&pb.Op{Inputs: []*pb.Input{a, b}, Op: &pb.Op_Merge{Merge: &pb.MergeOp{Inputs: []*pb.MergeInput{{Input: 0}, {Input: 1}}}}})
	data, err := g.end().MarshalVT()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(data)
	f.Fuzz(func(t *testing.T, data []byte) {
		var def pb.Definition
		if def.UnmarshalVT(data) != nil {
			return
		}
		got, err := solve.Load(&def)
		if err != nil {
			return
		}
		at := map[*build.Vertex]int{}
		for i, v := range got.Vertices {
			at[v] = i
			for _, in := range v.Inputs {
				if k, ok := at[in.Vertex]; !ok || k >= i {
					t.Fatal("an input comes after who needs it")
				}
			}
			got.Locations(v.Digest)
		}
		if got.Root.Vertex != got.Vertices[len(got.Vertices)-1] {
			t.Fatal("the root is not the last")
		}
	})
}
