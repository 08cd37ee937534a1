package proof

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"corten.dev/corten/internal/enginetest"
	"corten.dev/corten/internal/plugin/plugintest"
)

// pluginWorld is an engine and a volume plugin, each of which may be killed.
type pluginWorld struct {
	t *testing.T
	e *enginetest.Engine
	p *plugintest.Volume
}

func newPluginWorld(t *testing.T) *pluginWorld {
	t.Helper()
	e := enginetest.Start(t)
	return &pluginWorld{t, e, plugintest.StartVolume(t, plugintest.Build(t, "volume"), filepath.Join(e.Plugins(), "own.sock"))}
}

// counted waits until the plugin counts these containers, each once, as users of the volume, and the kernel has its mount if and only if there are any.
func (w *pluginWorld) counted(vol string, ctrs ...string) {
	w.t.Helper()
	want := map[string]int{}
	for _, name := range ctrs {
		want[w.e.Corten("inspect", "-f", "{{.Id}}", name)] = 1
	}
	at := filepath.Join(w.p.Root, "mnt", vol)
	for until := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
		got, mounts := w.p.Mounted(vol), plugintest.MountsBelow(w.t, w.p.Root)
		if maps.Equal(got, want) && slices.Contains(mounts, at) == (len(want) > 0) {
			return
		}
		if time.Now().After(until) {
			w.t.Fatalf("the plugin counts %v of volume %s, want %v; mounted: %q\n%s", got, vol, want, mounts, w.e.Log())
		}
	}
}

// inside is what the kernel says is mounted on /d of a container: the folder of the plugin's file system.
func (w *pluginWorld) inside(ctr string) string {
	w.t.Helper()
	text, err := os.ReadFile("/proc/" + w.e.Corten("inspect", "-f", "{{.State.Pid}}", ctr) + "/mountinfo")
	if err != nil {
		w.t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if f := strings.Fields(line); len(f) > 4 && f[4] == "/d" {
			return f[3]
		}
	}
	return ""
}

// A volume of a plugin, used by containers of both clients. The engine is killed, the plugin is killed, both are: the data stay where they are, each container is counted once while it runs and not at all
// afterwards, and nobody waits for a plugin that is away.
func TestVolumePlugin(t *testing.T) {
	w := newPluginWorld(t)
	e, p := w.e, w.p
	client := "docker"
	if _, err := exec.LookPath(client); err != nil {
		client = filepath.Join(e.Bin, "corten")
	}
	docker := func(args ...string) string {
		t.Helper()
		out, err := exec.Command(client, append([]string{"-H", e.Socket()}, args...)...).CombinedOutput()
		if err != nil {
			t.Fatalf("%s %s: %v: %s\n%s", client, strings.Join(args, " "), err, out, e.Log())
		}
		return strings.TrimSpace(string(out))
	}
	docker("volume", "create", "-d", "own", "-o", "size=5", "data")
	docker("run", "-d", "--name", "one", "-v", "data:/d", enginetest.Busybox, "sh", "-c", "echo kept > /d/f; exec sleep 1000")
	e.Corten("run", "-d", "--name", "two", "--mount", "type=volume,src=data,dst=/d,volume-driver=own", enginetest.Busybox, "sleep", "1000")
	w.counted("data", "one", "two")
	if got := w.inside("two"); !strings.HasSuffix(got, "/vols/data") {
		t.Errorf("mounted in the container: %q", got)
	}
	if got := docker("volume", "inspect", "-f", "{{.Driver}} {{.Mountpoint}} {{.Options.size}} {{.Status.users}}", "data"); got != "own "+p.Root+"/mnt/data 5 2" {
		t.Errorf("inspect: %q", got)
	}
	if got := docker("inspect", "-f", "{{range .Mounts}}{{.Driver}} {{.Source}}{{end}}", "two"); got != "own "+p.Root+"/mnt/data" {
		t.Errorf("inspect of a container: %q", got)
	}

	// The engine is killed, and a container while there is none.
	pid, err := strconv.Atoi(e.Corten("inspect", "-f", "{{.State.Pid}}", "two"))
	if err != nil {
		t.Fatal(err)
	}
	e.Kill9()
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	e.Up()
	w.counted("data", "one")
	if n := len(p.Calls("Mount")); n != 2 {
		t.Errorf("the engine mounted again what was mounted: %q", p.Calls("Mount"))
	}

	// The plugin is killed. What it mounted stays, other volumes go on, and a container that ends waits for nobody; its mount is made up for.
	p.Kill9()
	if got := docker("exec", "one", "cat", "/d/f"); got != "kept" {
		t.Errorf("without the plugin: %q", got)
	}
	docker("volume", "create", "here")
	if got := docker("run", "--rm", "-v", "here:/h", enginetest.Busybox, "sh", "-c", "echo ok > /h/f; cat /h/f"); got != "ok" {
		t.Errorf("a local volume: %q", got)
	}
	if got := docker("volume", "ls", "-q"); !strings.Contains(got, "data") || !strings.Contains(got, "here") {
		t.Errorf("ls: %q", got)
	}
	docker("rm", "-f", "one", "two")
	if got, err := e.Try("volume", "rm", "data"); err == nil || !strings.Contains(err.Error()+got, "rm -f forgets the volume") {
		t.Errorf("rm: %q, %v", got, err)
	}
	p.Up()
	w.counted("data")

	// Both are killed, and the engine is back first.
	docker("run", "-d", "--name", "three", "-v", "data:/d", enginetest.Busybox, "sleep", "1000")
	w.counted("data", "three")
	p.Kill9()
	e.Kill9()
	e.Up()
	p.Up()
	w.counted("data", "three")
	if got := docker("exec", "three", "cat", "/d/f"); got != "kept" {
		t.Errorf("in the end: %q", got)
	}
	docker("rm", "-f", "three")
	w.counted("data")
	if n, m := len(p.Calls("Mount")), len(p.Calls("Unmount")); n != 3 || m != 3 {
		t.Errorf("calls: %q, %q", p.Calls("Mount"), p.Calls("Unmount"))
	}
	docker("volume", "rm", "data", "here")
	if left := p.Calls("Remove"); len(left) != 1 {
		t.Errorf("removed: %q", left)
	}
}

// A plugin that does what no plugin should is an error of one line for who asked for it, and nothing for anybody else.
func TestBadVolumePlugin(t *testing.T) {
	w := newPluginWorld(t)
	e, p := w.e, w.p
	e.Corten("volume", "create", "-d", "own", "data")
	for mode, text := range map[string]string{
		"json": "an answer that makes no sense", "huge": "an answer of more than", "close": "the connection broke", "status": "come back later", "rel": "is not an absolute path", "crash": "the connection broke",
	} {
		p.Bad("Mount " + mode)
		out, err := e.Try("run", "--rm", "-v", "data:/d", enginetest.Busybox, "true")
		if err == nil || !strings.Contains(out+err.Error(), text) {
			t.Errorf("%s: %q, %v", mode, out, err)
		}
		if mode == "crash" {
			p.Dead()
			p.Up()
		}
	}
	p.Bad("Mount slow")
	if out, err := e.Try("run", "--rm", "-v", "data:/d", enginetest.Busybox, "true"); err != nil {
		t.Errorf("slow: %s, %v", out, err)
	}
	w.counted("data")
	p.Bad("List never")
	e.Corten("volume", "create", "here")
	for range 2 { // the second one does not wait
		if got := e.Corten("volume", "ls", "-q"); !strings.Contains(got, "data") || !strings.Contains(got, "here") {
			t.Errorf("ls: %q", got)
		}
	}
	p.Bad()
	e.Corten("volume", "rm", "data", "here")
}

// startRclone runs a plugin of somebody else: rclone's, whose volumes are FUSE file systems of its own process.
func startRclone(t *testing.T, socket, dir string) {
	t.Helper()
	program, err := exec.LookPath("rclone")
	if err != nil {
		t.Skip("rclone is not installed: no volume plugin of others to try")
	}
	if f, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0); err != nil {
		t.Skipf("rclone needs FUSE: %v", err)
	} else {
		f.Close()
	}
	base := filepath.Join(dir, "base")
	if err := os.MkdirAll(filepath.Dir(socket), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(base, 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(program, "serve", "docker", "--socket-addr", socket, "--base-dir", base, "--cache-dir", filepath.Join(dir, "cache"), "--config", "/dev/null")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := cmd.Process.Kill(); err != nil {
			t.Error(err)
		}
		_ = cmd.Wait() // "killed" is what happened to it
		for _, at := range plugintest.MountsBelow(t, dir) {
			if err := syscall.Unmount(at, syscall.MNT_DETACH); err != nil {
				t.Error(err)
			}
		}
	})
	wait(t, "rclone listens", func() bool {
		_, err := os.Stat(socket)
		return err == nil
	})
}

// A plugin that somebody else wrote, for Docker: its volume holds what containers write, over the death of an engine, and it is mounted for exactly those who run.
func TestRcloneVolume(t *testing.T) {
	dir := t.TempDir()
	e := enginetest.Start(t)
	startRclone(t, filepath.Join(e.Plugins(), "rclone.sock"), dir)
	behind := filepath.Join(dir, "behind")
	if err := os.Mkdir(behind, 0o755); err != nil {
		t.Fatal(err)
	}
	mounts := func() string {
		t.Helper()
		return e.Corten("volume", "inspect", "-f", "{{len .Status.Mounts}}", "cloud")
	}
	e.Corten("volume", "create", "-d", "rclone", "-o", "type=local", "-o", "path="+behind, "cloud")
	if out, err := e.Try("volume", "create", "-d", "rclone", "-o", "type=nothing", "bad"); err == nil {
		t.Errorf("an option that the plugin refuses: %q", out)
	}
	e.Corten("run", "-d", "--name", "writer", "-v", "cloud:/d", enginetest.Busybox, "sh", "-c", "echo kept > /d/f; exec sleep 1000")
	e.Corten("run", "-d", "--name", "reader", "-v", "cloud:/d", enginetest.Busybox, "sleep", "1000")
	wait(t, "what the container wrote is behind the volume", func() bool {
		text, err := os.ReadFile(filepath.Join(behind, "f"))
		return err == nil && string(text) == "kept\n"
	})
	e.Kill9()
	e.Up()
	if n := mounts(); n != "2" {
		t.Errorf("mounted for %s", n)
	}
	if got := e.Corten("exec", "reader", "cat", "/d/f"); got != "kept" {
		t.Errorf("in another container: %q", got)
	}
	e.Corten("rm", "-f", "writer")
	if n := mounts(); n != "1" {
		t.Errorf("mounted for %s", n)
	}
	e.Corten("rm", "-f", "reader")
	if n, left := mounts(), plugintest.MountsBelow(t, dir); n != "0" || len(left) > 0 {
		t.Errorf("mounted for %s: %q", n, left)
	}
	e.Corten("volume", "rm", "cloud")
}

// The engine is killed at random moments while containers with a plugin's volume come and go, and volumes are made and removed. In the end the plugin counts nobody, and has no volume that the
// engine does not know.
func TestKillEngineWithPlugin(t *testing.T) {
	w := newPluginWorld(t)
	e, p := w.e, w.p
	e.Corten("volume", "create", "-d", "own", "data")
	for round := range min(rounds(t), 5) {
		stop := make(chan struct{})
		var busy sync.WaitGroup
		for i := range 3 {
			busy.Go(func() {
				for n := 0; ; n++ {
					select {
					case <-stop:
						return
					default:
					}
					vol := fmt.Sprintf("vol-%d-%d-%d", round, i, n)
					// What a killed engine answers is not looked at.
					_, _ = e.Try("run", "--rm", "-v", "data:/d", "--mount", "type=volume,src="+vol+",dst=/v,volume-driver=own", enginetest.Busybox, "touch", "/d/f", "/v/f")
					_, _ = e.Try("volume", "rm", vol)
				}
			})
		}
		time.Sleep(time.Duration(200+rand.IntN(600)) * time.Millisecond)
		e.Kill9()
		close(stop)
		busy.Wait()
		e.Up()
	}
	for _, id := range strings.Fields(e.Corten("ps", "-aq")) {
		e.Corten("rm", "-f", id)
	}
	w.counted("data")
	if len(p.Calls("Mount")) == 0 {
		t.Error("nothing was mounted")
	}
	for _, vol := range strings.Fields(e.Corten("volume", "ls", "-q")) {
		e.Corten("volume", "rm", vol)
	}
	if left, err := os.ReadDir(filepath.Join(p.Root, "vols")); err != nil || len(left) > 0 {
		t.Errorf("volumes that nobody knows: %v, %v", left, err)
	}
	if left := plugintest.MountsBelow(t, p.Root); len(left) > 0 {
		t.Errorf("still mounted: %q", left)
	}
}
