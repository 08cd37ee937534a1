package remote

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"

	"corten.dev/corten/internal/errs"
)

// labelGateway is the type of address that a gateway asks for, and the datum of a pool that names one.
const (
	labelGateway = "com.docker.network.gateway"
	optionType   = "RequestAddressType"
)

// IPAM is a plugin as an address manager.
type IPAM struct {
	client

	mu   sync.Mutex // guards what follows; never held over a call
	seen bool
	caps Capabilities
}

// Capabilities are what an address manager needs.
type Capabilities struct {
	// RequiresMACAddress: a request for an address names the hardware address.
	RequiresMACAddress bool
	// RequiresRequestReplay: it forgets when the engine goes, and is asked again for all that it gave.
	RequiresRequestReplay bool
}

// Capabilities asks once. A plugin from before this call has none.
func (m *IPAM) Capabilities(ctx context.Context) (Capabilities, error) {
	m.mu.Lock()
	caps, seen := m.caps, m.seen
	m.mu.Unlock()
	if seen {
		return caps, nil
	}
	if err := ifKnown(m.ask(ctx, "GetCapabilities", nil, &caps)); err != nil {
		return Capabilities{}, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.caps, m.seen = caps, true
	return caps, nil
}

// Space asks for the space of addresses of networks that are this host's alone.
func (m *IPAM) Space(ctx context.Context) (string, error) {
	var out struct{ LocalDefaultAddressSpace, GlobalDefaultAddressSpace string }
	err := m.ask(ctx, "GetDefaultAddressSpaces", nil, &out)
	return out.LocalDefaultAddressSpace, err
}

// PoolRequest asks for a subnet; the zero Subnet is for the plugin to choose.
type PoolRequest struct {
	Space   string
	Subnet  netip.Prefix
	Range   netip.Prefix
	Options map[string]string
	V6      bool
}

// Given is a subnet that an address manager gave. All addresses (0.0.0.0/0) mean that its addresses are of no subnet.
type Given struct {
	ID      string
	Subnet  netip.Prefix
	Gateway netip.Prefix // if it says so at once
}

type poolAnswer struct {
	PoolID string
	Pool   string
	Data   map[string]string
}

// RequestPool asks for a subnet. With an error, the id tells of one that was given all the same, and must be given back.
func (m *IPAM) RequestPool(ctx context.Context, req PoolRequest) (Given, error) {
	in := struct {
		AddressSpace, Pool, SubPool string
		Options                     map[string]string
		V6                          bool
	}{AddressSpace: req.Space, Options: req.Options, V6: req.V6}
	if req.Subnet.IsValid() {
		in.Pool = req.Subnet.String()
	}
	if req.Range.IsValid() {
		in.SubPool = req.Range.String()
	}
	var out poolAnswer
	if err := m.take(ctx, "RequestPool", in, &out); err != nil {
		return Given{}, err
	}
	g, err := out.read(req)
	return g, m.lied("RequestPool", err)
}

func (a poolAnswer) read(req PoolRequest) (Given, error) {
	g := Given{ID: a.PoolID}
	subnet, err := netip.ParsePrefix(a.Pool)
	switch {
	case err != nil || subnet.Addr().Is4In6():
		return g, fmt.Errorf("the pool %.100q is no subnet", a.Pool)
	case subnet.Addr().Is4() == req.V6:
		return g, fmt.Errorf("the pool %s is of the other family", subnet)
	case req.Subnet.IsValid() && subnet.Masked() != req.Subnet.Masked():
		return g, fmt.Errorf("the pool %s is not the one that was asked for, %s", subnet, req.Subnet)
	case subnet.Addr().IsMulticast() || subnet.Addr().IsLoopback():
		return g, fmt.Errorf("the pool %s is no subnet for containers", subnet)
	}
	g.Subnet = subnet.Masked()
	if text := a.Data[labelGateway]; text != "" {
		if g.Gateway, err = readAddress(text); err != nil {
			return g, fmt.Errorf("the gateway: %w", err)
		}
		if !g.Subnet.Contains(g.Gateway.Addr()) {
			return g, fmt.Errorf("the gateway %s is not in the pool %s", g.Gateway, g.Subnet)
		}
	}
	return g, nil
}

// ReleasePool gives a subnet back.
func (m *IPAM) ReleasePool(ctx context.Context, id string) error {
	return m.give(ctx, "ReleasePool", struct{ PoolID string }{id})
}

// AddressRequest asks for an address of a subnet; the zero Want is for the plugin to choose.
type AddressRequest struct {
	Pool    string
	Want    netip.Addr
	Subnet  netip.Prefix // what the address is believed of
	MAC     string
	Gateway bool
}

type addressAnswer struct {
	Address string
	Data    map[string]string
}

// RequestAddress asks for an address. With an error, a valid one tells of an address that was given all the same, and must be given back.
func (m *IPAM) RequestAddress(ctx context.Context, req AddressRequest) (netip.Prefix, error) {
	in := struct {
		PoolID, Address string
		Options         map[string]string
	}{PoolID: req.Pool}
	if req.Want.IsValid() {
		in.Address = req.Want.String()
	}
	switch {
	case req.Gateway:
		in.Options = map[string]string{optionType: labelGateway}
	case req.MAC != "":
		in.Options = map[string]string{labelMAC: req.MAC}
	}
	var out addressAnswer
	if err := m.take(ctx, "RequestAddress", in, &out); err != nil {
		return netip.Prefix{}, err
	}
	p, err := out.read(req)
	return p, m.lied("RequestAddress", err)
}

func (a addressAnswer) read(req AddressRequest) (netip.Prefix, error) {
	if a.Address == "" {
		return netip.Prefix{}, errors.New("no address returned")
	}
	p, err := readAddress(a.Address)
	switch {
	case err != nil:
		return p, err
	case !req.Subnet.Contains(p.Addr()) || p.Bits() < req.Subnet.Bits():
		return p, fmt.Errorf("the address %s is not in the pool %s", p, req.Subnet)
	case req.Want.IsValid() && p.Addr() != req.Want:
		return p, fmt.Errorf("the address %s is not the one that was asked for, %s", p, req.Want)
	}
	return p, nil
}

// ReleaseAddress gives an address back.
func (m *IPAM) ReleaseAddress(ctx context.Context, pool string, a netip.Addr) error {
	return m.give(ctx, "ReleaseAddress", struct{ PoolID, Address string }{pool, a.String()})
}

func (m *IPAM) lied(method string, err error) error {
	if err == nil {
		return nil
	}
	return errs.As(errs.Unavailable, fmt.Errorf("plugin %s: IpamDriver.%s: %w", m.Name(), method, err))
}
