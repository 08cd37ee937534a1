package containers_test

import (
	"errors"
	"sync"
	"sync/atomic"
	"testing"

	"corten.dev/corten/internal/container"
	"corten.dev/corten/internal/engine/containers"
	"corten.dev/corten/internal/errs"
)

// atOnce runs a call n times side by side.
func atOnce(n int, call func() error) (all []error) {
	all = make([]error, n)
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() { all[i] = call() })
	}
	wg.Wait()
	return all
}

// Of twenty who started one container at once, nineteen were told that "a container that is starting cannot become starting", and a kill at that moment that it does not run: it ran on.
// Whoever comes while it is being started waits for what comes of that.
func TestStartedByManyAtOnce(t *testing.T) {
	w := newWorld()
	svc, err := containers.New(w.options(t))
	must(t, err)
	made, err := svc.Create(bg, fakeRequest(t))
	must(t, err)
	launching, goOn := make(chan struct{}), make(chan struct{})
	var once sync.Once
	w.hook = func(name string) error {
		if name == "launch" {
			once.Do(func() {
				close(launching)
				<-goOn
			})
		}
		return nil
	}
	first := make(chan error, 1)
	go func() { first <- svc.Start(bg, made.ID, "") }()
	<-launching
	var begun sync.WaitGroup
	begun.Add(20)
	go func() {
		begun.Wait()
		close(goOn)
	}()
	for _, err := range atOnce(20, func() error {
		begun.Done()
		return svc.Start(bg, made.ID, "")
	}) {
		if !errors.Is(err, errs.NotModified) {
			t.Errorf("one who started it, too, was told: %v", err)
		}
	}
	must(t, <-first)
	must(t, svc.Kill(bg, made.ID, "KILL"))
	must(t, svc.Close())
}

// A kill, a pause and a look from another service wait for a start that is under way.
func TestStartIsWaitedFor(t *testing.T) {
	for name, call := range map[string]func(svc *containers.Service, id string) error{
		"kill":  func(svc *containers.Service, id string) error { return svc.Kill(bg, id, "KILL") },
		"pause": func(svc *containers.Service, id string) error { return svc.Pause(bg, id) },
		"settled": func(svc *containers.Service, id string) error {
			rec, err := svc.Settled(bg, id)
			if err == nil && rec.State.Status != container.Running {
				err = errors.New("it is " + string(rec.State.Status))
			}
			return err
		},
	} {
		w := newWorld()
		svc, err := containers.New(w.options(t))
		must(t, err)
		made, err := svc.Create(bg, fakeRequest(t))
		must(t, err)
		called := make(chan error, 1)
		var once sync.Once
		w.hook = func(step string) error {
			if step == "launch" {
				once.Do(func() { go func() { called <- call(svc, made.ID) }() })
			}
			return nil
		}
		must(t, svc.Start(bg, made.ID, ""))
		if err := <-called; err != nil {
			t.Errorf("%s while it starts: %v", name, err)
		}
		must(t, svc.Close())
	}
}

// Of two who restarted one container at once, the faster one was done and took its note away that the container keeps its place; then the other one's stop was the end of a container with --rm.
func TestRestartedByManyAtOnce(t *testing.T) {
	w := newWorld()
	svc, err := containers.New(w.options(t))
	must(t, err)
	req := fakeRequest(t)
	req.Host.AutoRemove = true
	made, err := svc.Create(bg, req)
	must(t, err)
	must(t, svc.Start(bg, made.ID, ""))
	var failed atomic.Int32
	for range 20 {
		for _, err := range atOnce(10, func() error { return svc.Restart(bg, made.ID, containers.StopOptions{}) }) {
			if err != nil {
				failed.Add(1)
				t.Errorf("restart: %v", err)
			}
		}
		if failed.Load() > 0 {
			break
		}
	}
	view, err := svc.Inspect(bg, made.ID, false)
	must(t, err)
	if view.State.Status != container.Running {
		t.Errorf("it is %s", view.State.Status)
	}
	must(t, svc.Close())
}
