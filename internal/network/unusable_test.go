package network

import (
	"strings"
	"testing"

	"corten.dev/corten/internal/linux/netlink"
)

// An engine that was told to write no rules (--iptables=false) came up over a network with an egress list of the engine before. The network's driver was a nil that did not look like one: when a container
// on it ended, or it was removed, the whole engine ended with a dump.
func TestUnusableNetwork(t *testing.T) {
	w := newWorld(t, nil)
	made, err := w.Create(bg, Network{Name: "walled", Options: map[string]string{OptionEgress: "10.0.0.0/8"}})
	check(t, err)
	req := JoinRequest{Owner: "a", Name: "a", Endpoints: on("walled")}
	sb := w.join(t, req)
	pid := process(t, sb.NS)
	kept, _ := w.Sandbox("a")
	check(t, w.Close())
	w.opt.NoRules = true
	w.open(t)
	check(t, w.Restore(bg, req, kept, pid))
	check(t, w.Settle(bg))
	if _, err := w.Get(bg, "walled"); err != nil {
		t.Error(err)
	}
	if _, err := w.Join(bg, JoinRequest{Owner: "b", Name: "b", Endpoints: on("walled")}); err == nil || !strings.HasPrefix(err.Error(), "network walled is not usable: an egress list needs nftables rules") {
		t.Errorf("join: %v", err)
	}
	check(t, w.Leave(bg, "a"))
	check(t, w.Remove(bg, "walled"))
	c, err := netlink.Dial(0)
	check(t, err)
	defer c.Close()
	if link, err := c.LinkByName("br-" + made.ID[:12]); err == nil {
		t.Errorf("its bridge is there yet: %+v", link)
	}
	check(t, w.Close())
	w.opt.NoRules = false
	w.open(t)
}
