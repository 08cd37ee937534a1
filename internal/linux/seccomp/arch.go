package seccomp

import (
	"slices"

	"corten.dev/corten/internal/errs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// The table's columns.
const (
	colAMD64 = iota
	colX32
	col386
	colARM64
	colARM
	colRISCV64
	colS390X
	colPPC64LE
	colLOONG64
	columns
)

// x32Bit is set in the number of a call made in the x32 way.
const x32Bit = 0x40000000

// arch is what the filter must know of an architecture.
type arch struct {
	spec   specs.Arch
	column int
	audit  uint32 // AUDIT_ARCH_*, what the kernel calls it
	narrow bool   // arguments have 32 bits
	bit    uint32 // set in its numbers
}

// family is the architectures whose calls a machine can see; the first one is its own.
type family struct {
	archs []arch
	big   bool // big endian
}

var families = map[string]family{
	"amd64": {archs: []arch{
		{spec: specs.ArchX86_64, column: colAMD64, audit: 0xc000003e},
		{spec: specs.ArchX32, column: colX32, audit: 0xc000003e, narrow: true, bit: x32Bit},
		{spec: specs.ArchX86, column: col386, audit: 0x40000003, narrow: true},
	}},
	"386": {archs: []arch{{spec: specs.ArchX86, column: col386, audit: 0x40000003, narrow: true}}},
	"arm64": {archs: []arch{
		{spec: specs.ArchAARCH64, column: colARM64, audit: 0xc00000b7},
		{spec: specs.ArchARM, column: colARM, audit: 0x40000028, narrow: true},
	}},
	"arm":     {archs: []arch{{spec: specs.ArchARM, column: colARM, audit: 0x40000028, narrow: true}}},
	"riscv64": {archs: []arch{{spec: specs.ArchRISCV64, column: colRISCV64, audit: 0xc00000f3}}},
	"s390x":   {archs: []arch{{spec: specs.ArchS390X, column: colS390X, audit: 0x80000016}}, big: true},
	"ppc64le": {archs: []arch{{spec: specs.ArchPPC64LE, column: colPPC64LE, audit: 0xc0000015}}},
	"loong64": {archs: []arch{{spec: specs.ArchLOONGARCH64, column: colLOONG64, audit: 0xc0000102}}},
}

// foreign are further names of the specification. Calls of them never reach a machine that Corten runs on.
var foreign = [...]specs.Arch{
	specs.ArchX86, specs.ArchX86_64, specs.ArchX32, specs.ArchARM, specs.ArchAARCH64, specs.ArchMIPS, specs.ArchMIPS64, specs.ArchMIPS64N32,
	specs.ArchMIPSEL, specs.ArchMIPSEL64, specs.ArchMIPSEL64N32, specs.ArchPPC, specs.ArchPPC64, specs.ArchPPC64LE, specs.ArchS390, specs.ArchS390X,
	specs.ArchPARISC, specs.ArchPARISC64, specs.ArchRISCV64, specs.ArchLOONGARCH64, specs.ArchM68K, specs.ArchSH, specs.ArchSHEB,
}

// choice is the architectures that a filter is to answer for.
type choice struct {
	archs []arch
	big   bool
}

// wanted picks from a family what a profile names. What the machine cannot run is left out: its calls would be answered with death, and never come.
func (f family) wanted(list []specs.Arch) (choice, error) {
	for _, a := range list {
		if !slices.Contains(foreign[:], a) && a != "SCMP_ARCH_NATIVE" {
			return choice{}, errs.New(errs.Invalid, "seccomp: unknown architecture %q", a)
		}
	}
	c := choice{archs: []arch{f.archs[0]}, big: f.big}
	for _, a := range f.archs[1:] {
		if slices.Contains(list, a.spec) {
			c.archs = append(c.archs, a)
		}
	}
	return c, nil
}

// mux tells that a call can also be made as a function of a collective call.
type mux struct {
	name    string
	through string
	number  uint64
}

// muxes are the functions of socketcall(2) and ipc(2), which 32-bit x86, s390x and ppc64 have.
var muxes = [...]mux{
	{"socket", "socketcall", 1}, {"bind", "socketcall", 2}, {"connect", "socketcall", 3}, {"listen", "socketcall", 4},
	{"accept", "socketcall", 5}, {"getsockname", "socketcall", 6}, {"getpeername", "socketcall", 7}, {"socketpair", "socketcall", 8},
	{"send", "socketcall", 9}, {"recv", "socketcall", 10}, {"sendto", "socketcall", 11}, {"recvfrom", "socketcall", 12},
	{"shutdown", "socketcall", 13}, {"setsockopt", "socketcall", 14}, {"getsockopt", "socketcall", 15}, {"sendmsg", "socketcall", 16},
	{"recvmsg", "socketcall", 17}, {"accept4", "socketcall", 18}, {"recvmmsg", "socketcall", 19}, {"sendmmsg", "socketcall", 20},
	{"semop", "ipc", 1}, {"semget", "ipc", 2}, {"semctl", "ipc", 3}, {"semtimedop", "ipc", 4},
	{"msgsnd", "ipc", 11}, {"msgrcv", "ipc", 12}, {"msgget", "ipc", 13}, {"msgctl", "ipc", 14},
	{"shmat", "ipc", 21}, {"shmdt", "ipc", 22}, {"shmget", "ipc", 23}, {"shmctl", "ipc", 24},
}

func muxOf(name string) (mux, bool) {
	for _, m := range muxes {
		if m.name == name {
			return m, true
		}
	}
	return mux{}, false
}
