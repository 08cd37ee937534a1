package proof

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"corten.dev/corten/internal/enginetest"
)

// noting writes numbered lines, and notes on the host the line that it wrote three hundred lines ago: what is noted must be in the log, whoever is killed when. What a monitor that waits for a
// processor has not yet read from the pipe goes with the container.
const noting = `i=0; while true; do echo "line $i"; usleep 3000; [ $i -lt 300 ] || { echo $((i-300)) > /notes/.$HOSTNAME; mv /notes/.$HOSTNAME /notes/$HOSTNAME; }; i=$((i+1)); done`

// Monitors are killed at random moments while clients are busy. Each takes its own container with it and no other; what was written is in the log; what happened is said; and the restart policy
// applies.
func TestKillMonitorsUnderLoad(t *testing.T) {
	e := enginetest.Start(t)
	notes := filepath.Join(e.Dir, "notes")
	if err := os.Mkdir(notes, 0o755); err != nil {
		t.Fatal(err)
	}
	const n = 4
	name := func(i int) string { return fmt.Sprintf("noting-%d", i) }
	start := func(i int, more ...string) {
		args := append([]string{"run", "-d", "--name", name(i), "--hostname", name(i), "-v", notes + ":/notes"}, more...)
		e.Corten(append(args, enginetest.Busybox, "sh", "-c", noting)...)
	}
	for i := range n {
		start(i)
	}
	e.Corten("run", "-d", "--name", "steady", enginetest.Busybox, "sleep", "1000")
	e.Corten("run", "-d", "--name", "phoenix", "--restart", "on-failure:50", enginetest.Busybox, "sleep", "1000")
	load := newBusy(t, e)
	risen := 0
	for range rounds(t) {
		load.begin(2)
		time.Sleep(time.Duration(100+rand.IntN(300)) * time.Millisecond)
		victim := rand.IntN(n)
		killMonitor(t, e.Corten("inspect", "-f", "{{.State.Pid}}", name(victim)))
		if rand.IntN(3) == 0 {
			if out, err := e.Try("inspect", "-f", "{{.State.Pid}} {{.State.Running}}", "phoenix"); err == nil && strings.HasSuffix(out, "true") {
				killMonitor(t, strings.Fields(out)[0])
				risen++
			}
		}
		wait(t, "the victim to be seen as ended", func() bool { return e.Corten("inspect", "-f", "{{.State.Status}}", name(victim)) == "exited" })
		if got := e.Corten("inspect", "-f", "{{.State.ExitCode}} {{.State.Error}}", name(victim)); !strings.HasPrefix(got, "137 ") || !strings.Contains(got, "monitor") {
			t.Errorf("the victim: %s", got)
		}
		checkNoted(t, e, name(victim), notes)
		for i := range n {
			if got := e.Corten("inspect", "-f", "{{.State.Status}}", name(i)); i != victim && got != "running" {
				t.Errorf("with the monitor of %s, %s became %s", name(victim), name(i), got)
			}
		}
		load.end()
		load.check()
		e.Corten("rm", name(victim))
		if err := os.Remove(filepath.Join(notes, name(victim))); err != nil && !os.IsNotExist(err) {
			t.Error(err)
		}
		start(victim)
		if t.Failed() {
			return
		}
	}
	want := "running " + strconv.Itoa(risen)
	wait(t, fmt.Sprintf("phoenix to have risen %d times", risen), func() bool {
		return e.Corten("inspect", "-f", "{{.State.Status}} {{.RestartCount}}", "phoenix") == want
	})
}

// checkNoted looks at a log: every line up to the last one that was noted, in order, each once.
func checkNoted(t *testing.T, e *enginetest.Engine, name, notes string) {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join(notes, name))
	if os.IsNotExist(err) {
		return // killed before the first note
	}
	if err != nil {
		t.Fatal(err)
	}
	last, err := strconv.Atoi(strings.TrimSpace(string(raw)))
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSuffix(e.Corten("logs", name), "\n"), "\n")
	for i, line := range lines {
		if line != fmt.Sprintf("line %d", i) {
			t.Fatalf("log of %s: %q where line %d should be", name, line, i)
		}
	}
	if len(lines) < last+1 {
		t.Errorf("log of %s has %d lines, %d were written long ago", name, len(lines), last+1)
	}
}
