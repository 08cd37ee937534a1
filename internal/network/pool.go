package network

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"slices"
	"time"

	"corten.dev/corten/internal/linux/ns"
	"golang.org/x/sys/unix"
)

// readyBox is a namespace that waits for a container: lo is up, and for the default bridge the interface is made and addressed.
type readyBox struct {
	handles
	eps []Endpoint
}

// handles keep a namespace, and what is costly to make again in it.
type handles struct {
	ns    *os.File
	sysfs *os.File // see Sandbox.Sysfs
}

func (h handles) close() (err error) {
	for _, f := range []*os.File{h.ns, h.sysfs} {
		if f != nil {
			err = errors.Join(err, f.Close())
		}
	}
	return err
}

// readyPool keeps ready namespaces: of the default bridge, and bare ones for network none and for everything else to be made in. The lists are guarded by Local.mu.
//
// It is filled by one goroutine on a thread of low priority, a little after the last Join or Leave, so that a burst of
// starts has the processors for itself. A ready namespace is held by its descriptor alone: when the engine dies it goes, its veth with it.
type readyPool struct {
	l      *Local
	bridge []*readyBox
	bare   []*readyBox
	kick   chan struct{}
	making chan struct{} // closed when the one that is being made is there; nil when none is; guarded by Local.mu

	// Of the filling goroutine alone: why it failed last, when that was told, and how long it pauses for it now.
	trouble string
	told    time.Time
	pause   time.Duration
}

const poolPause, poolPauseMost, poolTold = 5 * time.Second, 5 * time.Minute, time.Hour

func newReadyPool(l *Local) *readyPool { return &readyPool{l: l, kick: make(chan struct{}, 1)} }

// takeLocked hands out a ready namespace if the request has no special wishes. To want the address that one had before is a wish, unless a ready one has it. mu is held.
func (p *readyPool) takeLocked(nets []*network, req *JoinRequest, again string) (rb *readyBox) {
	if len(nets) != 1 {
		return nil
	}
	list := &p.bridge
	er := req.Endpoints[0]
	switch {
	case len(er.Options)+len(er.LinkLocal) > 0:
		return nil
	case nets[0].isDefault && er.MAC == "" && !er.IPv4.IsValid() && !er.IPv6.IsValid():
	case nets[0].rec.Name == nameNone && nets[0].rec.Predefined:
		list = &p.bare
	default:
		return nil
	}
	at := 0
	for _, v4 := range nets[0].v4 {
		if a, ok := v4.last[again]; ok {
			at = slices.IndexFunc(*list, func(rb *readyBox) bool { return rb.eps[0].IPv4.Addr() == a })
			if _, used := v4.used[a]; at < 0 && used && !p.l.reap.holdsAddr(a) {
				at = 0 // somebody else has it
			}
		}
	}
	if at >= 0 && at < len(*list) {
		rb = (*list)[at]
		*list = slices.Delete(*list, at, at+1)
	}
	p.wake()
	return rb
}

// takeBare hands out a namespace in which interfaces with special wishes are then made. mu is held.
func (p *readyPool) takeBare(nets []*network) *readyBox {
	if len(p.bare) == 0 || nets[0].drv == nil {
		return nil
	}
	rb := p.bare[0]
	p.bare = p.bare[1:]
	p.wake()
	return rb
}

// wake has the pool filled after a moment.
func (p *readyPool) wake() {
	select {
	case p.kick <- struct{}{}:
	default:
	}
}

func (p *readyPool) run(ctx context.Context) {
	if p.l.opt.PoolSize >= 0 {
		ns.OnOwnThread(func() { p.work(ctx) })
	}
}

// work makes namespaces at a low priority, which is its thread's, until the end.
func (p *readyPool) work(ctx context.Context) {
	if err := unix.Setpriority(unix.PRIO_PROCESS, unix.Gettid(), 10); err != nil {
		p.l.log.Debug("pool of namespaces runs at normal priority", "err", err)
	}
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	armed := false
	for {
		select {
		case <-ctx.Done():
			return
		case <-p.kick:
			// Every start puts the filling off, so that it does not compete with the container that was just started (which may end, and be waited for,
			// in a few milliseconds); but a long row of starts must not find the pool empty.
			if !armed || p.pause > 0 || !p.low() {
				armed = true
				timer.Reset(p.l.opt.PoolDelay)
			}
		case <-timer.C:
			armed = false
			more, err := p.fill(ctx)
			if next := p.next(more, err); next > 0 {
				armed = true
				timer.Reset(next)
			}
		}
	}
}

// next says when to go on: soon while namespaces are missing, and ever later while none can be made, for instance because the bridge is full. That is told once in a while only;
// a port or an address that becomes free (see reaper) is tried at once.
func (p *readyPool) next(more bool, err error) time.Duration {
	if err == nil {
		p.pause = 0
		if more {
			return time.Millisecond
		}
		return 0
	}
	level := slog.LevelDebug
	var soon *dyingError // a matter of moments, and the reaper wakes us
	if !errors.As(err, &soon) && (err.Error() != p.trouble || time.Since(p.told) > poolTold) {
		p.trouble, p.told, level = err.Error(), time.Now(), slog.LevelWarn
	}
	p.l.log.Log(context.Background(), level, "no ready network namespaces for now; starts take a little longer", "err", err)
	p.pause = min(max(2*p.pause, poolPause), poolPauseMost)
	return p.pause
}

// low says that the next few starts would empty the pool.
func (p *readyPool) low() bool {
	p.l.mu.Lock()
	defer p.l.mu.Unlock()
	return len(p.bridge) < p.l.opt.PoolSize/2 || len(p.bare) < (p.l.opt.PoolSize+3)/4
}

// fill makes one ready namespace, and says whether more are missing.
func (p *readyPool) fill(ctx context.Context) (more bool, err error) {
	l := p.l
	l.mu.Lock()
	nw := l.defaultNet()
	missing := 0
	if l.settled && nw != nil && nw.index != 0 {
		missing = l.opt.PoolSize - len(p.bridge)
	}
	bare := (l.opt.PoolSize+1)/2 - len(p.bare)
	if l.closed || ctx.Err() != nil || missing <= 0 && bare <= 0 {
		l.mu.Unlock()
		return false, nil
	}
	var pl plan
	if missing > 0 {
		ep, err := l.newEndpoint(nw, EndpointRequest{}, "")
		if err != nil {
			l.mu.Unlock()
			return false, err
		}
		ep.Interface = "eth0"
		pl = plan{nets: []*network{nw}, eps: []Endpoint{ep}, told: nw.unexpected(ep)}
		pl.gateways([]EndpointRequest{{}})
	}
	p.making = make(chan struct{})
	l.mu.Unlock()
	var h handles
	h.ns, err = l.build(pl)
	if err == nil {
		h.sysfs = l.sysfsOf(h.ns)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	close(p.making)
	p.making = nil
	if err != nil {
		for _, ep := range pl.eps {
			l.reap.add(ep, time.Time{})
		}
		return false, err
	}
	rb := &readyBox{handles: h, eps: pl.eps}
	if missing > 0 {
		p.bridge = append(p.bridge, rb)
	} else {
		p.bare = append(p.bare, rb)
	}
	return missing+max(bare, 0) > 1, nil
}

// await waits for the one that is being made.
func (p *readyPool) await() {
	p.l.mu.Lock()
	making := p.making
	p.l.mu.Unlock()
	if making != nil {
		<-making
	}
}

// drain lets all ready namespaces go.
func (p *readyPool) drain() error {
	p.l.mu.Lock()
	defer p.l.mu.Unlock()
	var all []error
	for _, rb := range append(p.bridge, p.bare...) {
		all = append(all, rb.close())
		for _, ep := range rb.eps {
			p.l.reap.add(ep, time.Time{})
		}
	}
	p.bridge, p.bare = nil, nil
	return errors.Join(all...)
}
