package proof

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"corten.dev/corten/internal/enginetest"
)

// Monitors that are killed while no engine runs take their containers with them, whatever user those run as: nobody else would see to it. The next engine says what happened,
// and applies the restart policy.
func TestKillMonitorsWhileAway(t *testing.T) {
	e := enginetest.Start(t)
	e.Corten("run", "-d", "--name", "other", enginetest.Busybox, "sleep", "1000")
	e.Corten("run", "-d", "--name", "victim", enginetest.Busybox, "sh", "-c", counting)
	e.Corten("run", "-d", "--name", "user", "-u", "alice", enginetest.Busybox, "sleep", "1000")
	e.Corten("run", "-d", "--name", "phoenix", "--restart", "always", enginetest.Busybox, "sleep", "1000")
	names := []string{"victim", "user", "phoenix"}
	pids := map[string]string{}
	for _, name := range names {
		pids[name] = e.Corten("inspect", "-f", "{{.State.Pid}}", name)
	}
	e.Kill9()
	for _, name := range names {
		killMonitor(t, pids[name])
	}
	for _, name := range names {
		wait(t, name+" to end with its monitor", func() bool { return ended(pids[name]) })
	}
	e.Up()
	for _, name := range []string{"victim", "user"} {
		wait(t, name+" to be seen as ended", func() bool { return e.Corten("inspect", "-f", "{{.State.Status}}", name) == "exited" })
		got := e.Corten("inspect", "-f", "{{.State.Status}} {{.State.ExitCode}} {{.State.Error}}", name)
		if !strings.HasPrefix(got, "exited 137 ") || !strings.Contains(got, "monitor") {
			t.Errorf("%s: %s", name, got)
		}
	}
	checkLines(t, e, "victim")
	wait(t, "phoenix to run again", func() bool { return e.Corten("inspect", "-f", "{{.State.Status}}", "phoenix") == "running" })
	if got := e.Corten("inspect", "-f", "{{.State.Status}}", "other"); got != "running" {
		t.Errorf("another container became %s", got)
	}
}

// Each exec session once left a descriptor in the engine until the collector came by: four hundred of them after four hundred sessions.
func TestDescriptorsComeBack(t *testing.T) {
	e := enginetest.Start(t)
	e.Corten("run", "-d", "--name", "box", enginetest.Busybox, "sleep", "1000")
	e.Corten("exec", "box", "true")
	e.Settled() // the pools are full again, on most machines
	before := descriptors(t, e)
	for range 40 {
		e.Corten("exec", "box", "true")
		e.Corten("run", "--rm", enginetest.Busybox, "true")
	}
	wait(t, "the engine's descriptors to come back", func() bool { return descriptors(t, e) <= before+20 })
}

// ended tells whether a process is gone, or only waits to be reaped.
func ended(pid string) bool {
	raw, err := os.ReadFile("/proc/" + pid + "/stat")
	return err != nil || strings.Contains(string(raw), ") Z ")
}

func descriptors(t *testing.T, e *enginetest.Engine) int {
	t.Helper()
	entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", e.Cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}
