package gunzip

import "encoding/binary"

// codes decodes symbols until the block ends, the output is full, or the input runs out.
func (r *Reader) codes() error {
	for {
		if r.end-r.pos < pad && r.srcErr == nil {
			r.fill(pad)
		}
		end, err := r.run()
		if err != nil {
			return err
		}
		if end {
			r.state = atBlock
			return nil
		}
		if r.to >= window+outSize {
			return nil
		}
		if r.srcErr != nil && r.pos-int(r.count>>3) > r.end {
			return r.cut()
		}
	}
}

// run is the inner loop. It stops near the end of the input, unless that is the end of the stream, whose padding it may look at.
//
// It is one long function on purpose: its state lives in registers, and each call would put it into memory and back.
//
// The bits above count may hold the beginning of the byte at pos: loading it again changes nothing, and they are cleared at the end.
func (r *Reader) run() (end bool, err error) {
	in, out := r.in, r.out
	pos, to := r.pos, r.to
	bits, count := r.bits, r.count
	begin := to
	low := int64(to) - r.made // where the member begins, in out; negative when that is long gone
	stop := r.end - pad/2
	if r.srcErr != nil {
		stop = r.end + 8
	}
	lit, dist := &r.lit, &r.dist
loop:
	for pos <= stop && to < window+outSize {
		bits |= binary.LittleEndian.Uint64(in[pos:]) << (count & 63)
		pos += int((63 - count) >> 3)
		count |= 56

		e := lit[bits&(1<<litBits-1)]
		if e&isLiteral != 0 {
			out[to] = byte(e >> 16)
			to++
			bits >>= e & 63
			count -= uint(e & 63)
			e = lit[bits&(1<<litBits-1)]
			if e&isLiteral != 0 {
				out[to] = byte(e >> 16)
				to++
				bits >>= e & 63
				count -= uint(e & 63)
				e = lit[bits&(1<<litBits-1)]
				if e&isLiteral != 0 {
					out[to] = byte(e >> 16)
					to++
					bits >>= e & 63
					count -= uint(e & 63)
					continue
				}
			}
		}
		if e&isOther != 0 {
			if e&isSecond != 0 {
				e = lit[(uint64(e>>16&0xfff)+bits>>litBits&(1<<(e>>8&0xf)-1))&(litTable-1)]
				if e&isLiteral != 0 {
					out[to] = byte(e >> 16)
					to++
					bits >>= e & 63
					count -= uint(e & 63)
					continue
				}
			}
			if e&isOther != 0 {
				n := uint(e & 63)
				if n == 0 || e&isSecond != 0 {
					err = ErrCorrupt
				}
				bits >>= n
				count -= n
				end = true
				break loop
			}
		}
		// 33 bits are gone at most, so that there are the 20 that a length may have.
		length := int(e>>16) + int(bits&(1<<(e&63)-1)>>(e>>8&63))
		bits >>= e & 63
		count -= uint(e & 63)

		bits |= binary.LittleEndian.Uint64(in[pos:]) << (count & 63)
		pos += int((63 - count) >> 3)
		count |= 56
		d := dist[bits&(1<<distBits-1)]
		if d&distOther != 0 {
			if width := d >> 8 & 0xf; width > 0 {
				d = dist[(uint64(d>>16&0x3ff)+bits>>distBits&(1<<width-1))&(distTable-1)]
			}
			if d&distOther != 0 {
				err = ErrCorrupt
				break loop
			}
		}
		back := int(d>>16) + int(bits&(1<<(d&63)-1)>>(d>>8&63))
		bits >>= d & 63
		count -= uint(d & 63)
		from := to - back
		if int64(from) < low {
			err = ErrCorrupt
			break loop
		}
		if back >= 8 {
			// Whole words, running over the end of the match: what is there is written later, or is room.
			src, dst := out[from:from+length+8], out[to:to+length+8]
			binary.LittleEndian.PutUint64(dst, binary.LittleEndian.Uint64(src))
			for at := 8; at < length; at += 8 {
				binary.LittleEndian.PutUint64(dst[at:], binary.LittleEndian.Uint64(src[at:]))
			}
		} else if back == 1 {
			b := out[from]
			run := out[to : to+length]
			for i := range run {
				run[i] = b
			}
		} else {
			for i := range length {
				out[to+i] = out[from+i]
			}
		}
		to += length
	}
	r.made += int64(to - begin)
	r.to = to
	// Give whole bytes back, and clear what is above.
	pos -= int(count >> 3)
	count &= 7
	r.pos, r.count, r.bits = pos, count, bits&(1<<count-1)
	if r.pos > r.end {
		return false, r.cut()
	}
	return end, err
}
