package enginetest

import (
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

// Registry is one private registry, ours, on a port of its own. It keeps what it has in a folder of the test.
type Registry struct {
	Addr, Dir string
	Flags     []string
	Cmd       *exec.Cmd

	t   testing.TB
	bin string
}

// NewRegistry starts a registry, which ends with the test.
func NewRegistry(t testing.TB, flags ...string) *Registry {
	t.Helper()
	bin := Bin(t)
	r := &Registry{Addr: Addr(t), Dir: t.TempDir(), Flags: flags, t: t, bin: bin}
	r.Up()
	t.Cleanup(func() {
		if r.Cmd != nil {
			_ = r.Cmd.Process.Signal(syscall.SIGTERM) // it may have been killed
			_ = r.Cmd.Wait()
		}
	})
	return r
}

// Up starts it, at the same address with what it had before, and waits for its first answer.
func (r *Registry) Up() {
	r.t.Helper()
	config := filepath.Join(r.Dir, "registry.json")
	if err := os.WriteFile(config, []byte("{}"), 0o600); err != nil {
		r.t.Fatal(err)
	}
	log, err := os.OpenFile(filepath.Join(r.Dir, "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		r.t.Fatal(err)
	}
	defer log.Close()
	args := append([]string{"registry", "serve", "--addr", r.Addr, "--root", filepath.Join(r.Dir, "root"), "--config", config, "--log-level", "warn"}, r.Flags...)
	r.Cmd = exec.Command(filepath.Join(r.bin, "cortend"), args...)
	r.Cmd.Stdout, r.Cmd.Stderr = log, log
	if err := r.Cmd.Start(); err != nil {
		r.t.Fatal(err)
	}
	deadline := time.Now().Add(60 * time.Second)
	for {
		resp, err := http.Get("http://" + r.Addr + "/v2/")
		if err == nil {
			_ = resp.Body.Close()
			return
		}
		if time.Now().After(deadline) {
			r.t.Fatalf("the registry did not answer: %v\n%s", err, r.Log())
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// Kill9 kills it as nobody should.
func (r *Registry) Kill9() {
	r.t.Helper()
	if err := r.Cmd.Process.Kill(); err != nil {
		r.t.Fatal(err)
	}
	_ = r.Cmd.Wait() // "signal: killed" is what was asked
}

// Log is what the registry said.
func (r *Registry) Log() string {
	raw, err := os.ReadFile(filepath.Join(r.Dir, "log"))
	if err != nil {
		return fmt.Sprint(err)
	}
	return "the registry's log:\n" + string(raw)
}
