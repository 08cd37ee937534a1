// Package launch makes a process of a list of system calls: a program, prepared beforehand by someone with a Go runtime, that a freshly cloned child walks without one,
// until its last call is execve.
//
// It owns the encoding of programs and the walker. It links nothing but raw system calls, because the monitor (which must stay tiny) starts processes with it.
// It promises that the child touches no Go runtime state between clone3 and execve, that every failure is told on the sync socket with the number of the
// failing operation and its errno, and that no descriptor but those the program kept reaches the executed program.
//
// Descriptor slots: a program names files by slot. Start maps the caller's files to them.
package launch

// The slots that every program may use.
const (
	SlotStdin   = 0
	SlotStdout  = 1
	SlotStderr  = 2
	SlotConsole = 3 // a unix socket on which the program sends the master of the terminal it opened (SCM_RIGHTS); used only with a terminal
	SlotFirst   = 4 // from here on: the files that the maker of the program handed along, the sync socket among them
)
