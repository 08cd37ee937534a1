package launch

import (
	"io"
	"os"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// syncPair is a sync socket: ours, and the child's.
func syncPair(t testing.TB) (*os.File, *os.File) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	return os.NewFile(uintptr(fds[0]), "ours"), os.NewFile(uintptr(fds[1]), "theirs")
}

type result struct {
	out    string
	report Report
	failed bool
	status syscall.WaitStatus
}

// run starts what build made with stdout on a pipe and waits for it.
func run(t testing.TB, flags uint64, build func(b *Builder, file func(*os.File) Arg)) result {
	t.Helper()
	ours, theirs := syncPair(t)
	defer ours.Close()
	b := NewBuilder(flags)
	files := []*os.File{theirs}
	b.Sync(b.NewSlot())
	build(b, func(f *os.File) Arg { files = append(files, f); return b.NewSlot() })
	code, err := b.Encode()
	if err != nil {
		t.Fatal(err)
	}
	p, err := Decode(code)
	if err != nil {
		t.Fatal(err)
	}
	r, w, _ := os.Pipe()
	defer r.Close()
	null, _ := os.Open("/dev/null")
	defer null.Close()
	fds := []int{int(null.Fd()), int(w.Fd()), int(w.Fd()), -1}
	for _, f := range files {
		fds = append(fds, int(f.Fd()))
	}
	pid, pidfd, err := p.Start(fds)
	theirs.Close()
	w.Close()
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(pidfd)
	var res result
	buf := make([]byte, ReportSize)
	n, _ := ours.Read(buf)
	if n > 0 {
		res.report, res.failed = ParseReport(buf[:n])
	}
	out, _ := io.ReadAll(r)
	res.out = string(out)
	if _, err := syscall.Wait4(pid, &res.status, 0, nil); err != nil {
		t.Fatal(err)
	}
	return res
}

func stdio(b *Builder, n int) {
	for i := range n {
		b.Sys(unix.SYS_DUP3, Slot(i), Imm(i), Imm(0))
	}
}

func TestExec(t *testing.T) {
	res := run(t, 0, func(b *Builder, _ func(*os.File) Arg) {
		stdio(b, 3)
		b.Exec([]string{"/nowhere/sh", "/bin/sh"}, []string{"sh", "-c", "echo $X; ls -l /proc/self/fd | wc -l; grep Sig[BC] /proc/self/status"}, []string{"X=hello", "PATH=/bin:/usr/bin"})
	})
	// ls sees 0, 1, 2 and its own directory, and says "total 0".
	if !strings.HasPrefix(res.out, "hello\n5\n") || !strings.Contains(res.out, "SigBlk:\t0000000000000000") || res.failed {
		t.Fatalf("%+v", res)
	}
}

func TestFailureIsTold(t *testing.T) {
	res := run(t, 0, func(b *Builder, _ func(*os.File) Arg) {
		b.Note("nothing")
		b.Sys(unix.SYS_CHDIR, b.Str("/nowhere")).Ignore(unix.ENOENT)
		b.Note("second")
		b.Sys(unix.SYS_CHDIR, b.Str("/nowhere"))
	})
	if !res.failed || res.report.Op != 1 || unix.Errno(res.report.Value) != unix.ENOENT || res.status.ExitStatus() != 127 {
		t.Fatalf("%+v", res)
	}
}

func TestExecErrors(t *testing.T) {
	dir := t.TempDir()
	os.WriteFile(dir+"/plain", []byte("x"), 0o644)
	os.WriteFile(dir+"/text", []byte("x"), 0o755)
	for _, c := range []struct {
		paths []string
		want  unix.Errno
	}{
		{[]string{"/a/b", "/c"}, unix.ENOENT},
		{[]string{dir, "/c"}, unix.EACCES},
		{[]string{dir + "/plain", "/c"}, unix.EACCES},
		{[]string{dir + "/text", "/c"}, unix.ENOEXEC},
	} {
		res := run(t, 0, func(b *Builder, _ func(*os.File) Arg) { b.Exec(c.paths, []string{"x"}, nil) })
		if !res.failed || unix.Errno(res.report.Value) != c.want {
			t.Errorf("%v: %+v, want %v", c.paths, res, c.want)
		}
	}
}

// A mount point that is missing is made below the root even when links and dots in the path point outside.
func TestOpenInStaysInside(t *testing.T) {
	root := t.TempDir()
	os.Symlink("/../../in", root+"/link")
	os.MkdirAll(root+"/in", 0o755)
	res := run(t, 0, func(b *Builder, _ func(*os.File) Arg) {
		fd, r := b.NewReg(), b.NewReg()
		b.Sys(unix.SYS_OPENAT, AtCwd(), b.Str(root), Imm(unix.O_PATH|unix.O_CLOEXEC)).To(fd)
		b.OpenIn(fd, "/link/../link/a//b/", unix.O_PATH, MakeDir, 0o755).To(r)
		b.CheckNode(r, unix.S_IFDIR, 0, 0)
		b.OpenIn(fd, "/../../x/file", unix.O_PATH, MakeFile, 0o600).To(r)
		b.CheckNode(r, unix.S_IFREG, 0, 0)
		b.Exec([]string{"/bin/true"}, []string{"true"}, nil)
	})
	if res.failed || !res.status.Exited() || res.status.ExitStatus() != 0 {
		t.Fatalf("%+v %v", res, unix.Errno(res.report.Value))
	}
	for _, p := range []string{"/in/a/b", "/x/file"} {
		if _, err := os.Stat(root + p); err != nil {
			t.Error(err)
		}
	}
}

// A dangling link where a mount point should be made must not become a file where the link points.
func TestOpenInDangling(t *testing.T) {
	root := t.TempDir()
	os.Symlink("/nothing", root+"/link")
	res := run(t, 0, func(b *Builder, _ func(*os.File) Arg) {
		fd := b.NewReg()
		b.Sys(unix.SYS_OPENAT, AtCwd(), b.Str(root), Imm(unix.O_PATH|unix.O_CLOEXEC)).To(fd)
		b.OpenIn(fd, "/link/x", unix.O_PATH, MakeFile, 0o755)
		b.Exec([]string{"/bin/true"}, []string{"true"}, nil)
	})
	if !res.failed || unix.Errno(res.report.Value) != unix.ENOENT {
		t.Fatalf("%+v", res)
	}
}

func TestForkedAndNamespaces(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	res := run(t, unix.CLONE_NEWNS, func(b *Builder, _ func(*os.File) Arg) {
		stdio(b, 3)
		b.Fork(unix.CLONE_NEWPID | unix.CLONE_NEWUTS)
		b.Exec([]string{"/bin/sh"}, []string{"sh", "-c", "echo $$"}, nil)
	})
	if res.out != "1\n" || res.failed {
		t.Fatalf("%+v", res)
	}
}

func TestBornInPidNamespace(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	ns, err := os.Open("/proc/self/ns/pid")
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	res := run(t, 0, func(b *Builder, file func(*os.File) Arg) {
		stdio(b, 3)
		b.PidNS(file(ns))
		b.Exec([]string{"/bin/echo"}, []string{"echo", "x"}, nil)
	})
	if res.out != "x\n" {
		t.Fatalf("%+v", res)
	}
}

func BenchmarkStartTrue(b *testing.B) {
	bu := NewBuilder(0)
	bu.Exec([]string{"/bin/true"}, []string{"true"}, nil)
	code, _ := bu.Encode()
	p, err := Decode(code)
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		pid, fd, err := p.Start(nil)
		if err != nil {
			b.Fatal(err)
		}
		unix.Close(fd)
		syscall.Wait4(pid, nil, 0, nil)
	}
}

func FuzzDecode(f *testing.F) {
	b := NewBuilder(0)
	r := b.NewReg()
	l := b.NewLabel()
	b.Sys(unix.SYS_GETPID).To(r).On(0, l)
	b.OpenIn(r, "/a/b", 0, MakeDir, 0o755)
	b.Mark(l)
	b.Exec([]string{"/bin/true"}, []string{"true"}, []string{"A=b"})
	code, err := b.Encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(code)
	f.Fuzz(func(t *testing.T, data []byte) {
		p, err := Decode(data)
		if err != nil {
			return
		}
		// What was accepted must be walkable without a look back.
		for i, o := range p.ops() {
			if what := checkOp(p.head(), &o, i); what != "" {
				t.Fatal(what)
			}
		}
	})
}
