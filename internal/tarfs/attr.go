package tarfs

import (
	"archive/tar"
	"errors"
	"fmt"
	"math"
	"sort"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"corten.dev/corten/internal/errs"
)

const paxXattr = "SCHILY.xattr."

// times are those of the entry; a missing access time is the modification time, one before 1970 is 1970.
func times(hdr *tar.Header) *[2]unix.Timespec {
	mod := hdr.ModTime
	if mod.Unix() < 0 || mod.Year() < 1970 {
		mod = time.Unix(0, 0)
	}
	acc := hdr.AccessTime
	if acc.IsZero() || acc.Unix() < 0 {
		acc = mod
	}
	return &[2]unix.Timespec{timespec(acc), timespec(mod)}
}

func timespec(t time.Time) unix.Timespec {
	return unix.Timespec{Sec: t.Unix(), Nsec: int64(t.Nanosecond())}
}

// owner is whom an entry belongs to. A number that the kernel does not have is refused: 2^32-1 means "as it is" to chown, which is root, and what is larger becomes another's number.
func (x *extractor) owner(hdr *tar.Header) (uid, gid int, err error) {
	if o := x.opts.Owner; o != nil {
		return o.UID, o.GID, nil
	}
	for _, n := range []int{hdr.Uid, hdr.Gid} {
		if n < 0 || int64(n) >= math.MaxUint32 {
			return 0, 0, errs.New(errs.Invalid, "owner %d:%d is no number that a file can have", hdr.Uid, hdr.Gid)
		}
	}
	return hdr.Uid, hdr.Gid, nil
}

// chownError says why a user other than the host's root cannot have files of just any owner.
func chownError(uid, gid int, err error) error {
	if err == unix.EINVAL {
		return errs.New(errs.Invalid, "owner %d:%d has no number in this user namespace (give the user larger ranges in /etc/subuid and /etc/subgid): %w", uid, gid, err)
	}
	return err
}

// attributes gives an open file or directory owner, mode and xattrs, in this order: each step clears bits that the next one sets.
func (x *extractor) attributes(fd int, path string, hdr *tar.Header) error {
	uid, gid, err := x.owner(hdr)
	if err != nil {
		return err
	}
	if err := unix.Fchown(fd, uid, gid); err != nil {
		return chownError(uid, gid, err)
	}
	if err := unix.Fchmod(fd, uint32(hdr.Mode)&0o7777); err != nil {
		return err
	}
	return x.xattrs(hdr, path, func(name string, value []byte) error { return unix.Fsetxattr(fd, name, value, 0) })
}

// nodeAttributes is the same for what cannot be opened: links, devices, fifos.
func (x *extractor) nodeAttributes(parent *dir, base, path string, hdr *tar.Header) error {
	uid, gid, err := x.owner(hdr)
	if err != nil {
		return err
	}
	if err := unix.Fchownat(parent.fd, base, uid, gid, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return chownError(uid, gid, err)
	}
	if hdr.Typeflag != tar.TypeSymlink {
		// We made this node a moment ago and it is no link: mode by name is safe as long as nobody else works in the tree, and a tree that
		// others work in (cp into a running container) is one where they may chmod anyway.
		if err := fchmodatNofollow(parent.fd, base, uint32(hdr.Mode)&0o7777); err != nil {
			return err
		}
	}
	err = x.xattrs(hdr, path, func(name string, value []byte) error {
		return byName(parent.fd, base).set(name, value)
	})
	if err != nil {
		return err
	}
	ts := times(hdr)
	return unix.UtimesNanoAt(parent.fd, base, ts[:], unix.AT_SYMLINK_NOFOLLOW)
}

// fchmodatNofollow changes the mode of what name is, never of what it points to.
func fchmodatNofollow(parent int, name string, mode uint32) error {
	fd, err := unix.Openat(parent, name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT == unix.S_IFLNK || st.Mode&0o7777 == mode {
		return nil
	}
	return unix.Chmod(fdPath(fd), mode)
}

func (x *extractor) xattrs(hdr *tar.Header, path string, set func(string, []byte) error) error {
	if len(hdr.PAXRecords) == 0 {
		return nil
	}
	var names []string
	for key := range hdr.PAXRecords {
		if name, ok := strings.CutPrefix(key, paxXattr); ok && !internalXattr(name) {
			names = append(names, name)
		}
	}
	sort.Strings(names)
	for _, name := range names {
		err := set(name, []byte(hdr.PAXRecords[paxXattr+name]))
		switch {
		case err == nil:
		case errors.Is(err, unix.ENOTSUP), errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES):
			// The file system, a security module or the user's rights leave it out; the file itself is complete.
			if x.opts.Skipped != nil {
				x.opts.Skipped(path, "xattr "+name, err)
			}
		default: // also "no space left on device", which most file systems say of a value that is too large
			return fmt.Errorf("attribute %.100q of %d bytes: %w", name, len(hdr.PAXRecords[paxXattr+name]), err)
		}
	}
	return nil
}

// attrRef names a file for the xattr calls: one that is open for reading or writing, or, by path, a name in an open directory that is not followed.
type attrRef struct {
	fd   int
	path string
}

func byFd(fd int) attrRef                 { return attrRef{fd: fd} }
func byName(dir int, name string) attrRef { return attrRef{path: fdPath(dir) + "/" + name} }

func (r attrRef) list(buf []byte) (int, error) {
	if r.path == "" {
		return unix.Flistxattr(r.fd, buf)
	}
	return unix.Llistxattr(r.path, buf)
}

func (r attrRef) get(name string, buf []byte) (int, error) {
	if r.path == "" {
		return unix.Fgetxattr(r.fd, name, buf)
	}
	return unix.Lgetxattr(r.path, name, buf)
}

func (r attrRef) set(name string, value []byte) error {
	if r.path == "" {
		return unix.Fsetxattr(r.fd, name, value, 0)
	}
	return unix.Lsetxattr(r.path, name, value, 0)
}

// listXattrs reads the xattrs that go into an archive, sorted by name.
func listXattrs(ref attrRef) (names []string, values map[string]string, err error) {
	var small [512]byte
	buf := small[:]
	size, err := ref.list(buf)
	if err == unix.ERANGE {
		buf = make([]byte, 64<<10) // the kernel's own bound
		size, err = ref.list(buf)
	}
	if err != nil || size == 0 {
		if errors.Is(err, unix.ENOTSUP) {
			err = nil
		}
		return nil, nil, err
	}
	for _, name := range strings.Split(strings.TrimRight(string(buf[:size]), "\x00"), "\x00") {
		// Labels of the host belong to this host.
		if name == "" || internalXattr(name) || name == "security.selinux" {
			continue
		}
		val := make([]byte, 1<<10)
		n, err := ref.get(name, val)
		if err == unix.ERANGE {
			val = make([]byte, 64<<10)
			n, err = ref.get(name, val)
		}
		if err == unix.ENODATA || err == unix.ENOTSUP || err == unix.EPERM {
			continue
		}
		if err != nil {
			return nil, nil, err
		}
		if values == nil {
			values = map[string]string{}
		}
		values[name] = string(val[:n])
		names = append(names, name)
	}
	sort.Strings(names)
	return names, values, nil
}
