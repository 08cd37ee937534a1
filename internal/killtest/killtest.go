// Package killtest kills a process of a test at any moment of its work, as a power cut or the kernel would, and tells what it had said until then.
//
// It owns the child: the test's own program, run again for one test. It promises: a child that ended by itself, or found something wrong, fails the test; only whole lines count, as the last
// one may be cut.
//
//	func TestKillChild(t *testing.T) {
//		root := killtest.Child(t)
//		// work in root without end, and print what was promised
//	}
//
//	func TestKill(t *testing.T) {
//		root := t.TempDir()
//		for range 8 {
//			for word, name := range killtest.Run(t, "TestKillChild", root, 40*time.Millisecond) {
//				// "promised", "sha256:…"
//			}
//		}
//		// look at what is in root
//	}
package killtest

import (
	"bytes"
	"iter"
	"math/rand/v2"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"
)

const rootVariable = "CORTEN_TEST_KILL_ROOT"

// Child gives the folder that the child works in. In a process that is no child the test is skipped.
func Child(t *testing.T) (root string) {
	t.Helper()
	if root = os.Getenv(rootVariable); root == "" {
		t.Skip("only as a child that is killed")
	}
	return root
}

// Run runs the test named child and kills it, at the earliest after least, then within 150 ms. It gives the lines that it printed, cut at their first space.
func Run(t *testing.T, child, root string, least time.Duration) iter.Seq2[string, string] {
	t.Helper()
	cmd := exec.Command(os.Args[0], "-test.run", "^"+child+"$")
	cmd.Env = append(os.Environ(), rootVariable+"="+root)
	var out bytes.Buffer
	cmd.Stdout = &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	time.Sleep(least + rand.N(150*time.Millisecond))
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err == nil || strings.Contains(out.String(), "FAIL") {
		t.Fatalf("%v %s", err, out.String())
	}
	return func(yield func(word, rest string) bool) {
		for line := range strings.Lines(out.String()) {
			word, rest, ok := strings.Cut(line, " ")
			if rest, whole := strings.CutSuffix(rest, "\n"); ok && whole && !yield(word, rest) {
				return
			}
		}
	}
}
