// Package launch makes a process of a list of system calls: a program, prepared beforehand by someone with a Go runtime, that a freshly cloned child walks without one,
// until its last call is execve.
//
// It owns the encoding of programs and the walker. It links nothing but raw system calls, because the monitor (which must stay tiny) starts processes with it; who
// makes programs (the [Builder], in builder.go) pays for the rest.
// It promises that the child touches no Go runtime state between clone3 and execve, that every failure is told on the sync socket with the number of the
// failing operation and its errno, and that no descriptor but those the program kept reaches the executed program.
//
// Descriptor slots: a program names files by slot. Start maps the caller's files to them. Before its first operation the child moves every slot above the
// numbers the executed program will use, and closes everything else.
//
// A program may end in a command that makes the process in its stead, and tells its number by a file: see [Builder.Makes]. Who starts programs must be the subreaper of what they make, then.
//
//	builder ──Encode──▶ bytes ──Decode (checks all)──▶ Program ──Start: clone3──▶ child: prologue, operations, execve
//	                                                                                │
//	                                     reports of 16 bytes on the sync slot ◀─────┘   {kind, operation, errno or value, 0}
package launch

// The slots that every program may use.
const (
	SlotStdin   = 0
	SlotStdout  = 1
	SlotStderr  = 2
	SlotConsole = 3 // a unix socket on which the program sends the master of the terminal it opened (SCM_RIGHTS); used only with a terminal
	SlotFirst   = 4 // from here on: the files that the maker of the program handed along, the sync socket among them
)

// Limits of a program; Decode refuses what exceeds them.
const (
	MaxSlots = 128
	MaxRegs  = 128
	MaxOps   = 1 << 14
	MaxSize  = 8 << 20
)

// Kinds of reports that a child writes to its sync slot, and the byte it waits for.
const (
	TellNamespaces = 'n' // the namespaces exist; the child awaits Go
	TellReady      = 'r' // everything but execve is done; the child awaits Go
	TellFailed     = 'f' // the operation failed; the child is gone
	TellHooks      = 'h' // the root is mounted but not yet entered; the child awaits Go
	TellContainer  = 'c' // the root is entered; hooks that run inside may go; the child awaits Go
	TellListener   = 'l' // a seccomp listener follows as SCM_RIGHTS
	Go             = 'g'
)

// ReportSize is the length of a report.
const ReportSize = 16

// Report is one message of a child.
type Report struct {
	Kind  byte
	Op    int // index of the operation that failed
	Value int // errno of a failure
}

// ParseReport reads a report; ok is false when b is not one.
func ParseReport(b []byte) (r Report, ok bool) {
	if len(b) != ReportSize {
		return r, false
	}
	u := func(i int) int { return int(b[i]) | int(b[i+1])<<8 | int(b[i+2])<<16 | int(b[i+3])<<24 }
	return Report{Kind: byte(u(0)), Op: u(4), Value: u(8)}, b[1] == 0 && b[2] == 0 && b[3] == 0
}
