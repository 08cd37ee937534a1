package server

import (
	"cmp"
	"net/netip"
	"slices"
	"strconv"

	wire "github.com/moby/moby/api/types/container"
	wirenet "github.com/moby/moby/api/types/network"

	"corten.dev/corten/internal/network"
	"corten.dev/corten/internal/server/parse"
)

// toPorts converts PortBindings, sorted and in runs, so that equal requests make equal records.
func toPorts(m wirenet.PortMap, version int) ([]network.Port, []string, error) {
	var out []network.Port
	var warnings []string
	for p, list := range m {
		if err := checkPort(p); err != nil {
			return nil, nil, err
		}
		if len(list) == 0 {
			list = []wirenet.PortBinding{{}}
			if version >= 52 {
				warnings = append(warnings, "Following port bindings have no host port: "+p.String()+". A random one is chosen; this will change in a future API version.")
			}
		}
		for _, b := range list {
			start, end, err := parse.HostPort(b.HostPort)
			if err != nil {
				return nil, nil, err
			}
			out = append(out, network.Port{Proto: string(p.Proto()), ContainerPort: p.Num(), HostIP: b.HostIP, HostPort: start, HostPortEnd: end})
		}
	}
	slices.Sort(warnings)
	return network.Runs(out), warnings, nil
}

// bindings is the way back.
func bindings(list []network.Port) wirenet.PortMap {
	out := wirenet.PortMap{}
	for p := range network.Each(list) {
		key, ok := wirenet.PortFrom(p.ContainerPort, wirenet.IPProtocol(p.Proto))
		if !ok {
			continue
		}
		text := ""
		if p.HostPort != 0 {
			text = strconv.Itoa(int(p.HostPort))
			if p.HostPortEnd > p.HostPort {
				text += "-" + strconv.Itoa(int(p.HostPortEnd))
			}
		}
		out[key] = append(out[key], wirenet.PortBinding{HostIP: p.HostIP, HostPort: text})
	}
	return out
}

// publishedPorts are the ports of a running container as inspect shows them: those that are only exposed have no binding.
func publishedPorts(sb *network.Sandbox, exposed map[string]struct{}) wirenet.PortMap {
	out := wirenet.PortMap{}
	if sb == nil {
		return out
	}
	for p := range ports(exposed) {
		out[p] = nil
	}
	for p, list := range bindings(hostPorts(sb.Ports)) {
		out[p] = list
	}
	return out
}

// hostPorts names the address of ports that listen everywhere.
func hostPorts(list []network.Port) []network.Port {
	out := slices.Collect(network.Each(list))
	for i := range out {
		if !out[i].HostIP.IsValid() {
			out[i].HostIP = netip.IPv4Unspecified()
		}
		out[i].HostPortEnd = 0
	}
	slices.SortStableFunc(out, network.ComparePorts)
	return out
}

// portSummaries are the same for ps.
func portSummaries(sb *network.Sandbox, exposed map[string]struct{}) []wire.PortSummary {
	out := []wire.PortSummary{}
	if sb == nil {
		return out
	}
	public := map[wirenet.Port]bool{}
	for _, p := range hostPorts(sb.Ports) {
		if key, ok := wirenet.PortFrom(p.ContainerPort, wirenet.IPProtocol(p.Proto)); ok {
			public[key] = true
		}
		out = append(out, wire.PortSummary{IP: p.HostIP, PrivatePort: p.ContainerPort, PublicPort: p.HostPort, Type: p.Proto})
	}
	for p := range ports(exposed) {
		if !public[p] {
			out = append(out, wire.PortSummary{PrivatePort: p.Num(), Type: string(p.Proto())})
		}
	}
	slices.SortStableFunc(out, func(a, b wire.PortSummary) int {
		return cmp.Or(cmp.Compare(a.PrivatePort, b.PrivatePort), cmp.Compare(a.Type, b.Type))
	})
	return out
}
