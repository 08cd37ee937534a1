package serve

import (
	"syscall"
	"unsafe"
)

// handler is a signal handler that does nothing, and restorer what the kernel returns to after it. A handler rather than SIG_IGN, because execve resets handlers but
// hands ignored signals down: a container's program must find SIGTERM and SIGPIPE as usual.
func handler()
func restorer()

type sigaction struct {
	handler, flags, restorer uintptr
	mask                     uint64
}

// pc is the address of an assembly function's code.
func pc(f func()) uintptr { return **(**uintptr)(unsafe.Pointer(&f)) }

// deafen makes the process take no notice of what is sent to end a terminal's or an engine's processes.
func deafen() {
	const onStack, restart, hasRestorer = 0x08000000, 0x10000000, 0x04000000
	act := sigaction{handler: pc(handler), flags: onStack | restart | hasRestorer, restorer: pc(restorer)}
	for _, sig := range [...]syscall.Signal{syscall.SIGHUP, syscall.SIGINT, syscall.SIGTERM, syscall.SIGPIPE, syscall.SIGQUIT, syscall.SIGUSR1, syscall.SIGUSR2, syscall.SIGALRM} {
		syscall.RawSyscall6(syscall.SYS_RT_SIGACTION, uintptr(sig), uintptr(unsafe.Pointer(&act)), 0, 8, 0, 0)
	}
}
