package network

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"time"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/linux/netlink"
	"golang.org/x/sys/unix"
)

// The options of a bridge network, as Docker names them.
const (
	optName   = "com.docker.network.bridge.name"
	optICC    = "com.docker.network.bridge.enable_icc"
	optMasq   = "com.docker.network.bridge.enable_ip_masquerade"
	optHostIP = "com.docker.network.bridge.host_binding_ipv4"
	optMTU    = "com.docker.network.driver.mtu"
	optIfName = "com.docker.network.endpoint.ifname" // of an endpoint, not of the network
	optDflt   = "com.docker.network.bridge.default_bridge"
)

// goodLinkName says whether the kernel takes s as the name of an interface.
func goodLinkName(s string) bool {
	return s != "" && len(s) < unix.IFNAMSIZ && !strings.ContainsAny(s, "/: \t\n") && s != "." && s != ".." && s != "lo" && s != "all" && s != "default"
}

// live makes the live side of a record; an error names the option that makes no sense.
func live(rec Network) (*network, error) {
	nw := &network{rec: rec, icc: true, masq: true, eps: map[string]*Endpoint{}}
	if rec.Driver != nameBridge {
		return nw, nil
	}
	nw.br = "br-" + rec.ID[:12]
	for key, val := range rec.Options {
		var err error
		switch key {
		case optName:
			if !goodLinkName(val) {
				err = errors.New("not a name of an interface")
			}
			nw.br = val
		case optICC:
			nw.icc, err = strconv.ParseBool(val)
		case optMasq:
			nw.masq, err = strconv.ParseBool(val)
		case optHostIP:
			nw.hostIP, err = netip.ParseAddr(val)
		case optMTU:
			if nw.mtu, err = strconv.Atoi(val); err == nil && (nw.mtu < 68 || nw.mtu > 65535) {
				return nil, errs.New(errs.Invalid, "invalid MTU number: %d", nw.mtu)
			}
		case optDflt:
			_, err = strconv.ParseBool(val)
		default:
			if strings.HasPrefix(key, "com.docker.network.") {
				err = errors.New("not supported by driver bridge")
			}
		}
		if err != nil {
			return nil, errs.New(errs.Invalid, "failed to parse %s value: %s (%w)", key, val, err)
		}
	}
	for _, p := range rec.IPAM.Pools {
		s := newSubnet(p)
		if p.Subnet.Addr().Is4() {
			nw.v4, nw.gw4 = s, p.Gateway
		} else {
			nw.v6, nw.gw6 = s, p.Gateway
		}
	}
	return nw, nil
}

// load brings the stored networks and the predefined ones to life.
func (l *Local) load() error {
	recs, err := l.stored()
	if err != nil {
		return err
	}
	have := map[string]Network{}
	for _, rec := range recs {
		if rec.Predefined {
			have[rec.Name] = rec
			continue
		}
		nw, err := live(rec)
		if err == nil {
			err = l.ensureBridge(nw)
		}
		if err != nil {
			l.log.Error("network is not usable", "network", rec.Name, "err", err)
			if nw == nil {
				continue
			}
		}
		l.put(nw)
	}
	for _, name := range []string{nameHost, nameNone} {
		rec, ok := have[name]
		if !ok {
			driver := name
			if name == nameNone {
				driver = "null"
			}
			rec = Network{ID: newID(), Name: name, Driver: driver, Created: time.Now().UTC(), EnableIPv4: true, Predefined: true, IPAM: IPAM{Driver: "default"}}
			if err := l.save(rec); err != nil {
				return err
			}
		}
		l.put(&network{rec: rec, eps: map[string]*Endpoint{}})
	}
	if l.opt.Bridge == nameNone {
		return nil
	}
	return l.loadDefault(have[nameBridge])
}

// loadDefault makes the default bridge of the engine's options; its record keeps only what must stay the same: id and subnet.
func (l *Local) loadDefault(old Network) error {
	rec := Network{ID: old.ID, Name: nameBridge, Driver: nameBridge, Created: old.Created, EnableIPv4: true, EnableIPv6: l.opt.IPv6, Predefined: true, IPAM: IPAM{Driver: "default"}}
	if rec.ID == "" {
		rec.ID, rec.Created = newID(), time.Now().UTC()
	}
	mtu := l.opt.MTU
	if mtu == 0 {
		mtu = l.hostMTU()
	}
	rec.Options = map[string]string{optDflt: "true", optName: l.opt.Bridge, optICC: strconv.FormatBool(!l.opt.NoICC), optMasq: strconv.FormatBool(!l.opt.NoMasquerade),
		optHostIP: "0.0.0.0", optMTU: strconv.Itoa(mtu)}
	if l.opt.HostIP.IsValid() {
		rec.Options[optHostIP] = l.opt.HostIP.String()
	}
	pool4, err := l.defaultPool4(old)
	if err != nil {
		return err
	}
	rec.IPAM.Pools = []Pool{pool4}
	if l.opt.IPv6 {
		p := l.opt.BIP6
		if !p.IsValid() {
			if p = l.opt.FixedCIDRv6; !p.IsValid() {
				p = uniqueLocal(rec.ID)
			}
			p = netip.PrefixFrom(p.Masked().Addr().Next(), p.Bits())
		}
		rec.IPAM.Pools = append(rec.IPAM.Pools, Pool{Subnet: p.Masked(), Gateway: p.Addr(), Range: l.opt.FixedCIDRv6})
	}
	nw, err := live(rec)
	if err != nil {
		return err
	}
	nw.isDefault = true
	if l.opt.DefaultGateway.IsValid() {
		nw.gw4 = l.opt.DefaultGateway
		nw.v4.claim(nw.gw4)
	}
	if l.opt.DefaultGateway6.IsValid() && nw.v6 != nil {
		nw.gw6 = l.opt.DefaultGateway6
		nw.v6.claim(nw.gw6)
	}
	if err := l.ensureBridge(nw); err != nil {
		return fmt.Errorf("default bridge: %w", err)
	}
	l.put(nw)
	return l.save(rec)
}

func (l *Local) defaultPool4(old Network) (Pool, error) {
	if p := l.opt.BIP; p.IsValid() {
		return Pool{Subnet: p.Masked(), Gateway: p.Addr(), Range: l.opt.FixedCIDR}, nil
	}
	taken, own, err := l.takenSubnets(l.opt.Bridge)
	if err != nil {
		return Pool{}, err
	}
	if own.IsValid() { // the bridge is there: its address rules, as with Docker
		return Pool{Subnet: own.Masked(), Gateway: own.Addr(), Range: l.opt.FixedCIDR}, nil
	}
	if len(old.IPAM.Pools) > 0 && !overlapsAny(old.IPAM.Pools[0].Subnet, taken) {
		p := old.IPAM.Pools[0]
		p.Range = l.opt.FixedCIDR
		return p, nil
	}
	subnet, err := freeSubnet(l.opt.Pools, taken)
	if err != nil {
		return Pool{}, err
	}
	return Pool{Subnet: subnet, Gateway: subnet.Addr().Next(), Range: l.opt.FixedCIDR}, nil
}

// put registers a network. Only New and Create call it, the latter with mu held.
func (l *Local) put(nw *network) {
	l.nets[nw.rec.ID] = nw
	l.names[nw.rec.Name] = nw.rec.ID
}

// takenSubnets are the subnets of the host's routes and addresses and of all our networks. The address of the interface named own is told apart.
func (l *Local) takenSubnets(own string) (taken []netip.Prefix, ownAddr netip.Prefix, err error) {
	c, err := l.rt.Take()
	if err != nil {
		return nil, ownAddr, err
	}
	defer l.rt.Give(c)
	ownIndex := -1
	if link, err := c.LinkByName(own); err == nil {
		ownIndex = link.Index
	}
	addrs, err := c.Addrs()
	if err != nil {
		return nil, ownAddr, err
	}
	for _, a := range addrs {
		if a.Index == ownIndex && a.Prefix.Addr().Is4() {
			ownAddr = a.Prefix
		} else if a.Index != ownIndex && !a.Prefix.Addr().IsLinkLocalUnicast() {
			taken = append(taken, a.Prefix.Masked())
		}
	}
	routes, err := c.Routes()
	if err != nil {
		return nil, ownAddr, err
	}
	for _, r := range routes {
		if r.Index != ownIndex && r.Dst.IsValid() && r.Dst.Bits() > 0 && !r.Dst.Addr().IsLinkLocalUnicast() {
			taken = append(taken, r.Dst)
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, nw := range l.nets {
		for _, p := range nw.rec.IPAM.Pools {
			taken = append(taken, p.Subnet)
		}
	}
	return taken, ownAddr, nil
}

// hostMTU is the MTU of the interface of the host's default route: frames of containers then pass it whole.
func (l *Local) hostMTU() int {
	c, err := l.rt.Take()
	if err != nil {
		return 1500
	}
	defer l.rt.Give(c)
	routes, err := c.Routes()
	if err != nil {
		return 1500
	}
	for _, r := range routes {
		if r.Dst.IsValid() && r.Dst.Bits() > 0 || !r.Via.Is4() {
			continue
		}
		links, err := c.Links("")
		if err != nil {
			return 1500
		}
		for _, link := range links {
			if link.Index == r.Index && link.MTU >= 68 {
				return link.MTU
			}
		}
	}
	return 1500
}

// ensureBridge makes the bridge of a network, with its addresses, where it is not there yet.
func (l *Local) ensureBridge(nw *network) error {
	c, err := l.rt.Take()
	if err != nil {
		return err
	}
	defer l.rt.Give(c)
	if nw.mtu == 0 {
		nw.mtu = 1500
	}
	link, err := c.LinkByName(nw.br)
	if errors.Is(err, unix.ENODEV) && len(nw.rec.IPAM.Pools) > 0 {
		var b netlink.Batch
		b.AddBridge(nw.br, l.bridgeAlias(), bridgeMAC(nw), nw.mtu)
		if err := c.Do(&b); err != nil && !errors.Is(err, unix.EEXIST) {
			return err
		}
		link, err = c.LinkByName(nw.br)
	}
	if err != nil {
		return err
	}
	if link.Kind != "bridge" {
		return errs.New(errs.Conflict, "interface %s is there and not a bridge", nw.br)
	}
	nw.index, nw.foreign = link.Index, link.Alias != l.bridgeAlias()
	var b netlink.Batch
	if !link.Up {
		b.SetUp(link.Index)
	}
	for _, p := range nw.rec.IPAM.Pools {
		b.AddAddr(link.Index, netip.PrefixFrom(p.Gateway, p.Subnet.Bits()))
	}
	if err := c.Do(&b); err != nil && !onlyErrno(err, unix.EEXIST) {
		return err
	}
	if nw.v6 == nil {
		return nil
	}
	return l.hostSysctl("net/ipv6/conf/"+nw.br+"/accept_ra", "0")
}

// bridgeAlias marks the bridges that we made, and may therefore remove.
func (l *Local) bridgeAlias() string { return "corten " + l.opt.Table }

func bridgeMAC(nw *network) net.HardwareAddr {
	for _, p := range nw.rec.IPAM.Pools {
		if p.Gateway.Is4() {
			return macOf(p.Gateway)
		}
	}
	raw := nw.gw6.As16()
	return net.HardwareAddr{0x02, 0x42, raw[12], raw[13], raw[14], raw[15]}
}

// onlyErrno says whether every joined error is the one errno.
func onlyErrno(err error, errno error) bool {
	if many, ok := err.(interface{ Unwrap() []error }); ok {
		for _, e := range many.Unwrap() {
			if !onlyErrno(e, errno) {
				return false
			}
		}
		return true
	}
	return errors.Is(err, errno)
}

// switchForwarding turns on what the host needs to pass packets on. The settings of bridges are made here too, because they vanish with them.
func (l *Local) switchForwarding() error {
	for _, nw := range l.nets {
		if nw.br == "" || nw.index == 0 {
			continue
		}
		if err := l.bridgeSysctls(nw); err != nil {
			return err
		}
	}
	return nil
}

// bridgeSysctls lets connections to 127.0.0.1 on the host be sent on into the bridge (the rules keep others away from it), and packets be forwarded.
func (l *Local) bridgeSysctls(nw *network) error {
	if nw.v4 != nil && !l.opt.NoRules {
		if err := l.hostSysctl("net/ipv4/conf/"+nw.br+"/route_localnet", "1"); err != nil {
			return err
		}
	}
	if l.opt.NoForward || nw.rec.Internal {
		return nil
	}
	if nw.v4 != nil {
		if err := l.hostSysctl("net/ipv4/ip_forward", "1"); err != nil {
			return err
		}
	}
	if nw.v6 != nil {
		return l.hostSysctl("net/ipv6/conf/all/forwarding", "1")
	}
	return nil
}

// hostSysctl sets a setting of the host unless it is so already: on some hosts they are right, and read-only.
func (l *Local) hostSysctl(path, value string) error {
	if raw, err := os.ReadFile("/proc/sys/" + path); err == nil && strings.TrimSpace(string(raw)) == value {
		return nil
	}
	return sysctl(path, value)
}

// uniqueLocal is a subnet of the unique local range, the same for the same id.
func uniqueLocal(id string) netip.Prefix {
	raw := [16]byte{0xfd}
	for i := 1; i < 8; i++ {
		v, _ := strconv.ParseUint(id[2*i:2*i+2], 16, 8)
		raw[i] = byte(v)
	}
	return netip.PrefixFrom(netip.AddrFrom16(raw), 64)
}
