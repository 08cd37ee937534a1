package containers_test

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"corten.dev/corten/internal/container"
	"corten.dev/corten/internal/engine/containers"
	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/image"
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

// Of two who copied from one volume of a container that does not run, the first that was done had the volume unmounted under the other.
func TestCopiesSideBySide(t *testing.T) {
	w, svc, id := made(t, asItIs)
	must(t, svc.ArchivePath(bg, id, "/named", func(containers.PathStat) io.Writer {
		must(t, svc.ArchivePath(bg, id, "/named", func(containers.PathStat) io.Writer { return io.Discard }))
		if !strings.Contains(w.ledger(), "mounted named "+id) {
			t.Error("it was unmounted while it is read")
		}
		return io.Discard
	}))
	if strings.Contains(w.ledger(), "mounted") {
		t.Errorf("left: %s", w.ledger())
	}
}

// A power cut may leave a file empty that was renamed over another one without a flush (XFS does). That was how states are written, over the record that create had flushed: the container was
// set aside as broken for the sake of a state that the cut had ended anyway.
func TestPowerCutLosesTheStateAtMost(t *testing.T) {
	w := newWorld()
	opts := w.options(t)
	svc, err := containers.New(opts)
	must(t, err)
	made, err := svc.Create(bg, fakeRequest(t))
	must(t, err)
	files := func() map[string]string {
		t.Helper()
		all := map[string]string{}
		for _, name := range []string{"record.json", "state.json"} {
			if b, err := os.ReadFile(opts.Root + "/" + made.ID + "/" + name); err == nil {
				all[name] = string(b)
			}
		}
		return all
	}
	flushed := files()
	must(t, svc.Start(bg, made.ID, ""))
	must(t, svc.Stop(bg, made.ID, containers.StopOptions{}))
	must(t, svc.Close())
	for name, was := range files() {
		if was == flushed[name] {
			continue
		}
		// This file was written since, and not flushed.
		must(t, os.WriteFile(opts.Root+"/"+made.ID+"/"+name, nil, 0o600))
	}
	svc, err = containers.New(opts)
	must(t, err)
	view, err := svc.Inspect(bg, "ctr", false)
	if err != nil || view.State.Status != container.Created {
		t.Fatalf("%s, %v", view.State.Status, err)
	}
	must(t, svc.Start(bg, "ctr", ""))
	must(t, svc.Rename(bg, "ctr", "new")) // flushed, and later than the state that is there
	must(t, svc.Close())
	svc, err = containers.New(opts)
	must(t, err)
	if view, err = svc.Inspect(bg, "new", false); err != nil || view.State.Status != container.Running {
		t.Errorf("%s, %v", view.State.Status, err)
	}
	must(t, svc.Stop(bg, "new", containers.StopOptions{})) // not flushed, and later than the record
	must(t, svc.Close())
	svc, err = containers.New(opts)
	must(t, err)
	if view, err = svc.Inspect(bg, "new", false); err != nil || view.State.Status != container.Exited {
		t.Errorf("%s, %v", view.State.Status, err)
	}
	must(t, svc.Close())
}

// All clients that wait for a start are handed to the monitor in one packet, which carries 253 descriptors: with so many, the container could not be started.
func TestMoreClientsThanAStartCanTake(t *testing.T) {
	_, svc, id := made(t, asItIs)
	refused := 0
	attached := make(chan error, 300)
	for range cap(attached) {
		taken := make(chan struct{})
		go func() {
			attached <- svc.Attach(bg, id, containers.AttachOptions{Stdout: true, Stream: true, Hijack: func(bool) (net.Conn, []byte, error) {
				here, there := net.Pipe()
				t.Cleanup(func() { here.Close() })
				close(taken)
				return there, nil, nil
			}})
		}()
		select {
		case <-taken:
		case err := <-attached:
			if refused++; !errors.Is(err, errs.Unavailable) {
				t.Fatal(err)
			}
		}
	}
	if refused != 100 {
		t.Errorf("%d were refused", refused)
	}
	must(t, svc.Remove(bg, id, containers.RemoveOptions{}))
	for range cap(attached) - refused {
		must(t, within(t, "attach", attached))
	}
}

// A container that its policy ends when it is unhealthy was left as it was when the engine died between the two: it was acted upon the change alone, and the next engine saw none.
func TestUnhealthyWhenTheEngineDied(t *testing.T) {
	w := newWorld()
	opts := w.options(t)
	svc, err := containers.New(opts)
	must(t, err)
	req := fakeRequest(t)
	req.Config.Healthcheck = &image.Healthcheck{Test: []string{"CMD", "x"}, Interval: time.Hour, Timeout: time.Minute, Retries: 1}
	req.Host.Restart.Name = container.RestartOnUnhealthy
	made, err := svc.Create(bg, req)
	must(t, err)
	must(t, svc.Start(bg, made.ID, ""))
	must(t, svc.Close())
	path := opts.Root + "/" + made.ID + "/state.json"
	b, err := os.ReadFile(path)
	must(t, err)
	var rec map[string]any
	must(t, json.Unmarshal(b, &rec))
	rec["State"].(map[string]any)["Health"] = map[string]any{"Status": "unhealthy", "FailingStreak": 1}
	rec["Config"].(map[string]any)["Healthcheck"].(map[string]any)["Interval"] = int64(time.Millisecond)
	b, err = json.Marshal(rec)
	must(t, err)
	must(t, os.WriteFile(path, b, 0o600))
	svc, err = containers.New(opts)
	must(t, err)
	waitFor(t, "it is started again", func() bool {
		view, err := svc.Inspect(bg, made.ID, false)
		return err == nil && view.RestartCount > 0
	})
	must(t, svc.Remove(bg, made.ID, containers.RemoveOptions{Force: true}))
	must(t, svc.Close())
}

// The end of the engine waited for a container whose time was up to end, for as long as that had been given to it.
func TestCloseDoesNotWaitForAStop(t *testing.T) {
	w := newWorld()
	svc, err := containers.New(w.options(t))
	must(t, err)
	req := fakeRequest(t)
	req.Config.StopSignal, req.Config.StopTimeout = "SIGUSR1", new(int) // of which a fake process does not end
	*req.Config.StopTimeout = 3600
	req.Host.Annotations[container.AnnotationTimeout] = "1ms"
	made, err := svc.Create(bg, req)
	must(t, err)
	must(t, svc.Start(bg, made.ID, ""))
	waitFor(t, "its time is up", func() bool {
		rec, err := svc.Record(made.ID)
		return err == nil && rec.StoppedByUser
	})
	closed := make(chan error, 1)
	go func() { closed <- svc.Close() }()
	must(t, within(t, "the engine", closed))
}
