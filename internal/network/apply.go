package network

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"syscall"
	"time"

	"corten.dev/corten/internal/linux/conntrack"
	"corten.dev/corten/internal/linux/netlink"
	"corten.dev/corten/internal/linux/nft"
	"golang.org/x/sys/unix"
)

// rulesState keeps the table as it should be.
type rulesState struct {
	write   sync.Mutex // one writer of the whole table at a time; elements are written beside it
	changes uint64     // how often the bindings or networks changed; guarded by Local.mu
	watch   *os.File
	kick    chan struct{}
}

// again asks for the whole table to be written anew, soon.
func (r *rulesState) again() {
	if r.kick == nil {
		return
	}
	select {
	case r.kick <- struct{}{}:
	default:
	}
}

func (r *rulesState) closeWatch() {
	if r.watch != nil {
		_ = r.watch.Close() // only read from: nothing can be lost
	}
}

// commit hands a transaction to the kernel.
func (l *Local) commit(tx *nft.Tx) error { return l.nf.Commit(tx) }

// applyRules writes the table. With all, it empties the maps before: only once everything that runs was restored, because until then
// the kernel's elements know more than we do.
//
// Ports may come and go while it writes what it saw a moment ago, so it looks at the count of changes and writes again until none came between.
func (l *Local) applyRules(all bool) error {
	l.rules.write.Lock()
	defer l.rules.write.Unlock()
	for {
		tx, seen := l.wholeTable(all)
		if err := l.commit(tx); err != nil {
			return fmt.Errorf("write nftables table %s: %w", l.opt.Table, err)
		}
		if l.tableChanges() == seen {
			return l.egress.Guard(all)
		}
	}
}

// tableChanges is how often what belongs into the table changed.
func (l *Local) tableChanges() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.rules.changes + l.egress.Changes()
}

func (l *Local) wholeTable(all bool) (*nft.Tx, uint64) {
	tx, seen := &nft.Tx{}, l.tableChanges()
	l.writeRules(tx)
	for _, s := range bridgeSets {
		tx.FlushSet(l.opt.Table, s.Name)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if all {
		for _, s := range portSets {
			tx.FlushSet(l.opt.Table, s.Name)
		}
	}
	for _, nw := range l.nets {
		if nw.br != "" {
			addBridge(tx, l.opt.Table, nw)
		}
	}
	var bindings []*binding
	for _, bx := range l.boxes {
		bindings = append(bindings, bx.bindings...)
	}
	addElements(tx, l.opt.Table, bindings)
	tx.AddElems(l.opt.Table, setLinks, l.openingElements())
	l.egress.Elements(tx, all)
	return tx, seen
}

func addBridge(tx *nft.Tx, table string, nw *network) {
	for set, elems := range bridgeElements(nw) {
		tx.AddElems(table, set, elems)
	}
}

// watchRules listens to the kernel's news about nftables. When someone else takes something of our table away it is written anew; a burst of news
// (a flush tells every rule) is one rewrite.
func (l *Local) watchRules(ctx context.Context) error {
	c, err := netlink.Listen(unix.NETLINK_NETFILTER, unix.NFNLGRP_NFTABLES)
	if err != nil {
		return nft.Explain(err)
	}
	f, err := c.File()
	if err != nil {
		return errors.Join(err, c.Close())
	}
	l.rules.watch, l.rules.kick = f, make(chan struct{}, 1)
	l.work.Go(func() {
		buf := make([]byte, 64<<10)
		for {
			n, err := f.Read(buf)
			switch {
			case errors.Is(err, syscall.ENOBUFS): // more news than we could read
				l.rules.again()
			case err != nil:
				return // closed
			case l.tellsOfLoss(buf[:n]):
				l.rules.again()
			}
		}
	})
	l.work.Go(func() {
		for {
			select {
			case <-ctx.Done():
				return
			case <-l.rules.kick:
			}
			select {
			case <-ctx.Done():
				return
			case <-time.After(100 * time.Millisecond):
			}
			select { // what was told meanwhile is covered
			case <-l.rules.kick:
			default:
			}
			l.mu.Lock()
			settled := l.settled
			l.mu.Unlock()
			if err := errors.Join(l.applyRules(settled), l.forgetUnanswered()); err != nil {
				l.log.Error("write rules again", "err", err)
				time.AfterFunc(time.Second, l.rules.again)
			} else {
				l.log.Info("rules were changed by someone else and are written again", "table", l.opt.Table)
			}
		}
	})
	return nil
}

// tellsOfLoss says whether news tell that someone else removed something of our table.
func (l *Local) tellsOfLoss(p []byte) bool {
	lost := false
	_ = netlink.Walk(p, func(h netlink.Header, payload []byte) error {
		if h.Type>>8 != unix.NFNL_SUBSYS_NFTABLES || len(payload) < 4 || l.nf.Owns(h.From) {
			return nil
		}
		switch h.Type & 0xff {
		case unix.NFT_MSG_DELTABLE, unix.NFT_MSG_DELCHAIN, unix.NFT_MSG_DELRULE, unix.NFT_MSG_DELSET, unix.NFT_MSG_DELSETELEM:
		default:
			return nil
		}
		// The table's name is the first attribute of all five.
		return netlink.Attrs(payload[4:], func(typ uint16, data []byte) {
			if typ == unix.NFTA_TABLE_NAME && string(data) == l.opt.Table+"\x00" {
				lost = true
			}
		})
	})
	return lost
}

// forgetFlows makes the kernel forget the udp flows to ports that changed hands: a sender that keeps its port would else go on talking to whoever
// had the port before. A tcp connection ends by itself.
func (l *Local) forgetFlows(bindings []*binding) error {
	return l.forgetWhich(bindings, func(proto string, _ bool) bool { return proto != "tcp" })
}

// forgetUnanswered makes it forget what came while the rules were gone: the packet was dropped, but the kernel remembers that its flow goes nowhere else, and would
// keep the ones that are sent again from the rules, too.
func (l *Local) forgetUnanswered() error {
	l.mu.Lock()
	var all []*binding
	for _, bx := range l.boxes {
		all = append(all, bx.bindings...)
	}
	l.mu.Unlock()
	return l.forgetWhich(all, func(_ string, answered bool) bool { return !answered })
}

// forgetWhich removes the flows to the ports of which which says so.
func (l *Local) forgetWhich(bindings []*binding, which func(proto string, answered bool) bool) error {
	wanted := slices.DeleteFunc(slices.Clone(bindings), func(b *binding) bool { return b.HostPort == 0 || !which(b.Proto, false) })
	if len(wanted) == 0 {
		return nil
	}
	protoOf := portsIndex(wanted)
	_, err := conntrack.Forget(func(f conntrack.Flow) bool {
		proto := protoOf(f.Proto, f.To.Port())
		return proto != "" && which(proto, f.Answered)
	})
	return err
}

// portsIndex finds the protocol of the bindings that a destination belongs to, or none.
func portsIndex(bindings []*binding) func(proto byte, port uint16) string {
	single := map[portKey]bool{}
	var runs []*binding
	names := map[byte]string{}
	for _, b := range bindings {
		names[protoNumber[b.Proto]] = b.Proto
		if b.Len() > 1 {
			runs = append(runs, b)
		} else {
			single[portKey{b.Proto, b.HostPort}] = true
		}
	}
	return func(number byte, port uint16) string {
		proto := names[number]
		if single[portKey{proto, port}] || slices.ContainsFunc(runs, func(b *binding) bool { return b.Proto == proto && b.HostPort <= port && port <= b.HostPort+b.more() }) {
			return proto
		}
		return ""
	}
}

// takeDown removes what is the room's own on the host: bridges without containers and the table, unless the administrator wrote into it.
func (l *Local) takeDown(ctx context.Context) error {
	l.mu.Lock()
	var idle []*network
	for _, nw := range l.nets {
		if nw.drv != nil && len(nw.eps) == 0 {
			idle = append(idle, nw)
		}
	}
	l.mu.Unlock()
	var err error
	for _, nw := range idle {
		err = errors.Join(err, nw.drv.lower(ctx))
	}
	if l.opt.NoRules {
		return err
	}
	kept, herr := l.nf.HasRules(l.opt.Table, chainUser)
	tx := &nft.Tx{}
	err = errors.Join(err, l.egress.Drop())
	tx.AddTable(l.opt.Table) // so that nothing of the rest can fail
	if kept || herr != nil {
		for _, c := range ownChains {
			tx.AddChain(l.opt.Table, c)
			tx.FlushChain(l.opt.Table, c.Name)
		}
		l.egress.Define(tx)
	} else {
		tx.DelTable(l.opt.Table)
	}
	return errors.Join(err, herr, l.commit(tx))
}
