package containers_test

import (
	"errors"
	"strings"
	"syscall"
	"testing"

	"corten.dev/corten/internal/container"
	"corten.dev/corten/internal/engine/containers"
)

// An engine with too few descriptors for all of its running containers took those that it could not look at for lost, and killed them.
func TestEngineOutOfDescriptorsKillsNobody(t *testing.T) {
	w := newWorld()
	opts := w.options(t)
	svc, err := containers.New(opts)
	must(t, err)
	made, err := svc.Create(bg, fakeRequest(t))
	must(t, err)
	must(t, svc.Start(bg, made.ID, ""))
	must(t, svc.Close())
	before := w.ledger()

	w.hook = func(step string) error {
		if strings.HasPrefix(step, "load ") {
			return syscall.EMFILE
		}
		return nil
	}
	if _, err = containers.New(opts); !errors.Is(err, syscall.EMFILE) || !strings.Contains(err.Error(), "ctr, which goes on") {
		t.Fatalf("an engine without descriptors: %v", err)
	}
	if now := w.ledger(); now != before {
		t.Errorf("it changed %s into %s", before, now)
	}

	w.hook = nil
	svc, err = containers.New(opts)
	must(t, err)
	view, err := svc.Inspect(bg, made.ID, false)
	must(t, err)
	if view.State.Status != container.Running {
		t.Errorf("for the next engine it is %s", view.State.Status)
	}
	must(t, svc.Close())
}
