package ops

import (
	"os"
	"testing"

	"github.com/moby/buildkit/client/llb"
)

// A copy puts files into directories that it made beside the overlay, and into others through it: names of one file that lie on both sides are still one file, what comes next sees all of
// it, and a directory that was made keeps what later steps of the same operation do to it.
func TestInsideAndThrough(t *testing.T) {
	for driver := range drivers {
		t.Run(driver, func(t *testing.T) {
			l := newLabOn(t, driver)
			dir := t.TempDir()
			put(t, dir, "have/a=A", "new/b=B", "new/deep/c=C", "zzz=Z")
			for from, to := range map[string]string{"have/a": "new/deep/link", "new/b": "have/link", "zzz": "new/link"} {
				if err := os.Link(dir+"/"+from, dir+"/"+to); err != nil {
					t.Fatal(err)
				}
			}
			base := l.tree("n/have/old=O", "n/zzz=old", "n/gone=G")
			again := t.TempDir()
			put(t, again, "new/deep/c=changed", "new/more/d=D")
			act := llb.Rm("/n/gone").Copy(llb.Local("x"), "/", "/n/", dockerfile()).Copy(llb.Local("y"), "/", "/n/", dockerfile()).Rm("/n/new/b").Mkdir("/n/new/last", 0o755)
			out := l.must(l.op(act, false), base, l.context(dir), l.context(again))
			const want = "n 755 0:0 /\nn/have 755 0:0 /\nn/have/a 644 0:0 A\nn/have/link 644 0:0 B\nn/have/old 644 0:0 O\nn/new 755 0:0 /\nn/new/deep 755 0:0 /\nn/new/deep/c 644 0:0 changed\nn/new/deep/link 644 0:0 A\n" +
				"n/new/last 755 0:0 /\nn/new/link 644 0:0 Z\nn/new/more 755 0:0 /\nn/new/more/d 644 0:0 D\nn/zzz 644 0:0 Z"
			if got := l.show(out.Chain); got != want {
				t.Errorf("%s\nwanted:\n%s", got, want)
			}
		})
	}
}
