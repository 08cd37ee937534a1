// Package plugintest runs plugins as processes of their own, for tests: programs below testdata, on the library that Docker's users write plugins with.
//
// It owns those processes and their folders. It promises that none of them, and none of their mounts, is left when the test ends. A host without the Go tools skips with a plain word.
package plugintest

import (
	"bufio"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// Build builds the program in testdata/<name>.
func Build(t testing.TB, name string) string {
	t.Helper()
	if _, err := exec.LookPath("go"); err != nil {
		t.Skipf("needs the Go tools, to build a plugin: %v", err)
	}
	_, here, _, ok := runtime.Caller(0)
	if dir := filepath.Dir(here); !ok || !filepath.IsAbs(dir) { // built with -trimpath: look for the source from where the test runs
		here = ""
		wd, err := os.Getwd()
		if err != nil {
			t.Fatal(err)
		}
		for dir := wd; dir != "/"; dir = filepath.Dir(dir) {
			if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
				here = filepath.Join(dir, "internal/plugin/plugintest/plugintest.go")
				break
			}
		}
	}
	out := filepath.Join(t.TempDir(), name)
	cmd := exec.Command("go", "build", "-trimpath", "-tags", "nosystemd", "-o", out, "./testdata/"+name)
	cmd.Dir = filepath.Dir(here)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if text, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build the plugin %s: %v\n%s", name, err, text)
	}
	return out
}

// Process is one plugin.
type Process struct {
	Cmd     *exec.Cmd
	Address string // what it said first: where it listens

	t       testing.TB
	program string
	args    []string
	ended   chan struct{}
}

// Start starts a plugin and waits until it listens, which it says by a line.
func Start(t testing.TB, program string, args ...string) *Process {
	t.Helper()
	p := &Process{t: t, program: program, args: args}
	p.Up()
	t.Cleanup(p.Kill9)
	return p
}

// Up starts it again.
func (p *Process) Up() {
	p.t.Helper()
	p.Cmd = exec.Command(p.program, p.args...)
	p.Cmd.Stderr = os.Stderr
	p.Cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := p.Cmd.StdoutPipe()
	if err == nil {
		runtime.LockOSThread() // Pdeathsig is the thread's; with one that stays, it is the test's
		defer runtime.UnlockOSThread()
		err = p.Cmd.Start()
	}
	if err != nil {
		p.t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		p.t.Fatalf("the plugin does not listen: %v", errors.Join(err, p.Cmd.Wait()))
	}
	p.Address = strings.TrimSpace(line)
	ended, cmd := make(chan struct{}), p.Cmd
	p.ended = ended
	go func() {
		_ = cmd.Wait() // "killed" is what happens to it
		close(ended)
	}()
}

// Kill9 kills it and waits for its end.
func (p *Process) Kill9() {
	_ = p.Cmd.Process.Kill() // it may have ended by itself
	<-p.ended
}

// Dead waits until it ended by itself.
func (p *Process) Dead() {
	p.t.Helper()
	select {
	case <-p.ended:
	case <-time.After(30 * time.Second):
		p.t.Fatal("the plugin lives")
	}
}

// served is a plugin with a folder of its own, in which it notes its calls and looks how to misbehave.
type served struct {
	*Process
	Root string
}

// Volume is the plugin testdata/volume.
type Volume struct{ served }

// StartVolume starts a volume plugin that listens on a socket, and keeps its things in a new folder; more flags may follow.
func StartVolume(t testing.TB, program, socket string, flags ...string) *Volume {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(socket), 0o755); err != nil {
		t.Fatal(err)
	}
	root := t.TempDir()
	t.Cleanup(func() { unmountBelow(t, root) })
	return &Volume{served{Root: root, Process: Start(t, program, append([]string{"-socket", socket, "-root", root}, flags...)...)}}
}

func unmountBelow(t testing.TB, root string) {
	for _, at := range MountsBelow(t, root) {
		if err := syscall.Unmount(at, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	}
}

// MountsBelow asks the kernel what is mounted below a folder in this namespace.
func MountsBelow(t testing.TB, root string) []string {
	t.Helper()
	text, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	var list []string
	for line := range strings.Lines(string(text)) {
		if f := strings.Fields(line); len(f) > 4 && strings.HasPrefix(f[4], root+"/") {
			list = append(list, f[4])
		}
	}
	return list
}

// Bad sets how it misbehaves: lines "METHOD MODE"; none: not at all.
func (v *served) Bad(lines ...string) {
	v.t.Helper()
	if err := os.Remove(filepath.Join(v.Root, "misbehaved")); err != nil && !errors.Is(err, fs.ErrNotExist) {
		v.t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(v.Root, "bad"), []byte(strings.Join(lines, "\n")), 0o600); err != nil {
		v.t.Fatal(err)
	}
}

// Calls are the calls of a method that it carried out or refused: "Mount name id", and of a network plugin "NetworkDriver.Join {…}".
func (v *served) Calls(method string) []string {
	v.t.Helper()
	text, err := os.ReadFile(filepath.Join(v.Root, "calls"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		v.t.Fatal(err)
	}
	return slices.DeleteFunc(strings.Split(string(text), "\n"), func(line string) bool { return !strings.HasPrefix(line, method+" ") })
}

// Mounted counts the mounts of a volume by id, as the plugin keeps them.
func (v *Volume) Mounted(name string) map[string]int {
	v.t.Helper()
	text, err := os.ReadFile(filepath.Join(v.Root, "state.json"))
	if err != nil {
		v.t.Fatal(err)
	}
	var state map[string]struct{ IDs map[string]int }
	if err := json.Unmarshal(text, &state); err != nil {
		v.t.Fatal(err)
	}
	return state[name].IDs
}
