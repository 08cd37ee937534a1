package dns

import (
	"context"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
)

// Entry is what an owner is called and may know: all its networks.
type Entry struct {
	Owner    string       `json:"owner"`
	Networks []Membership `json:"networks"`
	// Servers are asked for the rest; none: those of the host's resolv.conf.
	Servers []string `json:"servers,omitempty"`
	// Host are the host's servers as the engine saw them last, for where this process, which has no rights, cannot read the file.
	Host []string `json:"host,omitempty"`
	// Egress are the names that it may ask for beside those of its networks; nil: all.
	Egress *Fence `json:"egress,omitempty"`
}

// Membership is an owner's place on one network.
type Membership struct {
	ID       string       `json:"id"`
	Name     string       `json:"name"`
	Internal bool         `json:"internal,omitempty"`
	Addrs    []netip.Addr `json:"addrs"`
	Names    []string     `json:"names,omitempty"`
	// Links are names that only this owner knows: alias -> name on the network.
	Links map[string]string `json:"links,omitempty"`
	// Egress are the names that owners may ask for by way of this network; nil: all.
	Egress *Fence `json:"egress,omitempty"`
}

// book is the Directory that is made of entries: who shares a network with an owner is known to it.
type book struct {
	host HostFile

	mu      sync.RWMutex
	entries map[string]Entry
	nets    map[string]*page // by network id
	inside  map[string]*inside
	gate    *gate
}

// page is one network: lower-case name -> owners.
type page struct {
	names   map[string]map[string]bool
	members map[string]Membership
}

func newBook(resolvConf string) *book {
	return &book{host: HostFile{Path: resolvConf}, entries: map[string]Entry{}, nets: map[string]*page{}, inside: map[string]*inside{}, gate: newGate()}
}

// set writes an owner's entry anew. Sockets inside that it had stay, unless there are new ones.
func (b *book) set(e Entry, in *inside) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.gate.forget(e.Owner) // its list may be another now
	b.strike(e.Owner)
	b.entries[e.Owner] = e
	b.write(e)
	if in == nil {
		return nil
	}
	old := b.inside[e.Owner]
	b.inside[e.Owner] = in
	return old.close()
}

// write puts an owner on the pages of its networks. mu is held.
func (b *book) write(e Entry) {
	for _, m := range e.Networks {
		pg := b.nets[m.ID]
		if pg == nil {
			pg = &page{names: map[string]map[string]bool{}, members: map[string]Membership{}}
			b.nets[m.ID] = pg
		}
		pg.members[e.Owner] = m
		for _, n := range m.Names {
			key := strings.ToLower(n)
			if pg.names[key] == nil {
				pg.names[key] = map[string]bool{}
			}
			pg.names[key][e.Owner] = true
		}
	}
}

// drop forgets an owner.
func (b *book) drop(owner string) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.gate.forget(owner)
	b.strike(owner)
	delete(b.entries, owner)
	old := b.inside[owner]
	delete(b.inside, owner)
	return old.close()
}

// entry is what is known of an owner.
func (b *book) entry(owner string) (Entry, *inside, bool) {
	b.mu.RLock()
	defer b.mu.RUnlock()
	e, ok := b.entries[owner]
	return e, b.inside[owner], ok
}

// owners lists the next ones after a name, a page at a time.
func (b *book) owners(after string) []string {
	b.mu.RLock()
	defer b.mu.RUnlock()
	var all []string
	for owner := range b.entries {
		if owner > after {
			all = append(all, owner)
		}
	}
	slices.Sort(all)
	return all[:min(listPage, len(all))]
}

func (b *book) empty() bool {
	b.mu.RLock()
	defer b.mu.RUnlock()
	return len(b.entries) == 0
}

// strike takes an owner off its networks. mu is held.
func (b *book) strike(owner string) {
	for _, m := range b.entries[owner].Networks {
		pg := b.nets[m.ID]
		delete(pg.members, owner)
		for _, n := range m.Names {
			key := strings.ToLower(n)
			delete(pg.names[key], owner)
			if len(pg.names[key]) == 0 {
				delete(pg.names, key)
			}
		}
		if len(pg.members) == 0 {
			delete(b.nets, m.ID)
		}
	}
}

// Lookup implements [Directory].
func (b *book) Lookup(owner, name string) (addrs []netip.Addr, found bool) {
	b.mu.RLock()
	defer b.mu.RUnlock()
	for _, m := range b.entries[owner].Networks {
		pg := b.nets[m.ID]
		owners := pg.names[m.real(name)]
		if len(owners) == 0 {
			owners = pg.names[strings.TrimSuffix(name, "."+strings.ToLower(m.Name))] // web.blue
		}
		for who := range owners {
			addrs = append(addrs, pg.members[who].Addrs...)
		}
		if len(owners) > 0 {
			return addrs, true
		}
	}
	return nil, false
}

// real is the name on the network that an owner means by name, in lower case.
func (m Membership) real(name string) string {
	for alias, to := range m.Links { // a few at most
		if strings.EqualFold(alias, name) {
			return strings.ToLower(to)
		}
	}
	return name
}

// Reverse implements [Directory].
func (b *book) Reverse(owner string, addr netip.Addr) (string, bool) {
	b.mu.RLock()
	defer b.mu.RUnlock()
	for _, m := range b.entries[owner].Networks {
		for _, at := range b.nets[m.ID].members {
			for _, a := range at.Addrs {
				if a == addr && len(at.Names) > 0 {
					return at.Names[0] + "." + m.Name, true
				}
			}
		}
	}
	return "", false
}

// Upstreams implements [Directory].
func (b *book) Upstreams(owner string) ([]netip.AddrPort, bool) {
	b.mu.RLock()
	e := b.entries[owner]
	b.mu.RUnlock()
	outside := false
	for _, m := range e.Networks {
		outside = outside || !m.Internal
	}
	if !outside {
		return nil, false // what an internal network's containers ask must not leave the host either
	}
	wanted := e.Servers
	if len(wanted) == 0 {
		conf, _, err := b.host.Read()
		if err != nil {
			conf.Servers = e.Host
		}
		if wanted = conf.Servers; len(wanted) == 0 {
			wanted = PublicServers[:]
		}
	}
	var servers []netip.AddrPort
	for _, s := range wanted {
		if a, err := netip.ParseAddr(s); err == nil {
			servers = append(servers, netip.AddrPortFrom(a, 53))
		}
	}
	return servers, true
}

// Dial asks from the host's namespace, so that an upstream needs no way into the container's networks. Only a server on loopback that the container
// itself named (--dns 127.0.0.1, for a name server in the container) is asked from inside.
func (b *book) Dial(ctx context.Context, owner, network string, server netip.AddrPort) (net.Conn, error) {
	if server.Addr().IsLoopback() {
		b.mu.RLock()
		in := b.inside[owner]
		b.mu.RUnlock()
		if in != nil {
			return in.dial(ctx, network, server)
		}
	}
	var d net.Dialer
	return d.DialContext(ctx, network, server.String())
}
