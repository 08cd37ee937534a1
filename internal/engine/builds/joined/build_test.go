package joined_test

import (
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/opencontainers/go-digest"

	"corten.dev/corten/internal/engine/builds"
)

func itoa(n int) string { return strconv.Itoa(n) }

// What people do first: an image of a base, a program that runs, and a file of theirs; and again, with nothing to do.
func TestBuild(t *testing.T) {
	h := newHost(t)
	ses := h.context(map[string]string{
		"Dockerfile": "FROM busybox\nRUN echo hello > /greeting\nCOPY message /message\nWORKDIR /work\nCMD [\"cat\", \"/greeting\"]\n",
		"message":    "of mine\n",
	})
	resp, out, err := h.build(ses, "first:latest", nil)
	if err != nil {
		t.Fatalf("%v\n%s", err, out.logs.String())
	}
	if resp.Exporter["containerimage.config.digest"] == "" {
		t.Errorf("response: %v", resp.Exporter)
	}
	if got := h.cat("first:latest", "/greeting"); got != "hello\n" {
		t.Errorf("/greeting: %q", got)
	}
	if got := h.cat("first:latest", "/message"); got != "of mine\n" {
		t.Errorf("/message: %q", got)
	}
	img, err := h.images.Get(t.Context(), "first:latest")
	if err != nil {
		t.Fatal(err)
	}
	if cfg := img.Config.Config; cfg.WorkingDir != "/work" || strings.Join(cfg.Cmd, " ") != "cat /greeting" {
		t.Errorf("config: %+v", cfg)
	}
	again, out, err := h.build(ses, "first:latest", nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, run := out.cached(); len(run) > 0 {
		t.Logf("not cached: %q", run)
	}
	if a, b := resp.Exporter["containerimage.config.digest"], again.Exporter["containerimage.config.digest"]; a != b {
		t.Errorf("the same build gave %s, then %s", a, b)
	}
}

// Askers that want the same at the same time share the work: each step is run once.
func TestEqualWorkOnce(t *testing.T) {
	h := newHost(t)
	ses := h.context(map[string]string{"Dockerfile": "FROM busybox\nRUN sleep 0.3; cat /proc/sys/kernel/random/uuid > /stamp\nRUN cat /stamp\n"})
	const askers = 6
	outs := make([]string, askers)
	var all sync.WaitGroup
	for i := range askers {
		all.Go(func() {
			_, out, err := h.build(ses, "shared:"+itoa(i), nil)
			if err != nil {
				t.Error(err)
				return
			}
			outs[i] = h.cat("shared:"+itoa(i), "/stamp")
			_ = out
		})
	}
	all.Wait()
	for i := range outs {
		if outs[i] == "" || outs[i] != outs[0] {
			t.Errorf("asker %d has a result of its own: %q, %q", i, outs[i], outs[0])
		}
	}
}

// What is asked for without the cache is run again; what reads the changed file only is run again for it.
func TestCache(t *testing.T) {
	h := newHost(t)
	files := map[string]string{"Dockerfile": "FROM busybox AS a\nRUN cat /proc/sys/kernel/random/uuid > /a\nFROM a AS b\nCOPY one /one\nRUN cat /proc/sys/kernel/random/uuid > /b\n", "one": "1", "two": "2"}
	stamps := func(files map[string]string, attrs map[string]string) (string, string) {
		t.Helper()
		_, _, err := h.build(h.context(files), "c:1", func(r *builds.Request) {
			for k, v := range attrs {
				r.FrontendAttrs[k] = v
			}
		})
		if err != nil {
			t.Fatal(err)
		}
		return h.cat("c:1", "/a"), h.cat("c:1", "/b")
	}
	a1, b1 := stamps(files, nil)
	files["two"] = "changed"
	if a, b := stamps(files, nil); a != a1 || b != b1 {
		t.Error("a file that no step reads made a step run")
	}
	files["one"] = "changed"
	a2, b2 := stamps(files, nil)
	if a2 != a1 || b2 == b1 {
		t.Errorf("after a change of what a step reads: %v %v", a2 == a1, b2 == b1)
	}
	if a, b := stamps(files, map[string]string{"no-cache": "b"}); a != a1 || b == b2 {
		t.Errorf("no-cache for one stage: %v %v", a == a1, b == b2)
	}
	if a, _ := stamps(files, map[string]string{"no-cache": ""}); a == a1 {
		t.Error("no-cache took a from the cache")
	}
}

// Nothing is left of builds once their images and cache are gone: no tree, no layer.
func TestPruneLeavesNothing(t *testing.T) {
	h := newHost(t)
	if _, _, err := h.build(h.context(map[string]string{"Dockerfile": "FROM busybox\nRUN --mount=type=cache,target=/c echo x > /c/f; echo y > /y\n"}), "p:1", nil); err != nil {
		t.Fatal(err)
	}
	layers := func() int {
		all, err := h.trees.Layers(t.Context())
		must(t, err)
		return len(all)
	}
	before := layers()
	_, err := h.images.Remove(t.Context(), "p:1", true, true, func(digest.Digest) (stopped, running []string) { return nil, nil })
	must(t, err)
	var gone []string
	_, err = h.Prune(t.Context(), builds.PruneOptions{All: true}, func(u builds.UsageRecord) { gone = append(gone, u.Kind+" "+u.Description) })
	must(t, err)
	used, err := h.DiskUsage(t.Context(), nil)
	must(t, err)
	if len(used) > 0 {
		t.Errorf("still used: %+v", used)
	}
	if len(gone) < 2 || layers() != 1 { // the base
		t.Errorf("%d of %d layers are left; went: %q", layers(), before, gone)
	}
	must(t, h.trees.Walk(t.Context(), func(key string, labels map[string]string) error {
		t.Errorf("tree %s is left: %v", key, labels)
		return nil
	}))
}
