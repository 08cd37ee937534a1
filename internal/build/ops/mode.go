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
			step := modeStep{who: who, op: rest[0], copy: noCopy}
			if strings.IndexByte("+-=", step.op) < 0 {
				return nil, bad
			}
			rest = rest[1:]
			n := strings.IndexAny(rest, "+-=")
			if n < 0 {
				n = len(rest)
			}
			if !step.permissions(rest[:n]) {
				return nil, bad
			}
			rest = rest[n:]
			m.steps = append(m.steps, step)
		}
	}
	return m, nil
}

func whoMask(who string) (mask uint32) {
	for _, c := range who {
		switch c {
		case 'u':
			mask |= 0o4700
		case 'g':
			mask |= 0o2070
		case 'o':
			mask |= 0o1007
		case 'a':
			mask |= 0o7777
		}
	}
	if who == "" {
		mask = 0o7777 // there is no umask in a build
	}
	return mask
}

func (s *modeStep) permissions(text string) bool {
	for _, c := range text {
		switch c {
		case 'r':
			s.bits |= 0o444
		case 'w':
			s.bits |= 0o222
		case 'x':
			s.bits |= 0o111
		case 'X':
			s.x = true
		case 's':
			s.bits |= 0o6000
		case 't':
			s.bits |= 0o1000
		case 'u', 'g', 'o':
			if len(text) != 1 {
				return false
			}
			s.copy = map[rune]uint32{'u': 6, 'g': 3, 'o': 0}[c]
		default:
			return false
		}
	}
	return true
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
		if s.x && (mode&unix.S_IFMT == unix.S_IFDIR || perm&0o111 != 0) {
			bits |= 0o111
		}
		who := s.who
		bits &= who
		switch s.op {
		case '+':
			perm |= bits
		case '-':
			perm &^= bits
		case '=':
			perm = perm&^who | bits
		}
	}
	return perm
}
