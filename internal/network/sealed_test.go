package network

import (
	"os/exec"
	"testing"
)

// A container on an internal network has no default route; one that gives itself a route (NET_ADMIN) has no way out for all that.
func TestInternalNetworkHasNoWayOut(t *testing.T) {
	w := newWorld(t, nil)
	serve(t, w.outside, "outside", 9100)
	w.network(t, Network{Name: "open"})
	w.network(t, Network{Name: "sealed", Internal: true})
	for name, want := range map[string]string{"open": "outside ", "sealed": "!"} {
		sb := w.join(t, JoinRequest{Owner: name, Name: name, Endpoints: on(name)})
		ep := sb.Endpoints[0]
		gateway := ep.IPv4.Masked().Addr().Next().String() // the bridge's own
		in(t, sb.NS, func() {
			if out, err := exec.Command("ip", "route", "replace", "default", "via", gateway).CombinedOutput(); err != nil {
				t.Errorf("%s: %v %s", name, err, out)
			}
		})
		got := ""
		if want == "!" {
			got = knock(t, sb.NS, "tcp", "203.0.113.2:9100")
		} else {
			got = ask(t, sb.NS, "tcp", "203.0.113.2:9100")
		}
		wantPrefix(t, "from a container on "+name, got, want)
	}
}
