package seccomp

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"unsafe"

	"corten.dev/corten/internal/linux/caps"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// install loads a filter for all threads of this process.
func install(f Filter) (int, error) {
	prog := unix.SockFprog{Len: uint16(len(f.Prog)), Filter: &f.Prog[0]}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return -1, err
	}
	fd, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, uintptr(f.Flags), uintptr(unsafe.Pointer(&prog)))
	if errno != 0 {
		return -1, errno
	}
	return int(fd), nil
}

const childEnv = "CORTEN_TEST_SECCOMP_CHILD"

// TestChild is no test: it is the process that gets filters.
func TestChild(t *testing.T) {
	runtime.LockOSThread()
	var err error
	switch os.Getenv(childEnv) {
	case "default":
		err = childDefault()
	case "rules":
		err = childRules()
	case "notify":
		err = childNotify()
	case "kill":
		err = childKill()
	default:
		t.Skip("run by TestKernel")
	}
	if err != nil {
		t.Fatal(err)
	}
	fmt.Println("child is content")
}

func expect(what string, got, want error) error {
	if !errors.Is(got, want) {
		return fmt.Errorf("%s: %v, want %v", what, got, want)
	}
	return nil
}

func childDefault() error {
	spec, err := DefaultProfile(caps.Default(), "")
	if err != nil {
		return err
	}
	f, err := Compile(spec)
	if err != nil {
		return err
	}
	f.Flags |= flagTSync
	if _, err := install(f); err != nil {
		return err
	}
	_, _, future := unix.Syscall(5000, 0, 0, 0)
	_, _, personality := unix.Syscall(unix.SYS_PERSONALITY, 0xffffffff, 0, 0)
	_, _, forbidden := unix.Syscall(unix.SYS_PERSONALITY, 0x1234, 0, 0)
	return errors.Join(
		expect("mount", unix.Mount("", "/", "", unix.MS_REMOUNT|unix.MS_BIND, ""), unix.EPERM),
		expect("unshare", unix.Unshare(unix.CLONE_NEWUTS), unix.EPERM),
		expect("a call of the future", future, unix.ENOSYS),
		expect("allowed personality", personality, unix.Errno(0)),
		expect("forbidden personality", forbidden, unix.EPERM),
	)
}

func childRules() error {
	ret := func(n uint) *uint { return &n }
	spec := &specs.LinuxSeccomp{
		DefaultAction: specs.ActAllow,
		Flags:         []specs.LinuxSeccompFlag{tsync, specs.LinuxSeccompFlagLog, specs.LinuxSeccompFlagSpecAllow},
		Syscalls: []specs.LinuxSyscall{
			{Names: []string{"getpriority"}, Action: specs.ActErrno, ErrnoRet: ret(77), Args: []specs.LinuxSeccompArg{{Index: 1, Op: specs.OpGreaterThan, Value: 1 << 40}}},
			{Names: []string{"getpriority"}, Action: specs.ActErrno, ErrnoRet: ret(78), Args: []specs.LinuxSeccompArg{{Index: 0, Op: specs.OpMaskedEqual, Value: 0xf0, ValueTwo: 0x20}}},
		},
	}
	f, err := Compile(spec)
	if err != nil {
		return err
	}
	if _, err := install(f); err != nil {
		return err
	}
	var all []error
	for _, c := range []struct {
		which, who uintptr
		want       unix.Errno
	}{{0, 0, 0}, {0, 1 << 40, 0}, {0, 1<<40 + 1, 77}, {0, 1 << 41, 77}, {0x2f, 0, 78}, {0x3f, 0, unix.EINVAL}} {
		_, _, got := unix.Syscall(unix.SYS_GETPRIORITY, c.which, c.who, 0)
		all = append(all, expect(fmt.Sprintf("getpriority(%#x, %#x)", c.which, c.who), got, c.want))
	}
	return errors.Join(all...)
}

func childNotify() error {
	spec := &specs.LinuxSeccomp{
		DefaultAction: specs.ActAllow, Flags: []specs.LinuxSeccompFlag{},
		Syscalls: []specs.LinuxSyscall{{Names: []string{"getpriority"}, Action: specs.ActNotify}},
	}
	f, err := Compile(spec)
	if err != nil {
		return err
	}
	fd, err := install(f)
	if err != nil {
		return err
	}
	answered := make(chan error, 1)
	go func() {
		var req [80]byte // struct seccomp_notif; its id is the first word
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), 0xc0502100, uintptr(unsafe.Pointer(&req)))
		if errno != 0 {
			answered <- errno
			return
		}
		var resp struct {
			id, val    uint64
			err, flags int32
		}
		resp.id, resp.err = *(*uint64)(unsafe.Pointer(&req)), -int32(unix.EXDEV)
		_, _, errno = unix.Syscall(unix.SYS_IOCTL, uintptr(fd), 0xc0182101, uintptr(unsafe.Pointer(&resp)))
		if errno != 0 {
			answered <- errno
			return
		}
		answered <- nil
	}()
	_, _, got := unix.Syscall(unix.SYS_GETPRIORITY, 0, 0, 0)
	return errors.Join(<-answered, expect("getpriority", got, unix.EXDEV))
}

func childKill() error {
	f, err := Compile(&specs.LinuxSeccomp{
		DefaultAction: specs.ActAllow, Flags: []specs.LinuxSeccompFlag{tsync},
		Syscalls: []specs.LinuxSyscall{{Names: []string{"getpriority"}, Action: specs.ActKillProcess}},
	})
	if err != nil {
		return err
	}
	if _, err := install(f); err != nil {
		return err
	}
	_, _, errno := unix.Syscall(unix.SYS_GETPRIORITY, 0, 0, 0)
	return fmt.Errorf("still alive: %w", errno)
}

// The kernel takes the filters and decides as they say.
func TestKernel(t *testing.T) {
	for _, what := range []string{"default", "rules", "notify", "kill"} {
		t.Run(what, func(t *testing.T) {
			cmd := exec.Command(os.Args[0], "-test.run=^TestChild$", "-test.v")
			cmd.Env = append(os.Environ(), childEnv+"="+what)
			out, err := cmd.CombinedOutput()
			if what == "kill" {
				if st, ok := cmd.ProcessState.Sys().(interface{ Signal() unix.Signal }); !ok || st.Signal() != unix.SIGSYS {
					t.Fatalf("the child was not killed: %v\n%s", err, out)
				}
				return
			}
			if err != nil || !strings.Contains(string(out), "child is content") {
				t.Fatalf("%v\n%s", err, out)
			}
		})
	}
}
