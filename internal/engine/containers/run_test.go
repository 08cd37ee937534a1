package containers_test

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"corten.dev/corten/internal/engine/containers"
	"corten.dev/corten/internal/errs"
)

// A run is create's other half in one call. What it gives back comes when all output was delivered and, with --rm, when the container is gone; the connection can still be written to.
func TestRun(t *testing.T) {
	h := newHost(t)
	before := heldNamespaces(t)
	for _, remove := range []bool{false, true} {
		req := sh("cat; echo bye; exit 3")
		req.Config.OpenStdin, req.Config.StdinOnce, req.Host.AutoRemove = true, true, remove
		made, err := h.svc.Create(context.Background(), req)
		must(t, err)
		conn, hijack := pipe(t)
		done := make(chan error, 1)
		go func() {
			done <- h.svc.Run(context.Background(), made.ID, containers.AttachOptions{Stdin: true, Stdout: true, Stderr: true, Hijack: hijack}, func(end containers.Ended, err error) []byte {
				view, ierr := h.svc.Inspect(context.Background(), made.ID, false)
				if remove != errors.Is(ierr, errs.NotFound) || !remove && view.State.ExitCode != 3 {
					t.Errorf("remove %t: told while it is %+v, %v", remove, view.State, ierr)
				}
				if end.Code != 3 || err != nil {
					t.Errorf("code %d, %v", end.Code, err)
				}
				return []byte("\x01\x00\x00\x00\x00\x00\x00\x05last\n")
			})
		}()
		_, err = io.WriteString(conn, "hello\n")
		must(t, err)
		must(t, conn.(*net.UnixConn).CloseWrite())
		b, err := io.ReadAll(conn)
		must(t, err)
		if got := unframe(t, b); got != "hello\nbye\nlast\n" {
			t.Errorf("got %q", got)
		}
		must(t, conn.Close())
		must(t, <-done)
	}
	waitFor(t, "the mount namespaces are let go of", func() bool { return heldNamespaces(t) <= before })
}

// A command that is not there is refused; a client that leaves does not take its container along, nor does anybody wait for it.
func TestRunThatDoesNotEnd(t *testing.T) {
	h := newHost(t)
	made, err := h.svc.Create(context.Background(), noShell("nosuch"))
	must(t, err)
	conn, hijack := pipe(t)
	done := make(chan error, 1)
	go func() {
		done <- h.svc.Run(context.Background(), made.ID, containers.AttachOptions{Stdout: true, Hijack: hijack}, func(_ containers.Ended, err error) []byte {
			if !errors.Is(err, errs.NoCommand) {
				t.Error(err)
			}
			return []byte("no")
		})
	}()
	b, err := io.ReadAll(conn)
	if must(t, err); string(b) != "no" {
		t.Errorf("%q", b)
	}
	must(t, conn.Close())
	must(t, <-done)
	made, err = h.svc.Create(context.Background(), sh("echo on; exec sleep 60"))
	must(t, err)
	conn, hijack = pipe(t)
	go func() {
		done <- h.svc.Run(context.Background(), made.ID, containers.AttachOptions{Stdin: true, Stdout: true, Hijack: hijack}, func(end containers.Ended, err error) []byte {
			t.Errorf("told %+v, %v", end, err)
			return nil
		})
	}()
	_, err = io.ReadFull(conn, make([]byte, 8+3))
	must(t, err)
	must(t, conn.Close())
	if err := <-done; err == nil {
		t.Error("nobody was there to be told, and it is said that he was")
	}
	view, err := h.svc.Inspect(context.Background(), made.ID, false)
	if err != nil || !view.State.Status.Live() {
		t.Errorf("%+v, %v", view.State, err)
	}
	must(t, h.svc.Remove(context.Background(), made.ID, containers.RemoveOptions{Force: true}))
}

func noShell(command string) containers.CreateRequest {
	req := sh("")
	req.Config.Cmd = []string{command}
	return req
}

// heldNamespaces counts the mount namespaces that this process holds by descriptor.
func heldNamespaces(t *testing.T) (n int) {
	t.Helper()
	fds, err := filepath.Glob("/proc/self/fd/*")
	must(t, err)
	seen := map[string]bool{}
	for _, fd := range fds {
		if to, err := os.Readlink(fd); err == nil && strings.HasPrefix(to, "mnt:") {
			seen[to] = true
		}
	}
	return len(seen)
}
