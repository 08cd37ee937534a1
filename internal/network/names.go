package network

import (
	"net/netip"
	"slices"

	"corten.dev/corten/internal/linux/nft"
	"golang.org/x/sys/unix"
)

// dnsNames are the names by which a container is found on a user-defined network: its own, its aliases, its short id and host name.
func dnsNames(nw *network, req *JoinRequest, aliases []string) (names []string) {
	if nw.rec.Predefined {
		return nil
	}
	for _, n := range append([]string{req.Name}, append(slices.Clone(aliases), short(req.Owner), req.Hostname)...) {
		if n != "" && !slices.Contains(names, n) {
			names = append(names, n)
		}
	}
	return names
}

// enter puts an endpoint on the network. Local.mu is held.
func (nw *network) enter(owner string, ep Endpoint) { nw.eps[owner] = &ep }

// serverAddr is where containers ask for names. A server of the container's own may use port 53, also on all addresses: ours listens on other ports, and
// a rule in the namespace sends questions there, as Docker does.
var serverAddr = netip.AddrFrom4([4]byte{127, 0, 0, 11})

const dnsTable = "corten-dns"

// redirect writes the rules that lead from port 53 to the server's ports; those of an earlier engine are replaced.
func redirect(tx *nft.Tx, udpPort, tcpPort uint16) {
	tx.AddTable(dnsTable)
	tx.AddChain(dnsTable, nft.Chain{Name: chainOut, Type: "nat", Hook: unix.NF_INET_LOCAL_OUT, Priority: prioDstNAT})
	tx.FlushChain(dnsTable, chainOut)
	for proto, port := range map[string]uint16{"udp": udpPort, "tcp": tcpPort} {
		exprs := append(nft.IsFamily(unix.NFPROTO_IPV4),
			nft.Payload(unix.NFT_PAYLOAD_NETWORK_HEADER, 16, 4, nft.R(0)), nft.Cmp(nft.R(0), serverAddr.AsSlice(), false),
			nft.Meta(unix.NFT_META_L4PROTO, nft.R(0)), nft.Cmp(nft.R(0), []byte{protoNumber[proto]}, false),
			nft.Payload(unix.NFT_PAYLOAD_TRANSPORT_HEADER, 2, 2, nft.R(0)), nft.Cmp(nft.R(0), nft.Port(53), false),
			nft.Load(nft.R(0), serverAddr.AsSlice()), nft.Load(nft.R(1), nft.Port(port)), nft.DNAT(unix.NFPROTO_IPV4, nft.R(0), nft.R(1)))
		tx.AddRule(dnsTable, chainOut, "names", exprs...)
	}
}
