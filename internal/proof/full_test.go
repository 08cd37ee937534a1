package proof

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"corten.dev/corten/internal/busyboxtree"
	"corten.dev/corten/internal/enginetest"
)

// onSmallDisk starts an engine with a busybox image whose data root is a disk of this size, and says where that is.
func onSmallDisk(t *testing.T, size string) (e *enginetest.Engine, disk string) {
	t.Helper()
	enginetest.Bin(t)
	disk = t.TempDir()
	if err := syscall.Mount("proof", disk, "tmpfs", 0, "size="+size); err != nil {
		t.Skip("needs a tmpfs of its own: ", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(disk, 0); err != nil {
			t.Error("something still holds the disk: ", err)
		}
	})
	e = enginetest.New(t)
	if err := os.Symlink(disk, filepath.Join(e.Dir, "d")); err != nil {
		t.Fatal(err)
	}
	e.Up()
	tree, err := busyboxtree.Tar(busyboxtree.Path)
	if err != nil {
		t.Skip("needs a static busybox: ", err)
	}
	file := filepath.Join(e.Dir, "files", "tree")
	writeFile(t, file, string(tree))
	e.Corten("import", file, enginetest.Busybox)
	return e, disk
}

// The disk is full: each verb works or says so in one line, what runs goes on, what takes no room works, and with room again everything works without a restart.
func TestDiskFull(t *testing.T) {
	e, disk := onSmallDisk(t, "40m")
	files := filepath.Join(e.Dir, "files")
	big := filepath.Join(files, "big")
	writeFile(t, big, strings.Repeat("x", 1<<20))
	e.Corten("run", "-d", "--name", "steady", enginetest.Busybox, "sh", "-c", "while true; do echo still here; sleep 0.1; done")
	e.Corten("create", "--name", "resting", enginetest.Busybox, "echo", "started")
	e.Corten("cp", big, "steady:/changed")
	e.Corten("save", "-o", filepath.Join(files, "archive"), enginetest.Busybox)
	e.Corten("start", "-a", "resting")
	before := e.Settled()

	full := fill(t, disk)
	for _, args := range [][]string{
		{"run", "--name", "new", enginetest.Busybox, "true"}, {"run", "--rm", enginetest.Busybox, "true"}, {"create", "--name", "made", enginetest.Busybox, "true"}, {"start", "resting"}, {"rename", "resting", "rested"},
		{"commit", "steady", "committed"}, {"import", filepath.Join(files, "tree"), "imported"}, {"load", "-i", filepath.Join(files, "archive")}, {"cp", big, "steady:/big"}, {"cp", big, "resting:/big"},
		{"volume", "create", "vol"}, {"network", "create", "nw"}, {"tag", enginetest.Busybox, "tagged"}, {"update", "--memory", "64m", "steady"}, {"run", "-d", "--name", "vols", "-v", "filled:/bin", enginetest.Busybox, "true"},
	} {
		out, err := e.Try(args...)
		if err == nil {
			continue
		}
		if n := strings.Count(err.Error(), "no space left on device"); n != 1 && !strings.Contains(err.Error(), "No such container: rest") {
			t.Errorf("corten %s says it %d times: %q %v", strings.Join(args, " "), n, out, err)
		}
	}
	for _, args := range [][]string{
		{"ps", "-a"}, {"images"}, {"inspect", "steady"}, {"logs", "--tail", "1", "steady"}, {"exec", "steady", "true"}, {"stats", "--no-stream"}, {"top", "steady"}, {"diff", "steady"}, {"cp", "steady:/changed", files + "/back"},
		{"save", "-o", filepath.Join(files, "again"), enginetest.Busybox}, {"volume", "ls"}, {"network", "ls"}, {"info"}, {"system", "df"}, {"pause", "steady"}, {"unpause", "steady"},
	} {
		if out, err := e.Try(args...); err != nil {
			t.Errorf("with a full disk, corten %s: %s %v", strings.Join(args, " "), out, err)
		}
	}
	for _, kind := range [][2][]string{{{"ps", "-aq", "--filter", "name=^/?(new|made|vols)$"}, {"rm", "-f", "-v"}}, {{"volume", "ls", "-q"}, {"volume", "rm"}}, {{"network", "ls", "-q", "--filter", "type=custom"}, {"network", "rm"}}} {
		if ids := e.Corten(kind[0]...); ids != "" {
			if _, err := e.Try(append(kind[1], strings.Fields(ids)...)...); err != nil {
				t.Errorf("with a full disk, corten %s: %v", strings.Join(kind[1], " "), err)
			}
		}
	}

	if err := os.Remove(full); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"committed", "imported", "tagged"} {
		if out, err := e.Try("run", "--rm", name, "/bin/true"); err != nil && !strings.Contains(err.Error(), "No such image") && !strings.Contains(err.Error(), "Unable to find image") {
			t.Errorf("image %s is not whole: %s %v", name, out, err)
		}
		_, _ = e.Try("rmi", "-f", name)
	}
	if out := e.Corten("run", "--rm", "-v", "vol:/vol", enginetest.Busybox, "sh", "-c", "echo ok > /vol/file; cat /vol/file"); out != "ok" {
		t.Errorf("with room again: %q", out)
	}
	e.Corten("cp", big, "steady:/big")
	e.Corten("commit", "steady", "committed")
	e.Corten("rmi", "committed")
	e.Corten("exec", "steady", "rm", "/big")
	e.Corten("volume", "rm", "vol")
	resting := e.Corten("ps", "-aq", "--filter", "name=rest")
	if out := e.Corten("start", "-a", resting); out != "started" {
		t.Errorf("with room again, a container says %q", out)
	}
	e.CheckLeft(before)
	endsOnAFullDisk(t, e, disk)
	endsBeforeItsEngine(t, e, disk)
	if got := e.Corten("inspect", "-f", "{{.State.Status}}", "steady"); got != "running" {
		t.Errorf("the container that ran all the time: %s", got)
	}
}

// A container ends while the disk is full and no engine runs: the next one comes up all the same, knows how it ended, and keeps that as soon as there is room. An engine did not
// start on a full disk at all.
func endsOnAFullDisk(t *testing.T, e *enginetest.Engine, disk string) {
	t.Helper()
	e.Corten("run", "-d", "--name", "brief", enginetest.Busybox, "sh", "-c", "trap 'exit 7' USR1; echo ready; while true; do sleep 0.1; done")
	eventually(t, "brief waits for its signal", func() bool { return e.Corten("logs", "brief") == "ready" })
	pid, err := strconv.Atoi(e.Corten("inspect", "-f", "{{.State.Pid}}", "brief"))
	if err != nil {
		t.Fatal(err)
	}
	full := fill(t, disk)
	e.Kill9()
	if err := syscall.Kill(pid, syscall.SIGUSR1); err != nil {
		t.Fatal(err)
	}
	eventually(t, "brief ends", func() bool { return errors.Is(syscall.Kill(pid, 0), syscall.ESRCH) })
	e.Up()
	if got := e.Corten("inspect", "-f", "{{.State.Status}} {{.State.ExitCode}}", "brief"); got != "exited 7" {
		t.Errorf("ended on a full disk: %s", got)
	}
	if err := os.Remove(full); err != nil {
		t.Fatal(err)
	}
	record := filepath.Join(disk, "containers", e.Corten("inspect", "-f", "{{.Id}}", "brief"), "state.json")
	eventually(t, "what was owed is written", func() bool {
		raw, err := os.ReadFile(record)
		return err == nil && bytes.Contains(raw, []byte(`"ExitCode":7`))
	})
	e.Kill9()
	e.Up()
	if got := e.Corten("inspect", "-f", "{{.State.Status}} {{.State.ExitCode}}", "brief"); got != "exited 7" {
		t.Errorf("with room again: %s", got)
	}
}

// A container ends while the disk is full, and its engine, which had no room for that, is killed. Its monitor had told how it ended and was gone: the next engine called it killed, 137.
func endsBeforeItsEngine(t *testing.T, e *enginetest.Engine, disk string) {
	t.Helper()
	e.Corten("run", "-d", "--name", "late", enginetest.Busybox, "sh", "-c", "trap 'exit 9' USR1; echo ready; while true; do sleep 0.1; done")
	eventually(t, "late waits for its signal", func() bool { return e.Corten("logs", "late") == "ready" })
	full := fill(t, disk)
	e.Corten("kill", "-s", "USR1", "late")
	if got := e.Corten("wait", "late"); got != "9" {
		t.Errorf("late ended with %s", got)
	}
	for _, when := range []string{"killed", "killed again"} {
		e.Kill9()
		e.Up()
		if got := e.Corten("inspect", "-f", "{{.State.Status}} {{.State.ExitCode}}", "late"); got != "exited 9" {
			t.Errorf("%s on a full disk: %s", when, got)
		}
	}
	if err := os.Remove(full); err != nil {
		t.Fatal(err)
	}
	monitors := filepath.Join(e.Dir, "e", "monitors", e.Corten("inspect", "-f", "{{.Id}}", "late"))
	eventually(t, "the monitor is let go", func() bool { _, err := os.Stat(monitors); return errors.Is(err, fs.ErrNotExist) })
	e.Kill9()
	e.Up()
	if got := e.Corten("inspect", "-f", "{{.State.Status}} {{.State.ExitCode}}", "late"); got != "exited 9" {
		t.Errorf("with room again: %s", got)
	}
	e.Corten("start", "late")
	if got := e.Corten("inspect", "-f", "{{.State.Status}}", "late"); got != "running" {
		t.Errorf("started again: %s", got)
	}
	e.Corten("rm", "-f", "late")
}

// fill writes until nothing goes any more.
func fill(t *testing.T, dir string) string {
	t.Helper()
	path := filepath.Join(dir, "filler")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for size := 1 << 20; size > 0; size /= 16 {
		for err = nil; err == nil; {
			_, err = f.Write(bytes.Repeat([]byte{1}, size))
		}
		if !errors.Is(err, syscall.ENOSPC) {
			t.Fatal(err)
		}
	}
	return path
}
