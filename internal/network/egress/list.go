package egress

import (
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/linux/netlink"
	"golang.org/x/sys/unix"
)

// List says where connections may go. A name, besides, is one that the embedded DNS answers; all others it does not know.
//
//	list   = "all" | "none" | item *( "," item )          "deny" is "none"
//	item   = to [ ":" port [ "-" port ] ] [ "/tcp" | "/udp" ]
//	to     = address | subnet | "[" IPv6 address or subnet "]" | name | "*." name | "*"
//
// "*.example.org" is every name below example.org, and not example.org; "*" is every name.
type List struct {
	Subnets []Subnet
	Names   []Name
}

// Reach is to what ports, of which protocols: 0 is both, and where no port is named all other ones too.
type Reach struct {
	Proto       byte // 0, 6, 17
	First, Last uint16
}

// Subnet is an item with an address or a subnet.
type Subnet struct {
	Prefix netip.Prefix
	Reach
}

// Name is an item with a name, in lower case.
type Name struct {
	Name string
	Reach
}

const (
	maxItems      = 512 // items
	maxNamedPorts = 64  // ports of a name: each is an element for each address that the name has
)

// Parse reads a list; nil without an error is "all".
func Parse(list string) (*List, error) {
	switch strings.TrimSpace(list) {
	case "all":
		return nil, nil
	case "none", "deny":
		return &List{}, nil
	}
	e := &List{}
	items := strings.Split(list, ",")
	if len(items) > maxItems {
		return nil, errs.New(errs.Invalid, "egress list: %d items; %d are the most", len(items), maxItems)
	}
	for _, item := range items {
		if err := e.item(strings.TrimSpace(item)); err != nil {
			return nil, err
		}
	}
	return e, nil
}

func (e *List) item(item string) error {
	bad := func(why string) error {
		return errs.New(errs.Invalid, "egress list: %q: %s (want all, none, or items such as 198.51.100.0/24:443, example.org:443, *.example.org, 192.0.2.1:53/udp)", item, why)
	}
	to, r := item, Reach{Last: 65535}
	for name, proto := range map[string]byte{"/tcp": unix.IPPROTO_TCP, "/udp": unix.IPPROTO_UDP} {
		if rest, ok := strings.CutSuffix(to, name); ok {
			to, r.Proto = rest, proto
			break
		}
	}
	ports, hasPorts := "", false
	switch inner, ok := strings.CutPrefix(to, "["); {
	case ok:
		if to, ports, ok = strings.Cut(inner, "]"); !ok {
			return bad("a bracket is not closed")
		}
		if ports, hasPorts = strings.CutPrefix(ports, ":"); !hasPorts && ports != "" {
			return bad("want :PORT after the bracket")
		}
	case strings.Count(to, ":") == 1:
		to, ports, hasPorts = strings.Cut(to, ":")
	}
	if hasPorts {
		var ok bool
		if r.First, r.Last, ok = portRange(ports); !ok {
			return bad("not a port, or a range of ports")
		}
	}
	if p, ok := addressOrSubnet(to); ok {
		e.Subnets = append(e.Subnets, Subnet{p, r})
		return nil
	}
	name := strings.ToLower(strings.TrimSuffix(to, "."))
	if !goodPattern(name) {
		return bad("neither a name nor an address or subnet")
	}
	if hasPorts && int(r.Last)-int(r.First) >= maxNamedPorts {
		return bad("a name can have " + strconv.Itoa(maxNamedPorts) + " ports in a row, or all")
	}
	e.Names = append(e.Names, Name{name, r})
	return nil
}

func portRange(s string) (first, last uint16, ok bool) {
	lo, hi, ranged := strings.Cut(s, "-")
	if !ranged {
		hi = lo
	}
	a, err := strconv.ParseUint(lo, 10, 16)
	b, err2 := strconv.ParseUint(hi, 10, 16)
	return uint16(a), uint16(b), err == nil && err2 == nil && a > 0 && a <= b
}

func addressOrSubnet(s string) (netip.Prefix, bool) {
	if a, err := netip.ParseAddr(s); err == nil && a.Zone() == "" {
		a = a.Unmap()
		return netip.PrefixFrom(a, a.BitLen()), true
	}
	p, err := netip.ParsePrefix(s)
	return p.Masked(), err == nil && !p.Addr().Is4In6()
}

// goodPattern says whether s can be a name, or "*." and a name, or "*".
func goodPattern(s string) bool {
	if s == "*" {
		return true
	}
	s = strings.TrimPrefix(s, "*.")
	if len(s) == 0 || len(s) > 253 {
		return false
	}
	digits := true
	for label := range strings.SplitSeq(s, ".") {
		if label == "" || len(label) > 63 {
			return false
		}
		digits = strings.Trim(label, "0123456789") == "" // of the last one: no name of the world ends in a number
		if strings.ContainsFunc(label, func(r rune) bool {
			return !(r >= 'a' && r <= 'z' || r >= '0' && r <= '9' || r == '-' || r == '_')
		}) {
			return false
		}
	}
	return !digits
}

// allows says whether the items with addresses let a packet through.
func (e *List) allows(to netip.Addr, proto byte, port uint16) bool {
	withPorts := proto == unix.IPPROTO_TCP || proto == unix.IPPROTO_UDP
	return slices.ContainsFunc(e.Subnets, func(s Subnet) bool {
		all := s.First == 0 && s.Last == 65535
		return s.Prefix.Contains(to) && (s.Proto == proto || s.Proto == 0 && (all || withPorts)) && s.First <= port && port <= s.Last
	})
}

// Patterns are the names of the list.
func (e *List) Patterns() []string {
	names := make([]string, 0, len(e.Names))
	for _, n := range e.Names {
		if !slices.Contains(names, n.Name) {
			names = append(names, n.Name)
		}
	}
	return names
}

// box is a part of the room of (address, protocol, port), borders included.
type box struct {
	from, to      netip.Addr
	proto, protoE byte
	port, portE   uint16
}

func (s Subnet) box() box {
	b := box{from: s.Prefix.Addr(), to: netlink.LastAddr(s.Prefix), protoE: 255, port: s.First, portE: s.Last}
	if s.Proto != 0 {
		b.proto, b.protoE = s.Proto, s.Proto
	}
	return b
}

// boxes are the subnets of a list as parts that do not overlap: the kernel takes no others into one set. Ports without a protocol are those of tcp and udp.
func (e *List) boxes() (all []box) {
	for _, s := range e.Subnets {
		wanted := []box{s.box()}
		if s.Proto == 0 && (s.First > 0 || s.Last < 65535) {
			tcp, udp := s, s
			tcp.Proto, udp.Proto = unix.IPPROTO_TCP, unix.IPPROTO_UDP
			wanted = []box{tcp.box(), udp.box()}
		}
		for _, have := range all {
			var rest []box
			for _, w := range wanted {
				rest = append(rest, w.without(have)...)
			}
			wanted = rest
		}
		all = append(all, wanted...)
	}
	return all
}

// without is what is left of b outside of o.
func (b box) without(o box) (rest []box) {
	if b.from.BitLen() != o.from.BitLen() || b.to.Less(o.from) || o.to.Less(b.from) || b.protoE < o.proto || o.protoE < b.proto || b.portE < o.port || o.portE < b.port {
		return []box{b}
	}
	cut := func(part box) { rest = append(rest, part) }
	if b.from.Less(o.from) {
		part := b
		part.to, b.from = o.from.Prev(), o.from
		cut(part)
	}
	if o.to.Less(b.to) {
		part := b
		part.from, b.to = o.to.Next(), o.to
		cut(part)
	}
	if b.proto < o.proto {
		part := b
		part.protoE, b.proto = o.proto-1, o.proto
		cut(part)
	}
	if o.protoE < b.protoE {
		part := b
		part.proto, b.protoE = o.protoE+1, o.protoE
		cut(part)
	}
	if b.port < o.port {
		part := b
		part.portE, b.port = o.port-1, o.port
		cut(part)
	}
	if o.portE < b.portE {
		part := b
		part.port = o.portE + 1
		cut(part)
	}
	return rest
}
