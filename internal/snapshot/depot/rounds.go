package depot

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/snapshot"
)

// How relaxed layers become durable. Time is cut into rounds, and a flush ends one:
//
//	round n:    layers get their places with {Boot, Round: n} in their records
//	flush:      round n+1 begins; wait for those of round n that are just getting their places; write flushed.new = n
//	            ─▶ syncfs ─▶ rename flushed.new to flushed ─▶ fsync of the folder: everything of round n is durable
//	start:      a relaxed layer of another boot whose round is above flushed may have lost a part: it is deleted.
//	            One of this boot is whole: what a killed process wrote is in the kernel's hands.
//
// So nothing has to be written to a layer to make it durable. Layers without a round were flushed before they got their places.
const (
	flushedFile    = "flushed"
	flushedNewFile = flushedFile + ".new"
)

type flushedRecord struct{ Round uint64 }

// rounds flush the file system. Callers that wait at the same time share one flush: the one that starts after they asked.
type rounds struct {
	root string
	boot string

	mu      sync.Mutex // guards what follows
	now     *round
	next    *flush // the flush that has not started yet
	flushed uint64 // the last round that is durable
	run     sync.Mutex
}

// round is the time between two flushes.
type round struct {
	number  uint64
	dirty   bool           // there are layers that a flush makes durable
	placing sync.WaitGroup // layers that are just getting their places
}

type flush struct {
	once sync.Once
	err  error
}

func (d *Depot) openRounds() {
	r := &d.rounds
	r.root = d.root
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		d.log.Warn("no boot id: relaxed layers that are not flushed do not outlive the process", "error", err)
	}
	r.boot = strings.TrimSpace(string(boot))
	var rec flushedRecord
	if err := readRecord(filepath.Join(d.root, flushedFile), &rec); err != nil && !errors.Is(err, os.ErrNotExist) {
		d.log.Error("nobody knows which relaxed layers were flushed: those of before this boot are deleted", "error", err)
	}
	r.flushed = rec.Round
	r.now = &round{number: rec.Round + 1}
}

// whole tells at start whether a layer has all that was written into it, and notes a relaxed one.
func (d *Depot) whole(rec layerFile) bool {
	r := &d.rounds
	if rec.Round <= r.flushed {
		return true
	}
	if rec.Boot == "" || rec.Boot != r.boot {
		return false
	}
	r.now.number, r.now.dirty = max(r.now.number, rec.Round), true
	return true
}

// begin gives a layer that is about to get its place its round, and the current flush something to wait for.
func (r *rounds) begin() *round {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.now.dirty = true
	r.now.placing.Add(1)
	return r.now
}

func (r *round) done() { r.placing.Done() }

// durable tells whether a layer of that round is on the disk.
func (r *rounds) durable(number uint64) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return number <= r.flushed
}

// sync makes everything durable that was written before the call.
func (r *rounds) sync() error {
	r.mu.Lock()
	if r.next == nil {
		r.next = &flush{}
	}
	f := r.next
	r.mu.Unlock()
	f.once.Do(func() {
		r.run.Lock() // held over a flush by design: those who come meanwhile gather for the next one
		defer r.run.Unlock()
		r.mu.Lock()
		r.next = nil // who comes from here on waits for the next one
		ended := r.now
		r.now = &round{number: ended.number + 1}
		r.mu.Unlock()
		ended.placing.Wait()
		f.err = r.end(ended)
	})
	return f.err
}

func (r *rounds) end(ended *round) error {
	err := r.flush(ended)
	r.mu.Lock()
	defer r.mu.Unlock()
	if err != nil {
		r.now.dirty = r.now.dirty || ended.dirty
		return err
	}
	r.flushed = ended.number
	return nil
}

func (r *rounds) flush(ended *round) error {
	if !ended.dirty {
		return syncfs(r.root)
	}
	path, aside := filepath.Join(r.root, flushedFile), filepath.Join(r.root, flushedNewFile)
	data, err := json.Marshal(flushedRecord{Round: ended.number})
	if err == nil {
		err = os.WriteFile(aside, data, 0o600)
	}
	if err == nil {
		err = syncfs(r.root)
	}
	if err == nil {
		err = os.Rename(aside, path)
	}
	if err == nil {
		err = syncDir(r.root)
	}
	return err
}

// Flush is snapshot.Store's Flush.
func (d *Depot) Flush(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := d.compactHolds(); err != nil {
		return err
	}
	r := &d.rounds
	r.mu.Lock()
	// Somebody else's flush that is under way ended its round before: what it covers is durable only when it is through.
	layers := r.now.dirty || r.flushed+1 < r.now.number
	r.mu.Unlock()
	if layers {
		return r.sync() // the holds with them
	}
	return d.flushHolds()
}

// settle makes a layer that was found durable if that was asked for.
func (d *Depot) settle(chain snapshot.ChainID, relaxed bool) error {
	if relaxed || chain == "" {
		return nil
	}
	d.mu.Lock()
	l := d.layers[chain]
	d.mu.Unlock()
	if l == nil || d.rounds.durable(l.round) {
		return nil
	}
	return d.rounds.sync()
}

// syncfs also tells of what went wrong when the kernel wrote in the background, if nobody was told of it yet.
func syncfs(path string) error {
	dir, err := os.Open(path)
	if err != nil {
		return err
	}
	if err = unix.Syncfs(int(dir.Fd())); err != nil {
		err = &os.PathError{Op: "syncfs", Path: path, Err: err}
	}
	return errs.Also(err, dir.Close())
}
