package images

import (
	"context"
	"errors"
	"io"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"corten.dev/corten/internal/build"
	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/manifest"
	"corten.dev/corten/internal/snapshot"
)

// parts remembers which parts of a step were begun and done.
type parts struct {
	mu   sync.Mutex
	done map[string]bool
}

func (p *parts) Log(int, []byte)    {}
func (p *parts) Warn(build.Warning) {}
func (p *parts) Status(id string, _, _ int64, done bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.done == nil {
		p.done = map[string]bool{}
	}
	p.done[id] = done
}

func (p *parts) check(t *testing.T, want ...string) {
	t.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	for id, done := range p.done {
		if !done {
			t.Errorf("%s is not done", id)
		}
	}
	for _, id := range want {
		if !p.done[id] {
			t.Errorf("no %s in %v", id, p.done)
		}
	}
}

func TestBase(t *testing.T) {
	b := newBench(t)
	bases := NewBases(b.Service)
	doc := b.reg.add(t, "1", here, "base", "top")
	ref := parseAll(t, "busybox:1")[0]
	if _, err := bases.Local(t.Context(), ref, here); !errors.Is(err, errs.NotFound) {
		t.Fatal(err)
	}
	img, err := bases.Remote(t.Context(), ref, manifest.Platform{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	want := []digest.Digest{diffOf([]byte("base")), diffOf([]byte("top"))}
	if img.Digest != doc.Digest || img.Manifest != doc.Digest || !slices.Equal(img.DiffIDs, want) || len(img.Config) == 0 {
		t.Errorf("%+v", img)
	}
	if b.store.unpacks > 0 {
		t.Error("a layer was fetched before it was wanted")
	}
	p, kept := &parts{}, snapshot.ChainID("")
	keep := func(_ context.Context, chain snapshot.ChainID) error { kept = chain; return nil }
	if err := img.Fetch(t.Context(), 1, p, keep); err != nil {
		t.Fatal(err)
	}
	if kept != want[0] || b.store.unpacks != 1 {
		t.Error(kept, b.store.unpacks)
	}
	if err := img.Fetch(t.Context(), 2, p, keep); err != nil || kept != snapshot.ChainOf(want[0], want[1]) || b.store.unpacks != 2 {
		t.Error(err, kept, b.store.unpacks)
	}
	top := digest.FromString("top").String()
	p.check(t, top, "extracting "+top)
	if len(b.store.images) > 0 || len(b.store.names) > 0 {
		t.Error("the base is an image of the store")
	}
	// A rebuild asks once what the name means.
	b.reg.asked = nil
	if _, err := bases.Remote(t.Context(), ref, here, nil); err != nil || !slices.Equal(b.reg.asked, []string{"HEAD 1"}) {
		t.Error(err, b.reg.asked)
	}
	// What cannot be kept is told.
	if err := img.Fetch(t.Context(), 2, p, func(context.Context, snapshot.ChainID) error { return errors.New("disk") }); err == nil || err.Error() != "disk" {
		t.Error(err)
	}
	// In the store, it is found there, with the digest that its name leads to.
	var l lines
	if err := b.Pull(t.Context(), PullOptions{Ref: "busybox:1"}, l.report); err != nil {
		t.Fatal(err)
	}
	if img, err = bases.Local(t.Context(), ref, here); err != nil || img.Digest != doc.Digest || img.Fetch != nil {
		t.Error(img, err)
	}
}

func TestBaseAttestations(t *testing.T) {
	b := newBench(t)
	bases := NewBases(b.Service)
	img := b.reg.add(t, "", here, "base")
	statement := []byte(`{"predicateType":"https://slsa.dev/provenance/v1"}`)
	b.reg.blobs[digest.FromBytes(statement)] = statement
	empty := []byte("{}")
	b.reg.blobs[digest.FromBytes(empty)] = empty
	m := ocispec.Manifest{MediaType: manifest.OCIManifest, Config: ocispec.Descriptor{MediaType: manifest.OCIConfig, Digest: digest.FromBytes(empty), Size: 2}, Layers: []ocispec.Descriptor{{
		MediaType: "application/vnd.in-toto+json", Digest: digest.FromBytes(statement), Size: int64(len(statement)), Annotations: map[string]string{"in-toto.io/predicate-type": "https://slsa.dev/provenance/v1"}}}}
	m.SchemaVersion = 2
	att := b.reg.put(t, "", m)
	entry := descOf(att, manifest.Platform{OS: "unknown", Arch: "unknown"})
	entry.Annotations = map[string]string{"vnd.docker.reference.type": "attestation-manifest", "vnd.docker.reference.digest": img.Digest.String()}
	index := b.reg.index(t, "1", descOf(img, here), entry)
	chain, blobs, err := bases.Attestations(t.Context(), parseAll(t, "busybox:1")[0], here, []string{"https://slsa.dev/provenance/v1"}, nil)
	if err != nil || !slices.Equal(chain, []digest.Digest{index.Digest, img.Digest, att.Digest}) || string(blobs[digest.FromBytes(statement)].Data) != string(statement) || len(blobs) != 4 {
		t.Error(chain, blobs, err)
	}
}

// askerBlobs are OCI layouts of an asker.
type askerBlobs struct {
	build.Blobs
	blobs map[digest.Digest][]byte
	refs  map[string][]byte
}

func (a *askerBlobs) Reader(_ context.Context, store string, d digest.Digest) (io.ReadCloser, int64, error) {
	raw, ok := a.blobs[d]
	if !ok || store != "st" {
		return nil, 0, errs.New(errs.NotFound, "no blob %s in %s", d, store)
	}
	return io.NopCloser(strings.NewReader(string(raw))), int64(len(raw)), nil
}

func (a *askerBlobs) Ref(_ context.Context, _, name string) ([]byte, error) {
	raw, ok := a.refs[name]
	if !ok {
		return nil, errs.New(errs.NotFound, "no ref %s", name)
	}
	return raw, nil
}

func TestBaseLayout(t *testing.T) {
	b := newBench(t)
	bases := NewBases(b.Service)
	doc := b.reg.add(t, "1", here, "base", "top")
	asker := &askerBlobs{blobs: map[digest.Digest][]byte{}, refs: map[string][]byte{"latest": []byte(`{"mediaType":"` + doc.MediaType + `","digest":"` + doc.Digest.String() + `","size":1}`)}}
	for d, raw := range b.reg.blobs {
		asker.blobs[d] = raw
	}
	asker.blobs[doc.Digest] = doc.Raw
	for _, name := range []string{"latest", doc.Digest.String()} {
		img, err := bases.Layout(t.Context(), asker, "st", name, here)
		if err != nil || img.Digest != doc.Digest {
			t.Fatal(img, err)
		}
		if err := img.Fetch(t.Context(), 2, &parts{}, func(context.Context, snapshot.ChainID) error { return nil }); err != nil {
			t.Error(err)
		}
	}
	if b.store.unpacks != 2 {
		t.Error(b.store.unpacks)
	}
	if _, err := bases.Layout(t.Context(), asker, "st", "none", here); !errors.Is(err, errs.NotFound) {
		t.Error(err)
	}
	// Bytes that are not those of the digest are refused, documents and layers alike.
	b.store.layers = map[digest.Digest]bool{}
	asker.blobs[digest.FromString("top")] = []byte("pot")
	img, err := bases.Layout(t.Context(), asker, "st", "latest", here)
	if err != nil {
		t.Fatal(err)
	}
	if err := img.Fetch(t.Context(), 2, &parts{}, func(context.Context, snapshot.ChainID) error { return nil }); err == nil {
		t.Error("a wrong layer is taken")
	}
	asker.blobs[doc.Digest] = []byte("{}")
	if _, err := bases.Layout(t.Context(), asker, "st", "latest", here); err == nil || !strings.Contains(err.Error(), "other bytes") {
		t.Error(err)
	}
}
