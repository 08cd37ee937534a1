package egress

import (
	"errors"

	"corten.dev/corten/internal/linux/nft"
	"golang.org/x/sys/unix"
)

// Count is how much a list was asked about since it is there: the first packet of each connection, and each one that is sent again because it was dropped. Counts begin
// anew when somebody else flushes the host's rules.
type Count struct {
	Allowed, Dropped Traffic
	// Spoofed were dropped because they had addresses that are not the container's own. Of owners only.
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

// Counts tells what the lists of owners and of bridges let through and dropped. Those without a list are not there.
func (l *Lists) Counts() (owners, bridges map[string]Count, err error) {
	owners, bridges = map[string]Count{}, map[string]Count{}
	whose, whoseBridge, ports := map[string]string{}, map[string]string{}, map[string]string{}
	l.mu.Lock()
	for name, o := range l.owners {
		owners[name] = Count{}
		for _, s := range o.from {
			ports[string(nft.Name(s.Link))] = name
			for _, a := range s.Addrs {
				whose[string(a.AsSlice())] = name
			}
		}
	}
	for bridge := range l.bridges {
		bridges[bridge] = Count{}
		whoseBridge[string(nft.Name(bridge))] = bridge
	}
	l.mu.Unlock()
	read := func(family uint8, set string, whose map[string]string, all map[string]Count, of func(*Count) *Traffic) {
		if len(whose) == 0 {
			return
		}
		elems, lerr := l.elems(family, set)
		if !errors.Is(lerr, unix.ENOENT) { // flushed a moment ago
			err = errors.Join(err, lerr)
		}
		for _, e := range elems {
			if name, known := whose[string(e.Key)]; known {
				c := all[name]
				of(&c).add(e)
				all[name] = c
			}
		}
	}
	dropped, asked := func(c *Count) *Traffic { return &c.Dropped }, func(c *Count) *Traffic { return &c.Allowed }
	for _, s := range []struct {
		set string
		of  func(*Count) *Traffic
	}{{setDenied, dropped}, {setAsked, asked}} { // in this order, so that no more was dropped than asked for
		read(0, s.set+"4", whose, owners, s.of)
		read(0, s.set+"6", whose, owners, s.of)
		read(0, byNet+s.set, whoseBridge, bridges, s.of)
	}
	read(unix.NFPROTO_BRIDGE, setStrays, ports, owners, func(c *Count) *Traffic { return &c.Spoofed })
	for _, all := range []map[string]Count{owners, bridges} {
		for name, c := range all {
			c.Allowed = c.Allowed.without(c.Dropped)
			all[name] = c
		}
	}
	return owners, bridges, err
}

// settleCounts takes the counters of those away who ended while no engine ran.
func (l *Lists) settleCounts() error {
	type counter struct{ set, key string }
	var all []counter
	for _, s := range countSets {
		elems, err := l.elems(0, s.Name)
		if err != nil {
			return err
		}
		for _, e := range elems {
			all = append(all, counter{s.Name, string(e.Key)})
		}
	}
	l.mu.Lock()
	whose := l.known() // after they were read, so that those who come now are known
	l.mu.Unlock()
	tx := &nft.Tx{}
	for _, c := range all {
		if !whose[listOf(c.set, c.key)] {
			tx.DelElems(l.opt.Table, c.set, []nft.Elem{{Key: []byte(c.key)}})
		}
	}
	return l.again(tx)
}
