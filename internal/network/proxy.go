package network

import (
	"context"
	"errors"
	"maps"
	"net/netip"
	"os"
	"sync"

	"corten.dev/corten/internal/network/portproxy"
)

// proxyLink is the engine's side of the port proxy. A new port is not waited for: its socket listens already, and whoever connects waits in its queue.
type proxyLink struct {
	*helper

	mu   sync.Mutex
	held map[string]string  // what a proxy of an earlier engine had when we came, until Settle
	want map[string]proxied // what the proxy is to hold
}

// proxied is one port of a binding.
type proxied struct {
	*binding
	i int
}

func (p proxied) key() string {
	return p.Proto + "/" + netip.AddrPortFrom(p.HostIP, p.HostPort+uint16(p.i)).String()
}

func (p proxied) to() string {
	return netip.AddrPortFrom(p.target.Addr(), p.target.Port()+uint16(p.i)).String()
}

func (p proxied) file() *os.File {
	if p.i < len(p.files) {
		return p.files[p.i]
	}
	return nil
}

// proxies are the ports of a binding that the proxy is to pass on.
func (b *binding) proxies() (all []proxied) {
	if b.proxy {
		for i := range b.Len() {
			all = append(all, proxied{b, i})
		}
	}
	return all
}

// proxyFor says whether a protocol can be passed on by the proxy.
func (l *Local) proxyFor(proto string) bool { return len(l.opt.PortProxy) > 0 && proto != "sctp" }

// startProxyLink finds the proxy that an earlier engine left, if any.
func (l *Local) startProxyLink(ctx context.Context) {
	p := &proxyLink{helper: newHelper(l, "port proxy", "portproxy.sock", l.opt.PortProxy), held: map[string]string{}, want: map[string]proxied{}}
	l.proxy = p
	p.all, p.idle = p.packets, p.nothing
	if len(l.opt.PortProxy) == 0 {
		return
	}
	if err := p.connect(ctx, &l.work); err == nil {
		var ans portproxy.Answer
		if _, err := call(p.conn, packet{req: portproxy.Request{Op: "list"}}, &ans); err != nil {
			l.log.Warn("ask the port proxy", "err", err)
		}
		for key, to := range ans.Keys {
			p.held[key] = to
		}
	}
	l.work.Go(func() { p.run(ctx, &l.work) })
}

func (p *proxyLink) nothing() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.want)+len(p.held) == 0
}

// packets hand over everything that a fresh proxy is to hold.
func (p *proxyLink) packets() (all []packet) {
	p.mu.Lock()
	want := maps.Clone(p.want)
	p.mu.Unlock()
	for key, one := range want {
		if one.file() == nil {
			f, err := one.bind(one.HostPort + uint16(one.i))
			if err != nil {
				p.log.Error("port is not passed on again", "port", key, "err", err)
				continue
			}
			one.files[one.i] = f
		}
		all = append(all, addPort(one))
	}
	return all
}

func addPort(p proxied) packet {
	return packet{req: portproxy.Request{Op: "add", Key: p.key(), To: p.to()}, files: []*os.File{p.file()}}
}

// proxyAdd hands the bindings that the kernel cannot pass on to the proxy. Those that an earlier engine handed over are there already.
func (l *Local) proxyAdd(list []*binding) {
	for _, b := range list {
		for _, one := range b.proxies() {
			l.proxy.mu.Lock()
			l.proxy.want[one.key()] = one
			l.proxy.mu.Unlock()
			if one.file() == nil {
				continue
			}
			select {
			case l.proxy.queue <- helperOp{packet: func() packet { return addPort(one) }}:
			case <-l.done:
			}
		}
	}
}

// proxyDrop takes them back, and waits: afterwards the host port is free.
func (l *Local) proxyDrop(ctx context.Context, list []*binding) error {
	var all []error
	for _, b := range list {
		for _, one := range b.proxies() {
			key := one.key()
			l.proxy.mu.Lock()
			_, there := l.proxy.want[key]
			delete(l.proxy.want, key)
			l.proxy.mu.Unlock()
			if there {
				all = append(all, l.dropPort(ctx, key))
			}
		}
	}
	return errors.Join(all...)
}

func (l *Local) dropPort(ctx context.Context, key string) error {
	return l.proxy.ask(ctx, l.done, helperOp{packet: func() packet { return packet{req: portproxy.Request{Op: "drop", Key: key}} }})
}

// proxySettle drops what a proxy holds for containers that are gone.
func (l *Local) proxySettle(ctx context.Context) error {
	var all []error
	l.proxy.mu.Lock()
	var gone []string
	for key := range l.proxy.held {
		if _, wanted := l.proxy.want[key]; !wanted {
			gone = append(gone, key)
		}
	}
	l.proxy.mu.Unlock()
	for _, key := range gone {
		all = append(all, l.dropPort(ctx, key))
	}
	l.proxy.mu.Lock()
	defer l.proxy.mu.Unlock()
	clear(l.proxy.held)
	return errors.Join(all...)
}

// holdAgain holds the host ports of a binding after a restart, unless the proxy kept them through, or they were not held before either.
func (l *Local) holdAgain(b *binding) error {
	if b.Len() > mostHeld || !b.rules && !b.proxy {
		return nil
	}
	b.files = make([]*os.File, b.Len())
	var all []error
	for i := range b.files {
		one := proxied{b, i}
		l.proxy.mu.Lock()
		kept := b.proxy && l.proxy.held[one.key()] == one.to()
		l.proxy.mu.Unlock()
		if !kept {
			var err error
			b.files[i], err = b.bind(b.HostPort + uint16(i))
			all = append(all, err)
		}
	}
	return errors.Join(all...)
}
