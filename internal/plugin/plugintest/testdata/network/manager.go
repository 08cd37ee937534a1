package main

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/docker/go-plugins-helpers/ipam"

	"corten.dev/corten/internal/linux/netlink"
)

// manager is the address manager. The pools that it chooses itself are 10.213.N.0/24 and fd13:N::/64.
type manager struct{ *state }

func (m *manager) GetCapabilities() (*ipam.CapabilitiesResponse, error) {
	return &ipam.CapabilitiesResponse{RequiresMACAddress: m.mac}, nil
}

func (m *manager) GetDefaultAddressSpaces() (*ipam.AddressSpacesResponse, error) {
	return &ipam.AddressSpacesResponse{LocalDefaultAddressSpace: "here", GlobalDefaultAddressSpace: "everywhere"}, nil
}

func (m *manager) RequestPool(r *ipam.RequestPoolRequest) (*ipam.RequestPoolResponse, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if why := r.Options["refuse"]; why != "" {
		return nil, errors.New(why)
	}
	pool := r.Pool
	for n := 1; pool == ""; n++ {
		pool = fmt.Sprintf("10.213.%d.0/24", n)
		if r.V6 {
			pool = fmt.Sprintf("fd13:%x::/64", n)
		}
		if m.Pools[r.AddressSpace+"/"+pool] != nil {
			pool = ""
		}
	}
	id := r.AddressSpace + "/" + pool
	if m.Pools[id] != nil {
		return nil, fmt.Errorf("the pool %s is taken", pool)
	}
	m.Pools[id] = &poolState{Subnet: pool, Used: map[string]bool{}}
	data := map[string]string{}
	if gw := r.Options["gateway"]; gw != "" {
		data["com.docker.network.gateway"] = gw
	}
	return &ipam.RequestPoolResponse{PoolID: id, Pool: pool, Data: data}, m.save()
}

func (m *manager) ReleasePool(r *ipam.ReleasePoolRequest) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.Pools[r.PoolID] == nil {
		return fmt.Errorf("no pool %s", r.PoolID)
	}
	delete(m.Pools, r.PoolID)
	return m.save()
}

func (m *manager) RequestAddress(r *ipam.RequestAddressRequest) (*ipam.RequestAddressResponse, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	pool := m.Pools[r.PoolID]
	if pool == nil {
		return nil, fmt.Errorf("no pool %s", r.PoolID)
	}
	if m.mac && r.Options["RequestAddressType"] == "" && r.Address == "" && r.Options["com.docker.network.endpoint.macaddress"] == "" {
		return nil, errors.New("an address needs a hardware address")
	}
	subnet := netip.MustParsePrefix(pool.Subnet)
	var a netip.Addr
	if r.Address != "" {
		a = netip.MustParseAddr(r.Address)
	} else {
		for a = subnet.Masked().Addr().Next(); pool.Used[a.String()]; a = a.Next() {
		}
	}
	if !subnet.Contains(a) || subnet.Addr().Is4() && a == netlink.LastAddr(subnet) || pool.Used[a.String()] {
		return nil, fmt.Errorf("the address %s is taken", a)
	}
	pool.Used[a.String()] = true
	return &ipam.RequestAddressResponse{Address: netip.PrefixFrom(a, subnet.Bits()).String()}, m.save()
}

func (m *manager) ReleaseAddress(r *ipam.ReleaseAddressRequest) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	pool := m.Pools[r.PoolID]
	if pool == nil || !pool.Used[r.Address] {
		return fmt.Errorf("no address %s", r.Address)
	}
	delete(pool.Used, r.Address)
	return m.save()
}
