package overlay

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/linux/mount"
	"corten.dev/corten/internal/linux/ns"
)

// maxLayers is overlayfs' own bound.
const maxLayers = 500

// stringLimit is how long a value may be that fsconfig(2) takes, its final zero included.
const stringLimit = 256

// layout is what one overlay mount consists of. lower is topmost first. Without upper it is read-only.
type layout struct {
	lower       []string
	upper, work string
	// volatile: the tree goes with its container, so nothing in it needs to reach the disk. Without it, taking an overlay
	// down flushes the whole file system below, which takes as long as anybody's unwritten data there.
	volatile bool
	label    string // SELinux context of all files; empty: the store's
	// device, when set, holds the file system of upper and work: it is mounted at at, in the mount namespace of the thread that makes the overlay, and stays as long as the overlay does.
	device, at string
}

// prepared is a layout as the kernel wants it.
func (s *Store) prepared(l layout) (layout, error) {
	if len(l.lower) > maxLayers {
		return l, errs.New(errs.Invalid, "%d layers, overlayfs takes %d", len(l.lower), maxLayers)
	}
	// A mount needs something below; one without upper needs two.
	a, b := s.Empty()
	if len(l.lower) == 0 {
		l.lower = append(l.lower, a)
	}
	if l.upper == "" && len(l.lower) == 1 {
		l.lower = append(l.lower[:1:1], b)
	}
	if l.volatile {
		// The kernel leaves this mark so that nobody mounts such a tree again without thinking. We thought: see Options.Durable.
		if err := os.RemoveAll(l.work + "/work/incompat"); err != nil {
			return l, err
		}
	}
	return l, nil
}

// mount makes a detached mount, by the newest way that the kernel knows.
func (s *Store) mount(l layout) (*os.File, error) {
	l, err := s.prepared(l)
	if err != nil {
		return nil, err
	}
	root, err := s.detachedOn(l)
	if errors.Is(err, errTooLong) || errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EINVAL) && !singleLayers() {
		root, err = s.elsewhere(l) // EINVAL: before 6.5 all values together have a page, and none may hold a comma
	}
	return root, err
}

var errTooLong = errors.New("mount options are too long for fsconfig")

// singleLayers tells whether lowerdir+ adds one layer at a time (since 6.8; EINVAL before).
func singleLayers() bool { return !kernelBefore(6, 8) }

// detachedOn is detached with the device of the layout mounted before. The kernel takes directories only from the thread's own mount namespace.
func (s *Store) detachedOn(l layout) (root *os.File, err error) {
	if l.device == "" {
		return s.detached(l)
	}
	ns.OnOwnThread(func() {
		if err = withdraw(l); err == nil {
			root, err = s.detached(l)
		}
	})
	return root, err
}

// detached uses fsopen, fsconfig and fsmount.
func (s *Store) detached(l layout) (*os.File, error) {
	fd, err := s.configure(l, singleLayers())
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	attr := 0
	if l.upper == "" {
		attr = unix.MOUNT_ATTR_RDONLY
	}
	mnt, err := unix.Fsmount(fd, unix.FSMOUNT_CLOEXEC, attr)
	if err != nil {
		return nil, fmt.Errorf("fsmount: %w", err)
	}
	return os.NewFile(uintptr(mnt), "overlay"), nil
}

func (s *Store) configure(l layout, single bool) (_ int, err error) {
	fd, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("fsopen overlay: %w", err)
	}
	defer func() {
		if err != nil {
			unix.Close(fd)
		}
	}()
	set := func(key, value string) {
		if err != nil {
			return
		}
		if len(value) >= stringLimit {
			err = errTooLong
			return
		}
		if e := unix.FsconfigSetString(fd, key, value); e != nil {
			err = fmt.Errorf("overlay %s=%s: %w%s", key, value, e, contextLog(fd))
		}
	}
	set("source", "corten")
	if single {
		for _, dir := range l.lower {
			set("lowerdir+", dir)
		}
	} else {
		set("lowerdir", strings.Join(escapeAll(l.lower), ":"))
	}
	if l.upper != "" {
		set("upperdir", l.upper)
		set("workdir", l.work)
	}
	if label := s.context(l); label != "" {
		set("context", label)
	}
	for _, opt := range s.extra(l) {
		key, value, ok := strings.Cut(opt, "=")
		if ok {
			set(key, value)
		} else if err == nil {
			err = unix.FsconfigSetFlag(fd, key)
		}
	}
	if err != nil {
		return -1, err
	}
	if e := unix.FsconfigCreate(fd); e != nil {
		return -1, fmt.Errorf("overlay mount: %w%s", e, contextLog(fd))
	}
	return fd, nil
}

// extra are the options that do not depend on the layers. index and metacopy would tie a tree's upper directory to its very layers and
// hide content from Diff; redirect_dir likewise turns a rename into a reference. All are off whatever the kernel's default is.
func (s *Store) extra(l layout) []string {
	opts := []string{"index=off", "metacopy=off", "redirect_dir=off"}
	if s.userXattr {
		// With userxattr the kernel refuses explicit redirect_dir and metacopy, and has both off.
		opts = []string{"index=off", "userxattr"}
	}
	if l.volatile {
		opts = append(opts, "volatile")
	}
	return opts
}

// context is the SELinux context in which a mount's files appear; empty: each in its own.
func (s *Store) context(l layout) string {
	if l.label != "" {
		return l.label
	}
	return s.label
}

// contextLog is what the kernel has to say about a failed step.
func contextLog(fd int) string {
	var all []string
	buf := make([]byte, 1024)
	for {
		n, err := unix.Read(fd, buf)
		if err != nil || n <= 0 {
			break
		}
		all = append(all, strings.TrimSpace(string(buf[:n])))
	}
	if len(all) == 0 {
		return ""
	}
	return " (" + strings.Join(all, "; ") + ")"
}

// escapeAll protects what separates layers in the colon-joined option.
func escapeAll(dirs []string) []string {
	out := make([]string, len(dirs))
	for i, dir := range dirs {
		out[i] = strings.NewReplacer(`\`, `\\`, `:`, `\:`, `,`, `\,`).Replace(dir)
	}
	return out
}

// elsewhere uses mount(2) with paths relative to the store's folder, which have room for every chain in one page and hold
// no characters that need care. It runs on a thread of its own, in a mount namespace of its own; both end with the call.
func (s *Store) elsewhere(l layout) (root *os.File, err error) {
	ns.OnOwnThread(func() {
		var target string
		if target, err = s.attach(l); err == nil {
			root, err = mount.Tree(target, false)
		}
	})
	return root, err
}

// mountAtHome makes a mount that stays attached in a mount namespace of its own, which nobody lives in: from there it can be cloned by kernels that clone no mount that is attached
// nowhere. It is gone with the descriptor of that namespace, however the process ends.
func (s *Store) mountAtHome(l layout) (root, home *os.File, err error) {
	if l, err = s.prepared(l); err != nil {
		return nil, nil, err
	}
	ns.OnOwnThread(func() {
		var target string
		if target, err = s.attach(l); err != nil {
			return
		}
		if home, err = os.Open("/proc/thread-self/ns/mnt"); err != nil {
			return
		}
		if root, err = mount.Tree(target, false); err != nil {
			err = errs.Also(err, home.Close())
		}
	})
	if err != nil {
		return nil, nil, err
	}
	return root, home, nil
}

// withdraw gives the calling thread a mount namespace of its own, with the layout's device in it.
func withdraw(l layout) error {
	if err := unix.Unshare(unix.CLONE_NEWNS | unix.CLONE_FS); err != nil {
		return fmt.Errorf("unshare mount namespace: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	if l.device == "" {
		return nil
	}
	if err := unix.Mount(l.device, l.at, "ext4", 0, imageOption); err != nil {
		return fmt.Errorf("mount %s: %w", l.device, err)
	}
	return nil
}

// attach mounts in a new mount namespace of the calling thread, over one of the empty directories.
func (s *Store) attach(l layout) (target string, err error) {
	if err := withdraw(l); err != nil {
		return "", err
	}
	if err := unix.Chdir(s.Root()); err != nil {
		return "", &os.PathError{Op: "chdir", Path: s.Root(), Err: err}
	}
	rel := func(path string) string { return strings.TrimPrefix(path, s.Root()+"/") }
	lower := make([]string, len(l.lower))
	for i, dir := range l.lower {
		lower[i] = rel(dir)
	}
	opts := append(s.extra(l), "lowerdir="+strings.Join(lower, ":"))
	flags := uintptr(0)
	if l.upper != "" {
		opts = append(opts, "upperdir="+rel(l.upper), "workdir="+rel(l.work))
	} else {
		flags = unix.MS_RDONLY
	}
	if label := s.context(l); label != "" {
		opts = append(opts, `context="`+label+`"`) // categories are joined by commas
	}
	data := strings.Join(opts, ",")
	if len(data) >= os.Getpagesize() {
		return "", errs.New(errs.Invalid, "chain of %d layers is too long for this kernel (before 6.8)", len(l.lower))
	}
	a, _ := s.Empty()
	target = rel(a)
	if err := unix.Mount("corten", target, "overlay", flags, data); err != nil {
		return "", fmt.Errorf("overlay mount %s: %w", data, err)
	}
	return target, nil
}

func kernelBefore(major, minor int) bool {
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return false
	}
	var a, b int
	if _, err := fmt.Sscanf(unix.ByteSliceToString(u.Release[:]), "%d.%d", &a, &b); err != nil {
		return false
	}
	return a < major || a == major && b < minor
}
