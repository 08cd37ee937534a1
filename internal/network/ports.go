package network

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/linux/netlink"
	"corten.dev/corten/internal/linux/nft"
	"corten.dev/corten/internal/network/portproxy"
	"golang.org/x/sys/unix"
)

// binding is one published port on one host address: an element of a map of the table, and a socket that keeps host processes off the port.
//
// The socket is bound and (tcp) listens, behind a filter that drops everything: should a packet ever reach it, because the rules were flushed a moment
// ago, its sender tries again and then meets the rules, where a closed port would have refused it.
type binding struct {
	Port
	owner  string
	target netip.AddrPort
	rules  bool       // passed on by the table's maps
	proxy  bool       // passed on by the port proxy, all of it or what comes by [::1]
	direct bool       // reached at the container's own address
	detour string     // the bridge from whose containers the proxy passes it on, beside the rules
	files  []*os.File // one for each port, nil where the proxy kept it from an earlier engine; none where nothing is held
}

func (b *binding) closeFiles() error {
	var all []error
	for _, f := range b.files {
		if f != nil {
			all = append(all, f.Close())
		}
	}
	b.files = nil
	return errors.Join(all...)
}

// portTable knows the host ports that our containers hold. Guarded by Local.mu.
type portTable struct {
	held map[portKey][]*binding
	runs []*binding // those of several ports
	next uint16
}

type portKey struct {
	proto string
	port  uint16
}

func (t *portTable) init() { t.held = map[portKey][]*binding{} }

// claim takes the host ports of b; when one of our containers has one of them it takes nothing and says which.
func (t *portTable) claim(b *binding) (taken uint16, ok bool) {
	for _, other := range t.runs {
		if other.meets(b) {
			return max(b.HostPort, other.HostPort), false
		}
	}
	key := portKey{b.Proto, b.HostPort}
	if b.Len() == 1 {
		for _, other := range t.held[key] {
			if other.meets(b) {
				return b.HostPort, false
			}
		}
		t.held[key] = append(t.held[key], b)
		return 0, true
	}
	for _, list := range t.held {
		for _, other := range list {
			if other.meets(b) {
				return other.HostPort, false
			}
		}
	}
	t.runs = append(t.runs, b)
	return 0, true
}

// meets says whether two bindings share a host port of an address.
func (b *binding) meets(o *binding) bool {
	return b.Proto == o.Proto && b.HostPort <= o.HostPort+o.more() && o.HostPort <= b.HostPort+b.more() &&
		b.HostIP.Is4() == o.HostIP.Is4() && (b.HostIP == o.HostIP || b.HostIP.IsUnspecified() || o.HostIP.IsUnspecified())
}

func (t *portTable) release(b *binding) {
	if b.Len() > 1 {
		t.runs = slices.DeleteFunc(t.runs, func(o *binding) bool { return o == b })
		return
	}
	key := portKey{b.Proto, b.HostPort}
	list := t.held[key]
	for i, other := range list {
		if other == b {
			list = append(list[:i:i], list[i+1:]...)
			break
		}
	}
	if len(list) == 0 {
		delete(t.held, key)
	} else {
		t.held[key] = list
	}
}

// publish takes ports for a sandbox, beside those that it has, and makes them answer, all in one transaction. What it had taken when it failed is the sandbox's yet.
func (l *Local) publish(bx *box, p plan, ports []Port) error {
	if len(ports) == 0 || len(p.eps) == 0 {
		return nil
	}
	ep, nw := bx.portEndpoint(p)
	if nw == nil && slices.ContainsFunc(p.nets, (*network).byPlugin) {
		return nil // a matter of the plugin: see steer
	}
	if nw == nil {
		l.log.Warn("ports are not published: no network of the container reaches the outside", "owner", bx.req.Owner)
		return nil // as Docker: compose files say ports also for services on internal networks
	}
	if l.opt.NoRules {
		return errs.New(errs.Unavailable, "ports cannot be published: the engine runs without rules (iptables=false)")
	}
	var all []*binding
	for _, port := range inRuns(ports) {
		made, err := l.bindPort(port, ep, nw, bx.req.Owner)
		if err != nil {
			return fmt.Errorf("driver failed programming external connectivity on endpoint %s (%s): %w", bx.req.Name, ep.ID, err)
		}
		all = append(all, made...)
		l.mu.Lock()
		bx.bindings = append(bx.bindings, made...)
		l.rules.changes++
		for _, b := range made {
			bx.sb.Ports = append(bx.sb.Ports, b.Port)
		}
		l.mu.Unlock()
	}
	go l.hairpin(ep) // only for a container that calls itself by its published port; not worth waiting for the kernel's lock of all links
	return l.expose(all)
}

func (l *Local) hairpin(ep Endpoint) {
	var b netlink.Batch
	b.Hairpin(l.linkName(ep))
	if err := l.rt.Do(&b); err != nil && !errors.Is(err, unix.ENODEV) {
		l.log.Warn("let a container reach itself by its published ports", "err", err)
	}
}

// portEndpoint is the endpoint that published ports lead to: the one with the default route, if its network's driver can.
func (bx *box) portEndpoint(p plan) (Endpoint, *network) {
	i := p.gw4
	if i < 0 {
		i = p.gw6
	}
	if i < 0 {
		return Endpoint{}, nil
	}
	if d, ok := p.nets[i].drv.(publisher); !ok || !d.publishes() {
		return Endpoint{}, nil
	}
	return p.eps[i], p.nets[i]
}

// bindPort finds a host port that is free on all addresses of the request.
func (l *Local) bindPort(port Port, ep Endpoint, nw *network, owner string) ([]*binding, error) {
	if port.Proto == "" {
		port.Proto = "tcp"
	}
	if _, ok := protoNumber[port.Proto]; !ok || port.ContainerPort == 0 {
		return nil, errs.New(errs.Invalid, "invalid port %d/%s", port.ContainerPort, port.Proto)
	}
	wants, err := l.hostAddrs(port, ep, nw)
	if err != nil {
		return nil, err
	}
	if !slices.ContainsFunc(wants, func(b binding) bool { return b.rules || b.proxy }) {
		return l.tryBind(wants, 0, owner)
	}
	first, last := port.HostPort, max(port.HostPort, port.HostPortEnd)
	tries := int(last-first) + 1
	at := first
	if first == 0 {
		first, last = ephemeralRange()
		tries = int(last-first) + 1
		l.mu.Lock()
		if at = l.ports.next; at < first || at > last {
			at = first
		}
		l.mu.Unlock()
	}
	for ; tries > 0; tries-- {
		var made []*binding
		made, err = l.tryBind(wants, at, owner)
		if err == nil {
			if port.HostPort == 0 {
				l.mu.Lock()
				l.ports.next = at + 1
				l.mu.Unlock()
			}
			return made, nil
		}
		if !errors.Is(err, errs.Conflict) {
			return nil, err
		}
		if at++; at > last || at == 0 {
			at = first
		}
	}
	if port.HostPort == 0 {
		return nil, errs.New(errs.Conflict, "all ports are allocated")
	}
	return nil, err
}

// hostAddrs are the host addresses that a published port listens on, one binding each, the port still open.
func (l *Local) hostAddrs(port Port, ep Endpoint, nw *network) ([]binding, error) {
	ips := []netip.Addr{port.HostIP}
	if !port.HostIP.IsValid() {
		ips = []netip.Addr{netip.IPv4Unspecified()}
		if nw.hostIP.IsValid() && !nw.hostIP.IsUnspecified() {
			ips = []netip.Addr{nw.hostIP}
		} else if hostHasIPv6() && (ep.IPv6.IsValid() || l.proxyFor(port.Proto)) {
			ips = append(ips, netip.IPv6Unspecified())
		}
	}
	var wants []binding
	for _, ip := range ips {
		b := binding{Port: port}
		b.HostIP, b.HostPortEnd = ip.Unmap(), 0
		ok, err := l.aim(&b, ep, nw)
		switch {
		case err != nil && port.HostIP.IsValid():
			return nil, err
		case ok:
			wants = append(wants, b)
		}
	}
	return wants, nil
}

// aim finds out how a binding's address of the host leads to the endpoint. An error says that it does not.
func (l *Local) aim(b *binding, ep Endpoint, nw *network) (bool, error) {
	own, other := ep.IPv4, ep.IPv6
	if b.HostIP.Is6() {
		own, other = other, own
	}
	b.target = netip.AddrPortFrom(own.Addr(), b.ContainerPort)
	wide := b.Len() > mostHeld // too many for a process: only rules pass them on
	proxied := !wide && l.proxyFor(b.Proto)
	switch {
	case own.IsValid() && nw.mode(b.HostIP) == modeRouted:
		b.direct, b.HostPort = true, 0
		return true, nil
	case b.HostIP == netip.IPv6Loopback() && own.IsValid() && proxied:
		b.proxy = true
		return true, nil
	case own.IsValid() && b.HostIP.Is6() && l.opt.NoRules6 && proxied:
		b.proxy = true
		return true, nil
	case own.IsValid() && !(b.HostIP.Is6() && l.opt.NoRules6): // no route leads from [::1] into a bridge, so that part is the proxy's
		b.rules, b.proxy = true, b.HostIP == netip.IPv6Unspecified() && proxied
		b.direct = l.opt.DirectRouting || len(nw.trusted) > 0
		if !nw.icc && proxied {
			b.proxy, b.detour = true, nw.br
		}
		return true, nil
	case !proxied || nw.mode(other.Addr()) == modeRouted:
		return false, errs.New(errs.Invalid, "port %s cannot be published on %s: container has no address of that family", portText(b.Port), b.HostIP)
	}
	b.proxy, b.target = true, netip.AddrPortFrom(other.Addr(), b.ContainerPort)
	return true, nil
}

func portText(p Port) string { return fmt.Sprintf("%d/%s", p.ContainerPort, p.Proto) }

// tryBind takes one host port on all addresses, or none.
func (l *Local) tryBind(wants []binding, hostPort uint16, owner string) (made []*binding, err error) {
	defer func() {
		if err != nil {
			for _, b := range made {
				err = errors.Join(err, b.closeFiles())
				l.mu.Lock()
				l.ports.release(b)
				l.mu.Unlock()
			}
			made = nil
		}
	}()
	for _, want := range wants {
		b := want
		b.owner = owner
		if b.direct && !b.rules {
			made = append(made, &b) // no port of the host's
			continue
		}
		b.HostPort = hostPort
		l.mu.Lock()
		taken, ok := l.ports.claim(&b)
		l.mu.Unlock()
		if !ok {
			return made, errs.New(errs.Conflict, "Bind for %s failed: port is already allocated", netip.AddrPortFrom(b.HostIP, taken))
		}
		made = append(made, &b)
		if failed, err := b.hold(); err != nil {
			kind := errs.Unavailable
			if errors.Is(err, unix.EADDRINUSE) {
				kind = errs.Conflict
			}
			return made, errs.New(kind, "failed to bind host port %s/%s: %w", netip.AddrPortFrom(b.HostIP, failed), b.Proto, err)
		}
	}
	return made, nil
}

// hold binds the host ports, and keeps them if they are not too many. It says which one was not to be had.
func (b *binding) hold() (failed uint16, err error) {
	for i := range b.Len() {
		port := b.HostPort + uint16(i)
		if b.Len() > mostHeld {
			fd, err := b.socket(port)
			if fd >= 0 {
				err = unix.Close(fd)
			}
			if err != nil {
				return port, err
			}
			continue
		}
		f, err := b.bind(port)
		if err != nil {
			return port, errors.Join(err, b.closeFiles())
		}
		b.files = append(b.files, f)
	}
	return 0, nil
}

// bind binds a host port for good; nil for a protocol that the host cannot speak.
func (b *binding) bind(port uint16) (*os.File, error) {
	fd, err := b.socket(port)
	if fd < 0 {
		return nil, err
	}
	fail := func(err error) (*os.File, error) {
		_ = unix.Close(fd)
		return nil, err
	}
	backlog := unix.SOMAXCONN
	if !b.proxy {
		backlog = 1
		none := []unix.SockFilter{{Code: unix.BPF_RET | unix.BPF_K, K: 0}}
		if err := unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: 1, Filter: &none[0]}); err != nil {
			return fail(err)
		}
	}
	if b.Proto != "udp" {
		if err := unix.Listen(fd, backlog); err != nil {
			return fail(err)
		}
	}
	return os.NewFile(uintptr(fd), "port"), nil
}

// socket makes a socket that is bound to a host port; -1 without an error for a protocol that the host cannot speak, which needs no holding.
func (b *binding) socket(port uint16) (int, error) {
	kind := unix.SOCK_STREAM
	if b.Proto == "udp" {
		kind = unix.SOCK_DGRAM
	}
	fam := unix.AF_INET
	if b.HostIP.Is6() {
		fam = unix.AF_INET6
	}
	fd, err := unix.Socket(fam, kind|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, int(protoNumber[b.Proto]))
	if err != nil {
		if b.Proto == "sctp" && (errors.Is(err, unix.EPROTONOSUPPORT) || errors.Is(err, unix.ESOCKTNOSUPPORT)) {
			return -1, nil
		}
		return -1, err
	}
	var sa unix.Sockaddr = &unix.SockaddrInet4{Port: int(port), Addr: as4(b.HostIP)}
	if fam == unix.AF_INET6 {
		sa = &unix.SockaddrInet6{Port: int(port), Addr: b.HostIP.As16()}
		err = unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1)
	}
	if err == nil && b.Proto == "udp" { // the port proxy asks which address a packet was for, also of those that came before it had the socket
		err = portproxy.TellLocal(fd, fam)
	}
	if err == nil && b.Proto != "udp" { // connections of an earlier user that are still closing do not keep the port
		err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
	}
	if err == nil {
		err = unix.Bind(fd, sa)
	}
	if err != nil {
		_ = unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

func as4(a netip.Addr) [4]byte {
	if a.Is4() {
		return a.As4()
	}
	return [4]byte{}
}

var protoNumber = map[string]byte{"tcp": unix.IPPROTO_TCP, "udp": unix.IPPROTO_UDP, "sctp": unix.IPPROTO_SCTP}

// ephemeralRange is where free ports are taken from: the kernel's own range, as Docker.
func ephemeralRange() (first, last uint16) {
	raw, err := os.ReadFile("/proc/sys/net/ipv4/ip_local_port_range")
	if f := strings.Fields(string(raw)); err == nil && len(f) == 2 {
		a, err1 := strconv.ParseUint(f[0], 10, 16)
		b, err2 := strconv.ParseUint(f[1], 10, 16)
		if err1 == nil && err2 == nil && a > 0 && a < b {
			return uint16(a), uint16(b)
		}
	}
	return 32768, 60999
}

func hostHasIPv6() bool {
	raw, err := os.ReadFile("/proc/sys/net/ipv6/conf/all/disable_ipv6")
	return err == nil && strings.TrimSpace(string(raw)) == "0"
}

// expose makes the bindings answer: elements of the table's maps for what the kernel passes on, a message to the proxy for the rest.
func (l *Local) expose(bindings []*binding) error {
	tx := &nft.Tx{}
	addElements(tx, l.opt.Table, bindings)
	l.mu.Lock()
	settled := l.settled
	l.mu.Unlock()
	err := l.commit(tx)
	if errors.Is(err, unix.EEXIST) && !settled {
		// The last engine died while it gave the ports to another network of the container. An element is not replaced, but all are written anew once everything is restored.
		l.log.Info("published ports lead to another network of their container until it is restored", "owner", bindings[0].owner)
		err = nil
	}
	if err != nil {
		return fmt.Errorf("publish ports: %w", err)
	}
	l.proxyAdd(bindings)
	return l.forgetFlows(bindings)
}

// unpublish takes the ports of a sandbox back. What it has chosen for them stays known, see republish.
func (l *Local) unpublish(ctx context.Context, bx *box) error {
	l.mu.Lock()
	list := bx.bindings
	l.mu.Unlock()
	return l.takeBack(ctx, bx, list)
}

// takeBack takes some of the bindings of a sandbox back.
func (l *Local) takeBack(ctx context.Context, bx *box, list []*binding) error {
	gone := make(map[*binding]bool, len(list))
	for _, b := range list {
		gone[b] = true
	}
	l.mu.Lock()
	bx.bindings = slices.DeleteFunc(slices.Clone(bx.bindings), func(b *binding) bool { return gone[b] })
	l.rules.changes++
	l.mu.Unlock()
	if len(list) == 0 {
		return nil
	}
	tx := &nft.Tx{}
	delElements(tx, l.opt.Table, list)
	err := l.commit(tx)
	if errors.Is(err, syscall.ENOENT) { // flushed by someone, or never there: the table is made right as a whole
		err = nil
		defer l.rules.again()
	}
	err = errors.Join(err, l.proxyDrop(ctx, list), l.forgetFlows(list))
	for _, b := range list {
		err = errors.Join(err, b.closeFiles())
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, b := range list {
		l.ports.release(b)
	}
	return err
}
