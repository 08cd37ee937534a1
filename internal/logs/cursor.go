package logs

import (
	"cmp"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"corten.dev/corten/internal/logs/logfile"
)

const bufferSize = 512 << 10

// cursor walks the records of a folder, from file to file.
type cursor struct {
	dir  string
	size int // of the buffer; 0: bufferSize
	f    *os.File
	num  int64
	off  int64 // where the bytes behind buf[w] are in the file
	buf  []byte
	r, w int
	head logfile.Position // of the open file
	stop place            // what begins here or later is left alone; zero for all
	gap  bool             // files between this one and the last are gone: the reader was too slow for the bound
}

// place is a place in the log.
type place struct{ num, off int64 }

// beyond reports whether the next record is none of what is to be read.
func (c *cursor) beyond() bool {
	return c.stop.num > 0 && (c.num > c.stop.num || c.num == c.stop.num && c.at() >= c.stop.off)
}

// numbers are the files in the folder, lowest first.
func (c *cursor) numbers() ([]int64, error) {
	d, err := os.Open(c.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer d.Close()
	names, err := d.Readdirnames(-1)
	if err != nil {
		return nil, err
	}
	var all []int64
	for _, name := range names {
		if n := max(logfile.Number(name, logfile.Plain), logfile.Number(name, logfile.Compressed)); n > 0 {
			all = append(all, n)
		}
	}
	slices.Sort(all)
	return slices.Compact(all), nil // while it is compressed a file is there twice
}

// open goes to the first record of file number. It reports false when the file is gone, or its header is not written yet.
func (c *cursor) open(number int64) (bool, error) {
	f, err := openPlain(c.dir, number)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	var h [logfile.HeaderSize]byte
	n, err := f.ReadAt(h[:], 0)
	if err != nil && err != io.EOF {
		f.Close()
		return false, err
	}
	num, pos, ok := logfile.DecodeHeader(h[:n])
	if !ok || num != number {
		f.Close()
		return false, nil
	}
	c.close()
	c.f, c.num, c.head = f, number, pos
	c.seek(logfile.HeaderSize)
	return true, nil
}

func (c *cursor) close() {
	if c.f != nil {
		c.f.Close()
		c.f = nil
	}
}

func (c *cursor) seek(off int64) { c.off, c.r, c.w = off, 0, 0 }

// at is the offset of the next record.
func (c *cursor) at() int64 { return c.off - int64(c.w-c.r) }

// fill reads more behind what the buffer holds; false when the file has no more for now. Data of earlier records is overwritten.
func (c *cursor) fill(need int) (bool, error) {
	if c.buf == nil {
		c.buf = make([]byte, cmp.Or(c.size, bufferSize))
	}
	copy(c.buf, c.buf[c.r:c.w])
	c.r, c.w = 0, c.w-c.r
	if need > len(c.buf) {
		c.buf = append(c.buf, make([]byte, need-len(c.buf))...)
	}
	n, err := c.f.ReadAt(c.buf[c.w:], c.off)
	c.w += n
	c.off += int64(n)
	if err == io.EOF {
		err = nil
	}
	return n > 0, err
}

// buffered gives the next record that is in the buffer already; size is 0 if there is none.
func (c *cursor) buffered(r *logfile.Record) (size int) {
	size, _, ok := logfile.DecodeRecord(c.buf[c.r:c.w], r)
	if !ok || c.beyond() {
		return 0
	}
	c.r += size
	return size
}

// next gives the next record of this file or a later one; false at what is the end for now.
func (c *cursor) next(r *logfile.Record) (bool, error) {
	for {
		if c.f == nil {
			ok, err := c.begin(0)
			if !ok || err != nil {
				return false, err
			}
		}
		if c.beyond() {
			return false, nil
		}
		size, need, ok := logfile.DecodeRecord(c.buf[c.r:c.w], r)
		if ok {
			c.r += size
			return true, nil
		}
		if size == 0 {
			more, err := c.fill(need)
			if err != nil {
				return false, err
			}
			if more {
				continue
			}
		}
		// Half a record, or one that is wrong: it is being written, or was at a power cut, and then the next writer cuts it off. Look at it again later.
		c.seek(c.at())
		later, err := c.later()
		if err != nil || later == 0 {
			return false, err
		}
		// There is a later file, so this one is finished; it may have grown since.
		if more, err := c.fill(0); err != nil {
			return false, err
		} else if more {
			if size, need, ok := logfile.DecodeRecord(c.buf[c.r:c.w], r); ok || (size == 0 && need > c.w-c.r && c.w == len(c.buf)) {
				continue
			}
		}
		gap := later != c.num+1
		if opened, err := c.open(later); err != nil || !opened {
			return false, err
		}
		c.gap = c.gap || gap
	}
}

// fits reads the next record of this file if it is not younger than ns.
func (c *cursor) fits(r *logfile.Record, ns int64) (bool, error) {
	for {
		size, need, ok := logfile.DecodeRecord(c.buf[c.r:c.w], r)
		if ok && r.Time <= ns {
			c.r += size
			return true, nil
		}
		if ok || size > 0 {
			return false, nil
		}
		if more, err := c.fill(need); !more || err != nil {
			return false, err
		}
	}
}

// later is the lowest number above the open file's; 0 if there is none.
func (c *cursor) later() (int64, error) {
	if _, err := os.Lstat(filepath.Join(c.dir, logfile.Name(c.num+1, logfile.Plain))); err == nil {
		return c.num + 1, nil
	}
	all, err := c.numbers()
	for _, n := range all {
		if n > c.num {
			return n, err
		}
	}
	return 0, err
}

// begin opens the lowest file from number on.
func (c *cursor) begin(number int64) (bool, error) {
	all, err := c.numbers()
	if err != nil {
		return false, err
	}
	for _, n := range all {
		if n < number {
			continue
		}
		if ok, err := c.open(n); ok || err != nil {
			return ok, err
		}
	}
	return false, nil
}

// index is what the open file's index says, the beginning of the file first.
func (c *cursor) index() []logfile.Position {
	all := []logfile.Position{c.head}
	b, err := os.ReadFile(filepath.Join(c.dir, logfile.Name(c.num, logfile.Index)))
	if err != nil { // it is a hint only
		return all
	}
	st, err := c.f.Stat()
	if err != nil {
		return all
	}
	for ; len(b) >= logfile.EntrySize; b = b[logfile.EntrySize:] {
		p, ok := logfile.DecodeEntry(b)
		if !ok || p.Offset > st.Size() || p.Offset < all[len(all)-1].Offset {
			break
		}
		all = append(all, p)
	}
	return all
}
