// Package joined tests the solver with the parts that it works with: real layers, real file operations, real checksums.
package joined_test

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/moby/buildkit/client/llb"
	"github.com/moby/buildkit/solver/pb"
	"github.com/opencontainers/go-digest"

	"corten.dev/corten/internal/build"
	"corten.dev/corten/internal/build/checksum"
	"corten.dev/corten/internal/build/ops"
	"corten.dev/corten/internal/build/solve"
	"corten.dev/corten/internal/safefs"
	"corten.dev/corten/internal/snapshot"
	"corten.dev/corten/internal/snapshot/overlay"
)

// room is a solver with its neighbours, and a context directory.
type room struct {
	t       testing.TB
	store   snapshot.Store
	solver  *solve.Solver
	context string
	cache   *cache
}

func newRoom(t testing.TB) *room {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("layers need root")
	}
	log := slog.New(slog.DiscardHandler)
	dir := t.TempDir()
	store, err := overlay.New(overlay.Options{Root: filepath.Join(dir, "snapshots"), Logger: log})
	if err != nil {
		t.Fatal(err)
	}
	sums, err := checksum.New(checksum.Options{Dir: filepath.Join(dir, "checksums"), Trees: store, Log: log})
	if err != nil {
		t.Fatal(err)
	}
	files, err := ops.New(t.Context(), ops.Options{Trees: store, Sums: sums, Log: log})
	if err != nil {
		t.Fatal(err)
	}
	r := &room{t: t, store: store, context: t.TempDir(), cache: &cache{recs: map[digest.Digest]build.Record{}, store: store}}
	r.solver = solve.New(solve.Options{
		Cache: r.cache, Trees: store, Log: log,
		Make: solve.Makers{Source: r.source, File: files.File, Merge: files.Merge, Diff: files.Diff},
	})
	return r
}

// source is the build context, read in place.
func (r *room) source(v *build.Vertex) (build.Op, error) { return contextOp{r}, nil }

type contextOp struct{ r *room }

func (o contextOp) Traits() build.Traits { return build.Traits{Source: true} }

func (o contextOp) Key(context.Context, build.Env, []build.Output) (digest.Digest, error) {
	return digest.FromString("context"), nil
}

func (o contextOp) Run(context.Context, build.Env, []build.Output) (build.Made, error) {
	root, err := safefs.Root(o.r.context)
	if err != nil {
		return build.Made{}, err
	}
	o.r.t.Cleanup(func() { root.Close() })
	return build.Made{Outputs: []build.Output{{Files: &build.Files{Root: root, Key: "context"}}}}, nil
}

// cache keeps records in memory, and their layers by holds.
type cache struct {
	store snapshot.Store
	mu    sync.Mutex
	recs  map[digest.Digest]build.Record
	ran   int
}

func (c *cache) Lookup(_ context.Context, key digest.Digest) (build.Record, bool, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	rec, ok := c.recs[key]
	return rec, ok, nil
}

func (c *cache) Save(ctx context.Context, rec build.Record) error {
	for i, chain := range rec.Outputs {
		if err := c.store.Hold(ctx, fmt.Sprint("test/", rec.Key, i), chain); err != nil {
			return err
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ran++
	c.recs[rec.Key] = rec
	return nil
}

func (c *cache) Use(context.Context, ...digest.Digest) func() { return func() {} }

// collect takes all layers away, as if nobody had used them for long.
func (r *room) collect() {
	r.t.Helper()
	ctx := context.Background()
	var names []string
	if err := r.store.Holds(ctx, func(name string, _ snapshot.ChainID) error { names = append(names, name); return nil }); err != nil {
		r.t.Fatal(err)
	}
	for _, name := range names {
		if err := r.store.Release(ctx, name); err != nil {
			r.t.Fatal(err)
		}
	}
	for {
		layers, err := r.store.Layers(ctx)
		if err != nil {
			r.t.Fatal(err)
		}
		if len(layers) == 0 {
			return
		}
		removed := 0
		for _, l := range layers {
			if r.store.RemoveLayer(ctx, l.Chain) == nil {
				removed++
			}
		}
		if removed == 0 {
			r.t.Fatal("layers that nobody can remove: ", layers)
		}
	}
}

func (r *room) build(st llb.State) (build.Output, error) {
	r.t.Helper()
	def, err := st.Marshal(context.Background(), llb.LinuxAmd64)
	if err != nil {
		r.t.Fatal(err)
	}
	return r.solve(def.ToPB())
}

func (r *room) solve(def *pb.Definition) (build.Output, error) {
	j := r.solver.Job(context.Background(), solve.JobOptions{})
	defer j.Close()
	res, err := j.Solve(context.Background(), def)
	if err != nil {
		return build.Output{}, err
	}
	return res.Bring(context.Background())
}

func (r *room) must(st llb.State) build.Output {
	r.t.Helper()
	out, err := r.build(st)
	if err != nil {
		r.t.Fatal(err)
	}
	return out
}

func (r *room) read(out build.Output, name string) string {
	r.t.Helper()
	tree, err := r.store.View(context.Background(), out.Chain)
	if err != nil {
		r.t.Fatal(err)
	}
	defer tree.Close()
	data, err := safefs.ReadFile(tree.Root, name, 1<<20)
	if err != nil {
		r.t.Fatal(err)
	}
	return string(data)
}

func (r *room) write(name, data string) {
	r.t.Helper()
	if err := os.WriteFile(filepath.Join(r.context, name), []byte(data), 0o644); err != nil {
		r.t.Fatal(err)
	}
}

// six is six steps: four that stand on each other, and two that use them.
func six() llb.State {
	src := llb.Local("context")
	base := llb.Scratch().File(llb.Mkdir("/app", 0o755))
	lib := base.File(llb.Copy(src, "/lib.txt", "/app/lib.txt"))
	app := lib.File(llb.Copy(src, "/main.txt", "/app/main.txt"))
	other := llb.Scratch().File(llb.Mkfile("/note", 0o600, []byte("a note")))
	return app.File(llb.Copy(other, "/note", "/note")).File(llb.Mkdir("/app/data", 0o700))
}

func TestSixStepsOfFiles(t *testing.T) {
	r := newRoom(t)
	r.write("lib.txt", "lib")
	r.write("main.txt", "one")
	first := r.must(six())
	if r.cache.ran != 6 || r.read(first, "/app/main.txt") != "one" || r.read(first, "/note") != "a note" {
		t.Error("kept", r.cache.ran)
	}
	if again := r.must(six()); again.Chain != first.Chain || r.cache.ran != 6 {
		t.Error("a second build made", r.cache.ran-6)
	}
	r.write("unused.txt", "a file that no step reads")
	if again := r.must(six()); again.Chain != first.Chain || r.cache.ran != 6 {
		t.Error("a file that no step reads: made", r.cache.ran-6)
	}
	r.write("main.txt", "two!")
	second := r.must(six())
	if r.read(second, "/app/main.txt") != "two!" || r.cache.ran != 6+3 {
		t.Error("one file changed: made", r.cache.ran-6)
	}
	r.write("main.txt", "one")
	if back := r.must(six()); back.Chain != first.Chain || r.cache.ran != 6+3 {
		t.Error("the file is as it was: made", r.cache.ran-9)
	}
}

// All layers were collected and the records stayed: steps are made again, and what they give is what it was but for times; nobody is given layers that are not there.
func TestCollectedLayersAreMadeAgain(t *testing.T) {
	r := newRoom(t)
	r.write("lib.txt", "lib")
	r.write("main.txt", "one")
	r.must(six())
	r.collect()
	out := r.must(six())
	if r.read(out, "/app/main.txt") != "one" || r.read(out, "/note") != "a note" {
		t.Error("another tree")
	}
	made := r.cache.ran
	if r.must(six()).Chain != out.Chain || r.cache.ran != made {
		t.Error("a third build made", r.cache.ran-made)
	}
}

// Builds side by side share what is equal, and nobody gets another's tree.
func TestBuildsSideBySide(t *testing.T) {
	r := newRoom(t)
	r.write("lib.txt", "lib")
	r.write("main.txt", "one")
	var all sync.WaitGroup
	var outs [6]build.Output
	for i := range outs {
		all.Go(func() {
			var err error
			if outs[i], err = r.build(six().File(llb.Mkfile(fmt.Sprint("/own-", i/2), 0o644, []byte(fmt.Sprint(i/2))))); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if t.Failed() {
		return
	}
	if r.cache.ran != 6+3 {
		t.Error("made", r.cache.ran)
	}
	for i, out := range outs {
		if got := r.read(out, fmt.Sprint("/own-", i/2)); got != fmt.Sprint(i/2) {
			t.Error(i, got)
		}
	}
}

func BenchmarkCachedSix(b *testing.B) {
	r := newRoom(b)
	r.write("lib.txt", "lib")
	r.write("main.txt", "one")
	def, err := six().Marshal(b.Context(), llb.LinuxAmd64)
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if _, err := r.solve(def.ToPB()); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkColdSix(b *testing.B) {
	r := newRoom(b)
	r.write("lib.txt", "lib")
	r.write("main.txt", "one")
	def, err := six().Marshal(b.Context(), llb.LinuxAmd64)
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		clear(r.cache.recs)
		if _, err := r.solve(def.ToPB()); err != nil {
			b.Fatal(err)
		}
	}
}
