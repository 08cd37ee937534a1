package mount

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"sync"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/linux/ns"
	"golang.org/x/sys/unix"
)

// Holder clones detached mounts, and parts of them, on every kernel. One of 6.15 or later clones what is detached as it clones anything else. An older one clones only what is attached in
// the caller's mount namespace; so there is a namespace for just that, without anything of the host in it, and a thread in it that stays:
//
//	detached mount ──attach──▶ /<n> in the holder's namespace ──open_tree──▶ clones, detached again, to be attached anywhere
//	                              └─ taken down with the last release
//
// The zero value is ready. It may be used by many goroutines.
type Holder struct {
	slow bool // for tests: as on an older kernel

	mu    sync.Mutex
	calls chan func()           // to the thread; nil until it is needed
	held  map[uint64]*heldMount // by the number of the mount
	next  int
}

type heldMount struct {
	name string
	uses int
}

// Clone gives a detached mount of what at is: the root of the mount whole, or a file or directory in it. The caller closes it, and calls release once no more clones are needed.
func (h *Holder) Clone(whole, at *os.File) (tree *os.File, release func() error, err error) {
	if !h.slow {
		tree, err = TreeAt(at, false)
		if err == nil || !errors.Is(err, unix.EINVAL) {
			return tree, func() error { return nil }, err
		}
	}
	h.mu.Lock() // one at a time: it takes microseconds, and is for old kernels
	defer h.mu.Unlock()
	if err := h.begin(); err != nil {
		return nil, nil, err
	}
	var st unix.Statx_t
	if err := unix.Statx(int(whole.Fd()), "", unix.AT_EMPTY_PATH, unix.STATX_MNT_ID, &st); err != nil {
		return nil, nil, fmt.Errorf("hold mount: %w", err)
	}
	if st.Mask&unix.STATX_MNT_ID == 0 {
		return nil, nil, errs.New(errs.NotImplemented, "part of a detached mount: this kernel does not number mounts (Linux 5.8 does)")
	}
	done := make(chan struct{})
	h.calls <- func() {
		defer close(done)
		tree, err = h.cloneHeld(whole, at, st.Mnt_id)
	}
	<-done
	if err != nil {
		return nil, nil, err
	}
	return tree, func() error { return h.drop(st.Mnt_id) }, nil
}

// begin starts the thread. mu is held.
func (h *Holder) begin() error {
	if h.calls != nil {
		return nil
	}
	calls, ready := make(chan func()), make(chan error)
	go ns.OnOwnThread(func() {
		runtime.LockOSThread()
		err := becomeHolder()
		ready <- err
		for err == nil {
			(<-calls)()
		}
	})
	if err := <-ready; err != nil {
		return fmt.Errorf("namespace to hold mounts: %w", err)
	}
	h.calls, h.held = calls, map[uint64]*heldMount{}
	return nil
}

// becomeHolder moves the thread into a mount namespace that has nothing but a directory to attach things in, where it stands.
func becomeHolder() error {
	bare, err := becomeBare()
	if err != nil {
		return err
	}
	defer bare.Close()
	root, err := FS("tmpfs", "none", Options{Data: []string{"mode=700", "size=4k"}})
	if err != nil {
		return err
	}
	defer root.Close()
	if err := unix.MoveMount(int(root.Fd()), "", unix.AT_FDCWD, "/", unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("attach the root: %w", err)
	}
	return unix.Fchdir(int(root.Fd()))
}

// cloneHeld attaches whole unless it is, and clones at. It runs on the thread.
func (h *Holder) cloneHeld(whole, at *os.File, id uint64) (*os.File, error) {
	m := h.held[id]
	if m == nil {
		h.next++
		m = &heldMount{name: strconv.Itoa(h.next)}
		if err := unix.Mkdir(m.name, 0o700); err != nil {
			return nil, fmt.Errorf("hold mount: %w", err)
		}
		if err := unix.MoveMount(int(whole.Fd()), "", unix.AT_FDCWD, m.name, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
			return nil, errors.Join(fmt.Errorf("hold mount: %w", err), unix.Rmdir(m.name))
		}
		h.held[id] = m
	}
	tree, err := TreeAt(at, false)
	if err == nil {
		m.uses++
	} else if m.uses == 0 {
		err = errors.Join(err, h.down(id))
	}
	return tree, err
}

// drop counts one use less.
func (h *Holder) drop(id uint64) (err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	done := make(chan struct{})
	h.calls <- func() {
		defer close(done)
		if m := h.held[id]; m != nil {
			if m.uses--; m.uses == 0 {
				err = h.down(id)
			}
		}
	}
	<-done
	return err
}

// down takes a mount down. It runs on the thread.
func (h *Holder) down(id uint64) error {
	name := h.held[id].name
	delete(h.held, id)
	return errors.Join(unix.Unmount(name, unix.MNT_DETACH), unix.Rmdir(name))
}
