package parse

import (
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"

	"github.com/moby/moby/api/types/network"
)

// Ports is what -p and --expose describe.
type Ports struct {
	Exposed  network.PortSet
	Bindings network.PortMap
}

// Publish reads one -p value into p:
//
//	[address:][host-port[-end]:]container-port[-end][/tcp|udp|sctp]     address may be [::1]
//	target=80,published=8080,protocol=tcp
func (p *Ports) Publish(spec string) error {
	if strings.Contains(spec, "=") {
		short, err := longPort(spec)
		if err != nil {
			return err
		}
		spec = short
	}
	host, hostPort, ctrPort := splitPort(spec)
	ctrPort, proto, _ := strings.Cut(ctrPort, "/")
	if ctrPort == "" {
		return invalid("no port specified: %s<empty>", spec)
	}
	protocol, err := portProto(proto)
	if err != nil {
		return err
	}
	addr, err := portAddr(host)
	if err != nil {
		return err
	}
	start, end, err := portRange(ctrPort)
	if err != nil {
		return invalid("invalid containerPort: %s", ctrPort)
	}
	var hostStart, hostEnd uint16
	if hostPort != "" {
		if hostStart, hostEnd, err = portRange(hostPort); err != nil {
			return invalid("invalid hostPort: %s", hostPort)
		}
		if end-start != hostEnd-hostStart && end != start {
			return invalid("invalid ranges specified for container and host Ports: %s and %s", ctrPort, hostPort)
		}
	}
	p.init()
	for i := 0; i <= int(end-start); i++ {
		port, _ := network.PortFrom(start+uint16(i), protocol)
		b := network.PortBinding{HostIP: addr}
		switch {
		case hostPort != "" && start == end && hostStart != hostEnd:
			b.HostPort = fmt.Sprintf("%d-%d", hostStart, hostEnd)
		case hostPort != "":
			b.HostPort = strconv.Itoa(int(hostStart) + i)
		}
		p.Exposed[port] = struct{}{}
		p.Bindings[port] = append(p.Bindings[port], b)
	}
	return nil
}

// Expose reads one --expose value: port[-end][/proto].
func (p *Ports) Expose(spec string) error {
	if strings.Contains(spec, ":") {
		return invalid("invalid port format for --expose: %s", spec)
	}
	ports, proto, _ := strings.Cut(spec, "/")
	start, end, err := portRange(ports)
	if err != nil {
		return invalid("invalid range format for --expose: %s, error: %w", spec, err)
	}
	protocol, err := portProto(proto)
	if err != nil {
		return err
	}
	p.init()
	for n := int(start); n <= int(end); n++ {
		port, _ := network.PortFrom(uint16(n), protocol)
		p.Exposed[port] = struct{}{}
	}
	return nil
}

func (p *Ports) init() {
	if p.Exposed == nil {
		p.Exposed, p.Bindings = network.PortSet{}, network.PortMap{}
	}
}

// splitPort cuts address, host port and container port apart, from the right, so that an IPv6 address may be bare.
func splitPort(s string) (host, hostPort, ctrPort string) {
	i := strings.LastIndex(s, ":")
	if i < 0 {
		return "", "", s
	}
	ctrPort, s = s[i+1:], s[:i]
	i = strings.LastIndex(s, ":")
	if i < 0 {
		return "", s, ctrPort
	}
	return s[:i], s[i+1:], ctrPort
}

// portAddr reads the address in front of ports; in brackets it may be empty, as for Docker's client.
func portAddr(s string) (netip.Addr, error) {
	bare := s
	if strings.HasPrefix(s, "[") {
		host, _, err := net.SplitHostPort(s + ":")
		if err != nil {
			return netip.Addr{}, invalid("invalid IP address %s: %w", s, err)
		}
		bare = host
	}
	if bare == "" {
		return netip.Addr{}, nil
	}
	addr, err := netip.ParseAddr(bare)
	if err != nil || addr.Zone() != "" {
		return netip.Addr{}, invalid("invalid IP address: %s", bare)
	}
	return addr, nil
}

func portRange(s string) (start, end uint16, err error) {
	if s == "" {
		return 0, 0, invalid("empty string specified for ports")
	}
	a, b, ok := strings.Cut(s, "-")
	x, err := strconv.ParseUint(a, 10, 16)
	if err != nil {
		return 0, 0, err
	}
	y := x
	if ok {
		if y, err = strconv.ParseUint(b, 10, 16); err != nil {
			return 0, 0, err
		}
	}
	if y < x {
		return 0, 0, invalid("invalid range specified for port: %s", s)
	}
	return uint16(x), uint16(y), nil
}

// portProto reads a protocol; none is tcp.
func portProto(s string) (network.IPProtocol, error) {
	switch lower := strings.ToLower(s); lower {
	case "":
		return network.TCP, nil
	case "tcp", "udp", "sctp":
		return network.IPProtocol(lower), nil
	}
	return "", invalid("invalid proto: %s", strings.ToLower(s))
}

// longPort turns target=…,published=…,protocol=… into the short form.
func longPort(spec string) (string, error) {
	var target, published, proto string
	for _, f := range strings.Split(spec, ",") {
		key, val, ok := strings.Cut(f, "=")
		if !ok || val == "" {
			return "", invalid("invalid publish opts format (should be name=value but got '%s')", f)
		}
		switch key {
		case "target":
			target = val
		case "published":
			published = val
		case "protocol":
			proto = val
		case "mode":
			if val != "ingress" && val != "host" {
				return "", invalid("invalid publish mode: %s", val)
			}
		default:
			return "", invalid("invalid publish opts key: %s", key)
		}
	}
	short := target
	if published != "" {
		short = published + ":" + target
	}
	if proto != "" {
		short += "/" + proto
	}
	return short, nil
}
