package logs

import (
	"encoding/binary"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// Watches tells of changes in many log folders with one inotify instance: the kernel gives a user few of those.
type Watches struct {
	f *os.File // nil where the kernel gives none

	mu   sync.Mutex // guards byWD
	byWD map[int32]map[chan struct{}]struct{}
}

// NewWatches opens the instance. Where the kernel has none left, Add says so each time.
func NewWatches() *Watches {
	w := &Watches{byWD: map[int32]map[chan struct{}]struct{}{}}
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return w
	}
	w.f = os.NewFile(uintptr(fd), "inotify")
	go w.read()
	return w
}

func (w *Watches) read() {
	buf := make([]byte, 16<<10)
	for {
		n, err := w.f.Read(buf)
		if err != nil {
			return
		}
		w.mu.Lock()
		for b := buf[:n]; len(b) >= unix.SizeofInotifyEvent; {
			wd := int32(binary.NativeEndian.Uint32(b))
			mask, size := binary.NativeEndian.Uint32(b[4:]), binary.NativeEndian.Uint32(b[12:])
			b = b[min(unix.SizeofInotifyEvent+int(size), len(b)):]
			if mask&unix.IN_Q_OVERFLOW != 0 { // somebody's event is lost: everybody looks
				for _, set := range w.byWD {
					wake(set)
				}
				continue
			}
			wake(w.byWD[wd])
		}
		w.mu.Unlock()
	}
}

func wake(set map[chan struct{}]struct{}) {
	for c := range set {
		select {
		case c <- struct{}{}:
		default:
		}
	}
}

// Add watches a folder. The channel gets a value when something was written there since the last one was taken; it is nil where the folder cannot be watched, and then the caller
// has to look from time to time. remove ends it.
func (w *Watches) Add(dir string) (changed <-chan struct{}, remove func()) {
	if w.f == nil {
		return nil, func() {}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	wd := int32(-1)
	raw, err := w.f.SyscallConn()
	if err == nil {
		err = raw.Control(func(fd uintptr) {
			n, werr := unix.InotifyAddWatch(int(fd), dir, unix.IN_MODIFY|unix.IN_CREATE|unix.IN_ONLYDIR)
			if werr == nil {
				wd = int32(n)
			}
		})
	}
	if err != nil || wd < 0 {
		return nil, func() {}
	}
	c := make(chan struct{}, 1)
	if w.byWD[wd] == nil {
		w.byWD[wd] = map[chan struct{}]struct{}{}
	}
	w.byWD[wd][c] = struct{}{}
	return c, func() { w.remove(wd, c) }
}

func (w *Watches) remove(wd int32, c chan struct{}) {
	w.mu.Lock()
	defer w.mu.Unlock()
	set := w.byWD[wd]
	delete(set, c)
	if len(set) > 0 || w.byWD[wd] == nil {
		return
	}
	delete(w.byWD, wd)
	if raw, err := w.f.SyscallConn(); err == nil {
		_ = raw.Control(func(fd uintptr) { _, _ = unix.InotifyRmWatch(int(fd), uint32(wd)) }) // the folder may be gone, and the watch with it
	}
}

// Close ends all watches.
func (w *Watches) Close() error {
	if w.f == nil {
		return nil
	}
	return w.f.Close()
}
