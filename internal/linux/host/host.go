// Package host tells about the machine and its kernel: release, processor, memory, the file system below a path, the numbers of a device, our own limits.
//
// It owns nothing and changes nothing. It promises that every answer is the kernel's at the time of the question; an empty one, where there is no error, means that the
// kernel does not say.
package host

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// Kernel is the release of the running kernel, as uname -r prints it.
func Kernel() string {
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return ""
	}
	return unix.ByteSliceToString(u.Release[:])
}

// KernelSince tells whether the running kernel is of this release or a later one. One that cannot be read is not.
func KernelSince(major, minor int) bool { return since(Kernel(), major, minor) }

func since(release string, wantMajor, wantMinor int) bool {
	major, minor := 0, 0
	if n, _ := fmt.Sscanf(release, "%d.%d", &major, &minor); n != 2 {
		return false
	}
	return major > wantMajor || major == wantMajor && minor >= wantMinor
}

// Machine is the kernel's word for the processor (x86_64, aarch64), as uname -m prints it.
func Machine() string {
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return ""
	}
	return unix.ByteSliceToString(u.Machine[:])
}

// Memory is the size of the whole memory in bytes; 0 when the kernel does not say.
func Memory() int64 {
	var si unix.Sysinfo_t
	if unix.Sysinfo(&si) != nil {
		return 0
	}
	return int64(si.Totalram) * int64(si.Unit)
}

// fileSystems are the names that people and tools know the magic numbers by.
var fileSystems = map[int64]string{
	unix.EXT4_SUPER_MAGIC: "extfs", unix.XFS_SUPER_MAGIC: "xfs", unix.BTRFS_SUPER_MAGIC: "btrfs", unix.TMPFS_MAGIC: "tmpfs", unix.OVERLAYFS_SUPER_MAGIC: "overlayfs", 0x2fc12fc1: "zfs",
	unix.SYSFS_MAGIC: "sysfs", unix.PROC_SUPER_MAGIC: "proc", unix.NFS_SUPER_MAGIC: "nfs", unix.SMB2_SUPER_MAGIC: "smb2", unix.CIFS_SUPER_MAGIC: "cifs", unix.FUSE_SUPER_MAGIC: "fuse",
	unix.V9FS_MAGIC: "9p", unix.F2FS_SUPER_MAGIC: "f2fs", unix.SQUASHFS_MAGIC: "squashfs", unix.EROFS_SUPER_MAGIC_V1: "erofs", unix.RAMFS_MAGIC: "ramfs", unix.DEVPTS_SUPER_MAGIC: "devpts",
}

// FileSystem names the kind of file system that a path lies on; one without a name here is called by its number.
func FileSystem(path string) (string, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		return "", fmt.Errorf("file system of %s: %w", path, err)
	}
	if name := fileSystems[int64(st.Type)]; name != "" {
		return name, nil
	}
	return fmt.Sprintf("%#x", st.Type), nil
}

// OpenFiles are our own bounds of open files.
func OpenFiles() (soft, hard uint64, err error) {
	var lim unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &lim); err != nil {
		return 0, 0, fmt.Errorf("limit of open files: %w", err)
	}
	return lim.Cur, lim.Max, nil
}

// Numbers takes the number of a device apart, as it stands in the Rdev of a stat.
func Numbers(rdev uint64) (major, minor int64) {
	return int64(unix.Major(rdev)), int64(unix.Minor(rdev))
}

// Device tells the numbers of the device that a node is.
func Device(node string) (major, minor int64, err error) {
	var st unix.Stat_t
	if err := unix.Stat(node, &st); err != nil {
		return 0, 0, err
	}
	major, minor = Numbers(uint64(st.Rdev)) //nolint:unconvert // it is narrower on other machines
	return major, minor, nil
}
