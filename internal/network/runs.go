package network

import (
	"cmp"
	"iter"
	"net/netip"
	"slices"
)

// A published range (-p 20000-29999:20000-29999/udp) is one Port, one binding and one element of a map of the table, however many ports it has; also one whose numbers are others in the
// container (-p 8000-8999:9000-9999). For these nftables has no words (iptables does: NF_NAT_RANGE_PROTO_OFFSET needs a base port, which nft_nat leaves 0). But with a base of 0 the kernel sends a
// packet to first + port modulo the length of a window [first, last], and there nearly always is a window in which that is the port that is meant.
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

// window finds the shortest window in which the kernel's sum sends each host port of the run to its own in the container: first + port modulo (last - first + 1).
func (p Port) window() (first, last uint16, ok bool) {
	host, ctr, n := int(p.HostPort), int(p.ContainerPort), p.Len()
	for size := n; size <= 65535; size++ {
		rest := host % size
		if from := ctr - rest; rest+n <= size && from >= 1 && from+size-1 <= 65535 {
			return uint16(from), uint16(from + size - 1), true
		}
	}
	return 0, 0, false
}

// Runs sorts ports, and makes one of neighbours whose numbers go up together.
func Runs(list []Port) []Port {
	sorted := slices.Clone(list)
	slices.SortStableFunc(sorted, ComparePorts)
	type line struct {
		proto string
		ip    netip.Addr
		shift int
	}
	var out []Port
	last := map[line]int{} // where in out the last run of a line is
	for _, p := range sorted {
		l := line{p.Proto, p.HostIP, int(p.HostPort) - int(p.ContainerPort)}
		at, ok := last[l]
		keeps := p.HostPort != 0 && p.HostPortEnd <= p.HostPort
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

// inRuns leaves a run as it is only where one element can say it: others are single ports.
func inRuns(list []Port) (all []Port) {
	for _, p := range list {
		if _, _, ok := p.window(); p.Count > 1 && (p.HostPort == 0 || p.HostPort != p.ContainerPort && !ok) {
			all = slices.AppendSeq(all, Each([]Port{p}))
		} else {
			all = append(all, p)
		}
	}
	return all
}
