package proof

import (
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"corten.dev/corten/internal/enginetest"
)

// loops are the loop devices whose files are an engine's, as the kernel has them; files that were removed meanwhile too.
func loops(e *enginetest.Engine) (all []string) {
	names, _ := filepath.Glob("/sys/block/loop*/loop/backing_file")
	for _, name := range names {
		if b, err := os.ReadFile(name); err == nil && strings.HasPrefix(string(b), e.Dir+"/") {
			all = append(all, strings.TrimSpace(string(b)))
		}
	}
	return all
}

// The engine is killed while it makes, starts and removes containers whose own files have a bound (an ext4 image, where the file system has no project quotas). Afterwards each container
// that it knows starts and has its bound; what it does not know has left no file, no mount and no loop device.
func TestKillEngineWithStorageSizes(t *testing.T) {
	e := enginetest.Start(t)
	sized := []string{"--network", "none", "--stop-timeout", "1", "--storage-opt", "size=24m"}
	verbs := [][]string{
		append(append([]string{"create", "--name", "subject"}, sized...), enginetest.Busybox, "sleep", "1000"),
		append(append([]string{"run", "-d", "--name", "subject"}, sized...), enginetest.Busybox, "sleep", "1000"),
		append(append([]string{"run", "--rm", "--name", "subject"}, sized...), enginetest.Busybox, "true"),
		{"start", "kept"}, {"restart", "kept"}, {"rm", "-f", "subject"},
	}
	e.Corten(append(append([]string{"run", "-d", "--name", "kept"}, sized...), enginetest.Busybox, "sh", "-c", "echo mine > /file; sleep 1000")...)
	e.Corten("rm", "-f", e.Corten(verbs[1]...))
	before := e.Settled()
	for round := range rounds(t) + 4 {
		args := verbs[round%len(verbs)]
		if args[0] == "rm" {
			_, _ = e.Try(verbs[1]...) // there may be one
		} else if args[0] != "start" && args[0] != "restart" {
			_, _ = e.Try("rm", "-f", "subject") // or none
		}
		if args[0] == "start" {
			e.Corten("kill", "kept")
		}
		done := make(chan error, 1)
		go func() { _, err := e.Try(args...); done <- err }()
		time.Sleep(time.Duration(rand.IntN(80)) * time.Millisecond)
		e.Kill9()
		<-done
		e.Up()
		for _, name := range strings.Fields(e.Corten("ps", "-a", "--format", "{{.Names}}")) {
			wait(t, "container "+name+" to be at rest", func() bool {
				state, err := e.Try("inspect", "-f", "{{.State.Status}} {{.HostConfig.AutoRemove}}", name)
				if err != nil || state == "exited true" {
					return true // one of --rm that goes
				}
				if state != "running false" {
					_, err = e.Try("start", name)
				}
				return err == nil && state == "running false"
			})
			if name == "subject" && args[1] == "--rm" {
				continue
			}
			if _, err := e.Try("inspect", name); err != nil {
				continue
			}
			if out, err := e.Try("exec", name, "sh", "-c", "dd if=/dev/zero of=/big bs=1M count=30 2>&1; rm /big"); !strings.Contains(out, "No space left on device") && !strings.Contains(out, "quota exceeded") {
				t.Fatalf("round %d, %v: %s writes more than it may: %q %v", round, args, name, out, err)
			}
		}
		if out := e.Corten("exec", "kept", "cat", "/file"); out != "mine" {
			t.Fatalf("round %d, %v: the file of a container: %q", round, args, out)
		}
	}
	_, _ = e.Try("rm", "-f", "subject")
	e.CheckLeft(before)
	e.Corten("rm", "-f", "kept")
	wait(t, "no loop device to be left", func() bool { return len(loops(e)) == 0 })
	if left, err := filepath.Glob(filepath.Join(e.Dir, "d", "snapshots", "overlay", "trees", "*")); err != nil || len(left) != 0 {
		t.Errorf("left on disk: %v %v", left, err)
	}
}
