package runtime

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/linux/caps"
	"corten.dev/corten/internal/linux/mount"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

const busybox = "/bin/busybox"

// inBare has the runtimes of this test process prepare what containers share: the suite runs once without, and once with, see TestSuiteFromBareNamespace.
const inBare = "CORTEN_RUNTIME_TEST_BARE"

func newRuntime(opts Options) *Runtime {
	rt := New(opts)
	if os.Getenv(inBare) != "" {
		rt.Prepare()
	}
	return rt
}

// TestSuiteFromBareNamespace runs all of this package's tests again with containers whose mount namespace is made of the bare one.
func TestSuiteFromBareNamespace(t *testing.T) {
	needRoot(t)
	if os.Getenv(inBare) != "" {
		t.Skip("this is it")
	}
	cmd := exec.Command(os.Args[0], "-test.run=^Test", "-test.short="+fmt.Sprint(testing.Short()))
	cmd.Env = append(os.Environ(), inBare+"=1")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
}

// testCgroups is the folder of the cgroups of this process's tests.
var testCgroups = fmt.Sprintf("/corten-runtime-test-%d", os.Getpid())

func TestMain(m *testing.M) {
	if part := plays[os.Args[len(os.Args)-1]]; part != nil { // this is a container
		if err := part(); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		return
	}
	code := m.Run()
	dirs, _ := filepath.Glob("/sys/fs/cgroup/*" + testCgroups)
	for _, d := range dirs {
		_ = os.Remove(d)
	}
	os.Exit(code)
}

// needRoot skips where the tests cannot make containers.
func needRoot(t testing.TB) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	if _, err := os.Stat(busybox); err != nil {
		t.Skip("needs busybox-static")
	}
}

// rootfs is a root file system with busybox in it.
func rootfs(t testing.TB) string {
	t.Helper()
	needRoot(t)
	dir := filepath.Join(t.TempDir(), "rootfs")
	for _, d := range []string{"bin", "etc", "tmp", "root", "usr/bin"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	body, err := os.ReadFile(busybox)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "bin/busybox"), body, 0o755); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command(busybox, "--list").Output()
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range strings.Fields(string(out)) {
		if name != "busybox" {
			if err := os.Symlink("busybox", filepath.Join(dir, "bin", name)); err != nil {
				t.Fatal(err)
			}
		}
	}
	return dir
}

// dockerSpec is what an engine asks for by default.
func dockerSpec(root string, args ...string) *specs.Spec {
	c := caps.Default()
	return &specs.Spec{
		Version: "1.2.0",
		Root:    &specs.Root{Path: root},
		Process: &specs.Process{
			Args: args, Cwd: "/", Env: []string{"PATH=/usr/bin:/bin"},
			Capabilities: &specs.LinuxCapabilities{Bounding: c, Effective: c, Permitted: c},
		},
		Hostname: "box",
		Mounts: []specs.Mount{
			{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
			{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
			{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"}},
			{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"nosuid", "noexec", "nodev", "ro"}},
			{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup", Options: []string{"ro", "nosuid", "noexec", "nodev"}},
			{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: []string{"nosuid", "noexec", "nodev"}},
			{Destination: "/dev/shm", Type: "tmpfs", Source: "shm", Options: []string{"nosuid", "noexec", "nodev", "mode=1777", "size=67108864"}},
		},
		Linux: &specs.Linux{
			CgroupsPath: fmt.Sprintf(testCgroups+"/%d", time.Now().UnixNano()),
			Resources:   &specs.LinuxResources{Devices: []specs.LinuxDeviceCgroup{{Allow: false, Access: "rwm"}}},
			Namespaces: []specs.LinuxNamespace{
				{Type: specs.MountNamespace}, {Type: specs.NetworkNamespace}, {Type: specs.UTSNamespace}, {Type: specs.PIDNamespace}, {Type: specs.IPCNamespace}, {Type: specs.CgroupNamespace},
			},
			MaskedPaths: []string{
				"/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug",
				"/proc/scsi", "/sys/firmware", "/sys/devices/virtual/powercap",
			},
			ReadonlyPaths: []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"},
		},
	}
}

// box is one run of a container in a test.
type box struct {
	ctr *Container
	out *os.File
	w   *os.File
}

func outPipe(t testing.TB) (*os.File, *os.File) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close(); w.Close() })
	return r, w
}

// create makes a container whose output goes to a pipe.
func create(t testing.TB, rt *Runtime, opts RunOptions) (*box, error) {
	t.Helper()
	r, w := outPipe(t)
	null, err := os.OpenFile("/dev/null", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	if opts.ID == "" {
		opts.ID = fmt.Sprintf("t%d", time.Now().UnixNano())
	}
	if opts.Launcher == nil {
		opts.Launcher = WithStdio([3]*os.File{null, w, w}, nil)
	}
	ctr, err := rt.Create(context.Background(), opts)
	if err != nil {
		return nil, err
	}
	t.Cleanup(func() {
		if ctr.pidfd != nil {
			unix.PidfdSendSignal(int(ctr.pidfd.Fd()), unix.SIGKILL, nil, 0)
		}
		unix.Wait4(ctr.Pid(), nil, 0, nil)
		if err := ctr.Delete(context.Background(), true); err != nil && !errors.Is(err, errs.NotFound) {
			t.Errorf("clean up: %v", err)
		}
	})
	return &box{ctr, r, w}, nil
}

// wait returns the output and the exit code.
func (b *box) wait(t testing.TB) (string, int) {
	t.Helper()
	b.w.Close()
	b.out.SetReadDeadline(time.Now().Add(time.Minute))
	out, err := io.ReadAll(b.out)
	if err != nil {
		t.Fatal(err, string(out))
	}
	var ws unix.WaitStatus
	if _, err := unix.Wait4(b.ctr.Pid(), &ws, 0, nil); err != nil {
		t.Fatal(err)
	}
	if ws.Signaled() {
		return string(out), 128 + int(ws.Signal())
	}
	return string(out), ws.ExitStatus()
}

// sh runs a shell script in a container with a docker-like spec, changed by edit.
func sh(t testing.TB, script string, edit func(*specs.Spec)) (string, int) {
	t.Helper()
	spec := dockerSpec(rootfs(t), "/bin/sh", "-c", script)
	if edit != nil {
		edit(spec)
	}
	b, err := create(t, newRuntime(Options{Root: t.TempDir()}), RunOptions{Spec: spec})
	if err != nil {
		t.Fatal(err)
	}
	return b.wait(t)
}

func TestRun(t *testing.T) {
	out, code := sh(t, `echo hello; hostname; echo $$; id -u; ls /proc/self/fd | wc -l; cat /proc/keys | wc -c; ls -A /sys/firmware; echo 1 2>&1 > /proc/sys/kernel/msgmax; ls /dev; exit 7`, nil)
	want := "hello\nbox\n1\n0\n4\n0\n/bin/sh: can't create /proc/sys/kernel/msgmax: Read-only file system\n"
	if !strings.HasPrefix(out, want) || code != 7 {
		t.Fatalf("%q %d", out, code)
	}
	for _, d := range []string{"null", "zero", "full", "random", "urandom", "tty", "fd", "stdin", "stdout", "stderr", "ptmx", "pts", "shm", "mqueue"} {
		if !strings.Contains(out, d+"\n") {
			t.Errorf("/dev/%s is missing in %s", d, out)
		}
	}
}

// overlay is a detached overlay mount over a busybox tree, as the engine makes it.
func overlay(t testing.TB, lower string) (next func() *os.File, dir string) {
	dir = t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
	n := 0
	return func() *os.File {
		n++
		up, work := fmt.Sprintf("%s/u%d", dir, n), fmt.Sprintf("%s/w%d", dir, n)
		os.Mkdir(up, 0o755)
		os.Mkdir(work, 0o755)
		f, err := mount.FS("overlay", "overlay", mount.Options{Data: []string{"lowerdir=" + lower, "upperdir=" + up, "workdir=" + work}})
		if err != nil {
			t.Fatal(err)
		}
		return f
	}, dir
}

func BenchmarkRunTrue(b *testing.B) {
	lower := rootfs(b)
	next, tmpfs := overlay(b, lower)
	rt := New(Options{Root: tmpfs + "/run"})
	null, _ := os.OpenFile("/dev/null", os.O_RDWR, 0)
	defer null.Close()
	launcher := WithStdio([3]*os.File{null, null, null}, nil)
	ctx := context.Background()
	i := 0
	var mounting, made, ended, gone time.Duration
	for b.Loop() {
		i++
		t0 := time.Now()
		root := next()
		t1 := time.Now()
		ctr, err := rt.Create(ctx, RunOptions{ID: fmt.Sprintf("b%d", i), Spec: dockerSpec(lower, "/bin/true"), Root: root, RootDetached: true, Launcher: launcher})
		if err != nil {
			b.Fatal(err)
		}
		root.Close()
		t2 := time.Now()
		unix.Wait4(ctr.Pid(), nil, 0, nil)
		t3 := time.Now()
		if err := ctr.Delete(ctx, false); err != nil {
			b.Fatal(err)
		}
		mounting, made, ended, gone = mounting+t1.Sub(t0), made+t2.Sub(t1), ended+t3.Sub(t2), gone+time.Since(t3)
	}
	n := float64(b.N)
	b.ReportMetric(float64(mounting.Microseconds())/n, "µs-mount")
	b.ReportMetric(float64(made.Microseconds())/n, "µs-create")
	b.ReportMetric(float64(ended.Microseconds())/n, "µs-exit")
	b.ReportMetric(float64(gone.Microseconds())/n, "µs-delete")
}
