// Package quota bounds how many bytes a directory and all below it may take, by project quotas of the kernel: ext4 with the features quota and project, and xfs, each mounted with prjquota.
//
// It owns nothing: a project's limit is kept by the file system. It promises that a limit it set is one that the kernel enforces, not one that is only counted; and that a project which somebody else uses
// is told from a free one. The kernel does not hold processes with CAP_SYS_RESOURCE, which no container has by default, to
// any quota. See quotactl(2), ioctl_xfs_fsgetxattr(2).
package quota

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/linux/host"
)

// Numbers that golang.org/x/sys does not have.
const (
	fsGetXattr  = 0x801c581f // FS_IOC_FSGETXATTR
	fsSetXattr  = 0x401c5820 // FS_IOC_FSSETXATTR
	inherit     = 0x200      // FS_XFLAG_PROJINHERIT
	project     = 2          // PRJQUOTA
	getQuota    = 0x800007<<8 | project
	setQuota    = 0x800008<<8 | project
	getState    = 0x5808<<8 | project // Q_XGETQSTATV
	stateV1     = 1
	enforced    = 1 << 5 // FS_QUOTA_PDQ_ENFD
	blockLimits = 1      // QIF_BLIMITS
	limitUnit   = 1024   // bytes of a block in a limit
)

// fsxattr is struct fsxattr of linux/fs.h.
type fsxattr struct {
	flags, extent, extents, project, cowExtent uint32
	_                                          [8]byte
}

// dqblk is struct if_dqblk of linux/quota.h.
type dqblk struct {
	hardBlocks, softBlocks, bytes  uint64
	hardInodes, softInodes, inodes uint64
	blockTime, inodeTime           uint64
	valid, _                       uint32
}

// state is the head of struct fs_quota_statv of linux/dqblk_xfs.h, and room for the rest.
type state struct {
	version int8
	_       uint8
	flags   uint16
	_       [252]byte
}

// Use is what a project takes and may take.
type Use struct {
	Bytes, Inodes int64
	Limit         int64 // bytes; 0: none
}

// Enforced tells that limits on projects hold on the file system of an open directory: nil, or errs.NotImplemented with what is missing.
func Enforced(dir *os.File) error {
	no := func(why string) error {
		kind, err := host.FileSystem(fmt.Sprintf("/proc/self/fd/%d", dir.Fd()))
		if err != nil {
			kind = "unknown"
		}
		return errs.New(errs.NotImplemented, "the file system of %s (%s) enforces no project quotas: %s", dir.Name(), kind, why)
	}
	var attr fsxattr
	if err := ioctl(dir, fsGetXattr, unsafe.Pointer(&attr)); err != nil {
		return no("it knows no projects")
	}
	st := state{version: stateV1}
	if err := control(dir, getState, 0, unsafe.Pointer(&st)); err != nil {
		return no("it is mounted without prjquota, or the kernel lacks CONFIG_QUOTA and CONFIG_QFMT_V2 (xfs: CONFIG_XFS_QUOTA)")
	}
	if st.flags&enforced == 0 {
		return no("it is mounted without prjquota")
	}
	return nil
}

// Free finds a project without files and without a limit.
func Free(dir *os.File) (uint32, error) {
	for range 100 {
		id := 1<<20 + rand.Uint32N(1<<30)
		use, err := Usage(dir, id)
		if err != nil {
			return 0, err
		}
		if use == (Use{}) {
			return id, nil
		}
	}
	return 0, errs.New(errs.Unavailable, "find a free project on the file system of %s: all that were tried are in use", dir.Name())
}

// Limit makes an open, empty directory the top of a project whose files may take so many bytes. What is made below belongs to the project.
func Limit(dir *os.File, id uint32, bytes int64) error {
	if err := SetLimit(dir, id, bytes); err != nil {
		return err
	}
	if err := Join(dir, id); err != nil {
		return errors.Join(err, SetLimit(dir, id, 0))
	}
	return nil
}

// Join makes an open, empty directory a top of a project that has its limit already. Files move freely between the tops of one project, and not between projects.
func Join(dir *os.File, id uint32) error {
	var attr fsxattr
	err := ioctl(dir, fsGetXattr, unsafe.Pointer(&attr))
	if err == nil {
		attr.flags, attr.project = attr.flags|inherit, id
		err = ioctl(dir, fsSetXattr, unsafe.Pointer(&attr))
	}
	if err != nil {
		return fmt.Errorf("make %s the top of project %d: %w", dir.Name(), id, err)
	}
	return nil
}

// SetLimit changes how many bytes a project's files may take; dir is any directory of the file system. 0 takes the limit away: where the file system enforces none any more, there is none to take, and what
// was bound by it can be removed.
func SetLimit(dir *os.File, id uint32, bytes int64) error {
	q := dqblk{hardBlocks: (uint64(max(bytes, 0)) + limitUnit - 1) / limitUnit, valid: blockLimits}
	if err := control(dir, setQuota, id, unsafe.Pointer(&q)); err != nil {
		if bytes == 0 && errors.Is(Enforced(dir), errs.NotImplemented) {
			return nil
		}
		return fmt.Errorf("limit project %d on the file system of %s: %w", id, dir.Name(), err)
	}
	return nil
}

// Usage tells what a project takes; of one that was never used, nothing.
func Usage(dir *os.File, id uint32) (Use, error) {
	var q dqblk
	err := control(dir, getQuota, id, unsafe.Pointer(&q))
	if errors.Is(err, unix.ENOENT) {
		return Use{}, nil
	}
	if err != nil {
		return Use{}, fmt.Errorf("usage of project %d on the file system of %s: %w", id, dir.Name(), err)
	}
	return Use{Bytes: int64(q.bytes), Inodes: int64(q.inodes), Limit: int64(q.hardBlocks) * limitUnit}, nil
}

// Of tells the project that a directory belongs to; 0 is none, as on file systems that know no projects.
func Of(dir *os.File) (uint32, error) {
	var attr fsxattr
	err := ioctl(dir, fsGetXattr, unsafe.Pointer(&attr))
	if errors.Is(err, unix.ENOTTY) || errors.Is(err, unix.EOPNOTSUPP) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("project of %s: %w", dir.Name(), err)
	}
	return attr.project, nil
}

func ioctl(f *os.File, req uintptr, arg unsafe.Pointer) error {
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), req, uintptr(arg)); errno != 0 {
		return errno
	}
	return nil
}

// control is quotactl_fd(2), or before Linux 5.14 quotactl(2) with the name of the device.
func control(dir *os.File, cmd uintptr, id uint32, arg unsafe.Pointer) error {
	_, _, errno := unix.Syscall6(unix.SYS_QUOTACTL_FD, dir.Fd(), cmd, uintptr(id), uintptr(arg), 0, 0)
	if errno == 0 {
		return nil
	}
	if errno != unix.ENOSYS {
		return errno
	}
	device, err := deviceOf(dir)
	if err != nil {
		return err
	}
	name, err := unix.BytePtrFromString(device)
	if err != nil {
		return err
	}
	if _, _, errno := unix.Syscall6(unix.SYS_QUOTACTL, cmd, uintptr(unsafe.Pointer(name)), uintptr(id), uintptr(arg), 0, 0); errno != 0 {
		return errno
	}
	return nil
}

// deviceOf names the block device of a file system, as the kernel calls it.
func deviceOf(dir *os.File) (string, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(dir.Fd()), &st); err != nil {
		return "", err
	}
	b, err := os.ReadFile(fmt.Sprintf("/sys/dev/block/%d:%d/uevent", unix.Major(st.Dev), unix.Minor(st.Dev)))
	if err != nil {
		return "", unix.ENOSYS // no block device: no quotas on this kernel
	}
	for line := range strings.Lines(string(b)) {
		if name, ok := strings.CutPrefix(line, "DEVNAME="); ok {
			return "/dev/" + strings.TrimSpace(name), nil
		}
	}
	return "", unix.ENOSYS
}
