package network

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"sync"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/linux/netlink"
	"corten.dev/corten/internal/linux/nft"
	"corten.dev/corten/internal/network/dns"
	"golang.org/x/sys/unix"
)

// nameLink is the engine's side of the name server (package dns), which serves containers on user-defined networks also while no engine runs. The engine keeps the sockets
// too, so that a server that died is replaced without anybody asking in vain.
type nameLink struct {
	*helper

	mu   sync.Mutex
	held map[string]*served // what the server has from an earlier engine, until Settle
	want map[string]*served // what it is to serve
	gate gating
}

// served is one owner.
type served struct {
	entry  dns.Entry
	files  []*os.File // its sockets, as package dns draws them
	handed bool       // the server has the sockets already
}

func (s *served) close() error {
	var all []error
	for _, f := range s.files {
		all = append(all, f.Close())
	}
	return errors.Join(all...)
}

// startNameLink finds the server that an earlier engine left, if any, and gets what it serves. One of another build is replaced.
func (l *Local) startNameLink(ctx context.Context) {
	argv := slices.Clone(l.opt.Names)
	if len(argv) > 0 {
		argv = append(argv, l.opt.ResolvConf)
	}
	n := &nameLink{helper: newHelper(l, "name server", "names.sock", argv), held: map[string]*served{}, want: map[string]*served{}}
	l.dns = n
	n.all, n.idle = n.packets, n.nothing
	if len(argv) == 0 {
		return
	}
	if err := n.connect(ctx, &l.work); err == nil {
		program, err := n.collect()
		if err == nil {
			err = n.replace(ctx, &l.work, program)
		}
		if err != nil {
			l.log.Warn("take the names over from an earlier engine", "err", err)
		}
	}
	l.work.Go(func() { n.run(ctx, &l.work) })
}

// collect gets what the server has, and says which build it is.
func (n *nameLink) collect() (program string, err error) {
	for after := ""; ; {
		var ans dns.Answer
		if _, err := call(n.conn, packet{req: dns.Request{Op: "list", Owner: after}}, &ans); err != nil {
			return "", err
		}
		for _, owner := range ans.Owners {
			var of dns.Answer
			files, err := call(n.conn, packet{req: dns.Request{Op: "get", Owner: owner}}, &of)
			s := &served{files: files, handed: true}
			after = owner
			if broken(err) {
				return "", errors.Join(fmt.Errorf("names of %s: %w", owner, err), s.close())
			}
			if err != nil || of.Entry == nil || len(files) < 2 { // an engine was killed while it set this one: nobody can take it over
				n.log.Info("names that were half set are dropped", "owner", owner, "err", err)
				_, err = call(n.conn, packet{req: dns.Request{Op: "drop", Owner: owner}}, nil)
				if err = errors.Join(err, s.close()); err != nil {
					return "", fmt.Errorf("names of %s: %w", owner, err)
				}
				continue
			}
			s.entry = *of.Entry
			n.held[owner] = s
		}
		if len(ans.Owners) == 0 {
			return ans.Program, nil
		}
	}
}

// replace has a server of our build take over from one of another: it gets the same sockets before the other is told to end.
func (n *nameLink) replace(ctx context.Context, work *sync.WaitGroup, program string) error {
	ours, err := dns.ProgramID(n.argv[0])
	if err != nil || ours == program || len(n.held) == 0 {
		return err
	}
	n.log.Info("name server of another build is replaced")
	old, watch := n.conn, n.watch
	defer old.Close()
	n.conn, n.watch = nil, nil
	defer watch.Close()
	if err := n.spawn(); err != nil {
		return err
	}
	if err := n.connect(ctx, work); err != nil {
		return err
	}
	if err := n.handAll(n.conn); err != nil {
		return err
	}
	_, err = call(old, packet{req: dns.Request{Op: "end"}}, nil)
	return err
}

func (n *nameLink) nothing() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return len(n.want)+len(n.held) == 0
}

// packets hand over everything that a fresh server is to serve: all names, and only then the sockets, so that nobody is told that a name is not there.
func (n *nameLink) packets() (all []packet) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, list := range []map[string]*served{n.held, n.want} {
		for _, s := range list {
			entry := s.entry
			s.handed = true
			all = append(all, packet{req: dns.Request{Op: "set", Entry: &entry}, files: s.files})
		}
	}
	names := slices.Clone(all)
	for i := range names {
		names[i].files = nil
	}
	return append(names, all...)
}

// sync tells the server what an owner's entry is now, or that there is none any more.
func (n *nameLink) sync(ctx context.Context, done <-chan struct{}, owner string) error {
	return n.ask(ctx, done, helperOp{soon: true, packet: func() packet { // made when it is its turn, so that the last word is the right one
		n.mu.Lock()
		defer n.mu.Unlock()
		s := n.want[owner]
		if s == nil {
			return packet{req: dns.Request{Op: "drop", Owner: owner}}
		}
		entry, files := s.entry, s.files
		if s.handed {
			files = nil
		}
		s.handed = true
		return packet{req: dns.Request{Op: "set", Entry: &entry}, files: files}
	}})
}

// close closes the sockets; the server has its own.
func (n *nameLink) close() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	var all []error
	for _, list := range []map[string]*served{n.held, n.want} {
		for _, s := range list {
			all = append(all, s.close())
		}
		clear(list)
	}
	return errors.Join(all...)
}

// hostServers are the host's own name servers, as far as they can be read.
func (l *Local) hostServers() []string {
	conf, _, err := l.resolv.Read()
	if err != nil {
		l.log.Warn("read the host's resolv.conf", "err", err)
	}
	return conf.Servers
}

// writeEntry notes what an owner's entry is now, if it is served. Local.mu is held, so that no older entry follows.
func (l *Local) writeEntry(bx *box, host []string) (served bool) {
	l.dns.mu.Lock()
	defer l.dns.mu.Unlock()
	s := l.dns.want[bx.req.Owner]
	if s == nil {
		return false
	}
	s.entry = l.entryOf(bx, host)
	return true
}

// entryOf is what a sandbox is called, and whom to ask for it. Local.mu is held.
func (l *Local) entryOf(bx *box, host []string) dns.Entry {
	e := dns.Entry{Owner: bx.req.Owner, Servers: bx.req.DNS, Host: host, Egress: fenceOf(bx.egress)}
	if len(e.Servers) == 0 {
		e.Servers = l.opt.DNS
	}
	for _, ep := range bx.sb.Endpoints {
		nw := l.nets[ep.NetworkID]
		if nw == nil {
			continue
		}
		m := dns.Membership{ID: ep.NetworkID, Name: nw.rec.Name, Internal: nw.rec.Internal, Names: ep.DNSNames, Links: ep.Links, Egress: fenceOf(nw.egress)}
		for _, p := range []netip.Prefix{ep.IPv4, ep.IPv6} {
			if p.IsValid() {
				m.Addrs = append(m.Addrs, p.Addr())
			}
		}
		e.Networks = append(e.Networks, m)
	}
	return e
}

// serveNames has questions answered in the namespace, by the names that the owner has now. Where it is served already, only the names may change.
func (l *Local) serveNames(ctx context.Context, bx *box, ns *os.File) error {
	owner, host := bx.req.Owner, l.hostServers()
	l.mu.Lock()
	known := l.writeEntry(bx, host)
	l.mu.Unlock()
	if known {
		return l.syncNames(ctx, owner)
	}
	if len(l.opt.Names) == 0 {
		return errs.New(errs.Unavailable, "names cannot be served: the engine was given no program for it")
	}
	s := &served{}
	err := l.inside(ns, func(*netlink.Conn) (err error) {
		s.files, err = listenNames(bx.req.DNS)
		return err
	})
	if err != nil {
		return err
	}
	l.mu.Lock()
	s.entry = l.entryOf(bx, host)
	l.dns.mu.Lock()
	l.dns.want[owner] = s
	l.dns.mu.Unlock()
	l.mu.Unlock()
	return l.syncNames(ctx, owner)
}

// syncNames hands an entry to the server, and opens the gate where an egress list needs it, or closes it where none does any more.
func (l *Local) syncNames(ctx context.Context, owner string) error {
	if err := l.dns.sync(ctx, l.done, owner); err != nil {
		return err
	}
	l.openGate(ctx)
	l.dns.closeGate()
	return nil
}

// listenNames opens the sockets of the calling thread's namespace, and leads questions to them.
func listenNames(servers []string) (files []*os.File, err error) {
	udp, tcp, udpPort, tcpPort, err := dns.Listen(serverAddr)
	if err != nil {
		return nil, err
	}
	fds := []int{udp, tcp}
	defer func() {
		if err != nil {
			for _, fd := range fds {
				err = errors.Join(err, unix.Close(fd))
			}
		}
	}()
	if slices.ContainsFunc(servers, onLoopback) {
		in, err := dns.ListenInside()
		if err != nil {
			return nil, err
		}
		fds = append(fds, in...)
	}
	conns := nft.NewConns() // sockets of this namespace
	tx := &nft.Tx{}
	redirect(tx, udpPort, tcpPort)
	if err := errors.Join(conns.Commit(tx), conns.Close()); err != nil {
		return nil, fmt.Errorf("redirect names: %w", err)
	}
	for _, fd := range fds {
		files = append(files, os.NewFile(uintptr(fd), "dns"))
	}
	return files, nil
}

// onLoopback says whether a container names a server of its own, in itself.
func onLoopback(server string) bool {
	a, err := netip.ParseAddr(server)
	return err == nil && a.IsLoopback()
}

// closeNames ends that, if it was so.
func (l *Local) closeNames(ctx context.Context, bx *box) error {
	l.dns.mu.Lock()
	s := l.dns.want[bx.req.Owner]
	delete(l.dns.want, bx.req.Owner)
	delete(l.dns.gate.refused, bx.req.Owner)
	l.dns.mu.Unlock()
	if s == nil {
		return nil
	}
	l.dns.closeGate()
	return errors.Join(l.dns.sync(ctx, l.done, bx.req.Owner), s.close())
}

// restoreNames goes on with what the server has of the owner, or serves it anew.
func (l *Local) restoreNames(ctx context.Context, bx *box, pid int) error {
	owner, host := bx.req.Owner, l.hostServers()
	l.mu.Lock()
	l.dns.mu.Lock()
	s := l.dns.held[owner]
	if s != nil {
		delete(l.dns.held, owner)
		s.entry = l.entryOf(bx, host)
		l.dns.want[owner] = s
	}
	l.dns.mu.Unlock()
	l.mu.Unlock()
	if s != nil {
		return l.syncNames(ctx, owner)
	}
	ns, err := nsOf(pid)
	if err != nil {
		return err
	}
	return errors.Join(l.serveNames(ctx, bx, ns), ns.Close())
}

// settleNames drops what the server has of owners that are gone.
func (l *Local) settleNames(ctx context.Context) error {
	l.dns.mu.Lock()
	gone := l.dns.held
	l.dns.held = map[string]*served{}
	l.dns.mu.Unlock()
	var all []error
	for owner, s := range gone {
		all = append(all, l.dns.sync(ctx, l.done, owner), s.close())
	}
	return errors.Join(all...)
}

// refreshNames serves names to a container whose networks changed, or no more, and renews its resolv.conf.
func (l *Local) refreshNames(ctx context.Context, bx *box, ns *os.File) error {
	l.mu.Lock()
	p, req := l.planOf(bx), bx.req
	l.mu.Unlock()
	conf, err := l.resolvConf(req, p.eps, p.asksUs(bx), false)
	if err != nil {
		return err
	}
	l.mu.Lock()
	bx.sb.ResolvConf = conf
	l.mu.Unlock()
	if p.asksUs(bx) {
		return l.serveNames(ctx, bx, ns)
	}
	return l.closeNames(ctx, bx)
}
