package proof

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"corten.dev/corten/internal/enginetest"
)

// What the restart policies say of containers that ended, were stopped, or still ran when the engine went, in order and by kill -9.
func TestPoliciesAcrossEngines(t *testing.T) {
	e := enginetest.Start(t)
	type made struct{ policy, end string }
	runs := map[string]made{}
	for _, policy := range []string{"no", "always", "unless-stopped", "on-failure"} {
		for end, command := range map[string]string{"runs": "sleep 1000", "stopped": "sleep 1000", "fails": "[ -e /first ] && exec sleep 1000; touch /first; sleep 1; exit 3", "ends": "[ -e /first ] && exec sleep 1000; touch /first; sleep 1"} {
			name := policy + "-" + end
			runs[name] = made{policy, end}
			e.Corten("run", "-d", "--name", name, "--restart", policy, enginetest.Busybox, "sh", "-c", command)
			if end == "stopped" {
				e.Corten("stop", "-t", "0", name)
			}
		}
	}
	pids := pidsOf(e)
	e.Kill9()
	time.Sleep(1200 * time.Millisecond) // some fail or end while nobody looks
	e.Up()
	check := func(when string, stoppedComeBack bool) {
		t.Helper()
		for name, m := range runs {
			want := "running"
			switch {
			case m.end == "stopped" && (m.policy != "always" || !stoppedComeBack):
				want = "exited"
			case m.end == "fails" && m.policy == "no", m.end == "ends" && (m.policy == "no" || m.policy == "on-failure"):
				want = "exited"
			}
			var got string
			for range 3000 {
				if got = e.Corten("inspect", "-f", "{{.State.Status}}", name); got == want {
					break
				}
				time.Sleep(20 * time.Millisecond)
			}
			if got != want {
				t.Errorf("%s, %s: %s, want %s", when, name, got, want)
			}
		}
		now := pidsOf(e)
		for name, m := range runs {
			if m.end == "runs" && now[name] != pids[name] {
				t.Errorf("%s, %s was disturbed: process %s became %s", when, name, pids[name], now[name])
			}
		}
	}
	check("after a kill", true) // as with dockerd: always comes back with the engine even when it was stopped by hand
	e.Corten("stop", "-t", "0", "always-stopped")
	e.Down()
	e.Up()
	check("after a stop", true)
}

func pidsOf(e *enginetest.Engine) map[string]string {
	pids := map[string]string{}
	for name := range strings.FieldsSeq(e.Corten("ps", "--format", "{{.Names}}")) {
		pids[name] = e.Corten("inspect", "-f", "{{.State.Pid}}", name)
	}
	return pids
}

// A client that follows a log when the engine goes gets its end, in order and by kill -9; the next one gets all lines and goes on.
func TestFollowAcrossEngines(t *testing.T) {
	e := enginetest.Start(t)
	e.Corten("run", "-d", "--name", "talker", enginetest.Busybox, "sh", "-c", "i=0; while true; do echo line $i; i=$((i+1)); sleep 0.02; done")
	for _, end := range []func(){e.Kill9, e.Down} {
		cmd := e.Client("logs", "-f", "talker")
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		first := make([]byte, 6)
		if _, err := io.ReadFull(out, first); err != nil || string(first) != "line 0" {
			t.Fatalf("%q %v", first, err)
		}
		ended := make(chan struct{})
		go func() {
			buf := make([]byte, 4096)
			for {
				if _, err := out.Read(buf); err != nil {
					break
				}
			}
			_ = cmd.Wait()
			close(ended)
		}()
		end()
		select {
		case <-ended:
		case <-time.After(30 * time.Second):
			t.Error("the client still waits half a minute after the engine went")
			_ = cmd.Process.Kill()
			<-ended
		}
		e.Up()
	}
	before := len(strings.Fields(e.Corten("logs", "talker")))
	next := e.Client("logs", "-f", "talker")
	seen, err := os.Create(filepath.Join(t.TempDir(), "seen"))
	if err != nil {
		t.Fatal(err)
	}
	defer seen.Close()
	next.Stdout = seen
	if err := next.Start(); err != nil {
		t.Fatal(err)
	}
	var text []byte
	wait(t, "a new client to see more than there was", func() bool {
		text, err = os.ReadFile(seen.Name())
		return err != nil || len(bytes.Fields(text)) > before
	})
	_ = next.Process.Kill()
	_ = next.Wait()
	if err != nil || !bytes.HasPrefix(text, []byte("line 0\nline 1\n")) {
		t.Errorf("a new client sees %.100q, %v", text, err)
	}
	e.Corten("kill", "talker")
	checkLines(t, e, "talker")
}
