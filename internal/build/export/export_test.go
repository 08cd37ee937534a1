package export_test

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/moby/buildkit/exporter/containerimage/exptypes"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"corten.dev/corten/internal/build"
	"corten.dev/corten/internal/build/export"
	"corten.dev/corten/internal/build/solve"
	"corten.dev/corten/internal/content"
	"corten.dev/corten/internal/engine/images"
	"corten.dev/corten/internal/image"
	"corten.dev/corten/internal/manifest"
	"corten.dev/corten/internal/snapshot"
	"corten.dev/corten/internal/snapshot/overlay"
	"corten.dev/corten/internal/snapshot/snapshottest"
)

var ctx = context.Background()

// house has the real rooms, an exporter on them, and an asker.
type house struct {
	*export.Exporter
	images *image.Images
	snaps  *overlay.Store
	blobs  contentBlobs
	asker  *asker
	forgot bool // nothing is known of the steps
}

// contentBlobs is the content room as pulls ask for it.
type contentBlobs struct{ *content.Store }

func (b contentBlobs) Begin(name string) (images.Ingest, error) { return b.Store.Begin(name) }

func (b contentBlobs) Open(ctx context.Context, d digest.Digest) (io.ReadCloser, error) {
	f, _, err := b.Store.Open(ctx, d)
	return f, err
}

var layerTime = time.Date(2026, 11, 20, 10, 0, 0, 0, time.UTC)

func open(t testing.TB) *house {
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
	blobs, err := content.New(content.Options{Root: filepath.Join(root, "content")})
	if err != nil {
		t.Fatal(err)
	}
	store, err := image.New(image.Options{Root: filepath.Join(root, "images"), Snapshots: snaps, Content: blobs, Platform: "linux/amd64"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { store.Close() })
	host := manifest.Platform{OS: "linux", Arch: "amd64"}
	return &house{&export.Exporter{Images: store, Trees: snaps, Platform: host, Dir: root}, store, snaps, contentBlobs{blobs}, newAsker(), false}
}

// layer applies a layer with files of a time that has nanoseconds.
func (h *house) layer(t testing.TB, parent snapshot.ChainID, entries ...snapshottest.Entry) snapshot.ChainID {
	t.Helper()
	for i := range entries {
		if entries[i].ModTime.IsZero() {
			entries[i].ModTime = layerTime.Add(123456789)
		}
		entries[i].Format = tar.FormatPAX
	}
	chain := snapshottest.Apply(t, h.snaps, parent, snapshottest.Tar(t, entries...)).Chain
	if err := h.snaps.Hold(ctx, "build/"+chain.Encoded(), chain); err != nil { // as whoever builds does
		t.Fatal(err)
	}
	return chain
}

func (h *house) job(res *export.Result) export.Job {
	return export.Job{Result: res, Progress: silent{}, Session: &build.Session{Outputs: h.asker, Blobs: h.asker}, Walk: func(platform string, fn func(solve.Step) error) error {
		out, _ := res.FindRef(platform)
		for chain := out.Chain; chain != "" && !h.forgot; { // each layer was made by a step
			l, err := h.snaps.Stat(ctx, chain)
			if err == nil {
				err = fn(solve.Step{Vertex: &build.Vertex{Name: "RUN something"}, Outputs: []build.Output{{Chain: chain}}, Completed: layerTime})
			}
			if err != nil {
				return err
			}
			chain = l.Parent
		}
		return nil
	}}
}

func (h *house) export(t testing.TB, res *export.Result, kind string, attrs ...string) map[string]string {
	t.Helper()
	said, err := h.Export(ctx, spec(kind, attrs...), h.job(res))
	if err != nil {
		t.Fatal(err)
	}
	return said
}

func spec(kind string, attrs ...string) export.Spec {
	s := export.Spec{Type: kind, ID: "0", Attrs: map[string]string{}}
	for _, a := range attrs {
		name, value, _ := strings.Cut(a, "=")
		s.Attrs[name] = value
	}
	return s
}

const config = `{"architecture":"amd64","os":"linux","config":{"Cmd":["/bin/app"],"Labels":{"a":"b"}},"history":[{"created_by":"COPY app /bin/app","comment":"buildkit.dockerfile.v0"},{"created_by":"CMD [\"/bin/app\"]","empty_layer":true}],"unknown.field":{"kept":true}}`

// single is a result for one platform.
func single(chain snapshot.ChainID) *export.Result {
	return &export.Result{Ref: &build.Output{Chain: chain}, Metadata: map[string][]byte{exptypes.ExporterImageConfigKey: []byte(config)}}
}

// several is a result for several platforms.
func several(t testing.TB, chains map[string]snapshot.ChainID) *export.Result {
	t.Helper()
	res := &export.Result{Refs: map[string]*build.Output{}, Metadata: map[string][]byte{}}
	var all exptypes.Platforms
	for _, id := range slices.Sorted(maps.Keys(chains)) {
		os, arch, _ := strings.Cut(id, "/")
		all.Platforms = append(all.Platforms, exptypes.Platform{ID: id, Platform: ocispec.Platform{OS: os, Architecture: arch}})
		res.Refs[id] = &build.Output{Chain: chains[id]}
		res.Metadata[exptypes.ExporterImageConfigKey+"/"+id] = []byte(strings.Replace(config, `"amd64"`, `"`+arch+`"`, 1))
	}
	raw, err := json.Marshal(all)
	if err != nil {
		t.Fatal(err)
	}
	res.Metadata[exptypes.ExporterPlatformsKey] = raw
	return res
}

type silent struct{}

func (silent) Log(int, []byte)                   {}
func (silent) Status(string, int64, int64, bool) {}
func (silent) Warn(build.Warning)                {}

// asker takes outputs into memory.
type asker struct {
	mu    sync.Mutex
	file  bytes.Buffer
	tree  []byte
	blobs map[digest.Digest][]byte
	refs  map[string][]byte
}

func newAsker() *asker {
	return &asker{blobs: map[digest.Digest][]byte{}, refs: map[string][]byte{}}
}

type buffer struct{ *bytes.Buffer }

func (buffer) Close() error { return nil }

func (a *asker) File(context.Context, string, map[string]string) (io.WriteCloser, error) {
	a.file.Reset()
	return buffer{&a.file}, nil
}

func (a *asker) Tree(_ context.Context, _ string, r io.Reader) (err error) {
	a.tree, err = io.ReadAll(r)
	return err
}

func (a *asker) Reader(_ context.Context, _ string, d digest.Digest) (io.ReadCloser, int64, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return io.NopCloser(bytes.NewReader(a.blobs[d])), int64(len(a.blobs[d])), nil
}

func (a *asker) Write(_ context.Context, store string, d digest.Digest, size int64, r io.Reader) error {
	raw, err := io.ReadAll(r)
	if err != nil {
		return err
	}
	if digest.FromBytes(raw) != d || int64(len(raw)) != size || store != "export" {
		return fmt.Errorf("store %s: blob %s of %d bytes is %s of %d", store, d, size, digest.FromBytes(raw), len(raw))
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.blobs[d] = raw
	return nil
}

func (a *asker) Ref(_ context.Context, _, name string) ([]byte, error) { return a.refs[name], nil }

func (a *asker) SetRef(_ context.Context, _, name string, raw []byte) error {
	a.refs[name] = raw
	return nil
}

// listing reads an archive as lines "type name mode uid:gid time link content".
func listing(t testing.TB, raw []byte) (lines []string) {
	t.Helper()
	tr := tar.NewReader(bytes.NewReader(raw))
	for {
		hdr, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return lines
		}
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(tr)
		if err != nil {
			t.Fatal(err)
		}
		if len(body) > 40 {
			body = []byte(fmt.Sprint(len(body), " bytes"))
		}
		lines = append(lines, strings.TrimRight(fmt.Sprintf("%c %s %o %d:%d %s %s", hdr.Typeflag, hdr.Name, hdr.Mode, hdr.Uid, hdr.Gid, hdr.Linkname, body), " "))
	}
}

func member(t testing.TB, raw []byte, name string) []byte {
	t.Helper()
	tr := tar.NewReader(bytes.NewReader(raw))
	for {
		hdr, err := tr.Next()
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if hdr.Name == name {
			body, err := io.ReadAll(tr)
			if err != nil {
				t.Fatal(err)
			}
			return body
		}
	}
}
