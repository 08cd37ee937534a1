package network

import (
	"cmp"
	"iter"
	"net/netip"
	"slices"
)

// A published range that keeps its numbers (-p 20000-29999:20000-29999/udp) is one Port, one binding and one element of a map of the table, however many ports it has.
const (
	// leastRun is how many neighbours make a run: fewer are elements of hash maps, which are cheaper to change.
	leastRun = 4
	// mostHeld is how many host ports of a run are kept by sockets of ours while it is published; of a longer one the ports must be free, and that is all: the rules come before
	// any process of the host, and ten thousand sockets would keep those off at a price.
	mostHeld = 256
)

// Len is how many ports p is: from ContainerPort and HostPort on.
func (p Port) Len() int { return max(1, int(p.Count)) }

// more is how many there are beyond the first.
func (p Port) more() uint16 { return uint16(p.Len() - 1) }

// Each are the ports of a list, one by one.
func Each(list []Port) iter.Seq[Port] {
	return func(yield func(Port) bool) {
		for _, p := range list {
			for i := range p.Len() {
				one := p
				one.Count = 0
				one.ContainerPort += uint16(i)
				if p.HostPort != 0 && i > 0 {
					one.HostPort += uint16(i)
					one.HostPortEnd = 0
				}
				if !yield(one) {
					return
				}
			}
		}
	}
}

// Runs sorts ports, and makes one of neighbours that keep their numbers.
func Runs(list []Port) []Port {
	sorted := slices.Clone(list)
	slices.SortStableFunc(sorted, ComparePorts)
	type line struct {
		proto string
		ip    netip.Addr
	}
	var out []Port
	last := map[line]int{} // where in out the last run of a line is
	for _, p := range sorted {
		l := line{p.Proto, p.HostIP}
		at, ok := last[l]
		keeps := p.HostPort != 0 && p.HostPort == p.ContainerPort && p.HostPortEnd <= p.HostPort
		if ok && keeps && int(out[at].ContainerPort)+out[at].Len() == int(p.ContainerPort) {
			out[at].Count = uint16(out[at].Len() + p.Len())
			out[at].HostPortEnd = 0
			continue
		}
		out = append(out, p)
		if keeps {
			last[l] = len(out) - 1
		}
	}
	var all []Port
	for _, p := range out {
		if p.Len() >= leastRun {
			all = append(all, p)
			continue
		}
		all = slices.AppendSeq(all, Each([]Port{p}))
	}
	slices.SortStableFunc(all, ComparePorts)
	return all
}

// ComparePorts is the order of a list of ports.
func ComparePorts(a, b Port) int {
	return cmp.Or(cmp.Compare(a.ContainerPort, b.ContainerPort), cmp.Compare(a.Proto, b.Proto), a.HostIP.Compare(b.HostIP), cmp.Compare(a.HostPort, b.HostPort))
}

// inRuns leaves a run as it is only where the host's numbers are the container's: others are single ports.
func inRuns(list []Port) (all []Port) {
	for _, p := range list {
		if p.Count > 1 && p.HostPort != p.ContainerPort {
			all = slices.AppendSeq(all, Each([]Port{p}))
		} else {
			all = append(all, p)
		}
	}
	return all
}
