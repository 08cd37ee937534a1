// Package conntrack looks at the connections that the kernel knows, and has it forget them.
//
// It owns the layout of their messages. It promises that a kernel without a list of connections has none, and that those which end meanwhile are no error.
package conntrack

import (
	"encoding/binary"
	"errors"
	"net/netip"

	"corten.dev/corten/internal/linux/netlink"
	"golang.org/x/sys/unix"
)

// Flow is a connection that the kernel knows.
type Flow struct {
	Proto    byte
	From, To netip.AddrPort // as whoever opened it sees it
	At       netip.AddrPort // who answers: To, or where a rule sent it
	Answered bool

	tuple []byte // the kernel's words for from and to
}

const (
	ctGet    = unix.NFNL_SUBSYS_CTNETLINK<<8 | 1 // IPCTNL_MSG_CT_GET
	ctDelete = unix.NFNL_SUBSYS_CTNETLINK<<8 | 2 // IPCTNL_MSG_CT_DELETE
)

// readFlow reads one out of the kernel's list.
func readFlow(p []byte) (f Flow, err error) {
	if len(p) < 4 {
		return f, netlink.ErrMalformed
	}
	err = netlink.Attrs(p[4:], func(typ uint16, data []byte) {
		switch {
		case typ == 1: // CTA_TUPLE_ORIG
			f.tuple = data
			f.Proto, f.From, f.To = readTuple(data)
		case typ == 2: // CTA_TUPLE_REPLY
			_, f.At, _ = readTuple(data)
		case typ == 3 && len(data) == 4: // CTA_STATUS
			f.Answered = binary.BigEndian.Uint32(data)&2 != 0 // IPS_SEEN_REPLY
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

// Forget makes the kernel forget the connections of which which says so, and returns them. The next packet of one is judged as a new one's.
func Forget(which func(f Flow) bool) (gone []Flow, err error) {
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
			gone = append(gone, f)
		}
		return err
	})
	if err == nil && del.Len() > 0 {
		err = c.Do(&del)
	}
	if errors.Is(err, unix.EOPNOTSUPP) || netlink.OnlyErrno(err, unix.ENOENT) { // no list of connections in this kernel, or they ended meanwhile
		err = nil
	}
	return gone, errors.Join(err, c.Close())
}

// Abort closes the sockets of flows in the calling thread's namespace; their owners read "software caused connection abort". Where the kernel cannot (CONFIG_INET_DIAG_DESTROY), nothing more comes by
// them, and they end by their own patience.
func Abort(flows []Flow) error {
	c, err := netlink.Dial(unix.NETLINK_SOCK_DIAG)
	if err != nil {
		return err
	}
	var b netlink.Batch
	for _, f := range flows {
		if f.Proto != unix.IPPROTO_TCP && f.Proto != unix.IPPROTO_UDP {
			continue
		}
		req := make([]byte, 56) // struct inet_diag_req_v2
		req[0], req[1] = unix.AF_INET, f.Proto
		if f.From.Addr().Is6() {
			req[0] = unix.AF_INET6
		}
		binary.NativeEndian.PutUint32(req[4:], 0xffffffff) // in every state
		binary.BigEndian.PutUint16(req[8:], f.From.Port())
		binary.BigEndian.PutUint16(req[10:], f.To.Port())
		copy(req[12:28], f.From.Addr().AsSlice())
		copy(req[28:44], f.To.Addr().AsSlice())
		binary.NativeEndian.PutUint64(req[48:], ^uint64(0)) // any cookie
		b.Begin("close a socket", 21 /* SOCK_DESTROY */, 0, req)
		b.End()
	}
	if b.Len() > 0 {
		err = c.Do(&b)
	}
	if netlink.OnlyErrno(err, unix.ENOENT) || netlink.OnlyErrno(err, unix.EOPNOTSUPP) || netlink.OnlyErrno(err, unix.EINVAL) {
		err = nil
	}
	return errors.Join(err, c.Close())
}
