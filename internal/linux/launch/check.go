package launch

import "syscall"

// The checks of the walker; what is said at the top of walk.go holds here too.

// The offsets of struct statx that are asked for.
const (
	statxMode   = 28  // u16
	statxIno    = 32  // u64
	statxRdev   = 128 // u32 major, u32 minor
	statxDev    = 136 // u32 major, u32 minor
	statxMnt    = 144 // u64
	atEmptyPath = 0x1000
)

//go:nosplit
//go:norace
//go:nocheckptr
func statx(scratch, fd uintptr) uintptr {
	empty := scratch + 504 // the last word of scratch
	*(*uint64)(address(empty)) = 0
	_, _, e := syscall.RawSyscall6(sysStatx, fd, empty, atEmptyPath, 0x7ff|0x1000, scratch, 0)
	return uintptr(e)
}

//go:nosplit
//go:norace
//go:nocheckptr
func checkNode(scratch uintptr, a *[6]uintptr) uintptr {
	if e := statx(scratch, a[0]); e != 0 {
		return e
	}
	if uintptr(*(*uint16)(address(scratch + statxMode)))&0xf000 != a[1] {
		return eproto
	}
	if (a[1] == 0x2000 || a[1] == 0x6000) && (uintptr(*(*uint32)(address(scratch + statxRdev))) != a[2] || uintptr(*(*uint32)(address(scratch + statxRdev + 4))) != a[3]) {
		return eproto
	}
	return 0
}

//go:nosplit
//go:norace
//go:nocheckptr
func sameFile(w *work, scratch uintptr, a *[6]uintptr) uintptr {
	if e := statx(scratch, a[0]); e != 0 {
		return e
	}
	ino, dev, mnt := w.scratch[statxIno/8], w.scratch[statxDev/8], w.scratch[statxMnt/8]
	if e := statx(scratch, a[1]); e != 0 {
		return e
	}
	if ino != w.scratch[statxIno/8] || dev != w.scratch[statxDev/8] || mnt != w.scratch[statxMnt/8] {
		return exdev
	}
	return 0
}
