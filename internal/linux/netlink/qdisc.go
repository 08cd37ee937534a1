package netlink

import (
	"math"

	"golang.org/x/sys/unix"
)

// TBF asks for a token bucket at the root of a link, in place of the queue that it has: what the host sends there is at most rate bytes a second over time, burst bytes at once, and waits in a
// queue of limit bytes. A kernel without it answers ENOENT.
func (b *Batch) TBF(index int, rate uint64, burst, limit uint32) {
	head := make([]byte, 20) // struct tcmsg
	native.PutUint32(head[4:], uint32(index))
	native.PutUint32(head[12:], 0xffffffff) // TC_H_ROOT
	b.Begin("limit the rate of a link", unix.RTM_NEWQDISC, unix.NLM_F_CREATE|unix.NLM_F_REPLACE, head)
	b.String(1 /* TCA_KIND */, "tbf")
	b.Nest(2 /* TCA_OPTIONS */, func() {
		parms := make([]byte, 36) // struct tc_tbf_qopt
		parms[1] = 1              // rate.linklayer: ethernet
		native.PutUint32(parms[8:], uint32(min(rate, math.MaxUint32)))
		native.PutUint32(parms[24:], limit)
		b.Bytes(1 /* TCA_TBF_PARMS */, parms)
		b.U32(6 /* TCA_TBF_BURST */, burst)
		if rate > math.MaxUint32 {
			raw := native.AppendUint64(nil, rate)
			b.Bytes(4 /* TCA_TBF_RATE64 */, raw)
		}
	})
	b.End()
}

// DelQdisc asks for the queue that a link has by itself, in place of the one at its root. Where none was set the kernel answers ENOENT.
func (b *Batch) DelQdisc(index int) {
	head := make([]byte, 20) // struct tcmsg
	native.PutUint32(head[4:], uint32(index))
	native.PutUint32(head[12:], 0xffffffff) // TC_H_ROOT
	b.Begin("limit the rate of a link no more", unix.RTM_DELQDISC, 0, head)
	b.End()
}
