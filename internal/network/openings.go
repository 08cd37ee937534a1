package network

import (
	"errors"
	"fmt"
	"slices"

	"corten.dev/corten/internal/linux/nft"
	"golang.org/x/sys/unix"
)

// Where containers of the default bridge do not reach each other (icc off), a link opens the way from one to some ports of another. Bridge ports are isolated there, so the packet
// must go over the host: the bridge answers for the other's address (proxy_arp_pvlan), and the chain forward accepts what the set links names.

// openingElements are the elements for all openings of boxes on the default bridge whose other side is there. mu is held.
func (l *Local) openingElements() (all []nft.Elem) {
	nw := l.defaultNet()
	if nw == nil || nw.icc {
		return nil
	}
	seen := map[string]bool{}
	for owner, bx := range l.boxes {
		from := nw.eps[owner]
		for _, o := range bx.req.Openings {
			to := nw.eps[o.Owner]
			if from == nil || to == nil || !from.IPv4.IsValid() || !to.IPv4.IsValid() {
				continue
			}
			for _, p := range Runs(numbered(o.Ports)) {
				head := [][]byte{from.IPv4.Addr().AsSlice(), to.IPv4.Addr().AsSlice(), {protoNumber[p.Proto]}}
				e := nft.Elem{Key: nft.Cat(append(head, nft.Port(p.ContainerPort))...), End: nft.Cat(append(head, nft.Port(p.ContainerPort+p.more()))...)}
				if !seen[string(e.Key)] {
					seen[string(e.Key)] = true
					all = append(all, e)
				}
			}
		}
	}
	return all
}

// numbered are ports with their own numbers as the host's, so that neighbours make runs.
func numbered(list []Port) []Port {
	out := slices.Clone(list)
	for i := range out {
		out[i].HostPort = out[i].ContainerPort
	}
	return out
}

// opens says whether someone who comes to or leaves the default bridge changes what is open there. mu is held.
func (l *Local) opens(owner string) bool {
	nw := l.defaultNet()
	if nw == nil || nw.icc || l.opt.NoRules {
		return false
	}
	for at, bx := range l.boxes {
		for _, o := range bx.req.Openings {
			if at == owner || o.Owner == owner {
				return true
			}
		}
	}
	return false
}

// reopen writes the set of openings anew.
func (l *Local) reopen() error {
	l.rules.write.Lock() // so that an older set does not follow a newer one
	defer l.rules.write.Unlock()
	l.mu.Lock()
	elems := l.openingElements()
	l.mu.Unlock()
	tx := &nft.Tx{}
	tx.FlushSet(l.opt.Table, setLinks)
	tx.AddElems(l.opt.Table, setLinks, elems)
	err := l.commit(tx)
	if errors.Is(err, unix.ENOENT) { // flushed a moment ago: it is being written again, with these
		l.rules.again()
		return nil
	}
	if err != nil {
		return fmt.Errorf("open the ports of links: %w", err)
	}
	return nil
}

// letPass has the bridge of the default network answer for containers that do not hear each other.
func (l *Local) letPass(nw *network) error {
	if !nw.isDefault || nw.icc || l.opt.NoRules || nw.v4 == nil {
		return nil
	}
	conf := "net/ipv4/conf/" + nw.br + "/"
	if err := l.hostSysctl(conf+"proxy_arp_pvlan", "1"); err != nil {
		return err
	}
	return l.hostSysctl(conf+"send_redirects", "0")
}
