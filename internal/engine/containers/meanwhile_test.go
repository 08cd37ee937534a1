package containers_test

import (
	"context"
	"errors"
	"net"
	"testing"
	"time"

	"corten.dev/corten/internal/container"
	"corten.dev/corten/internal/engine/containers"
	"corten.dev/corten/internal/monitor"
	"corten.dev/corten/internal/monitor/monitortest"
)

// made is a service over a world, with one container in it.
func made(t *testing.T, change func(*containers.CreateRequest)) (*world, *containers.Service, string) {
	t.Helper()
	w := newWorld()
	svc, err := containers.New(w.options(t))
	must(t, err)
	t.Cleanup(func() { must(t, svc.Close()) })
	req := fakeRequest(t)
	change(&req)
	created, err := svc.Create(bg, req)
	must(t, err)
	return w, svc, created.ID
}

func asItIs(*containers.CreateRequest) {}

// holdAt has the first one who comes to a step wait there until the channel closes; reached closes when he is there.
func (w *world) holdAt(step string, until <-chan struct{}) (reached <-chan struct{}) {
	there := make(chan struct{})
	w.mu.Lock()
	defer w.mu.Unlock()
	w.hook = func(name string) error {
		if name != step {
			return nil
		}
		w.mu.Lock()
		w.hook = nil
		w.mu.Unlock()
		close(there)
		<-until
		return nil
	}
	return there
}

func within(t *testing.T, what string, c <-chan error) error {
	t.Helper()
	select {
	case err := <-c:
		return err
	case <-time.After(30 * time.Second):
		t.Fatalf("%s does not come back", what)
		return nil
	}
}

// Who waited for a container that was just being started for the first time waited for ever when the start failed: it was "created" again, and nobody told him.
func TestWaitDuringAStartThatFails(t *testing.T) {
	w, svc, id := made(t, asItIs)
	w.mons.OnLaunch = func(*monitortest.FakeMonitor) error { return errPlanned }
	goOn := make(chan struct{})
	there := w.holdAt("launch", goOn)
	started := make(chan error, 1)
	go func() { started <- svc.Start(bg, id, "") }()
	<-there
	ended, err := svc.Wait(bg, id, containers.NotRunning)
	must(t, err)
	close(goOn)
	if err := within(t, "start", started); !errors.Is(err, errPlanned) {
		t.Error(err)
	}
	select {
	case end := <-ended:
		if end.Code != 128 {
			t.Errorf("%+v", end)
		}
	case <-time.After(30 * time.Second):
		t.Error("nobody told that it does not run")
	}
}

// A client that attaches to a container which ends before its connection is at hand was kept for the next run, which may never come.
func TestAttachToWhatEndsMeanwhile(t *testing.T) {
	w, svc, id := made(t, asItIs)
	must(t, svc.Start(bg, id, ""))
	here, there := net.Pipe()
	defer here.Close()
	hijack := func(bool) (net.Conn, []byte, error) {
		w.mons.Monitor(id).End(monitor.Exit{Code: 3, At: time.Now()})
		waitFor(t, "the end", func() bool {
			view, err := svc.Inspect(bg, id, false)
			return err == nil && view.State.Status == container.Exited
		})
		return there, nil, nil
	}
	done := make(chan error, 1)
	go func() {
		done <- svc.Attach(bg, id, containers.AttachOptions{Stdout: true, Stream: true, Hijack: hijack})
	}()
	must(t, within(t, "attach", done))
}

// A container that cannot be removed: who waited for its removal was told nothing, and waited for ever.
func TestWaitForARemovalThatFails(t *testing.T) {
	w, svc, id := made(t, asItIs)
	ended, err := svc.Wait(bg, id, containers.Removed)
	must(t, err)
	w.hook = func(name string) error {
		if name == "volume release" {
			return errPlanned
		}
		return nil
	}
	if err := svc.Remove(bg, id, containers.RemoveOptions{}); !errors.Is(err, errPlanned) {
		t.Error(err)
	}
	select {
	case end := <-ended:
		if end.Err == "" {
			t.Error("told that it is gone")
		}
	case <-time.After(30 * time.Second):
		t.Error("told nothing")
	}
	ctx, cancel := context.WithTimeout(bg, 30*time.Second)
	defer cancel()
	idle, err := svc.Wait(ctx, id, containers.NotRunning)
	must(t, err)
	select {
	case <-idle:
	case <-ctx.Done():
		t.Error("it is dead, and said to run")
	}
	w.mu.Lock()
	w.hook = nil
	w.mu.Unlock()
	must(t, svc.Remove(bg, id, containers.RemoveOptions{}))
}

// A change of anything put a container back on the network that it was made with and had left since, and wrote that into the record in place, which others were reading.
func TestEditLeavesTheNetworksThatItLeft(t *testing.T) {
	_, svc, id := made(t, asItIs)
	must(t, svc.SetNetwork(id, "bridge", nil, nil))
	for _, dry := range []bool{true, false} {
		edited, err := svc.Edit(bg, id, containers.EditRequest{Labels: map[string]string{"a": "b"}, DryRun: dry})
		must(t, err)
		if len(edited.Changes) != 1 {
			t.Errorf("changes: %q", edited.Changes)
		}
		view, err := svc.Inspect(bg, id, false)
		must(t, err)
		if len(view.Networks) > 0 || (view.Config.Labels["a"] == "b") == dry {
			t.Errorf("networks %v, labels %v", view.Networks, view.Config.Labels)
		}
	}
}
