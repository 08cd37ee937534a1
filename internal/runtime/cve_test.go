package runtime

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"corten.dev/corten/internal/linux/launch"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// One test for each class of published holes in container runtimes. CVE-2019-5736 (overwriting the runtime's binary) and CVE-2022-29162 (capabilities of exec) are tested with the
// command line.

// refused runs a spec that must not come to life and returns the error.
func refused(t *testing.T, spec *specs.Spec) error {
	t.Helper()
	b, err := create(t, newRuntime(Options{Root: t.TempDir()}), RunOptions{Spec: spec})
	if err == nil {
		out, _ := b.wait(t)
		t.Fatal("was created, and said: ", out)
	}
	return err
}

func empty(t *testing.T, dir string) {
	t.Helper()
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Fatalf("something was made outside of the root: %v %v", left, err)
	}
}

// CVE-2019-19921, CVE-2023-27561, CVE-2023-28642: an image whose /proc is a link had the runtime mount procfs elsewhere and write its settings to files that the image made.
func TestProcIsALink(t *testing.T) {
	for _, name := range []string{"proc", "sys"} {
		spec := dockerSpec(rootfs(t), "/bin/true")
		os.Mkdir(spec.Root.Path+"/evil", 0o755)
		os.Symlink("/evil", spec.Root.Path+"/"+name)
		if err := refused(t, spec); !strings.Contains(err.Error(), "mount "+map[string]string{"proc": "proc", "sys": "sysfs"}[name]+" on /"+name) {
			t.Fatal(err)
		}
	}
}

// CVE-2019-16884, CVE-2025-52881: a mount over /proc, or over a part of it, redirects what is written there.
func TestMountOverProc(t *testing.T) {
	src := t.TempDir()
	for _, dest := range []string{"/proc", "/proc/self", "/proc/sys/kernel", "/proc/self/attr", "/link/self"} {
		spec := dockerSpec(rootfs(t), "/bin/true")
		os.Symlink("proc", spec.Root.Path+"/link")
		spec.Mounts = append(spec.Mounts, specs.Mount{Destination: dest, Source: src, Options: []string{"bind"}})
		why := "it is inside /proc: operation not permitted"
		if dest == "/proc" {
			why = "it is not of type proc"
		}
		if err := refused(t, spec); !strings.Contains(err.Error(), "cannot be mounted because "+why) && !strings.Contains(err.Error(), dest+": "+why) {
			t.Error(dest, err)
		}
	}
	// What emulates single files of it (lxcfs) goes on working.
	os.WriteFile(src+"/f", []byte("fake\n"), 0o644)
	out, code := sh(t, "cat /proc/uptime", func(s *specs.Spec) {
		s.Mounts = append(s.Mounts, specs.Mount{Destination: "/proc/uptime", Source: src + "/f", Options: []string{"bind"}})
	})
	want(t, out, code, "fake\n")
}

// The settings of the process go to the kernel even when the container has no procfs, and its image a fake.
func TestFakeProcGetsNoSettings(t *testing.T) {
	adj := 77
	spec := dockerSpec(rootfs(t), "/bin/sleep", "100")
	spec.Mounts, spec.Linux.MaskedPaths, spec.Linux.ReadonlyPaths = spec.Mounts[1:], nil, nil
	fake := spec.Root.Path + "/proc/self/oom_score_adj"
	os.MkdirAll(filepath.Dir(fake), 0o755)
	os.WriteFile(fake, nil, 0o644)
	spec.Process.OOMScoreAdj = &adj
	b, err := create(t, newRuntime(Options{Root: t.TempDir()}), RunOptions{Spec: spec})
	if err != nil {
		t.Fatal(err)
	}
	if body, _ := os.ReadFile(fmt.Sprintf("/proc/%d/oom_score_adj", b.ctr.Pid())); string(body) != "77\n" {
		t.Fatalf("%q", body)
	}
	if body, err := os.ReadFile(fake); err != nil || len(body) > 0 {
		t.Errorf("the image's file got %q %v", body, err)
	}
}

// CVE-2021-30465, CVE-2024-45310: while one side swaps a directory of the root for a link to the outside, the runtime makes mount points through it. Nothing may be made, and
// nothing mounted, outside.
func TestSwappedDirectory(t *testing.T) {
	root := rootfs(t)
	outside := filepath.Join(filepath.Dir(root), "outside")
	os.Mkdir(outside, 0o755)
	os.Mkdir(root+"/d", 0o755)
	os.Symlink("../outside", root+"/l")
	var stop atomic.Bool
	done := make(chan struct{})
	go func() {
		defer close(done)
		for !stop.Load() {
			unix.Renameat2(unix.AT_FDCWD, root+"/d", unix.AT_FDCWD, root+"/l", unix.RENAME_EXCHANGE)
		}
	}()
	src := t.TempDir()
	rt := newRuntime(Options{Root: t.TempDir()})
	for i := range 40 {
		spec := dockerSpec(root, "/bin/true")
		spec.Process.Cwd = fmt.Sprintf("/d/cwd%d", i)
		spec.Mounts = append(spec.Mounts,
			specs.Mount{Destination: fmt.Sprintf("/d/one/two%d", i), Source: "tmpfs", Type: "tmpfs"},
			specs.Mount{Destination: fmt.Sprintf("/d/three%d", i), Source: src, Options: []string{"bind"}},
		)
		if b, err := create(t, rt, RunOptions{Spec: spec, ID: fmt.Sprint("r", i)}); err == nil {
			b.wait(t)
		}
		empty(t, outside)
	}
	stop.Store(true)
	<-done
	if body, _ := os.ReadFile("/proc/self/mountinfo"); strings.Contains(string(body), outside) {
		t.Fatal("something was mounted outside")
	}
}

// CVE-2026-41579: an image whose /dev is a link has device nodes made on the host.
func TestDevIsALink(t *testing.T) {
	root := rootfs(t)
	outside := filepath.Join(filepath.Dir(root), "outside")
	os.Mkdir(outside, 0o755)
	os.Symlink(outside, root+"/dev")
	spec := dockerSpec(root, "/bin/true")
	refused(t, spec)
	spec.Mounts = append(spec.Mounts[:1], spec.Mounts[3]) // without mounts on /dev
	refused(t, spec)
	empty(t, outside)
}

// CVE-2024-21626: a descriptor of the host that leaked into the first process, and a working directory of /proc/self/fd/N, gave the container the host's files.
func TestWorkingDirectoryIsADescriptor(t *testing.T) {
	host, err := os.Open("/")
	if err != nil {
		t.Fatal(err)
	}
	defer host.Close()
	unix.FcntlInt(host.Fd(), unix.F_SETFD, 0) // as careless as can be
	spec := dockerSpec(rootfs(t), "/bin/sleep", "100")
	b, err := create(t, newRuntime(Options{Root: t.TempDir()}), RunOptions{Spec: spec})
	if err != nil {
		t.Fatal(err)
	}
	for n := range 80 {
		for _, cwd := range []string{fmt.Sprintf("/proc/self/fd/%d", n), fmt.Sprintf("/proc/self/fd/%d/../..", n)} {
			if n%10 == 3 {
				s := dockerSpec(spec.Root.Path, "/bin/pwd")
				s.Process.Cwd = cwd
				refused(t, s)
			}
			pid, pidfd, err := b.ctr.Exec(context.Background(), Exec{Process: &specs.Process{Args: []string{"/bin/pwd"}, Cwd: cwd}, Launcher: LauncherFunc(direct)})
			if err == nil {
				pidfd.Close()
				unix.Wait4(pid, nil, 0, nil)
				t.Fatalf("exec in %s", cwd)
			}
		}
	}
}

// CVE-2025-31133: masks were made of the container's /dev/null, which the container could replace by a link to a file of procfs.
func TestMaskIsTheHostsNull(t *testing.T) {
	dev := t.TempDir()
	os.Symlink("/proc/sys/kernel/core_pattern", dev+"/null")
	out, code := sh(t, "stat -c %t:%T /proc/keys; wc -c < /proc/keys", func(s *specs.Spec) {
		s.Mounts = append([]specs.Mount{s.Mounts[0], s.Mounts[3]}, specs.Mount{Destination: "/dev", Source: dev, Options: []string{"bind"}})
	})
	want(t, out, code, "1:3\n0\n")
	// The same link in the image itself is refused.
	spec := dockerSpec(rootfs(t), "/bin/true")
	os.Mkdir(spec.Root.Path+"/dev", 0o755)
	os.Symlink("/proc/sys/kernel/core_pattern", spec.Root.Path+"/dev/null")
	spec.Mounts = append(spec.Mounts[:1], spec.Mounts[3])
	if err := refused(t, spec); !strings.Contains(err.Error(), "make device /dev/null") {
		t.Fatal(err)
	}
}

// What is masked can be filled by nobody: root in the container is root for the empty directory, too.
func TestMaskedDirectoriesAreReadOnly(t *testing.T) {
	out, code := sh(t, "ls -A /sys/firmware; touch /sys/firmware/x 2>&1 | sed 's/.*: //'; mkdir /sys/firmware/y 2>&1 | sed 's/.*: //'; ls -A /sys/firmware", nil)
	want(t, out, code, "Read-only file system\nRead-only file system\n")
}

// CVE-2025-52565: the terminal was mounted on /dev/console by name, and a link there led to a file of procfs.
func TestConsoleIsALink(t *testing.T) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	ours, theirs := os.NewFile(uintptr(pair[0]), "ours"), os.NewFile(uintptr(pair[1]), "theirs")
	defer ours.Close()
	defer theirs.Close()
	spec := dockerSpec(rootfs(t), "/bin/true")
	os.MkdirAll(spec.Root.Path+"/dev/pts", 0o755)
	os.Symlink("/proc/sys/kernel/core_pattern", spec.Root.Path+"/dev/console")
	spec.Mounts = []specs.Mount{spec.Mounts[0], spec.Mounts[2]}
	spec.Process.Terminal = true
	_, err = create(t, newRuntime(Options{Root: t.TempDir()}), RunOptions{Spec: spec, Launcher: WithStdio([3]*os.File{}, theirs)})
	if err == nil || !strings.Contains(err.Error(), "/dev/console") {
		t.Fatal(err)
	}
}

// CVE-2023-25809: a container without a network namespace gets the host's /sys; the cgroup tree below it was writable.
func TestHostSysIsReadOnly(t *testing.T) {
	out, code := sh(t, `for d in /sys/fs/cgroup /sys/fs/cgroup/memory /sys/fs/cgroup/unified; do test -d $d && mkdir $d/corten-test-$$ 2>&1 | sed 's/.*: //'; done; true`, func(s *specs.Spec) {
		s.Mounts = append(append(s.Mounts[:3:3], specs.Mount{Destination: "/sys", Source: "/sys", Type: "none", Options: []string{"rbind", "ro", "nosuid"}}), s.Mounts[5:]...)
	})
	if code != 0 || strings.ReplaceAll(out, "Read-only file system\n", "") != "" || out == "" {
		t.Fatal(out)
	}
}

// A container sees its own cgroups only, and read-only.
func TestCgroupsOfOthersAreHidden(t *testing.T) {
	out, code := sh(t, `ls -d /sys/fs/cgroup/*/corten-runtime-test /sys/fs/cgroup/corten-runtime-test 2>/dev/null; mkdir /sys/fs/cgroup/memory/x 2>&1 | sed 's/.*: //'; grep -c . /proc/self/cgroup | grep -q 0 || grep -v ':/$' /proc/self/cgroup; true`, nil)
	if _, err := os.Stat("/sys/fs/cgroup/memory"); err == nil {
		want(t, out, code, "Read-only file system\n")
	}
}

// CVE-2021-43784: what was too long for the message between runtime and child was cut and read as something else. Ours is refused.
func TestTooMuchIsRefused(t *testing.T) {
	spec := dockerSpec(rootfs(t), "/bin/true")
	spec.Process.Env = append(spec.Process.Env, "X="+strings.Repeat("x", launch.MaxSize))
	refused(t, spec)
	spec.Process.Env = []string{"A=b\x00PATH=/evil"}
	if err := refused(t, spec); !strings.Contains(err.Error(), "null byte") {
		t.Fatal(err)
	}
}

// CVE-2022-0811 (CRI-O): a value that smuggled in another setting.
func TestSysctlInjection(t *testing.T) {
	for _, key := range []string{"net.ipv4.ip_forward+kernel.core_pattern", "net/../kernel/core_pattern", "net.../kernel/core_pattern", "kernel.core_pattern"} {
		spec := dockerSpec(rootfs(t), "/bin/true")
		spec.Linux.Sysctl = map[string]string{key: "1"}
		refused(t, spec)
	}
}

// CVE-2016-9962: a process that entered the container to become its own could be traced, and its descriptors taken, by the container's root before it did.
func TestWaitingProcessIsProtected(t *testing.T) {
	b, err := create(t, newRuntime(Options{Root: t.TempDir()}), RunOptions{Spec: dockerSpec(rootfs(t), "/bin/true"), Gate: true})
	if err != nil {
		t.Fatal(err)
	}
	fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", b.ctr.Pid()))
	if err != nil || len(fds) > 5 { // 0, 1, 2, the sync socket, the gate
		t.Fatal(fds, err)
	}
	for _, fd := range fds {
		if l, _ := os.Readlink(fmt.Sprintf("/proc/%d/fd/%s", b.ctr.Pid(), fd.Name())); strings.HasPrefix(l, "/") && l != "/dev/null" {
			t.Errorf("descriptor %s is %s", fd.Name(), l)
		}
	}
	// Files of a process that may not be traced belong to root of the host, whoever the process is; with dumpable set they would be the process's own.
	for _, l := range []string{"root", "cwd"} {
		if got, err := os.Readlink(fmt.Sprintf("/proc/%d/%s", b.ctr.Pid(), l)); err != nil || got != "/" {
			t.Error(l, got, err)
		}
	}
}
