package runtimecli

import (
	"fmt"
	"io"
	"os"
	"unsafe"

	"corten.dev/corten/internal/errs"
	"golang.org/x/sys/unix"
)

// A container that executes /proc/self/exe, directly or in the first line of a script, executes the file of the process that made it, and can then open that file by
// /proc/<pid>/exe. If it were the file on the host's disk, the container's root could overwrite the runtime (CVE-2019-5736). So whoever makes processes does not run from that file:
// it executes itself again through a read-only mount that stands nowhere, or from a sealed copy in memory where such a mount cannot be made.

// sealedEnv tells the second run apart, so that a kernel that lies about the flags ends in an error instead of a loop.
const sealedEnv = "_CORTEN_RUNTIME_SEALED"

// seal executes this very command line again from a file that cannot be written. It returns nil when that is the case already.
func seal() error {
	exe, err := unix.Open("/proc/self/exe", unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("seal: %w", err)
	}
	defer unix.Close(exe)
	if sealed(exe) {
		return os.Unsetenv(sealedEnv)
	}
	if os.Getenv(sealedEnv) != "" {
		return errs.New(errs.Unavailable, "seal: the runtime's own file stays writable")
	}
	fd, err := readOnlyMount(exe)
	if err != nil {
		if fd, err = memoryCopy(); err != nil {
			return fmt.Errorf("seal: %w", err)
		}
	}
	return execFD(fd, os.Args, append(os.Environ(), sealedEnv+"=1"))
}

// sealed tells whether nobody can write to the file: it is on a read-only mount, or a memory file with the write seal.
func sealed(exe int) bool {
	var fs unix.Statfs_t
	if unix.Fstatfs(exe, &fs) == nil && fs.Flags&unix.ST_RDONLY != 0 {
		return true
	}
	f, err := unix.Open("/proc/self/exe", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return false
	}
	defer unix.Close(f)
	seals, err := unix.FcntlInt(uintptr(f), unix.F_GET_SEALS, 0)
	return err == nil && seals&unix.F_SEAL_WRITE != 0
}

func readOnlyMount(exe int) (int, error) {
	fd, err := unix.OpenTree(exe, "", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_EMPTY_PATH)
	if err != nil {
		return -1, err
	}
	if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}); err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

func memoryCopy() (int, error) {
	fd, err := unix.MemfdCreate("corten-runtime", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING|unix.MFD_EXEC)
	if err == unix.EINVAL { // before Linux 6.3 there was no such flag
		fd, err = unix.MemfdCreate("corten-runtime", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	}
	if err != nil {
		return -1, err
	}
	to := os.NewFile(uintptr(fd), "copy")
	from, err := os.Open("/proc/self/exe")
	if err != nil {
		to.Close()
		return -1, err
	}
	defer from.Close()
	if _, err = io.Copy(to, from); err == nil {
		_, err = unix.FcntlInt(to.Fd(), unix.F_ADD_SEALS, unix.F_SEAL_SEAL|unix.F_SEAL_SHRINK|unix.F_SEAL_GROW|unix.F_SEAL_WRITE)
	}
	if err != nil {
		to.Close()
		return -1, err
	}
	return unix.FcntlInt(to.Fd(), unix.F_DUPFD_CLOEXEC, 0)
}

// execFD is execveat of the file itself.
func execFD(fd int, argv, env []string) error {
	empty, err := unix.BytePtrFromString("")
	if err != nil {
		return err
	}
	av, err := table(argv)
	if err != nil {
		return err
	}
	ev, err := table(env)
	if err != nil {
		return err
	}
	_, _, e := unix.Syscall6(unix.SYS_EXECVEAT, uintptr(fd), uintptr(unsafe.Pointer(empty)), uintptr(unsafe.Pointer(&av[0])), uintptr(unsafe.Pointer(&ev[0])), unix.AT_EMPTY_PATH, 0)
	return fmt.Errorf("execute the sealed runtime: %w", e)
}

func table(list []string) ([]*byte, error) {
	out := make([]*byte, 0, len(list)+1)
	for _, s := range list {
		p, err := unix.BytePtrFromString(s)
		if err != nil {
			return nil, err
		}
		out = append(out, p)
	}
	return append(out, nil), nil
}
