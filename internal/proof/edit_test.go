package proof

import (
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"corten.dev/corten/internal/enginetest"
)

// The engine is killed in the middle of changes and upgrades. Afterwards the container runs, with what was before or with what was asked for and nothing between, its files and its
// volume as they were; and nothing is left of the other.
func TestKillEngineInAnEdit(t *testing.T) {
	e := enginetest.Start(t)
	script := `echo "runs $COLOUR"; trap 'exit 0' TERM; sleep 1000 & wait`
	e.Corten("run", "-d", "--name", "subject", "--env", "COLOUR=red", "-v", "data:/data", "--stop-timeout", "2", enginetest.Busybox, "sh", "-c", script)
	e.Corten("exec", "subject", "sh", "-c", "echo kept > /data/f; echo mine > /file")
	e.Corten("commit", "--change", "ENV NEW=1", "subject", "second")
	id := e.Corten("inspect", "-f", "{{.Id}}", "subject")
	edits := [][]string{
		{"update", "--env", "COLOUR=blue", "--label", "colour=blue", "subject"},
		{"update", "--env", "COLOUR=red", "--label", "colour=red", "subject"},
		{"upgrade", "--pull", "never", "--grace", "1s", "subject", "second"},
		{"update", "--undo", "subject"},
		{"update", "--log-driver", "json-file", "--log-opt", "tag=one", "--label", "tag=one", "subject"},
		{"update", "--log-driver", "json-file", "--log-opt", "tag=two", "--log-opt", "max-size=1m", "--label", "tag=two", "subject"},
		{"update", "--undo", "subject"},
		{"update", "--volume-add", "data:/again", "--publish-add", "127.0.0.1::7000", "subject"},
		{"update", "--undo", "subject"},
	}
	var before enginetest.Census
	for round := range rounds(t) + 1 {
		args := edits[round%len(edits)]
		done := make(chan error, 1)
		go func() { _, err := e.Try(args...); done <- err }()
		if round == 0 { // one that is not disturbed makes what there is to be
			if err := <-done; err != nil {
				t.Fatal(err)
			}
			before = e.Settled()
			continue
		}
		time.Sleep(time.Duration(rand.IntN(250)) * time.Millisecond)
		e.Kill9()
		<-done
		e.Up()
		wait(t, "the container to run", func() bool {
			return e.Corten("inspect", "-f", "{{.Id}} {{.State.Status}}", "subject") == id+" running"
		})
		wait(t, "the change to be done or taken back", func() bool {
			_, err := e.Try("update", "--dry-run", "--label", "looking=1", "subject")
			return err == nil
		})
		if out := e.Corten("exec", "subject", "cat", "/data/f", "/file"); out != "kept\nmine" {
			t.Fatalf("round %d, %v: its files: %q", round, args, out)
		}
		state := e.Corten("inspect", "-f", "{{.Config.Labels.colour}} {{range .Config.Env}}{{println .}}{{end}}", "subject")
		if colour, _, _ := strings.Cut(state, " "); !strings.Contains(state, "COLOUR="+colour) {
			t.Fatalf("round %d, %v: half changed: %s", round, args, state)
		}
		if tags := e.Corten("inspect", "-f", "{{.Config.Labels.tag}} {{.HostConfig.LogConfig.Config.tag}}", "subject"); !slices.Contains([]string{"<no value> <no value>", "one one", "two two"}, tags) {
			t.Fatalf("round %d, %v: half changed: tags %s", round, args, tags)
		}
	}
	// Back to one state, in which nothing is kept of the others: what is there is what one container needs.
	e.Corten("update", "--label", "end=1", "subject")
	for name := range e.Settled() {
		if strings.HasPrefix(name, "process") || strings.HasPrefix(name, "mount") {
			if before[name] == 0 {
				t.Errorf("left behind: %s", name)
			}
		}
	}
	e.Corten("rm", "-f", "subject")
	e.Corten("volume", "rm", "data")
}
