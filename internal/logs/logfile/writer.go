package logfile

import (
	"bytes"
	"syscall"
	"unsafe"
)

// Defaults of Options.
const (
	DefaultMaxSize  = 20_000_000
	DefaultMaxFiles = 3
	// Unbounded as MaxSize keeps one file that grows for ever.
	Unbounded = -1
)

// Options say where a log is and how large it may grow.
type Options struct {
	Path     string
	MaxSize  int64
	MaxFiles int
	// Sync, if set, is handed each finished file's descriptor, which it closes, to flush it without making the writer wait.
	Sync func(fd int)
}

// Writer appends to a log. One goroutine at a time.
type Writer struct {
	opts Options
	dir  int
	fd   int
	idx  int
	num  int64
	low  int64 // lowest file that is still there
	pos  Position
	next int64 // offset of the next index entry
	lost int64 // bytes that could not be written
	head [RecordHead]byte
	iov  [2]syscall.Iovec
}

// Open opens the log in opts.Path for appending, makes it if it is not there, and repairs the end of what it finds.
func Open(opts Options) (*Writer, error) {
	if opts.MaxSize == 0 {
		opts.MaxSize = DefaultMaxSize
	}
	if opts.MaxFiles <= 0 {
		opts.MaxFiles = DefaultMaxFiles
	}
	if opts.MaxSize < 0 {
		opts.MaxSize = 1 << 62
	}
	const flags = syscall.O_RDONLY | syscall.O_DIRECTORY | syscall.O_CLOEXEC
	dir, err := syscall.Open(opts.Path, flags, 0)
	if err == syscall.ENOENT {
		if err = syscall.Mkdir(opts.Path, 0o700); err == nil || err == syscall.EEXIST {
			dir, err = syscall.Open(opts.Path, flags, 0)
		}
	}
	if err != nil {
		return nil, err
	}
	w := &Writer{opts: opts, dir: dir, fd: -1, idx: -1}
	if err := w.resume(); err != nil {
		w.Close()
		return nil, err
	}
	return w, nil
}

// resume goes to the end of the newest file, or begins the first.
func (w *Writer) resume() error {
	low, high, err := w.list()
	if err != nil {
		return err
	}
	w.low = max(low, 1)
	for ; high > 0; high-- {
		if done, err := w.reopen(high); done || err != nil {
			return err
		}
	}
	return w.begin(1)
}

// reopen goes to the end of file number; false when it is not even a header (made at the moment of a power cut), and then it is removed.
func (w *Writer) reopen(high int64) (done bool, err error) {
	w.num = high
	if w.fd, err = w.openat(Name(high, Plain), syscall.O_RDWR); err != nil {
		if err == syscall.ENOENT { // a gap in the numbers
			return false, nil
		}
		return false, err
	}
	if w.idx, err = w.openat(Name(high, Index), syscall.O_RDWR|syscall.O_CREAT); err != nil {
		return false, err
	}
	if !w.scan() {
		w.closeFiles()
		w.unlink(high)
		return false, nil
	}
	if err := syscall.Ftruncate(w.fd, w.pos.Offset); err != nil {
		return false, err
	}
	_, err = syscall.Seek(w.fd, w.pos.Offset, 0)
	return true, err
}

// list finds the lowest and the highest number in the folder; 0, 0 when it is empty.
func (w *Writer) list() (low, high int64, err error) {
	var buf [4096]byte
	var names []string
	for {
		n, err := syscall.ReadDirent(w.dir, buf[:])
		if err != nil {
			return 0, 0, err
		}
		if n <= 0 {
			break
		}
		_, _, names = syscall.ParseDirent(buf[:n], -1, names[:0])
		for _, name := range names {
			v := max(Number(name, Plain), Number(name, Compressed))
			if v == 0 {
				continue
			}
			if low == 0 || v < low {
				low = v
			}
			high = max(high, v)
		}
	}
	return low, high, nil
}

// scan finds the end of the open file and sets pos there, starting from the last index entry that holds true; false if the file has no header.
func (w *Writer) scan() bool {
	var h [HeaderSize]byte
	if n, _ := syscall.Pread(w.fd, h[:], 0); n < HeaderSize {
		return false
	}
	num, pos, ok := DecodeHeader(h[:])
	if !ok || num != w.num {
		return false
	}
	w.pos = pos
	var st syscall.Stat_t
	if syscall.Fstat(w.fd, &st) != nil {
		return false
	}
	end := w.lastEntry(st.Size)
	buf := make([]byte, 256<<10)
	var r Record
	for {
		n, _ := syscall.Pread(w.fd, buf, w.pos.Offset)
		b, used := buf[:max(n, 0)], 0
		for {
			size, need, ok := DecodeRecord(b[used:], &r)
			if !ok || size == 0 {
				if size == 0 && need > len(buf) {
					buf = make([]byte, need)
				} else if used == 0 {
					w.next = end + IndexEvery
					return true
				}
				break
			}
			w.pos.advance(size, &r)
			used += size
		}
	}
}

// lastEntry moves pos to the last entry of the index that lies within the file, cuts the index after it, and returns where it pointed.
func (w *Writer) lastEntry(size int64) int64 {
	var st syscall.Stat_t
	if syscall.Fstat(w.idx, &st) != nil {
		return w.pos.Offset
	}
	n := st.Size / EntrySize
	for ; n > 0; n-- {
		var e [EntrySize]byte
		syscall.Pread(w.idx, e[:], (n-1)*EntrySize)
		if p, ok := DecodeEntry(e[:]); ok && p.Offset <= size {
			w.pos = p
			break
		}
	}
	syscall.Ftruncate(w.idx, n*EntrySize)
	syscall.Seek(w.idx, n*EntrySize, 0)
	return w.pos.Offset
}

// advance moves p behind a record.
func (p *Position) advance(size int, r *Record) {
	p.Offset += int64(size)
	p.count(r.Stream, r.Time, r.Data)
}

func (p *Position) count(stream int, ns int64, data []byte) {
	p.Latest = max(p.Latest, ns)
	p.Lines[stream] += int64(bytes.Count(data, newline[:]))
	p.Mid &^= 1 << stream
	if data[len(data)-1] != '\n' {
		p.Mid |= 1 << stream
	}
}

var newline = [1]byte{'\n'}

// Advance moves p behind r, a record of size bytes.
func (p *Position) Advance(size int, r *Record) { p.advance(size, r) }

// begin starts file number and drops what is beyond the bound.
func (w *Writer) begin(number int64) error {
	fd, err := w.openat(Name(number, Plain), syscall.O_RDWR|syscall.O_CREAT|syscall.O_EXCL)
	if err != nil {
		return err
	}
	idx, err := w.openat(Name(number, Index), syscall.O_RDWR|syscall.O_CREAT|syscall.O_TRUNC)
	if err != nil {
		syscall.Close(fd)
		return err
	}
	var h [HeaderSize]byte
	if n, err := syscall.Write(fd, AppendHeader(h[:0], number, &w.pos)); n != HeaderSize {
		syscall.Close(fd)
		syscall.Close(idx)
		w.unlink(number)
		if err == nil {
			err = syscall.ENOSPC
		}
		return err
	}
	w.closeFiles()
	w.fd, w.idx, w.num = fd, idx, number
	w.pos.Offset, w.next = HeaderSize, HeaderSize+IndexEvery
	for ; w.low <= number-int64(w.opts.MaxFiles); w.low++ {
		w.unlink(w.low)
	}
	return nil
}

func (w *Writer) unlink(number int64) {
	for _, ext := range [...]string{Plain, Compressed, Index} {
		if p, err := syscall.BytePtrFromString(Name(number, ext)); err == nil {
			syscall.Syscall(syscall.SYS_UNLINKAT, uintptr(w.dir), uintptr(unsafe.Pointer(p)), 0)
		}
	}
}

func (w *Writer) openat(name string, flags int) (int, error) {
	return syscall.Openat(w.dir, name, flags|syscall.O_CLOEXEC|syscall.O_NOFOLLOW, 0o600)
}

// Write appends what a stream said at ns. It keeps what a full disk takes away out of the log as a whole record, and tells later, in the log, how much it was.
func (w *Writer) Write(stream int, ns int64, data []byte) error {
	if w.lost > 0 {
		w.notice(ns)
	}
	for len(data) > 0 {
		n := min(len(data), MaxRecord)
		if room := w.opts.MaxSize - w.pos.Offset - RecordHead; int64(n) > room {
			var err error
			if n, err = w.cut(data[:n], room); err != nil {
				w.lost += int64(len(data))
				return err
			}
		}
		if n == 0 {
			continue // a new file was begun
		}
		if err := w.record(stream, ns, data[:n]); err != nil {
			w.lost += int64(len(data))
			return err
		}
		data = data[n:]
	}
	return nil
}

// cut says how much of data still belongs into the current file, which has room bytes left: up to the last line end that fits; if there is none, the file
// takes a piece without a line end only when it is empty (a line longer than a file). 0 means that a new file was begun.
func (w *Writer) cut(data []byte, room int64) (int, error) {
	if room > 0 {
		if i := bytes.LastIndexByte(data[:room], '\n'); i >= 0 {
			return i + 1, nil
		}
		if w.pos.Offset == HeaderSize {
			return int(room), nil
		}
	}
	if w.pos.Offset == HeaderSize { // a bound too small for a record: one record a file
		if i := bytes.IndexByte(data, '\n'); i >= 0 {
			return i + 1, nil
		}
		return len(data), nil
	}
	return 0, w.begin(w.num + 1)
}

// record appends one record, whole or not at all.
func (w *Writer) record(stream int, ns int64, data []byte) error {
	if w.pos.Offset >= w.next {
		var e [EntrySize]byte
		if n, _ := syscall.Write(w.idx, AppendEntry(e[:0], &w.pos)); n > 0 && n < EntrySize {
			if off, err := syscall.Seek(w.idx, 0, 1); err == nil { // a torn entry would shift those behind it
				syscall.Ftruncate(w.idx, off-int64(n))
				syscall.Seek(w.idx, off-int64(n), 0)
			}
		}
		w.next = w.pos.Offset + IndexEvery
	}
	encodeHead(&w.head, ns, stream, w.pos.Mid, data)
	w.iov[0] = syscall.Iovec{Base: &w.head[0], Len: RecordHead}
	w.iov[1] = syscall.Iovec{Base: &data[0], Len: uint64(len(data))}
	want := RecordHead + len(data)
	for {
		n, _, e := syscall.Syscall(syscall.SYS_WRITEV, uintptr(w.fd), uintptr(unsafe.Pointer(&w.iov[0])), 2)
		if e == syscall.EINTR {
			continue
		}
		if e == 0 && int(n) == want {
			break
		}
		syscall.Ftruncate(w.fd, w.pos.Offset)
		syscall.Seek(w.fd, w.pos.Offset, 0)
		if e == 0 {
			e = syscall.ENOSPC
		}
		return e
	}
	w.pos.Offset += int64(want)
	w.pos.count(stream, ns, data)
	return nil
}

// notice tells how much was lost.
func (w *Writer) notice(ns int64) {
	var buf [96]byte
	b := append(buf[:0], "corten: "...)
	b = appendInt(b, w.lost)
	b = append(b, " bytes of output are missing here: the log could not take them\n"...)
	if w.opts.MaxSize-w.pos.Offset < int64(len(b)+RecordHead) && w.pos.Offset > HeaderSize {
		if w.begin(w.num+1) != nil {
			return
		}
	}
	if w.record(Notice, ns, b) == nil {
		w.lost = 0
	}
}

func appendInt(b []byte, v int64) []byte {
	var d [20]byte
	i := len(d)
	for {
		i--
		d[i] = byte('0' + v%10)
		if v /= 10; v == 0 {
			return append(b, d[i:]...)
		}
	}
}

// Lose counts bytes that never came to Write, so that the log tells of them.
func (w *Writer) Lose(n int64) { w.lost += n }

// Finish tells of losses that no later record told of.
func (w *Writer) Finish(ns int64) {
	if w.lost > 0 {
		w.notice(ns)
	}
}

// Flush makes everything written durable.
func (w *Writer) Flush() error { return syscall.Fdatasync(w.fd) }

func (w *Writer) closeFiles() {
	if w.fd >= 0 {
		if w.opts.Sync != nil {
			w.opts.Sync(w.fd)
		} else {
			syscall.Close(w.fd)
		}
	}
	if w.idx >= 0 {
		syscall.Close(w.idx)
	}
	w.fd, w.idx = -1, -1
}

// Close closes the log; it does not flush it.
func (w *Writer) Close() error {
	w.opts.Sync = nil
	w.closeFiles()
	if w.dir >= 0 {
		syscall.Close(w.dir)
	}
	w.dir = -1
	return nil
}
