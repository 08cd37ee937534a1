package runtime

import (
	"errors"
	"fmt"
	"io"
	"os"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/safefs"
	"golang.org/x/sys/unix"
)

// copyUp fills the detached tmpfs with what the container's root has at dest.
func (p *plan) copyUp(dest string, fs *os.File) error {
	root := p.opts.Root
	if root == nil {
		var err error
		if root, err = safefs.Root(p.opts.rootPath()); err != nil {
			return err
		}
		defer root.Close()
	}
	src, err := safefs.Open(root, dest, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if errors.Is(err, unix.ENOENT) {
		return nil // nothing to copy
	}
	if err != nil {
		return err
	}
	defer src.Close()
	top, err := openDir(int(fs.Fd()), ".")
	if err != nil {
		return err
	}
	defer top.Close()
	return copyTree(src, top, 0)
}

func openDir(at int, name string) (*os.File, error) {
	fd, err := unix.Openat(at, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", name, err)
	}
	return os.NewFile(uintptr(fd), name), nil
}

const maxDepth = 100

// copyTree copies what is in src to dst, both open directories: files, directories and links, with owners and modes. Everything else (devices, sockets) is left out.
func copyTree(src, dst *os.File, depth int) error {
	if depth > maxDepth {
		return errs.New(errs.Invalid, "copy %s: nested more than %d deep", src.Name(), maxDepth)
	}
	if err := sameOwner(src, dst); err != nil {
		return err
	}
	names, err := src.Readdirnames(-1)
	if err != nil {
		return fmt.Errorf("read %s: %w", src.Name(), err)
	}
	for _, name := range names {
		var st unix.Stat_t
		if err := unix.Fstatat(int(src.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return fmt.Errorf("stat %s: %w", name, err)
		}
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFDIR:
			err = copyDir(src, dst, name, depth)
		case unix.S_IFREG:
			err = copyFile(src, dst, name)
		case unix.S_IFLNK:
			err = copyLink(src, dst, name, &st)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func sameOwner(src, dst *os.File) error {
	var st unix.Stat_t
	if err := unix.Fstat(int(src.Fd()), &st); err != nil {
		return fmt.Errorf("stat %s: %w", src.Name(), err)
	}
	if err := unix.Fchown(int(dst.Fd()), int(st.Uid), int(st.Gid)); err != nil {
		return fmt.Errorf("chown %s: %w", src.Name(), err)
	}
	if err := unix.Fchmod(int(dst.Fd()), st.Mode&0o7777); err != nil {
		return fmt.Errorf("chmod %s: %w", src.Name(), err)
	}
	return nil
}

func copyDir(src, dst *os.File, name string, depth int) error {
	from, err := openDir(int(src.Fd()), name)
	if err != nil {
		return err
	}
	defer from.Close()
	if err := unix.Mkdirat(int(dst.Fd()), name, 0o700); err != nil {
		return fmt.Errorf("make %s: %w", name, err)
	}
	to, err := openDir(int(dst.Fd()), name)
	if err != nil {
		return err
	}
	defer to.Close()
	return copyTree(from, to, depth+1)
}

func copyFile(src, dst *os.File, name string) error {
	fd, err := unix.Openat(int(src.Fd()), name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open %s: %w", name, err)
	}
	from := os.NewFile(uintptr(fd), name)
	defer from.Close()
	fd, err = unix.Openat(int(dst.Fd()), name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return fmt.Errorf("make %s: %w", name, err)
	}
	to := os.NewFile(uintptr(fd), name)
	_, err = io.Copy(to, from)
	if err == nil {
		err = sameOwner(from, to)
	}
	if err = errors.Join(err, to.Close()); err != nil {
		return fmt.Errorf("copy %s: %w", name, err)
	}
	return nil
}

func copyLink(src, dst *os.File, name string, st *unix.Stat_t) error {
	buf := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(int(src.Fd()), name, buf)
	if err != nil {
		return fmt.Errorf("read link %s: %w", name, err)
	}
	if err := unix.Symlinkat(string(buf[:n]), int(dst.Fd()), name); err != nil {
		return fmt.Errorf("make link %s: %w", name, err)
	}
	if err := unix.Fchownat(int(dst.Fd()), name, int(st.Uid), int(st.Gid), unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fmt.Errorf("chown %s: %w", name, err)
	}
	return nil
}
