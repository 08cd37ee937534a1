// Command corten-monitor is the process that stays with a container when the engine goes: see package monitor.
//
// The engine carries it inside itself and starts it with a control socket as descriptor 3; it takes no arguments. It must stay tiny, so it imports neither os nor fmt.
package main

import (
	"syscall"
	"unsafe"

	"corten.dev/corten/internal/monitor/serve"
)

// _ gives the process its name; executed from a descriptor, it would be called by its number. The call names a thread, the process is called as its first one, and only the initialisation
// of packages is sure to run on that.
var _ = rename()

func rename() error {
	name := [16]byte{'c', 'o', 'r', 't', 'e', 'n', '-', 'm', 'o', 'n', 'i', 't', 'o', 'r'}
	if _, _, errno := syscall.RawSyscall(syscall.SYS_PRCTL, syscall.PR_SET_NAME, uintptr(unsafe.Pointer(&name)), 0); errno != 0 {
		return errno
	}
	return nil
}

func main() {
	const control = 3
	if kind, err := syscall.GetsockoptInt(control, syscall.SOL_SOCKET, syscall.SO_TYPE); err != nil || kind != syscall.SOCK_SEQPACKET {
		syscall.Write(2, []byte("corten-monitor is started by cortend, not by hand\n"))
		syscall.Exit(2)
	}
	syscall.CloseOnExec(control)
	syscall.Exit(serve.Run(control))
}
