package cgroup

import (
	"errors"
	"fmt"
	"os"

	"corten.dev/corten/internal/errs"
	"golang.org/x/sys/unix"
)

// OOMEvents is the file that changes when the out-of-memory killer strikes on v2; "" on v1.
func (m *Manager) OOMEvents() string {
	if dir, v2 := m.dirOf("memory"); v2 {
		return dir + "/memory.events"
	}
	return ""
}

// OOMEventFD opens a descriptor that becomes readable when something happens that may have been the out-of-memory killer; after each read, ask OOMKilled. On v1 it
// is an eventfd (reads of 8 bytes), on v2 an inotify descriptor (reads of one or more events); a reader with a buffer of 4096 bytes serves both. It becomes readable
// as well when the cgroup is removed. The caller closes it.
func (m *Manager) OOMEventFD() (*os.File, error) {
	dir, v2 := m.dirOf("memory")
	switch {
	case dir == "":
		return nil, errs.New(errs.Unavailable, "watch memory of %s: the kernel of this host has no cgroup controller memory mounted", m.id)
	case v2:
		return watchFile(dir + "/memory.events")
	}
	control, err := openRetry(dir+"/memory.oom_control", unix.O_RDONLY)
	if err != nil {
		return nil, fmt.Errorf("watch %s/memory.oom_control: %w", dir, err)
	}
	defer unix.Close(control) //nolint:errcheck // read only; the registration keeps what it needs
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("watch %s/memory.oom_control: %w", dir, err)
	}
	f := os.NewFile(uintptr(fd), "oom-events")
	if err := m.writeFile(dir, "cgroup.event_control", fmt.Sprintf("%d %d", fd, control)); err != nil {
		return nil, errors.Join(fmt.Errorf("watch memory: %w", err), f.Close())
	}
	return f, nil
}

func watchFile(p string) (*os.File, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("watch %s: %w", p, err)
	}
	f := os.NewFile(uintptr(fd), "oom-events")
	if _, err := unix.InotifyAddWatch(fd, p, unix.IN_MODIFY); err != nil {
		return nil, errors.Join(fmt.Errorf("watch %s: %w", p, err), f.Close())
	}
	return f, nil
}

// OOMKilled tells whether the out-of-memory killer ended a process of the container.
func (m *Manager) OOMKilled() (bool, error) {
	dir, v2 := m.dirOf("memory")
	if dir == "" {
		return false, nil
	}
	file := "memory.oom_control"
	if v2 {
		file = "memory.events"
	}
	r := reader{buf: buffers.Get().(*[16384]byte)}
	defer buffers.Put(r.buf)
	killed := false
	lines(r.bytes(dir, file), func(key []byte, val uint64) {
		if string(key) == "oom_kill" {
			killed = val > 0
		}
	})
	if r.err != nil {
		return false, fmt.Errorf("out-of-memory count of %s: %w", m.id, r.err)
	}
	return killed, nil
}
