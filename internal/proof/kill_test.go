package proof

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"corten.dev/corten/internal/enginetest"
)

// rounds is how often the engine is killed in one test run.
func rounds(t *testing.T) int {
	if n, err := strconv.Atoi(os.Getenv("CORTEN_KILLS")); err == nil {
		return n
	}
	if testing.Short() {
		return 3
	}
	return 8
}

// A counter that writes numbered lines shows each lost, doubled or split line. It never ends by itself: one that did would be taken for a loss on a slow machine.
const counting = `i=0; while true; do echo "line $i"; i=$((i+1)); [ $((i % 50)) -eq 0 ] && sleep 0.01; done`

// The engine is killed at random moments while clients start, stop and remove containers. After each kill a new engine must come up by itself, and what ran must
// still run: the same process, its published port answering, its log without a gap.
func TestKillEngineUnderLoad(t *testing.T) {
	e := enginetest.Start(t)
	e.Corten("run", "-d", "--name", "steady", "-p", "127.0.0.1::7000", enginetest.Busybox, "sh", "-c", "while true; do echo pong | nc -l -p 7000; done")
	e.Corten("run", "-d", "--name", "talker", enginetest.Busybox, "sh", "-c", counting)
	e.Corten("run", "-d", "--name", "restarting", "--restart", "always", enginetest.Busybox, "sleep", "0.2")
	pid := e.Corten("inspect", "-f", "{{.State.Pid}}", "steady")
	port := strings.TrimPrefix(strings.Fields(e.Corten("port", "steady", "7000/tcp"))[0], "127.0.0.1:")

	load := newBusy(t, e)
	before := atWork(e)
	before["file d/containers/"+e.Corten("inspect", "-f", "{{.Id}}", "restarting")+"/exit"] = 1 // there while it waits, which is longer each time

	for round := range rounds(t) {
		load.begin(4)
		time.Sleep(time.Duration(rand.IntN(400)) * time.Millisecond)
		e.Kill9()
		if err := ping(port); err != nil {
			t.Fatalf("round %d: the published port while no engine runs: %v", round, err)
		}
		load.end()
		e.Up()
		if got := e.Corten("inspect", "-f", "{{.State.Pid}}", "steady"); got != pid {
			t.Fatalf("round %d: process %s became %s\n%s", round, pid, got, e.Log())
		}
		if err := ping(port); err != nil {
			t.Fatalf("round %d: the published port: %v\n%s", round, err, e.Log())
		}
		load.check()
		e.CheckLeft(before)
		if t.Failed() {
			t.Fatalf("in round %d", round)
		}
	}
	checkLines(t, e, "talker")
}

// atWork is what an engine has whose containers come and go by themselves: the most that is seen of each thing for a while.
func atWork(e *enginetest.Engine) enginetest.Census {
	most := e.Settled()
	for range 8 {
		time.Sleep(70 * time.Millisecond)
		for what, n := range e.Census() {
			most[what] = max(most[what], n)
		}
	}
	return most
}

// ping reads one line from the published port.
func ping(port string) error {
	var last error
	for range 500 {
		conn, err := net.DialTimeout("tcp", "127.0.0.1:"+port, time.Second)
		if err == nil {
			buf := make([]byte, 16)
			_ = conn.SetDeadline(time.Now().Add(time.Second))
			n, rerr := conn.Read(buf)
			_ = conn.Close()
			if rerr == nil && strings.HasPrefix(string(buf[:n]), "pong") {
				return nil
			}
			err = fmt.Errorf("read %q: %w", buf[:n], rerr)
		}
		last = err
		time.Sleep(10 * time.Millisecond)
	}
	return last
}

// checkLines reads the whole log of a counting container and checks that no line is missing, doubled or split.
func checkLines(t *testing.T, e *enginetest.Engine, name string) {
	t.Helper()
	out := e.Corten("logs", name)
	want := 0
	for line := range strings.Lines(out + "\n") {
		line = strings.TrimSuffix(line, "\n")
		if line == "" {
			continue
		}
		if line != fmt.Sprintf("line %d", want) {
			t.Fatalf("log of %s: got %q, want line %d", name, line, want)
		}
		want++
	}
	if want == 0 {
		t.Fatalf("log of %s is empty", name)
	}
}

// A killed monitor ends its own container alone, keeps every line written so far, is reported as what it was, and the restart policy applies.
func TestKillMonitor(t *testing.T) {
	e := enginetest.Start(t)
	e.Corten("run", "-d", "--name", "other", enginetest.Busybox, "sleep", "1000")
	e.Corten("run", "-d", "--name", "victim", enginetest.Busybox, "sh", "-c", counting)
	e.Corten("run", "-d", "--name", "phoenix", "--restart", "always", enginetest.Busybox, "sleep", "1000")
	wait(t, "a few lines", func() bool { return strings.Contains(e.Corten("logs", "victim"), "line 100\n") })
	for _, name := range []string{"victim", "phoenix"} {
		killMonitor(t, e.Corten("inspect", "-f", "{{.State.Pid}}", name))
	}
	wait(t, "victim to be seen as ended", func() bool { return e.Corten("inspect", "-f", "{{.State.Status}}", "victim") == "exited" })
	if code := e.Corten("inspect", "-f", "{{.State.ExitCode}}", "victim"); code != "137" {
		t.Errorf("exit code %s, want 137", code)
	}
	if text := e.Corten("inspect", "-f", "{{.State.Error}}", "victim"); !strings.Contains(text, "monitor") {
		t.Errorf("the error %q does not tell that the monitor died", text)
	}
	checkLines(t, e, "victim")
	wait(t, "phoenix to run again", func() bool {
		return e.Corten("inspect", "-f", "{{.State.Status}} {{.RestartCount}}", "phoenix") == "running 1"
	})
	if got := e.Corten("inspect", "-f", "{{.State.Status}}", "other"); got != "running" {
		t.Errorf("another container became %s", got)
	}
}

// killMonitor kills the parent of a container's first process.
func killMonitor(t *testing.T, pid string) {
	t.Helper()
	raw, err := os.ReadFile("/proc/" + pid + "/status")
	if err != nil {
		t.Fatal(err)
	}
	for line := range bytes.Lines(raw) {
		if parent, ok := strings.CutPrefix(string(line), "PPid:"); ok {
			n, err := strconv.Atoi(strings.TrimSpace(parent))
			if err != nil || n <= 1 {
				t.Fatalf("parent of %s: %q", pid, parent)
			}
			p, err := os.FindProcess(n)
			if err != nil {
				t.Fatal(err)
			}
			if err := p.Kill(); err != nil {
				t.Fatal(err)
			}
			return
		}
	}
}

func wait(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited a minute for %s", what)
		}
	}
}

// A client that is killed takes nothing with it but itself: a foreground container goes on, and its name and log are there.
func TestKillClient(t *testing.T) {
	e := enginetest.Start(t)
	cmd := e.Client("run", "--name", "fg", enginetest.Busybox, "sh", "-c", "echo begun; sleep 1; echo ended; exit 3")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	wait(t, "the container to run", func() bool {
		out, err := e.Try("inspect", "-f", "{{.State.Status}}", "fg")
		return err == nil && out == "running"
	})
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	if code := e.Corten("wait", "fg"); code != "3" {
		t.Errorf("exit code %s, want 3", code)
	}
	if out := e.Corten("logs", "fg"); out != "begun\nended" {
		t.Errorf("log %q", out)
	}
}

// An engine that is told to stop leaves containers running; a new one finds them, with exit codes of those that ended meanwhile.
func TestEndedWhileAway(t *testing.T) {
	e := enginetest.Start(t)
	const told = "while [ ! -e /end ]; do sleep 0.05; done; "
	e.Corten("run", "-d", "--name", "short", enginetest.Busybox, "sh", "-c", told+"echo bye; exit 42")
	e.Corten("run", "-d", "--rm", "--name", "vanishing", enginetest.Busybox, "sh", "-c", told)
	e.Corten("run", "-d", "--name", "long", enginetest.Busybox, "sleep", "1000")
	pids := pidsOf(e)
	e.Kill9()
	for _, name := range []string{"short", "vanishing"} {
		writeFile(t, "/proc/"+pids[name]+"/root/end", "")
	}
	for _, name := range []string{"short", "vanishing"} {
		wait(t, name+" to end", func() bool { return ended(pids[name]) })
	}
	e.Up()
	wait(t, "the end of short to be known", func() bool { // its monitor may be about to write it down
		return e.Corten("inspect", "-f", "{{.State.Status}} {{.State.ExitCode}}", "short") == "exited 42"
	})
	if got := e.Corten("logs", "short"); got != "bye" {
		t.Errorf("log of short: %q", got)
	}
	wait(t, "the --rm container to vanish", func() bool {
		out, err := e.Try("ps", "-aq", "--filter", "name=vanishing")
		return err == nil && out == ""
	})
	if got := e.Corten("exec", "long", "echo", "alive"); got != "alive" {
		t.Errorf("exec: %q", got)
	}
}

// Two engines with different roots do not see each other.
func TestTwoEngines(t *testing.T) {
	a, b := enginetest.Start(t), enginetest.Start(t)
	a.Corten("run", "-d", "--name", "xx", enginetest.Busybox, "sleep", "1000")
	b.Corten("run", "-d", "--name", "xx", enginetest.Busybox, "sleep", "1000")
	a.Corten("rm", "-f", "xx")
	if got := b.Corten("inspect", "-f", "{{.State.Status}}", "xx"); got != "running" {
		t.Errorf("removing xx in one engine made it %s in the other", got)
	}
}

// The unmodified docker client works against our socket; skipped where it is not installed.
func TestDockerClient(t *testing.T) {
	if _, err := exec.LookPath("docker"); err != nil {
		t.Skip("the docker client is not installed")
	}
	e := enginetest.Start(t)
	docker := func(args ...string) string {
		t.Helper()
		cmd := exec.Command("docker", append([]string{"-H", e.Socket()}, args...)...)
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("docker %s: %v: %s\n%s", strings.Join(args, " "), err, out, e.Log())
		}
		return strings.TrimSpace(string(out))
	}
	if got := docker("run", "--rm", enginetest.Busybox, "echo", "hi"); got != "hi" {
		t.Errorf("run: %q", got)
	}
	docker("run", "-d", "--name", "cc", enginetest.Busybox, "sleep", "1000")
	if got := docker("exec", "cc", "echo", "in"); got != "in" {
		t.Errorf("exec: %q", got)
	}
	if got := docker("ps", "--format", "{{.Names}}"); got != "cc" {
		t.Errorf("ps: %q", got)
	}
	docker("rm", "-f", "cc")
	for _, args := range [][]string{{"version"}, {"info"}, {"images"}, {"network", "ls"}, {"volume", "ls"}, {"system", "df"}} {
		docker(args...)
	}
}
