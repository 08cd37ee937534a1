package launch

import (
	"runtime"
	"syscall"
	"unsafe"
)

const (
	sysClone3     = 435
	sysCloseRange = 436
	sysOpenat2    = 437
	sysPidfdOpen  = 434

	cloneNewPID     = 0x20000000
	clonePidfd      = 0x1000
	cloneIntoCgroup = 0x200000000
	sigchld         = 17
)

// cloneArgs is struct clone_args of clone3.
type cloneArgs struct {
	flags, pidfd, childTID, parentTID, exitSignal, stack, stackSize, tls, setTID, setTIDSize, cgroup uint64
}

// Start clones a child that walks the program and returns its pid and a pidfd (close-on-exec). fds[i] is the descriptor for slot i; -1 leaves a slot empty, as do
// slots beyond the slice. The descriptors stay the caller's. A program may be started many times, at once too.
//
// The child is a plain fork (memory copied on write), so it must be made by a small process: the cost is that of the page tables.
func (p *Program) Start(fds []int) (pid, pidfd int, err error) {
	h := p.head()
	if len(fds) > int(h.slots) {
		return 0, -1, &Error{What: "more files than the program has slots"}
	}
	mem := make([]uint64, len(p.mem))
	copy(mem, p.mem)
	w := (*work)(unsafe.Pointer(&mem[0]))
	for i := range w.slots {
		w.slots[i] = -1
		if i < len(fds) {
			w.slots[i] = int32(fds[i])
		}
	}
	args := &cloneArgs{flags: h.flags | clonePidfd, pidfd: uint64(uintptr(unsafe.Pointer(&w.pidfd))), exitSignal: sigchld}
	if h.cgroup >= 0 {
		args.flags |= cloneIntoCgroup
		args.cgroup = uint64(w.slots[h.cgroup])
	}
	var pipe [2]int
	if h.forked == 1 {
		if e := syscall.Pipe2(pipe[:], syscall.O_CLOEXEC); e != nil {
			return 0, -1, failed("pipe", e)
		}
		w.forkFD = int32(pipe[1])
		// The slots may be full; the pipe's write end takes a slot of its own at the end of the table so that the prologue keeps it.
		w.slots[MaxSlots-1] = w.forkFD
	}
	runtime.LockOSThread()
	back, err := joinPidNS(w, h)
	if err != nil {
		runtime.UnlockOSThread()
		return 0, -1, err
	}
	r, errno := cloneAndWalk(&mem[0], args)
	runtime.KeepAlive(mem)
	runtime.KeepAlive(args)
	if back < 0 || leavePidNS(back) {
		runtime.UnlockOSThread() // else the thread, spoilt, ends with its goroutine
	}
	if h.forked == 1 {
		return forkedChild(pipe, int(r), int(w.pidfd), errno)
	}
	if errno != 0 {
		return 0, -1, &Error{What: "clone3", Errno: syscall.Errno(errno)}
	}
	return int(r), int(w.pidfd), nil
}

func failed(what string, err error) error {
	e, _ := err.(syscall.Errno)
	return &Error{What: what, Errno: e}
}

// joinPidNS makes this thread's next children members of the pid namespace that the program names. It returns the descriptor of the way back, or -1.
func joinPidNS(w *work, h *header) (back int, err error) {
	if h.pidNS < 0 || w.slots[h.pidNS] < 0 {
		return -1, nil
	}
	back, err = syscall.Open("/proc/self/ns/pid", syscall.O_RDONLY|syscall.O_CLOEXEC, 0)
	if err != nil {
		return -1, failed("open own pid namespace", err)
	}
	if _, _, e := syscall.RawSyscall(sysSetns, uintptr(w.slots[h.pidNS]), cloneNewPID, 0); e != 0 {
		syscall.Close(back)
		return -1, &Error{What: "join pid namespace", Errno: e}
	}
	return back, nil
}

func leavePidNS(back int) bool {
	_, _, e := syscall.RawSyscall(sysSetns, uintptr(back), cloneNewPID, 0)
	syscall.Close(back)
	return e == 0
}

// forkedChild waits for the intermediate process of a forking program and returns the process it left behind, which is ours too (CLONE_PARENT).
func forkedChild(pipe [2]int, mid, midfd int, errno uintptr) (int, int, error) {
	syscall.Close(pipe[1])
	defer syscall.Close(pipe[0])
	if errno != 0 {
		return 0, -1, &Error{What: "clone3", Errno: syscall.Errno(errno)}
	}
	syscall.Close(midfd)
	var buf [4]byte
	n, err := 0, error(nil)
	for {
		if n, err = syscall.Read(pipe[0], buf[:]); err != syscall.EINTR {
			break
		}
	}
	for {
		if _, e := syscall.Wait4(mid, nil, 0, nil); e != syscall.EINTR {
			break
		}
	}
	if n != 4 {
		return 0, -1, &Error{What: "the process between failed"}
	}
	pid := int(*(*int32)(unsafe.Pointer(&buf)))
	fd, e := OpenPid(pid)
	if e != 0 {
		return 0, -1, &Error{What: "pidfd_open", Errno: e}
	}
	return pid, fd, nil
}

// OpenPid is pidfd_open(2), for who links no more than this package.
func OpenPid(pid int) (int, syscall.Errno) {
	fd, _, e := syscall.Syscall(sysPidfdOpen, uintptr(pid), 0, 0)
	return int(fd), e
}

// cloneAndWalk is the point of no return for the child: from the first system call on, this thread takes no signal and calls nothing that could grow its stack, be
// preempted, allocate or take a lock.
//
//go:nosplit
//go:noinline
//go:norace
//go:nocheckptr
func cloneAndWalk(mem *uint64, args *cloneArgs) (pid uintptr, errno uintptr) {
	var old uint64
	all := ^uint64(0)
	syscall.RawSyscall6(syscall.SYS_RT_SIGPROCMASK, 2, uintptr(unsafe.Pointer(&all)), uintptr(unsafe.Pointer(&old)), 8, 0, 0)
	r, _, e := syscall.RawSyscall6(sysClone3, uintptr(unsafe.Pointer(args)), unsafe.Sizeof(*args), 0, 0, 0, 0)
	if e == 0 && r == 0 {
		walk(uintptr(unsafe.Pointer(mem)))
	}
	syscall.RawSyscall6(syscall.SYS_RT_SIGPROCMASK, 2, uintptr(unsafe.Pointer(&old)), 0, 8, 0, 0)
	return r, uintptr(e)
}
