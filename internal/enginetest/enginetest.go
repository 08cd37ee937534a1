// Package enginetest runs a private engine for tests that drive the real binaries.
//
// It owns the engine's temporary roots, its bridge, its packet table and its subnet, all of names that nobody else uses. It promises that the engine is stopped at the end of the test, and that
// the test fails when anything of the engine or its containers is left behind: see [Census]. Whatever happens, nothing stays on the machine.
package enginetest

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"corten.dev/corten/internal/busyboxtree"
)

// Engine is one private engine.
type Engine struct {
	Ground
	Bin, Dir string
	Flags    []string
	Cmd      *exec.Cmd

	t        testing.TB
	baseline map[string]bool // what the host had under the engine's names before
	fresh    Census          // what the engine had when it was new
}

// Busybox is the name of the image that every engine of this package has.
const Busybox = "busybox"

// Bin returns the folder of the built binaries: $CORTEN_BIN_DIR, or bin/ at the root of the repository. It skips the test when they cannot be used.
func Bin(t testing.TB) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: namespaces and bridges")
	}
	bin := os.Getenv("CORTEN_BIN_DIR")
	if bin == "" {
		wd, err := os.Getwd()
		if err != nil {
			t.Fatal(err)
		}
		for dir := wd; dir != "/"; dir = filepath.Dir(dir) {
			if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
				bin = filepath.Join(dir, "bin")
				break
			}
		}
	}
	for _, name := range []string{"corten", "cortend"} {
		if _, err := os.Stat(filepath.Join(bin, name)); err != nil {
			t.Skipf("needs the built binaries: run make build (%v)", err)
		}
	}
	return bin
}

// Start starts an engine with a busybox image.
func Start(t testing.TB, flags ...string) *Engine {
	t.Helper()
	image, err := busyboxtree.Tar(busyboxtree.Path)
	if err != nil {
		t.Skipf("needs a static busybox (Debian: busybox-static): %v", err)
	}
	e := New(t, flags...)
	e.Up()
	cmd := e.Client("import", "-", Busybox)
	cmd.Stdin = bytes.NewReader(image)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("import busybox: %v: %s\n%s", err, out, e.Log())
	}
	return e
}

// New makes an engine that does not run yet.
func New(t testing.TB, flags ...string) *Engine {
	t.Helper()
	bin := Bin(t)
	ground := NewGround(t) // given back when all is swept
	// Not t.TempDir: its removal must come after the look for leftovers, and unix sockets need a short path.
	dir, err := os.MkdirTemp("", "ctn")
	if err != nil {
		t.Fatal(err)
	}
	e := &Engine{Ground: ground, Bin: bin, Dir: dir, Flags: flags, t: t}
	e.baseline = e.traces()
	t.Cleanup(e.finish)
	return e
}

// Socket is the address for -H.
func (e *Engine) Socket() string { return "unix://" + filepath.Join(e.Dir, "e", "corten.sock") }

// Plugins is the only folder that the engine looks through for plugins.
func (e *Engine) Plugins() string { return filepath.Join(e.Dir, "p") }

// Up starts the engine and waits for its first answer.
func (e *Engine) Up() {
	e.t.Helper()
	config := filepath.Join(e.Dir, "daemon.json")
	if err := os.WriteFile(config, []byte("{}"), 0o644); err != nil {
		e.t.Fatal(err)
	}
	log, err := os.OpenFile(filepath.Join(e.Dir, "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		e.t.Fatal(err)
	}
	defer log.Close()
	args := append([]string{"-H", e.Socket(), "--data-root", filepath.Join(e.Dir, "d"), "--exec-root", filepath.Join(e.Dir, "e"),
		"--bridge", e.Bridge, "--bip", e.BIP.String(), "--default-address-pool", "base=" + e.Pool.String() + ",size=24", "--nft-table", e.Table, "--config-file", config, "--log-level", "debug",
		"--plugin-dir", e.Plugins()}, e.Flags...)
	if _, err := os.Stat("/run/systemd/system"); err != nil { // systemd has units, not folders
		args = append(args, "--cgroup-parent", e.Table)
	}
	e.Cmd = exec.Command(filepath.Join(e.Bin, "cortend"), args...)
	e.Cmd.Stdout, e.Cmd.Stderr = log, log
	if err := errors.Join(e.penned(e.Cmd), e.Cmd.Start()); err != nil {
		e.t.Fatal(err)
	}
	deadline := time.Now().Add(60 * time.Second)
	for {
		if e.Client("version").Run() == nil {
			if e.fresh == nil {
				e.fresh = e.Settled()
			}
			return
		}
		if time.Now().After(deadline) {
			e.t.Fatalf("the engine did not answer:\n%s", e.Log())
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// Kill9 kills the engine as nobody should.
func (e *Engine) Kill9() {
	e.t.Helper()
	if err := e.Cmd.Process.Kill(); err != nil {
		e.t.Fatal(err)
	}
	_ = e.Cmd.Wait() // "signal: killed" is what was asked
}

// Down stops the engine in order.
func (e *Engine) Down() {
	e.t.Helper()
	if err := e.Cmd.Process.Signal(syscall.SIGTERM); err != nil {
		e.t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- e.Cmd.Wait() }()
	select {
	case err := <-ended:
		if err != nil {
			e.t.Errorf("the engine ended with %v:\n%s", err, e.Log())
		}
	case <-time.After(60 * time.Second):
		e.t.Errorf("the engine did not end within a minute:\n%s", e.Log())
		e.Kill9()
	}
}

// Client is a call of corten against this engine.
func (e *Engine) Client(args ...string) *exec.Cmd {
	cmd := exec.Command(filepath.Join(e.Bin, "corten"), append([]string{"-H", e.Socket()}, args...)...)
	cmd.Env = append(os.Environ(), "HOME="+e.Dir)
	return cmd
}

// Corten runs the client and returns its standard output without the last newline; the test fails if it fails.
func (e *Engine) Corten(args ...string) string {
	e.t.Helper()
	out, err := e.Try(args...)
	if err != nil {
		e.t.Fatalf("corten %s: %v\n%s", strings.Join(args, " "), err, e.Log())
	}
	return out
}

// Try runs the client; the error holds what it said.
func (e *Engine) Try(args ...string) (string, error) {
	cmd := e.Client(args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	if err != nil {
		err = fmt.Errorf("%w: %s", err, strings.TrimSpace(stderr.String()))
	}
	return strings.TrimSuffix(stdout.String(), "\n"), err
}

// logLines is how much of the engine's log a failure shows.
const logLines = 40

// Log is the end of what the engine said, without its debug lines, which would hide the line that matters, or from the line on with which it crashed; with CORTEN_TEST_LOG=debug it is all of it.
func (e *Engine) Log() string {
	raw, err := os.ReadFile(filepath.Join(e.Dir, "log"))
	if err != nil {
		return err.Error()
	}
	if os.Getenv("CORTEN_TEST_LOG") == "debug" {
		return "the engine's log:\n" + string(raw)
	}
	return "the end of the engine's log (all of it: CORTEN_TEST_LOG=debug):\n" + logEnd(string(raw))
}

func logEnd(log string) string {
	lines := slices.DeleteFunc(strings.SplitAfter(log, "\n"), func(line string) bool { return strings.Contains(line, "level=DEBUG") })
	from := max(0, len(lines)-logLines-1)
	crash := slices.IndexFunc(lines, func(line string) bool { // the stacks of all goroutines follow, and what ended it is said first
		return strings.HasPrefix(line, "panic: ") || strings.HasPrefix(line, "fatal error: ") || strings.HasPrefix(line, "SIG") || strings.HasPrefix(line, "unexpected fault address")
	})
	if crash >= 0 && crash < from {
		return strings.Join(lines[crash:min(crash+2*logLines, len(lines))], "")
	}
	return strings.Join(lines[from:], "")
}

// finish takes everything away that the test made, in the ways that users have, and looks for what stays.
func (e *Engine) finish() {
	defer e.sweep()                     // also when the engine does not come up
	if e.fresh != nil && !e.running() { // the test ended without an engine: who else would see to the containers?
		e.Up()
	}
	if e.running() {
		e.Clear()
		if !e.t.Failed() {
			e.CheckLeft(e.fresh)
		}
		e.Down()
	}
	var left []string
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(50 * time.Millisecond) { // a name server or port proxy that no engine came to waits 5 s for one
		left = left[:0]
		for trace := range e.traces() {
			if !e.baseline[trace] {
				left = append(left, trace)
			}
		}
		for _, pid := range e.processes() {
			left = append(left, "process "+describe(pid))
		}
		if len(left) == 0 {
			break
		}
	}
	if len(left) > 0 {
		e.t.Errorf("left behind:\n%s\n%s", strings.Join(left, "\n"), e.Log())
	}
}

// Clear removes all containers, images, volumes and networks, and the cache of builds.
func (e *Engine) Clear() {
	e.t.Helper()
	for _, verbs := range [][2][]string{
		{{"ps", "-aq"}, {"rm", "-f", "-v"}}, {{"images", "-aq", "--no-trunc"}, {"rmi", "-f"}}, {{"volume", "ls", "-q"}, {"volume", "rm", "-f"}},
		{{"network", "ls", "-q", "--filter", "type=custom"}, {"network", "rm"}},
	} {
		out, err := e.Try(verbs[0]...)
		if err == nil && out != "" {
			_, err = e.Try(append(verbs[1], slices.Compact(slices.Sorted(strings.FieldsSeq(out)))...)...)
		}
		if err != nil {
			e.t.Errorf("corten %s: %v", strings.Join(verbs[1], " "), err)
		}
	}
	if _, err := os.Stat(filepath.Join(e.Dir, "d", "builds")); err == nil {
		if _, err := e.Try("builder", "prune", "-a", "-f"); err != nil {
			e.t.Errorf("corten builder prune: %v", err)
		}
	}
}

// cgroups are the folders, one per hierarchy, in which the engine's containers have theirs.
func (e *Engine) cgroups() []string {
	var all []string
	for _, pattern := range []string{"/sys/fs/cgroup/", "/sys/fs/cgroup/*/"} {
		found, _ := filepath.Glob(pattern + e.Table)
		all = append(all, found...)
	}
	return all
}

// traces lists what this engine has in the kernel.
func (e *Engine) traces() map[string]bool {
	found := map[string]bool{}
	if raw, err := os.ReadFile("/proc/self/mountinfo"); err == nil {
		for line := range strings.Lines(string(raw)) {
			if strings.Contains(line, e.Dir) {
				found["mount "+strings.TrimSpace(line)] = true
			}
		}
	}
	if _, err := os.Stat("/sys/class/net/" + e.Bridge); err == nil {
		found["bridge "+e.Bridge] = true
	}
	aliases, _ := filepath.Glob("/sys/class/net/*/ifalias")
	for _, path := range aliases {
		if raw, err := os.ReadFile(path); err == nil && strings.Contains(string(raw), e.Table) {
			found["link "+path+" "+strings.TrimSpace(string(raw))] = true
		}
	}
	for _, parent := range e.cgroups() {
		_ = filepath.WalkDir(parent, func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.IsDir() && path != parent {
				found["cgroup "+path] = true
			}
			return nil // gone is good
		})
	}
	if out, err := exec.Command("nft", "list", "tables").Output(); err == nil {
		for line := range strings.Lines(string(out)) {
			if strings.Contains(line, e.Table) {
				found["nft "+strings.TrimSpace(line)] = true
			}
		}
	}
	return found
}
