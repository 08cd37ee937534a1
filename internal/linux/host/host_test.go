package host

import (
	"errors"
	"net"
	"os"
	"strings"
	"testing"
)

func TestKernel(t *testing.T) {
	b, err := os.ReadFile("/proc/sys/kernel/osrelease")
	if err != nil {
		t.Skip("no procfs")
	}
	if got, want := Kernel(), strings.TrimSpace(string(b)); got != want {
		t.Errorf("release %q, want %q", got, want)
	}
	if !KernelSince(2, 6) || KernelSince(999, 0) {
		t.Error("this kernel is older than 2.6 or newer than 999")
	}
	if Machine() == "" {
		t.Error("no machine")
	}
}

func TestSince(t *testing.T) {
	for _, c := range []struct {
		release      string
		major, minor int
		want         bool
	}{
		{"5.12.0-rc1", 5, 12, true}, {"5.11.22", 5, 12, false}, {"6.1", 5, 12, true}, {"4.19.0-cloud", 5, 0, false}, {"10.0.1+", 5, 12, true}, {"", 0, 0, false}, {"next", 1, 0, false},
	} {
		if got := since(c.release, c.major, c.minor); got != c.want {
			t.Errorf("%q since %d.%d: %v", c.release, c.major, c.minor, got)
		}
	}
}

func TestMemory(t *testing.T) {
	if got := Memory(); got < 16<<20 {
		t.Errorf("%d bytes of memory", got)
	}
}

func TestFileSystem(t *testing.T) {
	if name, err := FileSystem(t.TempDir()); err != nil || name == "" {
		t.Errorf("%q, %v", name, err)
	}
	if name, err := FileSystem("/proc"); err != nil || name != "proc" {
		t.Errorf("procfs is %q, %v", name, err)
	}
	if _, err := FileSystem("/no/such/path"); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
}

func TestOpenFiles(t *testing.T) {
	soft, hard, err := OpenFiles()
	if err != nil || soft == 0 || hard < soft {
		t.Errorf("%d, %d, %v", soft, hard, err)
	}
}

func TestDevice(t *testing.T) {
	major, minor, err := Device("/dev/null")
	if err != nil || major != 1 || minor != 3 {
		t.Errorf("/dev/null is %d:%d, %v", major, minor, err)
	}
	if _, _, err := Device("/dev/no-such-device"); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
}

func TestReadOnly(t *testing.T) {
	for _, c := range []struct {
		line     string
		from, to uintptr
		bad      bool
	}{
		{"00400000-00a9c000 r-xp 00000000 fe:00 10027970   /usr/bin/cortend", 0x400000, 0xa9c000, false},
		{"00400000-00a9c000 r--p 00000000 fe:00 10027970   /a name (deleted)", 0x400000, 0xa9c000, false},
		{"00a9c000-00b9c000 rw-p 00000000 fe:00 10027970   /usr/bin/cortend", 0, 0, false},
		{"7f0000000000-7f0000001000 r--p 00000000 00:00 0   [vvar]", 0, 0, false},
		{"x-y r--p 00000000 fe:00 1   /a", 0, 0, true},
	} {
		addresses, rest, _ := strings.Cut(c.line, " ")
		if from, to, err := readOnly(addresses, rest); from != c.from || to != c.to || (err != nil) != c.bad {
			t.Errorf("%s: %x to %x, %v", c.line, from, to, err)
		}
	}
}

// A test program with C is relocated: what its linker wrote into mappings that are only read afterwards was forgotten, too, and the name server of a test fell.
func TestForgetPages(t *testing.T) {
	if err := ForgetPages(); err != nil {
		t.Fatal(err)
	}
	// It goes on, also through what the linker resolved.
	if host, err := net.LookupHost("localhost"); err != nil {
		t.Log(host, err) // no such name here, but asked
	}
	if n, err := FilePages(); err != nil || n == 0 {
		t.Error(n, err)
	}
}
