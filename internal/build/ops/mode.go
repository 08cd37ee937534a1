package ops

import (
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"corten.dev/corten/internal/errs"
)

// modeChange is a mode as chmod(1) takes it: an octal number, or clauses of who, an operator and what, with commas between: "u=rwX,go-w,+t".
type modeChange struct {
	octal bool
	bits  uint32
	steps []modeStep
}

type modeStep struct {
	who  uint32 // the bits that may change, as a mask of permissions
	op   byte
	bits uint32 // r, w, x for everyone, s and t
	x    bool   // X: x, if it is a directory or somebody has x
	copy uint32 // shift of u, g or o whose permissions are taken; noCopy for none
}

const (
	noCopy  = 99
	maxMode = 1 << 12 // length of a mode
)

// parseMode reads a mode.
func parseMode(text string) (*modeChange, error) {
	bad := errs.New(errs.Invalid, "invalid mode: %q", text)
	if text == "" || len(text) > maxMode {
		return nil, bad
	}
	if text[0] >= '0' && text[0] <= '9' {
		n, err := strconv.ParseUint(text, 8, 32)
		if err != nil || n > 0o7777 {
			return nil, bad
		}
		return &modeChange{octal: true, bits: uint32(n)}, nil
	}
	m := &modeChange{}
	for _, clause := range strings.Split(text, ",") {
		rest := strings.TrimLeft(clause, "ugoa")
		who := whoMask(clause[:len(clause)-len(rest)])
		if rest == "" {
			return nil, bad
		}
		for rest != "" {
			op := rest[0]
			if strings.IndexByte("+-=", op) < 0 {
				return nil, bad
			}
			rest = rest[1:]
			n := strings.IndexAny(rest, "+-=")
			if n < 0 {
				n = len(rest)
			}
			steps, ok := permissions(who, op, rest[:n])
			if !ok {
				return nil, bad
			}
			rest = rest[n:]
			m.steps = append(m.steps, steps...)
		}
	}
	return m, nil
}

// whoMask gives the bits that a clause is about. The sticky bit is nobody's: only t is about it.
func whoMask(who string) (mask uint32) {
	for _, c := range who {
		switch c {
		case 'u':
			mask |= 0o4700
		case 'g':
			mask |= 0o2070
		case 'o':
			mask |= 0o0007
		case 'a':
			mask |= 0o6777
		}
	}
	return mask
}

// everyone is who a clause without a who is about: there is no umask in a build.
const everyone = 0o6777

// permissions reads what stands behind an operator. It is one step, or one more for each u, g or o.
func permissions(who uint32, op byte, text string) (steps []modeStep, ok bool) {
	next := modeStep{who: who, op: op, copy: noCopy}
	others := who == 0o0007
	for _, c := range text {
		switch c {
		case 'r':
			next.bits |= 0o444
		case 'w':
			next.bits |= 0o222
		case 'x':
			next.bits |= 0o111
		case 'X':
			if op == '-' {
				next.bits |= 0o111
			} else {
				next.x = true
			}
		case 's':
			if !others {
				next.bits |= 0o6000
			}
		case 't':
			// Without a who the clause is about the sticky bit alone then.
			if !others {
				next.bits |= 0o1000
				next.who |= 0o1000
			}
		case 'u', 'g', 'o':
			if next.bits != 0 || next.x {
				steps = append(steps, next)
				next.bits, next.x = 0, false
			}
			// Only permissions are taken over.
			from := modeStep{who: next.who & 0o777, op: op, copy: map[rune]uint32{'u': 6, 'g': 3, 'o': 0}[c]}
			if next.who == 0 {
				from.who = 0o777
			}
			steps = append(steps, from)
		default:
			return nil, false
		}
	}
	if next.bits != 0 || next.x || len(steps) == 0 {
		steps = append(steps, next)
	}
	for i := range steps {
		if steps[i].who == 0 {
			steps[i].who = everyone
		}
	}
	return steps, true
}

// apply gives the mode (permissions only) that something with this stat(2) mode gets.
func (m *modeChange) apply(mode uint32) uint32 {
	if m.octal {
		return m.bits
	}
	perm := mode & 0o7777
	for _, s := range m.steps {
		bits := s.bits
		if s.copy != noCopy {
			from := perm >> s.copy & 7
			bits = from<<6 | from<<3 | from
		}
		// X looks at what the mode was before the first clause.
		if s.x && (mode&unix.S_IFMT == unix.S_IFDIR || mode&0o111 != 0) {
			bits |= 0o111
		}
		bits &= s.who
		switch s.op {
		case '+':
			perm |= bits
		case '-':
			perm &^= bits
		case '=':
			perm = perm&^s.who | bits
		}
	}
	return perm
}
