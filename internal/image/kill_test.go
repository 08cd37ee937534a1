package image_test

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"corten.dev/corten/internal/image"
)

const killRoot = "CORTEN_TEST_KILL_ROOT"

// TestKillChild is the process that TestKill kills: it imports, tags and removes without end, and says what it was promised.
func TestKillChild(t *testing.T) {
	root := os.Getenv(killRoot)
	if root == "" {
		t.Skip("only as a child of TestKill")
	}
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
		cmd := exec.Command(os.Args[0], "-test.run", "^TestKillChild$")
		cmd.Env = append(os.Environ(), killRoot+"="+root)
		var out bytes.Buffer
		cmd.Stdout = &out
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Duration(50+rand.IntN(150)) * time.Millisecond)
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		if err := cmd.Wait(); err == nil || strings.Contains(out.String(), "FAIL") {
			t.Fatalf("%v %s", err, out.String())
		}
		for line := range strings.Lines(out.String()) {
			if word, name, ok := strings.Cut(strings.TrimSuffix(line, "\n"), " "); ok && strings.HasPrefix(name, "app") {
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
