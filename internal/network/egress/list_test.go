package egress

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"corten.dev/corten/internal/linux/netlink"
)

func TestParse(t *testing.T) {
	for list, want := range map[string]string{
		"all": "all", "none": "|", "deny": "|",
		"198.51.100.0/24:443, example.org:443,10.0.0.0/8":        "198.51.100.0/24 0 443-443; 10.0.0.0/8 0 0-65535; |example.org 0 443-443; ",
		"*.Example.org./tcp,*:53/udp":                            "|*.example.org 6 0-65535; * 17 53-53; ",
		"[2001:db8::/32]:80-90/tcp,2001:db8::1,[::ffff:1.2.3.4]": "2001:db8::/32 6 80-90; 2001:db8::1/128 0 0-65535; 1.2.3.4/32 0 0-65535; |",
		"10.1.2.3/8": "10.0.0.0/8 0 0-65535; |",
		"":           "!", "example.org:0": "!", "example.org:90-80": "!", "a..b": "!", "*.*": "!", "10.0.0.300": "!", "[::1": "!",
		"example.org:1-1000": "!", "exa mple.org": "!", "10.0.0.0/33": "!", "x:1/sctp": "!", "fe80::1%eth0": "!", ":443": "!", "[::1]443": "!", "*a.org": "!", "a,,b": "!",
	} {
		if got := text(Parse(list)); got != want {
			t.Errorf("%q: got %q, want %q", list, got, want)
		}
	}
}

func text(e *List, err error) string {
	if err != nil {
		return "!"
	}
	if e == nil {
		return "all"
	}
	var b strings.Builder
	for _, s := range e.Subnets {
		fmt.Fprintf(&b, "%s %d %d-%d; ", s.Prefix, s.Proto, s.First, s.Last)
	}
	b.WriteString("|")
	for _, n := range e.Names {
		fmt.Fprintf(&b, "%s %d %d-%d; ", n.Name, n.Proto, n.First, n.Last)
	}
	return b.String()
}

// FuzzParse: whatever is read makes parts that do not overlap, which together hold exactly what the items say.
func FuzzParse(f *testing.F) {
	for _, list := range []string{"none", "10.0.0.0/8,10.1.0.0/16:443/tcp,10.1.2.3:1-500", "0.0.0.0/0:80,::/0,[::1]:80,example.org", "1.2.3.4:80,1.2.3.4:70-90/udp,1.2.3.0/24:85-100"} {
		f.Add(list, uint32(0x0a010203), byte(6), uint16(443))
	}
	f.Fuzz(func(t *testing.T, list string, addr uint32, proto byte, port uint16) {
		e, err := Parse(list)
		if err != nil || e == nil || len(e.Subnets) > 6 {
			return
		}
		boxes := e.boxes()
		ask := []netip.Addr{netip.AddrFrom4([4]byte{byte(addr >> 24), byte(addr >> 16), byte(addr >> 8), byte(addr)})}
		for _, s := range e.Subnets {
			ask = append(ask, s.Prefix.Addr(), netlink.LastAddr(s.Prefix))
		}
		for _, a := range ask {
			said, held := false, 0
			for _, s := range e.Subnets {
				all := s.First == 0 && s.Last == 65535
				said = said || s.Prefix.Contains(a) && (s.Proto == proto || s.Proto == 0 && (all || proto == 6 || proto == 17)) && s.First <= port && port <= s.Last
			}
			if e.allows(a, proto, port) != said {
				t.Errorf("%q: %s %d %d is allowed: %v", list, a, proto, port, !said)
			}
			for _, b := range boxes {
				if b.from.BitLen() == a.BitLen() && !a.Less(b.from) && !b.to.Less(a) && b.proto <= proto && proto <= b.protoE && b.port <= port && port <= b.portE {
					held++
				}
			}
			if said && held != 1 || !said && held != 0 {
				t.Errorf("%q: %s %d %d is in %d parts, said: %v", list, a, proto, port, held, said)
			}
		}
	})
}
