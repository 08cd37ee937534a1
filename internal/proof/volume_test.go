package proof

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"corten.dev/corten/internal/enginetest"
)

// mountsOf are the lines of a process's mountinfo for a mount point and what is below it: "point flags optional…".
func mountsOf(t *testing.T, pid, at string) (list []string) {
	t.Helper()
	b, err := os.ReadFile("/proc/" + pid + "/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		head, _, _ := strings.Cut(line, " - ")
		if f := strings.Fields(head); f[4] == at || strings.HasPrefix(f[4], at+"/") {
			list = append(list, strings.Join(f[4:], " "))
		}
	}
	return list
}

// What options of mounts come to, as the kernel tells it about the container's process.
func TestVolumeMounts(t *testing.T) {
	e := enginetest.Start(t)
	host := t.TempDir()
	if err := unix.Mount("host", host, "tmpfs", 0, "size=1m"); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := unix.Unmount(host, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	}()
	if err := unix.Mount("", host, "", unix.MS_SHARED, ""); err != nil {
		t.Fatal(err)
	}
	for _, sub := range []string{"sub", "late"} {
		if err := os.Mkdir(filepath.Join(host, sub), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Mount("sub", filepath.Join(host, "sub"), "tmpfs", 0, "size=1m"); err != nil {
		t.Fatal(err)
	}
	bind := "type=bind,src=" + host + ",dst="
	e.Corten("run", "-d", "--name", "ctr", "--mount", bind+"/all,readonly", "--mount", bind+"/top,readonly,bind-recursive=writable", "--mount", bind+"/one,bind-recursive=disabled",
		"--mount", bind+"/slave,bind-propagation=rslave", "--mount", bind+"/shared,bind-propagation=rshared", "--mount", bind+"/own", "-v", filepath.Join(host, "made")+":/made", enginetest.Busybox, "sleep", "600")
	pid := e.Corten("inspect", "-f", "{{.State.Pid}}", "ctr")
	if fi, err := os.Stat(filepath.Join(host, "made")); err != nil || !fi.IsDir() {
		t.Errorf("the path that -v names was not made: %v", err)
	}
	for at, want := range map[string][]string{
		"/all": {"ro", "ro"}, "/top": {"ro", "rw"}, "/one": {"rw"}, "/slave": {"rw", "rw"}, "/shared": {"rw", "rw"}, "/own": {"rw", "rw"},
	} {
		list := mountsOf(t, pid, at)
		if len(list) != len(want) {
			t.Errorf("%s: %q", at, list)
			continue
		}
		for i, line := range list {
			f := strings.Fields(line)
			if !strings.HasPrefix(f[1], want[i]+",") {
				t.Errorf("%s is not %s: %q", f[0], want[i], line)
			}
			master, shared := strings.Contains(line, "master:"), strings.Contains(line, "shared:")
			if at == "/slave" && (!master || shared) || at == "/shared" && !shared || (at == "/own" || at == "/one") && (master || shared) {
				t.Errorf("propagation of %q", line)
			}
		}
	}
	// What the host mounts later is seen by those who asked for it.
	if err := unix.Mount("late", filepath.Join(host, "late"), "tmpfs", 0, "size=1m"); err != nil {
		t.Fatal(err)
	}
	if a, b, c := len(mountsOf(t, pid, "/slave/late")), len(mountsOf(t, pid, "/shared/late")), len(mountsOf(t, pid, "/own/late")); a != 1 || b != 1 || c != 0 {
		t.Errorf("mounted later: %d in a slave, %d in a shared one, %d in one of its own", a, b, c)
	}
	e.Corten("rm", "-f", "ctr")
}

// A part of a volume is looked up while somebody who writes to the volume puts links in its way: nobody ever sees the host, only the volume or an error.
func TestVolumeSubpathRace(t *testing.T) {
	e := enginetest.Start(t)
	outside := t.TempDir()
	if err := os.WriteFile(filepath.Join(outside, "secret"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	e.Corten("volume", "create", "vol")
	data := e.Corten("volume", "inspect", "-f", "{{.Mountpoint}}", "vol")
	for _, name := range []string{"real", "real/deep"} {
		if err := os.Mkdir(filepath.Join(data, name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	up := strings.Repeat("../", 20) + strings.TrimPrefix(outside, "/")
	for name, to := range map[string]string{"absolute": outside, "relative": up, "magic": "/proc/self/root" + outside} {
		if err := os.Symlink(to, filepath.Join(data, name)); err != nil {
			t.Fatal(err)
		}
	}
	var stop atomic.Bool
	ended := make(chan struct{})
	go func() { // "way" is the directory at one moment, a link out at the next
		defer close(ended)
		at := func(name string) string { return filepath.Join(data, name) }
		links := []string{"absolute", "relative", "magic"}
		for i := 0; !stop.Load(); i++ {
			link := links[i%3]
			_ = os.Rename(at("real"), at("way"))
			_ = os.Rename(at("way"), at("real"))
			_ = os.Rename(at(link), at("way"))
			_ = os.Rename(at("way"), at(link))
		}
	}()
	seen := 0
	for range 25 {
		out, err := e.Try("run", "--rm", "--mount", "src=vol,dst=/x,volume-subpath=way", enginetest.Busybox, "ls", "/x")
		if err == nil {
			seen++
		}
		if strings.Contains(out, "secret") {
			t.Fatalf("a container sees the host's files: %s", out)
		}
	}
	stop.Store(true)
	<-ended
	for _, link := range []string{"absolute", "relative", "magic"} {
		if out, err := e.Try("run", "--rm", "--mount", "src=vol,dst=/x,volume-subpath="+link, enginetest.Busybox, "ls", "/x"); err == nil || strings.Contains(out, "secret") {
			t.Errorf("%s: %s, %v", link, out, err)
		}
	}
	t.Logf("%d of 25 met the directory", seen)
}

// The engine is killed while volumes are made, copied and removed, and while containers are held for a copy. The next one finds whole volumes, whole snapshots, and containers that go on.
func TestVolumeKilled(t *testing.T) {
	e := enginetest.Start(t)
	const files = 400
	e.Corten("run", "-d", "--name", "writer", "-v", "vol:/data", "-v", "/anon", enginetest.Busybox, "sh", "-c",
		fmt.Sprintf(`i=0; while [ $i -lt %d ]; do echo $i >/data/f$i; i=$((i+1)); done; touch /data/ready; while true; do echo $i >/data/count; i=$((i+1)); sleep 0.01; done`, files))
	data := e.Corten("volume", "inspect", "-f", "{{.Mountpoint}}", "vol")
	eventually(t, "the volume is written", func() bool { _, err := os.Stat(filepath.Join(data, "ready")); return err == nil })
	verbs := [][]string{
		{"volume", "snapshot", "vol", "snap"}, {"volume", "clone", "vol", "copy"}, {"volume", "rename", "copy", "other"}, {"volume", "export", "-o", filepath.Join(t.TempDir(), "out.tar"), "vol"},
		{"volume", "create", "-o", "size=4m", "small"}, {"run", "--rm", "-v", "small:/s", "-v", "/anon", enginetest.Busybox, "touch", "/s/f"}, {"volume", "rm", "-f", "small", "other"},
		{"volume", "snapshot", "--remove", "vol", "snap"},
	}
	for round := range rounds(t) {
		done := make(chan struct{})
		go func() {
			defer close(done)
			for i := range verbs {
				_, _ = e.Try(verbs[(round+i)%len(verbs)]...)
			}
		}()
		time.Sleep(time.Duration(rand.IntN(300)) * time.Millisecond)
		e.Kill9()
		<-done
		e.Up()
		if got := e.Corten("inspect", "-f", "{{.State.Status}}", "writer"); got != "running" {
			t.Fatalf("round %d: the container is %s", round, got)
		}
		before, err := os.ReadFile(filepath.Join(data, "count"))
		if err != nil {
			t.Fatal(err)
		}
		eventually(t, "the container goes on", func() bool {
			now, err := os.ReadFile(filepath.Join(data, "count"))
			return err == nil && len(now) > 0 && string(now) != string(before)
		})
		whole := func(dir string) {
			t.Helper()
			for i := range files {
				if b, err := os.ReadFile(filepath.Join(dir, fmt.Sprintf("f%d", i))); err != nil || string(b) != fmt.Sprintln(i) {
					t.Fatalf("round %d: file %d in %s: %q, %v", round, i, dir, b, err)
				}
			}
		}
		whole(data)
		volumes := filepath.Dir(filepath.Dir(data))
		for _, name := range strings.Fields(e.Corten("volume", "ls", "-q")) {
			if name == "copy" || name == "other" {
				whole(filepath.Join(volumes, name, "_data"))
			}
		}
		for _, snap := range strings.Fields(e.Corten("volume", "snapshots", "-q", "vol")) {
			whole(filepath.Join(volumes, "vol", "_snapshots", snap))
		}
		if left, _ := os.ReadDir(filepath.Join(volumes, ".making")); len(left) > 0 {
			t.Errorf("round %d: half a volume is left: %v", round, left)
		}
	}
	e.Corten("rm", "-fv", "writer")
	_, _ = e.Try("volume", "rm", "-f", "vol", "copy", "other", "small")
	if left := e.Corten("volume", "prune", "-af"); strings.Contains(left, "vol\n") {
		t.Errorf("the volume could not be removed: %s", left)
	}
}

// An anonymous volume goes with the container that is removed with its volumes, and not while another one has it.
func TestVolumeAnonymous(t *testing.T) {
	e := enginetest.Start(t)
	list := func() int { return len(strings.Fields(e.Corten("volume", "ls", "-q"))) }
	e.Corten("run", "--rm", "-v", "/a", enginetest.Busybox, "true")
	if list() != 0 {
		t.Error("--rm leaves it")
	}
	e.Corten("run", "--name", "one", "-v", "/a", enginetest.Busybox, "touch", "/a/f")
	e.Corten("run", "--name", "two", "--volumes-from", "one", enginetest.Busybox, "ls", "/a/f")
	e.Corten("rm", "-v", "one")
	if list() != 1 {
		t.Error("rm -v takes what another container has")
	}
	e.Corten("rm", "two")
	if list() != 1 {
		t.Error("rm without -v takes it")
	}
	e.Corten("volume", "create", "named")
	if out := e.Corten("volume", "prune", "-f"); list() != 1 {
		t.Errorf("prune: %s", out)
	}
	e.Corten("volume", "prune", "-af")
	if list() != 0 {
		t.Error("prune -a leaves a volume that nobody has")
	}
	if _, err := e.Try("run", "--rm", "-v", "/a", enginetest.Busybox, "/no/such/program"); err == nil || list() != 0 {
		t.Errorf("a container that did not start leaves %d volumes", list())
	}
}

// eventually waits for something that takes as long as the machine is busy.
func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	for until := time.Now().Add(time.Minute); !is(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(until) {
			t.Fatalf("in vain: %s", what)
		}
	}
}
