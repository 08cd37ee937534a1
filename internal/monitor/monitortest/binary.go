// Package monitortest helps to test what uses monitors: the real program, programs to start, and a [Fake] in memory.
//
// It owns nothing that outlives a test. It promises that what it makes is gone when the test ends.
package monitortest

import (
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"corten.dev/corten/internal/linux/launch"
	"corten.dev/corten/internal/monitor"
)

// Binary is the path of the monitor's program for [monitor.Options.Program]. It is built from the source as it is: the embedded one may be of an earlier day, and a test
// of it would tell lies. Only without a Go tool it is the embedded one (empty).
func Binary(t testing.TB) string {
	t.Helper()
	if _, err := exec.LookPath("go"); err != nil && monitor.Embedded() != nil {
		return ""
	}
	path := filepath.Join(t.TempDir(), "corten-monitor")
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", path, "corten.dev/corten/cmd/corten-monitor")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build the monitor: %v\n%s", err, out)
	}
	return path
}

// Program is a prepared program that executes args in the host's own namespaces, apart from those that cloneFlags name. The three first descriptors are its stdio; the
// console's socket, with a terminal, becomes descriptor 3.
func Program(t testing.TB, cloneFlags uint64, terminal bool, args ...string) []byte {
	t.Helper()
	path, err := exec.LookPath(args[0])
	if err != nil {
		t.Fatal(err)
	}
	b := launch.NewBuilder(cloneFlags)
	b.Note("die with the monitor")
	b.Sys(syscall.SYS_PRCTL, launch.Imm(syscall.PR_SET_PDEATHSIG), launch.Imm(int(syscall.SIGKILL)))
	b.Sys(syscall.SYS_SETSID)
	n := 3
	if terminal {
		n = 4
	}
	for i := range n {
		b.Sys(syscall.SYS_DUP3, launch.Slot(i), launch.Imm(i), launch.Imm(0))
	}
	b.Exec([]string{path}, args, os.Environ())
	code, err := b.Encode()
	if err != nil {
		t.Fatal(err)
	}
	return code
}

// Shell is a program that runs a script with sh.
func Shell(t testing.TB, script string) []byte {
	t.Helper()
	return Program(t, 0, false, "sh", "-c", script)
}

// NewPool is a pool of real monitors under a folder of the test's own.
func NewPool(t testing.TB, opts monitor.Options) *monitor.Pool {
	t.Helper()
	if opts.Program == "" {
		opts.Program = Binary(t)
	}
	if opts.Root == "" {
		opts.Root = filepath.Join(t.TempDir(), "monitors")
	}
	p, err := monitor.New(opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	return p
}
