package launch

import (
	"syscall"
	"unsafe"
)

// This file imports no more than the walker does: the monitor links it without using it.

// Arg is an argument of an operation.
type Arg struct {
	kind uint8
	v    uint64
}

// Imm is a number.
func Imm[T ~int | ~int32 | ~int64 | ~uint | ~uint32 | ~uint64 | ~uintptr](v T) Arg {
	return Arg{argImm, uint64(v)}
}

// AtCwd is AT_FDCWD.
func AtCwd() Arg { return Imm(-100) }

// Slot is the descriptor in a fixed slot.
func Slot(n int) Arg { return Arg{argSlot, uint64(n)} }

// Plus is a pointer n bytes further on.
func (a Arg) Plus(n int) Arg { return Arg{a.kind, a.v + uint64(n)} }

// IsReg tells whether the argument is a register.
func (a Arg) IsReg() bool { return a.kind == argReg }

// Label is a place further on in the program.
type Label int

// Op is an operation just added, to say more about it.
type Op struct {
	b *Builder
	i int
}

// Builder makes a program, operation by operation.
type Builder struct {
	h      header
	ops    []op
	notes  []string
	note   string
	arena  []byte
	strs   map[string]uint64
	regs   int
	free   []Arg
	labels []int // operation of each label, -1 while unknown
	fixups []fixup
	err    error
}

type fixup struct {
	op, k int // k < 0: the target of an opJump
	label Label
}

// NewBuilder begins a program whose child is cloned with the given flags (namespaces only).
func NewBuilder(flags uint64) *Builder {
	b := &Builder{strs: map[string]uint64{}}
	b.h = header{magic: magic, version: version, flags: flags, slots: SlotFirst, minFD: 16, cgroup: -1, sync: -1, pidNS: -1}
	// Room for an ordinary container's program: growing to it would copy each of these several times.
	b.ops, b.notes = make([]op, 0, 768), make([]string, 0, 768)
	b.arena = make([]byte, 8, 16<<10) // offset 0 stays empty, so that it can mean nothing
	return b
}

func (b *Builder) setErr(what string) {
	if b.err == nil {
		b.err = &Error{What: "program: " + what}
	}
}

// NewSlot is the next slot from SlotFirst on; the maker of the program keeps the list of files.
func (b *Builder) NewSlot() Arg {
	if b.h.slots >= MaxSlots-1 {
		b.setErr("too many files")
		return Imm(-1)
	}
	b.h.slots++
	return Slot(int(b.h.slots - 1))
}

// Sync names the slot of the sync socket.
func (b *Builder) Sync(slot Arg) { b.h.sync = int32(slot.v) }

// Cgroup has the child born in the v2 cgroup whose directory is in the slot.
func (b *Builder) Cgroup(slot Arg) { b.h.cgroup = int32(slot.v) }

// PidNS has the child born in the pid namespace in the slot.
func (b *Builder) PidNS(slot Arg) { b.h.pidNS = int32(slot.v) }

// MinFD keeps the descriptors below n free of slots; they are for the executed program.
func (b *Builder) MinFD(n int) { b.h.minFD = uint32(max(n, 16)) }

// Makes says that the executed program is a command that makes the process in question, writes its number into a file and ends: as the command lines of OCI runtimes do (create
// --pid-file, --console-socket). console is the slot of a listening unix socket for the master of the terminal, or Imm(0).
func (b *Builder) Makes(pidFile string, console Arg) {
	b.h.made = uint32(b.Own(pidFile).v)
	if console.kind == argSlot {
		b.h.console = uint32(console.v)
	}
}

// Flags adds clone flags.
func (b *Builder) Flags(flags uint64) { b.h.flags |= flags }

// Note says what the following operations are for, in the words of an error message.
func (b *Builder) Note(what string) { b.note = what }

// Explain is the note of operation i.
func (b *Builder) Explain(i int) string {
	if i >= 0 && i < len(b.notes) {
		return b.notes[i]
	}
	return "start program"
}

// Notes are the notes of all operations, to keep beside an encoded program.
func (b *Builder) Notes() []string { return b.notes }

// NewReg is a register of its own.
func (b *Builder) NewReg() Arg {
	if n := len(b.free); n > 0 {
		r := b.free[n-1]
		b.free = b.free[:n-1]
		return r
	}
	if b.regs >= MaxRegs {
		b.setErr("too many registers")
		return Arg{argReg, 0}
	}
	b.regs++
	return Arg{argReg, uint64(b.regs - 1)}
}

// FreeReg gives a register back for another use.
func (b *Builder) FreeReg(r Arg) { b.free = append(b.free, r) }

// Str is the address of a string with its NUL. A string that contains a NUL is an error.
func (b *Builder) Str(s string) Arg {
	if at, ok := b.strs[s]; ok {
		return Arg{argPtr, at}
	}
	for i := range len(s) {
		if s[i] == 0 {
			b.setErr("text " + s[:i] + "… contains a null byte")
			return Arg{argPtr, 0}
		}
	}
	at := uint64(len(b.arena))
	b.arena = append(append(b.arena, s...), 0)
	b.strs[s] = at
	return Arg{argPtr, at}
}

// Own is a string at an address of its own, for operations that write into it.
func (b *Builder) Own(s string) Arg {
	at := uint64(len(b.arena))
	b.arena = append(append(b.arena, s...), 0)
	return Arg{argPtr, at}
}

// Bytes is the address of a copy of data, aligned to 8.
func (b *Builder) Bytes(data []byte) Arg {
	b.arena = append(b.arena, make([]byte, -len(b.arena)&7)...)
	at := uint64(len(b.arena))
	b.arena = append(b.arena, data...)
	return Arg{argPtr, at}
}

// Words is the address of numbers of 64 bits.
func (b *Builder) Words(words ...uint64) Arg {
	if len(words) == 0 {
		return b.Space(0)
	}
	return b.Bytes(unsafe.Slice((*byte)(unsafe.Pointer(&words[0])), len(words)*8))
}

// Space is the address of n zero bytes, aligned to 8.
func (b *Builder) Space(n int) Arg { return b.Bytes(make([]byte, n)) }

func (b *Builder) add(kind uint8, nr int, args ...Arg) Op {
	o := op{kind: kind, dst: none, nr: uint32(nr)}
	for i, a := range args {
		o.kinds[i], o.args[i] = a.kind, a.v
	}
	if len(b.ops) >= MaxOps {
		b.setErr("too many operations")
		return Op{b, 0}
	}
	b.ops = append(b.ops, o)
	b.notes = append(b.notes, b.note)
	return Op{b, len(b.ops) - 1}
}

// Sys adds a system call.
func (b *Builder) Sys(nr int, args ...Arg) Op { return b.add(opSys, nr, args...) }

// Close adds close.
func (b *Builder) Close(fd Arg) { b.Sys(syscall.SYS_CLOSE, fd) }

// What OpenIn makes when the path is missing.
const (
	MakeNothing = 0
	MakeDir     = 1
	MakeFile    = 2
)

// OpenIn opens path below the directory root, which no link leaves; what is missing is made.
func (b *Builder) OpenIn(root Arg, path string, flags, make, mode int) Op {
	return b.add(opOpenIn, 0, root, b.Own(path), Imm(flags), Imm(make), Imm(mode))
}

// Tell sends a report on the sync slot.
func (b *Builder) Tell(kind byte, value Arg) Op { return b.add(opTell, 0, Imm(int(kind)), value) }

// Await waits for a byte on the sync slot.
func (b *Builder) Await(want byte) { b.add(opAwait, 0, Imm(int(want))) }

// Fail ends the program with errno.
func (b *Builder) Fail(errno syscall.Errno) { b.add(opFail, 0, Imm(uintptr(errno))) }

// Move puts a value into a register.
func (b *Builder) Move(dst, value Arg) { b.add(opMove, 0, value).To(dst) }

// Poke writes a value of width bytes (4 or 8) to an address.
func (b *Builder) Poke(at, value Arg, width int) { b.add(opPoke, 0, at, value, Imm(width)) }

// Decimal writes a number in digits, and a NUL, to an address that has 24 bytes.
func (b *Builder) Decimal(at, value Arg) { b.add(opDecimal, 0, at, value) }

// CheckNode demands that fd is a file of the given type (S_IFMT bits) and, for a device, number.
func (b *Builder) CheckNode(fd Arg, typ, major, minor uint32) Op {
	return b.add(opCheckNode, 0, fd, Imm(typ), Imm(major), Imm(minor))
}

// CheckFS demands that fd is on a file system with that magic number.
func (b *Builder) CheckFS(fd Arg, magic int64) Op { return b.add(opCheckFS, 0, fd, Imm(magic)) }

// SameFile demands that both descriptors are the same inode seen through the same mount.
func (b *Builder) SameFile(x, y Arg) Op { return b.add(opSameMount, 0, x, y) }

// CheckCwd demands that the working directory lies below the root.
func (b *Builder) CheckCwd() Op { return b.add(opCheckCwd, 0, b.Space(4096)) }

// Keep closes every descriptor from first on, except up to five.
func (b *Builder) Keep(first int, keep ...Arg) {
	args := []Arg{Imm(first), Imm(-1), Imm(-1), Imm(-1), Imm(-1), Imm(-1)}
	if len(keep) > 5 {
		b.setErr("more than 5 descriptors to keep")
		return
	}
	copy(args[1:], keep)
	b.add(opKeep, 0, args...)
}

// Fork clones once more with flags; Start returns the second child, whose parent is the starter too.
func (b *Builder) Fork(flags uint64) {
	b.h.forked = 1
	b.add(opFork, 0, Imm(flags))
}

// Exec executes the first of the candidates that is there and may be run.
func (b *Builder) Exec(candidates, argv, envp []string) {
	list := Arg{argPtr, uint64(len(b.arena))}
	for _, c := range candidates {
		b.Own(c)
	}
	av, ev := b.table(argv), b.table(envp)
	b.add(opExec, 0, list, Imm(len(candidates)), av, Imm(len(argv)), ev, Imm(len(envp)))
}

func (b *Builder) table(list []string) Arg {
	words := make([]uint64, 0, len(list)+1)
	for _, s := range list {
		words = append(words, b.Str(s).v)
	}
	return b.Words(append(words, 0)...)
}

// NewLabel is a label to be marked later.
func (b *Builder) NewLabel() Label {
	b.labels = append(b.labels, -1)
	return Label(len(b.labels) - 1)
}

// Mark puts the label before the next operation.
func (b *Builder) Mark(l Label) { b.labels[l] = len(b.ops) }

// Jump goes on at l.
func (b *Builder) Jump(l Label) {
	o := b.add(opJump, 0, Imm(0))
	b.fixups = append(b.fixups, fixup{o.i, -1, l})
}

// To keeps the result in a register; after a tolerated error, the errno.
func (o Op) To(reg Arg) Op {
	if reg.kind != argReg {
		o.b.setErr("result of an operation goes nowhere: " + o.b.Explain(o.i))
		return o
	}
	o.b.ops[o.i].dst = uint8(reg.v)
	return o
}

// On goes on at l after errno (0: any); at most two of On and Ignore fit one operation.
func (o Op) On(errno syscall.Errno, l Label) Op {
	k := o.slot(errno)
	o.b.fixups = append(o.b.fixups, fixup{o.i, k, l})
	return o
}

// Ignore goes on with the next operation after errno (0: any).
func (o Op) Ignore(errno syscall.Errno) Op {
	k := o.slot(errno)
	o.b.ops[o.i].jump[k] = uint16(o.i + 1)
	return o
}

func (o Op) slot(errno syscall.Errno) int {
	e := uint16(errno)
	if errno == 0 {
		e = anyErrno
	}
	for k := range 2 {
		if o.b.ops[o.i].errno[k] == 0 {
			o.b.ops[o.i].errno[k] = e
			return k
		}
	}
	o.b.setErr("operation tolerates more than two errors: " + o.b.Explain(o.i))
	return 1
}

// Encode is the finished program.
func (b *Builder) Encode() ([]byte, error) {
	for _, f := range b.fixups {
		to := b.labels[f.label]
		if to < 0 {
			b.setErr("a label was never marked: " + b.Explain(f.op))
			break
		}
		if f.k < 0 {
			b.ops[f.op].args[0] = uint64(to)
		} else {
			b.ops[f.op].jump[f.k] = uint16(to)
		}
	}
	if b.err != nil {
		return nil, b.err
	}
	arena := append(b.arena, make([]byte, 8+(-len(b.arena)&7))...)
	b.h.ops, b.h.arena = uint32(len(b.ops)), uint32(len(arena))
	out := make([]byte, 0, headerSize+len(b.ops)*opSize+len(arena))
	out = append(out, unsafe.Slice((*byte)(unsafe.Pointer(&b.h)), headerSize)...)
	if len(b.ops) > 0 {
		out = append(out, unsafe.Slice((*byte)(unsafe.Pointer(&b.ops[0])), len(b.ops)*opSize)...)
	}
	return append(out, arena...), nil
}
