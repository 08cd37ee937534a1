package cache

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"corten.dev/corten/internal/build"
	"corten.dev/corten/internal/content"
	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/image"
	"corten.dev/corten/internal/reference"
	"corten.dev/corten/internal/snapshot"
	"corten.dev/corten/internal/snapshot/overlay"
)

var ctx = context.Background()

// house is the cache with the rooms that it stands on.
type house struct {
	*Cache
	root   string
	snaps  *overlay.Store
	images *image.Images
	clock  *clock
}

type clock struct {
	mu  sync.Mutex
	now time.Time
}

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(time.Millisecond)
	return c.now
}

func (c *clock) pass(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

func open(t testing.TB, root string) house {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	log := slog.New(slog.DiscardHandler)
	snaps, err := overlay.New(overlay.Options{Root: filepath.Join(root, "snapshots"), Logger: log})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { snaps.Close() })
	blobs, err := content.New(content.Options{Root: filepath.Join(root, "content")})
	if err != nil {
		t.Fatal(err)
	}
	images, err := image.New(image.Options{Root: filepath.Join(root, "images"), Snapshots: snaps, Content: blobs})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { images.Close() })
	clk := &clock{now: time.Now()}
	c, err := Open(ctx, Options{Root: filepath.Join(root, "cache"), Layers: snaps, Images: images, Trees: snaps.Root(), Log: log, Now: clk.Now})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return house{c, root, snaps, images, clk}
}

// step runs a step that writes a file, and saves its record.
func (h house) step(t testing.TB, name string, size int, inputs ...build.Record) build.Record {
	t.Helper()
	var below snapshot.ChainID
	rec := build.Record{Key: digest.FromString(name), Description: "RUN " + name, Kind: "regular", Created: h.clock.Now()}
	for _, in := range inputs {
		below = in.Outputs[0]
		rec.Inputs = append(rec.Inputs, in.Key)
	}
	key := "step-" + name
	if err := h.snaps.Prepare(ctx, key, below, snapshot.Options{}); err != nil {
		t.Fatal(err)
	}
	m, err := h.snaps.Mount(ctx, key)
	if err != nil {
		t.Fatal(err)
	}
	err = os.WriteFile("/proc/self/fd/"+strconv.Itoa(int(m.Root.Fd()))+"/"+name, bytes.Repeat([]byte("x"), size), 0o644)
	if err = errors.Join(err, m.Close()); err != nil {
		t.Fatal(err)
	}
	l, err := h.snaps.Turn(ctx, key, snapshot.TurnOptions{Relaxed: true})
	if err != nil {
		t.Fatal(err)
	}
	rec.Outputs = []snapshot.ChainID{l.Chain}
	if err := h.Save(ctx, rec); err != nil {
		t.Fatal(err)
	}
	return rec
}

func (h house) has(t testing.TB, rec build.Record) (record, layers bool) {
	t.Helper()
	got, ok, err := h.Lookup(ctx, rec.Key)
	if err != nil {
		t.Fatal(err)
	}
	if ok && (fmt.Sprint(got.Outputs) != fmt.Sprint(rec.Outputs) || got.Description != rec.Description) {
		t.Errorf("record %+v, want %+v", got, rec)
	}
	_, err = h.snaps.Stat(ctx, rec.Outputs[0])
	return ok, err == nil
}

func (h house) want(t testing.TB, rec build.Record, record, layers bool) {
	t.Helper()
	if r, l := h.has(t, rec); r != record || l != layers {
		t.Errorf("%s: record %v, layers %v; want %v, %v", rec.Description, r, l, record, layers)
	}
}

func (h house) image(t testing.TB, name string, recs ...build.Record) {
	t.Helper()
	cfg := image.Config{Architecture: "amd64", OS: "linux", RootFS: image.RootFS{Type: "layers"}}
	for _, rec := range recs {
		l, err := h.snaps.Stat(ctx, rec.Outputs[0])
		if err != nil {
			t.Fatal(err)
		}
		cfg.RootFS.DiffIDs = append(cfg.RootFS.DiffIDs, l.DiffID)
	}
	raw, err := json.Marshal(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ref, err := reference.Parse(name)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := h.images.Create(ctx, image.CreateOptions{Config: raw, Chain: recs[len(recs)-1].Outputs[0], Names: []reference.Ref{ref}}); err != nil {
		t.Fatal(err)
	}
}

func TestRecords(t *testing.T) {
	h := open(t, t.TempDir())
	a := h.step(t, "a", 1000)
	b := h.step(t, "b", 2000, a)
	none := build.Record{Key: digest.FromString("none"), Outputs: []snapshot.ChainID{digest.FromString("gone")}, Description: "imported"}
	if err := h.Save(ctx, none); err != nil {
		t.Fatal(err)
	}
	if err := h.Save(ctx, build.Record{Key: "x"}); !errors.Is(err, errs.Invalid) {
		t.Error(err)
	}
	for _, again := range []bool{false, true} {
		if again {
			if err := h.Close(); err != nil {
				t.Fatal(err)
			}
			h = open(t, h.root)
		}
		h.want(t, a, true, true)
		h.want(t, b, true, true)
		h.want(t, none, true, false)
		list, err := h.Usage(ctx, nil)
		if err != nil || len(list) != 2 {
			t.Fatal(list, err)
		}
		if u := list[1]; u.ID != b.Key.Encoded()[:25] || u.Size != 2000 || len(u.Parents) != 1 || u.Parents[0] != list[0].ID || u.Kind != "regular" || u.UsageCount != 1 || u.LastUsed == nil || u.InUse || u.Mutable || u.Shared || !u.Created.Equal(b.Created) {
			t.Errorf("%+v", u)
		}
		if err := h.snaps.RemoveLayer(ctx, b.Outputs[0]); !errors.Is(err, errs.Conflict) {
			t.Error("a layer of a record went", err)
		}
	}
	// Another result under the key: the old one is let go.
	again := h.step(t, "b2", 3000, a)
	again.Key, again.Description = b.Key, "RUN again"
	if err := h.Save(ctx, again); err != nil {
		t.Fatal(err)
	}
	if _, err := h.snaps.Stat(ctx, b.Outputs[0]); !errors.Is(err, errs.NotFound) {
		t.Error("the layer of a result that was replaced is still there", err)
	}
	h.want(t, again, true, true)
}

// Two builds that began with the same key missing, one with --no-cache say, gave two results: the second took the layers of the first away under the build that stood on them.
func TestReplacedWhileUsed(t *testing.T) {
	h := open(t, t.TempDir())
	a := h.step(t, "a", 1000)
	first, second := h.Use(ctx, a.Key), h.Use(ctx, a.Key)
	again := h.step(t, "a2", 2000)
	again.Key = a.Key
	if err := h.Save(ctx, again); err != nil {
		t.Fatal(err)
	}
	h.want(t, again, true, true)
	second()
	if _, err := h.snaps.Stat(ctx, a.Outputs[0]); err != nil {
		t.Error("a layer went that a build uses", err)
	}
	first()
	if _, err := h.snaps.Stat(ctx, a.Outputs[0]); !errors.Is(err, errs.NotFound) {
		t.Error("a layer is kept that nobody uses", err)
	}
	h.want(t, again, true, true)
}

// What an engine that was killed held for a build goes with the next start; what a record lost makes it an identity.
func TestStart(t *testing.T) {
	h := open(t, t.TempDir())
	a := h.step(t, "a", 1000)
	b := h.step(t, "b", 1000, a)
	lost := h.step(t, "lost", 1000)
	pinned := h.step(t, "pinned", 1000)
	h.Pin(pinned.Outputs[0])
	var name string
	for _, hold := range h.byKey[lost.Key].Holds {
		name = hold
	}
	if err := errors.Join(h.Close(), h.snaps.Release(ctx, name), h.snaps.RemoveLayer(ctx, lost.Outputs[0])); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(h.root, "cache/dirs/stray"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := h.snaps.Prepare(ctx, "stray", "", snapshot.Options{Labels: map[string]string{label: "stray"}}); err != nil {
		t.Fatal(err)
	}
	h = open(t, h.root)
	h.want(t, a, true, true)
	h.want(t, b, true, true)
	h.want(t, lost, true, false)
	holds := 0
	if err := h.snaps.Holds(ctx, func(string, snapshot.ChainID) error { holds++; return nil }); err != nil || holds != 3 {
		t.Errorf("%d holds, %v", holds, err)
	}
	if _, err := h.snaps.Mount(ctx, "stray"); !errors.Is(err, errs.NotFound) {
		t.Error(err)
	}
	if err := h.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(h.root, "cache/dirs/stray")); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
}

// Builds and prunes side by side: what a build uses is there.
func TestTogether(t *testing.T) {
	h := open(t, t.TempDir())
	var builds, prunes sync.WaitGroup
	stop := make(chan struct{})
	prunes.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			if _, err := h.Prune(ctx, PruneOptions{All: true}, nil); err != nil {
				t.Error(err)
				return
			}
		}
	})
	for w := range 4 {
		builds.Go(func() {
			for i := range 25 {
				name := fmt.Sprintf("w%d-%d", w%2, i%7) // two pairs of equal builds
				key := digest.FromString(name)
				release := h.Use(ctx, key)
				_, ok, err := h.Lookup(ctx, key)
				if err != nil {
					t.Error(err)
				}
				if !ok {
					tree := fmt.Sprint(w, i)
					if err := h.snaps.Prepare(ctx, tree, "", snapshot.Options{}); err != nil {
						t.Error(err)
						return
					}
					l, err := h.snaps.Turn(ctx, tree, snapshot.TurnOptions{Relaxed: true, Empty: true})
					if err != nil {
						t.Error(err)
						return
					}
					if err := h.Save(ctx, build.Record{Key: key, Outputs: []snapshot.ChainID{l.Chain}}); err != nil {
						t.Error(err)
					}
					if _, ok, _ = h.Lookup(ctx, key); !ok {
						t.Error("saved, in use, and not there")
					}
				}
				release()
			}
		})
	}
	builds.Wait()
	close(stop)
	prunes.Wait()
	if _, err := h.Prune(ctx, PruneOptions{All: true}, nil); err != nil {
		t.Fatal(err)
	}
	if left, _ := h.snaps.Layers(ctx); len(left) > 0 || len(h.kids)+len(h.refs)+len(h.byKey) > 0 {
		t.Error(left, h.kids, h.refs, h.byKey)
	}
}

func TestPin(t *testing.T) {
	h := open(t, t.TempDir())
	a := h.step(t, "a", 1000)
	h.image(t, "a", a)
	release := h.Pin(a.Outputs[0])
	var wg sync.WaitGroup
	for range 5 {
		wg.Go(func() {
			for range 20 {
				h.Pin(a.Outputs[0])()
			}
		})
	}
	wg.Wait()
	h.Pin(digest.FromString("none"))()
	h.Pin("")()
	if _, err := h.Prune(ctx, PruneOptions{All: true}, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := h.images.Remove(ctx, "a", false, true, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := h.snaps.Stat(ctx, a.Outputs[0]); err != nil {
		t.Error("a layer that a build uses went", err)
	}
	release()
	if _, err := h.snaps.Stat(ctx, a.Outputs[0]); !errors.Is(err, errs.NotFound) {
		t.Error("a layer that nobody needs is still there", err)
	}
}

func BenchmarkSave(b *testing.B) {
	h := open(b, b.TempDir())
	a := h.step(b, "a", 10)
	n := 0
	for b.Loop() {
		n++
		if err := h.Save(ctx, build.Record{Key: digest.FromString(fmt.Sprint(n)), Outputs: a.Outputs, Inputs: []digest.Digest{a.Key}}); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkLookup(b *testing.B) {
	h := open(b, b.TempDir())
	a := h.step(b, "a", 10)
	for b.Loop() {
		release := h.Use(ctx, a.Key)
		if _, ok, _ := h.Lookup(ctx, a.Key); !ok {
			b.Fatal()
		}
		release()
	}
}
