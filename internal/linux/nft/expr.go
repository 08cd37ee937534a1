package nft

import (
	"encoding/binary"
	"net/netip"

	"corten.dev/corten/internal/linux/netlink"
	"golang.org/x/sys/unix"
)

// Expr is one step of a rule. Registers are numbered as the kernel's 32-bit ones: R(0) to R(15).
type Expr struct {
	name string
	fill func(b *netlink.Batch)
}

// R is the number of a 32-bit register.
func R(n uint32) uint32 { return unix.NFT_REG32_00 + n }

// Family is what rules for the two address families differ in.
type Family struct {
	Name      string // "4", "6"
	Proto     byte   // unix.NFPROTO_IPV4 …
	Addr      Type
	Dst, Size uint32 // where the destination is in the header, behind the source
	ICMP      byte   // the protocol of its messages …
	Echo      byte   // … and the type of those that ask for an echo
}

// Families are both.
var Families = []Family{{"4", unix.NFPROTO_IPV4, IPv4, 16, 4, unix.IPPROTO_ICMP, 8}, {"6", unix.NFPROTO_IPV6, IPv6, 24, 16, unix.IPPROTO_ICMPV6, 128}}

// FamilyOf is an address's.
func FamilyOf(a netip.Addr) Family {
	if a.Is4() {
		return Families[0]
	}
	return Families[1]
}

// IsFamily matches the packets of a family, by its Proto.
func IsFamily(proto byte) []Expr {
	return []Expr{Meta(unix.NFT_META_NFPROTO, R(0)), Cmp(R(0), []byte{proto}, false)}
}

// Via matches packets by the interface they come from (unix.NFT_META_IIFNAME) or go to (NFT_META_OIFNAME): it must be in the set or, with not, must not.
func Via(key uint32, set string, not bool) []Expr {
	return []Expr{Meta(key, R(0)), In(set, R(0), not)}
}

// Meta loads a fact about the packet: unix.NFT_META_IIFNAME, NFT_META_OIFNAME, NFT_META_L4PROTO, NFT_META_NFPROTO.
func Meta(key, reg uint32) Expr {
	return Expr{"meta", func(b *netlink.Batch) {
		b.BE32(unix.NFTA_META_DREG, reg)
		b.BE32(unix.NFTA_META_KEY, key)
	}}
}

// Payload loads bytes of a header: unix.NFT_PAYLOAD_NETWORK_HEADER or NFT_PAYLOAD_TRANSPORT_HEADER.
func Payload(base, offset, size, reg uint32) Expr {
	return Expr{"payload", func(b *netlink.Batch) {
		b.BE32(unix.NFTA_PAYLOAD_DREG, reg)
		b.BE32(unix.NFTA_PAYLOAD_BASE, base)
		b.BE32(unix.NFTA_PAYLOAD_OFFSET, offset)
		b.BE32(unix.NFTA_PAYLOAD_LEN, size)
	}}
}

// Cmp goes on when the register equals the value (or, with not, does not).
func Cmp(reg uint32, value []byte, not bool) Expr {
	return Expr{"cmp", func(b *netlink.Batch) {
		op := uint32(unix.NFT_CMP_EQ)
		if not {
			op = unix.NFT_CMP_NEQ
		}
		b.BE32(unix.NFTA_CMP_SREG, reg)
		b.BE32(unix.NFTA_CMP_OP, op)
		b.Nest(unix.NFTA_CMP_DATA, func() { b.Bytes(unix.NFTA_DATA_VALUE, value) })
	}}
}

// And keeps the bits of the mask.
func And(reg uint32, mask []byte) Expr {
	return Expr{"bitwise", func(b *netlink.Batch) {
		b.BE32(unix.NFTA_BITWISE_SREG, reg)
		b.BE32(unix.NFTA_BITWISE_DREG, reg)
		b.BE32(unix.NFTA_BITWISE_LEN, uint32(len(mask)))
		b.Nest(unix.NFTA_BITWISE_MASK, func() { b.Bytes(unix.NFTA_DATA_VALUE, mask) })
		b.Nest(unix.NFTA_BITWISE_XOR, func() { b.Bytes(unix.NFTA_DATA_VALUE, make([]byte, len(mask))) })
	}}
}

// In goes on when the key in the registers from reg on is in the set (or, with not, is not).
func In(set string, reg uint32, not bool) Expr {
	return Expr{"lookup", func(b *netlink.Batch) {
		b.String(unix.NFTA_LOOKUP_SET, set)
		b.BE32(unix.NFTA_LOOKUP_SREG, reg)
		if not {
			b.BE32(unix.NFTA_LOOKUP_FLAGS, unix.NFT_LOOKUP_F_INV)
		}
	}}
}

// Map loads the datum of the key into the registers from dst on; without one the rule ends.
func Map(set string, reg, dst uint32) Expr {
	return Expr{"lookup", func(b *netlink.Batch) {
		b.String(unix.NFTA_LOOKUP_SET, set)
		b.BE32(unix.NFTA_LOOKUP_SREG, reg)
		b.BE32(unix.NFTA_LOOKUP_DREG, dst)
	}}
}

// CtState loads the state bits of the connection, CtStatus its status bits.
func CtState(reg uint32) Expr  { return ct(unix.NFT_CT_STATE, reg) }
func CtStatus(reg uint32) Expr { return ct(unix.NFT_CT_STATUS, reg) }

func ct(key, reg uint32) Expr {
	return Expr{"ct", func(b *netlink.Batch) {
		b.BE32(unix.NFTA_CT_DREG, reg)
		b.BE32(unix.NFTA_CT_KEY, key)
	}}
}

// Counter counts the packets that come by.
func Counter() Expr { return Expr{"counter", func(*netlink.Batch) {}} }

// DaddrType loads the kind of the destination address (unix.RTN_LOCAL …) as the routing table sees it.
func DaddrType(reg uint32) Expr {
	return Expr{"fib", func(b *netlink.Batch) {
		b.BE32(unix.NFTA_FIB_DREG, reg)
		b.BE32(unix.NFTA_FIB_RESULT, unix.NFT_FIB_RESULT_ADDRTYPE)
		b.BE32(unix.NFTA_FIB_FLAGS, unix.NFTA_FIB_F_DADDR)
	}}
}

// DNAT sends the connection to the address and port in the registers.
func DNAT(family, addrReg, portReg uint32) Expr {
	return Expr{"nat", func(b *netlink.Batch) {
		b.BE32(unix.NFTA_NAT_TYPE, unix.NFT_NAT_DNAT)
		b.BE32(unix.NFTA_NAT_FAMILY, family)
		b.BE32(unix.NFTA_NAT_REG_ADDR_MIN, addrReg)
		b.BE32(unix.NFTA_NAT_REG_PROTO_MIN, portReg)
		b.BE32(unix.NFTA_NAT_FLAGS, 2 /* NF_NAT_RANGE_PROTO_SPECIFIED */)
	}}
}

// DNATModulo sends the connection to the address in the register, and to the port min + port modulo (max - min + 1), where port is the one that was asked for, and min and max are in
// registers. It is what the kernel's offset of ports means when the base, which nftables cannot say, is 0 (nf_nat_l4proto_unique_tuple; since 4.18).
func DNATModulo(family, addrReg, minReg, maxReg uint32) Expr {
	return Expr{"nat", func(b *netlink.Batch) {
		b.BE32(unix.NFTA_NAT_TYPE, unix.NFT_NAT_DNAT)
		b.BE32(unix.NFTA_NAT_FAMILY, family)
		b.BE32(unix.NFTA_NAT_REG_ADDR_MIN, addrReg)
		b.BE32(unix.NFTA_NAT_REG_PROTO_MIN, minReg)
		b.BE32(unix.NFTA_NAT_REG_PROTO_MAX, maxReg)
		b.BE32(unix.NFTA_NAT_FLAGS, 1<<1|1<<5 /* NF_NAT_RANGE_PROTO_SPECIFIED, NF_NAT_RANGE_PROTO_OFFSET */)
	}}
}

// DNATAddr sends the connection to the address in the register; the port stays.
func DNATAddr(family, addrReg uint32) Expr {
	return Expr{"nat", func(b *netlink.Batch) {
		b.BE32(unix.NFTA_NAT_TYPE, unix.NFT_NAT_DNAT)
		b.BE32(unix.NFTA_NAT_FAMILY, family)
		b.BE32(unix.NFTA_NAT_REG_ADDR_MIN, addrReg)
	}}
}

// SNAT gives the connection the address in the register as its source.
func SNAT(family, addrReg uint32) Expr {
	return Expr{"nat", func(b *netlink.Batch) {
		b.BE32(unix.NFTA_NAT_TYPE, unix.NFT_NAT_SNAT)
		b.BE32(unix.NFTA_NAT_FAMILY, family)
		b.BE32(unix.NFTA_NAT_REG_ADDR_MIN, addrReg)
	}}
}

// Masquerade gives the connection the address of the interface that it leaves by.
func Masquerade() Expr {
	return Expr{"masq", func(*netlink.Batch) {}}
}

// Load puts a value into registers.
func Load(reg uint32, value []byte) Expr {
	return Expr{"immediate", func(b *netlink.Batch) {
		b.BE32(unix.NFTA_IMMEDIATE_DREG, reg)
		b.Nest(unix.NFTA_IMMEDIATE_DATA, func() { b.Bytes(unix.NFTA_DATA_VALUE, value) })
	}}
}

// Accept, Drop and Return end the rule; Jump goes through another chain and comes back.
func Accept() Expr           { return verdict(1, "") }
func Drop() Expr             { return verdict(0, "") }
func Return() Expr           { return verdict(unix.NFT_RETURN, "") }
func Jump(chain string) Expr { return verdict(unix.NFT_JUMP, chain) }

func verdict(code int32, chain string) Expr {
	return Expr{"immediate", func(b *netlink.Batch) {
		b.BE32(unix.NFTA_IMMEDIATE_DREG, unix.NFT_REG_VERDICT)
		b.Nest(unix.NFTA_IMMEDIATE_DATA, func() {
			b.Nest(unix.NFTA_DATA_VERDICT, func() {
				b.BE32(unix.NFTA_VERDICT_CODE, uint32(code))
				if chain != "" {
					b.String(unix.NFTA_VERDICT_CHAIN, chain)
				}
			})
		})
	}}
}

// Host puts a number into the machine's byte order, as the kernel keeps marks, states and types.
func Host(v uint32) []byte { return binary.NativeEndian.AppendUint32(nil, v) }
