// Package memory is the network room without a kernel: for the tests of those who use the room.
//
// It owns nothing outside its memory; sandboxes have no namespace. It promises the contract's answers and errors: names, addresses and host ports are
// given out and refused as the real driver does, but nothing listens anywhere.
package memory

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/network"
	"corten.dev/corten/internal/network/egress"
)

// Networks is the driver. It is safe for concurrent use.
type Networks struct {
	mu    sync.Mutex
	nets  map[string]*live
	boxes map[string]*box
	ports map[string]string // proto/port -> owner
	next  uint16
	third byte
	seen  uint64
}

type live struct {
	network.Network
	eps  map[string]network.Endpoint
	used map[netip.Addr]bool
}

type box struct {
	req network.JoinRequest
	sb  network.Sandbox
}

// New makes a room with the three predefined networks.
func New() *Networks {
	m := &Networks{nets: map[string]*live{}, boxes: map[string]*box{}, ports: map[string]string{}, next: 32768, third: 17}
	for _, name := range []string{"bridge", "host", "none"} {
		driver := name
		if name == "none" {
			driver = "null"
		}
		nw := network.Network{ID: newID(), Name: name, Driver: driver, Created: m.now(), EnableIPv4: true, Predefined: true}
		if name == "bridge" {
			nw.IPAM.Pools = []network.Pool{m.pool()}
		}
		m.put(nw)
	}
	return m
}

func newID() string {
	var raw [32]byte
	_, _ = rand.Read(raw[:]) // never fails
	return hex.EncodeToString(raw[:])
}

// now gives each network a later time than the one before.
func (m *Networks) now() time.Time {
	m.seen++
	return time.Unix(1e9, int64(m.seen)).UTC()
}

func (m *Networks) pool() network.Pool {
	subnet := netip.PrefixFrom(netip.AddrFrom4([4]byte{172, m.third, 0, 0}), 16)
	m.third++
	return network.Pool{Subnet: subnet, Gateway: subnet.Addr().Next()}
}

func (m *Networks) put(nw network.Network) *live {
	l := &live{Network: nw, eps: map[string]network.Endpoint{}, used: map[netip.Addr]bool{}}
	for _, p := range nw.IPAM.Pools {
		l.used[p.Gateway] = true
	}
	m.nets[nw.ID] = l
	return l
}

func (m *Networks) find(ref string) (*live, error) {
	if ref == "default" {
		ref = "bridge"
	}
	var found *live
	for id, nw := range m.nets {
		if id == ref || nw.Name == ref {
			return nw, nil
		}
		if ref != "" && strings.HasPrefix(id, ref) {
			found = nw
		}
	}
	if found == nil {
		return nil, errs.New(errs.NotFound, "network %s not found", ref)
	}
	return found, nil
}

// Create makes a network.
func (m *Networks) Create(_ context.Context, nw network.Network) (network.Network, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if strings.TrimSpace(nw.Name) == "" {
		return nw, errs.New(errs.Invalid, "invalid name: name is empty")
	}
	for _, other := range m.nets {
		switch {
		case other.Name == nw.Name && other.Predefined:
			return nw, errs.New(errs.Forbidden, "operation is not permitted on predefined %s network", nw.Name)
		case other.Name == nw.Name:
			return nw, errs.New(errs.Conflict, "network with name %s already exists", nw.Name)
		}
	}
	if nw.Driver == "" {
		nw.Driver = "bridge"
	}
	nw.ID, nw.Created, nw.Predefined, nw.EnableIPv4 = newID(), m.now(), false, true
	if len(nw.IPAM.Pools) == 0 {
		nw.IPAM.Pools = []network.Pool{m.pool()}
	}
	for i, p := range nw.IPAM.Pools {
		for _, other := range m.nets {
			if slices.ContainsFunc(other.IPAM.Pools, func(o network.Pool) bool { return o.Subnet.Overlaps(p.Subnet) }) {
				return nw, errs.New(errs.Forbidden, "invalid pool request: Pool overlaps with other one on this address space")
			}
		}
		if !p.Gateway.IsValid() {
			nw.IPAM.Pools[i].Gateway = p.Subnet.Addr().Next()
		}
	}
	return m.put(nw).Network, nil
}

// Get finds a network.
func (m *Networks) Get(_ context.Context, ref string) (network.Network, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	nw, err := m.find(ref)
	if err != nil {
		return network.Network{}, err
	}
	return nw.Network, nil
}

// List lists the networks, the oldest first.
func (m *Networks) List(context.Context) ([]network.Network, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	var all []network.Network
	for _, nw := range m.nets {
		all = append(all, nw.Network)
	}
	slices.SortFunc(all, func(a, b network.Network) int { return a.Created.Compare(b.Created) })
	return all, nil
}

// Remove removes a network that nobody is on.
func (m *Networks) Remove(_ context.Context, ref string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	nw, err := m.find(ref)
	switch {
	case err != nil:
		return err
	case nw.Predefined:
		return errs.New(errs.Forbidden, "%s is a pre-defined network and cannot be removed", nw.Name)
	case len(nw.eps) > 0:
		return errs.New(errs.Forbidden, "error while removing network: network %s id %s has active endpoints", nw.Name, nw.ID)
	}
	delete(m.nets, nw.ID)
	return nil
}

// Update changes the limits of a network.
func (m *Networks) Update(_ context.Context, ref string, req network.NetworkChange) ([]string, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	nw, err := m.find(ref)
	if err != nil {
		return nil, err
	}
	want, changes, err := req.To(nw.Network)
	if err == nil {
		_, err = network.ReadRates(want.Options)
	}
	if list, given := want.Options[network.OptionEgress]; given && err == nil {
		_, err = egress.Parse(list)
	}
	if err == nil && len(changes) > 0 && !req.DryRun {
		nw.Network = want
	}
	return changes, err
}

// Usage counts the addresses of a network's subnets.
func (m *Networks) Usage(_ context.Context, ref string) ([]network.SubnetUsage, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	nw, err := m.find(ref)
	if err != nil {
		return nil, err
	}
	var all []network.SubnetUsage
	for _, p := range nw.IPAM.Pools {
		u := network.SubnetUsage{Subnet: p.Subnet, Free: 1 << min(62, p.Subnet.Addr().BitLen()-p.Subnet.Bits())}
		for a := range nw.used {
			if p.Subnet.Contains(a) {
				u.InUse++
			}
		}
		u.Free -= u.InUse
		all = append(all, u)
	}
	return all, nil
}

// Endpoints lists who is on a network.
func (m *Networks) Endpoints(_ context.Context, ref string) (map[string]network.Endpoint, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	nw, err := m.find(ref)
	if err != nil {
		return nil, err
	}
	all := map[string]network.Endpoint{}
	for owner, ep := range nw.eps {
		all[owner] = ep
	}
	return all, nil
}

// Join gives addresses and ports out.
func (m *Networks) Join(_ context.Context, req network.JoinRequest) (_ *network.Sandbox, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.boxes[req.Owner] != nil {
		return nil, errs.New(errs.Conflict, "sandbox of %s is there already", req.Owner)
	}
	bx := &box{req: req, sb: network.Sandbox{Owner: req.Owner, ResolvConf: []byte("nameserver 127.0.0.11\n")}}
	m.boxes[req.Owner] = bx
	defer func() {
		if err != nil {
			m.leave(req.Owner)
		}
	}()
	if len(req.Endpoints) == 0 {
		req.Endpoints = []network.EndpointRequest{{Network: "bridge"}}
	}
	for _, er := range req.Endpoints {
		if _, err := m.connect(bx, er); err != nil {
			return nil, err
		}
	}
	for _, p := range req.Ports {
		if err := m.publish(bx, p); err != nil {
			return nil, err
		}
	}
	sb := bx.sb
	return &sb, nil
}

func (m *Networks) connect(bx *box, er network.EndpointRequest) (network.Endpoint, error) {
	nw, err := m.find(er.Network)
	if err != nil || len(nw.IPAM.Pools) == 0 {
		return network.Endpoint{}, err
	}
	owner := bx.req.Owner
	if _, there := nw.eps[owner]; there {
		return network.Endpoint{}, errs.New(errs.Forbidden, "endpoint with name %s already exists in network %s", bx.req.Name, nw.Name)
	}
	pool := nw.IPAM.Pools[0]
	a := er.IPv4
	switch {
	case a.IsValid() && nw.Predefined:
		return network.Endpoint{}, errs.New(errs.Invalid, "user specified IP address is supported on user defined networks only")
	case a.IsValid() && !pool.Subnet.Contains(a):
		return network.Endpoint{}, errs.New(errs.Invalid, "invalid address %s: it does not belong to any of this network's subnets", a)
	case a.IsValid() && nw.used[a]:
		return network.Endpoint{}, errs.New(errs.Forbidden, "Address already in use")
	case !a.IsValid():
		for a = pool.Subnet.Addr().Next(); nw.used[a]; a = a.Next() {
		}
	}
	nw.used[a] = true
	raw := a.As4()
	ep := network.Endpoint{Network: nw.Name, NetworkID: nw.ID, ID: newID(), Interface: fmt.Sprintf("eth%d", len(bx.sb.Endpoints)),
		MAC: fmt.Sprintf("02:42:%02x:%02x:%02x:%02x", raw[0], raw[1], raw[2], raw[3]), IPv4: netip.PrefixFrom(a, pool.Subnet.Bits()),
		Gateway4: pool.Gateway, Aliases: er.Aliases}
	if er.MAC != "" {
		ep.MAC = er.MAC
	}
	if !nw.Predefined {
		ep.DNSNames = append([]string{bx.req.Name}, er.Aliases...)
	}
	nw.eps[owner] = ep
	bx.sb.Endpoints = append(slices.Clone(bx.sb.Endpoints), ep)
	return ep, nil
}

func (m *Networks) publish(bx *box, p network.Port) error {
	first, last := p.HostPort, max(p.HostPort, p.HostPortEnd)
	if first == 0 {
		first, last = m.next, 60999
	}
	for n := first; n <= last; n++ {
		key := fmt.Sprintf("%s/%d", p.Proto, n)
		if _, taken := m.ports[key]; taken {
			continue
		}
		m.ports[key] = bx.req.Owner
		p.HostPort, p.HostPortEnd = n, 0
		if !p.HostIP.IsValid() {
			p.HostIP = netip.IPv4Unspecified()
		}
		bx.sb.Ports = append(bx.sb.Ports, p)
		return nil
	}
	return errs.New(errs.Conflict, "driver failed programming external connectivity on endpoint %s: Bind for 0.0.0.0:%d failed: port is already allocated", bx.req.Name, p.HostPort)
}

// Restore takes a sandbox back.
func (m *Networks) Restore(_ context.Context, req network.JoinRequest, sb network.Sandbox, _ int) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.boxes[req.Owner] = &box{req: req, sb: sb}
	for _, ep := range sb.Endpoints {
		if nw := m.nets[ep.NetworkID]; nw != nil {
			nw.eps[req.Owner] = ep
			nw.used[ep.IPv4.Addr()] = true
		}
	}
	for _, p := range sb.Ports {
		m.ports[fmt.Sprintf("%s/%d", p.Proto, p.HostPort)] = req.Owner
	}
	return nil
}

// Leave gives everything of owner back.
func (m *Networks) Leave(_ context.Context, owner string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.leave(owner)
	return nil
}

func (m *Networks) leave(owner string) {
	for _, nw := range m.nets {
		if ep, there := nw.eps[owner]; there {
			delete(nw.eps, owner)
			delete(nw.used, ep.IPv4.Addr())
		}
	}
	for key, who := range m.ports {
		if who == owner {
			delete(m.ports, key)
		}
	}
	delete(m.boxes, owner)
}

// Connect puts a sandbox on one more network.
func (m *Networks) Connect(_ context.Context, owner string, _ int, req network.EndpointRequest) (network.Endpoint, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	bx := m.boxes[owner]
	if bx == nil {
		return network.Endpoint{}, errs.New(errs.NotFound, "sandbox of %s not found", owner)
	}
	return m.connect(bx, req)
}

// Disconnect takes it off.
func (m *Networks) Disconnect(_ context.Context, owner string, _ int, ref string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	nw, err := m.find(ref)
	if err != nil {
		return err
	}
	ep, there := nw.eps[owner]
	if !there {
		return errs.New(errs.Forbidden, "container %s is not connected to network %s", owner, nw.Name)
	}
	delete(nw.eps, owner)
	delete(nw.used, ep.IPv4.Addr())
	bx := m.boxes[owner]
	bx.sb.Endpoints = slices.DeleteFunc(slices.Clone(bx.sb.Endpoints), func(o network.Endpoint) bool { return o.ID == ep.ID })
	return nil
}

// SetLimits changes what bounds a sandbox.
func (m *Networks) SetLimits(_ context.Context, owner string, _ int, want network.Limits) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	bx := m.boxes[owner]
	if bx == nil {
		return errs.New(errs.NotFound, "sandbox of %s not found", owner)
	}
	if want.Egress != "" {
		if _, err := egress.Parse(want.Egress); err != nil {
			return err
		}
	}
	bx.req.Egress, bx.req.Rates = want.Egress, want.Rates
	return nil
}

// EgressCounts knows that nothing is ever sent.
func (m *Networks) EgressCounts(context.Context) (owners, networks map[string]network.EgressCount, err error) {
	owners, networks = map[string]network.EgressCount{}, map[string]network.EgressCount{}
	m.mu.Lock()
	defer m.mu.Unlock()
	for owner, bx := range m.boxes {
		if list, err := egress.Parse(bx.req.Egress); bx.req.Egress != "" && err == nil && list != nil {
			owners[owner] = network.EgressCount{}
		}
	}
	for id, nw := range m.nets {
		if text, given := nw.Options[network.OptionEgress]; given && text != "all" {
			networks[id] = network.EgressCount{}
		}
	}
	return owners, networks, nil
}

// SetPorts changes what a sandbox publishes.
func (m *Networks) SetPorts(_ context.Context, owner string, ports []network.Port) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	bx := m.boxes[owner]
	if bx == nil {
		return errs.New(errs.NotFound, "sandbox of %s not found", owner)
	}
	shown := bx.sb.Ports
	for _, p := range ports {
		if slices.Contains(bx.req.Ports, p) {
			continue
		}
		if err := m.publish(bx, p); err != nil {
			bx.sb.Ports = shown
			return err
		}
	}
	for _, old := range bx.req.Ports {
		if slices.Contains(ports, old) {
			continue
		}
		bx.sb.Ports = slices.DeleteFunc(slices.Clone(bx.sb.Ports), func(p network.Port) bool {
			taken := p.Proto == old.Proto && p.ContainerPort == old.ContainerPort && (old.HostPort == 0 || p.HostPort == old.HostPort)
			if taken {
				delete(m.ports, fmt.Sprintf("%s/%d", p.Proto, p.HostPort))
			}
			return taken
		})
	}
	bx.req.Ports = slices.Clone(ports)
	return nil
}

// Rename changes a name.
func (m *Networks) Rename(_ context.Context, owner, name string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if bx := m.boxes[owner]; bx != nil {
		bx.req.Name = name
	}
	return nil
}

// Sandbox tells what an owner has.
func (m *Networks) Sandbox(owner string) (network.Sandbox, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	bx := m.boxes[owner]
	if bx == nil {
		return network.Sandbox{}, false
	}
	return bx.sb, true
}

// Settle does nothing here.
func (m *Networks) Settle(context.Context) error { return nil }

// HostGateway is the default network's gateway.
func (m *Networks) HostGateway() netip.Addr { return netip.AddrFrom4([4]byte{172, 17, 0, 1}) }

// Close does nothing here.
func (m *Networks) Close() error { return nil }

var _ network.Manager = (*Networks)(nil)
