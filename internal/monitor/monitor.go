// Package monitor is the room of what must outlive the engine: for each container one tiny process that is the parent of the container's
// processes and keeps their pipes or terminal, their log, and their exit.
//
// It owns <exec-root>/monitors/<id> (socket and state of one monitor) and the program embedded here (cmd/corten-monitor). It does not know the
// engine, images or the runtime's rules: it is handed a prepared [launch.Program] and walks it. It promises: every byte that the container
// wrote before it ended is in the log, in order, before the exit is told; the exit (code, time, OOM) is on disk before it is told; a client that
// reads slowly never stops another one, nor the log; a dead engine is not noticed by the container.
//
//	engine ──launch──▶ monitor ──clone3──▶ first process ──execve──▶ the container's program
//	  ▲  pid, pidfd      │ ▲ pipes / pty          │
//	  └──exit, events────┘ └──────────────────────┘
//	client conn ──(descriptor handed over by the engine)──▶ monitor      attach never runs through the engine
//
// In the engine a monitor is a socket and two descriptors of processes: one goroutine hears them all (poller.go). Those who wait for many ends use [WhenExited].
//
// A monitor has one container at a time. When that ended, and nothing of it is left in the monitor, the engine that started it may use it for another one (serve/again.go).
//
// # When a monitor is killed
//
// An engine that runs sees it and kills the container, whose output and exit nobody keeps any more. Without one the kernel does (PR_SET_PDEATHSIG, set by the program's list),
// unless the first process has changed its credentials since: the kernel then forgets the signal, after a set-user-ID program as after an entry point that drops root
// (gosu, su-exec). Such a container goes on, without a log, until the next engine starts, which ends it. Nothing small closes the gap: a tracer
// (PTRACE_O_EXITKILL) is seen from inside and stands in the way of debuggers there; a process-id namespace around monitor and container rules out --pid host and
// joining the namespace of another container; a second process that watches the monitor costs every container memory and a fork, and only moves the question to who watches it.
package monitor

import (
	"context"
	"net"
	"os"
	"time"
)

// Stdio says what the first three descriptors of a process are.
type Stdio struct {
	Terminal   bool   // the program itself opens the terminal and sends its master over slot launch.SlotConsole
	Rows, Cols uint16 // first size of the terminal; 0 keeps the kernel's
	Stdin      bool   // keep a pipe to stdin; else stdin is /dev/null
	StdinOnce  bool   // close stdin when the first attached client that had it goes away
	AttachOnly bool   // exec: bytes go only to attached clients, and wait (bounded) for the first one
}

// LogOptions say where output is kept. The zero value keeps none.
type LogOptions struct {
	Path        string // folder of the log (room logs); empty: no log
	MaxSize     int64  // bytes of one file
	MaxFiles    int
	NonBlocking bool // drop, and count, rather than wait for the disk or a reader
	BufferSize  int64
}

// Launch is all that a monitor needs to start the first process of a container.
type Launch struct {
	ID       string
	Program  []byte     // launch.Program, encoded
	Files    []*os.File // the program's slots from launch.SlotFirst on; the monitor's copies are closed after the start
	Stdio    Stdio
	Log      LogOptions
	ExitPath string // file the exit is written to, atomically
	Durable  bool   // flush the exit record
	// OOMPath is a file that tells of out-of-memory kills (memory.events of v2; on v1 an eventfd of memory.oom_control is in OOMEvent).
	OOMPath  string
	OOMEvent *os.File
	// Attached are connections that were attached before the start. They are with the process from its first byte on, and see all of it before they see end of file.
	Attached []AttachRequest
}

// AttachRequest is a connection to attach. When Launch succeeds the monitor owns Conn, and sends one value to End (which must have room for it) when the attachment
// ends; when Launch fails, Conn is still the caller's and End is silent.
type AttachRequest struct {
	Conn    net.Conn
	Options AttachOptions
	End     chan<- AttachEnd
}

// Exit is how a process ended.
type Exit struct {
	Code      int // 0..255; 128+n when a signal ended it
	Signal    int // 0 if none
	At        time.Time
	OOMKilled bool
	// Lost is true when the monitor itself died and the code is therefore not known (Code is then 137).
	Lost bool
}

// AttachOptions say what an attached connection gets.
type AttachOptions struct {
	Stdin, Stdout, Stderr bool
	// Framed asks for Docker's 8-byte stream headers (API "Stream format"); never with a terminal.
	Framed bool
	// Preread are bytes of stdin that the HTTP server had read already.
	Preread []byte
	// Shared leaves the end of the connection to the caller, who kept a copy of its descriptor and says more on it once the attachment ended: the monitor neither ends its sending
	// side nor waits for the client's. For connections that have a descriptor of their own.
	Shared bool
	// DetachKeys is the byte sequence that ends the attachment; empty for none. Only watched with a terminal.
	DetachKeys []byte
}

// Process is one live process under a monitor: the container's first, or an exec session.
type Process interface {
	PID() int
	// PIDFD is the process's pidfd; valid until the process was reaped and Close was called. That of an exec session is the caller's to close once it has ended.
	PIDFD() *os.File
	// Attach hands conn over to the monitor and returns a channel that gets one value and closes when the attachment ended (process gone and all output
	// delivered, client gone, or detach keys). Unix and TCP connections travel as descriptors and are closed here; others are copied through and closed at the
	// end. After an error conn is still the caller's.
	Attach(ctx context.Context, conn net.Conn, opts AttachOptions) (<-chan AttachEnd, error)
	Resize(ctx context.Context, rows, cols uint16) error
	// Exited closes when the exit is known and recorded; never, if Close of the monitor was called before.
	Exited() <-chan struct{}
	// Exit is valid after Exited closed.
	Exit() Exit
}

// AttachEnd tells how an attachment ended.
type AttachEnd struct{ Detached bool }

// Monitor is one monitor process.
type Monitor interface {
	Process
	// Exec starts another process under the same monitor, from a prepared program.
	Exec(ctx context.Context, id string, program []byte, files []*os.File, stdio Stdio) (Process, error)
	// CloseStdin closes the first process's stdin (not a terminal's).
	CloseStdin(ctx context.Context) error
	// Sessions are the exec sessions by id: those that run, and, after an engine restart, those that ended while no engine looked (their Exited is closed).
	Sessions() map[string]Process
	// MonitorPID is the monitor's own process.
	MonitorPID() int
	// Close drops the engine's connection; the monitor goes on. After the exit it ends the monitor and removes its folder.
	Close() error
}

// Starter makes monitors. [Pool] (made by [New]) keeps a few started monitors ready; monitortest.Fake is in memory.
type Starter interface {
	// Launch starts a process under a fresh monitor and returns when it was cloned (not when it has exec'd: that is told on the program's own
	// sync socket, which only the caller and the first process hold).
	Launch(ctx context.Context, l Launch) (Monitor, error)
	// Open finds the monitor of id again after an engine restart; errs.NotFound when it is gone.
	Open(ctx context.Context, id string) (Monitor, error)
	// List names the monitors whose folders exist.
	List() ([]string, error)
}
