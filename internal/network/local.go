package network

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"sync"

	"corten.dev/corten/internal/linux/netlink"
	"corten.dev/corten/internal/linux/nft"
	"corten.dev/corten/internal/network/dns"
	"corten.dev/corten/internal/network/egress"
	"corten.dev/corten/internal/network/remote"
	"corten.dev/corten/internal/record"
	"golang.org/x/sys/unix"
)

// Local is the Manager of this host's kernel.
//
// mu guards the maps and everything reachable from them; it is never held over a system call that can wait. What is being made or taken down is
// kept out of the others' way by its entry in the maps: an owner in boxes, an address in its subnet, a port in the table.
type Local struct {
	opt    Options
	log    *slog.Logger
	hostNS *os.File
	procs  innerProcs
	quiet  *quietPorts
	rt     *netlink.Pool
	nf     *nft.Conns

	mu      sync.Mutex
	nets    map[string]*network // by id
	names   map[string]string   // network name -> id
	boxes   map[string]*box     // by owner
	held    map[string]*held    // what plugins hold, by id
	coming  map[string]*coming  // networks being made by way of plugins, by id
	ports   portTable
	settled bool
	closed  bool

	records *record.Dir[stored]
	ledger  *record.Dir[held]
	pool    *readyPool
	reap    *reaper
	rules   rulesState
	egress  *egress.Lists
	resolv  dns.HostFile
	dns     *nameLink
	proxy   *proxyLink
	created sync.Mutex // one network is created or removed at a time, because they choose subnets and names that must not collide; held over kernel work that no start waits for
	stop    context.CancelFunc
	done    <-chan struct{} // closed by stop
	work    sync.WaitGroup
	repay   chan struct{} // asks for what is owed to be given back to plugins
}

// network is the live side of a stored network.
type network struct {
	rec       Network
	drv       driver // nil: nothing is made for it
	br        string // bridge
	index     int
	mtu       int
	v4, v6    subnets
	icc, masq bool
	hostIP    netip.Addr
	bridgeOptions
	egress    *egress.List // nil: no list
	rates     Rates        // of each of its containers
	isDefault bool
	foreign   bool                 // the bridge was there before us: it is never removed
	ipam      *remote.IPAM         // nil: the addresses are ours, or there are none
	replaying chan struct{}        // held by who looks at replayed
	replayed  bool                 // ipam knows what it gave to this network
	eps       map[string]*Endpoint // by owner
}

// box is the live side of a sandbox. The fields are set before the box is in Local.boxes as ready, and changed under Local.mu.
type box struct {
	req      JoinRequest
	sb       Sandbox
	pid      int
	bindings []*binding
	egress   *egress.List // nil: no list
	listed   bool         // it has a list, or had one
	ready    bool
	leaving  bool

	turn chan struct{} // held by who changes it, or takes it down: see change
	life context.Context
	end  context.CancelCauseFunc // ends life, and what is under way
}

// New opens the room: it restores the stored networks and the default ones, their bridges, and the table with its rules. Ready namespaces are
// made once Settle was called.
func New(opt Options) (_ *Local, err error) {
	opt = opt.withDefaults()
	l := &Local{opt: opt, log: opt.Logger, nets: map[string]*network{}, names: map[string]string{}, boxes: map[string]*box{},
		held: map[string]*held{}, coming: map[string]*coming{}, repay: make(chan struct{}, 1),
		resolv: dns.HostFile{Path: opt.ResolvConf}, rt: &netlink.Pool{Proto: unix.NETLINK_ROUTE}, nf: nft.NewConns()}
	l.egress = egress.New(egress.Options{Table: opt.Table, Bridges: setBridges, Conns: l.nf, OnlyIPv4: opt.NoRules6, Rewrite: func() error { return l.applyRules(false) }, Again: l.rules.again})
	l.quiet = &quietPorts{log: l.log, after: quietAfter}
	ctx, stop := context.WithCancel(context.Background())
	l.stop, l.done = stop, ctx.Done()
	defer func() {
		if err != nil {
			err = errors.Join(err, l.shut())
		}
	}()
	if l.hostNS, err = os.Open("/proc/thread-self/ns/net"); err != nil {
		return nil, fmt.Errorf("open the host's network namespace: %w", err)
	}
	l.ports.init()
	l.pool, l.reap = newReadyPool(l), newReaper(l)
	l.startProxyLink(ctx)
	l.startNameLink(ctx)
	if err := l.openStore(); err != nil {
		return nil, err
	}
	if err := l.load(ctx); err != nil {
		return nil, err
	}
	if err := l.loadHeld(); err != nil {
		return nil, err
	}
	if err := l.adopt(); err != nil {
		return nil, err
	}
	if err := l.switchForwarding(); err != nil {
		return nil, err
	}
	if !opt.NoRules {
		if err := l.applyRules(false); err != nil {
			return nil, err
		}
		if err := l.egress.Adopt(); err != nil {
			return nil, err
		}
		if err := l.watchRules(ctx); err != nil {
			return nil, err
		}
	}
	l.work.Go(func() { l.pool.run(ctx) })
	l.work.Go(func() { l.reap.run(ctx) })
	if opt.Plugins.Set != nil {
		l.work.Go(func() { l.runRepay(ctx) })
	}
	return l, nil
}

// Settle says that all containers that still run were restored: what nobody claimed is removed, and ready namespaces are made from now on.
// Engines call it once after their last Restore.
func (l *Local) Settle(ctx context.Context) error {
	l.mu.Lock()
	l.settled = true
	l.mu.Unlock()
	l.reap.orphans()
	l.pool.wake()
	err := errors.Join(l.proxySettle(ctx), l.settleNames(ctx), l.settleHeld())
	l.replaySoon()
	if l.opt.NoRules {
		return err
	}
	return errors.Join(err, l.applyRules(true), l.egress.Settle())
}

// Close stops the background work. With no container left it also removes the bridges that have no other use and the table.
func (l *Local) Close() error {
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		return nil
	}
	l.closed = true
	busy := len(l.boxes) > 0 || !l.settled && l.reap.unclaimed()
	l.mu.Unlock()
	l.stop()
	l.rules.closeWatch()
	l.work.Wait()
	err := l.pool.drain()
	if !busy {
		l.reap.force(netip.Addr{})
		err = errors.Join(err, l.takeDown(context.Background()))
	}
	return errors.Join(err, l.shut())
}

// shut closes the descriptors.
func (l *Local) shut() error {
	l.stop()
	l.quiet.close()
	var all []error
	for _, b := range l.boxes {
		for _, x := range b.bindings {
			all = append(all, x.closeFiles())
		}
	}
	if l.dns != nil {
		all = append(all, l.dns.close())
	}
	all = append(all, l.rt.Close(), l.nf.Close(), l.closeStore(), l.procs.close())
	if l.hostNS != nil {
		all = append(all, l.hostNS.Close())
	}
	return errors.Join(all...)
}

// HostGateway is the address that --add-host name:host-gateway means.
func (l *Local) HostGateway() netip.Addr {
	if l.opt.HostGateway.IsValid() {
		return l.opt.HostGateway
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if nw := l.defaultNet(); nw != nil {
		return nw.rec.IPAM.Pools[0].Gateway
	}
	return netip.Addr{}
}

// Sandbox tells what an owner has.
func (l *Local) Sandbox(owner string) (Sandbox, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	b := l.boxes[owner]
	if b == nil || !b.ready {
		return Sandbox{}, false
	}
	sb := b.sb
	sb.Endpoints = append([]Endpoint{}, sb.Endpoints...)
	sb.Ports = append([]Port{}, sb.Ports...)
	return sb, true
}

func (l *Local) defaultNet() *network {
	if nw := l.nets[l.names[nameBridge]]; nw != nil && nw.isDefault {
		return nw
	}
	return nil
}

// The predefined networks and the drivers.
const (
	nameBridge, nameHost, nameNone = "bridge", "host", "none"
	driverNull                     = "null" // of none, and of configuration-only networks
)

func newID() string {
	var raw [32]byte
	_, _ = rand.Read(raw[:]) // never fails
	return hex.EncodeToString(raw[:])
}

var (
	_ Manager = (*Local)(nil)
	_ Settler = (*Local)(nil)
)
