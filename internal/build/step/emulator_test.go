package step

import (
	"errors"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/moby/buildkit/solver/pb"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
)

const inOwnNamespace = "CORTEN_TEST_OWN_BINFMT"

// A handler that is registered with a real kernel is found as the kernel lists it, and gone when it is unregistered. Since 6.7 a user namespace has handlers of its own: the host's stay
// as they are.
func TestRegisteredEmulator(t *testing.T) {
	if os.Getenv(inOwnNamespace) != "" {
		registered(t)
		return
	}
	cmd := exec.Command("/proc/self/exe", "-test.run=^TestRegisteredEmulator$", "-test.v")
	cmd.Env = append(os.Environ(), inOwnNamespace+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNS,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}}, GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}},
	}
	out, err := cmd.CombinedOutput()
	if exit := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exit) {
		t.Skip("no user namespaces here: ", err)
	}
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if _, why, skipped := strings.Cut(string(out), "SKIP-BECAUSE "); skipped {
		t.Skip(strings.SplitN(why, "\n", 2)[0])
	}
}

// registered runs in the namespaces.
func registered(t *testing.T) {
	if err := unix.Mount("binfmt_misc", binfmt, "binfmt_misc", 0, ""); err != nil {
		t.Skip("SKIP-BECAUSE this kernel gives a user namespace no binfmt_misc of its own: ", err)
	}
	arch := "riscv64" // nothing here has a handler for it
	if runtime.GOARCH == arch {
		arch = "s390x"
	}
	m := machines[arch]
	hex := func(b []byte) string {
		var s strings.Builder
		for _, c := range b {
			s.WriteString(`\x`)
			s.WriteByte("0123456789abcdef"[c>>4])
			s.WriteByte("0123456789abcdef"[c&15])
		}
		return s.String()
	}
	mask := []byte{255, 255, 255, 255, 255, 255, 255, 0, 255, 255, 255, 255, 255, 255, 255, 255, 254, 255, 255, 255}
	rule := ":corten-test:M::" + hex(m.program()[:20]) + ":" + hex(mask) + ":/proc/self/exe:OC"
	want := &pb.Platform{OS: "linux", Architecture: arch}
	listed := func() bool {
		return slices.ContainsFunc(Platforms(), func(p ocispec.Platform) bool { return p.Architecture == arch })
	}
	if runnable(want) == nil || listed() {
		t.Fatalf("%s runs before anything is registered", arch)
	}
	if err := os.WriteFile(binfmt+"/register", []byte(rule), 0); err != nil {
		t.Fatal(err)
	}
	if err := runnable(want); err != nil || !listed() {
		t.Errorf("%s is registered: %v, %v", arch, err, Platforms())
	}
	if err := os.WriteFile(binfmt+"/corten-test", []byte("-1"), 0); err != nil {
		t.Fatal(err)
	}
	if runnable(want) == nil {
		t.Errorf("%s runs without its handler", arch)
	}
}
