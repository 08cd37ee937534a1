package step

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"io/fs"
	"os"
	"runtime"
	"strconv"
	"strings"

	"github.com/moby/buildkit/solver/pb"
	"golang.org/x/sys/unix"

	"corten.dev/corten/internal/errs"
)

// binfmt is where the kernel lists the handlers of foreign programs.
const binfmt = "/proc/sys/fs/binfmt_misc"

// machine is how programs of an architecture begin.
type machine struct {
	bits   byte // 1: 32, 2: 64
	big    bool
	number uint16
}

var machines = map[string]machine{
	"386": {1, false, 3}, "amd64": {2, false, 62}, "arm": {1, false, 40}, "arm64": {2, false, 183}, "riscv64": {2, false, 243}, "ppc64le": {2, false, 21}, "ppc64": {2, true, 21},
	"s390x": {2, true, 22}, "mips64le": {2, false, 8}, "mips64": {2, true, 8}, "mipsle": {1, false, 8}, "mips": {1, true, 8}, "loong64": {2, false, 258},
}

// native are the architectures that a processor runs beside its own.
var native = map[string]string{"amd64": "386", "arm64": "arm"}

// runnable tells whether programs of a platform run here: by the processor, or by an emulator that the kernel calls.
func runnable(p *pb.Platform) error {
	if p == nil {
		return nil
	}
	if p.OS != "" && p.OS != "linux" {
		return errs.New(errs.NotImplemented, "platform %s/%s: this host runs steps for linux only", p.OS, p.Architecture)
	}
	if p.Architecture == "" || p.Architecture == runtime.GOARCH || p.Architecture == native[runtime.GOARCH] {
		return nil
	}
	if emulates(p.Architecture) {
		return nil
	}
	name := "linux/" + p.Architecture
	if p.Variant != "" {
		name += "/" + p.Variant
	}
	return errs.New(errs.Unavailable, "platform %s: this host (linux/%s) cannot run its programs, and no emulator is registered for them in /proc/sys/fs/binfmt_misc; install one (Debian, Ubuntu: apt install qemu-user-static binfmt-support)", name, runtime.GOARCH)
}

// emulated tells whether one of the handlers below dir takes the programs of an architecture.
func emulated(dir fs.FS, arch string) bool {
	m, ok := machines[arch]
	if !ok {
		return false
	}
	if status, err := fs.ReadFile(dir, "status"); err != nil || strings.TrimSpace(string(status)) != "enabled" {
		return false
	}
	entries, err := fs.ReadDir(dir, ".")
	if err != nil {
		return false
	}
	for _, e := range entries {
		if e.Name() == "status" || e.Name() == "register" {
			continue
		}
		text, err := fs.ReadFile(dir, e.Name())
		if err != nil {
			continue // it was unregistered meanwhile
		}
		if h, ok := parseHandler(text); ok && h.takes(m.program()) {
			return true
		}
	}
	return false
}

// program is the beginning of an executable, static and of its machine.
func (m machine) program() []byte {
	order := binary.ByteOrder(binary.LittleEndian)
	data := byte(1)
	if m.big {
		order, data = binary.BigEndian, 2
	}
	b := make([]byte, 128)
	copy(b, []byte{0x7f, 'E', 'L', 'F', m.bits, data, 1})
	order.PutUint16(b[16:], 2) // ET_EXEC
	order.PutUint16(b[18:], m.number)
	order.PutUint32(b[20:], 1)
	return b
}

// emulates says that the kernel has a handler for programs of an architecture. Where systemd mounts the list for the first who looks into it, nobody has registered any yet: looking would
// leave a mount behind.
func emulates(arch string) bool {
	fd, err := unix.Open(binfmt, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return false
	}
	defer unix.Close(fd)
	var st unix.Statfs_t
	if unix.Fstatfs(fd, &st) != nil || st.Type != unix.BINFMTFS_MAGIC {
		return false
	}
	return emulated(os.DirFS(binfmt), arch)
}

// handler is an entry of binfmt_misc that looks at how a file begins.
type handler struct {
	offset      int
	magic, mask []byte
}

// parseHandler reads an entry as the kernel shows it; ok is false for one that is disabled, or looks at names.
func parseHandler(text []byte) (h handler, ok bool) {
	on := false
	sc := bufio.NewScanner(bytes.NewReader(text))
	for sc.Scan() {
		key, value, _ := strings.Cut(sc.Text(), " ")
		var err error
		switch key {
		case "enabled":
			on = true
		case "offset":
			h.offset, err = strconv.Atoi(value)
		case "magic":
			h.magic, err = hex.DecodeString(value)
		case "mask":
			h.mask, err = hex.DecodeString(value)
		}
		if err != nil {
			return handler{}, false
		}
	}
	if h.mask == nil {
		h.mask = bytes.Repeat([]byte{0xff}, len(h.magic))
	}
	return h, on && len(h.magic) > 0 && len(h.mask) == len(h.magic) && h.offset >= 0
}

// takes tells whether the kernel would call the handler for a file that begins like this.
func (h handler) takes(program []byte) bool {
	if h.offset > len(program) || len(h.magic) > len(program)-h.offset {
		return false
	}
	for i, want := range h.magic {
		if (program[h.offset+i]^want)&h.mask[i] != 0 {
			return false
		}
	}
	return true
}
