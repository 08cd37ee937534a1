package main

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"

	"github.com/docker/go-plugins-helpers/network"
	"golang.org/x/sys/unix"

	"corten.dev/corten/internal/linux/netlink"
)

// driver is the network driver.
type driver struct{ *state }

func do(fill func(b *netlink.Batch)) error {
	c, err := netlink.Dial(unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer c.Close()
	var b netlink.Batch
	fill(&b)
	return c.Do(&b)
}

func del(name string) error {
	err := do(func(b *netlink.Batch) { b.DelLink(name) })
	if errors.Is(err, unix.ENODEV) {
		return nil
	}
	return err
}

func index(name string) (int, error) {
	c, err := netlink.Dial(unix.NETLINK_ROUTE)
	if err != nil {
		return 0, err
	}
	defer c.Close()
	link, err := c.LinkByName(name)
	return link.Index, err
}

func (d *driver) GetCapabilities() (*network.CapabilitiesResponse, error) {
	return &network.CapabilitiesResponse{Scope: d.scope, ConnectivityScope: "local"}, nil
}

func (d *driver) CreateNetwork(r *network.CreateNetworkRequest) error {
	options, _ := r.Options["com.docker.network.generic"].(map[string]any)
	nw := &netState{Bridge: "pb-" + r.NetworkID[:10], Options: options}
	if options["refuse"] != nil {
		return errors.New("this network is not to my taste")
	}
	err := do(func(b *netlink.Batch) { b.AddBridge(nw.Bridge, "", net.HardwareAddr{0x02, 0xbb, 1, 2, 3, 4}, 1500) })
	if err != nil {
		return err
	}
	at, err := index(nw.Bridge)
	if err != nil {
		return err
	}
	var prefixes []netip.Prefix
	for _, data := range append(r.IPv4Data, r.IPv6Data...) {
		if p, err := netip.ParsePrefix(data.Gateway); err == nil {
			prefixes = append(prefixes, p)
			if p.Addr().Is4() {
				nw.Gateways = append(nw.Gateways, p)
			}
		}
	}
	err = do(func(b *netlink.Batch) {
		b.SetUp(at)
		for _, p := range prefixes {
			b.AddAddr(at, p)
		}
	})
	if err != nil {
		return errors.Join(err, del(nw.Bridge))
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.Networks[r.NetworkID] = nw
	return d.save()
}

func (d *driver) DeleteNetwork(r *network.DeleteNetworkRequest) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	nw := d.Networks[r.NetworkID]
	if nw == nil {
		return fmt.Errorf("no network %s", r.NetworkID)
	}
	if err := del(nw.Bridge); err != nil {
		return err
	}
	delete(d.Networks, r.NetworkID)
	return d.save()
}

func (d *driver) CreateEndpoint(r *network.CreateEndpointRequest) (*network.CreateEndpointResponse, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	nw := d.Networks[r.NetworkID]
	if nw == nil {
		return nil, fmt.Errorf("no network %s", r.NetworkID)
	}
	ep := &endState{Network: r.NetworkID, Host: "ph-" + r.EndpointID[:10], Peer: "pp-" + r.EndpointID[:10]}
	for _, gw := range nw.Gateways {
		if p, err := netip.ParsePrefix(r.Interface.Address); err == nil && gw.Contains(p.Addr()) {
			ep.Gateway = gw.Addr().String()
		}
	}
	if nw.Options["noif"] == nil {
		bridge, err := index(nw.Bridge)
		if err != nil {
			return nil, err
		}
		if err := do(func(b *netlink.Batch) {
			b.AddVeth(netlink.Veth{Name: ep.Host, PeerName: ep.Peer, Bridge: bridge, MTU: 1400})
		}); err != nil {
			return nil, err
		}
	}
	d.Endpoints[r.EndpointID] = ep
	out := &network.CreateEndpointResponse{}
	if nw.Options["mac"] == "own" && r.Interface.MacAddress == "" {
		out.Interface = &network.EndpointInterface{MacAddress: "02:aa:" + strings.Join([]string{r.EndpointID[:2], r.EndpointID[2:4], r.EndpointID[4:6], r.EndpointID[6:8]}, ":")}
	}
	return out, d.save()
}

func (d *driver) DeleteEndpoint(r *network.DeleteEndpointRequest) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	ep := d.Endpoints[r.EndpointID]
	if ep == nil {
		return fmt.Errorf("no endpoint %s", r.EndpointID)
	}
	if err := del(ep.Host); err != nil {
		return err
	}
	delete(d.Endpoints, r.EndpointID)
	return d.save()
}

func (d *driver) EndpointInfo(*network.InfoRequest) (*network.InfoResponse, error) {
	return &network.InfoResponse{Value: map[string]string{}}, nil
}

func (d *driver) Join(r *network.JoinRequest) (*network.JoinResponse, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	nw, ep := d.Networks[r.NetworkID], d.Endpoints[r.EndpointID]
	if nw == nil || ep == nil {
		return nil, fmt.Errorf("no endpoint %s", r.EndpointID)
	}
	var at unix.Statfs_t
	if err := unix.Statfs(r.SandboxKey, &at); nw.Options["key"] != nil && (err != nil || at.Type != unix.NSFS_MAGIC) {
		return nil, fmt.Errorf("the sandbox key %q is no namespace (%w)", r.SandboxKey, err)
	}
	ep.Joined = true
	out := &network.JoinResponse{InterfaceName: network.InterfaceName{SrcName: ep.Peer, DstPrefix: "eth"}}
	if nw.Options["noif"] != nil {
		out.InterfaceName = network.InterfaceName{}
	}
	if prefix, ok := nw.Options["prefix"].(string); ok {
		out.InterfaceName.DstPrefix = prefix
	}
	switch nw.Options["gateway"] {
	case "off":
		out.DisableGatewayService = true
	case "none":
	default:
		out.Gateway = ep.Gateway
	}
	if list, ok := nw.Options["routes"].(string); ok {
		for _, route := range strings.Split(list, ",") {
			dst, via, hop := strings.Cut(route, "@")
			kind := 1
			if hop {
				kind = 0
			}
			out.StaticRoutes = append(out.StaticRoutes, &network.StaticRoute{Destination: dst, RouteType: kind, NextHop: via})
		}
	}
	return out, d.save()
}

func (d *driver) Leave(r *network.LeaveRequest) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	ep := d.Endpoints[r.EndpointID]
	if ep == nil {
		return fmt.Errorf("no endpoint %s", r.EndpointID)
	}
	ep.Joined = false
	return d.save()
}

func (d *driver) open(id string, open bool) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	ep := d.Endpoints[id]
	if ep == nil {
		return fmt.Errorf("no endpoint %s", id)
	}
	ep.Open = open
	return d.save()
}

func (d *driver) ProgramExternalConnectivity(r *network.ProgramExternalConnectivityRequest) error {
	return d.open(r.EndpointID, true)
}

func (d *driver) RevokeExternalConnectivity(r *network.RevokeExternalConnectivityRequest) error {
	return d.open(r.EndpointID, false)
}

// What only a swarm calls.

func (d *driver) AllocateNetwork(*network.AllocateNetworkRequest) (*network.AllocateNetworkResponse, error) {
	return nil, errors.New("there is no swarm")
}
func (d *driver) FreeNetwork(*network.FreeNetworkRequest) error {
	return errors.New("there is no swarm")
}
func (d *driver) DiscoverNew(*network.DiscoveryNotification) error {
	return errors.New("there is no swarm")
}
func (d *driver) DiscoverDelete(*network.DiscoveryNotification) error {
	return errors.New("there is no swarm")
}
