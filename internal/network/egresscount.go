package network

import (
	"context"
	"errors"
	"fmt"

	"corten.dev/corten/internal/linux/nft"
	"golang.org/x/sys/unix"
)

// EgressCount is how much an egress list was asked about since it is there: the first packet of each connection, and each one that is sent again because it was dropped. Counts begin
// anew when somebody else flushes the host's rules.
type EgressCount struct {
	Allowed, Dropped Traffic
	// Spoofed were dropped because they had addresses that are not the container's own. Of containers only.
	Spoofed Traffic
}

// Traffic is a number of packets, and their bytes.
type Traffic struct {
	Packets, Bytes uint64
}

func (t *Traffic) add(e nft.Elem) {
	t.Packets += e.Packets
	t.Bytes += e.Bytes
}

// without is t less what is in o; o was read before t.
func (t Traffic) without(o Traffic) Traffic {
	return Traffic{t.Packets - min(t.Packets, o.Packets), t.Bytes - min(t.Bytes, o.Bytes)}
}

// EgressCounts tells what the lists of containers, by owner, and of networks, by id, let through and dropped. Those without a list are not there.
func (l *Local) EgressCounts(context.Context) (owners, networks map[string]EgressCount, err error) {
	owners, networks = map[string]EgressCount{}, map[string]EgressCount{}
	whose, whoseNet, ports := map[string]string{}, map[string]string{}, map[string]string{}
	l.mu.Lock()
	for owner, bx := range l.boxes {
		if bx.egress == nil {
			continue
		}
		owners[owner] = EgressCount{}
		for _, ep := range bx.sb.Endpoints {
			ports[string(nft.Name(l.linkName(ep)))] = owner
			for _, a := range ep.sources() {
				whose[string(a.AsSlice())] = owner
			}
		}
	}
	for id, nw := range l.nets {
		if nw.egress != nil {
			networks[id] = EgressCount{}
			whoseNet[string(nft.Name(nw.br))] = id
		}
	}
	l.mu.Unlock()
	read := func(family uint8, set string, whose map[string]string, all map[string]EgressCount, of func(*EgressCount) *Traffic) {
		if len(whose) == 0 {
			return
		}
		elems, lerr := l.nf.Elems(family, l.opt.Table, set)
		if lerr != nil && !errors.Is(lerr, unix.ENOENT) { // flushed a moment ago
			err = errors.Join(err, fmt.Errorf("read set %s: %w", set, lerr))
		}
		for _, e := range elems {
			if name, known := whose[string(e.Key)]; known {
				c := all[name]
				of(&c).add(e)
				all[name] = c
			}
		}
	}
	dropped, asked := func(c *EgressCount) *Traffic { return &c.Dropped }, func(c *EgressCount) *Traffic { return &c.Allowed }
	for _, s := range []struct {
		set string
		of  func(*EgressCount) *Traffic
	}{{setDenied, dropped}, {setAsked, asked}} { // in this order, so that no more was dropped than asked for
		read(0, s.set+"4", whose, owners, s.of)
		read(0, s.set+"6", whose, owners, s.of)
		read(0, byNet+s.set, whoseNet, networks, s.of)
	}
	read(unix.NFPROTO_BRIDGE, setStrays, ports, owners, func(c *EgressCount) *Traffic { return &c.Spoofed })
	for _, all := range []map[string]EgressCount{owners, networks} {
		for name, c := range all {
			c.Allowed = c.Allowed.without(c.Dropped)
			all[name] = c
		}
	}
	return owners, networks, err
}

// settleCounts takes the counters of those away who ended while no engine ran.
func (l *Local) settleCounts() error {
	type counter struct{ set, key string }
	var all []counter
	for _, s := range countSets {
		elems, err := l.nf.Elems(0, l.opt.Table, s.Name)
		if err != nil {
			return fmt.Errorf("read set %s: %w", s.Name, err)
		}
		for _, e := range elems {
			all = append(all, counter{s.Name, string(e.Key)})
		}
	}
	l.mu.Lock()
	whose := l.lists() // after they were read, so that those who come now are known
	l.mu.Unlock()
	tx := &nft.Tx{}
	for _, c := range all {
		if !whose[listOf(c.set, c.key)] {
			tx.DelElems(l.opt.Table, c.set, []nft.Elem{{Key: []byte(c.key)}})
		}
	}
	if err := l.commit(tx); !errors.Is(err, unix.ENOENT) {
		return err
	}
	l.rules.again()
	return nil
}
