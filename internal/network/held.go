package network

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"time"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/network/remote"
	"corten.dev/corten/internal/plugin"
	"corten.dev/corten/internal/task"
)

// held is what plugins hold for one network or one endpoint of ours: the addresses of one, the network or endpoint of the other. It is on disk before a plugin makes anything, so that an engine that comes
// after a killed one gives back what nobody uses. An address that was given and not noted yet when the engine was killed is the one thing that is lost: the protocol has no question for it.
//
//	<root>/networks/plugins/<id>.json
//
//	            Create, Join, Connect          Remove, Leave, Disconnect, or what failed
//	(nothing) ────────────────────────▶ in use ──────────────────────────────────────▶ owed ──▶ (nothing)
//	                                      ▲                                             │ ▲
//	     start of the engine ──▶ unclaimed┘ Restore; else, with Settle: owed            └─┘ the plugin does not answer: again later
type held struct {
	ID      string // of the endpoint, or of the network itself
	Network string // the network's id
	Owner   string `json:",omitempty"` // of an endpoint
	Driver  string `json:",omitempty"` // the plugin; none: the driver is ours
	IPAM    string `json:",omitempty"` // the plugin; none: the addresses are ours
	Pools   []string
	Addrs   []heldAddr
	// What was called, from a moment before on.
	Made   bool           // CreateNetwork or CreateEndpoint
	Joined *remote.Joined `json:",omitempty"` // Join, and what came of it
	Open   bool           `json:",omitempty"` // ProgramExternalConnectivity
	// Interface is the name that Joined.Src has in the container; empty: it was not moved, or is back.
	Interface string `json:",omitempty"`

	source    int           // the index of Joined.Src on the host, until it was moved; 0: there is none
	port      string        // the other end of it, a port of the plugin's bridge on the host
	turn      chan struct{} // held by who gives it back
	owed      bool          // nobody uses it any more; guarded by Local.mu
	unclaimed bool          // found at start; guarded by Local.mu
	failed    string        // why it was not given back last; of the goroutine that repays alone
}

// heldAddr is an address of a pool.
type heldAddr struct {
	Pool string
	Addr netip.Addr
}

// How long who leaves waits for plugins, and when those that did not answer are asked again.
const (
	leaveTime  = 5 * time.Second
	repayFirst = time.Second
	repayMost  = 2 * time.Minute
	repayRound = 30 * time.Second
)

// hold begins a record, in memory. IPAM is set already; Addrs grow under mu (gave): others look at them.
func (l *Local) hold(h *held) {
	h.turn = make(chan struct{}, 1)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.held[h.ID] = h
}

// gave adds an address that a plugin gave.
func (l *Local) gave(h *held, a heldAddr) {
	l.mu.Lock()
	defer l.mu.Unlock()
	h.Addrs = append(h.Addrs, a)
}

// note writes a record.
func (l *Local) note(h *held) error {
	if err := l.ledger.Put(h.ID, *h, true); err != nil {
		return fmt.Errorf("note what plugins hold: %w", err)
	}
	return nil
}

// unhold forgets a record: nothing is held any more.
func (l *Local) unhold(h *held) error {
	if err := l.ledger.Delete(h.ID, false); err != nil { // to give back twice does no harm
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.held, h.ID)
	return nil
}

// loadHeld reads the records of an earlier engine.
func (l *Local) loadHeld() error {
	if l.opt.Plugins.Set != nil {
		if err := os.MkdirAll(l.keyDir(), 0o755); err != nil {
			return fmt.Errorf("folder for network plugins: %w", err)
		}
	}
	all, err := l.ledger.All()
	if err != nil {
		return fmt.Errorf("what network plugins hold: %w", err)
	}
	for _, h := range all {
		h.unclaimed = h.Owner != ""
		h.owed = l.nets[h.Network] == nil // nobody else is there yet
		l.hold(&h)
	}
	return nil
}

// claimHeld says that a running container has an endpoint. mu is held.
func (l *Local) claimHeld(ep Endpoint) {
	if h := l.held[ep.ID]; h != nil {
		h.unclaimed = false
	}
}

// settleHeld makes what no running container has owed, and brings its interfaces back to the host.
func (l *Local) settleHeld() error {
	l.mu.Lock()
	var gone []*held
	for _, h := range l.held {
		if h.unclaimed {
			h.unclaimed, h.owed = false, true
			gone = append(gone, h)
		}
	}
	l.mu.Unlock()
	var all []error
	for _, h := range gone {
		all = append(all, l.bringHome(h))
	}
	l.kickRepay()
	return errors.Join(append(all, l.dropStaleKeys())...)
}

// owe gives records back now, within a time; those whose plugins do not answer stay owed. It is for those who leave: a plugin does not keep them.
func (l *Local) owe(ctx context.Context, list ...*held) {
	l.mu.Lock()
	for _, h := range list {
		h.owed = true
	}
	l.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), leaveTime)
	defer cancel()
	for _, h := range list {
		if err := l.giveBack(ctx, h); err != nil {
			l.log.Warn("a plugin does not take back what it holds; it is asked again later", "driver", h.Driver, "ipam", h.IPAM, "network", h.Network, "owner", h.Owner, "err", err)
			l.kickRepay()
		}
	}
}

// untilClosed bounds work in the background by a time and by the end of the room.
func (l *Local) untilClosed(limit time.Duration) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	go func() {
		select {
		case <-l.done:
			cancel()
		case <-ctx.Done():
		}
	}()
	return ctx, cancel
}

func (l *Local) kickRepay() {
	select {
	case l.repay <- struct{}{}:
	default:
	}
}

// runRepay asks plugins to take back what is owed, ever more seldom while they do not.
func (l *Local) runRepay(ctx context.Context) {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	pause := repayFirst
	for {
		select {
		case <-ctx.Done():
			return
		case <-l.repay:
			pause = repayFirst
			timer.Reset(pause)
		case <-timer.C:
			if l.repayAll(ctx) {
				pause = min(2*pause, repayMost)
				timer.Reset(pause)
			}
		}
	}
}

// repayAll makes one round, all plugins side by side; more tells whether something is left.
func (l *Local) repayAll(ctx context.Context) (more bool) {
	by := map[string][]*held{}
	l.mu.Lock()
	for _, h := range l.held {
		if h.owed {
			by[h.Driver+"/"+h.IPAM] = append(by[h.Driver+"/"+h.IPAM], h)
		}
	}
	l.mu.Unlock()
	left := make(chan bool)
	for _, list := range by {
		go func() { left <- l.repayOne(ctx, list) }()
	}
	for range by {
		more = <-left || more
	}
	return more
}

// repayOne gives back what one plugin holds; after the first that fails the rest waits for the next round.
func (l *Local) repayOne(ctx context.Context, list []*held) (left bool) {
	var err error
	left = true
	defer task.Contain(l.log, "give back to a plugin", &err)
	ctx, cancel := context.WithTimeout(ctx, repayRound)
	defer cancel()
	// Endpoints before their network.
	for _, networks := range []bool{false, true} {
		for _, h := range list {
			if (h.ID == h.Network) != networks {
				continue
			}
			if err := l.giveBack(ctx, h); err != nil {
				if text := err.Error(); text != h.failed {
					h.failed = text
					l.log.Warn("a plugin does not take back what it holds; it is asked again later", "driver", h.Driver, "ipam", h.IPAM, "network", h.Network, "owner", h.Owner, "err", err)
				}
				return true
			}
		}
	}
	return false
}

// giveBack has the plugins take back what they hold, in the order in which Docker does. What a plugin refuses is as good as done: it knows better what it has. An error means that it did not answer.
func (l *Local) giveBack(ctx context.Context, h *held) error {
	select {
	case h.turn <- struct{}{}:
		defer func() { <-h.turn }()
	case <-ctx.Done():
		return errs.New(errs.Unavailable, "wait for a plugin: %w", context.Cause(ctx))
	}
	l.mu.Lock()
	gone := l.held[h.ID] != h
	l.mu.Unlock()
	if gone {
		return nil
	}
	before := len(h.Addrs) + len(h.Pools)
	err := errors.Join(l.undriver(ctx, h), l.bringHome(h))
	if err == nil {
		err = l.unaddress(ctx, h)
	}
	switch {
	case err == nil:
		return l.unhold(h)
	case len(h.Addrs)+len(h.Pools) < before || h.Driver != "" && !h.Made:
		return errors.Join(err, l.note(h)) // some of it
	}
	return err
}

// undriver has a network driver forget a network or an endpoint.
func (l *Local) undriver(ctx context.Context, h *held) error {
	if h.Driver == "" || !h.Made {
		return nil
	}
	d, err := l.opt.Plugins.Driver(h.Driver)
	if err != nil {
		return err
	}
	if h.ID == h.Network {
		if err := l.refused(h, d.DeleteNetwork(ctx, h.Network)); err != nil {
			return err
		}
		h.Made = false
		return nil
	}
	ref := remote.Ref{NetworkID: h.Network, EndpointID: h.ID}
	if h.Open {
		if err := l.refused(h, d.Revoke(ctx, ref)); err != nil {
			return err
		}
		h.Open = false
	}
	if h.Joined != nil {
		if err := l.refused(h, d.Leave(ctx, ref)); err != nil {
			return err
		}
		if err := l.bringHome(h); err != nil {
			return err
		}
		h.Joined = nil
	}
	if err := l.refused(h, d.DeleteEndpoint(ctx, ref)); err != nil {
		return err
	}
	h.Made = false
	return nil
}

// unaddress has an address manager take back addresses and subnets.
func (l *Local) unaddress(ctx context.Context, h *held) error {
	if h.IPAM == "" || len(h.Addrs)+len(h.Pools) == 0 {
		return nil
	}
	m, err := l.opt.Plugins.IPAM(h.IPAM)
	if err != nil {
		return err
	}
	for len(h.Addrs) > 0 {
		a := h.Addrs[len(h.Addrs)-1]
		if !l.givenAgain(h, a) {
			if err := l.refused(h, m.ReleaseAddress(ctx, a.Pool, a.Addr)); err != nil {
				return err
			}
		}
		h.Addrs = h.Addrs[:len(h.Addrs)-1]
	}
	for len(h.Pools) > 0 {
		if err := l.refused(h, m.ReleasePool(ctx, h.Pools[len(h.Pools)-1])); err != nil {
			return err
		}
		h.Pools = h.Pools[:len(h.Pools)-1]
	}
	return nil
}

// givenAgain tells whether somebody else has an address that is owed: it was taken back without a word, and given again.
func (l *Local) givenAgain(h *held, a heldAddr) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, o := range l.held {
		if o != h && !o.owed && o.IPAM == h.IPAM {
			for _, b := range o.Addrs {
				if a == b {
					return true
				}
			}
		}
	}
	return false
}

// refused makes little of a plugin's own refusal to take something back.
func (l *Local) refused(h *held, err error) error {
	var said *plugin.Error
	if errors.As(err, &said) {
		l.log.Warn("plugin refuses to take something back", "plugin", said.Plugin, "network", h.Network, "owner", h.Owner, "err", err)
		return nil
	}
	return err
}
