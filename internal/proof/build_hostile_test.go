package proof

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"corten.dev/corten/internal/enginetest"
)

// outside is a folder of the host that no build may read or change.
func outside(t *testing.T, e *enginetest.Engine) (dir string, check func(how string)) {
	t.Helper()
	dir = filepath.Join(e.Dir, "outside")
	put(t, dir, map[string]string{"secret": "of the host\n", "sub/secret": "of the host\n", "empty/.keep": ""})
	if err := os.Remove(filepath.Join(dir, "empty/.keep")); err != nil {
		t.Fatal(err)
	}
	before := listing(t, dir)
	return dir, func(how string) {
		t.Helper()
		if now := listing(t, dir); now != before {
			t.Errorf("%s changed the host's folder:\n%s\nit was\n%s", how, now, before)
		}
	}
}

// listing is what a folder has.
func listing(t *testing.T, dir string) string {
	t.Helper()
	var b strings.Builder
	if err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		fi, err := d.Info()
		if err == nil {
			fmt.Fprintln(&b, path, fi.Mode(), fi.Size(), fi.ModTime())
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// A Dockerfile of somebody else: whatever its mounts name, and whatever its steps put in their way, nothing of the host is read, made or removed.
func TestBuildHostileMounts(t *testing.T) {
	e := enginetest.Start(t)
	dir, check := outside(t, e)
	ctx := t.TempDir()
	if err := os.Symlink(dir, filepath.Join(ctx, "out")); err != nil {
		t.Fatal(err)
	}
	put(t, ctx, map[string]string{"in/file": "fine\n"})
	if err := os.Symlink("../../../../../../../../.."+dir, filepath.Join(ctx, "in/up")); err != nil {
		t.Fatal(err)
	}
	stage := "FROM busybox AS tricks\nRUN ln -s " + dir + " /out && ln -s /../../../.." + dir + " /up && ln -s /proc/1/root /magic && mkdir /dir && ln -s " + dir + " /dir/l\nFROM busybox\nCOPY --from=tricks /dir /dir\n"
	for name, dockerfile := range map[string]string{
		"a source that is a link":               stage + "RUN --mount=type=bind,from=tricks,source=/out,target=/m cat /m/secret",
		"a source below a link":                 stage + "RUN --mount=type=bind,from=tricks,source=/out/sub,target=/m cat /m/secret",
		"a source that climbs":                  stage + "RUN --mount=type=bind,from=tricks,source=/up,target=/m cat /m/secret",
		"a source behind a magic link":          stage + "RUN --mount=type=bind,from=tricks,source=/magic" + dir + ",target=/m cat /m/secret",
		"dots in a source":                      stage + "RUN --mount=type=bind,from=tricks,source=../../../../.." + dir + ",target=/m cat /m/secret",
		"a link of the context":                 "FROM busybox\nRUN --mount=type=bind,source=out,target=/m cat /m/secret",
		"a link in the context":                 "FROM busybox\nRUN --mount=type=bind,source=in/up,target=/m cat /m/secret",
		"a link in a mounted context":           "FROM busybox\nRUN --mount=type=bind,target=/m cat /m/out/secret",
		"a copied link":                         "FROM busybox\nCOPY out/secret /x\nRUN cat /x",
		"a link of a cache":                     "FROM busybox\nRUN --mount=type=cache,target=/c ln -s " + dir + " /c/l\nRUN --mount=type=cache,target=/m,id=/c,source=/l cat /m/secret",
		"a target behind a link of the image":   "FROM busybox\nRUN ln -s " + dir + " /l\nRUN --mount=type=tmpfs,target=/l/new cat /l/secret",
		"a target on procfs":                    "FROM busybox\nRUN --mount=type=tmpfs,target=/proc/sys cat /secret",
		"a target behind a link to procfs":      "FROM busybox\nRUN ln -s /proc/self /p\nRUN --mount=type=tmpfs,target=/p/fd cat /secret",
		"a target that is the root":             "FROM busybox\nRUN --mount=type=tmpfs,target=/../.. cat /secret",
		"a working directory behind a link":     "FROM busybox\nRUN ln -s " + dir + "/sub /w\nWORKDIR /w\nRUN cat secret",
		"a descriptor as the working directory": "FROM busybox\nWORKDIR /proc/self/fd/8\nRUN cat ../../secret ../../../../../../.." + dir + "/secret",
	} {
		cmd := e.Client("build", "--progress", "plain", "--no-cache", "-f", "-", ctx)
		cmd.Stdin = strings.NewReader(dockerfile)
		said, err := cmd.CombinedOutput()
		if err == nil || strings.Contains(string(said), "\nof the host") || strings.Contains(string(said), " of the host") {
			t.Errorf("%s: %v\n%s", name, err, said)
		}
		check(name)
	}
	// What a step does to the directories around its mount points does not lead the removal of those mount points astray (CVE-2024-23652).
	for name, script := range map[string]string{
		"renamed": "mv /a /b && ln -s " + dir + " /a", "deeper": "mv /a/b /x && ln -s " + dir + " /a/b", "back": "mv /a /b && mkdir -p /a && ln -s " + dir + " /a/b",
	} {
		dockerfile := "FROM busybox\nRUN --mount=type=tmpfs,target=/a/b/empty --mount=type=tmpfs,target=/a/b/c " + script
		cmd := e.Client("build", "-q", "-f", "-", ctx)
		cmd.Stdin = strings.NewReader(dockerfile)
		if said, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%s: %v %s", name, err, said)
		}
		check(name)
	}
}

// status reads a number of the engine's process.
func status(t *testing.T, e *enginetest.Engine, key string) int {
	t.Helper()
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", e.Cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(raw)) {
		if rest, ok := strings.CutPrefix(line, key+":"); ok {
			n, err := strconv.Atoi(strings.Fields(rest)[0])
			if err != nil {
				t.Fatal(err)
			}
			return n
		}
	}
	t.Fatalf("the process has no %s", key)
	return 0
}

// A step that never stops writing costs the engine no memory, and one that never stops forking leaves room for others; both are gone as soon as the client is.
func TestBuildWithoutEnd(t *testing.T) {
	e := enginetest.Start(t)
	e.Corten("build", "-q", "-t", "warm", put(t, t.TempDir(), map[string]string{"Dockerfile": "FROM busybox\nRUN true"}))
	before := status(t, e, "VmRSS")
	for name, script := range map[string]string{"output": "yes this goes on and on", "forks": "while true; do sleep 1000 & done"} {
		ctx := put(t, t.TempDir(), map[string]string{"Dockerfile": "FROM busybox\nRUN " + script})
		cmd := e.Client("build", "--progress", "plain", ctx)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * time.Second)
		if out := e.Corten("run", "--rm", enginetest.Busybox, "echo", "others run"); out != "others run" {
			t.Errorf("beside %s: %q", name, out)
		}
		if now := status(t, e, "VmRSS"); now > before+64<<10 {
			t.Errorf("%s: the engine grew from %d to %d kB", name, before, now)
		}
		start := time.Now()
		if err := cmd.Process.Signal(syscall.SIGINT); err != nil {
			t.Fatal(err)
		}
		_ = cmd.Wait() // it was told to
		wait(t, "the step to be gone", func() bool {
			left, _ := filepath.Glob("/sys/fs/cgroup/pids/" + e.Table + "/step-*")
			return len(left) == 0
		})
		if took := time.Since(start); took > time.Minute {
			t.Errorf("%s went on for %s", name, took)
		}
	}
}

// A step fills the disk: the build fails in one line, nothing of it stays, and with room again the same build succeeds.
func TestBuildFullDisk(t *testing.T) {
	e, disk := onSmallDisk(t, "64m")
	ctx := put(t, t.TempDir(), map[string]string{"Dockerfile": "FROM busybox\nARG MB\nRUN echo first > /first\nRUN dd if=/dev/zero of=/big bs=1M count=$MB 2>&1 && echo whole"})
	room := func() { // what a failed step left is removed in the background
		wait(t, "room on the disk", func() bool {
			var fs syscall.Statfs_t
			return syscall.Statfs(disk, &fs) == nil && fs.Bavail*uint64(fs.Bsize) > 32<<20
		})
	}
	for range 2 {
		room()
		out, err := e.Try("build", "--progress", "plain", "--build-arg", "MB=200", "-t", "big", ctx)
		if err == nil || !strings.Contains(err.Error(), "No space left on device") || !strings.Contains(err.Error(), "did not complete successfully") {
			t.Errorf("%s %v", out, err)
		}
	}
	if _, err := e.Try("inspect", "big"); err == nil {
		t.Error("there is an image of it")
	}
	room()
	e.Corten("build", "--build-arg", "MB=2", "-t", "small", ctx)
	if got := e.Corten("run", "--rm", "small", "sh", "-c", "cat /first; stat -c %s /big"); got != "first\n2097152" {
		t.Errorf("%q", got)
	}
}

// The engine is killed while steps run: they are gone with it, and the next one builds as if nothing had been.
func TestBuildKilled(t *testing.T) {
	e := enginetest.Start(t)
	ctx := put(t, t.TempDir(), map[string]string{"Dockerfile": "FROM busybox\nRUN --mount=type=cache,target=/c echo cached > /c/f; echo whole > /f\nRUN test -e /slow || sleep 0.5; cat /f > /g"})
	for i := range max(rounds(t)/4, 3) {
		cmd := e.Client("build", "--no-cache", "-q", ctx)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Duration(20+i*90) * time.Millisecond)
		e.Kill9()
		_ = cmd.Wait() // its engine is gone
		e.Up()
		if left, _ := filepath.Glob("/sys/fs/cgroup/pids/" + e.Table + "/step-*"); len(left) > 0 {
			t.Errorf("round %d: after the next start: %q\n%s", i, left, e.Log())
		}
		e.Corten("build", "-t", "after", ctx)
		if got := e.Corten("run", "--rm", "after", "cat", "/f", "/g"); got != "whole\nwhole" {
			t.Errorf("round %d: %q", i, got)
		}
	}
}
