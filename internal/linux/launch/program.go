package launch

import (
	"bytes"
	"syscall"
	"unsafe"
)

// The encoded form is the memory the walker works on, so that neither side translates:
//
//	header (64 bytes) │ operations (72 bytes each) │ arena (strings, structures; its last byte is 0)
//
// In memory a work area (registers, slots, scratch) stands in front of it. Byte order is the machine's: a program never leaves the host.
type header struct {
	magic     uint32
	version   uint32
	flags     uint64 // of clone3
	ops       uint32
	slots     uint32 // how many slots the program names; files beyond are refused
	arena     uint32 // length
	minFD     uint32 // slots are moved to descriptors from here on
	cgroup    int32  // slot of a v2 cgroup to be born in, or -1
	sync      int32  // slot of the sync socket, or -1
	pidNS     int32  // slot of a pid namespace to be born in, or -1
	forked    uint32 // 1: the program forks once more, and its child is the process that Start returns
	made      uint32 // where the arena has the path of a file (Builder.Makes), or 0
	console   uint32 // slot of a listening socket for the terminal's master, or 0
	_         uint32
	checkWord uint32
}

const (
	magic      = 0x50414c43 // CLAP
	version    = 1
	headerSize = int(unsafe.Sizeof(header{}))
	opSize     = int(unsafe.Sizeof(op{}))
	none       = 0xff
	anyErrno   = 0xffff
)

// op is one operation: a system call with up to six arguments, or one of the special kinds.
type op struct {
	kind  uint8
	dst   uint8    // register for the result, or none
	kinds [6]uint8 // what each argument is
	nr    uint32   // system call
	_     uint32
	errno [2]uint16 // tolerated errnos (0: unused, anyErrno: all) …
	jump  [2]uint16 // … and the operation to go on with; always a later one, so that every program ends
	args  [6]uint64
}

// What an argument is.
const (
	argImm  = iota // the number itself
	argReg         // the content of a register
	argSlot        // the descriptor in a slot
	argPtr         // the address of an offset in the arena
	argKinds
)

// What an operation does. The arguments of each kind are described at its case in walk.go.
const (
	opSys = iota
	opOpenIn
	opExec
	opTell
	opAwait
	opFail
	opJump
	opPoke
	opDecimal
	opCheckNode
	opCheckFS
	opMove
	opFork
	opCheckCwd
	opKeep
	opSameMount
	opKindsEnd
)

// work is the walker's own memory, in front of the program.
type work struct {
	regs    [MaxRegs]int64
	slots   [MaxSlots]int32
	scratch [64]uint64
	args    [6]uintptr // of the operation at hand
	pidfd   int32
	forkFD  int32 // where the intermediate process of a forking program writes the pid
}

const workSize = int(unsafe.Sizeof(work{}))

// Program is a decoded, checked program.
type Program struct {
	mem []uint64 // work area, then the encoded bytes
	n   int      // length of the encoded bytes
}

// Error is why a program cannot be used or started. It is small so that the monitor need not link formatting.
type Error struct {
	What  string
	Errno syscall.Errno // 0 if no system call failed
}

// Error names the step and the errno.
func (e *Error) Error() string {
	if e.Errno != 0 {
		return "launch: " + e.What + ": " + e.Errno.Error()
	}
	return "launch: " + e.What
}

// Unwrap is the errno.
func (e *Error) Unwrap() error {
	if e.Errno == 0 {
		return nil
	}
	return e.Errno
}

func bad(what string) (*Program, error) { return nil, &Error{What: "program: " + what} }

func (p *Program) head() *header {
	return (*header)(unsafe.Pointer(&p.mem[workSize/8]))
}

func (p *Program) ops() []op {
	return unsafe.Slice((*op)(unsafe.Pointer(&p.mem[(workSize+headerSize)/8])), p.head().ops)
}

// Made tells whether the program is one that makes a process of another program's ([Builder.Makes]): where that one's number will be written, and the slot of the socket on which
// the master of its terminal comes, or 0.
func (p *Program) Made() (pidFile string, console int, ok bool) {
	h := p.head()
	if h.made == 0 {
		return "", 0, false
	}
	all := unsafe.Slice((*byte)(unsafe.Pointer(&p.mem[workSize/8])), p.n)
	name, _, _ := bytes.Cut(all[headerSize+int(h.ops)*opSize+int(h.made):], []byte{0}) // the arena ends with one
	return string(name), int(h.console), true
}

// Decode checks b completely and returns a program that the walker can walk without looking back: every index is in range and every jump goes forward.
func Decode(b []byte) (*Program, error) {
	if len(b) < headerSize || len(b) > MaxSize {
		return bad("length")
	}
	p := &Program{mem: make([]uint64, (workSize+len(b)+7)/8), n: len(b)}
	copy(unsafe.Slice((*byte)(unsafe.Pointer(&p.mem[workSize/8])), len(b)), b)
	h := p.head()
	if h.magic != magic || h.version != version {
		return bad("not a program of this version")
	}
	if h.ops == 0 || h.ops > MaxOps || h.slots > MaxSlots || h.arena == 0 || h.arena > MaxSize {
		return bad("header")
	}
	if headerSize+int(h.ops)*opSize+int(h.arena) != len(b) || b[len(b)-1] != 0 {
		return bad("size")
	}
	for _, s := range [...]int32{h.cgroup, h.sync, h.pidNS} {
		if s < -1 || s >= int32(h.slots) {
			return bad("slot")
		}
	}
	if h.minFD > 1024 || h.forked > 1 || h.flags>>40 != 0 || h.flags&0x10f00 != 0 {
		return bad("flags") // CLONE_VM, FS, FILES, SIGHAND, THREAD would share what must be the child's own
	}
	if h.made >= h.arena || h.console >= h.slots && h.console != 0 {
		return bad("maker")
	}
	ops := p.ops()
	for i := range ops {
		if what := checkOp(h, &ops[i], i); what != "" {
			return bad(what)
		}
	}
	return p, nil
}

func checkOp(h *header, o *op, i int) string {
	if o.kind >= opKindsEnd {
		return "kind of operation"
	}
	if o.dst != none && o.dst >= MaxRegs {
		return "register"
	}
	for k, kind := range o.kinds {
		v := o.args[k]
		switch {
		case kind >= argKinds,
			kind == argReg && v >= MaxRegs,
			kind == argSlot && v >= uint64(h.slots),
			kind == argPtr && v >= uint64(h.arena):
			return "argument"
		}
	}
	for k, e := range o.errno {
		if e != 0 && (int(o.jump[k]) <= i || uint32(o.jump[k]) > h.ops) {
			return "jump"
		}
	}
	return checkSpecial(h, o, i)
}

// room reports whether n bytes stand behind argument k, which must be a pointer.
func room(h *header, o *op, k int, n uint64) bool {
	return o.kinds[k] == argPtr && n <= uint64(h.arena) && o.args[k] <= uint64(h.arena)-n
}

func checkSpecial(h *header, o *op, i int) string {
	imm := func(k int) bool { return o.kinds[k] == argImm }
	switch o.kind {
	case opOpenIn:
		if o.kinds[1] != argPtr || !imm(2) || !imm(3) || !imm(4) {
			return "open"
		}
	case opExec:
		if o.kinds[0] != argPtr || !imm(1) || !imm(3) || !imm(5) || o.args[1] == 0 || o.args[1] > 4096 || o.args[3] > 1<<17 || o.args[5] > 1<<17 ||
			!room(h, o, 2, (o.args[3]+1)*8) || !room(h, o, 4, (o.args[5]+1)*8) || o.args[2]%8 != 0 || o.args[4]%8 != 0 {
			return "exec"
		}
	case opTell, opAwait:
		if h.sync < 0 || !imm(0) {
			return "sync"
		}
	case opJump:
		if !imm(0) || o.args[0] <= uint64(i) || o.args[0] > uint64(h.ops) {
			return "jump"
		}
	case opPoke:
		if !imm(2) || (o.args[2] != 4 && o.args[2] != 8) || !room(h, o, 0, o.args[2]) {
			return "poke"
		}
	case opDecimal:
		if !room(h, o, 0, 24) {
			return "decimal"
		}
	case opCheckCwd:
		if !room(h, o, 0, 4096) {
			return "cwd"
		}
	case opFork:
		if h.forked != 1 {
			return "fork"
		}
	}
	return ""
}
