package launch

import (
	"syscall"
	"unsafe"
)

// Everything here runs between clone3 and execve, in a copy of a Go process that has one thread and no runtime: no allocation, no growing of the stack, no call of
// anything but system calls. All memory is the program's own, addressed by number, because the garbage collector of the parent may have been at work.

const (
	eagain  = 11
	eacces  = 13
	enoent  = 2
	eexist  = 17
	enotdir = 20
	eloop   = 40
	einval  = 22
	eintr   = 4
	exdev   = 18
	eproto  = 71
	erange  = 34

	atFDCWD     = ^uintptr(99) // -100
	oPath       = 0x200000
	oCloexec    = 0x80000
	oCreat      = 0x40
	oExcl       = 0x80
	fDupCloexec = 1030

	resolveInRoot       = 0x10
	resolveNoMagiclinks = 0x02
)

//go:nosplit
//go:norace
func sys3(nr, a, b, c uintptr) (uintptr, uintptr) {
	r, _, e := syscall.RawSyscall6(nr, a, b, c, 0, 0, 0)
	return r, uintptr(e)
}

// prologue resets what a child must not inherit: signal handlers, the signal mask, descriptors that are not slots, and slots in the way of the final numbers.
//
//go:nosplit
//go:norace
//go:nocheckptr
func prologue(w *work, h *header) {
	scratch := uintptr(unsafe.Pointer(&w.scratch))
	for i := range w.scratch {
		w.scratch[i] = 0
	}
	for sig := uintptr(1); sig <= 64; sig++ {
		syscall.RawSyscall6(syscall.SYS_RT_SIGACTION, sig, scratch, 0, 8, 0, 0) // SIGKILL and SIGSTOP refuse
	}
	syscall.RawSyscall6(syscall.SYS_RT_SIGPROCMASK, 2, scratch, 0, 8, 0, 0)
	for i := range w.slots {
		if w.slots[i] < 0 {
			continue
		}
		// All slots move, also those that stand high enough, so that one descriptor handed in for two slots becomes two, and all are close-on-exec.
		r, e := sys3(syscall.SYS_FCNTL, uintptr(w.slots[i]), fDupCloexec, uintptr(h.minFD))
		if e != 0 {
			w.slots[i] = -1
			continue
		}
		w.slots[i] = int32(r)
	}
	keepSlots(w, 0)
	w.forkFD = w.slots[MaxSlots-1]
}

// keepSlots closes every descriptor from first on that is not a slot.
//
//go:nosplit
//go:norace
func keepSlots(w *work, first int32) {
	for {
		next := int32(0x7fffffff)
		for i := range w.slots {
			if s := w.slots[i]; s >= first && s < next {
				next = s
			}
		}
		if next > first {
			sys3(sysCloseRange, uintptr(first), uintptr(next-1), 0)
		}
		if next == 0x7fffffff {
			return
		}
		first = next + 1
	}
}

// walk runs the program; it never returns.
//
//go:nosplit
//go:norace
//go:nocheckptr
func walk(mem uintptr) {
	w := (*work)(address(mem))
	h := (*header)(address(mem + uintptr(workSize)))
	prologue(w, h)
	base := mem + uintptr(workSize) + uintptr(headerSize)
	arena := base + uintptr(h.ops)*uintptr(opSize)
	a := &w.args
	for i := uint32(0); i < h.ops; {
		o := (*op)(address(base + uintptr(i)*uintptr(opSize)))
		for k := range a {
			v := uintptr(o.args[k])
			switch o.kinds[k] {
			case argReg:
				v = uintptr(w.regs[v])
			case argSlot:
				v = uintptr(w.slots[v])
			case argPtr:
				v += arena
			}
			a[k] = v
		}
		next := i + 1
		r, errno := uintptr(0), uintptr(0)
		switch o.kind {
		case opSys:
			rr, _, e := syscall.RawSyscall6(uintptr(o.nr), a[0], a[1], a[2], a[3], a[4], a[5])
			r, errno = rr, uintptr(e)
		case opJump: // 0: operation
			next = uint32(a[0])
		case opMove: // 0: value
			r = a[0]
		case opFork: // 0: flags of clone3 (CLONE_PARENT is added)
			r, errno = fork(w, a[0])
		case opOpenIn: // 0: root directory, 1: path, 2: open flags, 3: what to make if missing (0 nothing, 1 directory, 2 file), 4: mode
			r, errno = openIn(uintptr(unsafe.Pointer(&w.scratch)), a)
		case opExec: // 0: candidates, one after the other, 1: how many, 2: argv, 3: count, 4: envp, 5: count
			r, errno = exec(arena, a)
		default:
			r, errno = special(w, h, o.kind, i)
		}
		if errno != 0 {
			next = tolerated(o, errno)
			if next == 0 {
				fail(w, h, i, errno)
			}
			r = errno
		}
		if o.dst != none {
			w.regs[o.dst] = int64(r)
		}
		i = next
	}
	fail(w, h, h.ops, 0) // a program that does not end in execve
}

// tolerated returns the operation to go on with after errno, or 0 (no jump goes back to the first operation).
//
//go:nosplit
//go:norace
func tolerated(o *op, errno uintptr) uint32 {
	for k := range o.errno {
		if o.errno[k] != 0 && (o.errno[k] == anyErrno || uintptr(o.errno[k]) == errno) {
			return uint32(o.jump[k])
		}
	}
	return 0
}

//go:nosplit
//go:norace
//go:nocheckptr
func special(w *work, h *header, kind uint8, i uint32) (r, errno uintptr) {
	scratch := uintptr(unsafe.Pointer(&w.scratch))
	a := &w.args
	switch kind {
	case opTell: // 0: kind of report, 1: value
		return tell(w, h, a[0], i, a[1])
	case opAwait: // 0: the byte that means go on; anything else, and the end of the socket, ends the child
		return await(w, h, a[0])
	case opFail: // 0: errno
		return 0, a[0]
	case opPoke: // 0: where, 1: value, 2: width
		if a[2] == 4 {
			*(*uint32)(address(a[0])) = uint32(a[1])
		} else {
			*(*uint64)(address(a[0])) = uint64(a[1])
		}
	case opDecimal: // 0: where, 1: value; writes the number and a NUL
		decimal(a[0], a[1])
	case opCheckNode: // 0: descriptor, 1: S_IFMT bits, 2: major, 3: minor (of a device)
		return 0, checkNode(scratch, a)
	case opCheckFS: // 0: descriptor, 1: magic number of the file system
		if _, e := sys3(sysFstatfs, a[0], scratch, 0); e != 0 {
			return 0, e
		}
		if uintptr(w.scratch[0]) != a[1] {
			return 0, exdev
		}
	case opSameMount: // 0, 1: descriptors that must be of one mount and one inode
		return 0, sameFile(w, scratch, a)
	case opCheckCwd: // 0: buffer of 4096; the working directory must be reachable from the root
		if _, e := sys3(sysGetcwd, a[0], 4096, 0); e != 0 {
			return 0, e
		}
		if *(*byte)(address(a[0])) != '/' {
			return 0, exdev
		}
	case opKeep: // 0: first descriptor to close; 1..5: descriptors to keep, -1 for none
		keep(a)
	}
	return 0, 0
}

//go:nosplit
//go:norace
func tell(w *work, h *header, kind uintptr, i uint32, value uintptr) (r, errno uintptr) {
	if h.sync < 0 {
		return 0, einval
	}
	b := &w.scratch
	b[0] = uint64(kind) | uint64(i)<<32
	b[1] = uint64(uint32(value))
	for {
		n, e := sys3(syscall.SYS_WRITE, uintptr(w.slots[h.sync]), uintptr(unsafe.Pointer(b)), ReportSize)
		if e == eintr {
			continue
		}
		return n, e
	}
}

//go:nosplit
//go:norace
func await(w *work, h *header, want uintptr) (r, errno uintptr) {
	for {
		w.scratch[0] = 0
		n, e := sys3(syscall.SYS_READ, uintptr(w.slots[h.sync]), uintptr(unsafe.Pointer(&w.scratch)), 1)
		if e == eintr {
			continue
		}
		if e != 0 || n != 1 || uintptr(w.scratch[0]&0xff) != want {
			exit(1)
		}
		return 0, 0
	}
}

//go:nosplit
//go:norace
func fail(w *work, h *header, i uint32, errno uintptr) {
	if h.sync >= 0 {
		tell(w, h, TellFailed, i, errno)
	}
	exit(127)
}

//go:nosplit
//go:norace
func exit(code uintptr) {
	for {
		sys3(syscall.SYS_EXIT_GROUP, code, 0, 0)
	}
}

// fork clones once more; the process between tells the pid and goes.
//
//go:nosplit
//go:norace
func fork(w *work, flags uintptr) (r, errno uintptr) {
	for i := range w.scratch {
		w.scratch[i] = 0
	}
	const cloneParent = 0x8000
	w.scratch[0] = uint64(flags | cloneParent)
	pid, e := sys3(sysClone3, uintptr(unsafe.Pointer(&w.scratch)), unsafe.Sizeof(cloneArgs{}), 0)
	if e != 0 {
		return 0, e
	}
	if pid != 0 {
		w.scratch[0] = uint64(pid)
		sys3(syscall.SYS_WRITE, uintptr(w.forkFD), uintptr(unsafe.Pointer(&w.scratch)), 4)
		exit(0)
	}
	sys3(syscall.SYS_CLOSE, uintptr(w.forkFD), 0, 0)
	w.slots[MaxSlots-1] = -1
	return 0, 0
}

//go:nosplit
//go:norace
//go:nocheckptr
func decimal(at, v uintptr) {
	n := uintptr(1)
	for t := v; t >= 10; t /= 10 {
		n++
	}
	*(*byte)(address(at + n)) = 0
	for k := n; k > 0; k-- {
		*(*byte)(address(at + k - 1)) = byte('0' + v%10)
		v /= 10
	}
}

// openat2 opens path as if dir were the root of the file system. The kernel answers EAGAIN when something was renamed meanwhile.
//
//go:nosplit
//go:norace
//go:nocheckptr
func openat2(scratch, dir, path, flags, mode uintptr) (r, errno uintptr) {
	how := (*[3]uint64)(address(scratch))
	how[0], how[1], how[2] = uint64(flags|oCloexec), uint64(mode), resolveInRoot|resolveNoMagiclinks
	for try := 0; try < 1000; try++ {
		rr, _, e := syscall.RawSyscall6(sysOpenat2, dir, path, scratch, 24, 0, 0)
		if e != eagain && e != eintr {
			return rr, uintptr(e)
		}
	}
	return 0, eagain
}

// openIn opens a path inside a root and makes what is missing, one component at a time: each is looked up anew below the root by the kernel, and made by a single
// name in a directory held open, so that nobody who swaps directories for links meanwhile can lead it outside.
//
//go:nosplit
//go:norace
//go:nocheckptr
func openIn(scratch uintptr, a *[6]uintptr) (r, errno uintptr) {
	// The arguments stay where they are: locals would not fit the stack of a child that must not grow it.
	r, errno = openat2(scratch, a[0], a[1], a[2], 0)
	if errno != enoent || a[3] == 0 {
		return r, errno
	}
	dir := a[0]
	p := a[1]
	for {
		for *(*byte)(address(p)) == '/' {
			p++
		}
		start := p
		for *(*byte)(address(p)) != 0 && *(*byte)(address(p)) != '/' {
			p++
		}
		rest := p
		for *(*byte)(address(rest)) == '/' {
			rest++
		}
		last := *(*byte)(address(rest)) == 0
		ended := *(*byte)(address(p))
		*(*byte)(address(p)) = 0
		var fd uintptr
		if last && a[3] == 2 {
			fd, errno = makeFile(scratch, dir, start, a[4])
		} else {
			fd, errno = makeDir(scratch, a, dir, start)
		}
		*(*byte)(address(p)) = ended
		if dir != a[0] {
			sys3(syscall.SYS_CLOSE, dir, 0, 0)
		}
		if errno != 0 {
			return 0, errno
		}
		if last {
			sys3(syscall.SYS_CLOSE, fd, 0, 0)
			return openat2(scratch, a[0], a[1], a[2], 0)
		}
		dir = fd
		p = rest
	}
}

//go:nosplit
//go:norace
func makeDir(scratch uintptr, a *[6]uintptr, dir, name uintptr) (r, errno uintptr) {
	r, errno = openat2(scratch, a[0], a[1], oPath|oDirectory, 0)
	if errno != enoent {
		return r, errno
	}
	if _, e := sys3(syscall.SYS_MKDIRAT, dir, name, a[4]); e != 0 && e != eexist {
		return 0, e
	}
	return openat2(scratch, a[0], a[1], oPath|oDirectory, 0)
}

//go:nosplit
//go:norace
func makeFile(scratch, dir, name, mode uintptr) (r, errno uintptr) {
	r, errno = openat2(scratch, dir, name, oCreat|oExcl|1, mode)
	if errno == eexist { // somebody else was faster, or a link that leads nowhere: the open that follows tells
		return openat2(scratch, dir, name, oPath, 0)
	}
	return r, errno
}

// exec tries the candidates as a shell does: what is not there is passed over, what may not be run is remembered.
//
//go:nosplit
//go:norace
//go:nocheckptr
func exec(arena uintptr, a *[6]uintptr) (r, errno uintptr) {
	relocate(arena, a[2], a[3])
	relocate(arena, a[4], a[5])
	p := a[0]
	result := uintptr(enoent)
	for n := a[1]; n > 0; n-- {
		_, e := sys3(syscall.SYS_EXECVE, p, a[2], a[4])
		switch e {
		case enoent, enotdir:
		case eacces:
			result = e
		default:
			return 0, e
		}
		for *(*byte)(address(p)) != 0 {
			p++
		}
		p++
	}
	return 0, result
}

// relocate turns n arena offsets into addresses, followed by a null.
//
//go:nosplit
//go:norace
//go:nocheckptr
func relocate(arena, table, n uintptr) {
	for k := uintptr(0); k < n; k++ {
		*(*uintptr)(address(table + k*8)) += arena
	}
	*(*uintptr)(address(table + n*8)) = 0
}

// keep closes every descriptor from a[0] on but a[1] to a[5].
//
//go:nosplit
//go:norace
func keep(a *[6]uintptr) {
	first := a[0]
	for {
		next := uintptr(0x7fffffff)
		for k := 1; k < 6; k++ {
			if v := a[k]; v >= first && v < next {
				next = v
			}
		}
		if next > first {
			sys3(sysCloseRange, first, next-1, 0)
		}
		if next == 0x7fffffff {
			return
		}
		first = next + 1
	}
}

// address makes a pointer of a number, without asking the checks that are right to object elsewhere: the memory is the program's, which does not move.
//
//go:nosplit
//go:norace
//go:nocheckptr
func address(p uintptr) unsafe.Pointer { return *(*unsafe.Pointer)(unsafe.Pointer(&p)) }
