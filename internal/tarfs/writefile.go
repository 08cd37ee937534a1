package tarfs

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/safefs"
)

// WriteFile writes an archive of one thing that is no directory, under a name of its own. The handle may be good for paths only, as that of a link is.
func WriteFile(ctx context.Context, handle *os.File, name string, to io.Writer) error {
	w := newWriter(ctx, to, WriteOptions{})
	f := &sight{fd: -1}
	if err := unix.Fstat(int(handle.Fd()), &f.st); err != nil {
		return err
	}
	switch f.st.Mode & unix.S_IFMT {
	case unix.S_IFSOCK:
		return errs.New(errs.Invalid, "%s: an archive holds no sockets", name)
	case unix.S_IFREG:
		file, err := safefs.Reopen(handle, unix.O_RDONLY|unix.O_NONBLOCK)
		if err != nil {
			return err
		}
		defer file.Close()
		if f.fd, err = unix.FcntlInt(file.Fd(), unix.F_DUPFD_CLOEXEC, 3); err != nil {
			return err
		}
		defer f.close()
		if err := f.take(); err != nil {
			return fmt.Errorf("read %s: %w", name, err)
		}
		if err := f.readMade(); err != nil {
			return fmt.Errorf("read %s: %w", name, err)
		}
		if err := w.file(name, f); err != nil {
			return err
		}
	case unix.S_IFLNK:
		target, err := readlinkat(int(handle.Fd()), "")
		if err != nil {
			return &os.PathError{Op: "readlink", Path: name, Err: err}
		}
		if err := w.node(name, &f.st, target, nil); err != nil {
			return err
		}
	default:
		if err := w.node(name, &f.st, "", nil); err != nil {
			return err
		}
	}
	return w.close()
}

// readMade reads a file whose content the kernel makes as it is read: its size is no more than a word, zero or a page or what an address space has.
func (f *sight) readMade() error {
	if f.st.Blocks > 0 || !made(f.fd) {
		return nil
	}
	var all bytes.Buffer
	for buf := make([]byte, 64<<10); ; {
		if all.Len() > madeBytes {
			return errs.New(errs.Invalid, "it has no end within %d MB", madeBytes>>20)
		}
		n, err := unix.Pread(f.fd, buf, int64(all.Len()))
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return err
		}
		if n == 0 {
			break
		}
		all.Write(buf[:n])
	}
	f.data, f.st.Size = all.Bytes(), int64(all.Len())
	return nil
}

// made tells whether the kernel makes the content of a file system as it is read.
func made(fd int) bool {
	var fs unix.Statfs_t
	if err := unix.Fstatfs(fd, &fs); err != nil {
		return false
	}
	switch fs.Type {
	case unix.PROC_SUPER_MAGIC, unix.SYSFS_MAGIC, unix.CGROUP_SUPER_MAGIC, unix.CGROUP2_SUPER_MAGIC, unix.DEVPTS_SUPER_MAGIC, mqueueMagic,
		unix.DEBUGFS_MAGIC, unix.TRACEFS_MAGIC, unix.SECURITYFS_MAGIC, unix.BPF_FS_MAGIC, unix.PSTOREFS_MAGIC, unix.BINFMTFS_MAGIC:
		return true
	}
	return false
}

const mqueueMagic = 0x19800202 // MQUEUE_MAGIC in the kernel's ipc/mqueue.c

// madeBytes is the most that is read of a file that may have no end.
const madeBytes = 16 << 20
