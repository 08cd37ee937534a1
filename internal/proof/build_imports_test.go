package proof

import (
	"os"
	"slices"
	"strings"
	"testing"

	bk "github.com/moby/buildkit/client"

	"corten.dev/corten/internal/enginetest"
)

// A cache that only the frontend names (here by its own attribute, as clients do whose requests have no field for caches) is imported, once; one that cannot be had is a warning, and the
// steps run.
func TestFrontendNamesCaches(t *testing.T) {
	reg := enginetest.NewRegistry(t)
	e := enginetest.Start(t)
	client := buildKit(t, e)
	const lines = "FROM busybox AS a\nRUN cat /proc/sys/kernel/random/uuid | tee /id\nFROM scratch\nCOPY --from=a /id /\n"
	build := func(change func(*bk.SolveOpt)) (id string, cached, warnings []string) {
		t.Helper()
		out := t.TempDir()
		opt := dockerfile(t, lines, nil)
		opt.FrontendAttrs = map[string]string{}
		opt.Exports = []bk.ExportEntry{{Type: bk.ExporterLocal, OutputDir: out}}
		change(&opt)
		status, done := make(chan *bk.SolveStatus), make(chan struct{})
		go func() {
			defer close(done)
			for st := range status {
				for _, w := range st.Warnings {
					warnings = append(warnings, string(w.Short))
				}
				for _, v := range st.Vertexes {
					if v.Cached && v.Completed != nil {
						cached = append(cached, v.Name)
					}
				}
			}
		}()
		_, err := client.Solve(t.Context(), nil, opt, status)
		<-done
		if err != nil {
			t.Fatal(err)
		}
		text, err := os.ReadFile(out + "/id")
		if err != nil {
			t.Fatal(err)
		}
		return string(text), cached, warnings
	}
	forget := func() {
		t.Helper()
		if err := client.Prune(t.Context(), nil, bk.PruneAll); err != nil {
			t.Fatal(err)
		}
	}
	ref := reg.Addr + "/cache:x"
	first, _, _ := build(func(opt *bk.SolveOpt) {
		opt.CacheExports = []bk.CacheOptionsEntry{{Type: "registry", Attrs: map[string]string{"ref": ref, "mode": "max"}}}
	})
	forget()
	if id, cached, warnings := build(func(opt *bk.SolveOpt) { opt.FrontendAttrs["cache-from"] = ref }); id != first || len(warnings) > 0 ||
		!slices.ContainsFunc(cached, func(name string) bool { return strings.Contains(name, "COPY") }) {
		t.Errorf("with the frontend's cache: %q after %q, cached %q, warnings %q", id, first, cached, warnings)
	}
	forget()
	id, _, warnings := build(func(opt *bk.SolveOpt) { opt.FrontendAttrs["cache-from"] = reg.Addr + "/cache:nosuch" })
	if id == first || !slices.ContainsFunc(warnings, func(w string) bool { return strings.Contains(w, "/cache:nosuch") }) {
		t.Errorf("with a cache that is not there: %q after %q, warnings %q", id, first, warnings)
	}
}
