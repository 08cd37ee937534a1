package network

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/linux/netlink"
	"corten.dev/corten/internal/task"
	"golang.org/x/sys/unix"
)

// plan is what a Join decided before it touches the kernel.
type plan struct {
	nets []*network
	eps  []Endpoint
	gw4  int // index of the endpoint with the default route, or -1
	gw6  int
	told bool      // the neighbours must be told whose the addresses are now
	bare *readyBox // a ready namespace with nothing but lo, to build in
}

// Join makes the namespace and interfaces of a container that is about to start.
func (l *Local) Join(ctx context.Context, req JoinRequest) (_ *Sandbox, err error) {
	var undo task.Undo
	defer undo.OnError(ctx, &err)
	bx := newBox(req, Sandbox{Owner: req.Owner})
	if err := bx.readWishes(); err != nil {
		return nil, err
	}
	p, ready, err := l.reserve(&req, bx)
	if err != nil {
		return nil, err
	}
	undo.Push(func(ctx context.Context) error { return l.leave(ctx, bx) })
	if len(p.nets) == 1 && p.nets[0].rec.Driver == nameHost {
		return l.finish(ctx, bx, p, handles{})
	}
	var h handles
	if p.bare != nil {
		h.sysfs = p.bare.sysfs
	}
	undo.Push(func(context.Context) error { return h.close() })
	ns := (*os.File)(nil)
	switch {
	case ready != nil:
		h, ns, p.eps = ready.handles, ready.ns, ready.eps
		bx.sb.Endpoints = p.eps
	case p.plugged():
		ns, err = l.buildPlugged(ctx, bx, &p, req.Endpoints)
	default:
		ns, err = l.build(p)
	}
	if err != nil {
		return nil, err
	}
	h.ns = ns
	if err := l.shapeNew(bx, p.nets, p.eps, ns); err != nil {
		return nil, err
	}
	if err := l.fence(bx); err != nil {
		return nil, err
	}
	if err := l.publish(bx, p, bx.req.Ports); err != nil {
		return nil, err
	}
	return l.finish(ctx, bx, p, h)
}

// reserve checks the request and takes everything that is only memory: the owner's place and the addresses, or a ready namespace.
func (l *Local) reserve(req *JoinRequest, bx *box) (plan, *readyBox, error) {
	if req.Owner == "" {
		return plan{}, nil, errs.New(errs.Invalid, "a sandbox needs an owner")
	}
	again := req.Owner                     // whose address may be known from its last time
	most := 1 + max(1, len(req.Endpoints)) // each of them may have an address that is about to be free
	for i := 1; ; i++ {
		p, ready, err := l.tryReserve(req, bx, again)
		var busy *dyingError
		if err == nil || i > most || !errors.As(err, &busy) {
			return p, ready, err
		}
		l.reap.force(busy.addr)
		if !busy.addr.IsValid() {
			l.pool.await()
		}
		if i == most {
			again = ""
		}
	}
}

func (l *Local) tryReserve(req *JoinRequest, bx *box, again string) (p plan, ready *readyBox, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return p, nil, errs.New(errs.Unavailable, "network room is closed")
	}
	if l.boxes[req.Owner] != nil {
		return p, nil, errs.New(errs.Conflict, "sandbox of %s is there already", req.Owner)
	}
	if len(req.Endpoints) == 0 {
		req.Endpoints = []EndpointRequest{{Network: nameBridge}}
	}
	defer func() {
		if err != nil {
			for _, ep := range p.eps {
				l.dropEndpoint(req.Owner, ep, true)
			}
			if p.bare != nil {
				err = errors.Join(err, p.bare.close())
			}
		}
	}()
	for _, er := range req.Endpoints {
		nw, err := l.find(er.Network)
		if err != nil {
			return p, nil, err
		}
		if nw.drv == nil && len(req.Endpoints) > 1 {
			return p, nil, errs.New(errs.Invalid, "conflicting options: container cannot be connected to network %s and to another", nw.rec.Name)
		}
		if nw.rec.ConfigOnly {
			return p, nil, errConfigOnly
		}
		if bx.egress != nil {
			if err := l.checkFence(nw); err != nil {
				return p, nil, err
			}
		}
		if slices.Contains(p.nets, nw) {
			return p, nil, errs.New(errs.Invalid, "network %s is named twice", nw.rec.Name)
		}
		p.nets = append(p.nets, nw)
	}
	if ready = l.pool.takeLocked(p.nets, req, again); ready == nil {
		p.bare = l.pool.takeBare(p.nets)
		for i, er := range req.Endpoints {
			if p.nets[i].drv == nil {
				continue
			}
			ep, err := l.newEndpoint(p.nets[i], er, again)
			if err != nil {
				return p, nil, err
			}
			p.eps = append(p.eps, ep)
			p.told = p.told || p.nets[i].unexpected(ep)
		}
		if !p.plugged() { // else plugins have a say in it
			if err := nameInterfaces(p.eps, prefixes(p.nets), nil); err != nil {
				return p, nil, err
			}
		}
	} else {
		p.eps = ready.eps
	}
	for i := range p.eps { // len(p.eps) is 0 or that of the requests
		p.eps[i].Aliases = req.Endpoints[i].Aliases
		p.eps[i].DNSNames = dnsNames(p.nets[i], req, req.Endpoints[i].Aliases)
		p.nets[i].enter(req.Owner, p.eps[i])
	}
	p.gateways(req.Endpoints)
	bx.sb.Endpoints = p.eps
	l.boxes[req.Owner] = bx
	return p, ready, nil
}

// gateways chooses who has the default routes: the highest priority, else who has both, else the first by name, as Docker; so they move when a container is connected to another network.
func (p *plan) gateways(reqs []EndpointRequest) {
	p.gw4, p.gw6 = -1, -1
	better := func(i, j int) bool {
		if j < 0 {
			return true
		}
		if a, b := reqs[i].Priority, reqs[j].Priority; a != b {
			return a > b
		}
		if a, b := p.ways(i), p.ways(j); a != b {
			return a > b
		}
		return p.nets[i].rec.Name < p.nets[j].rec.Name
	}
	for i := range p.eps {
		if p.eps[i].Interface == "" {
			continue // a plugin sees to it
		}
		if p.leads(i, true) && better(i, p.gw4) {
			p.gw4 = i
		}
		if p.leads(i, false) && better(i, p.gw6) {
			p.gw6 = i
		}
	}
}

// leads says whether an endpoint can have the default route of a family.
func (p *plan) leads(i int, is4 bool) bool {
	addr, gw := p.eps[i].IPv4, p.eps[i].Gateway4
	if !is4 {
		addr, gw = p.eps[i].IPv6, p.eps[i].Gateway6
	}
	return gw.IsValid() || p.nets[i].byDevice() && addr.IsValid()
}

// ways counts the families of which it can.
func (p *plan) ways(i int) (n int) {
	for _, is4 := range []bool{true, false} {
		if p.leads(i, is4) {
			n++
		}
	}
	return n
}

// build makes a namespace with the interfaces of the plan: one request to the host's side for all veths, one inside for addresses and routes.
func (l *Local) build(p plan) (*os.File, error) {
	if len(p.eps) == 0 {
		return l.inNew(nil)
	}
	if p.bare != nil {
		if err := l.buildIn(p, p.bare.ns); err != nil {
			return nil, errors.Join(err, p.bare.ns.Close())
		}
		return p.bare.ns, nil
	}
	host, err := l.rt.Take() // before the thread changes its namespace
	if err != nil {
		return nil, err
	}
	defer l.rt.Give(host)
	return l.inNew(func(in *netlink.Conn, ns *os.File) error { return l.furnish(host, in, p, ns) })
}

// buildIn is build for a namespace that is there.
func (l *Local) buildIn(p plan, ns *os.File) error {
	host, err := l.rt.Take()
	if err != nil {
		return err
	}
	defer l.rt.Give(host)
	return l.inside(ns, func(in *netlink.Conn) error { return l.furnish(host, in, p, ns) })
}

// furnish makes the interfaces. The caller's thread is in the namespace.
func (l *Local) furnish(host, in *netlink.Conn, p plan, ns *os.File) error {
	if err := l.quietIPv6(p.eps); err != nil {
		return err
	}
	var b netlink.Batch
	for i, ep := range p.eps {
		if err := p.nets[i].drv.plug(&b, ep, ns); err != nil {
			return err
		}
	}
	if err := l.makeLinks(host, &b, p.nets, p.eps); err != nil {
		return err
	}
	if err := l.configure(in, p); err != nil {
		return err
	}
	if err := l.settleHost(host, p.nets, p.eps); err != nil || !p.told {
		return err
	}
	return l.announce(in, p.eps)
}

// makeLinks runs the batch that makes interfaces. A stale one of the same name, left by someone who held its address before, is replaced.
func (l *Local) makeLinks(host *netlink.Conn, b *netlink.Batch, nets []*network, eps []Endpoint) error {
	err := host.Do(b)
	if slices.ContainsFunc(nets, (*network).onParent) {
		err = whileGoing(err, unix.EINVAL, func() error { return host.Do(b) })
	}
	if err == nil {
		l.quiet.add(nets, eps)
		return nil
	}
	var del netlink.Batch
	var names []string
	for i, ep := range eps {
		if link := nets[i].drv.hostLink(ep); link != "" {
			del.DelLink(link)
		}
		names = append(names, ep.Network)
	}
	_ = host.Do(&del) // those that were made, or were there before: gone or never there, both are right
	switch {
	case errors.Is(err, unix.EEXIST):
		if err := host.Do(b); err != nil {
			return err
		}
		l.quiet.add(nets, eps)
		return nil
	case errors.Is(err, unix.EXFULL):
		return errs.New(errs.Unavailable, "network %s is full: a bridge of the kernel has 1023 ports", strings.Join(names, " or "))
	}
	return err
}

// quietIPv6 switches IPv6 off on the interfaces to come when none of them has an address of it, so that no neighbour can give them one. The caller's thread is in the namespace.
func (l *Local) quietIPv6(eps []Endpoint) error {
	for _, ep := range eps {
		if ep.IPv6.IsValid() {
			return nil
		}
	}
	err := l.innerSysctl("net/ipv6/conf/default/disable_ipv6", "1")
	if errors.Is(err, os.ErrNotExist) {
		return nil // a kernel without IPv6
	}
	return err
}

// The destinations of default routes, said in full: one that leads to an interface has no gateway to tell its family by.
var default4, default6 = netip.PrefixFrom(netip.IPv4Unspecified(), 0), netip.PrefixFrom(netip.IPv6Unspecified(), 0)

// configure gives the interfaces in a new namespace their addresses and routes.
func (l *Local) configure(in *netlink.Conn, p plan) error {
	var b netlink.Batch
	for i, ep := range p.eps {
		if ep.Interface == "" { // a plugin sees to it
			continue
		}
		link, err := in.LinkByName(ep.Interface)
		if err != nil {
			return err
		}
		if err := l.setUpOnParent(in, link, ep); err != nil {
			return err
		}
		l.pluggedBefore(&b, link, ep)
		addAddrs(&b, link.Index, ep)
		b.SetUp(link.Index)
		l.pluggedAfter(&b, link, ep)
		if i == p.gw4 {
			b.AddRoute(link.Index, default4, ep.Gateway4)
		}
		if i == p.gw6 {
			b.AddRoute(link.Index, default6, ep.Gateway6)
		}
	}
	if err := in.Do(&b); err != nil {
		return l.unfit(p.eps, err)
	}
	if err := settleInside(in, p.eps); err != nil {
		return err
	}
	if err := l.applySysctls(p.eps); err != nil {
		return err
	}
	return awaitIPv6(in, p.eps)
}

// awaitIPv6 waits until the IPv6 addresses take packets. The kernel does that in the background, also without looking for duplicates, normally within a
// fraction of a millisecond; a neighbour that asks before is not answered, and asks again only after a second. IPv4 has no such gap.
func awaitIPv6(in *netlink.Conn, eps []Endpoint) error {
	end := time.Now().Add(200 * time.Millisecond) // slower than that, the start is worth more than the first packet
	for _, ep := range eps {
		for pause := 50 * time.Microsecond; ep.IPv6.IsValid() && time.Now().Before(end); pause *= 2 {
			if ready, err := in.IsLocal(ep.IPv6.Addr()); err == nil && ready {
				break
			} else if err != nil && !errors.Is(err, unix.ENETUNREACH) && !errors.Is(err, unix.EHOSTUNREACH) {
				return err
			}
			time.Sleep(pause)
		}
	}
	return nil
}

func addAddrs(b *netlink.Batch, index int, ep Endpoint) {
	if ep.IPv4.IsValid() {
		b.AddAddr(index, ep.IPv4)
	}
	if ep.IPv6.IsValid() {
		b.AddAddr(index, ep.IPv6)
	}
	for _, a := range ep.LinkLocal {
		b.AddAddr(index, linkLocalPrefix(a))
	}
}

// finish makes the sandbox known.
func (l *Local) finish(ctx context.Context, bx *box, p plan, h handles) (*Sandbox, error) {
	conf, err := l.resolvConf(bx.req, p.eps, p.asksUs(bx), len(p.nets) == 1 && p.nets[0].rec.Driver == nameHost)
	if err != nil {
		return nil, err
	}
	if p.asksUs(bx) {
		if err := l.serveNames(ctx, bx, h.ns); err != nil {
			return nil, err
		}
	}
	l.mu.Lock()
	opens := l.opens(bx.req.Owner)
	l.mu.Unlock()
	if opens {
		if err := l.reopen(); err != nil {
			return nil, err
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	bx.sb.ResolvConf = conf
	bx.ready = true
	out := bx.sb
	out.NS, out.Sysfs = h.ns, h.sysfs
	out.Endpoints = slices.Clone(out.Endpoints)
	return &out, nil
}

// asksUs says whether the embedded DNS serves the sandbox: on user-defined networks, and where only it knows which names there are.
func (p plan) asksUs(bx *box) bool { return p.userDefined() || bx.egress != nil && len(p.eps) > 0 }

func (p plan) userDefined() bool {
	return slices.ContainsFunc(p.nets, func(nw *network) bool { return !nw.rec.Predefined })
}

// Leave gives everything of owner back. The interfaces go with the namespace, or are removed a little later.
func (l *Local) Leave(ctx context.Context, owner string) error {
	l.mu.Lock()
	bx := l.boxes[owner]
	making := bx != nil && !bx.ready
	l.mu.Unlock()
	switch {
	case bx == nil:
		return nil
	case making:
		return errs.New(errs.Conflict, "sandbox of %s is being made", owner)
	}
	bx.end(errs.New(errs.NotFound, "container %s ended", short(owner))) // whatever changes it gives up, and takes back what it did
	bx.turn <- struct{}{}
	defer func() { <-bx.turn }()
	return l.leave(ctx, bx)
}

func (l *Local) leave(ctx context.Context, bx *box) (err error) {
	l.mu.Lock()
	eps := bx.sb.Endpoints
	bx.leaving = true // its rules are not written again
	l.mu.Unlock()
	err = errors.Join(l.unpublish(ctx, bx), l.closeNames(ctx, bx), l.fence(bx), l.dismiss(ctx, bx.req.Owner, eps))
	opened := false
	defer func() {
		if opened { // addresses are given again: what was open to this one must not be to the next
			err = errors.Join(err, l.reopen())
		}
	}()
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.boxes[bx.req.Owner] != bx {
		return err // another Leave was faster
	}
	opened = l.opens(bx.req.Owner)
	delete(l.boxes, bx.req.Owner)
	for _, ep := range bx.sb.Endpoints {
		l.remember(bx.req.Owner, ep)
		l.vacate(bx.req.Owner, ep, time.Now())
	}
	l.pool.wake()
	return err
}
