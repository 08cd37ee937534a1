package ops

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/moby/buildkit/client/llb"
	"github.com/moby/buildkit/solver/pb"
	"github.com/opencontainers/go-digest"
	bsd "github.com/tonistiigi/dchapes-mode"
	"golang.org/x/sys/unix"

	"corten.dev/corten/internal/build"
	"corten.dev/corten/internal/build/checksum/pick"
)

func (l *lab) key(op build.Op, in ...build.Output) digest.Digest {
	l.t.Helper()
	k, err := op.Key(context.Background(), build.Env{}, in)
	if err != nil {
		l.t.Fatal(err)
	}
	return k
}

// A key is what a step reads: content from wherever it comes, not places, times or what lies beside it.
func TestKeys(t *testing.T) {
	l := newLab(t)
	base, other := l.tree("b=1"), l.tree("b=2")
	one, two := t.TempDir(), t.TempDir()
	put(t, one, "src/app/main=M", "readme=1")
	put(t, two, "build/out/app/main=M", "readme=2")
	os.Chtimes(two+"/build/out/app/main", time.Unix(1, 0), time.Unix(1, 0))
	cp := func(src, dst string, info *llb.CopyInfo, opts ...llb.CopyOption) build.Op {
		return l.op(llb.Copy(llb.Local("x"), src, dst, append([]llb.CopyOption{info}, opts...)...), false)
	}
	stage := l.tree("src/app/main=M", "else=3")
	want := l.key(cp("/src/app", "/to/", dockerfile()), base, l.context(one))
	for name, got := range map[string]digest.Digest{
		"again":               l.key(cp("/src/app", "/to/", dockerfile()), base, l.context(one)),
		"another place":       l.key(cp("/build/out/app", "/to/", dockerfile()), base, l.context(two)),
		"a stage":             l.key(cp("/src/app", "/to/", dockerfile()), base, stage),
		"without what it has": l.key(cp("/src/app", "/to/", dockerfile()), base, l.tree("src/app/main=M")),
	} {
		if got != want {
			t.Errorf("%s: another key", name)
		}
	}
	for name, got := range map[string]digest.Digest{
		"base":        l.key(cp("/src/app", "/to/", dockerfile()), other, l.context(one)),
		"content":     l.key(cp("/src/app", "/to/", dockerfile()), base, l.tree("src/app/main=X")),
		"name":        l.key(cp("/src/app", "/to/", dockerfile()), base, l.tree("src/app/man=M")),
		"destination": l.key(cp("/src/app", "/t/", dockerfile()), base, l.context(one)),
		"chmod":       l.key(cp("/src/app", "/to/", dockerfile(mode("600"))), base, l.context(one)),
		"owner":       l.key(cp("/src/app", "/to/", dockerfile(), llb.WithUser("5")), base, l.context(one)),
		"itself":      l.key(cp("/src/app", "/to/", &llb.CopyInfo{}), base, l.context(one)),
	} {
		if got == want {
			t.Errorf("another %s: the same key", name)
		}
	}
	// A name of an owner that is looked up in another tree than the one it works in.
	named := func(passwd string) digest.Digest {
		op := &pb.Op{Inputs: make([]*pb.Input, 2), Op: &pb.Op_File{File: &pb.FileOp{Actions: []*pb.FileAction{{Input: 0, SecondaryInput: -1, Output: 0, Action: &pb.FileAction_Mkdir{Mkdir: &pb.FileActionMkDir{
			Path: "/d", Mode: 0o755, Timestamp: -1, Owner: &pb.ChownOpt{User: &pb.UserOpt{User: &pb.UserOpt_ByName{ByName: &pb.NamedUserOpt{Name: "web", Input: 1}}}},
		}}}}}}}
		made, err := l.o.File(&build.Vertex{Op: op, Name: "x", Inputs: make([]build.Edge, 2)})
		if err != nil {
			t.Fatal(err)
		}
		users := l.tree("etc/passwd="+passwd, "z=1")
		out := l.must(made, base, users)
		if got := l.show(out.Chain); !strings.Contains(got, "d 755 "+strings.Split(passwd, ":")[2]+":") {
			t.Error(got)
		}
		return l.key(made, base, users)
	}
	if named("web:x:7:8::/:\n") == named("web:x:8:8::/:\n") {
		t.Error("the owner's number does not count")
	}
}

// A chain and a directory of equal content have equal checksums, whatever is chosen of them; and what is copied of a directory is what its checksum says.
func TestChainIsDirectory(t *testing.T) {
	l := newLab(t)
	dir := t.TempDir()
	put(t, dir, "a/b/c=C", "a/d.md=D", "e=E", "f/", "ln=->a/b", "a/up=->../e", "dangling=->none")
	unix.Mkfifo(dir+"/fifo", 0o600)
	unix.Setxattr(dir+"/e", "user.x", []byte("1"), 0)
	os.Chmod(dir+"/a", 0o1770)
	os.Link(dir+"/e", dir+"/f/hard")
	src := l.context(dir)
	ctx := context.Background()
	chain, volatile, err := l.o.Tree(ctx, src.Files, everything)
	if err != nil || volatile {
		t.Fatal(volatile, err)
	}
	for _, sel := range []pick.Selection{
		{Path: "/", Contents: true}, {Path: "/a"}, {Path: "/a", Contents: true}, {Path: "/ln", Follow: true}, {Path: "/ln"}, {Path: "/*", Wildcard: true}, {Path: "/*", Wildcard: true, Follow: true},
		{Path: "/a/*/c", Wildcard: true}, {Path: "/", Contents: true, Exclude: []string{"a/b", "fifo"}}, {Path: "/", Contents: true, Include: []string{"**/*.md"}}, {Path: "/e"}, {Path: "/fifo"},
		{Path: "/a", Exclude: []string{"*", "!b"}}, {Path: "/none*", Wildcard: true},
	} {
		want, err := l.sums.Files(ctx, src.Files, sel)
		if err != nil {
			t.Fatalf("%+v: %v", sel, err)
		}
		got, err := l.sums.Chain(ctx, chain.Chain, sel)
		if err != nil || got != want {
			t.Errorf("%+v: chain %s, directory %s, %v", sel, got, want, err)
		}
		tree, done, err := l.o.openSource(ctx, source{files: src.Files})
		if err != nil {
			t.Fatal(err)
		}
		w, err := l.o.begin(ctx, "")
		if err != nil {
			t.Fatal(err)
		}
		c, err := newCopier(w, &pb.FileActionCopy{Dest: "/n/", CreateDestPath: true, Mode: -1, Timestamp: -1, DirCopyContents: sel.Contents, AllowEmptyWildcard: true}, nil, source{files: src.Files})
		if err != nil {
			t.Fatal(err)
		}
		if got, err = c.all(ctx, tree, sel); err != nil || got != want {
			t.Errorf("%+v: copied %s, checksum %s, %v", sel, got, want, err)
		}
		done()
		w.drop(ctx)
	}
}

// Files that change between the key and the copy, or while they are copied, make the result volatile; it is never called by the key of what was there before.
func TestVolatile(t *testing.T) {
	l := newLab(t)
	dir := t.TempDir()
	put(t, dir, "a/f=1", "a/g=2")
	in := l.context(dir)
	for name, change := range map[string]func(){
		"content": func() { put(t, dir, "a/f=x") },
		"mode":    func() { os.Chmod(dir+"/a/g", 0o600) },
		"new":     func() { put(t, dir, "a/h=3") },
		"gone":    func() { os.Remove(dir + "/a/f") },
	} {
		op := l.op(llb.Copy(llb.Local("x"), "/a", "/n", dockerfile()), true)
		l.key(op, in)
		change()
		made, err := op.Run(context.Background(), build.Env{}, []build.Output{in})
		if err != nil || !made.Volatile {
			t.Errorf("%s: volatile %v, %v", name, made.Volatile, err)
		}
	}
}

// While somebody swaps files, directories, links to the outside and fifos, a copy holds nothing of the outside, and the result is either volatile or just what the key says.
func TestSwaps(t *testing.T) {
	l := newLab(t)
	base := t.TempDir()
	dir := base + "/context"
	put(t, base, "secret/f=outside", "context/d/f=inside", "context/d/s/f=inner", "context/e/f=other")
	os.Symlink(base+"/secret", dir+"/l")
	unix.Mkfifo(dir+"/p", 0o644)
	in := l.context(dir)
	stop := make(chan struct{})
	var wg sync.WaitGroup
	inner, err := os.Open(dir + "/d")
	if err != nil {
		t.Fatal(err)
	}
	defer inner.Close()
	for _, s := range [][2]string{{"d", "l"}, {"e", "d"}, {"p", "e"}} {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
					unix.Renameat2(unix.AT_FDCWD, filepath.Join(dir, s[0]), unix.AT_FDCWD, filepath.Join(dir, s[1]), unix.RENAME_EXCHANGE)
				}
			}
		})
	}
	wg.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				unix.Renameat2(int(inner.Fd()), "f", unix.AT_FDCWD, dir+"/p", unix.RENAME_EXCHANGE)
			}
		}
	})
	whole := 0
	for range 60 {
		op := l.op(llb.Copy(llb.Local("x"), "/", "/n/", dockerfile()).Copy(llb.Local("x"), "/d*", "/m/", dockerfile()), true)
		if _, err := op.Key(context.Background(), build.Env{}, []build.Output{in}); err != nil {
			continue
		}
		made, err := op.Run(context.Background(), build.Env{}, []build.Output{in})
		if err != nil {
			continue
		}
		if !made.Volatile {
			whole++
			got, err := l.sums.Chain(context.Background(), made.Outputs[0].Chain, pick.Selection{Path: "/n/.", Contents: true})
			if want := op.(*fileOp).sources.get(0); err != nil || got != want {
				t.Errorf("the result is kept as %s, and is %s, %v", want, got, err)
			}
		}
		if got := l.show(made.Outputs[0].Chain); strings.Contains(got, "outside") {
			t.Errorf("something came from outside:\n%s", got)
			break
		}
	}
	close(stop)
	wg.Wait()
	t.Log("not volatile:", whole)
}

// Destinations with links and devices in their way stay in the tree and touch nothing on the host.
func TestHostileTarget(t *testing.T) {
	l := newLab(t)
	dir, outside := t.TempDir(), t.TempDir()
	put(t, outside, "victim=safe")
	put(t, dir, "abs=->"+outside, "rel=->../../../../../.."+outside, "file=->"+outside+"/victim", "loop=->loop")
	unix.Mknod(dir+"/dev", unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3)))
	unix.Mkfifo(dir+"/fifo", 0o666)
	base, _, err := l.o.Tree(context.Background(), l.context(dir).Files, everything)
	if err != nil {
		t.Fatal(err)
	}
	src := t.TempDir()
	put(t, src, "victim=evil", "d/victim=evil")
	in := l.context(src)
	local := llb.Local("x")
	for name, a := range map[string]*llb.FileAction{
		"copy abs":   llb.Copy(local, "/victim", "/abs/", dockerfile()),
		"copy rel":   llb.Copy(local, "/d", "/rel/", dockerfile()),
		"copy file":  llb.Copy(local, "/victim", "/file", dockerfile()),
		"copy loop":  llb.Copy(local, "/victim", "/loop/x", dockerfile()),
		"mkfile":     llb.Mkfile("/file", 0o644, []byte("evil")).Copy(local, "/d", "/z"),
		"mkfile abs": llb.Mkdir("/abs/x/y", 0o755, llb.WithParents(true)).Copy(local, "/d", "/z"),
		"rm":         llb.Rm("/abs/victim", llb.WithAllowNotFound(true)).Rm("/rel/*", llb.WithAllowWildcard(true), llb.WithAllowNotFound(true)).Copy(local, "/d", "/z"),
		"dev":        llb.Mkfile("/dev", 0o644, []byte("x")).Mkfile("/fifo", 0o644, []byte("x")).Copy(local, "/d", "/z"),
		"over dev":   llb.Copy(local, "/victim", "/dev", dockerfile()).Copy(local, "/victim", "/fifo", dockerfile()),
		"symlink":    llb.Symlink("/x", "/abs/ln").Copy(local, "/d", "/z"),
		"names":      llb.Mkdir("/"+strings.Repeat("n", 300), 0o755).Copy(local, "/d", "/z"),
	} {
		done := make(chan error, 1)
		go func() {
			_, err := l.do(l.op(a, false), base, in)
			done <- err
		}()
		select {
		case <-done:
		case <-time.After(time.Minute):
			t.Fatalf("%s hangs", name)
		}
		if got, err := os.ReadFile(outside + "/victim"); err != nil || string(got) != "safe" {
			t.Fatalf("%s: the file outside is %q, %v", name, got, err)
		}
		if left, _ := os.ReadDir(outside); len(left) != 1 {
			t.Fatalf("%s: there is %v outside", name, left)
		}
	}
	// A character device 0:0 would stand for a deletion.
	put(t, src, "w/")
	if unix.Mknod(src+"/w/white", unix.S_IFCHR|0o600, 0) == nil {
		if _, err := l.do(l.op(llb.Copy(local, "/w", "/w", dockerfile()), true), in); err == nil || !strings.Contains(err.Error(), "0:0") {
			t.Error(err)
		}
	}
}

// Symbolic modes are those of BSD's chmod, which the Dockerfile frontend checks them with.
func TestModes(t *testing.T) {
	for _, text := range []string{"u=rwx,go=rx", "go-w", "=rw,+X", "+X", "g=u-w", "go=", "a+s", "u+s,o+t", "+t", "o=t", "u=s", "ug+rw-x", "a=r,u+w", "755", "4711", "0", "u=g", "o=u,g-x"} {
		compareMode(t, text)
	}
	for _, bad := range []string{"", "u", "q", "u=rwq", "8", "77777", "u+r,", ",u+r"} {
		if m, err := parseMode(bad); err == nil {
			t.Errorf("%q is %+v", bad, m)
		}
	}
}

func compareMode(t *testing.T, text string) {
	t.Helper()
	theirs, terr := bsd.ParseWithUmask(text, 0)
	ours, err := parseMode(text)
	if terr != nil || err != nil {
		return
	}
	for range 50 {
		kind, perm := uint32(unix.S_IFREG), rand.Uint32N(0o10000)
		fm := os.FileMode(perm & 0o777)
		if rand.IntN(2) == 0 {
			kind, fm = unix.S_IFDIR, fm|os.ModeDir
		}
		for bit, m := range map[uint32]os.FileMode{0o4000: os.ModeSetuid, 0o2000: os.ModeSetgid, 0o1000: os.ModeSticky} {
			if perm&bit != 0 {
				fm |= m
			}
		}
		want := theirs.Apply(fm)
		got := ours.apply(kind | perm)
		exp := uint32(want.Perm())
		for bit, m := range map[uint32]os.FileMode{0o4000: os.ModeSetuid, 0o2000: os.ModeSetgid, 0o1000: os.ModeSticky} {
			if want&m != 0 {
				exp |= bit
			}
		}
		if got != exp {
			t.Errorf("%q of %o (directory %v) is %o, theirs %o", text, perm, kind == unix.S_IFDIR, got, exp)
			return
		}
	}
}

func FuzzMode(f *testing.F) {
	f.Add("u=rwX,go+s-t")
	f.Add("0755")
	f.Fuzz(func(t *testing.T, text string) { compareMode(t, text) })
}

func FuzzFindName(f *testing.F) {
	f.Add("root:x:0:0::/:\n", "root")
	f.Fuzz(func(t *testing.T, file, name string) {
		ids, err := findName(strings.NewReader(file), name)
		if err != nil || len(ids) > 2 || len(ids) > 0 && !strings.Contains(file, name+":") {
			t.Fatal(ids, err)
		}
	})
}

// Merging lays trees on each other, with what they delete; a difference is what lies above.
func TestMergeAndDiff(t *testing.T) {
	for driver := range drivers {
		t.Run(driver, func(t *testing.T) { testMergeAndDiff(t, newLabOn(t, driver)) })
	}
}

func testMergeAndDiff(t *testing.T, l *lab) {
	base := l.tree("etc/a=1", "etc/b=2", "gone=3", "dir/x=4")
	local := llb.Local("x")
	dir := t.TempDir()
	put(t, dir, "etc/c=5", "new=6")
	link := l.must(l.op(llb.Copy(local, "/", "/", dockerfile()), true), l.context(dir))
	run := func(op *pb.Op, in ...build.Output) build.Output {
		t.Helper()
		v := &build.Vertex{Op: op, Name: "x", Inputs: make([]build.Edge, len(in))}
		make := l.o.Merge
		if op.GetDiff() != nil {
			make = l.o.Diff
		}
		made, err := make(v)
		if err != nil {
			t.Fatal(err)
		}
		return l.must(made, in...)
	}
	merge := func(in ...build.Output) build.Output {
		op := &pb.MergeOp{}
		for i := range in {
			op.Inputs = append(op.Inputs, &pb.MergeInput{Input: int64(i)})
		}
		return run(&pb.Op{Op: &pb.Op_Merge{Merge: op}}, in...)
	}
	diff := func(lower, upper build.Output) build.Output {
		return run(&pb.Op{Op: &pb.Op_Diff{Diff: &pb.DiffOp{Lower: &pb.LowerDiffInput{Input: 0}, Upper: &pb.UpperDiffInput{Input: 1}}}}, lower, upper)
	}
	names := func(out build.Output) string {
		var all []string
		for _, line := range strings.Split(l.show(out.Chain), "\n") {
			name, rest, _ := strings.Cut(line, " ")
			if !strings.HasSuffix(rest, "/") {
				name += "=" + rest[strings.LastIndexByte(rest, ' ')+1:]
			}
			all = append(all, name)
		}
		return strings.Join(all, " ")
	}
	expect := func(what string, out build.Output, want string) {
		t.Helper()
		if got := names(out); got != want {
			t.Errorf("%s: %s, wanted %s", what, got, want)
		}
	}
	expect("merge", merge(base, link), "dir dir/x=4 etc etc/a=1 etc/b=2 etc/c=5 gone=3 new=6")
	expect("merge with scratch", merge(build.Output{}, link), "etc etc/c=5 new=6")
	upper := l.must(l.op(llb.Rm("/gone").Rm("/dir").Mkdir("/dir", 0o755).Mkfile("/dir/y", 0o644, []byte("7")).Mkfile("/etc/a", 0o644, []byte("8")), false), base)
	upper = l.must(l.op(llb.Mkfile("/second", 0o644, []byte("9")), false), upper)
	d := diff(base, upper)
	expect("difference", d, "dir dir/y=7 etc etc/a=8 second=9")
	if layers, err := l.o.above(context.Background(), d.Chain, ""); err != nil || len(layers) != 2 {
		t.Errorf("the difference has %d layers, %v", len(layers), err)
	}
	other := l.tree("gone=x", "dir/x=x", "keep=x", "etc/a=x")
	expect("what a difference deletes is deleted in another tree", merge(other, d), "dir dir/y=7 etc etc/a=8 keep=x second=9")
	expect("back on its own base", merge(base, d), "dir dir/y=7 etc etc/a=8 etc/b=2 second=9")
	expect("difference to nothing", diff(build.Output{}, link), "etc etc/c=5 new=6")
	if same := diff(base, base); same.Chain != "" {
		t.Error(same)
	}
	far := diff(base, other)
	expect("unrelated trees", merge(base, far), "dir dir/x=x etc etc/a=x gone=x keep=x")
	// Files of equal size and time, as builds with SOURCE_DATE_EPOCH make them, may differ all the same.
	at := llb.WithCreatedTime(time.Unix(1e9, 0))
	three := l.must(l.op(llb.Mkfile("/v", 0o644, []byte("3"), at).Mkfile("/same", 0o644, []byte("s"), at), true))
	four := l.must(l.op(llb.Mkfile("/v", 0o644, []byte("4"), at).Mkfile("/same", 0o644, []byte("s"), at), true))
	if l.trees.Name() != "plain" { // it tells what was changed in a tree by size and time itself
		expect("equal times", diff(three, four), "v=4")
	}
	if l.key(must(l.o.Merge(&build.Vertex{Op: &pb.Op{Op: &pb.Op_Merge{Merge: &pb.MergeOp{Inputs: []*pb.MergeInput{{Input: 0}, {Input: 1}}}}}, Inputs: make([]build.Edge, 2)})), base, link) ==
		l.key(must(l.o.Merge(&build.Vertex{Op: &pb.Op{Op: &pb.Op_Merge{Merge: &pb.MergeOp{Inputs: []*pb.MergeInput{{Input: 1}, {Input: 0}}}}}, Inputs: make([]build.Edge, 2)})), base, link) {
		t.Error("the order does not count")
	}
}

func must(op build.Op, err error) build.Op {
	if err != nil {
		panic(fmt.Sprint(err))
	}
	return op
}

// What ops leave behind when they fail or are killed is gone.
func TestNothingLeft(t *testing.T) {
	l := newLab(t)
	ctx := context.Background()
	base := l.tree("f=F")
	if _, err := l.do(l.op(llb.Mkdir("/a", 0o755).Mkdir("/f/x", 0o755), false), base); err == nil {
		t.Error("no error")
	}
	left := func() (n int) {
		l.trees.Walk(ctx, func(string, map[string]string) error { n++; return nil })
		return n
	}
	if n := left(); n != 0 {
		t.Errorf("%d trees are left", n)
	}
	w, err := l.o.begin(ctx, base.Chain)
	if err != nil {
		t.Fatal(err)
	}
	w.close() // and the engine is killed
	if _, err := New(ctx, Options{Trees: l.trees, Sums: l.sums}); err != nil {
		t.Fatal(err)
	}
	if n := left(); n != 0 {
		t.Errorf("%d trees are left by the kill", n)
	}
	cancelled, cancel := context.WithCancel(ctx)
	cancel()
	op := l.op(llb.Copy(llb.Local("x"), "/", "/n", dockerfile()), true)
	if _, err := op.Run(cancelled, build.Env{}, []build.Output{base}); err == nil || left() != 0 {
		t.Errorf("cancelled: %v, %d trees", err, left())
	}
}
