package servertest

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"corten.dev/corten/internal/registry/server"
	"corten.dev/corten/internal/registry/server/disk"
)

// A registry in a process of its own is the test binary again: it can be killed at any moment, and its memory measured.
const (
	serveRoot  = "CORTEN_SERVERTEST_ROOT"
	serveAddr  = "CORTEN_SERVERTEST_ADDR"
	serveGrace = "CORTEN_SERVERTEST_GRACE"
)

// Main is TestMain of whoever uses StartProcess: it runs the tests, or in a child process serves until that is killed. It returns the exit code. With a
// short grace the child collects garbage all the time.
func Main(m *testing.M) int {
	root := os.Getenv(serveRoot)
	if root == "" {
		return m.Run()
	}
	if err := serveProcess(root, os.Getenv(serveAddr), os.Getenv(serveGrace)); err != nil {
		fmt.Fprintln(os.Stderr, "registry process:", err)
		return 1
	}
	return 0
}

func serveProcess(root, addr, grace string) error {
	d, err := disk.New(disk.Options{Root: root})
	if err != nil {
		return err
	}
	opts := server.Options{Driver: d, Logger: slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))}
	if grace != "" {
		if opts.Limits.Grace, err = time.ParseDuration(grace); err != nil {
			return err
		}
	}
	r, err := server.New(opts)
	if err != nil {
		return err
	}
	listener, err := net.Listen("tcp", addr)
	if err != nil {
		return err
	}
	failed := make(chan error, 2)
	if grace != "" {
		go func() { failed <- collectForever(r) }()
	}
	go func() { failed <- server.NewHTTPServer(r).Serve(listener) }()
	return <-failed
}

func collectForever(r *server.Registry) error {
	for {
		if _, err := r.Collect(context.Background(), server.CollectOptions{}); err != nil {
			return err
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// Process is a registry that runs apart.
type Process struct {
	Addr string
	cmd  *exec.Cmd
}

// FreeAddr is an address that nobody listens on just now.
func FreeAddr(tb testing.TB) string {
	tb.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// StartProcess runs our registry on a folder. A short grace lets it collect all the time.
func StartProcess(tb testing.TB, root, addr string, grace time.Duration) *Process {
	tb.Helper()
	self, err := os.Executable()
	if err != nil {
		tb.Fatal(err)
	}
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), serveRoot+"="+root, serveAddr+"="+addr)
	if grace > 0 {
		cmd.Env = append(cmd.Env, serveGrace+"="+grace.String())
	}
	return start(tb, cmd, addr)
}

// StartDockerRegistry runs Debian's docker-registry for comparing; it skips the test if there is none.
func StartDockerRegistry(tb testing.TB, root, addr string) *Process {
	tb.Helper()
	path, err := exec.LookPath("docker-registry")
	if err != nil {
		tb.Skip("docker-registry is not installed")
	}
	config := filepath.Join(root, "config.yml")
	text := fmt.Sprintf("version: 0.1\nlog:\n  level: error\n  accesslog:\n    disabled: true\nstorage:\n  cache:\n    blobdescriptor: inmemory\n  delete:\n    enabled: true\n"+
		"  filesystem:\n    rootdirectory: %s\nhttp:\n  addr: %s\n", filepath.Join(root, "data"), addr)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		tb.Fatal(err)
	}
	return start(tb, exec.Command(path, "serve", config), addr)
}

func start(tb testing.TB, cmd *exec.Cmd, addr string) *Process {
	tb.Helper()
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		tb.Fatal(err)
	}
	p := &Process{Addr: addr, cmd: cmd}
	tb.Cleanup(p.Kill)
	for range 500 {
		resp, err := http.Get("http://" + addr + "/v2/")
		if err == nil {
			if err := resp.Body.Close(); err != nil {
				tb.Fatal(err)
			}
			http.DefaultClient.CloseIdleConnections()
			return p
		}
		time.Sleep(10 * time.Millisecond)
	}
	tb.Fatalf("%s does not answer at %s", cmd.Path, addr)
	return nil
}

// Kill ends it at once, wherever it is.
func (p *Process) Kill() {
	if p.cmd.ProcessState == nil {
		_ = p.cmd.Process.Kill() // it may have ended by itself
		_ = p.cmd.Wait()         // killed is not an error here
	}
}

// Usage is what a process took so far.
type Usage struct {
	CPU     time.Duration
	PeakRSS int64 // bytes
	RSS     int64
}

// Usage reads it from the kernel.
func (p *Process) Usage(tb testing.TB) Usage {
	tb.Helper()
	dir := "/proc/" + strconv.Itoa(p.cmd.Process.Pid)
	status, err := os.ReadFile(dir + "/status")
	if err != nil {
		tb.Fatal(err)
	}
	stat, err := os.ReadFile(dir + "/stat")
	if err != nil {
		tb.Fatal(err)
	}
	var u Usage
	for line := range strings.Lines(string(status)) {
		var kb int64
		if n, _ := fmt.Sscanf(line, "VmHWM: %d kB", &kb); n == 1 {
			u.PeakRSS = kb << 10
		}
		if n, _ := fmt.Sscanf(line, "VmRSS: %d kB", &kb); n == 1 {
			u.RSS = kb << 10
		}
	}
	fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
	for _, i := range []int{11, 12} { // utime, stime in hundredths
		n, err := strconv.ParseInt(fields[i], 10, 64)
		if err != nil {
			tb.Fatal(err)
		}
		u.CPU += time.Duration(n) * 10 * time.Millisecond
	}
	return u
}
