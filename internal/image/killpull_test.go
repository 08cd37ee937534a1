package image_test

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"corten.dev/corten/internal/image"
	"corten.dev/corten/internal/snapshot/snapshottest"
)

const killPullRoot = "CORTEN_TEST_KILL_PULL_ROOT"

// killRemote is one of a few images that share layers; the compressors are such that blobs are found out, and such that they stay.
func killRemote(t testing.TB, n int) remote {
	tars := layersFor(t, 3)
	tars = append(tars, snapshottest.Tar(t, snapshottest.File(fmt.Sprint("own", n%5), strings.Repeat(fmt.Sprint(n%5), 50_000))))
	return makeRemote(t, "amd64", func(i int, tar []byte) (string, []byte) {
		kind, blob := gzipped(t)(i, tar)
		if i == 1 {
			blob = append(blob, gz(nil)...)
		}
		return kind, blob
	}, tars...)
}

// TestKillPullChild pulls, sends and removes without end, and says what it was promised.
func TestKillPullChild(t *testing.T) {
	root := os.Getenv(killPullRoot)
	if root == "" {
		t.Skip("only as a child of TestKillPull")
	}
	h := open(t, root)
	for n := rand.IntN(100); ; n++ {
		name := fmt.Sprintf("app%d", n%5)
		r := killRemote(t, n)
		fmt.Println("maybe", name)
		if _, err := h.pull(t, r, name); err != nil {
			t.Fatal(err)
		}
		fmt.Println("is", name)
		if n%3 == 0 {
			h.settle(t)
			out := sendOne(t, h, name, "")
			for i, l := range out.Layers() {
				if !bytes.Equal(readLayer(t, l, 0), r.blobs[i]) {
					t.Fatal("other bytes")
				}
			}
			out.Close()
		}
		if n%4 == 0 {
			fmt.Println("maybe", name)
			if _, err := h.Remove(ctx, name, false, true, nil); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// An engine that is killed anywhere in a pull, in finding out how a blob was made, or in deleting it, keeps every image it had confirmed with all its bytes, and leaves
// nothing that collection does not find.
func TestKillPull(t *testing.T) {
	root := t.TempDir()
	open(t, root)
	state := map[string]string{}
	for range 8 {
		cmd := exec.Command(os.Args[0], "-test.run", "^TestKillPullChild$")
		cmd.Env = append(os.Environ(), killPullRoot+"="+root)
		var out bytes.Buffer
		cmd.Stdout = &out
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Duration(50+rand.IntN(300)) * time.Millisecond)
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
	}
	h := open(t, root)
	h.settle(t)
	for n := range 5 {
		name := fmt.Sprint("app", n)
		if _, err := h.Get(ctx, name); err != nil {
			if state[name] == "is" {
				t.Error(err)
			}
			continue
		}
		r := killRemote(t, n)
		out := sendOne(t, h, name, "")
		for i, l := range out.Layers() {
			if !bytes.Equal(readLayer(t, l, 0), r.blobs[i]) {
				t.Errorf("%s: layer %d has other bytes", name, i)
			}
		}
		if doc, err := out.Manifest(); err != nil || doc.Digest != r.doc.Digest {
			t.Errorf("%s: %s %v", name, doc.Raw, err)
		}
		out.Close()
	}
	all, err := h.List(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, img := range all {
		if _, err := h.Remove(ctx, img.ID.String(), true, true, nil); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := h.Collect(ctx, image.Policy{Garbage: time.Nanosecond}, nil, nil); err != nil {
		t.Fatal(err)
	}
	h.isEmpty(t)
	t.Logf("%v", state)
}
