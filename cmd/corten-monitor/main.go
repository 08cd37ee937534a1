// Command corten-monitor is the process that stays with a container when the engine goes: see package monitor.
//
// The engine carries it inside itself and starts it with a control socket as descriptor 3; it takes no arguments. It must stay tiny, so it imports neither os nor fmt.
package main

import (
	"syscall"
	"unsafe"

	"corten.dev/corten/internal/monitor/serve"
)

func main() {
	const control = 3
	if kind, err := syscall.GetsockoptInt(control, syscall.SOL_SOCKET, syscall.SO_TYPE); err != nil || kind != syscall.SOCK_SEQPACKET {
		syscall.Write(2, []byte("corten-monitor is started by cortend, not by hand\n"))
		syscall.Exit(2)
	}
	syscall.CloseOnExec(control)
	name := [16]byte{'c', 'o', 'r', 't', 'e', 'n', '-', 'm', 'o', 'n', 'i', 't', 'o', 'r'} // executed from a descriptor, it would be called by its number
	syscall.RawSyscall(syscall.SYS_PRCTL, syscall.PR_SET_NAME, uintptr(unsafe.Pointer(&name)), 0)
	syscall.Exit(serve.Run(control))
}
