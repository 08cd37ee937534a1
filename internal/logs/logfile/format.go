// Package logfile is the format of a log folder and the half that writes it.
//
// It owns the files in the folder. It links nothing but system calls, because it runs inside the monitor; reading is package logs. It promises what package
// logs promises of a record that Write returned for.
//
// A folder holds numbered files, the highest of which grows; when the bound is reached the lowest goes:
//
//	00000007.log   header │ record │ record │ …
//	00000007.idx   entry │ entry │ …            a hint only: it may be short or gone, and then reading starts at the file's first record
//	00000006.log.zst                            a finished file that the engine has compressed, instead of its .log (or for a moment beside it)
//
//	header   magic "CORTLOG1" │ number u64 │ lines before, of each stream, 3×u64 │ mid u8 │ 0 ×3 │ crc u32                     48 bytes
//	record   length u32 │ crc u32 │ time i64 │ stream u8 │ mid u8 │ 0 u16 │ bytes                                              20 bytes + length
//	entry    offset u64 │ latest time before i64 │ lines before, of each stream, 3×u64 │ mid u8 │ 0 ×3 │ crc u32               48 bytes
//
// Numbers are little endian, times are CLOCK_REALTIME in ns, crc is CRC-32C of the rest of the structure (of a record: of everything after it, bytes included).
// A record is what one read of a pipe gave: part of a line, a line or many. mid has bit 1<<stream set when that stream stands in the middle of a line before
// the record (the entry, the file). A line may go on in the next file: files are cut where a line ends if that is possible (it is not within a line longer
// than a file), and a reader joins the pieces; what is left of a line whose beginning went with the lowest file is skipped.
// A record that is torn (short, or its crc is wrong) ends a file: it is what was being written at a power cut. The next writer cuts it off.
package logfile

import "hash/crc32"

// Streams. Notice is the monitor's own voice ("… bytes of output were lost"); readers show it as a line of stderr.
const (
	Stdout = 1
	Stderr = 2
	Notice = 3
)

// Sizes of the structures, and the largest record.
const (
	HeaderSize = 48
	RecordHead = 20
	EntrySize  = 48
	MaxRecord  = 1 << 20
	// IndexEvery is how many bytes of a log one index entry stands for.
	IndexEvery = 128 << 10
)

// What the names of files end in.
const (
	Plain      = ".log"
	Compressed = ".log.zst"
	Index      = ".idx"
)

const magic = "CORTLOG1"

// Position is a place in a log with what is known of everything before it.
type Position struct {
	Offset int64    // in an entry; in a header the number of the file
	Latest int64    // latest time before
	Lines  [4]int64 // complete lines before, by stream, since the log began
	Mid    uint8    // bit 1<<stream: a line is unfinished here
}

// Record is a decoded record.
type Record struct {
	Time   int64
	Stream int
	Mid    uint8
	Data   []byte
}

// Castagnoli table: made once at start-up (the processor computes it; the table is only a fallback).
func table() *crc32.Table { return crc32.MakeTable(crc32.Castagnoli) }

func put32(b []byte, v uint32) {
	_ = b[3]
	b[0], b[1], b[2], b[3] = byte(v), byte(v>>8), byte(v>>16), byte(v>>24)
}
func get32(b []byte) uint32 {
	_ = b[3]
	return uint32(b[0]) | uint32(b[1])<<8 | uint32(b[2])<<16 | uint32(b[3])<<24
}
func put64(b []byte, v uint64) { put32(b, uint32(v)); put32(b[4:], uint32(v>>32)) }
func get64(b []byte) uint64    { return uint64(get32(b)) | uint64(get32(b[4:]))<<32 }

// Name is the name of a file of the log.
func Name(number int64, ext string) string {
	var b [20]byte
	i := len(b)
	for n := 0; n < 8 || number > 0; n++ {
		i--
		b[i] = byte('0' + number%10)
		number /= 10
	}
	return string(b[i:]) + ext
}

// Number reads a name back; 0 if it is not the name of a log file (ext ".log" or ".idx").
func Number(name, ext string) int64 {
	n := len(name) - len(ext)
	if n < 8 || n > 18 || name[n:] != ext {
		return 0
	}
	var v int64
	for _, c := range []byte(name[:n]) {
		if c < '0' || c > '9' {
			return 0
		}
		v = v*10 + int64(c-'0')
	}
	return v
}

// AppendHeader encodes the header of file number, before which p is.
func AppendHeader(b []byte, number int64, p *Position) []byte {
	var h [HeaderSize]byte
	copy(h[:], magic)
	put64(h[8:], uint64(number))
	for i := 0; i < 3; i++ {
		put64(h[16+8*i:], uint64(p.Lines[i+1]))
	}
	h[40] = p.Mid
	put32(h[44:], crc32.Checksum(h[:44], table()))
	return append(b, h[:]...)
}

// DecodeHeader reads a header; ok is false if it is none. The position's offset is HeaderSize.
func DecodeHeader(b []byte) (number int64, p Position, ok bool) {
	if len(b) < HeaderSize || string(b[:8]) != magic || get32(b[44:]) != crc32.Checksum(b[:44], table()) {
		return 0, p, false
	}
	for i := 0; i < 3; i++ {
		p.Lines[i+1] = int64(get64(b[16+8*i:]))
	}
	p.Mid, p.Offset = b[40], HeaderSize
	return int64(get64(b[8:])), p, true
}

// AppendEntry encodes an index entry.
func AppendEntry(b []byte, p *Position) []byte {
	var e [EntrySize]byte
	put64(e[0:], uint64(p.Offset))
	put64(e[8:], uint64(p.Latest))
	for i := 0; i < 3; i++ {
		put64(e[16+8*i:], uint64(p.Lines[i+1]))
	}
	e[40] = p.Mid
	put32(e[44:], crc32.Checksum(e[:44], table()))
	return append(b, e[:]...)
}

// DecodeEntry reads an index entry.
func DecodeEntry(b []byte) (p Position, ok bool) {
	if len(b) < EntrySize || get32(b[44:]) != crc32.Checksum(b[:44], table()) {
		return p, false
	}
	p.Offset, p.Latest, p.Mid = int64(get64(b)), int64(get64(b[8:])), b[40]
	for i := 0; i < 3; i++ {
		p.Lines[i+1] = int64(get64(b[16+8*i:]))
	}
	return p, p.Offset >= HeaderSize
}

// encodeHead writes the head of a record whose bytes are data.
func encodeHead(h *[RecordHead]byte, ns int64, stream int, mid uint8, data []byte) {
	put32(h[0:], uint32(len(data)))
	put64(h[8:], uint64(ns))
	h[16], h[17], h[18], h[19] = byte(stream), mid, 0, 0
	crc := crc32.Update(crc32.Checksum(h[8:], table()), table(), data)
	put32(h[4:], crc)
}

// DecodeRecord reads the record at the front of b. size is its whole length; 0 means that b does not hold it whole (need tells how many bytes would do),
// and ok false with a size means that it is torn or foreign.
func DecodeRecord(b []byte, r *Record) (size, need int, ok bool) {
	if len(b) < RecordHead {
		return 0, RecordHead, false
	}
	n := int(get32(b))
	if n == 0 || n > MaxRecord {
		return RecordHead, 0, false
	}
	size = RecordHead + n
	if len(b) < size {
		return 0, size, false
	}
	r.Time, r.Stream, r.Mid, r.Data = int64(get64(b[8:])), int(b[16]), b[17], b[RecordHead:size:size]
	ok = get32(b[4:]) == crc32.Checksum(b[8:size], table()) && r.Stream >= Stdout && r.Stream <= Notice
	return size, size, ok
}
