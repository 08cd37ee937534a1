// Package joined tests the solver with the parts that it works with: real layers, real file operations, real checksums.
package joined_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/moby/buildkit/client/llb"
	"github.com/moby/buildkit/solver/pb"
	"github.com/opencontainers/go-digest"

	"corten.dev/corten/internal/build"
	"corten.dev/corten/internal/build/cache"
	"corten.dev/corten/internal/build/checksum"
	"corten.dev/corten/internal/build/ops"
	"corten.dev/corten/internal/build/solve"
	"corten.dev/corten/internal/errs"
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
	cache   *counting
	kept    *cache.Cache
	images  *images
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
	images := &images{store: store, loose: map[snapshot.ChainID]bool{}}
	kept, err := cache.Open(t.Context(), cache.Options{Root: filepath.Join(dir, "cache"), Layers: store, Images: images, Trees: filepath.Join(dir, "snapshots"), Log: log})
	if err != nil {
		t.Fatal(err)
	}
	r := &room{t: t, store: store, images: images, context: t.TempDir(), cache: &counting{Cache: kept}, kept: kept}
	t.Cleanup(func() {
		if err := r.solver.Close(context.Background()); err != nil {
			t.Error(err)
		}
		if err := kept.Close(); err != nil {
			t.Error(err)
		}
	})
	r.solver = solve.New(solve.Options{
		Cache: r.cache, Trees: store, Hold: kept.Pin, Log: log,
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

// counting counts what is kept.
type counting struct {
	build.Cache
	ran atomic.Int32
}

func (c *counting) Save(ctx context.Context, rec build.Record) error {
	c.ran.Add(1)
	return c.Cache.Save(ctx, rec)
}

// images is an image room without images. As the real one does, it comes back to layers that a call or a tree stood on when they were to go; those that a hold or a layer keeps come with the next
// DropLayers of who has that.
type images struct {
	store snapshot.Store

	mu    sync.Mutex
	loose map[snapshot.ChainID]bool
}

func (i *images) Live() func(digest.Digest) bool { return func(digest.Digest) bool { return false } }

func (i *images) DropLayers(chains ...snapshot.ChainID) {
	i.mu.Lock()
	defer i.mu.Unlock()
	for _, chain := range chains {
		i.loose[chain] = true
	}
	for chain := range i.loose {
		delete(i.loose, chain)
		for chain != "" {
			l, err := i.store.Stat(context.Background(), chain)
			if err == nil {
				err = i.store.RemoveLayer(context.Background(), chain)
			}
			if errors.Is(err, errs.Conflict) && !errors.Is(err, snapshot.ErrKept) {
				i.loose[chain] = true
			}
			if err != nil {
				break
			}
			chain = l.Parent
		}
	}
}

// collect takes away all layers that nobody uses, by hand: the records stay.
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
	if int(r.cache.ran.Load()) != 6 || r.read(first, "/app/main.txt") != "one" || r.read(first, "/note") != "a note" {
		t.Error("kept", int(r.cache.ran.Load()))
	}
	if again := r.must(six()); again.Chain != first.Chain || int(r.cache.ran.Load()) != 6 {
		t.Error("a second build made", int(r.cache.ran.Load())-6)
	}
	r.write("unused.txt", "a file that no step reads")
	if again := r.must(six()); again.Chain != first.Chain || int(r.cache.ran.Load()) != 6 {
		t.Error("a file that no step reads: made", int(r.cache.ran.Load())-6)
	}
	r.write("main.txt", "two!")
	second := r.must(six())
	if r.read(second, "/app/main.txt") != "two!" || int(r.cache.ran.Load()) != 6+3 {
		t.Error("one file changed: made", int(r.cache.ran.Load())-6)
	}
	r.write("main.txt", "one")
	if back := r.must(six()); back.Chain != first.Chain || int(r.cache.ran.Load()) != 6+3 {
		t.Error("the file is as it was: made", int(r.cache.ran.Load())-9)
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
	made := int(r.cache.ran.Load())
	if r.must(six()).Chain != out.Chain || int(r.cache.ran.Load()) != made {
		t.Error("a third build made", int(r.cache.ran.Load())-made)
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
	if int(r.cache.ran.Load()) != 6+3 {
		t.Error("made", int(r.cache.ran.Load()))
	}
	for i, out := range outs {
		if got := r.read(out, fmt.Sprint("/own-", i/2)); got != fmt.Sprint(i/2) {
			t.Error(i, got)
		}
	}
}

// Builds, with and without the cache, while everything that nobody uses is pruned all the time: each has the right tree, and at the end nothing is left.
func TestBuildsWhileEverythingIsPruned(t *testing.T) {
	r := newRoom(t)
	r.write("lib.txt", "lib")
	r.write("main.txt", "one")
	def, err := six().Marshal(t.Context(), llb.LinuxAmd64)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	var all, pruner sync.WaitGroup
	prune := func() {
		if _, err := r.kept.Prune(context.Background(), cache.PruneOptions{All: true}, func(cache.Usage) {}); err != nil {
			t.Error(err)
		}
	}
	pruner.Go(func() {
		for ctx.Err() == nil {
			prune()
		}
	})
	for i := range 3 {
		all.Go(func() {
			for range 15 {
				j := r.solver.Job(t.Context(), solve.JobOptions{NoCache: i == 0})
				res, err := j.Solve(t.Context(), def.ToPB())
				if err != nil {
					t.Error(err)
					break
				}
				out, err := res.Bring(t.Context())
				if err != nil {
					t.Error(err)
				} else if got := r.read(out, "/app/main.txt"); got != "one" {
					t.Error(got)
				}
				j.Close()
			}
		})
	}
	all.Wait()
	stop()
	pruner.Wait()
	prune()
	r.images.DropLayers() // the engine sweeps after each verb that removes something
	layers, err := r.store.Layers(t.Context())
	if err != nil || len(layers) > 0 {
		t.Error("layers are left: ", layers, err)
	}
	err = r.store.Walk(t.Context(), func(key string, _ map[string]string) error { return fmt.Errorf("the tree %s is left", key) })
	if err != nil {
		t.Error(err)
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
		if _, err := r.kept.Prune(b.Context(), cache.PruneOptions{All: true}, func(cache.Usage) {}); err != nil {
			b.Fatal(err)
		}
		if _, err := r.solve(def.ToPB()); err != nil {
			b.Fatal(err)
		}
	}
}
