package containers

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"strings"

	"corten.dev/corten/internal/container"
	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/network"
	"corten.dev/corten/internal/task"
)

// Pause freezes all processes of a container.
func (s *Service) Pause(ctx context.Context, ref string) error {
	ctr, _, proc, err := s.running(ctx, ref)
	if err != nil {
		return err
	}
	if err := s.freeze(context.WithoutCancel(ctx), ctr, proc); err != nil {
		return err
	}
	s.saveState(ctr)
	return nil
}

// saveState stores a state that has come about already: when it cannot be stored, that is not the caller's failure. The next engine finds out from the processes.
func (s *Service) saveState(ctr *live) {
	if err := s.save(ctr, false); err != nil {
		s.Log.Error("keep the state of a container", "container", ctr.record().Name, "state", ctr.record().State.Status, "error", err)
		s.owe(ctr, err)
	}
}

// freeze pauses a container for as long as this engine lives: nothing is stored, and the next engine lets it go on.
func (s *Service) freeze(ctx context.Context, ctr *live, proc Process) error {
	if ctr.record().State.Status == container.Paused {
		return errs.New(errs.Conflict, "Container %s is already paused", ctr.id)
	}
	if err := ctr.claim(container.Paused); err != nil {
		return errs.New(errs.Conflict, "container %s is not running", ctr.id)
	}
	if err := proc.Pause(ctx); err != nil {
		ctr.pausedTo(container.Running)
		return fmt.Errorf("cannot pause container %s: %w", ctr.id, err)
	}
	s.emit(ctr, "pause", nil)
	return nil
}

// pausedTo sets the status of a container that is still live; one that ended meanwhile stays ended.
func (ctr *live) pausedTo(status container.Status) {
	ctr.mu.Lock()
	defer ctr.mu.Unlock()
	if ctr.record().State.Status.Live() {
		ctr.changeLocked(func(rec *container.Record) { rec.State.Status = status })
	}
}

// Unpause lets a container go on.
func (s *Service) Unpause(ctx context.Context, ref string) error {
	ctr, err := s.find(ref)
	if err != nil {
		return err
	}
	if err := ctr.started(ctx); err != nil {
		return err
	}
	_, proc, err := ctr.handles()
	if err != nil {
		return errs.New(errs.Conflict, "Container %s is not paused", ctr.id)
	}
	return s.unpause(context.WithoutCancel(ctx), ctr, proc)
}

func (s *Service) unpause(ctx context.Context, ctr *live, proc Process) error {
	if ctr.record().State.Status != container.Paused {
		return errs.New(errs.Conflict, "Container %s is not paused", ctr.id)
	}
	if err := proc.Resume(ctx); err != nil {
		return fmt.Errorf("cannot unpause container %s: %w", ctr.id, err)
	}
	ctr.pausedTo(container.Running)
	s.emit(ctr, "unpause", nil)
	s.saveState(ctr)
	return nil
}

// Rename gives a container another name, also in the networks that it is on.
func (s *Service) Rename(ctx context.Context, ref, name string) (err error) {
	ctr, err := s.find(ref)
	if err != nil {
		return err
	}
	if name == "" {
		return errs.New(errs.Invalid, "Neither old nor new names may be empty")
	}
	name = strings.TrimPrefix(name, "/")
	if !nameRule.MatchString(name) {
		return errs.New(errs.Invalid, "Error when allocating new name: Invalid container name (/%s), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed", name)
	}
	if err := ctr.started(ctx); err != nil { // a start takes the name into the networks
		return err
	}
	old := ctr.record().Name
	if old == name {
		return errs.New(errs.Invalid, "Renaming a container with the same name as its current name")
	}
	if st := ctr.record().State.Status; st == container.Removing || st == container.Dead {
		return errs.New(errs.Conflict, "container %s is marked for removal and cannot be renamed", old)
	}
	var undo task.Undo
	defer undo.OnError(ctx, &err)
	if err := s.table.reserve(name, ctr); err != nil {
		return fmt.Errorf("Error when allocating new name: %w", err) //lint:ignore ST1005 Docker's words
	}
	undo.Push(func(context.Context) error { s.table.free(name, ctr); return nil })
	ctr.change(func(rec *container.Record) { rec.Name = name })
	undo.Push(func(context.Context) error { ctr.change(func(rec *container.Record) { rec.Name = old }); return nil })
	if err := s.save(ctr, true); err != nil {
		return err
	}
	undo.Push(func(context.Context) error {
		ctr.change(func(rec *container.Record) { rec.Name = old })
		return s.save(ctr, true)
	})
	if ctr.record().State.Status.Live() && !strings.HasPrefix(ctr.record().Host.NetworkMode, "container:") {
		if err := s.Networks.Rename(ctx, ctr.id, name); err != nil && !errors.Is(err, errs.NotFound) {
			return err
		}
	}
	s.table.free(old, ctr)
	s.emit(ctr, "rename", map[string]string{"oldName": "/" + old})
	return nil
}

// SetNetwork keeps that a container is (or is no longer, with a nil ep) on a network, and what it has in its networks then: as change says, or, where that is nil, as the room does.
func (s *Service) SetNetwork(ref, name string, ep *container.EndpointSettings, change func(rec *container.Record)) error {
	ctr, err := s.find(ref)
	if err != nil {
		return err
	}
	before := ctr.record().Sandbox
	rec := ctr.change(func(rec *container.Record) {
		rec.Networks = maps.Clone(rec.Networks)
		if rec.Networks == nil {
			rec.Networks = map[string]container.EndpointSettings{}
		}
		if ep == nil {
			delete(rec.Networks, name)
		} else {
			rec.Networks[name] = *ep
		}
		if change == nil {
			change = s.seeSandbox
		}
		change(rec)
	})
	if err := s.followNetworks(rec, before); err != nil {
		return err
	}
	return s.save(ctr, true)
}

// followNetworks writes into the files of a running container what it has in its networks now; before is what it had.
func (s *Service) followNetworks(rec *container.Record, before *network.Sandbox) error {
	if !rec.State.Status.Live() || before == nil || rec.Sandbox == nil {
		return nil
	}
	if err := s.editHosts(rec, before); err != nil {
		return fmt.Errorf("hosts file of container %s: %w", rec.Name, err)
	}
	if err := s.editResolvConf(rec, before); err != nil {
		return fmt.Errorf("resolv.conf of container %s: %w", rec.Name, err)
	}
	return nil
}
