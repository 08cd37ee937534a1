package network

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"corten.dev/corten/internal/linux/mount"
	"corten.dev/corten/internal/linux/netlink"
	"golang.org/x/sys/unix"
)

// A network driver that is a plugin is told where a container's namespace is mounted (its SandboxKey), and gets its interface back when the container ends: so the namespace of such a container, and of no
// other, stands in the file system from before its driver is asked to join until it has left.
//
//	<exec-root>/netns/<owner, 12>
func (l *Local) keyDir() string { return filepath.Join(l.opt.ExecRoot, "netns") }

func (l *Local) key(owner string) string { return filepath.Join(l.keyDir(), short(owner)) }

// keep mounts a namespace where plugins find it.
func (l *Local) keep(owner string, ns *os.File) error {
	path := l.key(owner)
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDONLY|unix.O_NOFOLLOW, 0o444)
	if err == nil {
		err = f.Close()
	}
	if err == nil {
		err = mount.Detach(path) // of a container whose end nobody saw
	}
	if err == nil {
		err = unix.Mount(fmt.Sprintf("/proc/self/fd/%d", ns.Fd()), path, "", unix.MS_BIND, "")
	}
	if err != nil {
		return fmt.Errorf("keep the network namespace of %s: %w", short(owner), err)
	}
	return nil
}

// kept tells whether an owner's namespace is mounted.
func (l *Local) kept(owner string) bool {
	var at unix.Statfs_t
	return unix.Statfs(l.key(owner), &at) == nil && at.Type == unix.NSFS_MAGIC
}

// dropKey lets go of a namespace that was kept; no error where none was.
func (l *Local) dropKey(owner string) error {
	path := l.key(owner)
	if _, err := os.Lstat(path); err != nil {
		return nil
	}
	if err := mount.Detach(path); err != nil {
		return err
	}
	if err := os.Remove(path); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// dropStaleKeys lets go of what belongs to nobody who runs.
func (l *Local) dropStaleKeys() error {
	entries, err := os.ReadDir(l.keyDir())
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	l.mu.Lock()
	live := map[string]bool{}
	for owner := range l.boxes {
		live[short(owner)] = true
	}
	l.mu.Unlock()
	all := []error{err}
	for _, e := range entries {
		if !live[e.Name()] {
			all = append(all, l.dropKey(e.Name()))
		}
	}
	return errors.Join(all...)
}

// bringHome moves an interface of a plugin's out of its container, under the name that it had on the host. The kernel unmakes most kinds of interfaces with their namespace; a plugin may want its own again.
func (l *Local) bringHome(h *held) error {
	if h.Interface == "" || h.Joined == nil || h.Joined.Src == "" {
		return nil
	}
	ns, err := os.Open(l.key(h.Owner))
	if errors.Is(err, fs.ErrNotExist) {
		h.Interface = "" // it went with its namespace
		return nil
	}
	if err != nil {
		return err
	}
	if !l.kept(h.Owner) {
		h.Interface = ""
		return ns.Close()
	}
	err = l.inside(ns, func(in *netlink.Conn) error {
		link, err := in.LinkByName(h.Interface)
		if err != nil {
			return err
		}
		var b netlink.Batch
		b.MoveLink(link.Index, h.Joined.Src, l.hostNS)
		return in.Do(&b)
	})
	if errors.Is(err, unix.EEXIST) { // it stays, and goes with its namespace: nobody else must wait for that name
		l.log.Warn("an interface of a plugin's cannot go back to the host: there is another one of its name", "interface", h.Joined.Src, "driver", h.Driver, "owner", h.Owner)
		err = nil
	}
	if err = errors.Join(err, ns.Close()); err == nil || errors.Is(err, unix.ENODEV) {
		h.Interface = ""
		return nil
	}
	return fmt.Errorf("move %s of %s back to the host: %w", h.Interface, short(h.Owner), err)
}
