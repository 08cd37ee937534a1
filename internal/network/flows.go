package network

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"corten.dev/corten/internal/linux/netlink"
	"corten.dev/corten/internal/linux/nft"
	"golang.org/x/sys/unix"
)

// flow is a connection that the kernel knows.
type flow struct {
	proto    byte
	from, to netip.AddrPort // as whoever opened it sees it
	at       netip.AddrPort // who answers: to, or where a rule sent it
	answered bool
	tuple    []byte // the kernel's words for from and to
}

const (
	ctGet    = unix.NFNL_SUBSYS_CTNETLINK<<8 | 1 // IPCTNL_MSG_CT_GET
	ctDelete = unix.NFNL_SUBSYS_CTNETLINK<<8 | 2 // IPCTNL_MSG_CT_DELETE
)

// readFlow reads one out of the kernel's list.
func readFlow(p []byte) (f flow, err error) {
	if len(p) < 4 {
		return f, netlink.ErrMalformed
	}
	err = netlink.Attrs(p[4:], func(typ uint16, data []byte) {
		switch {
		case typ == 1: // CTA_TUPLE_ORIG
			f.tuple = data
			f.proto, f.from, f.to = readTuple(data)
		case typ == 2: // CTA_TUPLE_REPLY
			_, f.at, _ = readTuple(data)
		case typ == 3 && len(data) == 4: // CTA_STATUS
			f.answered = binary.BigEndian.Uint32(data)&2 != 0 // IPS_SEEN_REPLY
		}
	})
	return f, err
}

// readTuple reads a direction of a connection; what is not there stays zero.
func readTuple(tuple []byte) (proto byte, from, to netip.AddrPort) {
	var src, dst netip.Addr
	var sport, dport uint16
	_ = netlink.Attrs(tuple, func(typ uint16, data []byte) {
		_ = netlink.Attrs(data, func(inner uint16, data []byte) {
			switch {
			case typ == 1 && (inner == 1 || inner == 3): // CTA_TUPLE_IP: CTA_IP_V4_SRC, CTA_IP_V6_SRC
				src, _ = netip.AddrFromSlice(data)
			case typ == 1 && (inner == 2 || inner == 4): // CTA_IP_V4_DST, CTA_IP_V6_DST
				dst, _ = netip.AddrFromSlice(data)
			case typ == 2 && inner == 1 && len(data) >= 1: // CTA_TUPLE_PROTO: CTA_PROTO_NUM
				proto = data[0]
			case typ == 2 && inner == 2 && len(data) >= 2: // CTA_PROTO_SRC_PORT
				sport = binary.BigEndian.Uint16(data)
			case typ == 2 && inner == 3 && len(data) >= 2: // CTA_PROTO_DST_PORT
				dport = binary.BigEndian.Uint16(data)
			}
		})
	})
	return proto, netip.AddrPortFrom(src, sport), netip.AddrPortFrom(dst, dport)
}

// dropFlows makes the kernel forget the connections of which which says so. Those are what it was asked about; a kernel without a list of connections has none.
func dropFlows(which func(f flow) bool) (dropped []flow, err error) {
	c, err := netlink.Dial(unix.NETLINK_NETFILTER)
	if err != nil {
		return nil, err
	}
	var dump, del netlink.Batch
	dump.Begin("list connections", ctGet, 0, make([]byte, 4))
	dump.End()
	err = c.Dump(&dump, func(_ uint16, p []byte) error {
		f, err := readFlow(p)
		if err == nil && which(f) {
			del.Begin("forget connection", ctDelete, 0, []byte{p[0], 0, 0, 0})
			del.Bytes(1|unix.NLA_F_NESTED, f.tuple)
			del.End()
			f.tuple = nil // the buffer is used again
			dropped = append(dropped, f)
		}
		return err
	})
	if err == nil && del.Len() > 0 {
		err = c.Do(&del)
	}
	if errors.Is(err, unix.EOPNOTSUPP) || onlyErrno(err, unix.ENOENT) { // no list of connections in this kernel, or they ended meanwhile
		err = nil
	}
	return dropped, errors.Join(err, c.Close())
}

// endFlows ends the connections of containers that their lists do not have: the kernel forgets them, so that the next packet is judged as a new one's, and the containers' sockets fail.
func (l *Local) endFlows(all []*member) error {
	type end struct {
		m  *member
		ep Endpoint
		nw *network
	}
	by := map[netip.Addr]end{}
	for _, m := range all {
		for i, ep := range m.p.eps {
			for _, a := range ep.sources() {
				by[a] = end{m, ep, m.p.nets[i]}
			}
		}
	}
	sockets := map[*member][]flow{}
	flows, err := dropFlows(func(f flow) bool {
		e, known := by[f.from.Addr()]
		if !known {
			return false
		}
		l.mu.Lock()
		defer l.mu.Unlock()
		if e.nw.within(f.at.Addr()) {
			return false
		}
		let := func(list *Egress, kind string, whose []byte) bool {
			return list == nil || list.allows(f.at.Addr(), f.proto, f.at.Port()) || l.letTold(kind, whose, f.at.Addr(), f.proto, f.at.Port())
		}
		return !let(e.m.bx.egress, "", f.from.Addr().AsSlice()) || !let(e.nw.egress, byNet, nft.Name(e.nw.br))
	})
	if err != nil {
		return fmt.Errorf("end connections: %w", err)
	}
	for _, f := range flows {
		if m := by[f.from.Addr()].m; m.ns != nil {
			sockets[m] = append(sockets[m], f)
		}
	}
	for m, flows := range sockets {
		if err := l.inside(m.ns, func(*netlink.Conn) error { return abort(flows) }); err != nil {
			return fmt.Errorf("end connections: %w", err)
		}
	}
	return nil
}

// within says whether an address is that of a neighbour on the network, and not the host's own on it. mu is held.
func (nw *network) within(a netip.Addr) bool {
	for _, p := range nw.rec.IPAM.Pools {
		if p.Subnet.Contains(a) {
			return !nw.onBridge(p) || p.Gateway != a
		}
	}
	return false
}

// abort closes sockets of the calling thread's namespace; their owners read "software caused connection abort". Where the kernel cannot (CONFIG_INET_DIAG_DESTROY), nothing more comes by
// them, and they end by their own patience.
func abort(flows []flow) error {
	c, err := netlink.Dial(unix.NETLINK_SOCK_DIAG)
	if err != nil {
		return err
	}
	var b netlink.Batch
	for _, f := range flows {
		if f.proto != unix.IPPROTO_TCP && f.proto != unix.IPPROTO_UDP {
			continue
		}
		req := make([]byte, 56) // struct inet_diag_req_v2
		req[0], req[1] = unix.AF_INET, f.proto
		if f.from.Addr().Is6() {
			req[0] = unix.AF_INET6
		}
		binary.NativeEndian.PutUint32(req[4:], 0xffffffff) // in every state
		binary.BigEndian.PutUint16(req[8:], f.from.Port())
		binary.BigEndian.PutUint16(req[10:], f.to.Port())
		copy(req[12:28], f.from.Addr().AsSlice())
		copy(req[28:44], f.to.Addr().AsSlice())
		binary.NativeEndian.PutUint64(req[48:], ^uint64(0)) // any cookie
		b.Begin("close a socket", 21 /* SOCK_DESTROY */, 0, req)
		b.End()
	}
	if b.Len() > 0 {
		err = c.Do(&b)
	}
	if onlyErrno(err, unix.ENOENT) || onlyErrno(err, unix.EOPNOTSUPP) || onlyErrno(err, unix.EINVAL) {
		err = nil
	}
	return errors.Join(err, c.Close())
}
