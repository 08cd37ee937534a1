package images

import (
	"context"
	"errors"
	"sync"
	"syscall"
	"time"

	"github.com/opencontainers/go-digest"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/image"
	"corten.dev/corten/internal/task"
)

// layers brings all layers in, side by side: the downloads as many at a time as the engine allows, unpacking as the bytes come. Release must be called with what it returns.
func (p *pulling) layers(ctx context.Context, inc image.Incoming) ([]*arriving, error) {
	all := inc.Layers()
	shares := map[digest.Digest]*share{}
	var todo []*arriving
	for i, l := range all {
		id := short(l.Blob.Digest)
		if l.Have {
			p.say(ctx, Report{ID: id, Status: "Already exists", Layer: true})
			continue
		}
		p.say(ctx, Report{ID: id, Status: "Pulling fs layer", Layer: true})
		sh := shares[l.Blob.Digest]
		if sh == nil {
			sh = &share{}
			shares[l.Blob.Digest] = sh
		}
		sh.layers = append(sh.layers, i)
		todo = append(todo, &arriving{pulling: p, inc: inc, i: i, layer: l, id: id, share: sh})
	}
	for _, a := range todo { // joined before the first one can have ended, so that a blob that comes twice is fetched once
		a.flight = p.flights.join(p.repo, p.name, a.layer.Blob)
	}
	return todo, task.SideBySide(ctx, p.Log, "bring layers of "+p.name, len(todo), func(ctx context.Context, n int) error { return todo[n].arrive(ctx) })
}

// release lets go of the blobs of an image that was committed, or could not be for the reason of err.
func (p *pulling) release(todo []*arriving, err error) {
	for _, a := range todo {
		switch {
		case err == nil:
			a.flight.kept.Store(true)
		case errors.Is(err, syscall.ENOSPC):
			a.left = spoilt
		}
		p.flights.leave(a.flight, a.left)
	}
}

// share is one blob that several layers of an image are.
type share struct {
	mu     sync.Mutex // guards layers
	layers []int      // that are not unpacked yet
}

// last takes a layer off, and tells whether it was the last.
func (sh *share) last(i int) bool {
	sh.mu.Lock()
	defer sh.mu.Unlock()
	for n, l := range sh.layers {
		if l == i {
			sh.layers = append(sh.layers[:n], sh.layers[n+1:]...)
			break
		}
	}
	return len(sh.layers) == 0
}

// arriving is one layer on its way in.
type arriving struct {
	*pulling
	inc    image.Incoming
	i      int
	layer  image.IncomingLayer
	id     string
	share  *share
	flight *flight
	left   leaving
	told   phase
	last   Report
}

// maxTries bounds how often a layer is begun again for reasons that lie elsewhere: another pull's download failed, a download began anew below the unpacking.
const maxTries = 4

// arrive downloads, verifies and unpacks.
func (a *arriving) arrive(ctx context.Context) (err error) {
	for range maxTries {
		var again bool
		if again, err = a.try(ctx); !again {
			return err
		}
		if a.flight.failed() {
			old := a.flight
			a.flight = a.flights.join(a.repo, a.name, a.layer.Blob)
			a.flights.leave(old, forNext)
		}
	}
	return err
}

func (a *arriving) try(caller context.Context) (again bool, err error) {
	ctx, cancel := context.WithCancelCause(caller)
	defer cancel(nil)
	f := a.flight
	r := a.flights.reader(ctx, f)
	unpacked := make(chan error, 1)
	go func() {
		var err error
		defer func() { unpacked <- errors.Join(err, r.Close()) }()
		defer task.Contain(a.Log, "unpack layer "+a.id, &err)
		err = a.inc.Unpack(ctx, a.i, r)
	}()
	unpackErr, downErr := a.watch(ctx, f, r, unpacked, cancel)
	switch {
	case caller.Err() != nil:
		return false, context.Cause(caller)
	case unpackErr == nil && !r.used.Load():
		// Another pull unpacked the layer, or it is made of one that is here. What is still to come of the blob is of no use.
		if phase(f.phase.Load()) != landed || f.failed() {
			a.left = unneeded
		} else {
			err = a.keep(ctx)
		}
		a.say(ctx, Report{ID: a.id, Status: "Already exists", Layer: true})
		return false, err
	case downErr != nil:
		// What another pull was fetching from elsewhere may well be had from here.
		return f.from != a.name, downErr
	case unpackErr != nil:
		// The download began anew, or the blob was whole before it could be followed: it is there now, and is read from the beginning.
		if r.err != nil {
			return true, unpackErr
		}
		a.left = spoilt
		return false, unpackErr
	}
	if err := a.keep(ctx); err != nil {
		return false, err
	}
	a.say(ctx, Report{ID: a.id, Status: "Pull complete", Layer: true})
	return false, nil
}

// keep hands the blob over, once all layers of this image that are made of it are unpacked.
func (a *arriving) keep(ctx context.Context) error {
	if !a.share.last(a.i) {
		return nil
	}
	err := a.inc.Keep(ctx, a.i, a.layer.Blob)
	if errors.Is(err, errs.NotFound) { // another pull of the same layer handed it over
		return nil
	}
	return err
}

// watch tells how far the layer is until both unpacking and download have ended, or one of them failed.
func (a *arriving) watch(ctx context.Context, f *flight, r *follower, unpacked <-chan error, cancel context.CancelCauseFunc) (unpackErr, downErr error) {
	tick := time.NewTicker(reportEvery)
	defer tick.Stop()
	done, gone := f.done, ctx.Done()
	a.tell(ctx, f, r)
	for {
		select {
		case <-gone: // unpacking notices by itself; the download goes on for others
			gone, done = nil, nil
		case <-tick.C:
			a.tell(ctx, f, r)
			continue
		case <-done:
			done = nil
			if downErr = f.err; downErr == nil {
				a.tell(ctx, f, r)
			} else {
				cancel(downErr) // unpacking may be waiting for the layers below
			}
		case unpackErr = <-unpacked:
			unpacked = nil
			if unpackErr != nil && r.err == nil || unpackErr == nil && !r.used.Load() {
				return unpackErr, downErr // not the download's fault; or not in need of it
			}
		}
		if done == nil && unpacked == nil {
			return unpackErr, downErr
		}
	}
}

// tell reports what has changed.
func (a *arriving) tell(ctx context.Context, f *flight, r *follower) {
	now := phase(f.phase.Load())
	layer := func(status string, current int64) {
		r := Report{ID: a.id, Status: status, Layer: true, Current: current, Total: a.layer.Blob.Size}
		if r != a.last {
			a.say(ctx, r)
			a.last = r
		}
	}
	switch now {
	case waiting:
		if a.told < waiting {
			a.told = waiting
			a.say(ctx, Report{ID: a.id, Status: "Waiting", Layer: true})
		}
	case downloading:
		a.told = downloading
		layer("Downloading", f.current.Load())
	case verifying:
		if a.told < verifying {
			a.told = verifying
			a.say(ctx, Report{ID: a.id, Status: "Verifying Checksum", Layer: true})
		}
	case landed:
		if a.told < landed {
			if a.told < verifying {
				a.say(ctx, Report{ID: a.id, Status: "Verifying Checksum", Layer: true})
			}
			a.told = landed
			a.say(ctx, Report{ID: a.id, Status: "Download complete", Layer: true})
		}
		layer("Extracting", r.read.Load())
	}
}

func short(d digest.Digest) string { return d.Encoded()[:12] }
