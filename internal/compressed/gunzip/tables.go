package gunzip

import "math/bits"

const (
	litBits  = 11
	distBits = 8
	maxBits  = 15
	// With 288 symbols of at most 15 bits, a table of 11 bits and its second tables need 2342 entries; 32 symbols and 8 bits need 402 (zlib's enough.c). Powers of
	// two, so that an index that is masked needs no check.
	litTable  = 4096
	distTable = 1024
)

// Entries of the literal and length table:
//
//	literal   1<<31 | byte<<16 | bits of the code
//	length    base<<16 | bits of the code<<8 | bits of the code and of what is added
//	second    1<<30 | 1<<29 | start<<16 | bits of its index<<8
//	end       1<<30 | bits of the code
//	nothing   1<<30
//
// and of the distance table:
//
//	distance  base<<16 | bits of the code<<8 | bits of the code and of what is added
//	second    1<<31 | start<<16 | bits of its index<<8
//	nothing   1<<31
const (
	isLiteral = 1 << 31
	isOther   = 1 << 30
	isSecond  = 1 << 29
	distOther = 1 << 31
)

var (
	lengthBase  = [29]uint16{3, 4, 5, 6, 7, 8, 9, 10, 11, 13, 15, 17, 19, 23, 27, 31, 35, 43, 51, 59, 67, 83, 99, 115, 131, 163, 195, 227, 258}
	lengthExtra = [29]uint8{0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3, 4, 4, 4, 4, 5, 5, 5, 5, 0}
	distBase    = [30]uint16{1, 2, 3, 4, 5, 7, 9, 13, 17, 25, 33, 49, 65, 97, 129, 193, 257, 385, 513, 769, 1025, 1537, 2049, 3073, 4097, 6145, 8193, 12289, 16385, 24577}
	distExtra   = [30]uint8{0, 0, 0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7, 8, 8, 9, 9, 10, 10, 11, 11, 12, 12, 13, 13}
	codeOrder   = [19]uint8{16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15}
)

func litEntry(sym int, n uint32) uint32 {
	switch {
	case sym < 256:
		return isLiteral | uint32(sym)<<16 | n
	case sym == 256:
		return isOther | n
	case sym < 286:
		return uint32(lengthBase[sym-257])<<16 | n<<8 | (n + uint32(lengthExtra[sym-257]))
	}
	return isOther
}

func distEntry(sym int, n uint32) uint32 {
	if sym < 30 {
		return uint32(distBase[sym])<<16 | n<<8 | (n + uint32(distExtra[sym]))
	}
	return distOther
}

// table describes the table to build.
type table struct {
	entries []uint32
	bits    uint // of the first index
	entry   func(sym int, n uint32) uint32
	nothing uint32
	second  uint32 // marks a second table
}

// build fills a table from the lengths of the codes. As with compress/flate, a code must be complete, but for one that is empty or has a single code of one bit.
func (t table) build(lengths []uint8) bool {
	var count, next [maxBits + 1]int
	longest := 0
	for _, n := range lengths {
		count[n]++
		longest = max(longest, int(n))
	}
	first := t.entries[:1<<t.bits]
	for i := range first {
		first[i] = t.nothing
	}
	if longest == 0 {
		return true
	}
	code := 0
	for n := 1; n <= longest; n++ {
		code <<= 1
		next[n] = code
		code += count[n]
	}
	if code != 1<<longest && !(code == 1 && longest == 1) {
		return false
	}
	if longest <= int(t.bits) {
		for sym, n := range lengths {
			if n != 0 {
				t.short(reverse(next[n], n), uint(n), t.entry(sym, uint32(n)))
				next[n]++
			}
		}
		return true
	}
	return t.long(lengths, &next)
}

func reverse(code int, n uint8) int { return int(bits.Reverse16(uint16(code)) >> (16 - n)) }

func (t table) short(at int, n uint, entry uint32) {
	for ; at < 1<<t.bits; at += 1 << n {
		t.entries[at] = entry
	}
}

// long builds a table some of whose codes need a second one.
func (t table) long(lengths []uint8, next *[maxBits + 1]int) bool {
	var deep [1 << litBits]uint8 // how many more bits the codes with this beginning have
	mask := 1<<t.bits - 1
	codes := *next
	for _, n := range lengths {
		if n == 0 {
			continue
		}
		if uint(n) > t.bits {
			at := reverse(codes[n], n) & mask
			deep[at] = max(deep[at], n-uint8(t.bits))
		}
		codes[n]++
	}
	free := 1 << t.bits
	for at, n := range deep[:1<<t.bits] {
		if n == 0 {
			continue
		}
		if free+1<<n > len(t.entries) {
			return false
		}
		t.entries[at] = t.second | uint32(free)<<16 | uint32(n)<<8
		for i := range 1 << n {
			t.entries[free+i] = t.nothing
		}
		free += 1 << n
	}
	for sym, n := range lengths {
		if n == 0 {
			continue
		}
		code := reverse(next[n], n)
		next[n]++
		if uint(n) <= t.bits {
			t.short(code, uint(n), t.entry(sym, uint32(n)))
			continue
		}
		second := t.entries[code&mask]
		start, width := int(second>>16&0x1fff), 1<<(second>>8&0xf)
		for i := code >> t.bits; i < width; i += 1 << (uint(n) - t.bits) {
			t.entries[start+i] = t.entry(sym, uint32(n))
		}
	}
	return true
}

func (r *Reader) build(lit, dist []uint8) bool {
	return table{r.lit[:], litBits, litEntry, isOther, isOther | isSecond}.build(lit) &&
		table{r.dist[:], distBits, distEntry, distOther, distOther}.build(dist)
}

func (r *Reader) fixed() bool {
	var lit [288]uint8
	for i := range lit {
		switch {
		case i < 144:
			lit[i] = 8
		case i < 256:
			lit[i] = 9
		case i < 280:
			lit[i] = 7
		default:
			lit[i] = 8
		}
	}
	var dist [32]uint8
	for i := range dist {
		dist[i] = 5
	}
	return r.build(lit[:], dist[:])
}

// dynamic reads the codes of a block.
func (r *Reader) dynamic() error {
	v, err := r.get(14)
	if err != nil {
		return err
	}
	lits, dists, codes := int(v&31)+257, int(v>>5&31)+1, int(v>>10)+4
	if lits > 286 || dists > 30 {
		return ErrCorrupt
	}
	var lengths [19]uint8
	for _, at := range codeOrder[:codes] {
		n, err := r.get(3)
		if err != nil {
			return err
		}
		lengths[at] = uint8(n)
	}
	var small [1 << 7]uint32
	plain := func(sym int, n uint32) uint32 { return uint32(sym)<<16 | n }
	if !(table{small[:], 7, plain, 0, 0}).build(lengths[:]) {
		return ErrCorrupt
	}
	var all [286 + 30]uint8
	for i := 0; i < lits+dists; {
		sym, err := r.symbol(&small)
		if err != nil {
			return err
		}
		if sym < 16 {
			all[i] = uint8(sym)
			i++
			continue
		}
		again, val, err := r.repeat(sym, i, &all)
		if err != nil {
			return err
		}
		if i+again > lits+dists {
			return ErrCorrupt
		}
		for range again {
			all[i] = val
			i++
		}
	}
	if all[256] == 0 || !r.build(all[:lits], all[lits:lits+dists]) {
		return ErrCorrupt
	}
	return nil
}

// symbol reads one code length's symbol. Near the end of the input there may be fewer bits than the longest code has.
func (r *Reader) symbol(small *[1 << 7]uint32) (int, error) {
	for {
		e := small[r.bits&(1<<7-1)]
		if n := uint(e & 0xff); n > 0 && n <= r.count {
			r.take(n)
			return int(e >> 16), nil
		} else if n == 0 && r.count >= 7 {
			return 0, ErrCorrupt
		}
		if err := r.need(r.count + 1); err != nil {
			return 0, err
		}
	}
}

func (r *Reader) repeat(sym, i int, all *[286 + 30]uint8) (n int, val uint8, err error) {
	var more uint32
	switch sym {
	case 16:
		if i == 0 {
			return 0, 0, ErrCorrupt
		}
		more, err = r.get(2)
		return 3 + int(more), all[i-1], err
	case 17:
		more, err = r.get(3)
		return 3 + int(more), 0, err
	}
	more, err = r.get(7)
	return 11 + int(more), 0, err
}
