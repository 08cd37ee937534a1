package proof

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"corten.dev/corten/internal/enginetest"
)

// What a build of the round's file must give. The counter of the cache mount only grows; how far depends on what was killed.
const killedDockerfile = `FROM busybox AS base
RUN echo base > /base && dd if=/dev/zero of=/zero bs=1M count=4 2>/dev/null
FROM base AS left
COPY file /left
RUN cat /left /left > /twice
FROM base AS right
RUN --mount=type=cache,target=/cache,sharing=locked echo run >> /cache/log && wc -l < /cache/log > /runs
RUN rm /zero && mkdir /dir && echo $(cat /runs) > /dir/right
FROM left
COPY --from=right /dir /dir
RUN echo "$(cat /base /twice) $(test -e /zero && echo zero)" > /result
CMD cat /result
`

// The engine is killed at random moments while clients build. The next engine builds the same, from what is there and what is not, and it is never something else: no cached
// result is a part of one, or another one's. In the end nothing is left but what a prune removes.
func TestKillBuild(t *testing.T) {
	e := enginetest.Start(t)
	dir := t.TempDir()
	for name, text := range map[string]string{"Dockerfile": killedDockerfile, "file": "first"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	build := func(tag string, more ...string) error {
		_, err := e.Try(append([]string{"build", "-q", "-t", tag}, append(more, dir)...)...)
		return err
	}
	if err := build("built"); err != nil {
		t.Fatal(err, e.Log())
	}
	for round := range rounds(t) {
		text := fmt.Sprintf("round %d", round)
		if err := os.WriteFile(filepath.Join(dir, "file"), []byte(text+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		var clients sync.WaitGroup
		stop := make(chan struct{})
		for i := range 3 {
			clients.Go(func() {
				for n := 0; ; n++ {
					select {
					case <-stop:
						return
					default:
					}
					switch tag := fmt.Sprintf("load-%d-%d", i, n%3); {
					case i == 0:
						_ = build(tag) // killed with the engine, or not
					case i == 1 && n%4 == 3:
						_, _ = e.Try("buildx", "prune", "-a", "-f")
					case i == 2 && n%3 == 2:
						_, _ = e.Try("rmi", "-f", fmt.Sprintf("load-0-%d", n%3))
					default:
						_ = build(tag, "--no-cache")
					}
				}
			})
		}
		time.Sleep(time.Duration(rand.IntN(400)) * time.Millisecond)
		e.Kill9()
		close(stop)
		clients.Wait()
		e.Up()
		for range 2 { // the second time from the cache
			if err := build("built"); err != nil {
				t.Fatalf("round %d: %v\n%s", round, err, e.Log())
			}
			want := fmt.Sprintf("base\n%s\n%s zero", text, text)
			if got, err := e.Try("run", "--rm", "built"); err != nil || got != want {
				t.Fatalf("round %d: the image says %q, %v\n%s", round, got, err, e.Log())
			}
		}
	}
	if out := e.Corten("images", "-q"); out == "" {
		t.Error("no image is there")
	}
	e.Corten("buildx", "prune", "-a", "-f")
	e.Clear()
	if out := e.Corten("buildx", "du"); strings.Count(out, "\n") > 2 {
		t.Errorf("left in the cache:\n%s", out)
	}
}
