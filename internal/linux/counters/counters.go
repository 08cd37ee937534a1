// Package counters reads small files of the kernel again and again: the figures of cgroups, the counters of network interfaces.
//
// It owns the descriptors that it keeps open. It promises that a reading after the first costs one system call, a tenth of opening the file anew; that a file which is not
// there is looked for once; and that what is kept is bounded (see [Budget]).
package counters

import (
	"errors"
	"io/fs"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// Budget bounds how many descriptors are kept open in all; the files beyond it are opened for each reading. Its zero keeps none.
type Budget struct {
	max  int64
	used atomic.Int64
}

// NewBudget allows so many.
func NewBudget(limit int) *Budget { return &Budget{max: int64(limit)} }

// Used is how many are kept now.
func (b *Budget) Used() int { return int(b.used.Load()) }

func (b *Budget) take() bool {
	if b == nil {
		return false
	}
	if b.used.Add(1) > b.max {
		b.used.Add(-1)
		return false
	}
	return true
}

func (b *Budget) give() { b.used.Add(-1) }

// Kept is one file. It belongs to one goroutine at a time.
type Kept struct {
	path   string
	budget *Budget
	fd     int // -1: not open
	absent bool
}

// New names a file; it is opened by the first Read. A nil budget keeps it never open.
func New(path string, budget *Budget) *Kept { return &Kept{path: path, budget: budget, fd: -1} }

// Read fills buf with the file's content as it is now. A file that is longer is cut. fs.ErrNotExist tells that there is no such file; it is not looked for again.
func (k *Kept) Read(buf []byte) (int, error) {
	if k.absent {
		return 0, &fs.PathError{Op: "open", Path: k.path, Err: unix.ENOENT}
	}
	if k.fd < 0 {
		fd, err := open(k.path)
		if err != nil {
			k.absent = err == unix.ENOENT
			return 0, &fs.PathError{Op: "open", Path: k.path, Err: err}
		}
		if !k.budget.take() {
			defer unix.Close(fd) //nolint:errcheck // read only
			return k.fill(fd, buf)
		}
		k.fd = fd
	}
	return k.fill(k.fd, buf)
}

func open(path string) (int, error) {
	for {
		fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != unix.EINTR {
			return fd, err
		}
	}
}

// fill reads from the beginning. Files of this kind give all they have to one reading with room enough; only a full buffer or page may hide more.
func (k *Kept) fill(fd int, buf []byte) (int, error) {
	n := 0
	for n < len(buf) {
		c, err := unix.Pread(fd, buf[n:], int64(n))
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return 0, &fs.PathError{Op: "read", Path: k.path, Err: err}
		}
		n += c
		if c == 0 || n < page {
			break
		}
	}
	return n, nil
}

// page is how much the kernel makes of such a file at once.
const page = 4096

// Close lets the file go. It may be read again.
func (k *Kept) Close() {
	if k.fd >= 0 {
		_ = unix.Close(k.fd) // read only
		k.fd = -1
		k.budget.give()
	}
}
