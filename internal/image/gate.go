package image

import (
	"context"
	"errors"
	"maps"
	"sync"

	"github.com/opencontainers/go-digest"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/snapshot"
)

// gate keeps two things apart: calls that bring layers in and do not yet have an image that names them (begin … end), and the
// removal of layers that no image names. Removal waits for a moment without such calls; it is short, so they wait for it.
type gate struct {
	mu       sync.Mutex
	inside   int
	sweeping chan struct{} // closed when the removal under way is done
	loose    map[loose]bool
	held     map[loose]int                   // what calls that take long (pulls, pushes) need; they do not stop the removal of other things
	going    map[digest.Digest]chan struct{} // blobs that are being deleted outside of the removal; closed when that is done
	sweep    func(all []loose, held func(loose) bool) (again []loose)
}

// loose is something that may have to go: a chain of layers; the config, manifest or index of an image, which are blobs; or what is known
// of the compressed forms of a diff.
type loose struct {
	config bool
	form   bool
	blob   bool // a compressed layer: only ever held; what is left of it goes with the garbage
	name   digest.Digest
}

// hold keeps things from being removed, whether they are there yet or not. A removal under way is waited for, so that what is found afterwards stays.
func (g *gate) hold(all []loose) {
	for {
		g.begin()
		g.mu.Lock()
		g.inside--
		var wait chan struct{}
		for _, it := range all {
			if ch := g.going[it.name]; ch != nil && (it.blob || it.config) {
				wait = ch
			}
		}
		if wait == nil {
			break
		}
		g.mu.Unlock()
		<-wait
	}
	defer g.mu.Unlock()
	if g.held == nil {
		g.held = map[loose]int{}
	}
	for _, it := range all {
		g.held[it]++
	}
}

// unlessHeld runs del, which deletes a blob, unless somebody holds it: not done then. Whoever wants to hold it meanwhile waits.
func (g *gate) unlessHeld(blob digest.Digest, del func() error) (done bool, err error) {
	g.mu.Lock()
	if g.held[loose{blob: true, name: blob}] > 0 || g.held[loose{config: true, name: blob}] > 0 || g.going[blob] != nil {
		g.mu.Unlock()
		return false, nil
	}
	if g.going == nil {
		g.going = map[digest.Digest]chan struct{}{}
	}
	ch := make(chan struct{})
	g.going[blob] = ch
	g.mu.Unlock()
	defer func() {
		g.mu.Lock()
		delete(g.going, blob)
		g.mu.Unlock()
		close(ch)
	}()
	return true, del()
}

// release is the contrary of hold. What it lets go may have to go now: Sweep looks.
func (g *gate) release(all []loose) {
	g.mu.Lock()
	for _, it := range all {
		if g.held[it]--; g.held[it] <= 0 {
			delete(g.held, it)
		}
	}
	g.mu.Unlock()
	for _, it := range all {
		g.candidate(it)
	}
}

func (g *gate) begin() {
	for {
		g.mu.Lock()
		wait := g.sweeping
		if wait == nil {
			g.inside++
			g.mu.Unlock()
			return
		}
		g.mu.Unlock()
		<-wait
	}
}

// candidate names what may have to go; the sweep checks.
func (g *gate) candidate(it loose) {
	if it.name == "" || it.blob {
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.loose == nil {
		g.loose = map[loose]bool{}
	}
	g.loose[it] = true
}

func (g *gate) end() {
	g.mu.Lock()
	g.inside--
	if g.inside > 0 || len(g.loose) == 0 {
		g.mu.Unlock()
		return
	}
	done := make(chan struct{})
	g.sweeping = done
	var all []loose
	for it := range g.loose {
		all = append(all, it)
	}
	g.loose = nil
	held := maps.Clone(g.held) // nobody adds to it before the removal is done
	g.mu.Unlock()
	for _, it := range g.sweep(all, func(it loose) bool { return held[it] > 0 }) {
		g.candidate(it)
	}
	g.mu.Lock()
	g.sweeping = nil
	g.mu.Unlock()
	close(done)
}

// Sweep removes layers of deleted images that could not go before because a container's tree stood on them. The engine
// calls it after it removed trees. It does nothing when there are none.
func (s *Images) Sweep() {
	s.gate.mu.Lock()
	any := len(s.gate.loose) > 0
	s.gate.mu.Unlock()
	if any {
		s.gate.begin()
		s.gate.end()
	}
}

// sweepLoose removes what no image has and nobody holds, chains with what is below them, and returns what is still in use otherwise.
func (s *Images) sweepLoose(all []loose, held func(loose) bool) (again []loose) {
	ctx := context.Background()
	live := s.Live()
	keep := func(chain digest.Digest) bool { return live(chain) || held(loose{name: chain}) }
	for _, it := range all {
		switch {
		case it.form:
			if !held(it) {
				s.dropForms(ctx, it.name)
			}
		case held(it) || live(it.name):
		case it.config:
			if held(loose{blob: true, name: it.name}) || s.forms.keeps(it.name) {
				continue // it is a compressed layer as well
			}
			if err := s.blobs.Delete(ctx, it.name); err != nil {
				s.log.Warn("blob of a deleted image stays", "digest", it.name, "error", err)
			}
		default:
			if chain := s.sweepChain(ctx, it.name, keep, held); chain != "" {
				again = append(again, loose{name: chain})
			}
		}
	}
	return again
}

// sweepChain returns the chain at which it had to stop.
func (s *Images) sweepChain(ctx context.Context, chain snapshot.ChainID, keep func(digest.Digest) bool, held func(loose) bool) snapshot.ChainID {
	for chain != "" && !keep(chain) {
		l, err := s.snaps.Stat(ctx, chain)
		if errors.Is(err, errs.NotFound) {
			return ""
		}
		if err == nil {
			err = s.snaps.RemoveLayer(ctx, chain)
		}
		if errors.Is(err, snapshot.ErrKept) {
			return "" // whoever has the hold, or removes the layer above, comes back to it (DropLayers)
		}
		if err != nil {
			if !errors.Is(err, errs.Conflict) {
				s.log.Warn("layer without an image stays", "chain", chain, "error", err)
			}
			return chain
		}
		if !held(loose{form: true, name: l.DiffID}) {
			s.dropForms(ctx, l.DiffID)
		}
		chain = l.Parent
	}
	return ""
}

// Live answers for chains, configs, manifests, indexes and their artifacts whether an image has them now.
func (s *Images) Live() func(digest.Digest) bool {
	live := map[digest.Digest]bool{}
	s.mu.RLock()
	defer s.mu.RUnlock()
	for id, e := range s.byID {
		live[id] = true
		for _, chain := range e.chains {
			live[chain] = true
		}
		for _, m := range e.manifests {
			live[m] = true
		}
	}
	for _, idx := range s.indexes {
		live[idx] = true
		for _, part := range s.artifacts[idx] {
			live[part] = true
		}
	}
	return func(d digest.Digest) bool { return live[d] }
}
