package image_test

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"corten.dev/corten/internal/image"
	"corten.dev/corten/internal/killtest"
)

// TestKillChild is the process that TestKill kills: it imports, tags and removes without end, and says what it was promised.
func TestKillChild(t *testing.T) {
	root := killtest.Child(t)
	h := open(t, root)
	for n := os.Getpid() * 1000; ; n++ {
		name := fmt.Sprintf("app%d", n)
		if _, err := h.Import(ctx, bytes.NewReader(layerTar(t, n)), image.ImportOptions{Ref: name}); err != nil {
			t.Fatal(err)
		}
		fmt.Println("is", name)
		var buf bytes.Buffer
		if err := h.Save(ctx, []string{name}, nil, &buf); err != nil {
			t.Fatal(err)
		}
		if n%2 == 0 {
			fmt.Println("maybe", name)
			if _, err := h.Remove(ctx, name, false, true, nil); err != nil {
				t.Fatal(err)
			}
			fmt.Println("not", name)
			if _, err := h.Load(ctx, &buf, nil); err != nil {
				t.Fatal(err)
			}
			fmt.Println("is", name)
		}
	}
}

// An engine that is killed at any moment keeps every image it had confirmed, has none that it had removed, and no layer without an image.
func TestKill(t *testing.T) {
	root := t.TempDir()
	open(t, root)
	state := map[string]string{}
	for range 6 {
		for word, name := range killtest.Run(t, "TestKillChild", root, 50*time.Millisecond) {
			if strings.HasPrefix(name, "app") {
				state[name] = word
			}
		}
		// The process may have come further than its last line, but not by more than one step: "not" may be there again.
	}
	h := open(t, root)
	there := 0
	for name, word := range state {
		_, err := h.Get(ctx, name)
		if word == "is" && err != nil {
			t.Error(err)
		}
		if err == nil {
			there++
			if err := h.Save(ctx, []string{name}, nil, io.Discard); err != nil {
				t.Error(err)
			}
		}
	}
	all, err := h.List(ctx)
	if err != nil {
		t.Fatal(err)
	}
	layers, err := h.snaps.Layers(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if len(layers) != len(all) {
		t.Errorf("%d images, %d layers", len(all), len(layers))
	}
	h.unreferenced(t)
	for _, pattern := range []string{"images/*.tmp", "images/load-*", "snapshots/lost/*"} {
		if left, _ := filepath.Glob(filepath.Join(root, pattern)); len(left) > 0 {
			t.Errorf("left: %v", left)
		}
	}
	t.Logf("%d images were promised, %d of them are there, %d in all", len(state), there, len(all))
}
