// Package wire is what the engine and a monitor say to each other.
//
// It owns the encoding of the messages, for both sides; it links nothing, because the monitor must stay tiny. It promises that decoding foreign bytes never
// panics, never allocates more than a small multiple of what came in, and that what [Append] wrote [Decode] reads back.
//
// The carrier is a SOCK_SEQPACKET unix socket: one packet is one message, and descriptors travel beside it (SCM_RIGHTS). The engine asks, the monitor
// answers with the same ID; what the monitor tells by itself has ID 0.
//
//	engine                                        monitor
//	Launch ─ [program] [oom] [attached…] files… ─▶             the one message of the hot path
//	       ◀──────────────── Started ─ pidfd ────              or Failed
//	Exec   ─ [program] files… ───────────────────▶
//	       ◀──────────────── Started ─ pidfd ────              or Failed
//	Attach ─ client's socket ────────────────────▶ ◀── Done | Failed;  later ◀── Ended
//	Resize, CloseStdin, Forget, Quit ────────────▶ ◀── Done | Failed
//	Again  ──────────────────────────────────────▶ ◀── Done;  later ◀── Idle, or end of file when the monitor cannot be used again
//	State  ──────────────────────────────────────▶ ◀── Process (pidfd, unless it ended) … one for each, then Done
//	                                               ◀── Exited, Ended, OOM         by itself, to every engine that is connected
//
// A program that is too large for a packet travels as a descriptor of a file (ProgramFD). End of file on the socket means that the other side is gone.
//
// A packet: kind u8 │ id u32 │ the fields of the kind in the order of the struct; numbers little endian, strings and bytes with a u32 length in front.
package wire

// Kind says what a message is.
type Kind uint8

// The kinds of messages.
const (
	Launch Kind = iota + 1
	Exec
	Attach
	Resize
	CloseStdin
	Forget
	Quit
	State
	Started
	Failed
	Done
	Process
	Exited
	Ended
	OOM
	Again // Quit, but the monitor waits for another Launch if nothing of its container is left in it
	Idle  // it does
	kinds
)

const (
	// MaxPacket bounds a message; the default socket buffer carries it.
	MaxPacket = 96 << 10
	// MaxInline is the largest program inside a packet.
	MaxInline = 64 << 10
	// MaxFiles is how many descriptors one packet can carry (the kernel's SCM_MAX_FD).
	MaxFiles = 253
)

// Flags of Stdio, of attachments, of a log and of an exit.
const (
	Terminal = 1 << iota
	Stdin
	StdinOnce
	AttachOnly
)

// Attachment flags.
const (
	WantStdin = 1 << iota
	WantStdout
	WantStderr
	Framed
	Shared // the engine ends the connection
)

// Log and launch flags.
const (
	NonBlocking = 1 << iota
	Durable
	ProgramFD
	OOMEventFD
)

// Exit flags.
const (
	Ran = 1 << iota // not set: the process still runs
	OOMKilled
	Detached
)

// Attachment is an attached connection; its socket is among the packet's descriptors.
type Attachment struct {
	Number     uint32 // the engine's name for it, told again in Ended
	Flags      uint8
	Preread    []byte
	DetachKeys []byte
}

// Message is any message; which fields count is the kind's affair (see fields).
type Message struct {
	Kind    Kind
	ID      uint32
	Session string // of Exec and all that concern one process; empty is the first process

	Program    []byte
	Flags      uint8 // Launch, Exec: NonBlocking, Durable, ProgramFD, OOMEventFD
	Stdio      uint8
	Rows, Cols uint16
	Folder     string // the monitor's folder, where it puts its socket
	LogPath    string
	LogSize    int64
	LogFiles   uint32
	LogBuffer  int64
	ExitPath   string
	OOMPath    string
	Attached   []Attachment

	PID    uint32
	Code   uint8
	Signal uint8
	Exit   uint8 // exit flags
	Time   int64 // CLOCK_REALTIME in ns
	Errno  uint32
	Text   string
	Number uint32
}

// fields walks the fields of the message's kind; the codec is either side.
func (m *Message) fields(c *codec) {
	switch m.Kind {
	case Launch, Exec:
		c.string(&m.Session)
		c.bytes(&m.Program)
		c.u8(&m.Flags)
		c.u8(&m.Stdio)
		c.u16(&m.Rows)
		c.u16(&m.Cols)
		c.attached(&m.Attached)
		if m.Kind == Launch {
			c.string(&m.Folder)
			c.string(&m.LogPath)
			c.i64(&m.LogSize)
			c.u32(&m.LogFiles)
			c.i64(&m.LogBuffer)
			c.string(&m.ExitPath)
			c.string(&m.OOMPath)
		}
	case Attach:
		c.string(&m.Session)
		c.attached(&m.Attached)
	case Resize:
		c.string(&m.Session)
		c.u16(&m.Rows)
		c.u16(&m.Cols)
	case CloseStdin, Forget:
		c.string(&m.Session)
	case Started:
		c.u32(&m.PID)
	case Failed:
		c.u32(&m.Errno)
		c.string(&m.Text)
	case Process, Exited:
		c.string(&m.Session)
		c.u32(&m.PID)
		c.u8(&m.Stdio)
		c.u8(&m.Exit)
		c.u8(&m.Code)
		c.u8(&m.Signal)
		c.i64(&m.Time)
	case Ended:
		c.u32(&m.Number)
		c.u8(&m.Exit)
	}
}
