package containers_test

import (
	"context"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"corten.dev/corten/internal/engine/containers"
)

func TestRunAndLogs(t *testing.T) {
	h := newHost(t)
	id := h.run(sh("echo out; echo err >&2; id; hostname; pwd; exit 3"))
	if end := h.wait(id, containers.NotRunning); end.Code != 3 {
		t.Errorf("exit code %d, want 3", end.Code)
	}
	got := h.logs(id)
	for _, want := range []string{"out\n", "err\n", "uid=0(root) gid=0(root) groups=0(root),600(extra)", id[:12]} {
		if !strings.Contains(got, want) {
			t.Errorf("logs lack %q:\n%s", want, got)
		}
	}
}

func TestAutoRemove(t *testing.T) {
	h := newHost(t)
	req := sh("true")
	req.Name = "gone"
	req.Host.AutoRemove = true
	req.Config.Volumes = map[string]struct{}{"/anon": {}}
	req.Host.Binds = []string{"kept:/kept"}
	made, err := h.svc.Create(context.Background(), req)
	must(t, err)
	c, err := h.svc.Wait(context.Background(), made.ID, containers.Removed)
	must(t, err)
	must(t, h.svc.Start(context.Background(), made.ID, ""))
	if end := <-c; end.Code != 0 {
		t.Errorf("code %d", end.Code)
	}
	if _, err := h.svc.Inspect(context.Background(), "gone", false); err == nil {
		t.Error("it still exists")
	}
	if list, err := h.vols.List(bg); err != nil || len(list) != 1 || list[0].Name != "kept" { // the one without a name goes with it
		t.Errorf("volumes that are left: %+v %v", list, err)
	}
	made, err = h.svc.Create(context.Background(), req) // the name is free
	must(t, err)
	must(t, h.svc.Remove(context.Background(), made.ID, containers.RemoveOptions{}))
}

func TestAttachBeforeStart(t *testing.T) {
	h := newHost(t)
	req := sh("cat; echo bye")
	req.Config.OpenStdin, req.Config.StdinOnce = true, true
	made, err := h.svc.Create(context.Background(), req)
	must(t, err)
	conn, hijack := pipe(t)
	done := make(chan error, 1)
	go func() {
		done <- h.svc.Attach(context.Background(), made.ID, containers.AttachOptions{Stdin: true, Stdout: true, Stderr: true, Stream: true, Hijack: hijack})
	}()
	must(t, h.svc.Start(context.Background(), made.ID, ""))
	_, err = io.WriteString(conn, "hello\n")
	must(t, err)
	must(t, conn.(interface{ CloseWrite() error }).CloseWrite())
	b, err := io.ReadAll(conn)
	must(t, err)
	if got := unframe(t, b); got != "hello\nbye\n" {
		t.Errorf("got %q", got)
	}
	must(t, <-done)
}

// A client starts the container as soon as it is told that it may attach. On a busy machine a short program had ended before the connection was noted: `run` printed nothing.
func TestAttachThatIsSlowerThanTheProgram(t *testing.T) {
	h := newHost(t)
	made, err := h.svc.Create(context.Background(), sh("echo bye"))
	must(t, err)
	conn, hijack := pipe(t)
	told, started := make(chan struct{}), make(chan error, 1)
	go func() {
		<-told
		started <- h.svc.Start(context.Background(), made.ID, "")
	}()
	go func() {
		_ = h.svc.Attach(context.Background(), made.ID, containers.AttachOptions{Stdout: true, Stderr: true, Stream: true, Hijack: func(tty bool) (net.Conn, []byte, error) {
			close(told)
			time.Sleep(300 * time.Millisecond)
			return hijack(tty)
		}})
	}()
	must(t, <-started)
	b, err := io.ReadAll(conn)
	must(t, err)
	if got := unframe(t, b); got != "bye\n" {
		t.Errorf("got %q", got)
	}
}

func TestExec(t *testing.T) {
	h := newHost(t)
	id := h.run(sh("sleep 60"))
	eid, err := h.svc.ExecCreate(context.Background(), id, containers.ExecRequest{Cmd: []string{"sh", "-c", "id -un; echo $A; exit 7"}, Env: []string{"A=b"}, User: "web", AttachStdout: true, AttachStderr: true})
	must(t, err)
	conn, hijack := pipe(t)
	must(t, h.svc.ExecStart(context.Background(), eid, containers.ExecStart{Hijack: hijack}))
	b, err := io.ReadAll(conn)
	must(t, err)
	if got := unframe(t, b); got != "web\nb\n" {
		t.Errorf("got %q", got)
	}
	view, err := h.svc.ExecInspect(context.Background(), eid)
	must(t, err)
	if view.ExitCode == nil || *view.ExitCode != 7 {
		t.Errorf("exit code %v", view.ExitCode)
	}
	for cmd, code := range map[string]int{"nosuch": 127, "/etc/passwd": 126} {
		eid, err := h.svc.ExecCreate(bg, id, containers.ExecRequest{Cmd: []string{cmd}})
		must(t, err)
		if err := h.svc.ExecStart(bg, eid, containers.ExecStart{Detach: true}); err == nil {
			t.Errorf("%s was executed", cmd)
		}
		view, err := h.svc.ExecInspect(bg, eid)
		must(t, err)
		if view.Running || view.ExitCode == nil || *view.ExitCode != code {
			t.Errorf("%s: %+v", cmd, view)
		}
	}
	must(t, h.svc.Kill(context.Background(), id, ""))
}
