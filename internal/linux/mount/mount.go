// Package mount reads mount options as the OCI runtime specification and mount(8) write them, and makes detached mounts: mounts that are a descriptor and stand nowhere yet.
//
// It owns nothing that outlives the descriptors it returns, but what [Tmpfs] mounts: a detached mount is gone when its last descriptor closes, unless it was attached. It promises
// that an option it does not know becomes data of the file system, never nothing, and that options which contradict each other resolve as in mount(8): the last one counts.
package mount

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"corten.dev/corten/internal/errs"
	"golang.org/x/sys/unix"
)

// Attributes that golang.org/x/sys does not name.
const (
	attrAtime = unix.MOUNT_ATTR__ATIME
	// AttrIDMap is MOUNT_ATTR_IDMAP.
	AttrIDMap = unix.MOUNT_ATTR_IDMAP
)

// Options are parsed mount options.
type Options struct {
	// Set and Clear are MOUNT_ATTR_ bits for this mount.
	Set, Clear uint64
	// RecSet and RecClear are those for the whole tree (rro, rnoexec, …).
	RecSet, RecClear uint64
	// Propagation are MS_ bits in the order given, each possibly with MS_REC.
	Propagation []uint32
	// Bind asks for a bind mount, Rec for the tree below it too.
	Bind, Rec bool
	// Data are the options for the file system, as "key" or "key=value".
	Data []string
	// CopyUp fills a tmpfs with what it hides.
	CopyUp bool
	// IDMap maps ids on the mount: 1 this mount, 2 the tree.
	IDMap int
	// ReadOnlySuper and the like are flags of the file system rather than the mount: sync, dirsync, lazytime, mand.
	Super []string
	// ReadOnly tells that the file system itself is to be read-only when it is made.
	ReadOnly bool
}

type bits struct{ set, clear uint64 }

// attrs are the options that are attributes of a mount. Options about access times exclude each other, so they clear the whole field.
var attrs = map[string]bits{
	"ro":            {unix.MOUNT_ATTR_RDONLY, 0},
	"rw":            {0, unix.MOUNT_ATTR_RDONLY},
	"nosuid":        {unix.MOUNT_ATTR_NOSUID, 0},
	"suid":          {0, unix.MOUNT_ATTR_NOSUID},
	"nodev":         {unix.MOUNT_ATTR_NODEV, 0},
	"dev":           {0, unix.MOUNT_ATTR_NODEV},
	"noexec":        {unix.MOUNT_ATTR_NOEXEC, 0},
	"exec":          {0, unix.MOUNT_ATTR_NOEXEC},
	"nodiratime":    {unix.MOUNT_ATTR_NODIRATIME, 0},
	"diratime":      {0, unix.MOUNT_ATTR_NODIRATIME},
	"relatime":      {unix.MOUNT_ATTR_RELATIME, attrAtime},
	"norelatime":    {0, attrAtime},
	"noatime":       {unix.MOUNT_ATTR_NOATIME, attrAtime},
	"atime":         {0, attrAtime},
	"strictatime":   {unix.MOUNT_ATTR_STRICTATIME, attrAtime},
	"nostrictatime": {0, attrAtime},
	"nosymfollow":   {unix.MOUNT_ATTR_NOSYMFOLLOW, 0},
	"symfollow":     {0, unix.MOUNT_ATTR_NOSYMFOLLOW},
}

var propagations = map[string]uint32{
	"private": unix.MS_PRIVATE, "rprivate": unix.MS_PRIVATE | unix.MS_REC,
	"shared": unix.MS_SHARED, "rshared": unix.MS_SHARED | unix.MS_REC,
	"slave": unix.MS_SLAVE, "rslave": unix.MS_SLAVE | unix.MS_REC,
	"unbindable": unix.MS_UNBINDABLE, "runbindable": unix.MS_UNBINDABLE | unix.MS_REC,
}

// super are flags of the file system, as fsconfig names them.
var super = map[string]string{
	"sync": "sync", "async": "async", "dirsync": "dirsync", "lazytime": "lazytime", "nolazytime": "nolazytime", "mand": "mand", "nomand": "nomand",
	"iversion": "iversion", "silent": "silent", "loud": "",
}

// Propagation reads a rootfsPropagation value.
func Propagation(s string) (uint32, error) {
	if p, ok := propagations[s]; ok {
		return p, nil
	}
	return 0, errs.New(errs.Invalid, "mount propagation %q is unknown", s)
}

// Parse reads mount options.
func Parse(list []string) (Options, error) {
	var o Options
	for _, opt := range list {
		for _, one := range splitOptions(opt) {
			o.add(one)
		}
	}
	if o.Set&attrAtime == attrAtime {
		return o, errs.New(errs.Invalid, "mount options %s: contradictory access time options", strings.Join(list, ","))
	}
	return o, nil
}

// splitOptions takes options apart that were given as one string; data with quoted commas (SELinux contexts) stays whole.
func splitOptions(s string) []string {
	if !strings.ContainsRune(s, ',') || strings.ContainsRune(s, '"') || strings.Contains(s, "context=") {
		return []string{s}
	}
	return strings.Split(s, ",")
}

func (o *Options) add(opt string) {
	switch opt {
	case "", "defaults", "remount":
		return
	case "bind":
		o.Bind = true
		return
	case "rbind":
		o.Bind, o.Rec = true, true
		return
	case "tmpcopyup":
		o.CopyUp = true
		return
	case "idmap":
		o.IDMap = 1
		return
	case "ridmap":
		o.IDMap = 2
		return
	case "acl", "noacl":
		// Understood everywhere, and a property of the file system since long: passed on only where it is one.
	}
	if b, ok := attrs[opt]; ok {
		o.Set, o.Clear = o.Set&^(b.clear|b.set)|b.set, o.Clear&^b.set|b.clear
		o.ReadOnly = o.Set&unix.MOUNT_ATTR_RDONLY != 0
		return
	}
	if strings.HasPrefix(opt, "r") {
		if b, ok := attrs[opt[1:]]; ok {
			o.RecSet, o.RecClear = o.RecSet&^(b.clear|b.set)|b.set, o.RecClear&^b.set|b.clear
			return
		}
	}
	if p, ok := propagations[opt]; ok {
		o.Propagation = append(o.Propagation, p)
		return
	}
	if s, ok := super[opt]; ok {
		if s != "" {
			o.Super = append(o.Super, s)
		}
		return
	}
	o.Data = append(o.Data, opt)
}

// Known lists the options that Parse understands itself.
func Known() []string {
	out := []string{"bind", "rbind", "defaults", "remount", "tmpcopyup", "idmap", "ridmap"}
	for k := range attrs {
		out = append(out, k, "r"+k)
	}
	for k := range propagations {
		out = append(out, k)
	}
	for k := range super {
		out = append(out, k)
	}
	return out
}

// Legacy translates MOUNT_ATTR_ bits to the MS_ bits of mount(2), for kernels without mount_setattr.
func Legacy(set uint64) uintptr {
	var f uintptr
	for _, p := range []struct {
		attr uint64
		ms   uintptr
	}{
		{unix.MOUNT_ATTR_RDONLY, unix.MS_RDONLY}, {unix.MOUNT_ATTR_NOSUID, unix.MS_NOSUID}, {unix.MOUNT_ATTR_NODEV, unix.MS_NODEV},
		{unix.MOUNT_ATTR_NOEXEC, unix.MS_NOEXEC}, {unix.MOUNT_ATTR_NODIRATIME, unix.MS_NODIRATIME}, {unix.MOUNT_ATTR_NOSYMFOLLOW, unix.MS_NOSYMFOLLOW},
	} {
		if set&p.attr != 0 {
			f |= p.ms
		}
	}
	switch set & attrAtime {
	case unix.MOUNT_ATTR_NOATIME:
		f |= unix.MS_NOATIME
	case unix.MOUNT_ATTR_STRICTATIME:
		f |= unix.MS_STRICTATIME
	default:
		f |= unix.MS_RELATIME
	}
	return f
}

// Tree clones the mount at path (and all below it, if rec) as a detached mount.
func Tree(path string, rec bool) (*os.File, error) {
	flags := uint(unix.OPEN_TREE_CLONE | unix.OPEN_TREE_CLOEXEC)
	if rec {
		flags |= unix.AT_RECURSIVE
	}
	fd, err := unix.OpenTree(unix.AT_FDCWD, path, flags)
	if err != nil {
		return nil, fmt.Errorf("clone mount %s: %w", path, err)
	}
	return os.NewFile(uintptr(fd), path), nil
}

// TreeAt clones the mount at a descriptor.
func TreeAt(dir *os.File, rec bool) (*os.File, error) {
	flags := uint(unix.OPEN_TREE_CLONE | unix.OPEN_TREE_CLOEXEC | unix.AT_EMPTY_PATH)
	if rec {
		flags |= unix.AT_RECURSIVE
	}
	fd, err := unix.OpenTree(int(dir.Fd()), "", flags)
	if err != nil {
		return nil, fmt.Errorf("clone mount %s: %w", dir.Name(), err)
	}
	return os.NewFile(uintptr(fd), dir.Name()), nil
}

// FS makes a file system and a detached mount of it. The kernel's own words about a refused option are in the error.
func FS(fstype, source string, o Options) (*os.File, error) {
	ctx, err := unix.Fsopen(fstype, unix.FSOPEN_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("file system %s: %w", fstype, err)
	}
	defer unix.Close(ctx)
	if source != "" {
		if err := unix.FsconfigSetString(ctx, "source", source); err != nil {
			return nil, complain(ctx, fstype, "source "+source, err)
		}
	}
	if o.ReadOnly {
		if err := unix.FsconfigSetFlag(ctx, "ro"); err != nil {
			return nil, complain(ctx, fstype, "ro", err)
		}
	}
	for _, opt := range append(append([]string(nil), o.Super...), o.Data...) {
		if key, value, ok := strings.Cut(opt, "="); ok {
			err = unix.FsconfigSetString(ctx, key, value)
		} else {
			err = unix.FsconfigSetFlag(ctx, opt)
		}
		if err != nil {
			return nil, complain(ctx, fstype, opt, err)
		}
	}
	if err := unix.FsconfigCreate(ctx); err != nil {
		return nil, complain(ctx, fstype, "make", err)
	}
	fd, err := unix.Fsmount(ctx, unix.FSMOUNT_CLOEXEC, int(o.Set))
	if err != nil {
		return nil, complain(ctx, fstype, "mount", err)
	}
	return os.NewFile(uintptr(fd), fstype), nil
}

// complain adds what the kernel wrote about the file system context.
func complain(ctx int, fstype, what string, err error) error {
	var said []string
	buf := make([]byte, 1024)
	for range 8 {
		n, rerr := unix.Read(ctx, buf)
		if rerr != nil || n < 3 {
			break
		}
		said = append(said, strings.TrimSpace(string(buf[2:n])))
	}
	if len(said) > 0 {
		return fmt.Errorf("file system %s: %s: %w (%s)", fstype, what, err, strings.Join(said, "; "))
	}
	return fmt.Errorf("file system %s: %s: %w", fstype, what, err)
}

// IDMap maps the ids of a detached mount as the user namespace does.
func IDMap(tree, userns *os.File, rec bool) error {
	flags := uint(unix.AT_EMPTY_PATH)
	if rec {
		flags |= unix.AT_RECURSIVE
	}
	err := unix.MountSetattr(int(tree.Fd()), "", flags, &unix.MountAttr{Attr_set: AttrIDMap, Userns_fd: uint64(userns.Fd())})
	if err != nil {
		return fmt.Errorf("map ids of mount %s: %w", tree.Name(), err)
	}
	return nil
}

// Attach moves a detached mount onto the directory or file that target is.
func Attach(tree, target *os.File) error {
	err := unix.MoveMount(int(tree.Fd()), "", int(target.Fd()), "", unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH)
	if err != nil {
		return fmt.Errorf("attach mount %s at %s: %w", tree.Name(), target.Name(), err)
	}
	return nil
}

// HasSetattr tells whether the kernel has mount_setattr (5.12).
func HasSetattr() bool {
	return unix.MountSetattr(-1, "", unix.AT_EMPTY_PATH, &unix.MountAttr{}) != unix.ENOSYS
}

// ClonesDetached tells whether the kernel clones mounts that are attached nowhere (6.15).
func ClonesDetached() bool {
	f, err := FS("tmpfs", "none", Options{ReadOnly: true})
	if err != nil {
		return false
	}
	defer f.Close()
	fd, err := unix.OpenTree(int(f.Fd()), "", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_EMPTY_PATH)
	if err != nil {
		return false
	}
	unix.Close(fd)
	return true
}

// Tmpfs makes a tmpfs and mounts it on dir, without programs, set-uid bits and devices; o are the file system's own options (size=…, mode=…). It stands in the mount table
// until [Detach].
func Tmpfs(source, dir, o string) error {
	return unix.Mount(source, dir, "tmpfs", unix.MS_NOEXEC|unix.MS_NOSUID|unix.MS_NODEV, o)
}

// Detach takes the mount at dir out of the tree; it ends with its last user. What is not mounted or not there is no error.
func Detach(dir string) error {
	if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		return err
	}
	return nil
}
