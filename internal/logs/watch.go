package logs

import (
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// watcher wakes a follower when the folder changes. Where the kernel gives no inotify instance (there is a bound for each user) or the folder does not exist yet,
// the follower looks every 50 ms.
type watcher struct {
	dir string
	f   *os.File
	ch  chan struct{}
}

const (
	pollEvery = 50 * time.Millisecond
	recheck   = 2 * time.Second // a watched folder too, in case an event was lost
)

func newWatcher(dir string) *watcher {
	w := &watcher{dir: dir, ch: make(chan struct{}, 1)}
	w.begin()
	return w
}

func (w *watcher) begin() {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return
	}
	if _, err := unix.InotifyAddWatch(fd, w.dir, unix.IN_MODIFY|unix.IN_CREATE|unix.IN_ONLYDIR); err != nil {
		unix.Close(fd)
		return
	}
	w.f = os.NewFile(uintptr(fd), "inotify")
	go func(f *os.File) {
		buf := make([]byte, 4096)
		for {
			if _, err := f.Read(buf); err != nil {
				return
			}
			select {
			case w.ch <- struct{}{}:
			default:
			}
		}
	}(w.f)
}

func (w *watcher) wake() <-chan struct{} { return w.ch }

func (w *watcher) interval() time.Duration {
	if w.f == nil {
		w.begin()
		return pollEvery // also when it is watched from now on: what came just before must not wait
	}
	return recheck
}

func (w *watcher) close() {
	if w != nil && w.f != nil {
		w.f.Close()
	}
}
