package network

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync"
	"time"

	"corten.dev/corten/internal/linux/mount"
	"golang.org/x/sys/unix"
)

// sysctl writes a setting of the host.
func sysctl(path, value string) error {
	fd, err := unix.Open("/proc/sys/"+path, unix.O_WRONLY|unix.O_CLOEXEC, 0)
	return writeSetting(fd, err, path, value)
}

func writeSetting(fd int, err error, path, value string) error {
	if err != nil {
		return fmt.Errorf("set %s: %w", path, err)
	}
	_, err = unix.Write(fd, []byte(value))
	if err = errors.Join(err, unix.Close(fd)); err != nil {
		return fmt.Errorf("set %s: %w", path, err)
	}
	return nil
}

// hostSysctl sets a setting of the host unless it is so already: on some hosts they are right, and read-only.
func (l *Local) hostSysctl(path, value string) error {
	if raw, err := os.ReadFile("/proc/sys/" + path); err == nil && strings.TrimSpace(string(raw)) == value {
		return nil
	}
	return sysctl(path, value)
}

// innerSysctl writes a setting of the container's namespace that the calling thread is in.
//
// It does so in a procfs of the room's own. In one procfs the names below sys/net of every namespace are kept side by side, and the kernel goes through all of them to find one: in the host's,
// among those of 1,000 containers, that takes 1 ms. So this one is exchanged for a new one after a while.
func (l *Local) innerSysctl(path, value string) error {
	p, err := l.procs.take()
	if err != nil {
		l.log.Debug("settings of containers are written in the host's /proc", "err", err)
		return sysctl(path, value)
	}
	defer l.procs.give(p)
	fd, err := unix.Openat(int(p.dir.Fd()), "sys/"+path, unix.O_WRONLY|unix.O_CLOEXEC, 0)
	return writeSetting(fd, err, path, value)
}

// innerProcs keeps the procfs of innerSysctl.
type innerProcs struct {
	mu     sync.Mutex // guards what follows
	spare  *innerProc
	closed bool
}

// innerProc is a procfs that is attached nowhere; one at a time uses it.
type innerProc struct {
	dir  *os.File
	uses int
}

const procUses = 50

func (s *innerProcs) take() (*innerProc, error) {
	s.mu.Lock()
	p := s.spare
	s.spare = nil
	s.mu.Unlock()
	if p != nil {
		return p, nil
	}
	dir, err := mount.FS("proc", "proc", mount.Options{Set: unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOEXEC})
	if err != nil {
		return nil, err
	}
	return &innerProc{dir: dir}, nil
}

func (s *innerProcs) give(p *innerProc) {
	p.uses++
	s.mu.Lock()
	if s.spare == nil && !s.closed && p.uses < procUses {
		s.spare, p = p, nil
	}
	s.mu.Unlock()
	if p != nil {
		go p.dir.Close() // the end of a mount waits for a grace period of the kernel
	}
}

func (s *innerProcs) close() error {
	s.mu.Lock()
	p := s.spare
	s.spare, s.closed = nil, true
	s.mu.Unlock()
	if p == nil {
		return nil
	}
	return p.dir.Close()
}

// quietPorts switches IPv6 off on the host's ends of veths: a bridge's port has no use for it. Otherwise each has a route in the host's table, all of which the kernel goes through for every
// interface that comes or goes (0.7 ms where 1,000 containers run). It is done some time after they were made, for those that are still there: a process that writes this setting spins while
// any other changes an interface, and containers that last no longer than that have no part in the matter.
type quietPorts struct {
	log   *slog.Logger
	after time.Duration

	mu    sync.Mutex // guards what follows
	links []string
	timer *time.Timer // nil: nothing is to be done
	shut  bool
}

const quietAfter = 3 * time.Second

func (q *quietPorts) add(nets []*network, eps []Endpoint) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for i, ep := range eps {
		if link := nets[i].drv.hostLink(ep); link != "" {
			q.links = append(q.links, link)
		}
	}
	if q.timer == nil && len(q.links) > 0 && !q.shut {
		q.timer = time.AfterFunc(q.after, q.run)
	}
}

func (q *quietPorts) run() {
	q.mu.Lock()
	links := q.links
	q.links, q.timer = nil, nil
	q.mu.Unlock()
	for _, link := range links {
		// It may be gone, and the kernel may have no IPv6 at all, or none for an interface with so small packets. Where it cannot be done all works as well.
		if err := sysctl("net/ipv6/conf/"+link+"/disable_ipv6", "1"); err != nil && !errors.Is(err, os.ErrNotExist) {
			q.log.Debug("a bridge's port keeps IPv6", "err", err)
		}
	}
}

func (q *quietPorts) close() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.shut = true
	if q.timer != nil {
		q.timer.Stop()
	}
}
