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

// Each step's result depends on the seed and on what the step before made, so that a result of another build, or half of one, shows in the sum of the last.
const seeded = `FROM busybox AS one
COPY seed /seed
RUN for i in 1 2 3 4 5; do cat /seed; echo $i; done > /a && sleep 0.05
FROM busybox AS two
COPY seed /seed
RUN --mount=type=cache,target=/c cat /seed > /c/last; sed s/^/two-/ /seed > /b && sleep 0.05
FROM busybox
COPY --from=one /a /
COPY --from=two /b /
RUN cat /a /b | md5sum > /sum && mkdir /d && i=0 && while [ $i -lt 50 ]; do cat /sum > /d/$i; i=$((i+1)); done
CMD cat /sum; cat /d/* | md5sum
`

// The engine is killed at random moments while several clients build. The next engine builds the same again, and no result is a wrong or partial one.
func TestKillEngineWhileBuilding(t *testing.T) {
	e := enginetest.Start(t)
	contexts := make([]string, 3)
	for i := range contexts {
		contexts[i] = t.TempDir()
		for name, text := range map[string]string{"Dockerfile": seeded, "seed": fmt.Sprintln("seed", i)} {
			if err := os.WriteFile(filepath.Join(contexts[i], name), []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	build := func(i int, more ...string) error {
		_, err := e.Try(append([]string{"build", "-q", "-t", fmt.Sprint("seeded:", i), contexts[i]}, more...)...)
		return err
	}
	want := make([]string, len(contexts))
	for i := range contexts {
		if err := build(i); err != nil {
			t.Fatal(err)
		}
		want[i] = e.Corten("run", "--rm", fmt.Sprint("seeded:", i))
		if n := strings.Count(want[i], "\n"); n != 1 || i > 0 && want[i] == want[0] {
			t.Fatalf("seed %d gives %q", i, want[i])
		}
	}
	for round := range rounds(t) {
		if round%2 == 0 { // else the cache answers
			e.Corten("builder", "prune", "-af")
		}
		var working sync.WaitGroup
		for i := range contexts {
			working.Go(func() { _ = build(i) }) // the engine may be killed under it
		}
		time.Sleep(time.Duration(rand.IntN(300)) * time.Millisecond)
		e.Kill9()
		working.Wait()
		e.Up()
		for i := range contexts {
			if err := build(i); err != nil {
				t.Fatalf("round %d: the build after the kill: %v\n%s", round, err, e.Log())
			}
			if got := e.Corten("run", "--rm", fmt.Sprint("seeded:", i)); got != want[i] {
				t.Fatalf("round %d: seed %d gives %q, not %q", round, i, got, want[i])
			}
		}
	}
	e.Corten("builder", "prune", "-af")
}
