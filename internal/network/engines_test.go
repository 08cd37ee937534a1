package network

import (
	"net/netip"
	"os"
	"testing"

	"corten.dev/corten/internal/linux/netlink"
)

// Two engines ran on one host, and their default bridges had overlapping subnets. The second one found a link with the name that it wanted, took it for a stale one of
// its own and replaced it: running containers of the first one lost eth0 without a word, and its ready namespaces were handed out with nothing but lo in them.
func TestEnginesWithTheSameAddressesLeaveEachOtherAlone(t *testing.T) {
	subnet := netip.MustParsePrefix("10.233.40.1/24")
	w := newWorld(t, func(o *Options) { o.BIP = subnet })
	check(t, w.Settle(bg))
	first := w.join(t, JoinRequest{Owner: "a", Name: "a"})

	other := &world{opt: Options{Root: t.TempDir(), ExecRoot: t.TempDir(), Table: "cortenother", Bridge: "ct1", BIP: subnet, Names: w.opt.Names, Logger: w.opt.Logger}}
	other.open(t)
	t.Cleanup(func() { check(t, other.Close()) })
	check(t, other.Settle(bg))
	for _, owner := range []string{"b", "c", "d"} {
		sb := other.join(t, JoinRequest{Owner: owner, Name: owner})
		wantLink(t, "second engine, "+owner, sb.NS)
	}
	wantLink(t, "first engine, a", first.NS)
	for _, owner := range []string{"e", "f", "g"} {
		wantLink(t, "first engine, "+owner, w.join(t, JoinRequest{Owner: owner, Name: owner}).NS)
	}
}

// wantLink wants eth0 in a namespace.
func wantLink(t *testing.T, who string, ns *os.File) {
	t.Helper()
	in(t, ns, func() {
		c, err := netlink.Dial(0)
		check(t, err)
		defer c.Close()
		if _, err := c.LinkByName("eth0"); err != nil {
			t.Errorf("%s: %v", who, err)
		}
	})
}
