package joined_test

import (
	"slices"
	"strings"
	"testing"

	"corten.dev/corten/internal/engine/builds"
	"corten.dev/corten/internal/snapshot"
)

// The records were all there and the layers were not, as after a crash of the host: the exporter looked for the layers of a result that nobody had asked to be here, and the build failed with
// "layer of the result: … not found" each time, until the cache was pruned.
func TestLayersThatAreGoneAreMadeAgain(t *testing.T) {
	h := newHost(t)
	ses := h.context(map[string]string{"Dockerfile": `FROM busybox AS a
RUN echo a > /a
FROM busybox
COPY --from=a /a /a
RUN cat /a /a > /all
`})
	if _, out, err := h.build(ses, "", func(r *builds.Request) { r.Exports = nil }); err != nil {
		t.Fatalf("%v\n%s", err, out.logs.String())
	}
	h.collect()
	for round := range 2 {
		_, out, err := h.build(ses, "gone:latest", nil)
		if err != nil {
			t.Fatalf("%v\n%s", err, out.logs.String())
		}
		if got := h.cat("gone:latest", "/all"); got != "a\na\n" {
			t.Error(got)
		}
		_, run := out.cached()
		if ran := slices.ContainsFunc(run, func(name string) bool { return strings.Contains(name, "RUN") }); ran != (round == 0) {
			t.Errorf("round %d ran %q", round, run)
		}
	}
}

// collect takes away all layers but those of images, and leaves the records.
func (h *host) collect() {
	h.t.Helper()
	var names []string
	must(h.t, h.trees.Holds(h.t.Context(), func(name string, _ snapshot.ChainID) error { names = append(names, name); return nil }))
	for _, name := range names {
		must(h.t, h.trees.Release(h.t.Context(), name))
	}
	live := h.images.Live()
	for removed := true; removed; {
		removed = false
		layers, err := h.trees.Layers(h.t.Context())
		must(h.t, err)
		for _, l := range layers {
			removed = !live(l.Chain) && h.trees.RemoveLayer(h.t.Context(), l.Chain) == nil || removed
		}
	}
}
