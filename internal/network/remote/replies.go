package remote

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"

	"golang.org/x/sys/unix"
)

// maxRoutes is how many static routes an endpoint may have.
const maxRoutes = 1024

// wireInterface is an endpoint's addresses as they travel.
type wireInterface struct{ Address, AddressIPv6, MacAddress string }

func wireOf(i Interface) (w wireInterface) {
	if i.IPv4.IsValid() {
		w.Address = i.IPv4.String()
	}
	if i.IPv6.IsValid() {
		w.AddressIPv6 = i.IPv6.String()
	}
	w.MacAddress = i.MAC
	return w
}

// fill adds what the driver chose. What it was given it must not choose, not even the same, as with Docker.
func (w wireInterface) fill(have Interface) (Interface, error) {
	for _, f := range []struct {
		text string
		at   *netip.Prefix
		is4  bool
	}{{w.Address, &have.IPv4, true}, {w.AddressIPv6, &have.IPv6, false}} {
		if f.text == "" {
			continue
		}
		if f.at.IsValid() {
			return have, fmt.Errorf("driver modified interface address: it has %s, and cannot be given %.100q", *f.at, f.text)
		}
		p, err := readAddress(f.text)
		if err != nil {
			return have, err
		}
		if p.Addr().Is4() != f.is4 {
			return have, fmt.Errorf("the address %s is of the other family", p)
		}
		*f.at = p
	}
	if w.MacAddress == "" {
		return have, nil
	}
	if have.MAC != "" {
		return have, fmt.Errorf("driver modified interface MAC address: it has %s, and cannot be given %.100q", have.MAC, w.MacAddress)
	}
	mac, err := readMAC(w.MacAddress)
	have.MAC = mac
	return have, err
}

// readAddress reads an interface's address with its prefix length.
func readAddress(text string) (netip.Prefix, error) {
	p, err := netip.ParsePrefix(text)
	if err != nil {
		return p, fmt.Errorf("%.100q is no address with a prefix length", text)
	}
	a := p.Addr()
	if a.Is4In6() || a.IsMulticast() || a.IsUnspecified() || a.IsLoopback() || a == netip.AddrFrom4([4]byte{255, 255, 255, 255}) {
		return netip.Prefix{}, fmt.Errorf("%s is no address of an interface", p)
	}
	return p, nil
}

func readMAC(text string) (string, error) {
	mac, err := net.ParseMAC(text)
	if err != nil || len(mac) != 6 || mac[0]&1 != 0 || mac.String() == "00:00:00:00:00:00" {
		return "", fmt.Errorf("%.100q is no hardware address of an interface", text)
	}
	return mac.String(), nil
}

// Joined is how an endpoint is put into a container.
type Joined struct {
	// Src is the interface on the host that becomes the container's; empty: the driver sees to all of it.
	Src string `json:",omitempty"`
	// Prefix is what its name begins with in the container; Name is its whole name there, if the driver says so.
	Prefix, Name       string `json:",omitempty"`
	Gateway4, Gateway6 netip.Addr
	Routes             []Route `json:",omitempty"`
	// NoGatewayService: the container needs no way out but what the driver gives.
	NoGatewayService bool `json:",omitempty"`
}

// Route is a static route: to a gateway, or (Via is zero) to who is at the interface itself.
type Route struct {
	Dst netip.Prefix
	Via netip.Addr
}

// HasDefault tells whether the driver gave a way to everywhere over IPv4, or (is4 false) IPv6.
func (j Joined) HasDefault(is4 bool) bool {
	if is4 && j.Gateway4.IsValid() || !is4 && j.Gateway6.IsValid() {
		return true
	}
	for _, r := range j.Routes {
		if r.Dst.Bits() == 0 && r.Dst.Addr().Is4() == is4 {
			return true
		}
	}
	return false
}

type joinAnswer struct {
	InterfaceName         *struct{ SrcName, DstPrefix, DstName string }
	Gateway, GatewayIPv6  string
	StaticRoutes          []staticRoute
	DisableGatewayService bool
}

type staticRoute struct {
	Destination string
	RouteType   int // 0: by way of NextHop, 1: connected
	NextHop     string
}

func (a joinAnswer) read() (j Joined, err error) {
	j.NoGatewayService = a.DisableGatewayService
	if n := a.InterfaceName; n != nil && n.SrcName != "" {
		j.Src, j.Prefix, j.Name = n.SrcName, n.DstPrefix, n.DstName
		if !goodName(j.Src) {
			return Joined{}, fmt.Errorf("InterfaceName.SrcName: %.100q is no name of an interface", j.Src)
		}
		if j.Prefix != "" && !goodName(j.Prefix+"99") {
			return Joined{}, fmt.Errorf("InterfaceName.DstPrefix: %.100q is not the beginning of a name of an interface", j.Prefix)
		}
		if j.Name != "" && !goodName(j.Name) {
			return Joined{}, fmt.Errorf("InterfaceName.DstName: %.100q is no name of an interface", j.Name)
		}
	}
	if j.Gateway4, err = readGateway("Gateway", a.Gateway, true); err != nil {
		return Joined{}, err
	}
	if j.Gateway6, err = readGateway("GatewayIPv6", a.GatewayIPv6, false); err != nil {
		return Joined{}, err
	}
	if len(a.StaticRoutes) > maxRoutes {
		return Joined{}, fmt.Errorf("StaticRoutes: more than %d", maxRoutes)
	}
	for i, r := range a.StaticRoutes {
		route, err := r.read()
		if err != nil {
			return Joined{}, fmt.Errorf("StaticRoutes[%d]: %w", i, err)
		}
		j.Routes = append(j.Routes, route)
	}
	return j, nil
}

func (r staticRoute) read() (Route, error) {
	dst, err := netip.ParsePrefix(r.Destination)
	if err != nil || dst.Addr().Is4In6() {
		return Route{}, fmt.Errorf("the destination %.100q is no subnet", r.Destination)
	}
	out := Route{Dst: dst.Masked()}
	switch r.RouteType {
	case 0:
		if out.Via, err = netip.ParseAddr(r.NextHop); err != nil || out.Via.Is4() != dst.Addr().Is4() || out.Via.Is4In6() || out.Via.Zone() != "" {
			return Route{}, fmt.Errorf("the next hop %.100q is no address of the family of %s", r.NextHop, dst)
		}
	case 1:
		if r.NextHop != "" {
			return Route{}, errors.New("a connected route (type 1) has no next hop")
		}
	default:
		return Route{}, fmt.Errorf("the type %d is neither 0 (next hop) nor 1 (connected)", r.RouteType)
	}
	return out, nil
}

// readGateway reads the address of a gateway. Some drivers write it with a prefix length.
func readGateway(field, text string, is4 bool) (netip.Addr, error) {
	if text == "" {
		return netip.Addr{}, nil
	}
	bare, _, _ := strings.Cut(text, "/")
	a, err := netip.ParseAddr(bare)
	if err != nil || a.Is4() != is4 || a.Is4In6() || a.IsUnspecified() || a.IsMulticast() || a.IsLoopback() || a.Zone() != "" {
		return netip.Addr{}, fmt.Errorf("%s: %.100q is no address of a gateway", field, text)
	}
	return a, nil
}

// goodName says whether the kernel takes s as the name of an interface, and nobody takes it for a path or a setting.
func goodName(s string) bool {
	if s == "" || len(s) >= unix.IFNAMSIZ || s == "." || s == ".." || s == "lo" || s == "all" || s == "default" {
		return false
	}
	return !strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r >= 0x7f || strings.ContainsRune(`/:%\`, r) })
}
