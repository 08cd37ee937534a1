package seccomp

import (
	"slices"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// Offsets in struct seccomp_data.
const (
	offNr   = 0
	offArch = 4
	offArgs = 16
)

// Instruction codes of classic BPF that filters use.
const (
	opLoad = unix.BPF_LD | unix.BPF_W | unix.BPF_ABS
	opAnd  = unix.BPF_ALU | unix.BPF_AND | unix.BPF_K
	opJA   = unix.BPF_JMP | unix.BPF_JA
	opJEQ  = unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K
	opJGT  = unix.BPF_JMP | unix.BPF_JGT | unix.BPF_K
	opJGE  = unix.BPF_JMP | unix.BPF_JGE | unix.BPF_K
	opRet  = unix.BPF_RET | unix.BPF_K
)

// asm assembles a program from its end to its beginning. Classic BPF jumps forwards only, so that all targets of a jump are known when it is written. A label is the
// position of an instruction counted from the end.
type asm struct {
	rev  []unix.SockFilter
	rets map[uint32]label
}

type label int

func (a *asm) emit(code uint16, k uint32) label {
	a.rev = append(a.rev, unix.SockFilter{Code: code, K: k})
	return label(len(a.rev) - 1)
}

// ret is a place that returns action; one near enough is used again.
func (a *asm) ret(action uint32) label {
	if l, ok := a.rets[action]; ok && len(a.rev)-int(l) < 200 {
		return l
	}
	l := a.emit(opRet, action)
	a.rets[action] = l
	return l
}

// reach makes a place that the next few instructions can jump to conditionally (at most 255 away), by a jump to it if it is too far.
func (a *asm) reach(l label) label {
	if len(a.rev)-int(l) < 250 {
		return l
	}
	return a.emit(opJA, uint32(len(a.rev)-int(l)-1))
}

// jump goes to yes or no.
func (a *asm) jump(code uint16, k uint32, yes, no label) label {
	if yes == no {
		return a.pass(yes)
	}
	yes = a.reach(yes)
	no = a.reach(no)
	at := len(a.rev)
	a.rev = append(a.rev, unix.SockFilter{Code: code, Jt: uint8(at - int(yes) - 1), Jf: uint8(at - int(no) - 1), K: k})
	return label(at)
}

// pass is a place from where the program goes on at l.
func (a *asm) pass(l label) label {
	if int(l) == len(a.rev)-1 {
		return l
	}
	return a.emit(opJA, uint32(len(a.rev)-int(l)-1))
}

// load loads a word and goes on at next.
func (a *asm) load(off uint32, next label) label {
	a.pass(next)
	return a.emit(opLoad, off)
}

func (a *asm) program() []unix.SockFilter {
	slices.Reverse(a.rev)
	return a.rev
}

// span is a range of call numbers with one answer, up to the next span.
type span struct {
	first  uint32
	action uint32
	rules  []argRule // if any, action is what holds when none matches
	narrow bool
}

// assemble makes the program.
func (p *policy) assemble(c choice) []unix.SockFilter {
	a := &asm{rets: make(map[uint32]label), rev: make([]unix.SockFilter, 0, 1024)}
	next := a.ret(retKillProcess)
	// One tree per name that the kernel has for an architecture; amd64 and x32 share theirs. The machine's own comes first in the program, so last here.
	for i := len(c.archs) - 1; i >= 0; i-- {
		if i > 0 && c.archs[i].audit == c.archs[i-1].audit {
			continue
		}
		var spans []span
		j := i
		for ; j < len(c.archs) && c.archs[j].audit == c.archs[i].audit; j++ {
			spans = append(spans, p.spans(c.archs[j])...)
		}
		if c.archs[i].column == colAMD64 {
			if j == i+1 {
				spans = append(spans, span{first: x32Bit, action: retKillProcess})
			}
			// A tracer cancels a call by making its number -1. That is no x32 call.
			spans = append(spans, span{first: 0xffffffff, action: p.def})
		}
		spans = merge(spans)
		tree := a.load(offNr, a.tree(spans, c.big))
		next = a.jump(opJEQ, c.archs[i].audit, tree, next)
	}
	a.load(offArch, next)
	return a.program()
}

// spans lists how the calls of an architecture are answered, by number.
func (p *policy) spans(ar arch) []span {
	type numbered struct {
		nr  uint32
		row int
	}
	list := make([]numbered, 0, len(calls))
	newest := uint32(0)
	names := false
	for i := range p.rows {
		v := &p.rows[i]
		if nr := calls[i].nr[ar.column]; nr >= 0 && (v.named || v.mux) {
			list = append(list, numbered{uint32(nr), i})
			if v.named && nr < armPrivate {
				newest, names = max(newest, uint32(nr)), true
			}
		}
	}
	slices.SortFunc(list, func(x, y numbered) int { return int(x.nr) - int(y.nr) })
	beyond := p.def
	if p.enosys {
		beyond = retErrno | enosys
	}
	gap := func(nr uint32) uint32 { // the answer for numbers that the profile does not name
		if names && nr <= newest {
			return p.def
		}
		return beyond
	}
	spans := make([]span, 0, 2*len(list)+2)
	at := uint32(0)
	if !names {
		beyond = p.def // a profile that names nothing says nothing about what is new
	}
	for _, n := range list {
		if n.nr > at {
			spans = append(spans, span{first: at | ar.bit, action: gap(at)})
		}
		v := &p.rows[n.row]
		s := span{first: n.nr | ar.bit, action: p.def, rules: v.rules, narrow: ar.narrow}
		if v.fixed {
			s.action, s.rules = v.action, nil
		}
		spans = append(spans, s)
		at = n.nr + 1
	}
	return append(spans, span{first: at | ar.bit, action: gap(at)})
}

// merge joins neighbours with the same answer.
func merge(spans []span) []span {
	out := spans[:1]
	for _, s := range spans[1:] {
		last := &out[len(out)-1]
		if len(s.rules) == 0 && len(last.rules) == 0 && s.action == last.action {
			continue
		}
		out = append(out, s)
	}
	return out
}

// tree searches for the number that is loaded.
func (a *asm) tree(spans []span, big bool) label {
	if len(spans) == 1 {
		return a.leaf(&spans[0], big)
	}
	mid := len(spans) / 2
	right := a.tree(spans[mid:], big)
	left := a.tree(spans[:mid], big)
	return a.jump(opJGE, spans[mid].first, right, left)
}

func (a *asm) leaf(s *span, big bool) label {
	next := a.ret(s.action)
	for i := len(s.rules) - 1; i >= 0; i-- {
		r := &s.rules[i]
		yes := a.ret(r.action)
		for j := len(r.conds) - 1; j >= 0; j-- {
			yes = a.condition(&r.conds[j], test{yes: yes, no: next, narrow: s.narrow, big: big})
		}
		next = yes
	}
	return next
}

// test is where a condition leads to, and how arguments look.
type test struct {
	yes, no     label
	narrow, big bool
}

// condition compares one argument. Both halves of 64 bits are compared one after the other, the upper one first.
func (a *asm) condition(c *specs.LinuxSeccompArg, t test) label {
	lo := uint32(offArgs + 8*c.Index)
	hi := lo + 4
	if t.big {
		lo, hi = hi, lo
	}
	vlo, vhi := uint32(c.Value), uint32(c.Value>>32)
	yes, no := t.yes, t.no
	switch c.Op {
	case specs.OpNotEqual, specs.OpLessThan, specs.OpLessEqual:
		yes, no = no, yes // the opposite of equal, greater or equal, greater
	}
	switch c.Op {
	case specs.OpEqualTo, specs.OpNotEqual:
		l := a.load(lo, a.jump(opJEQ, vlo, yes, no))
		if t.narrow {
			return l
		}
		return a.load(hi, a.jump(opJEQ, vhi, l, no))
	case specs.OpGreaterEqual, specs.OpLessThan, specs.OpGreaterThan, specs.OpLessEqual:
		code := uint16(opJGE)
		if c.Op == specs.OpGreaterThan || c.Op == specs.OpLessEqual {
			code = opJGT
		}
		l := a.load(lo, a.jump(code, vlo, yes, no))
		if t.narrow {
			return l
		}
		same := a.jump(opJEQ, vhi, l, no)
		return a.load(hi, a.jump(opJGT, vhi, yes, same))
	}
	// OpMaskedEqual: (argument & Value) == ValueTwo
	mlo, mhi := vlo, vhi
	vlo, vhi = uint32(c.ValueTwo), uint32(c.ValueTwo>>32)
	a.pass(a.jump(opJEQ, vlo, yes, no))
	a.emit(opAnd, mlo)
	l := a.emit(opLoad, lo)
	if t.narrow || mhi == 0 && vhi == 0 {
		return l
	}
	a.pass(a.jump(opJEQ, vhi, l, no))
	a.emit(opAnd, mhi)
	return a.emit(opLoad, hi)
}
