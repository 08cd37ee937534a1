package servertest

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
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
