package ops

import (
	"context"
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/moby/buildkit/client/llb"

	"corten.dev/corten/internal/build"
)

func manyFiles(t testing.TB, n int) string {
	dir := t.TempDir()
	body := make([]byte, 4000)
	for i := range n {
		sub := fmt.Sprintf("%s/d%d/e%d", dir, i/1000, i/100%10)
		if i%100 == 0 {
			os.MkdirAll(sub, 0o755)
		}
		if err := os.WriteFile(fmt.Sprintf("%s/file%d.go", sub, i), append(body[:i%4000], fmt.Sprint("package p // ", i)...), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	time.Sleep(40 * time.Millisecond)
	return dir
}

// BenchmarkCopy copies 50,000 files of a context: the actions, and making the layer.
func BenchmarkCopy(b *testing.B) {
	l := newLab(b)
	ctx := l.context(manyFiles(b, 50000))
	op := l.op(llb.Copy(llb.Local("x"), "/", "/app/", &llb.CopyInfo{CopyDirContentsOnly: true, CreateDestPath: true}), true)
	bg := context.Background()
	for _, in := range []string{"context", "chain"} {
		src := ctx
		if in == "chain" {
			out, _, err := l.o.Tree(bg, ctx.Files, everything)
			if err != nil {
				b.Fatal(err)
			}
			src = out
		}
		b.Run(in, func(b *testing.B) {
			for b.Loop() {
				start := time.Now()
				if _, err := op.Key(bg, build.Env{}, []build.Output{src}); err != nil {
					b.Fatal(err)
				}
				key := time.Since(start)
				made, err := op.Run(bg, build.Env{}, []build.Output{src})
				if err != nil || made.Volatile {
					b.Fatal(made, err)
				}
				b.Log("key", key, "run", time.Since(start)-key)
			}
		})
	}
}

// BenchmarkMkdir is what the smallest step costs (WORKDIR).
func BenchmarkMkdir(b *testing.B) {
	l := newLab(b)
	base := l.tree("f=F")
	i := 0
	for b.Loop() {
		i++
		l.must(l.op(llb.Mkdir(fmt.Sprint("/app", i), 0o755), false), base)
	}
}

// BenchmarkCopyFile is a small COPY, whose key is new each time.
func BenchmarkCopyFile(b *testing.B) {
	l := newLab(b)
	dir := b.TempDir()
	base, in := l.tree("f=F"), l.context(dir)
	i := 0
	for b.Loop() {
		i++
		os.WriteFile(dir+"/file", fmt.Append(nil, i), 0o644)
		l.must(l.op(llb.Copy(llb.Local("x"), "/file", "/app/", dockerfile()), false), base, in)
	}
}
