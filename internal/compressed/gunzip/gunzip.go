// Package gunzip undoes gzip, fast: unpacking layers spends more time in it than in anything else.
//
// It owns nothing. It promises to give what compress/gzip gives, and to refuse what compress/gzip refuses (its tests and its fuzz target compare the two), including
// streams of several members. What comes before an error may be other bytes.
//
// How it is fast: input and output in large buffers; 64 bits of input at a time; tables that resolve most symbols with one look (11 bits for literals and
// lengths, 8 for distances, with second tables for longer codes); matches copied 8 bytes at a time. The buffers have room at their ends, so that the inner
// loop looks at its bounds once for each match.
package gunzip

import (
	"errors"
	"hash/crc32"
	"io"
)

const (
	window  = 32 << 10
	outSize = 256 << 10
	inSize  = 128 << 10
	// pad is what the inner loop may look at beyond the input's end, or write beyond where it may stop.
	pad = 64
	// room is what one round of the inner loop writes at most: three literals, a match of 258, and what copying in words runs over.
	room = 3 + 258 + 16
)

// Errors of a stream that is no gzip, or was damaged. A stream that is cut off gives io.ErrUnexpectedEOF.
var (
	ErrHeader   = errors.New("gzip: invalid header")
	ErrChecksum = errors.New("gzip: invalid checksum")
	ErrCorrupt  = errors.New("gzip: damaged data")
)

type state int

const (
	atHeader state = iota
	atBlock
	inStored
	inCodes
	atTrailer
)

// Reader is an open stream.
type Reader struct {
	src    io.Reader
	srcErr error
	in     []byte
	pos    int // in in: the next byte
	end    int // in in: of what was read
	bits   uint64
	count  uint // of bits

	out  []byte
	from int // in out: what was not given away yet
	to   int // in out: of what was made

	state  state
	first  bool  // no member came yet
	final  bool  // the block is the last one
	stored int   // bytes left of a stored block
	made   int64 // bytes of this member, for matches that reach before its beginning
	sum    uint32
	size   uint32
	summed int // in out: up to here sum is done
	err    error

	lit  [litTable]uint32
	dist [distTable]uint32
}

// NewReader begins to read. The header is looked at by the first Read.
func NewReader(src io.Reader) *Reader {
	return &Reader{src: src, in: make([]byte, inSize+pad), out: make([]byte, window+outSize+room), from: window, to: window, summed: window, first: true}
}

// Read gives plain bytes.
func (r *Reader) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	for r.from == r.to {
		if r.err != nil {
			return 0, r.err
		}
		r.slide()
		r.err = r.step()
		r.checksum()
	}
	n := copy(p, r.out[r.from:r.to])
	r.from += n
	return n, nil
}

// slide makes room, and keeps what matches may refer to.
func (r *Reader) slide() {
	if r.to < window+outSize/2 {
		return
	}
	copy(r.out[:window], r.out[r.to-window:r.to])
	r.from, r.to, r.summed = window, window, window
}

func (r *Reader) checksum() {
	part := r.out[r.summed:r.to]
	r.sum = crc32.Update(r.sum, crc32.IEEETable, part)
	r.size += uint32(len(part))
	r.summed = r.to
}

// step goes on until there is something to give away, or an end.
func (r *Reader) step() error {
	for r.from == r.to {
		var err error
		switch r.state {
		case atHeader:
			err = r.header()
		case atBlock:
			err = r.block()
		case inStored:
			err = r.copyStored()
		case inCodes:
			err = r.codes()
		case atTrailer:
			r.checksum()
			err = r.trailer()
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// fill reads more input, until there is at least that much. At its end it pads with zeros and remembers why.
func (r *Reader) fill(least int) {
	if r.srcErr != nil {
		return
	}
	copy(r.in, r.in[r.pos:r.end])
	r.end -= r.pos
	r.pos = 0
	for tries := 0; r.end < inSize; tries++ {
		n, err := r.src.Read(r.in[r.end:inSize])
		r.end += n
		if err == nil && n == 0 && tries > 100 {
			err = io.ErrNoProgress
		}
		if err != nil {
			r.srcErr = err
			clear(r.in[r.end : r.end+pad])
			return
		}
		if r.end >= least {
			return
		}
	}
}

// cut is the error for input that ended where more was needed.
func (r *Reader) cut() error {
	if r.srcErr == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return r.srcErr
}

// need makes sure of n bits, n at most 32.
func (r *Reader) need(n uint) error {
	for r.count < n {
		if r.pos >= r.end {
			r.fill(1)
			if r.pos >= r.end {
				return r.cut()
			}
		}
		r.bits |= uint64(r.in[r.pos]) << r.count
		r.pos++
		r.count += 8
	}
	return nil
}

func (r *Reader) take(n uint) uint32 {
	v := uint32(r.bits & (1<<n - 1))
	r.bits >>= n
	r.count -= n
	return v
}

// get is need and take.
func (r *Reader) get(n uint) (uint32, error) {
	if err := r.need(n); err != nil {
		return 0, err
	}
	return r.take(n), nil
}

// header reads a member's header. Nothing more, after at least one member, is the end.
func (r *Reader) header() error {
	if r.pos >= r.end {
		r.fill(1)
	}
	if r.pos >= r.end {
		if r.first && r.srcErr == io.EOF {
			return io.ErrUnexpectedEOF
		}
		return r.srcErr // io.EOF: the end of it all
	}
	h := headerReader{r: r}
	if h.byte() != 0x1f || h.byte() != 0x8b || h.byte() != 8 {
		if h.err != nil {
			return h.err
		}
		return ErrHeader
	}
	flags := h.byte()
	for range 6 { // time, flags of the compressor, system
		h.byte()
	}
	if flags&4 != 0 {
		n := int(h.byte()) | int(h.byte())<<8
		for ; n > 0 && h.err == nil; n-- {
			h.byte()
		}
	}
	for _, flag := range []byte{8, 16} { // name, comment
		if flags&flag != 0 {
			for h.byte() != 0 && h.err == nil {
				if h.n++; h.n > 1<<20 {
					return ErrHeader
				}
			}
		}
	}
	if flags&2 != 0 {
		sum := h.sum
		if got := uint32(h.byte()) | uint32(h.byte())<<8; h.err == nil && got != sum&0xffff {
			return ErrHeader
		}
	}
	if h.err != nil {
		return h.err
	}
	r.first, r.state, r.sum, r.size, r.made, r.summed = false, atBlock, 0, 0, 0, r.to
	return nil
}

type headerReader struct {
	r   *Reader
	sum uint32
	n   int
	err error
}

func (h *headerReader) byte() byte {
	if h.err != nil {
		return 0
	}
	v, err := h.r.get(8)
	h.err = err
	b := [1]byte{byte(v)}
	h.sum = crc32.Update(h.sum, crc32.IEEETable, b[:])
	return b[0]
}

// align drops the bits up to the next byte.
func (r *Reader) align() { r.take(r.count & 7) }

func (r *Reader) trailer() error {
	r.align()
	sum, err := r.get(32)
	if err != nil {
		return err
	}
	size, err := r.get(32)
	if err != nil {
		return err
	}
	if sum != r.sum || size != r.size {
		return ErrChecksum
	}
	r.state = atHeader
	return nil
}

// block reads a block's header.
func (r *Reader) block() error {
	if r.final {
		r.final, r.state = false, atTrailer
		return nil
	}
	v, err := r.get(3)
	if err != nil {
		return err
	}
	r.final = v&1 != 0
	switch v >> 1 {
	case 0:
		return r.storedHeader()
	case 1:
		if !r.fixed() {
			return ErrCorrupt
		}
	case 2:
		if err := r.dynamic(); err != nil {
			return err
		}
	default:
		return ErrCorrupt
	}
	r.state = inCodes
	return nil
}

func (r *Reader) storedHeader() error {
	r.align()
	n, err := r.get(16)
	if err != nil {
		return err
	}
	not, err := r.get(16)
	if err != nil {
		return err
	}
	if n != ^not&0xffff {
		return ErrCorrupt
	}
	r.stored, r.state = int(n), inStored
	return nil
}

func (r *Reader) copyStored() error {
	for r.stored > 0 {
		space := window + outSize - r.to
		if space <= 0 {
			return nil
		}
		if r.count >= 8 { // whole bytes that are in the bits
			r.out[r.to] = byte(r.take(8))
			r.to++
			r.stored--
			r.made++
			continue
		}
		if r.pos >= r.end {
			r.fill(1)
			if r.pos >= r.end {
				return r.cut()
			}
		}
		n := copy(r.out[r.to:r.to+min(space, r.stored)], r.in[r.pos:r.end])
		r.pos += n
		r.to += n
		r.stored -= n
		r.made += int64(n)
	}
	r.state = atBlock
	return nil
}
