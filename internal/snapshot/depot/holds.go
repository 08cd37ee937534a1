package depot

import (
	"context"
	"fmt"
	"maps"
	"path/filepath"
	"sort"
	"sync"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/record"
	"corten.dev/corten/internal/snapshot"
)

// The holds lie in a journal, name to chain. It is not flushed: Flush does that for all. A hold that a crash of the host takes lets go of layers that its owner finds missing; a release that is lost is made
// again by the owner at its start.
const holdsFile = "holds"

// pledges is the journal. mu orders changes in memory and in it: held over one write to the page cache by design, and taken before Depot.mu.
type pledges struct {
	mu      sync.Mutex
	journal *record.Journal[snapshot.ChainID]
	dirty   bool // there are changes that a flush makes durable
}

// put and delete note a change. They need mu.
func (p *pledges) put(name string, chain snapshot.ChainID) error {
	p.dirty = true
	return p.journal.Put(name, chain)
}

func (p *pledges) delete(name string) error {
	p.dirty = true
	return p.journal.Delete(name)
}

// flushHolds makes the holds durable, where no layer is to be: their file alone.
func (d *Depot) flushHolds() error {
	p := &d.pledges
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.dirty {
		return nil
	}
	if err := p.journal.Flush(); err != nil {
		return err
	}
	p.dirty = false
	return nil
}

func (d *Depot) loadHolds() error {
	journal, holds, err := record.OpenJournal[snapshot.ChainID](filepath.Join(d.root, holdsFile), d.log)
	if err != nil {
		return err
	}
	d.pledges.journal = journal
	for name, chain := range holds {
		l := d.layers[chain]
		if l == nil {
			d.log.Info("a held layer is gone, and its hold with it", "hold", name, "chain", chain)
			continue
		}
		d.setHold(name, l)
	}
	return nil
}

// compactHolds writes the file anew when most of it is history.
func (d *Depot) compactHolds() error {
	p := &d.pledges
	p.mu.Lock()
	defer p.mu.Unlock()
	d.mu.Lock()
	if !p.journal.Long(len(d.holds)) {
		d.mu.Unlock()
		return nil
	}
	all := maps.Clone(d.coming)
	for name, l := range d.holds {
		if all[name] == "" {
			all[name] = l.Chain
		}
	}
	d.mu.Unlock()
	return p.journal.Rewrite(all)
}

// foretell notes the hold on a layer that is about to be there. putHeld or recant follows.
func (d *Depot) foretell(name string, chain snapshot.ChainID) error {
	p := &d.pledges
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.put(name, chain); err != nil {
		return fmt.Errorf("hold %s: %w", name, err)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.coming[name] = chain
	return nil
}

// recant notes what is held by that name after all.
func (d *Depot) recant(name string) error {
	p := &d.pledges
	p.mu.Lock()
	defer p.mu.Unlock()
	var chain snapshot.ChainID
	d.mu.Lock()
	delete(d.coming, name)
	if l := d.holds[name]; l != nil {
		chain = l.Chain
	}
	d.mu.Unlock()
	if chain == "" {
		return p.delete(name)
	}
	return p.put(name, chain)
}

// putHeld makes a layer known together with its hold, if it has one. It needs mu.
func (d *Depot) putHeld(l *layer, name string) {
	d.put(l)
	if p := d.layers[l.Parent]; p != nil {
		p.kept++ // it was in use already, by the call or the tree that l was made of
	}
	if name == "" {
		return
	}
	delete(d.coming, name)
	d.setHold(name, l)
}

// setHold makes a name hold a layer, or none, instead of what it held. It needs mu.
func (d *Depot) setHold(name string, l *layer) {
	if old := d.holds[name]; old != nil {
		old.uses--
		old.kept--
		delete(d.holds, name)
	}
	if l != nil {
		l.uses++
		l.kept++
		d.holds[name] = l
	}
}

// Hold is snapshot.Store's Hold.
func (d *Depot) Hold(_ context.Context, name string, chain snapshot.ChainID) error {
	if name == "" {
		return errs.New(errs.Invalid, "a hold needs a name")
	}
	if chain == "" {
		return nil
	}
	p := &d.pledges
	p.mu.Lock()
	defer p.mu.Unlock()
	d.mu.Lock()
	l, old := d.layers[chain], d.holds[name]
	if l == nil || l == old {
		d.mu.Unlock()
		if l == nil {
			return fmt.Errorf("hold %s: %w", name, noLayer(chain))
		}
		return nil
	}
	l.uses++ // at once, so that it stays while the line is written
	d.mu.Unlock()
	err := p.put(name, chain)
	d.mu.Lock()
	defer d.mu.Unlock()
	if err != nil {
		l.uses--
		return fmt.Errorf("hold %s: %w", name, err)
	}
	l.uses-- // setHold counts it
	d.setHold(name, l)
	return nil
}

// Release is snapshot.Store's Release. It also works on a full disk: what cannot be noted then is let go all the same, and is there again after a restart.
func (d *Depot) Release(_ context.Context, name string) error {
	p := &d.pledges
	p.mu.Lock()
	defer p.mu.Unlock()
	d.mu.Lock()
	l := d.holds[name]
	d.setHold(name, nil)
	d.mu.Unlock()
	if l == nil {
		return nil
	}
	if err := p.delete(name); err != nil {
		d.log.Warn("the end of a hold cannot be noted, it will be there again after a restart", "hold", name, "error", err)
	}
	return nil
}

// Holds is snapshot.Store's Holds.
func (d *Depot) Holds(ctx context.Context, fn func(name string, chain snapshot.ChainID) error) error {
	d.mu.Lock()
	names := make([]string, 0, len(d.holds))
	chains := make(map[string]snapshot.ChainID, len(d.holds))
	for name, l := range d.holds {
		names = append(names, name)
		chains[name] = l.Chain
	}
	d.mu.Unlock()
	sort.Strings(names)
	for _, name := range names {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := fn(name, chains[name]); err != nil {
			return err
		}
	}
	return nil
}
