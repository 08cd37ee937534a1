package travel

import (
	"encoding/json"
	"strings"
	"testing"

	v1 "github.com/moby/buildkit/cache/remotecache/v1/types"
	"github.com/opencontainers/go-digest"

	"corten.dev/corten/internal/manifest"
	"corten.dev/corten/internal/snapshot"
)

// FuzzRead reads documents of others: what is accepted can be walked without a look at bounds.
func FuzzRead(f *testing.F) {
	one, two := digest.FromString("1"), digest.FromString("2")
	doc := document{CacheConfig: v1.CacheConfig{Layers: []v1.CacheLayer{{Blob: one, ParentIndex: -1, Annotations: &v1.LayerAnnotations{DiffID: one, Size: 3}}}, Records: []v1.CacheRecord{{Digest: two}}}}
	doc.Own = &own{Version: version, Chains: []link{{Parent: -1, Diff: one}, {Parent: 0, Diff: two}, {Parent: -1, Name: two}, {Parent: 2, Diff: one}},
		Records: []record{{Key: one, Outputs: []int{0, -1}}, {Key: two, Outputs: []int{3}, Inputs: []digest.Digest{one}}}, Mounts: []mount{{ID: "go", Base: -1, Chain: 0}}}
	raw, err := json.Marshal(doc)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(raw)
	f.Add([]byte(`{}`))
	f.Add([]byte(`{"corten.dev/cache":{"version":1,"chains":[{"parent":0}]}}`))
	f.Add([]byte(strings.Repeat("[", 10_000)))
	f.Fuzz(func(t *testing.T, raw []byte) {
		c, err := read(raw)
		if err != nil {
			return
		}
		if len(c.chains) != len(c.own.Chains) || len(c.keys) != len(c.own.Records) {
			t.Fatal("something was left out")
		}
		for at := range c.chains {
			layers := c.layers(at)
			if len(layers) > manifest.MaxLayers {
				t.Fatalf("%d layers", len(layers))
			}
			var chain snapshot.ChainID
			for _, l := range layers {
				if chain = snapshot.ChainOf(chain, l.diff); chain != l.chain {
					t.Fatalf("chain %s, of its diffs %s", l.chain, chain)
				}
			}
			if layers != nil && chain != c.chain(at) {
				t.Fatalf("chain %d is %s, not %s", at, c.chain(at), chain)
			}
		}
		for _, rec := range c.keys {
			for _, at := range rec.Outputs {
				_ = c.chain(at)
			}
		}
		for _, m := range c.own.Mounts {
			_, _ = c.chain(m.Base), c.layers(m.Chain)
		}
		for _, d := range c.blobs {
			if err := manifest.Check(d); err != nil {
				t.Fatal(err)
			}
		}
		merged := merge(c, c)
		for at := range merged.chains {
			_ = merged.layers(at)
		}
	})
}
