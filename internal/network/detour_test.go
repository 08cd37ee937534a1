package network

import (
	"net/netip"
	"os"
	"strings"
	"testing"
)

// Where br_netfilter is on, as it is by default, a packet to a port of the host that a container on the same bridge publishes is given that container's address before the bridge looks at it, and the bridge passes
// nothing on between containers that shall not reach each other: with icc off a published port was there for everybody but the neighbours and the container itself.
func TestPublishedPortsWithoutICC(t *testing.T) {
	for _, filter := range []string{"0", "1"} {
		t.Run("br_netfilter "+filter, func(t *testing.T) {
			w := newWorld(t, func(o *Options) { o.PortProxy = []string{"/proc/self/exe", "portproxy"} })
			if err := os.WriteFile("/proc/sys/net/bridge/bridge-nf-call-iptables", []byte(filter), 0); err != nil && filter == "1" {
				t.Skip(err)
			}
			w.network(t, Network{Name: "quiet", Options: map[string]string{optICC: "false"}})
			w.network(t, Network{Name: "other"})
			a := w.join(t, JoinRequest{Owner: "a", Name: "a", Endpoints: on("quiet"), Ports: []Port{{Proto: "tcp", ContainerPort: 80, HostPort: 8090}, {Proto: "udp", ContainerPort: 80, HostPort: 8090},
				{Proto: "tcp", ContainerPort: 81, HostPort: 8091, HostIP: netip.MustParseAddr("127.0.0.1")}}})
			b := w.join(t, JoinRequest{Owner: "b", Name: "b", Endpoints: on("quiet")})
			c := w.join(t, JoinRequest{Owner: "c", Name: "c", Endpoints: on("other"), Ports: []Port{{Proto: "tcp", ContainerPort: 80, HostPort: 8092}}})
			serve(t, a.NS, "a", 80)
			serve(t, a.NS, "a", 81)
			serve(t, c.NS, "c", 80)
			own, gw := a.Endpoints[0].IPv4.Addr().String(), a.Endpoints[0].Gateway4.String()
			for name, ns := range map[string]*os.File{"a neighbour": b.NS, "the container itself": a.NS} {
				for _, to := range []string{"203.0.113.1:8090", gw + ":8090"} {
					wantPrefix(t, name+" at "+to, ask(t, ns, "tcp", to), "a "+gw)
					wantPrefix(t, name+" at "+to+" by udp", ask(t, ns, "udp", to), "a")
				}
				wantPrefix(t, name+", a port of another network", ask(t, ns, "tcp", "203.0.113.1:8092"), "c ")
			}
			wantPrefix(t, "a neighbour's own address", knock(t, b.NS, "tcp", own+":80"), "!")
			wantPrefix(t, "a port of the host's loopback", knock(t, b.NS, "tcp", gw+":8091"), "!")
			wantPrefix(t, "from outside, by the rules", ask(t, w.outside, "tcp", "203.0.113.1:8090"), "a 203.0.113.2")
			wantPrefix(t, "from another network", ask(t, c.NS, "tcp", "203.0.113.1:8090"), "a "+c.Endpoints[0].IPv4.Addr().String())
			detours := func() string { // an older nft shows numbers of protocols
				return strings.NewReplacer(" . 6 . ", " . tcp . ", " . 17 . ", " . udp . ").Replace(nftList(t, "set", "inet", "cortentest", "detour4"))
			}
			if out := detours(); !strings.Contains(out, ". 0.0.0.0/0 . udp . 8090") || !strings.Contains(out, ". 127.0.0.1 . tcp . 8091") {
				t.Errorf("%s", out)
			}
			check(t, w.Leave(bg, "a"))
			if out := detours(); strings.Contains(out, "tcp") {
				t.Errorf("%s", out)
			}
		})
	}
}
