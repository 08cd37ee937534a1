package proof

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"corten.dev/corten/internal/enginetest"
)

// swapping makes /race/p by turns a directory and a link to a folder of the host, as fast as it can. Names are the same in both.
const swapping = `mkdir -p /race/p && echo inside > /race/p/file && ln -s "$1" /race/link && cd /race && echo ready && while true; do mv p real; mv link p; mv p link; mv real p; usleep 300; done`

// A program in a container changes a path into a link to a folder of the host while the engine uses that path: nothing there may ever be read or written.
func TestHostileLinks(t *testing.T) {
	e := enginetest.Start(t)
	secret := filepath.Join(e.Dir, "secret")
	writeFile(t, filepath.Join(secret, "file"), "outside\n")
	writeFile(t, filepath.Join(e.Dir, "new"), "new\n")
	met := map[string]int{}
	for _, up := range []string{"", "/..", "/../../../../../../.."} {
		e.Corten("run", "-d", "--name", "racer", "-v", "shared:/race", enginetest.Busybox, "sh", "-c", swapping, "sh", up+secret)
		wait(t, "the racer to begin", func() bool { out, err := e.Try("logs", "racer"); return err == nil && strings.Contains(out, "ready") })
		for i := range max(rounds(t)/2, 3) {
			hostileRound(t, e, met, i)
			entries, err := os.ReadDir(secret)
			if err != nil || len(entries) != 1 {
				t.Fatalf("the host's folder: %v %v", entries, err)
			}
			if raw, err := os.ReadFile(filepath.Join(secret, "file")); err != nil || string(raw) != "outside\n" {
				t.Fatalf("the host's file: %q %v", raw, err)
			}
		}
		e.Corten("rm", "-f", "-v", "racer")
		e.Corten("volume", "rm", "shared")
	}
	t.Log(met)
	if met["inside"] == 0 || met["nothing"]+met["refused"] == 0 {
		t.Error("one side won every race: this test tested nothing")
	}
}

// hostileRound uses the path in every way there is.
func hostileRound(t *testing.T, e *enginetest.Engine, met map[string]int, i int) {
	t.Helper()
	look := func(how, text string, err error) {
		t.Helper()
		switch {
		case strings.Contains(text, "outside"):
			t.Fatalf("%s read the host's file", how)
		case err == nil && strings.Contains(text, "inside"):
			met["inside"]++
		case err == nil:
			met["nothing"]++
		default:
			met["refused"]++
		}
	}
	out := filepath.Join(t.TempDir(), "out")
	_, err := e.Try("cp", "racer:/race/p/file", out)
	raw, _ := os.ReadFile(out) // missing is fine
	look("cp of a file", string(raw), err)

	dir := filepath.Join(t.TempDir(), "dir")
	_, err = e.Try("cp", "-L", "racer:/race/p", dir)
	raw = nil
	if st, serr := os.Lstat(dir); serr == nil && st.IsDir() { // a link that was copied as one leads out of the copy, and is the reader's own affair
		raw, _ = os.ReadFile(filepath.Join(dir, "file"))
	}
	look("cp of a directory", string(raw), err)

	_, err = e.Try("cp", filepath.Join(e.Dir, "new"), fmt.Sprintf("racer:/race/p/new-%d", i))
	look("cp into it", "", err)
	_, err = e.Try("cp", filepath.Join(e.Dir, "new"), "racer:/race/p/file")
	look("cp over its file", "", err)
	_, _ = e.Try("exec", "racer", "sh", "-c", "echo inside > /race/p/file || echo inside > /race/real/file")

	text, err := e.Try("exec", "-w", "/race/p", "racer", "cat", "file")
	look("exec", text, err)
	text, err = e.Try("run", "--rm", "--mount", "type=volume,src=shared,dst=/sub,volume-subpath=p", enginetest.Busybox, "cat", "/sub/file")
	look("a subpath of the volume", text, err)
	text, err = e.Try("run", "--rm", "-v", "shared:/race", "-v", filepath.Join(e.Dir, "new")+":/race/p/file", enginetest.Busybox, "cat", "/race/p/file")
	look("a mount below the volume", text, err)
	text, err = e.Try("run", "--rm", "-v", "shared:/race", "-w", "/race/p", enginetest.Busybox, "cat", "file")
	look("a working directory", text, err)
	text, err = e.Try("run", "--rm", "-v", "shared:/race", "--tmpfs", "/race/p/tmp", enginetest.Busybox, "ls", "/race/p")
	look("a tmpfs below the volume", text, err)
}
