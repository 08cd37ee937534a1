package network

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"

	"corten.dev/corten/internal/linux/netlink"
	"corten.dev/corten/internal/linux/nft"
	"corten.dev/corten/internal/network/dns"
	"golang.org/x/sys/unix"
)

// dnsNames are the names by which a container is found on a user-defined network: its own, its aliases, its short id and host name.
func dnsNames(nw *network, req *JoinRequest, aliases []string) (names []string) {
	if nw.rec.Predefined {
		return nil
	}
	for _, n := range append([]string{req.Name}, append(slices.Clone(aliases), short(req.Owner), req.Hostname)...) {
		if n != "" && !slices.Contains(names, n) {
			names = append(names, n)
		}
	}
	return names
}

// enter puts an endpoint on the network, under its names. Local.mu is held.
func (nw *network) enter(owner string, ep Endpoint) {
	nw.eps[owner] = &ep
	for _, n := range ep.DNSNames {
		key := strings.ToLower(n)
		if nw.dns[key] == nil {
			nw.dns[key] = map[string]bool{}
		}
		nw.dns[key][owner] = true
	}
}

// leave takes it off again. Local.mu is held.
func (nw *network) leave(owner string) {
	ep := nw.eps[owner]
	if ep == nil {
		return
	}
	delete(nw.eps, owner)
	for _, n := range ep.DNSNames {
		key := strings.ToLower(n)
		delete(nw.dns[key], owner)
		if len(nw.dns[key]) == 0 {
			delete(nw.dns, key)
		}
	}
}

// serverAddr is where containers ask for names. A server of the container's own may use port 53, also on all addresses: ours listens on other ports, and
// a rule in the namespace sends questions there, as Docker does.
var serverAddr = netip.AddrFrom4([4]byte{127, 0, 0, 11})

const dnsTable = "corten-dns"

// serveNames answers questions in the namespace.
func (l *Local) serveNames(bx *box, ns *os.File) error {
	if l.dns.Serves(bx.req.Owner) {
		return nil
	}
	var udp, tcp int
	err := l.inside(ns, func(*netlink.Conn) error {
		var udpPort, tcpPort uint16
		var err error
		if udp, tcp, udpPort, tcpPort, err = dns.Listen(serverAddr); err != nil {
			return err
		}
		conns := nft.NewConns() // sockets of this namespace
		tx := &nft.Tx{}
		redirect(tx, udpPort, tcpPort)
		if err := errors.Join(conns.Commit(tx), conns.Close()); err != nil {
			return errors.Join(fmt.Errorf("redirect names: %w", err), unix.Close(udp), unix.Close(tcp))
		}
		return nil
	})
	if err != nil {
		return err
	}
	return errors.Join(l.keepNS(bx, ns), l.dns.Add(bx.req.Owner, udp, tcp))
}

// redirect writes the rules that lead from port 53 to the server's ports; those of an earlier engine are replaced.
func redirect(tx *nft.Tx, udpPort, tcpPort uint16) {
	tx.AddTable(dnsTable)
	tx.AddChain(dnsTable, nft.Chain{Name: chainOut, Type: "nat", Hook: unix.NF_INET_LOCAL_OUT, Priority: prioDstNAT})
	tx.FlushChain(dnsTable, chainOut)
	for proto, port := range map[string]uint16{"udp": udpPort, "tcp": tcpPort} {
		exprs := append(isFamily(unix.NFPROTO_IPV4),
			nft.Payload(unix.NFT_PAYLOAD_NETWORK_HEADER, 16, 4, nft.R(0)), nft.Cmp(nft.R(0), serverAddr.AsSlice(), false),
			nft.Meta(unix.NFT_META_L4PROTO, nft.R(0)), nft.Cmp(nft.R(0), []byte{protoNumber[proto]}, false),
			nft.Payload(unix.NFT_PAYLOAD_TRANSPORT_HEADER, 2, 2, nft.R(0)), nft.Cmp(nft.R(0), nft.Port(53), false),
			nft.Load(nft.R(0), serverAddr.AsSlice()), nft.Load(nft.R(1), nft.Port(port)), nft.DNAT(unix.NFPROTO_IPV4, nft.R(0), nft.R(1)))
		tx.AddRule(dnsTable, chainOut, "names", exprs...)
	}
}

func (l *Local) closeNames(bx *box) {
	l.dns.Remove(bx.req.Owner)
	l.mu.Lock()
	ns := bx.ns
	bx.ns = nil
	l.mu.Unlock()
	if ns != nil {
		_ = ns.Close() // only ever entered
	}
}

// Lookup, Reverse and Upstreams make directory the dns server's view: what an owner may know is what is on its own user-defined networks.
type directory struct{ l *Local }

func (d directory) Lookup(owner, name string) (addrs []netip.Addr, found bool) {
	l := d.l
	l.mu.Lock()
	defer l.mu.Unlock()
	for nw := range l.networksOf(owner) {
		owners := nw.dns[name]
		if len(owners) == 0 {
			owners = nw.dns[strings.TrimSuffix(name, "."+strings.ToLower(nw.rec.Name))] // web.blue
		}
		for who := range owners {
			found = true
			if ep := nw.eps[who]; ep.IPv4.IsValid() {
				addrs = append(addrs, ep.IPv4.Addr())
			}
			if ep := nw.eps[who]; ep.IPv6.IsValid() {
				addrs = append(addrs, ep.IPv6.Addr())
			}
		}
		if found {
			return addrs, true
		}
	}
	return nil, false
}

func (d directory) Reverse(owner string, addr netip.Addr) (string, bool) {
	l := d.l
	l.mu.Lock()
	defer l.mu.Unlock()
	for nw := range l.networksOf(owner) {
		for _, ep := range nw.eps {
			if (ep.IPv4.Addr() == addr || ep.IPv6.Addr() == addr) && len(ep.DNSNames) > 0 {
				return ep.DNSNames[0] + "." + nw.rec.Name, true
			}
		}
	}
	return "", false
}

func (d directory) Upstreams(owner string) ([]netip.AddrPort, bool) {
	l := d.l
	l.mu.Lock()
	outside := false
	for nw := range l.networksOf(owner) {
		outside = outside || !nw.rec.Internal
	}
	var wanted []string
	if bx := l.boxes[owner]; bx != nil {
		wanted = bx.req.DNS
	}
	l.mu.Unlock()
	if !outside {
		return nil, false // what an internal network's containers ask must not leave the host either
	}
	if len(wanted) == 0 {
		wanted = l.opt.DNS
	}
	if len(wanted) == 0 {
		conf, _, err := l.resolv.read(l.opt.ResolvConf)
		if err != nil {
			l.log.Warn("read the host's resolv.conf", "err", err)
		}
		if wanted = conf.servers; len(wanted) == 0 {
			wanted = publicServers[:]
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
func (d directory) Dial(ctx context.Context, owner, network string, server netip.AddrPort) (conn net.Conn, err error) {
	l := d.l
	var dialer net.Dialer
	var ns *os.File
	l.mu.Lock()
	if bx := l.boxes[owner]; bx != nil && bx.ns != nil && server.Addr().IsLoopback() {
		ns = bx.ns
	}
	l.mu.Unlock()
	if ns == nil {
		return dialer.DialContext(ctx, network, server.String())
	}
	err = l.inside(ns, func(*netlink.Conn) error {
		conn, err = dialer.DialContext(ctx, network, server.String())
		return err
	})
	return conn, err
}

// keepNS keeps the namespace at hand for Dial, where the container wants that.
func (l *Local) keepNS(bx *box, ns *os.File) error {
	if !slices.ContainsFunc(bx.req.DNS, func(s string) bool {
		a, err := netip.ParseAddr(s)
		return err == nil && a.IsLoopback()
	}) {
		return nil
	}
	fd, err := unix.FcntlInt(ns.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("keep network namespace: %w", err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	bx.ns = os.NewFile(uintptr(fd), "netns")
	return nil
}

// networksOf goes through the bridge networks of an owner, in the order of its interfaces. mu is held.
func (l *Local) networksOf(owner string) iter.Seq[*network] {
	return func(yield func(*network) bool) {
		bx := l.boxes[owner]
		if bx == nil {
			return
		}
		for _, ep := range bx.sb.Endpoints {
			if nw := l.nets[ep.NetworkID]; nw != nil && !yield(nw) {
				return
			}
		}
	}
}

// refreshNames serves names to a container whose networks changed, or no more, and renews its resolv.conf.
func (l *Local) refreshNames(bx *box, ns *os.File) error {
	l.mu.Lock()
	p, req := l.planOf(bx), bx.req
	l.mu.Unlock()
	conf, err := l.resolvConf(req, p.userDefined(), false)
	if err != nil {
		return err
	}
	l.mu.Lock()
	bx.sb.ResolvConf = conf
	l.mu.Unlock()
	if p.userDefined() {
		return l.serveNames(bx, ns)
	}
	l.closeNames(bx)
	return nil
}
