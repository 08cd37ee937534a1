package netlink

import (
	"encoding/binary"
	"net/netip"

	"golang.org/x/sys/unix"
)

// Batch is a row of requests, built in place. The zero value is ready; Reset makes it ready again.
type Batch struct {
	buf    []byte
	starts []int
	names  []string
}

// Reset forgets the requests and keeps the memory.
func (b *Batch) Reset() { b.buf, b.starts, b.names = b.buf[:0], b.starts[:0], b.names[:0] }

// Len is the number of requests, Size their bytes.
func (b *Batch) Len() int  { return len(b.starts) }
func (b *Batch) Size() int { return len(b.buf) }

// Begin starts a request; name says in an error what it was for. NLM_F_REQUEST is added.
func (b *Batch) Begin(name string, typ, flags uint16, header []byte) {
	b.starts = append(b.starts, len(b.buf))
	b.names = append(b.names, name)
	b.buf = append(b.buf, make([]byte, headerLen)...)
	at := b.starts[len(b.starts)-1]
	native.PutUint16(b.buf[at+4:], typ)
	native.PutUint16(b.buf[at+6:], flags|unix.NLM_F_REQUEST)
	b.buf = append(b.buf, header...)
	b.pad()
}

// End finishes the request that Begin started.
func (b *Batch) End() {
	at := b.starts[len(b.starts)-1]
	native.PutUint32(b.buf[at:], uint32(len(b.buf)-at))
}

// Bytes adds an attribute.
func (b *Batch) Bytes(typ uint16, data []byte) {
	b.head(typ, len(data))
	b.buf = append(b.buf, data...)
	b.pad()
}

// Addr adds an attribute of 4 or 16 bytes.
func (b *Batch) Addr(typ uint16, a netip.Addr) { b.Bytes(typ, a.AsSlice()) }

// String adds a NUL-terminated text.
func (b *Batch) String(typ uint16, s string) {
	b.head(typ, len(s)+1)
	b.buf = append(append(b.buf, s...), 0)
	b.pad()
}

// Flag adds an attribute without content.
func (b *Batch) Flag(typ uint16) { b.head(typ, 0) }

// U8, U16 and U32 add numbers in the machine's order, BE16, BE32 and BE64 in the network's.
func (b *Batch) U8(typ uint16, v uint8) { b.Bytes(typ, []byte{v}) }
func (b *Batch) U16(typ uint16, v uint16) {
	b.head(typ, 2)
	b.buf = native.AppendUint16(b.buf, v)
	b.pad()
}
func (b *Batch) U32(typ uint16, v uint32) {
	b.head(typ, 4)
	b.buf = native.AppendUint32(b.buf, v)
}
func (b *Batch) BE16(typ uint16, v uint16) {
	b.head(typ, 2)
	b.buf = binary.BigEndian.AppendUint16(b.buf, v)
	b.pad()
}
func (b *Batch) BE32(typ uint16, v uint32) {
	b.head(typ, 4)
	b.buf = binary.BigEndian.AppendUint32(b.buf, v)
}
func (b *Batch) BE64(typ uint16, v uint64) {
	b.head(typ, 8)
	b.buf = binary.BigEndian.AppendUint64(b.buf, v)
}

// Nest adds an attribute made of the attributes (and headers) that fill adds.
func (b *Batch) Nest(typ uint16, fill func()) {
	at := len(b.buf)
	b.head(typ|unix.NLA_F_NESTED, 0)
	fill()
	native.PutUint16(b.buf[at:], uint16(len(b.buf)-at))
	b.pad()
}

// Raw adds bytes as they are, for headers inside a nest.
func (b *Batch) Raw(p []byte) {
	b.buf = append(b.buf, p...)
	b.pad()
}

func (b *Batch) head(typ uint16, n int) {
	b.buf = native.AppendUint16(b.buf, uint16(n+4))
	b.buf = native.AppendUint16(b.buf, typ)
}

func (b *Batch) pad() {
	for len(b.buf)&3 != 0 {
		b.buf = append(b.buf, 0)
	}
}
