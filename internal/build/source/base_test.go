package source_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/moby/buildkit/solver/pb"
	"github.com/opencontainers/go-digest"
	specs "github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"corten.dev/corten/internal/build"
	"corten.dev/corten/internal/build/source"
	"corten.dev/corten/internal/content"
	"corten.dev/corten/internal/engine/images"
	"corten.dev/corten/internal/events"
	"corten.dev/corten/internal/image"
	"corten.dev/corten/internal/manifest"
	"corten.dev/corten/internal/reference"
	"corten.dev/corten/internal/registry/client"
	"corten.dev/corten/internal/registry/server"
	"corten.dev/corten/internal/registry/server/disk"
	"corten.dev/corten/internal/snapshot"
	"corten.dev/corten/internal/snapshot/overlay"
	"corten.dev/corten/internal/snapshot/snapshottest"
)

// engine is the rooms that a base needs, and a registry in this process.
type engine struct {
	*source.Sources
	trees  *overlay.Store
	images *image.Images
	blobs  *content.Store
	holds  map[digest.Digest]build.Record
	host   string
	asked  []string
}

// Lookup, Save and Use make the engine a cache that holds layers as the real one does.
func (e *engine) Lookup(_ context.Context, key digest.Digest) (build.Record, bool, error) {
	rec, ok := e.holds[key]
	return rec, ok, nil
}

func (e *engine) Save(ctx context.Context, rec build.Record) error {
	e.holds[rec.Key] = rec
	return e.trees.Hold(ctx, "test/"+rec.Key.Encoded(), rec.Outputs[0])
}

func (e *engine) Use(context.Context, ...digest.Digest) func() { return func() {} }

type nobody struct{}

func (nobody) ImageUsers(digest.Digest) (stopped, running []string) { return nil, nil }

type quiet struct{}

func (quiet) Log(int, []byte)                   {}
func (quiet) Status(string, int64, int64, bool) {}
func (quiet) Warn(build.Warning)                {}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func newEngine(t *testing.T) *engine {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	e := &engine{holds: map[digest.Digest]build.Record{}}
	dir := t.TempDir()
	drive, err := disk.New(disk.Options{Root: filepath.Join(dir, "registry")})
	must(t, err)
	reg, err := server.New(server.Options{Driver: drive})
	must(t, err)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		e.asked = append(e.asked, r.Method+" "+r.URL.Path)
		reg.ServeHTTP(w, r)
	}))
	t.Cleanup(func() { srv.Close(); must(t, reg.Close()) })
	e.host = strings.TrimPrefix(srv.URL, "http://")
	e.trees, err = overlay.New(overlay.Options{Root: filepath.Join(dir, "snapshots")})
	must(t, err)
	t.Cleanup(func() { must(t, e.trees.Close()) })
	e.blobs, err = content.New(content.Options{Root: filepath.Join(dir, "content")})
	must(t, err)
	e.images, err = image.New(image.Options{Root: filepath.Join(dir, "images"), Snapshots: e.trees, Content: e.blobs})
	must(t, err)
	t.Cleanup(func() { must(t, e.images.Close()) })
	svc := images.New(images.Options{Store: e.images, Containers: nobody{}, Events: &events.Bus{}, Transfers: e.images, Blobs: images.OverContent(e.blobs), Registry: client.New(client.Options{})})
	t.Cleanup(func() { must(t, svc.Close()) })
	e.Sources, err = source.New(source.Options{Root: filepath.Join(dir, "sources"), Images: images.NewBases(svc), Layers: e.trees, Cache: e})
	must(t, err)
	t.Cleanup(func() { must(t, e.Sources.Close()) })
	return e
}

func (e *engine) env() build.Env {
	return build.Env{Progress: quiet{}, Session: func(context.Context, string) (*build.Session, error) { return &build.Session{ID: "s"}, nil }}
}

// push puts an image of these tars into the registry.
func (e *engine) push(t *testing.T, name string, tars ...[]byte) manifest.Document {
	t.Helper()
	ref, err := reference.Parse(e.host + "/" + name)
	must(t, err)
	repo, err := client.New(client.Options{}).Repository(ref, client.Credentials{})
	must(t, err)
	put := func(raw []byte) ocispec.Descriptor {
		d, err := repo.Push(t.Context(), client.Upload{Digest: digest.FromBytes(raw), Size: int64(len(raw)), Open: func(_ context.Context, at int64) (io.ReadCloser, error) {
			return io.NopCloser(bytes.NewReader(raw[at:])), nil
		}})
		must(t, err)
		return d
	}
	m := ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: manifest.OCIManifest}
	var diffs []digest.Digest
	for _, tar := range tars {
		var z bytes.Buffer
		zw, err := gzip.NewWriterLevel(&z, 3) // not what we would compress it with
		must(t, err)
		zw.Name = "foreign"
		_, err = zw.Write(tar)
		must(t, err)
		must(t, zw.Close())
		d := put(z.Bytes())
		d.MediaType = manifest.OCILayerGzip
		m.Layers = append(m.Layers, d)
		diffs = append(diffs, digest.FromBytes(tar))
	}
	cfg, err := json.Marshal(map[string]any{"architecture": "amd64", "os": "linux", "rootfs": map[string]any{"type": "layers", "diff_ids": diffs}, "config": map[string]any{"Env": []string{"A=b"}}})
	must(t, err)
	m.Config = put(cfg)
	m.Config.MediaType = manifest.OCIConfig
	raw, err := json.Marshal(m)
	must(t, err)
	doc, err := manifest.Parse("", raw)
	must(t, err)
	must(t, repo.PushManifest(t.Context(), ref.WithDefaultTag().Tag, doc))
	return doc
}

// The whole way of a base: its name is looked up without a layer, the layers come when they are wanted, they stay while the cache holds them though no image has them, and what is built
// on them goes out with the blobs that the registry has.
func TestBaseFromRegistry(t *testing.T) {
	e := newEngine(t)
	doc := e.push(t, "team/base:1", snapshottest.Tar(t, snapshottest.File("a", "1")), snapshottest.Tar(t, snapshottest.File("b", "2")))
	e.asked = nil
	op, err := e.Make(&build.Vertex{Op: &pb.Op{Platform: &pb.Platform{OS: "linux", Architecture: "amd64"}, Op: &pb.Op_Source{Source: &pb.SourceOp{Identifier: "docker-image://" + e.host + "/team/base:1"}}}})
	must(t, err)
	key, err := op.Key(t.Context(), e.env(), nil)
	must(t, err)
	made, err := op.Run(t.Context(), e.env(), nil)
	must(t, err)
	out := made.Outputs[0]
	if out.Image != doc.Digest || made.Cached {
		t.Errorf("%+v", made)
	}
	for _, asked := range e.asked {
		if strings.Contains(asked, doc.Manifest.Layers[0].Digest.String()) {
			t.Error("a layer was asked for:", asked)
		}
	}
	must(t, out.Fetch(t.Context(), quiet{}))
	must(t, out.Fetch(t.Context(), quiet{})) // no harm
	if _, err := e.trees.Stat(t.Context(), out.Chain); err != nil {
		t.Fatal(err)
	}
	if all, err := e.images.List(t.Context()); err != nil || len(all) > 0 {
		t.Error("the base is an image of the store", all, err)
	}
	e.images.Sweep()
	if _, err := e.trees.Stat(t.Context(), out.Chain); err != nil {
		t.Error("the base was swept while the cache holds it:", err)
	}
	// Again: one question, nothing fetched.
	e.asked = nil
	op, err = e.Make(&build.Vertex{Op: &pb.Op{Op: &pb.Op_Source{Source: &pb.SourceOp{Identifier: "docker-image://" + e.host + "/team/base:1"}}}})
	must(t, err)
	if again, err := op.Key(t.Context(), e.env(), nil); err != nil || again != key || len(e.asked) != 1 || e.asked[0] != "HEAD /v2/team/base/manifests/1" {
		t.Error(again == key, err, e.asked)
	}
	if made, err := op.Run(t.Context(), e.env(), nil); err != nil || !made.Cached {
		t.Error(made, err)
	}
	// What stands on it goes out with the same layers.
	top := snapshottest.Apply(t, e.trees, out.Chain, snapshottest.Tar(t, snapshottest.File("c", "3")))
	cfg := e.config(t, out.Chain, top)
	sent, err := e.images.SendBuilt(t.Context(), image.CreateOptions{Config: cfg, Chain: top.Chain}, image.Compression{})
	must(t, err)
	for i, l := range sent.Layers()[:2] {
		if d, ok := l.Known(); !ok || d.Digest != doc.Manifest.Layers[i].Digest || len(l.Origins()) == 0 || l.Origins()[0] != e.host+"/team/base" {
			t.Errorf("layer %d would go out as %v %v, from %v", i, d, ok, l.Origins())
		}
	}
	must(t, sent.Close())
	// Pruned, it goes.
	must(t, e.trees.Release(t.Context(), "test/"+key.Encoded()))
	e.images.DropLayers(out.Chain)
	if _, err := e.trees.Stat(t.Context(), out.Chain); err == nil {
		t.Error("the base stays without a hold")
	}
}

// config is that of an image of the base and one layer on it.
func (e *engine) config(t *testing.T, base snapshot.ChainID, top snapshot.Layer) []byte {
	t.Helper()
	diffs := []digest.Digest{top.DiffID}
	for chain := base; chain != ""; {
		l, err := e.trees.Stat(t.Context(), chain)
		must(t, err)
		diffs = append([]digest.Digest{l.DiffID}, diffs...)
		chain = l.Parent
	}
	raw, err := json.Marshal(map[string]any{"architecture": "amd64", "os": "linux", "rootfs": map[string]any{"type": "layers", "diff_ids": diffs}, "config": map[string]any{}})
	must(t, err)
	return raw
}

// A pull that is cancelled or that fails leaves no layer that nobody holds.
func TestBaseThatFails(t *testing.T) {
	e := newEngine(t)
	e.push(t, "team/base:1", snapshottest.Tar(t, snapshottest.File("a", "1")))
	op, err := e.Make(&build.Vertex{Op: &pb.Op{Op: &pb.Op_Source{Source: &pb.SourceOp{Identifier: "docker-image://" + e.host + "/team/base:1"}}}})
	must(t, err)
	made, err := op.Run(t.Context(), e.env(), nil)
	must(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := made.Outputs[0].Fetch(ctx, quiet{}); err == nil {
		t.Error("a cancelled fetch succeeds")
	}
	if layers, err := e.trees.Layers(t.Context()); err != nil || len(layers) > 0 {
		t.Error(layers, err)
	}
	op, err = e.Make(&build.Vertex{Op: &pb.Op{Op: &pb.Op_Source{Source: &pb.SourceOp{Identifier: "docker-image://" + e.host + "/team/none:1"}}}})
	must(t, err)
	if _, err := op.Key(t.Context(), e.env(), nil); err == nil || !strings.Contains(err.Error(), "team/none:1") {
		t.Error(err)
	}
}

// FROM takes what people copied from the list of images, too; its registry is not asked.
func TestBaseByShortID(t *testing.T) {
	e := newEngine(t)
	img, err := e.images.Import(t.Context(), bytes.NewReader(snapshottest.Tar(t, snapshottest.File("a", "1"))), image.ImportOptions{})
	must(t, err)
	op, err := e.Make(&build.Vertex{Op: &pb.Op{Op: &pb.Op_Source{Source: &pb.SourceOp{Identifier: "docker-image://docker.io/library/" + img.ID.Encoded()[:12] + ":latest"}}}})
	must(t, err)
	made, err := op.Run(t.Context(), e.env(), nil)
	must(t, err)
	if out := made.Outputs[0]; out.Chain != img.Chain || out.Fetch != nil {
		t.Errorf("%+v", out)
	}
}
