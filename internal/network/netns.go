package network

import (
	"errors"
	"fmt"
	"os"
	"runtime"

	"corten.dev/corten/internal/linux/mount"
	"corten.dev/corten/internal/linux/netlink"
	"golang.org/x/sys/unix"
)

// inNew makes a network namespace and runs fn on the thread that is in it, with a route socket there; lo is up. The namespace lives as long as the
// returned file or a process in it.
func (l *Local) inNew(fn func(in *netlink.Conn, ns *os.File) error) (ns *os.File, err error) {
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		runtime.UnlockOSThread()
		return nil, fmt.Errorf("make network namespace: %w", err)
	}
	defer func() { err = errors.Join(err, l.goHome()) }()
	fd, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open network namespace: %w", err)
	}
	ns = os.NewFile(uintptr(fd), "netns")
	in, err := netlink.Dial(unix.NETLINK_ROUTE)
	if err == nil {
		var b netlink.Batch
		b.SetUp(1) // lo is the first interface of every namespace
		if err = in.Do(&b); err == nil && fn != nil {
			err = fn(in, ns)
		}
		err = errors.Join(err, in.Close())
	}
	if err != nil {
		return nil, errors.Join(err, ns.Close())
	}
	return ns, nil
}

// inside runs fn on a thread in the namespace of the file, with a route socket there.
func (l *Local) inside(ns *os.File, fn func(in *netlink.Conn) error) (err error) {
	runtime.LockOSThread()
	if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("enter network namespace: %w", err)
	}
	defer func() { err = errors.Join(err, l.goHome()) }()
	in, err := netlink.Dial(unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	return errors.Join(fn(in), in.Close())
}

// sysfsOf mounts a namespace's sysfs, attached nowhere. It is nil where that cannot be: then whoever needs one makes it.
func (l *Local) sysfsOf(netns *os.File) (f *os.File) {
	runtime.LockOSThread()
	err := unix.Setns(int(netns.Fd()), unix.CLONE_NEWNET)
	if err != nil {
		runtime.UnlockOSThread()
	} else {
		f, err = mount.FS("sysfs", "sysfs", mount.Options{})
		err = errors.Join(err, l.goHome())
	}
	if err != nil {
		l.log.Debug("make a sysfs beforehand", "err", err)
	}
	return f
}

// goHome brings the locked thread back to the host's namespace. A thread that cannot go back stays locked, so that it ends with its goroutine.
func (l *Local) goHome() error {
	if err := unix.Setns(int(l.hostNS.Fd()), unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("go back to the host's network namespace: %w", err)
	}
	runtime.UnlockOSThread()
	return nil
}

// nsOf opens the network namespace of a process.
func nsOf(pid int) (*os.File, error) {
	f, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", pid))
	if err != nil {
		return nil, fmt.Errorf("open network namespace of process %d: %w", pid, err)
	}
	return f, nil
}
