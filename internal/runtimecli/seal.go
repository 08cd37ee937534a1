package runtimecli

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/linux/program"
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
	f, err := readOnlyMount(exe)
	if err != nil {
		if f, err = memoryCopy(); err != nil {
			return fmt.Errorf("seal: %w", err)
		}
	}
	return program.Exec(f, os.Args, append(os.Environ(), sealedEnv+"=1"))
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

func readOnlyMount(exe int) (*os.File, error) {
	fd, err := unix.OpenTree(exe, "", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_EMPTY_PATH)
	if err != nil {
		return nil, err
	}
	if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}); err != nil {
		unix.Close(fd)
		return nil, err
	}
	return os.NewFile(uintptr(fd), "/proc/self/exe"), nil
}

func memoryCopy() (*os.File, error) {
	from, err := os.Open("/proc/self/exe")
	if err != nil {
		return nil, err
	}
	defer from.Close()
	return program.Sealed("corten-runtime", from)
}
