package seccomp

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"maps"
	"math/rand/v2"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/linux/caps"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// data is struct seccomp_data.
type data struct {
	nr, arch uint32
	args     [6]uint64
}

// bytes is data as the VM reads it: words in big-endian order, whatever the machine's own is.
func (d data) bytes(big bool) []byte {
	b := make([]byte, 64)
	binary.BigEndian.PutUint32(b[0:], d.nr)
	binary.BigEndian.PutUint32(b[4:], d.arch)
	for i, v := range d.args {
		lo, hi := 16+8*i, 20+8*i
		if big {
			lo, hi = hi, lo
		}
		binary.BigEndian.PutUint32(b[lo:], uint32(v))
		binary.BigEndian.PutUint32(b[hi:], uint32(v>>32))
	}
	return b
}

func machine(t testing.TB, prog []unix.SockFilter) *bpf.VM {
	t.Helper()
	var insns []bpf.Instruction
	for _, i := range prog {
		insns = append(insns, bpf.RawInstruction{Op: i.Code, Jt: i.Jt, Jf: i.Jf, K: i.K}.Disassemble())
	}
	vm, err := bpf.NewVM(insns)
	if err != nil {
		t.Fatalf("the filter is not valid: %v", err)
	}
	return vm
}

func run(t testing.TB, vm *bpf.VM, d data, big bool) uint32 {
	t.Helper()
	got, err := vm.Run(d.bytes(big))
	if err != nil {
		t.Fatal(err)
	}
	return uint32(got)
}

// evaluate decides a call by reading the profile as a person would, rule by rule.
func evaluate(spec *specs.LinuxSeccomp, goarch string, d data) uint32 {
	fam := families[goarch]
	var ar *arch
	for i := range fam.archs {
		a := &fam.archs[i]
		if a.audit != d.arch || i > 0 && !slices.Contains(spec.Architectures, a.spec) {
			continue
		}
		if x32 := d.nr >= x32Bit && d.nr != 0xffffffff; x32 && a.column == colAMD64 || !x32 && a.column == colX32 {
			continue
		}
		ar = a
	}
	if ar == nil {
		return retKillProcess
	}
	def, _ := action(spec.DefaultAction, spec.DefaultErrnoRet)
	if d.nr == 0xffffffff && ar.column == colAMD64 {
		return def
	}
	nr := int64(d.nr - ar.bit)
	name := ""
	for i := range calls {
		if int64(calls[i].nr[ar.column]) == nr {
			name = calls[i].name
		}
	}
	if name != "" {
		// Unconditional rules first, then conditional ones, both in order.
		for _, sc := range spec.Syscalls {
			act, _ := action(sc.Action, sc.ErrnoRet)
			if act != def && len(sc.Args) == 0 && slices.Contains(sc.Names, name) {
				return act
			}
		}
		for _, sc := range spec.Syscalls {
			act, _ := action(sc.Action, sc.ErrnoRet)
			if act == def {
				continue
			}
			for _, n := range sc.Names {
				if n == name && holds(sc.Args, d, ar.narrow) {
					return act
				}
				if m, ok := muxOf(n); ok && m.through == name && len(sc.Args) == 0 && low(d.args[0], ar.narrow) == m.number {
					return act
				}
			}
		}
		for _, sc := range spec.Syscalls {
			if slices.Contains(sc.Names, name) {
				return def
			}
		}
	}
	newest := int64(-1)
	for _, sc := range spec.Syscalls {
		for _, name := range sc.Names {
			if i := find(name); i >= 0 && calls[i].nr[ar.column] < armPrivate {
				newest = max(newest, int64(calls[i].nr[ar.column]))
			}
		}
	}
	if newest >= 0 && nr > newest && def != retAllow && def != retLog {
		return retErrno | 38
	}
	return def
}

func low(v uint64, narrow bool) uint64 {
	if narrow {
		return v & 0xffffffff
	}
	return v
}

func holds(args []specs.LinuxSeccompArg, d data, narrow bool) bool {
	indexes := make(map[uint]int)
	for _, a := range args {
		indexes[a.Index]++
	}
	alternatives := len(indexes) < len(args)
	for _, a := range args {
		v, want, two := low(d.args[a.Index], narrow), low(a.Value, narrow), low(a.ValueTwo, narrow)
		ok := false
		switch a.Op {
		case specs.OpNotEqual:
			ok = v != want
		case specs.OpLessThan:
			ok = v < want
		case specs.OpLessEqual:
			ok = v <= want
		case specs.OpEqualTo:
			ok = v == want
		case specs.OpGreaterEqual:
			ok = v >= want
		case specs.OpGreaterThan:
			ok = v > want
		case specs.OpMaskedEqual:
			ok = v&want == two
		}
		if ok && alternatives {
			return true
		}
		if !ok && !alternatives {
			return false
		}
	}
	return !alternatives
}

// check compares filter and evaluator on every known call and around, with telling and with random arguments.
func check(t testing.TB, spec *specs.LinuxSeccomp, goarch string, rnd *rand.Rand, rounds int) {
	t.Helper()
	f, err := compile(spec, goarch)
	if err != nil {
		t.Fatal(err)
	}
	vm, fam := machine(t, f.Prog), families[goarch]
	values := []uint64{0, 1, 0xffffffff, 1 << 32, 1 << 63, ^uint64(0)}
	for _, sc := range spec.Syscalls {
		for _, a := range sc.Args {
			values = append(values, a.Value, a.Value-1, a.Value+1, a.ValueTwo, a.ValueTwo|^a.Value, a.Value|1<<40, a.Value+1<<32)
		}
	}
	ask := func(d data) {
		for range rounds {
			for i := range d.args {
				if rnd.IntN(4) == 0 {
					d.args[i] = rnd.Uint64()
				} else {
					d.args[i] = values[rnd.IntN(len(values))]
				}
			}
			if got, want := run(t, vm, d, fam.big), evaluate(spec, goarch, d); got != want {
				t.Fatalf("%s: nr %d (%#x) arch %#x args %x: filter says %#x, profile says %#x\n%+v", goarch, d.nr, d.nr, d.arch, d.args, got, want, *spec)
			}
		}
	}
	for _, a := range fam.archs {
		for _, c := range calls {
			if nr := c.nr[a.column]; nr >= 0 {
				ask(data{nr: uint32(nr) | a.bit, arch: a.audit})
			}
		}
		for _, nr := range []uint32{450, 470, 600, 1000, x32Bit - 1, x32Bit, x32Bit + 600, 0x80000000, 0xfffffffe, 0xffffffff} {
			ask(data{nr: nr, arch: a.audit})
			ask(data{nr: nr | a.bit, arch: a.audit})
		}
	}
	ask(data{nr: 1, arch: 0x12345678})
	ask(data{nr: 1, arch: 0})
}

func TestDefaultProfile(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	for _, set := range [][]string{nil, caps.Default(), caps.All()} {
		spec, err := DefaultProfile(set, "")
		if err != nil {
			t.Fatal(err)
		}
		for goarch := range families {
			check(t, spec, goarch, rnd, 2)
		}
		f, err := Compile(spec)
		if err != nil {
			t.Fatal(err)
		}
		t.Log(len(set), "capabilities:", len(f.Prog), "instructions")
		if f.Flags != flagSpecAllow || f.Notify {
			t.Errorf("flags %x, notify %v", f.Flags, f.Notify)
		}
	}
}

// randomProfile makes a profile of n entries.
func randomProfile(rnd *rand.Rand, n int) *specs.LinuxSeccomp {
	acts := []specs.LinuxSeccompAction{specs.ActAllow, specs.ActErrno, specs.ActKill, specs.ActKillProcess, specs.ActTrap, specs.ActLog, specs.ActTrace, specs.ActErrno}
	ops := []specs.LinuxSeccompOperator{specs.OpNotEqual, specs.OpLessThan, specs.OpLessEqual, specs.OpEqualTo, specs.OpGreaterEqual, specs.OpGreaterThan, specs.OpMaskedEqual}
	archs := []specs.Arch{specs.ArchX86_64, specs.ArchX86, specs.ArchX32, specs.ArchARM, specs.ArchAARCH64, specs.ArchMIPS}
	spec := &specs.LinuxSeccomp{DefaultAction: acts[rnd.IntN(len(acts))]}
	for _, a := range archs {
		if rnd.IntN(2) == 0 {
			spec.Architectures = append(spec.Architectures, a)
		}
	}
	value := func() uint64 {
		switch rnd.IntN(4) {
		case 0:
			return uint64(rnd.IntN(64))
		case 1:
			return rnd.Uint64()
		case 2:
			return uint64(rnd.Uint32())
		}
		return 1 << rnd.IntN(64)
	}
	for range n {
		sc := specs.LinuxSyscall{Action: acts[rnd.IntN(len(acts))]}
		if sc.Action == specs.ActErrno || sc.Action == specs.ActTrace {
			ret := uint(rnd.IntN(100))
			sc.ErrnoRet = &ret
		}
		for range 1 + rnd.IntN(6) {
			switch rnd.IntN(8) {
			case 0:
				sc.Names = append(sc.Names, "no_such_call")
			case 1:
				sc.Names = append(sc.Names, muxes[rnd.IntN(len(muxes))].name)
			default:
				sc.Names = append(sc.Names, calls[rnd.IntN(len(calls))].name)
			}
		}
		if rnd.IntN(3) > 0 {
			for range rnd.IntN(4) {
				a := specs.LinuxSeccompArg{Index: uint(rnd.IntN(6)), Op: ops[rnd.IntN(len(ops))], Value: value(), ValueTwo: value()}
				if a.Op == specs.OpMaskedEqual && rnd.IntN(2) == 0 {
					a.ValueTwo &= a.Value
				}
				sc.Args = append(sc.Args, a)
			}
		}
		spec.Syscalls = append(spec.Syscalls, sc)
	}
	return spec
}

func TestRandomProfiles(t *testing.T) {
	rnd := rand.New(rand.NewPCG(3, 4))
	goarchs := slices.Sorted(maps.Keys(families))
	for i := range 60 {
		n := rnd.IntN(25)
		if i%20 == 0 {
			n = 150 // long ways, which need jumps of more than a byte
		}
		check(t, randomProfile(rnd, n), goarchs[i%len(goarchs)], rnd, 2)
	}
}

func TestRefused(t *testing.T) {
	big := uint(5000)
	one := func(sc specs.LinuxSyscall) *specs.LinuxSeccomp {
		return &specs.LinuxSeccomp{DefaultAction: specs.ActAllow, Syscalls: []specs.LinuxSyscall{sc}}
	}
	for what, spec := range map[string]*specs.LinuxSeccomp{
		"no profile":            nil,
		"unknown action":        {DefaultAction: "SCMP_ACT_MAYBE"},
		"default action":        {DefaultAction: specs.ActNotify},
		"unknown architecture":  {DefaultAction: specs.ActAllow, Architectures: []specs.Arch{"SCMP_ARCH_Z80"}},
		"unknown flag":          {DefaultAction: specs.ActAllow, Flags: []specs.LinuxSeccompFlag{"SECCOMP_FILTER_FLAG_FAST"}},
		"needs a rule":          {DefaultAction: specs.ActAllow, Flags: []specs.LinuxSeccompFlag{specs.LinuxSeccompFlagWaitKillableRecv}},
		"names no system call":  one(specs.LinuxSyscall{Action: specs.ActErrno}),
		"greater than 4095":     one(specs.LinuxSyscall{Names: []string{"read"}, Action: specs.ActErrno, ErrnoRet: &big}),
		"not take an error":     one(specs.LinuxSyscall{Names: []string{"read"}, Action: specs.ActLog, ErrnoRet: &big}),
		"arguments 0 to 5":      one(specs.LinuxSyscall{Names: []string{"read"}, Action: specs.ActErrno, Args: []specs.LinuxSeccompArg{{Index: 6, Op: specs.OpEqualTo}}}),
		"unknown operator":      one(specs.LinuxSyscall{Names: []string{"read"}, Action: specs.ActErrno, Args: []specs.LinuxSeccompArg{{Op: "SCMP_CMP_NICE"}}}),
		"cannot be used for wr": one(specs.LinuxSyscall{Names: []string{"write"}, Action: specs.ActNotify}),
	} {
		if _, err := Compile(spec); !errors.Is(err, errs.Invalid) || !strings.Contains(err.Error(), what) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

func TestFlags(t *testing.T) {
	spec := &specs.LinuxSeccomp{
		DefaultAction: specs.ActAllow,
		Flags:         []specs.LinuxSeccompFlag{tsync, specs.LinuxSeccompFlagLog, specs.LinuxSeccompFlagSpecAllow, specs.LinuxSeccompFlagWaitKillableRecv},
		Syscalls:      []specs.LinuxSyscall{{Names: []string{"mount"}, Action: specs.ActNotify}},
	}
	f, err := Compile(spec)
	if err != nil {
		t.Fatal(err)
	}
	if f.Flags != flagTSync|flagTSyncESRCH|flagLog|flagSpecAllow|flagWaitKillable|flagNewListener || !f.Notify {
		t.Errorf("flags %#x, notify %v", f.Flags, f.Notify)
	}
	spec = &specs.LinuxSeccomp{DefaultAction: specs.ActAllow, Flags: []specs.LinuxSeccompFlag{}}
	if f, err = Compile(spec); err != nil || f.Flags != 0 {
		t.Errorf("flags %#x, %v; a profile that says none has none", f.Flags, err)
	}
}

// The numbers of x32 are made here, not taken from x/sys; the C library's headers know better, where they are.
func TestX32Numbers(t *testing.T) {
	src, err := os.ReadFile("/usr/include/x86_64-linux-gnu/asm/unistd_x32.h")
	if err != nil {
		t.Skip("needs the kernel's headers")
	}
	for _, m := range regexp.MustCompile(`__NR_(\w+) \(__X32_SYSCALL_BIT \+ (\d+)\)`).FindAllStringSubmatch(string(src), -1) {
		i := find(m[1])
		if i < 0 {
			t.Logf("%s is not in the table", m[1])
			continue
		}
		if got := strconv.Itoa(int(calls[i].nr[colX32])); got != m[2] {
			t.Errorf("%s is %s, the headers say %s", m[1], got, m[2])
		}
	}
}

func FuzzCompile(f *testing.F) {
	for _, spec := range []*specs.LinuxSeccomp{randomProfile(rand.New(rand.NewPCG(5, 6)), 4), {DefaultAction: specs.ActErrno}} {
		body, err := json.Marshal(spec)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(body)
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		var spec specs.LinuxSeccomp
		if json.Unmarshal(body, &spec) != nil {
			return
		}
		for _, goarch := range []string{"amd64", "s390x"} {
			flt, err := compile(&spec, goarch)
			if err != nil {
				continue
			}
			vm := machine(t, flt.Prog)
			for _, nr := range []uint32{0, 1, 59, 165, 335, 600, x32Bit + 520, 0xffffffff} {
				d := data{nr: nr, arch: families[goarch].archs[0].audit, args: [6]uint64{1, 2, 3, 4, 5, 6}}
				if got, want := run(t, vm, d, families[goarch].big), evaluate(&spec, goarch, d); got != want {
					t.Fatalf("nr %d: filter says %#x, profile says %#x", nr, got, want)
				}
			}
		}
	})
}

func BenchmarkCompileDefault(b *testing.B) {
	spec, err := DefaultProfile(caps.Default(), "")
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Compile(spec); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkDefaultProfile(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		if _, err := DefaultProfile(caps.Default(), ""); err != nil {
			b.Fatal(err)
		}
	}
}
