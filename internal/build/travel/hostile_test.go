package travel_test

import (
	"context"
	"encoding/json"
	"io"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	specs "github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"corten.dev/corten/internal/build"
	"corten.dev/corten/internal/build/travel"
	"corten.dev/corten/internal/manifest"
)

const cacheType = "application/vnd.buildkit.cacheconfig.v0"

// forge puts a cache into a folder, its document as change makes it.
func forge(t *testing.T, f *memory, change func(doc map[string]any, layers []ocispec.Descriptor) []ocispec.Descriptor) {
	t.Helper()
	var d ocispec.Descriptor
	var m ocispec.Manifest
	var doc map[string]any
	for _, it := range []struct {
		raw  func() []byte
		into any
	}{{func() []byte { return f.refs["latest"] }, &d}, {func() []byte { return f.blobs[d.Digest] }, &m}, {func() []byte { return f.blobs[m.Config.Digest] }, &doc}} {
		if err := json.Unmarshal(it.raw(), it.into); err != nil {
			t.Fatal(err)
		}
	}
	layers := change(doc, m.Layers)
	put := func(v any) (digest.Digest, int64) {
		raw, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		f.blobs[digest.FromBytes(raw)] = raw
		return digest.FromBytes(raw), int64(len(raw))
	}
	config := ocispec.Descriptor{MediaType: cacheType}
	config.Digest, config.Size = put(doc)
	root := ocispec.Descriptor{MediaType: manifest.OCIManifest}
	root.Digest, root.Size = put(ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: manifest.OCIManifest, Config: config, Layers: layers})
	raw, err := json.Marshal(root)
	if err != nil {
		t.Fatal(err)
	}
	f.refs["latest"] = raw
}

func ours(doc map[string]any) map[string]any { return doc["corten.dev/cache"].(map[string]any) }

func chains(doc map[string]any) []any { return ours(doc)["chains"].([]any) }

func recs(doc map[string]any) []any { return ours(doc)["records"].([]any) }

// A cache of another's making is refused as a whole when its shape is wrong.
func TestHostileDocuments(t *testing.T) {
	zero := digest.FromString("").String()
	for name, change := range map[string]func(doc map[string]any){
		"a chain that stands on itself":  func(doc map[string]any) { chains(doc)[0].(map[string]any)["parent"] = 0 },
		"a chain that stands on a later": func(doc map[string]any) { chains(doc)[0].(map[string]any)["parent"] = 1 },
		"a chain below nothing":          func(doc map[string]any) { chains(doc)[0].(map[string]any)["parent"] = -7 },
		"a diff that is no digest":       func(doc map[string]any) { chains(doc)[0].(map[string]any)["diff"] = "sha256:../../etc" },
		"a diff of another algorithm": func(doc map[string]any) {
			chains(doc)[0].(map[string]any)["diff"] = "sha512:" + strings.Repeat("0", 128)
		},
		"a chain that calls itself another": func(doc map[string]any) { chains(doc)[0].(map[string]any)["name"] = zero },
		"an output beyond the chains":       func(doc map[string]any) { recs(doc)[0].(map[string]any)["outputs"] = []int{99} },
		"an output below the empty tree":    func(doc map[string]any) { recs(doc)[0].(map[string]any)["outputs"] = []int{-2} },
		"a thousand and more outputs":       func(doc map[string]any) { recs(doc)[0].(map[string]any)["outputs"] = make([]int, 1025) },
		"a key twice":                       func(doc map[string]any) { ours(doc)["records"] = append(recs(doc), recs(doc)[0]) },
		"a key that is none":                func(doc map[string]any) { recs(doc)[0].(map[string]any)["key"] = "x" },
		"a negative time":                   func(doc map[string]any) { recs(doc)[0].(map[string]any)["taken"] = -1 },
		"another version":                   func(doc map[string]any) { ours(doc)["version"] = 2 },
		"a mount without an id":             func(doc map[string]any) { ours(doc)["mounts"] = []any{map[string]any{"chain": 0, "base": -1}} },
		"something else":                    func(doc map[string]any) { doc["corten.dev/cache"] = "x" },
	} {
		h := newHost(t)
		stage, final := h.multi()
		f := newFolder()
		job := travel.Job{Session: &build.Session{Blobs: f}}
		h.export(option("local", "dest=/x", "mode=max"), job, both(stage, final))
		forge(t, f, func(doc map[string]any, layers []ocispec.Descriptor) []ocispec.Descriptor {
			change(doc)
			return layers
		})
		imp, err := h.Import(ctx, option("local", "src=/x"), job)
		if err != nil {
			t.Fatal(err)
		}
		if _, _, ok, err := imp.Lookup(ctx, final.steps[0].Key); ok || err == nil {
			t.Errorf("%s: %v %v", name, ok, err)
		}
	}
}

// Layers that are not what the document says never become a result: the chain is computed of the diff ids, and each layer must have its own.
func TestHostileLayers(t *testing.T) {
	for name, change := range map[string]func(f *memory, doc map[string]any, layers []ocispec.Descriptor) []ocispec.Descriptor{
		"blobs swapped": func(_ *memory, doc map[string]any, layers []ocispec.Descriptor) []ocispec.Descriptor {
			all := doc["layers"].([]any)
			a, b := all[0].(map[string]any), all[2].(map[string]any)
			a["blob"], b["blob"] = b["blob"], a["blob"]
			return layers
		},
		"bytes of a blob changed": func(f *memory, _ map[string]any, layers []ocispec.Descriptor) []ocispec.Descriptor {
			for _, l := range layers {
				f.blobs[l.Digest][len(f.blobs[l.Digest])-9] ^= 1
			}
			return layers
		},
		"a blob gone": func(f *memory, _ map[string]any, layers []ocispec.Descriptor) []ocispec.Descriptor {
			for _, l := range layers {
				delete(f.blobs, l.Digest)
			}
			return layers
		},
	} {
		a := newHost(t)
		stage, final := a.multi()
		f := newFolder()
		job := travel.Job{Session: &build.Session{Blobs: f}}
		a.export(option("local", "dest=/x", "mode=max"), job, both(stage, final))
		forge(t, f, func(doc map[string]any, layers []ocispec.Descriptor) []ocispec.Descriptor {
			return change(f, doc, layers)
		})
		b := newHost(t)
		imp, err := b.Import(ctx, option("local", "src=/x"), job)
		if err != nil {
			t.Fatal(err)
		}
		chain, fetch := b.find(imp, "copy")
		if fetch == nil {
			t.Fatal(name)
		}
		if err := fetch(ctx, b.tells); err == nil || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := b.snaps.Stat(ctx, chain); err == nil {
			t.Errorf("%s: the result is here", name)
		}
	}
}

// Blobs that the manifest does not list do not count, whatever the document says of them.
func TestUnlistedBlobsDoNotCount(t *testing.T) {
	h := newHost(t)
	stage, final := h.multi()
	f := newFolder()
	job := travel.Job{Session: &build.Session{Blobs: f}}
	h.export(option("local", "dest=/x", "mode=max"), job, both(stage, final))
	forge(t, f, func(_ map[string]any, _ []ocispec.Descriptor) []ocispec.Descriptor { return []ocispec.Descriptor{} })
	b := newHost(t)
	imp, err := b.Import(ctx, option("local", "src=/x"), job)
	if err != nil {
		t.Fatal(err)
	}
	if chain, fetch := b.find(imp, "copy"); chain != final.chain(1) || fetch != nil {
		t.Errorf("%s %v", chain, fetch == nil)
	}
}

// BuildKit's own caches are read, and have nothing for us.
func TestCacheOfBuildKit(t *testing.T) {
	h := newHost(t)
	stage, final := h.multi()
	f := newFolder()
	job := travel.Job{Session: &build.Session{Blobs: f}}
	h.export(option("local", "dest=/x", "mode=max"), job, both(stage, final))
	forge(t, f, func(doc map[string]any, layers []ocispec.Descriptor) []ocispec.Descriptor {
		maps.DeleteFunc(doc, func(key string, _ any) bool { return !slices.Contains([]string{"layers", "records"}, key) })
		return layers
	})
	imp, err := h.Import(ctx, option("local", "src=/x"), job)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, ok, err := imp.Lookup(ctx, final.steps[0].Key); ok || err != nil {
		t.Errorf("%v %v", ok, err)
	}
}

// endless is a folder whose blobs have no end.
type endless struct{ *memory }

func (e endless) Reader(ctx context.Context, store string, d digest.Digest) (io.ReadCloser, int64, error) {
	r, _, err := e.memory.Reader(ctx, store, d)
	if err != nil {
		return nil, 0, err
	}
	return struct {
		io.Reader
		io.Closer
	}{io.MultiReader(r, spaces{}), r}, 1 << 20, nil
}

type spaces struct{}

func (spaces) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = ' '
	}
	return len(p), nil
}

func TestEndlessDocument(t *testing.T) {
	h := newHost(t)
	_, final := h.multi()
	f := newFolder()
	h.export(option("local", "dest=/x"), travel.Job{Session: &build.Session{Blobs: f}}, final)
	imp, err := h.Import(ctx, option("local", "src=/x"), travel.Job{Session: &build.Session{Blobs: endless{f}}})
	if err != nil {
		t.Fatal(err)
	}
	if _, _, ok, err := imp.Lookup(ctx, final.steps[0].Key); ok || err == nil {
		t.Errorf("%v %v", ok, err)
	}
}
