// Package ns knows the kinds of namespaces, opens them, and writes the id maps of user namespaces.
//
// It owns no namespace: what it opens lives as long as somebody holds it. It promises that a file opened as a namespace is one, of the kind asked for, whatever the path
// says (a bind mount of something else is refused).
package ns

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/linux/launch"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// Flags maps the specification's words to the flags of clone.
var flags = map[specs.LinuxNamespaceType]uint64{
	specs.PIDNamespace:     unix.CLONE_NEWPID,
	specs.NetworkNamespace: unix.CLONE_NEWNET,
	specs.MountNamespace:   unix.CLONE_NEWNS,
	specs.IPCNamespace:     unix.CLONE_NEWIPC,
	specs.UTSNamespace:     unix.CLONE_NEWUTS,
	specs.UserNamespace:    unix.CLONE_NEWUSER,
	specs.CgroupNamespace:  unix.CLONE_NEWCGROUP,
	specs.TimeNamespace:    unix.CLONE_NEWTIME,
}

var files = map[uint64]string{
	unix.CLONE_NEWPID: "pid", unix.CLONE_NEWNET: "net", unix.CLONE_NEWNS: "mnt", unix.CLONE_NEWIPC: "ipc", unix.CLONE_NEWUTS: "uts",
	unix.CLONE_NEWUSER: "user", unix.CLONE_NEWCGROUP: "cgroup", unix.CLONE_NEWTIME: "time",
}

// Flag is the clone flag of a kind of namespace.
func Flag(t specs.LinuxNamespaceType) (uint64, error) {
	f, ok := flags[t]
	if !ok {
		return 0, errs.New(errs.Invalid, "namespace kind %q is unknown", t)
	}
	return f, nil
}

// Name is the file name of a kind of namespace in /proc/<pid>/ns.
func Name(flag uint64) string { return files[flag] }

// Open opens the namespace file at path and checks that it is a namespace of that kind.
func Open(path string, flag uint64) (*os.File, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("namespace: %w", err)
	}
	if err := Check(f, flag); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// InNet runs fn in a network namespace, on a thread that nobody else uses meanwhile.
func InNet(netns *os.File, fn func() error) error {
	done := make(chan error, 1)
	go func() { done <- inNet(netns, fn) }()
	return <-done
}

func inNet(netns *os.File, fn func() error) (err error) {
	runtime.LockOSThread()
	back, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("own network namespace: %w", err)
	}
	defer func() {
		if berr := unix.Setns(int(back.Fd()), unix.CLONE_NEWNET); berr == nil {
			runtime.UnlockOSThread() // else the thread, which is elsewhere, ends with its goroutine
		}
		err = errors.Join(err, back.Close())
	}()
	if err := unix.Setns(int(netns.Fd()), unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("enter network namespace: %w", err)
	}
	return fn()
}

// Check demands that f is a namespace of the given kind.
func Check(f *os.File, flag uint64) error {
	var fs unix.Statfs_t
	if err := unix.Fstatfs(int(f.Fd()), &fs); err != nil {
		return fmt.Errorf("namespace %s: %w", f.Name(), err)
	}
	if fs.Type != unix.NSFS_MAGIC {
		return errs.New(errs.Invalid, "namespace %s: is not a namespace", f.Name())
	}
	kind, err := unix.IoctlRetInt(int(f.Fd()), unix.NS_GET_NSTYPE)
	if err != nil {
		return fmt.Errorf("namespace %s: %w", f.Name(), err)
	}
	if uint64(kind) != flag {
		return errs.New(errs.Invalid, "namespace %s: is a %s namespace, not %s", f.Name(), Name(uint64(kind)), Name(flag))
	}
	return nil
}

// OfPid opens a namespace of a process.
func OfPid(pid int, flag uint64) (*os.File, error) {
	return Open("/proc/"+strconv.Itoa(pid)+"/ns/"+Name(flag), flag)
}

// IsOwn tells whether an open namespace is the one that this process is in.
func IsOwn(f *os.File, flag uint64) bool {
	var there, here unix.Stat_t
	return unix.Fstat(int(f.Fd()), &there) == nil && unix.Stat("/proc/self/ns/"+Name(flag), &here) == nil && there.Dev == here.Dev && there.Ino == here.Ino
}

// Same tells whether two processes share a namespace.
func Same(pid, other string, flag uint64) bool {
	a, err := os.Readlink("/proc/" + pid + "/ns/" + Name(flag))
	b, berr := os.Readlink("/proc/" + other + "/ns/" + Name(flag))
	return err == nil && berr == nil && a == b
}

// Maps are the id maps of a user namespace.
type Maps struct {
	UID, GID []specs.LinuxIDMapping
}

func format(m []specs.LinuxIDMapping) string {
	var b strings.Builder
	for _, e := range m {
		fmt.Fprintf(&b, "%d %d %d\n", e.ContainerID, e.HostID, e.Size)
	}
	return b.String()
}

// Write gives the user namespace of pid its maps. An ordinary user may map only himself; more goes through newuidmap and newgidmap, which /etc/subuid governs.
func (m Maps) Write(pid int) error {
	root := os.Geteuid() == 0
	if !root && !plain(m.GID) {
		if err := helper("newgidmap", pid, m.GID); err != nil {
			return err
		}
	} else {
		if !root {
			if err := write(pid, "setgroups", "deny"); err != nil {
				return err
			}
		}
		if err := write(pid, "gid_map", format(m.GID)); err != nil {
			return err
		}
	}
	if !root && !plain(m.UID) {
		return helper("newuidmap", pid, m.UID)
	}
	return write(pid, "uid_map", format(m.UID))
}

func plain(m []specs.LinuxIDMapping) bool { return len(m) == 1 && m[0].Size == 1 }

func write(pid int, name, text string) error {
	f, err := os.OpenFile(fmt.Sprintf("/proc/%d/%s", pid, name), os.O_WRONLY, 0)
	if err != nil {
		return fmt.Errorf("user namespace: %w", err)
	}
	_, err = f.WriteString(text)
	if err := errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("user namespace: map ids (%s): %w", strings.ReplaceAll(strings.TrimSpace(text), "\n", ", "), err)
	}
	return nil
}

func helper(name string, pid int, m []specs.LinuxIDMapping) error {
	args := []string{strconv.Itoa(pid)}
	for _, e := range m {
		args = append(args, strconv.FormatUint(uint64(e.ContainerID), 10), strconv.FormatUint(uint64(e.HostID), 10), strconv.FormatUint(uint64(e.Size), 10))
	}
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("user namespace: %s: %w: %s", name, err, strings.TrimSpace(string(out)))
	}
	return nil
}

// NewUser makes a user namespace with the given maps that lives as long as the returned file.
func NewUser(m Maps) (*os.File, error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("user namespace: %w", err)
	}
	ours, theirs := os.NewFile(uintptr(pair[0]), "sync"), os.NewFile(uintptr(pair[1]), "sync")
	defer ours.Close()
	defer theirs.Close()
	b := launch.NewBuilder(unix.CLONE_NEWUSER)
	b.Sync(b.NewSlot())
	b.Await(launch.Go) // never told: ends when our end closes
	code, err := b.Encode()
	if err != nil {
		return nil, err
	}
	p, err := launch.Decode(code)
	if err != nil {
		return nil, err
	}
	pid, pidfd, err := p.Start([]int{-1, -1, -1, -1, int(theirs.Fd())})
	if err != nil {
		return nil, fmt.Errorf("user namespace: %w", err)
	}
	defer func() {
		_ = unix.PidfdSendSignal(pidfd, unix.SIGKILL, nil, 0)
		_ = unix.Waitid(unix.P_PIDFD, pidfd, nil, unix.WEXITED, nil)
		unix.Close(pidfd)
	}()
	if err := m.Write(pid); err != nil {
		return nil, err
	}
	return OfPid(pid, unix.CLONE_NEWUSER)
}
