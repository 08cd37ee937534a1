package network

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"sync"

	"corten.dev/corten/internal/network/portproxy"
)

// proxyLink is the engine's side of the port proxy. A new port is not waited for: its socket listens already, and whoever connects waits in its queue.
type proxyLink struct {
	*helper

	mu   sync.Mutex
	held map[string]string   // what a proxy of an earlier engine had when we came, until Settle
	want map[string]*binding // what the proxy is to hold
}

func proxyKey(b *binding) string {
	return b.Proto + "/" + netip.AddrPortFrom(b.HostIP, b.HostPort).String()
}

// proxyFor says whether a protocol can be passed on by the proxy.
func (l *Local) proxyFor(proto string) bool { return len(l.opt.PortProxy) > 0 && proto != "sctp" }

// startProxyLink finds the proxy that an earlier engine left, if any.
func (l *Local) startProxyLink(ctx context.Context) {
	p := &proxyLink{helper: newHelper(l, "port proxy", "portproxy.sock", l.opt.PortProxy), held: map[string]string{}, want: map[string]*binding{}}
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
	want := make(map[string]*binding, len(p.want))
	for key, b := range p.want {
		want[key] = b
	}
	p.mu.Unlock()
	for key, b := range want {
		if b.file == nil {
			f, err := hold(b)
			if err != nil {
				p.log.Error("port is not passed on again", "port", key, "err", err)
				continue
			}
			b.file = f
		}
		all = append(all, addPort(key, b))
	}
	return all
}

func addPort(key string, b *binding) packet {
	return packet{req: portproxy.Request{Op: "add", Key: key, To: b.target.String()}, files: []*os.File{b.file}}
}

// proxyAdd hands the bindings that the kernel cannot pass on to the proxy. Those that an earlier engine handed over are there already.
func (l *Local) proxyAdd(list []*binding) {
	for _, b := range list {
		if !b.proxy {
			continue
		}
		key := proxyKey(b)
		l.proxy.mu.Lock()
		l.proxy.want[key] = b
		l.proxy.mu.Unlock()
		if b.file == nil {
			continue
		}
		select {
		case l.proxy.queue <- helperOp{packet: func() packet { return addPort(key, b) }}:
		case <-l.done:
		}
	}
}

// proxyDrop takes them back, and waits: afterwards the host port is free.
func (l *Local) proxyDrop(ctx context.Context, list []*binding) error {
	var all []error
	for _, b := range list {
		if !b.proxy {
			continue
		}
		key := proxyKey(b)
		l.proxy.mu.Lock()
		_, there := l.proxy.want[key]
		delete(l.proxy.want, key)
		l.proxy.mu.Unlock()
		if there {
			all = append(all, l.dropPort(ctx, key))
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
		if l.proxy.want[key] == nil {
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

// holdAgain holds a host port after a restart, unless the proxy kept it through.
func (l *Local) holdAgain(b *binding) (err error) {
	l.proxy.mu.Lock()
	kept := b.proxy && l.proxy.held[proxyKey(b)] == b.target.String()
	l.proxy.mu.Unlock()
	if !kept {
		b.file, err = hold(b)
	}
	return err
}
