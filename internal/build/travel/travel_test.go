package travel_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/moby/buildkit/solver/pb"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"corten.dev/corten/internal/build"
	"corten.dev/corten/internal/build/buildtest"
	"corten.dev/corten/internal/build/solve"
	"corten.dev/corten/internal/build/travel"
	"corten.dev/corten/internal/content"
	"corten.dev/corten/internal/engine/images"
	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/events"
	"corten.dev/corten/internal/image"
	"corten.dev/corten/internal/manifest"
	"corten.dev/corten/internal/registry/client"
	"corten.dev/corten/internal/registry/server"
	"corten.dev/corten/internal/registry/server/disk"
	"corten.dev/corten/internal/snapshot"
	"corten.dev/corten/internal/snapshot/overlay"
	"corten.dev/corten/internal/snapshot/snapshottest"
)

var ctx = context.Background()

// host is an engine's rooms, with a cache of builds in memory.
type host struct {
	*travel.Caches
	t      testing.TB
	images *image.Images
	snaps  *overlay.Store
	recs   *records
	mounts *mounts
	tells  *tells
}

// blobs is the content room as pulls ask for it.
type blobs struct{ *content.Store }

func (b blobs) Begin(name string) (images.Ingest, error) { return b.Store.Begin(name) }

func (b blobs) Open(ctx context.Context, d digest.Digest) (io.ReadCloser, error) {
	f, _, err := b.Store.Open(ctx, d)
	return f, err
}

func newHost(t testing.TB) *host {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	root := t.TempDir()
	snaps, err := overlay.New(overlay.Options{Root: filepath.Join(root, "snapshots")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { snaps.Close() })
	kept, err := content.New(content.Options{Root: filepath.Join(root, "content")})
	if err != nil {
		t.Fatal(err)
	}
	store, err := image.New(image.Options{Root: filepath.Join(root, "images"), Snapshots: snaps, Content: kept})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { store.Close() })
	c := client.New(client.Options{Retries: -1})
	t.Cleanup(c.CloseIdle)
	places := images.NewCachePlaces(images.New(images.Options{Store: store, Transfers: store, Registry: c, Events: &events.Bus{}, Blobs: blobs{kept}}))
	h := &host{t: t, images: store, snaps: snaps, recs: &records{trees: snaps}, mounts: &mounts{trees: snaps, keys: map[string]string{}}, tells: &tells{}}
	h.Caches = travel.New(travel.Options{Places: places, Images: store, Trees: snaps, Cache: h.recs, Mounts: h.mounts})
	return h
}

func registry(t testing.TB) string {
	t.Helper()
	driver, err := disk.New(disk.Options{Root: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	reg, err := server.New(server.Options{Driver: driver})
	if err != nil {
		t.Fatal(err)
	}
	ts := httptest.NewServer(reg)
	t.Cleanup(func() { ts.Close(); reg.Close() })
	return strings.TrimPrefix(ts.URL, "http://")
}

// records is a cache in memory that holds layers as the real one does.
type records struct {
	buildtest.Records
	trees *overlay.Store
}

func (r *records) Save(ctx context.Context, rec build.Record) error {
	for i, chain := range rec.Outputs {
		if err := r.trees.Hold(ctx, fmt.Sprint("build/", rec.Key.Encoded(), i), chain); err != nil && !errors.Is(err, errs.NotFound) {
			return err
		}
	}
	return r.Records.Save(ctx, rec)
}

// mounts gives one tree for each id and base.
type mounts struct {
	mu    sync.Mutex
	trees *overlay.Store
	keys  map[string]string
}

func (m *mounts) Acquire(ctx context.Context, id string, base snapshot.ChainID, _ pb.CacheSharingOpt) (string, func(), error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	name := id + "@" + base.String()
	if m.keys[name] == "" {
		m.keys[name] = fmt.Sprint("mount-", len(m.keys))
		if err := m.trees.Prepare(ctx, m.keys[name], base, snapshot.Options{}); err != nil {
			return "", nil, err
		}
	}
	return m.keys[name], func() {}, nil
}

// tells remembers warnings, and which imports were read.
type tells struct {
	mu       sync.Mutex
	warnings []string
	began    []string
	ended    []error
}

func (p *tells) begin(name string) (build.Progress, func(error)) {
	p.began = append(p.began, name)
	return p, func(err error) { p.ended = append(p.ended, err) }
}

func (*tells) Log(int, []byte)                   {}
func (*tells) Status(string, int64, int64, bool) {}
func (p *tells) Warn(w build.Warning) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.warnings = append(p.warnings, string(w.Short))
}

// step makes a layer on the last one and keeps a record of it.
func (h *host) step(b *built, name string, entries ...snapshottest.Entry) {
	h.t.Helper()
	var parent snapshot.ChainID
	var inputs []digest.Digest
	var edges []build.Edge
	if n := len(b.steps); n > 0 {
		last := b.steps[n-1]
		parent, inputs, edges = last.Outputs[0].Chain, []digest.Digest{last.Key}, []build.Edge{{Vertex: last.Vertex}}
	}
	l := snapshottest.Apply(h.t, h.snaps, parent, snapshottest.Tar(h.t, entries...))
	s := solve.Step{
		Vertex: &build.Vertex{Digest: digest.FromString("vertex " + name), Name: name, Op: &pb.Op{}, Inputs: edges}, Key: digest.FromString("key " + name), Inputs: inputs,
		Outputs: []build.Output{{Chain: l.Chain}},
	}
	rec := build.Record{Key: s.Key, Inputs: inputs, Outputs: []snapshot.ChainID{l.Chain}, Description: name, Kind: "regular", Created: when, Taken: time.Second}
	if err := h.recs.Save(ctx, rec); err != nil {
		h.t.Fatal(err)
	}
	b.steps = append(b.steps, s)
}

var when = time.Date(2026, 11, 20, 1, 2, 3, 0, time.UTC)

// built implements travel.Result.
type built struct{ steps []solve.Step }

func (b *built) Walk(fn func(solve.Step) error) error {
	for _, s := range b.steps {
		if err := fn(s); err != nil {
			return err
		}
	}
	return nil
}

func (b *built) Bring(context.Context) (build.Output, error) {
	return b.steps[len(b.steps)-1].Outputs[0], nil
}

func (b *built) chain(i int) snapshot.ChainID { return b.steps[i].Outputs[0].Chain }

// multi is a build in two stages: the result has the layers of the second only.
func (h *host) multi() (stage, final *built) {
	stage, final = &built{}, &built{}
	h.step(stage, "compile", snapshottest.File("src", "code"), snapshottest.File("bin", "program"))
	h.step(final, "base", snapshottest.Dir("usr", 0o755), snapshottest.File("usr/lib", strings.Repeat("library ", 5000)))
	h.step(final, "copy", snapshottest.File("app", "program"))
	return stage, final
}

// both is what a walk of the final result sees: the steps of both stages.
func both(stage, final *built) *built {
	return &built{append(slices.Clone(stage.steps), final.steps...)}
}

func option(kind string, attrs ...string) travel.Option {
	o := travel.Option{Type: kind, Attrs: map[string]string{}}
	for _, a := range attrs {
		name, value, _ := strings.Cut(a, "=")
		o.Attrs[name] = value
	}
	return o
}

func (h *host) export(o travel.Option, job travel.Job, results ...travel.Result) map[string]string {
	h.t.Helper()
	said, err := h.Export(ctx, o, results, job)
	if err != nil {
		h.t.Fatal(err)
	}
	return said
}

// find looks a record up in an import, and tells whether its layers can be had.
func (h *host) find(imp solve.Import, name string) (snapshot.ChainID, func(context.Context, build.Progress) error) {
	h.t.Helper()
	rec, outs, ok, err := imp.Lookup(ctx, digest.FromString("key "+name))
	if err != nil || !ok || len(outs) != 1 || rec.Description != name || !rec.Created.Equal(when) || rec.Taken != time.Second {
		h.t.Fatalf("%s: %+v %v %v", name, rec, ok, err)
	}
	return outs[0].Chain, outs[0].Fetch
}

func (h *host) read(chain snapshot.ChainID, name string) string {
	h.t.Helper()
	v, err := h.snaps.View(ctx, chain)
	if err != nil {
		h.t.Fatal(err)
	}
	defer v.Close()
	raw, err := os.ReadFile(fmt.Sprintf("/proc/self/fd/%d/%s", v.Root.Fd(), name))
	if err != nil {
		h.t.Fatal(err)
	}
	return string(raw)
}

func TestCacheTravelsByARegistry(t *testing.T) {
	reg := registry(t)
	for _, tc := range []struct {
		attrs string
		max   bool
	}{
		{"", false},
		{"mode=max", true},
		{"mode=max image-manifest=false", true},
		{"mode=max oci-mediatypes=false", true},
		{"mode=max compression=zstd force-compression=true compression-level=1", true},
		{"mode=max compression=uncompressed", true},
	} {
		a := newHost(t)
		stage, final := a.multi()
		ref := "ref=" + reg + "/team/cache:" + digest.FromString(tc.attrs).Encoded()[:8]
		said := a.export(option("registry", append(strings.Fields(tc.attrs), ref)...), travel.Job{}, both(stage, final))
		var d ocispec.Descriptor
		if err := json.Unmarshal([]byte(said["cache.manifest"]), &d); err != nil || manifest.Check(d) != nil {
			t.Errorf("%s: %v %v", tc.attrs, said, err)
		}
		b := newHost(t)
		imp, err := b.Import(ctx, option("registry", ref), travel.Job{Begin: b.tells.begin})
		if err != nil {
			t.Fatal(err)
		}
		// Every step is known by what it gave.
		for i, name := range []string{"base", "copy"} {
			chain, fetch := b.find(imp, name)
			if chain != final.chain(i) || fetch == nil {
				t.Fatalf("%s: %s: %s, want %s (%v)", tc.attrs, name, chain, final.chain(i), fetch == nil)
			}
		}
		chain, fetch := b.find(imp, "compile")
		if chain != stage.chain(0) || (fetch != nil) != tc.max {
			t.Errorf("%s: compile: %s, layers %v", tc.attrs, chain, fetch != nil)
		}
		if _, _, ok, err := imp.Lookup(ctx, digest.FromString("another")); ok || err != nil {
			t.Errorf("%v %v", ok, err)
		}
		// It was read once, and that was told.
		if name := "importing cache manifest from " + strings.TrimPrefix(ref, "ref="); !slices.Equal(b.tells.began, []string{name}) || len(b.tells.ended) != 1 || b.tells.ended[0] != nil {
			t.Errorf("%q %v", b.tells.began, b.tells.ended)
		}
		// Its layers come when they are wanted, and stay.
		_, fetch = b.find(imp, "copy")
		if err := fetch(ctx, b.tells); err != nil {
			t.Fatal(tc.attrs, err)
		}
		b.images.Sweep()
		if got := b.read(final.chain(1), "app"); got != "program" {
			t.Errorf("%q", got)
		}
		if tc.max {
			if _, fetch := b.find(imp, "compile"); fetch(ctx, b.tells) != nil {
				t.Errorf("%s: the layers of a stage", tc.attrs)
			}
		}
	}
}

// A second runner, which has fetched nothing, exports to the same place: what it did not need is still there for the third one.
func TestCacheDoesNotShrinkWhenItIsExportedAgain(t *testing.T) {
	reg := registry(t)
	a := newHost(t)
	stage, final := a.multi()
	to := option("registry", "mode=max", "ref="+reg+"/cache:1")
	a.export(to, travel.Job{}, both(stage, final))
	b := newHost(t)
	imp, err := b.Import(ctx, option("registry", "ref="+reg+"/cache:1"), travel.Job{})
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range both(stage, final).steps { // as identities, which the solver keeps
		rec, _, _, err := imp.Lookup(ctx, s.Key)
		if err = errors.Join(err, b.recs.Save(ctx, rec)); err != nil {
			t.Fatal(err)
		}
	}
	_, fetch := b.find(imp, "copy")
	if err := fetch(ctx, b.tells); err != nil {
		t.Fatal(err)
	}
	b.export(to, travel.Job{}, both(stage, final))
	c := newHost(t)
	if imp, err = c.Import(ctx, option("registry", "ref="+reg+"/cache:1"), travel.Job{}); err != nil {
		t.Fatal(err)
	}
	chain, fetch := c.find(imp, "compile")
	if fetch == nil {
		t.Fatal("the layers of the stage are gone")
	}
	if err := fetch(ctx, c.tells); err != nil || c.read(chain, "src") != "code" {
		t.Error(err)
	}
}

// What a step gave that read files while they changed has no record: its layers must not stand under its key elsewhere.
func TestOnlyWhatHasARecordTravels(t *testing.T) {
	reg := registry(t)
	a := newHost(t)
	_, final := a.multi()
	final.steps[1].Outputs = []build.Output{{Chain: snapshottest.Apply(t, a.snaps, final.chain(0), snapshottest.Tar(t, snapshottest.File("app", "changed"))).Chain}}
	a.export(option("registry", "ref="+reg+"/cache"), travel.Job{}, final)
	b := newHost(t)
	imp, err := b.Import(ctx, option("registry", "ref="+reg+"/cache"), travel.Job{})
	if err != nil {
		t.Fatal(err)
	}
	if _, _, ok, err := imp.Lookup(ctx, digest.FromString("key copy")); ok || err != nil {
		t.Errorf("%v %v", ok, err)
	}
	b.find(imp, "base")
}

func TestCacheOfAnImage(t *testing.T) {
	reg := registry(t)
	a := newHost(t)
	stage, final := a.multi()
	carried, err := a.Inline(ctx, both(stage, final))
	if err != nil {
		t.Fatal(err)
	}
	// The image goes as images do.
	var diffs []digest.Digest
	for i := range 2 {
		l, err := a.snaps.Stat(ctx, final.chain(i))
		if err != nil {
			t.Fatal(err)
		}
		diffs = append(diffs, l.DiffID)
	}
	config, err := json.Marshal(map[string]any{"architecture": "amd64", "os": "linux", "rootfs": image.RootFS{Type: "layers", DiffIDs: diffs}, "moby.buildkit.cache.v0": carried})
	if err != nil {
		t.Fatal(err)
	}
	a.push(reg, config, final.chain(1))
	b := newHost(t)
	imp, err := b.Import(ctx, option("registry", "ref="+reg+"/app:1"), travel.Job{})
	if err != nil {
		t.Fatal(err)
	}
	chain, fetch := b.find(imp, "copy")
	if chain != final.chain(1) || fetch == nil {
		t.Fatalf("%s %v", chain, fetch == nil)
	}
	if err := fetch(ctx, b.tells); err != nil || b.read(chain, "app") != "program" {
		t.Error(err)
	}
	if _, fetch := b.find(imp, "compile"); fetch != nil {
		t.Error("layers that the image does not have")
	}
}

// push sends an image as app:1.
func (h *host) push(reg string, config []byte, chain snapshot.ChainID) {
	h.t.Helper()
	ref := parse(h.t, reg+"/app:1")
	c := client.New(client.Options{Retries: -1})
	defer c.CloseIdle()
	if _, err := h.images.Create(ctx, image.CreateOptions{Config: config, Chain: chain, Names: refs(ref)}); err != nil {
		h.t.Fatal(err)
	}
	s := images.New(images.Options{Store: h.images, Transfers: h.images, Registry: c, Events: &events.Bus{}})
	if err := s.Push(ctx, images.PushOptions{Ref: ref.String()}, func(images.Report) {}); err != nil {
		h.t.Fatal(err)
	}
}

func TestCacheInAFolder(t *testing.T) {
	a := newHost(t)
	stage, final := a.multi()
	f := newFolder()
	job := travel.Job{Session: &build.Session{Blobs: f}}
	a.export(option("local", "dest=/x", "mode=max"), job, both(stage, final))
	b := newHost(t)
	f.store = "local:/y"
	imp, err := b.Import(ctx, option("local", "src=/y"), job)
	if err != nil {
		t.Fatal(err)
	}
	chain, fetch := b.find(imp, "compile")
	if err := fetch(ctx, b.tells); err != nil || b.read(chain, "src") != "code" {
		t.Error(err)
	}
	// By a digest, as clients do that read index.json themselves.
	var d ocispec.Descriptor
	if err := json.Unmarshal(f.refs["latest"], &d); err != nil {
		t.Fatal(err)
	}
	if imp, err = b.Import(ctx, option("local", "src=/y", "digest="+d.Digest.String()), job); err != nil {
		t.Fatal(err)
	}
	b.find(imp, "base")
}

func TestNoCacheIsNoDisaster(t *testing.T) {
	reg := registry(t)
	h := newHost(t)
	for _, o := range []travel.Option{option("registry", "ref="+reg+"/none"), option("registry", "ref=127.0.0.1:1/none"), option("local", "src=/none")} {
		imp, err := h.Import(ctx, o, travel.Job{})
		if err != nil {
			t.Fatal(err)
		}
		if _, _, ok, err := imp.Lookup(ctx, digest.FromString("x")); ok || err == nil || strings.Contains(err.Error(), "\n") {
			t.Errorf("%v: %v %v", o, ok, err)
		}
	}
	_, final := h.multi()
	if _, err := h.Export(ctx, option("registry", "ref=127.0.0.1:1/none"), []travel.Result{final}, travel.Job{}); err == nil {
		t.Error("an export to nowhere")
	}
	if _, err := h.Export(ctx, option("registry", "ref=127.0.0.1:1/none", "ignore-error=true"), []travel.Result{final}, travel.Job{Progress: h.tells}); err != nil || len(h.tells.warnings) != 1 {
		t.Errorf("%v %q", err, h.tells.warnings)
	}
}

func TestRefused(t *testing.T) {
	h := newHost(t)
	for text, want := range map[string]string{
		"gha":                                `cache type "gha" could not be found`,
		"registry":                           "ref is missing",
		"local":                              "dest is missing",
		"registry ref=a colour=red":          "not known",
		"registry ref=a mode=most":           "choose min or max",
		"registry ref=a compression=estargz": "estargz is not made here",
		"registry ref=a dest=x":              "not known",
		"local src=x":                        "not known",
		"inline mode=max":                    "its own layers only",
		"inline ref=a":                       "not known",
		"registry ref=A":                     "must be lowercase",
		"registry ref=a mounts=x;;y":         "ids of cache mounts",
		"registry ref=a oci-mediatypes=false image-manifest=true": "needs oci-mediatypes=true",
	} {
		words := strings.Fields(text)
		if err := h.Check(option(words[0], words[1:]...), true); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", text, err)
		}
	}
	for _, text := range []string{"inline", "local src=", "local dest=x", "registry ref=a mode=max", "local src=x digest=abc"} {
		words := strings.Fields(text)
		if err := h.Check(option(words[0], words[1:]...), false); err == nil {
			t.Errorf("%s: imported", text)
		}
	}
}

// What a cache mount holds goes with the cache, into a mount that is empty, and never into one that is not.
func TestCacheMountsTravel(t *testing.T) {
	reg := registry(t)
	a := newHost(t)
	_, final := a.multi()
	exec := &pb.Op{Op: &pb.Op_Exec{Exec: &pb.ExecOp{Mounts: []*pb.Mount{
		{Dest: "/root/.cache", MountType: pb.MountType_CACHE, Input: -1, CacheOpt: &pb.CacheOpt{ID: "go"}},
		{Dest: "/seeded", MountType: pb.MountType_CACHE, Input: 0, CacheOpt: &pb.CacheOpt{ID: "seeded"}},
		{Dest: "/left", MountType: pb.MountType_CACHE, Input: -1, CacheOpt: &pb.CacheOpt{ID: "unused"}},
	}}}}
	final.steps[1].Vertex.Op = exec
	a.fill("go", "", "obj", "compiled")
	a.fill("seeded", final.chain(0), "more", "since")
	a.export(option("registry", "mounts=true", "ref="+reg+"/cache"), travel.Job{}, final)
	if left, err := a.snaps.Layers(ctx); err != nil || len(left) != 3 {
		t.Errorf("%d layers are left, %v", len(left), err)
	}
	b := newHost(t)
	imp, err := b.Import(ctx, option("registry", "mounts=go", "ref="+reg+"/cache"), travel.Job{Begin: b.tells.begin})
	if err != nil {
		t.Fatal(err)
	}
	b.find(imp, "base")
	if got := b.mounted("go", "", "obj"); got != "compiled" || len(b.mounts.keys) != 1 || len(b.tells.warnings) > 0 {
		t.Errorf("%q %v %q", got, b.mounts.keys, b.tells.warnings)
	}
	// A mount with something in it, and one whose tree is not here.
	c := newHost(t)
	c.fill("go", "", "obj", "newer")
	if imp, err = c.Import(ctx, option("registry", "mounts=true", "ref="+reg+"/cache"), travel.Job{Begin: c.tells.begin}); err != nil {
		t.Fatal(err)
	}
	c.find(imp, "base")
	if got := c.mounted("go", "", "obj"); got != "newer" || len(c.tells.warnings) != 1 || !strings.Contains(c.tells.warnings[0], "seeded") {
		t.Errorf("%q %q", got, c.tells.warnings)
	}
	// One that began with a tree which is here.
	d := newHost(t)
	d.multi()
	if imp, err = d.Import(ctx, option("registry", "mounts=seeded", "ref="+reg+"/cache"), travel.Job{Begin: d.tells.begin}); err != nil {
		t.Fatal(err)
	}
	d.find(imp, "base")
	if got := d.mounted("seeded", final.chain(0), "more"); got != "since" || len(d.tells.warnings) > 0 {
		t.Errorf("%q %q", got, d.tells.warnings)
	}
}

func (h *host) path(id string, base snapshot.ChainID, use func(dir string)) {
	h.t.Helper()
	key, _, err := h.mounts.Acquire(ctx, id, base, 0)
	if err != nil {
		h.t.Fatal(err)
	}
	m, err := h.snaps.Mount(ctx, key)
	if err != nil {
		h.t.Fatal(err)
	}
	use(fmt.Sprintf("/proc/self/fd/%d/", m.Root.Fd()))
	if err := m.Close(); err != nil {
		h.t.Fatal(err)
	}
}

func (h *host) fill(id string, base snapshot.ChainID, name, body string) {
	h.path(id, base, func(dir string) {
		if err := os.WriteFile(dir+name, []byte(body), 0o644); err != nil {
			h.t.Fatal(err)
		}
	})
}

func (h *host) mounted(id string, base snapshot.ChainID, name string) (body string) {
	h.path(id, base, func(dir string) {
		raw, err := os.ReadFile(dir + name)
		if err != nil {
			h.t.Error(err)
		}
		body = string(raw)
	})
	return body
}

// memory is an OCI layout of an asker.
type memory struct {
	mu    sync.Mutex
	store string
	blobs map[digest.Digest][]byte
	refs  map[string][]byte
}

func newFolder() *memory {
	return &memory{store: "local:/x", blobs: map[digest.Digest][]byte{}, refs: map[string][]byte{}}
}

func (m *memory) Reader(_ context.Context, store string, d digest.Digest) (io.ReadCloser, int64, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	raw, ok := m.blobs[d]
	if !ok || store != m.store {
		return nil, 0, errs.New(errs.NotFound, "no blob %s in %s", d, store)
	}
	return io.NopCloser(bytes.NewReader(raw)), int64(len(raw)), nil
}

func (m *memory) Write(_ context.Context, store string, d digest.Digest, size int64, r io.Reader) error {
	raw, err := io.ReadAll(r)
	if err != nil || digest.FromBytes(raw) != d || int64(len(raw)) != size || store != m.store {
		return fmt.Errorf("%s: %s of %d bytes: %w", store, d, size, err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.blobs[d] = raw
	return nil
}

func (m *memory) Ref(_ context.Context, store, name string) ([]byte, error) {
	if raw, ok := m.refs[name]; ok && store == m.store {
		return raw, nil
	}
	return nil, errs.New(errs.NotFound, "no %s in %s", name, store)
}

func (m *memory) SetRef(_ context.Context, _, name string, raw []byte) error {
	m.refs[name] = raw
	return nil
}
