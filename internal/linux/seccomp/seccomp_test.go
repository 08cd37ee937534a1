package seccomp

import (
	"encoding/binary"
	"testing"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

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

func TestDefaultProfileCompiles(t *testing.T) {
	spec, err := DefaultProfile(caps.Default(), "")
	if err != nil {
		t.Fatal(err)
	}
	f, err := Compile(spec)
	if err != nil {
		t.Fatal(err)
	}
	t.Log(len(f.Prog), "instructions", f.Flags)
	vm := machine(t, f.Prog)
	if got := run(t, vm, data{nr: 0, arch: 0xc000003e}, false); got != retAllow {
		t.Fatalf("%x", got)
	}
	if got := run(t, vm, data{nr: unix.SYS_MOUNT, arch: 0xc000003e}, false); got != retErrno|1 {
		t.Fatalf("%x", got)
	}
	_ = specs.ActAllow
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
