package cgroup

import (
	"bytes"
	"fmt"
	"math"
	"strconv"
	"sync"

	"corten.dev/corten/internal/linux/counters"
	"golang.org/x/sys/unix"
)

// reader reads cgroup files and keeps the first real error; a file that is not there counts as zero, since kernels differ in what they keep.
type reader struct {
	buf  *[16384]byte
	err  error
	kept map[file]*counters.Kept // nil: every reading opens its files
	keep *counters.Budget
	stat []Counter // memory.stat of the last reading
	// last is the reading before; nil has everything read. Else what rarely changes is taken from it.
	last *Stats
}

// buffers are for the time of a reading: a thousand meters need one.
var buffers = sync.Pool{New: func() any { return new([16384]byte) }}

// file names one of a cgroup.
type file struct{ dir, name string }

func (r *reader) bytes(dir, name string) []byte {
	if dir == "" || r.err != nil {
		return nil
	}
	n, err := r.into(dir, name)
	if err != nil {
		// Of a cgroup that is gone, an open file says so; who opens anew finds nothing, which counts as zero.
		if !missingFile(err) && (!unsupported(err) || r.kept != nil && isErrno(err, unix.ENODEV)) {
			r.err = err
		}
		return nil
	}
	return r.buf[:n]
}

func (r *reader) into(dir, name string) (int, error) {
	if r.kept == nil {
		return readInto(dir, name, r.buf[:])
	}
	f := r.kept[file{dir, name}]
	if f == nil {
		f = counters.New(dir+"/"+name, r.keep)
		r.kept[file{dir, name}] = f
	}
	return f.Read(r.buf[:])
}

func (r *reader) uint(dir, name string) uint64 {
	return parseUint(r.bytes(dir, name))
}

// parseUint reads a number; "max" is the greatest one, anything else zero.
func parseUint(b []byte) uint64 {
	b = bytes.TrimSpace(b)
	if string(b) == "max" {
		return math.MaxUint64
	}
	var n uint64
	for _, c := range b {
		if c < '0' || c > '9' {
			return 0
		}
		n = n*10 + uint64(c-'0')
	}
	return n
}

// lines calls fn for each "key value" line.
func lines(b []byte, fn func(key []byte, val uint64)) {
	for len(b) > 0 {
		var line []byte
		line, b, _ = bytes.Cut(b, []byte{'\n'})
		if key, val, ok := bytes.Cut(line, []byte{' '}); ok {
			fn(key, parseUint(val))
		}
	}
}

func readUint(dir, name string) (uint64, error) {
	s, err := readFile(dir, name)
	if err != nil {
		return 0, err
	}
	if s == "max" {
		return math.MaxUint64, nil
	}
	n, err := strconv.ParseUint(s, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("%s/%s: %w", dir, name, err)
	}
	return n, nil
}
