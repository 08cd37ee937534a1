package runtime

import (
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"

	"corten.dev/corten/internal/linux/caps"
	"corten.dev/corten/internal/linux/mount"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// What a container can do to its mount namespace, and what it finds when it digs: the same whichever way the namespace was made (this file runs both ways, see
// TestSuiteFromBareNamespace).

// privileged gives a container all that an engine gives with --privileged.
func privileged(s *specs.Spec) {
	all := caps.All()
	s.Process.Capabilities = &specs.LinuxCapabilities{Bounding: all, Effective: all, Permitted: all, Inheritable: all}
	s.Linux.Seccomp, s.Linux.MaskedPaths, s.Linux.ReadonlyPaths = nil, nil, nil
	for i := range s.Mounts {
		if s.Mounts[i].Type == "sysfs" || s.Mounts[i].Type == "cgroup" {
			s.Mounts[i].Options = []string{"nosuid", "noexec", "nodev"}
		}
	}
}

// What docker allows inside goes on to work: namespaces in namespaces, chroot, pivot_root, binds.
func TestMountsInside(t *testing.T) {
	for _, c := range []struct{ name, script, want string }{
		{"user and mount namespace", `unshare -Urm sh -c 'mount -t tmpfs t /tmp && touch /tmp/x && ls /tmp'`, "x\n"},
		{"procfs in namespaces", `unshare -Urmpf sh -c 'mount -t proc p /proc && echo $$'`, "1\n"},
		{"chroot", `mkdir /tmp/r && cp -r /bin /tmp/r && chroot /tmp/r /bin/sh -c 'echo in; ls /'`, "in\nbin\n"},
		{"no user namespace from a chroot", `mkdir /tmp/r && cp -r /bin /tmp/r && chroot /tmp/r /bin/unshare -Ur /bin/true 2>/dev/null || echo refused`, "refused\n"},
		{"bind", `mkdir /tmp/a /tmp/b && touch /tmp/a/x && mount --bind /tmp/a /tmp/b && ls /tmp/b && umount /tmp/b && ls /tmp/b`, "x\n"},
		{"pivot_root", `unshare -m sh -c 'mkdir /tmp/r && mount -t tmpfs r /tmp/r && cp -r /bin /tmp/r && mkdir /tmp/r/old && cd /tmp/r && pivot_root . old && cd / && /bin/umount -l /old && /bin/ls /'`, "bin\nold\n"},
		{"pivot_root in the first namespace", `mkdir /tmp/r && mount -t tmpfs r /tmp/r && cp -r /bin /tmp/r && mkdir /tmp/r/old && cd /tmp/r && pivot_root . old && exec /bin/chroot . /bin/sh -c 'umount -l /old; ls /'`, "bin\nold\n"},
		{"propagation", `mount --make-rshared / && mkdir /tmp/a /tmp/b && mount --bind /tmp/a /tmp/b && mkdir /tmp/a/m && mount -t tmpfs t /tmp/a/m && touch /tmp/a/m/x && ls /tmp/b/m`, "x\n"},
		{"remount", `mount -o remount,bind,ro / && touch /x 2>/dev/null || echo ro`, "ro\n"},
		{"own namespace again", `nsenter -t $$ -m /bin/sh -c 'ls /bin/busybox'`, "/bin/busybox\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			out, code := sh(t, c.script, privileged)
			want(t, out, code, c.want)
		})
	}
}

// The table of mounts has what the container has, and nothing that it stands on.
func TestMountTable(t *testing.T) {
	out, code := sh(t, `cut -d' ' -f5 /proc/self/mountinfo; echo; cut -d' ' -f5 /proc/1/mountinfo | wc -l`, func(s *specs.Spec) {
		s.Linux.MaskedPaths, s.Linux.ReadonlyPaths = nil, nil
	})
	if code != 0 || !strings.HasPrefix(out, "/\n/proc\n/dev\n/dev/pts\n/sys\n/sys/fs/cgroup\n") || strings.Count(out, "\n/\n") != 0 {
		t.Fatal(out, code)
	}
}

// Whoever takes the root away from under himself finds an empty directory, neither the host nor another container. (Elsewhere it is the kernel's own first root.)
func TestBelowTheRoot(t *testing.T) {
	needRoot(t)
	if os.Getenv(inBare) == "" {
		t.Skip("what is there is the host's kernel's")
	}
	out, code := play(t, digWord)
	want(t, out, code, "mounts: 1\nfound: []\nmake a file: read-only file system\n")
}

// An engine in a privileged container can make containers from a bare namespace of its own.
func TestBareInside(t *testing.T) {
	needRoot(t)
	out, code := play(t, bareWord)
	want(t, out, code, "mounts: 1\nmounts: 1\n")
}

// What the test program does when a container runs it.
const (
	digWord  = "dig-below-the-root"
	bareWord = "bare-inside"
	keysWord = "whose-keys"
)

var plays = map[string]func() error{digWord: dig, bareWord: bareInside, keysWord: sessionKeyring}

// sessionKeyring tells the name of the keyring that the process has for its session.
func sessionKeyring() error {
	text, err := unix.KeyctlString(unix.KEYCTL_DESCRIBE, unix.KEY_SPEC_SESSION_KEYRING)
	if err != nil {
		return err
	}
	fmt.Println(text[strings.LastIndex(text, ";")+1:])
	return nil
}

// A container that kept the session keyring of whoever started the engine could read the keys in it.
func TestSessionKeyring(t *testing.T) {
	needRoot(t)
	if _, err := unix.KeyctlGetKeyringID(unix.KEY_SPEC_SESSION_KEYRING, true); errors.Is(err, unix.ENOSYS) {
		t.Skip("this kernel has no keyrings (CONFIG_KEYS)")
	}
	out, code := play(t, keysWord)
	if code != 0 || !strings.HasPrefix(out, "_ses.t") { // its own: named after its ID
		t.Errorf("%d %q", code, out)
	}
}

// play runs one of them in a privileged container.
func play(t *testing.T, word string) (string, int) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if prog, err := elf.Open(self); err != nil {
		t.Fatal(err)
	} else {
		defer prog.Close()
		if slices.ContainsFunc(prog.Progs, func(p *elf.Prog) bool { return p.Type == elf.PT_INTERP }) {
			t.Skip("the test program needs a linker that the container has not: run it with CGO_ENABLED=0")
		}
	}
	return sh(t, "exec /play "+word, func(s *specs.Spec) {
		privileged(s)
		s.Mounts = append(s.Mounts, specs.Mount{Destination: "/play", Source: self, Type: "bind", Options: []string{"bind", "ro", "rprivate"}})
	})
}

// bareInside makes a bare namespace from what may itself have been made of one, and one more.
func bareInside() error {
	for range 2 {
		ns, err := mount.BareNamespace()
		if err != nil {
			return err
		}
		if err := lookInto(ns); err != nil {
			return err
		}
	}
	return nil
}

// lookInto tells how many mounts a namespace shows.
func lookInto(ns *os.File) error {
	proc, err := mount.FS("proc", "proc", mount.Options{})
	if err != nil {
		return err
	}
	defer proc.Close()
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return err
	}
	if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("setns: %w", err)
	}
	table, err := unix.Openat(int(proc.Fd()), "thread-self/mountinfo", unix.O_RDONLY, 0)
	if err != nil {
		return err
	}
	text, err := io.ReadAll(os.NewFile(uintptr(table), "mountinfo"))
	fmt.Println("mounts:", strings.Count(string(text), "\n"))
	return err
}

// dig is what the container does.
func dig() error {
	runtime.LockOSThread()
	ns, err := os.Open("/proc/thread-self/ns/mnt")
	if err != nil {
		return err
	}
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return err
	}
	if err := unix.Unmount("/", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("unmount /: %w", err)
	}
	if err := lookInto(ns); err != nil {
		return err
	}
	found, err := os.ReadDir("/")
	fmt.Println("found:", found)
	fmt.Println("make a file:", errors.Unwrap(os.WriteFile("/x", nil, 0o600)))
	return err
}

// A bind mount that is a slave sees what the host mounts later; a private one does not; the host sees nothing of either.
func TestPropagationOfBinds(t *testing.T) {
	src := sharedMount(t)
	spec := dockerSpec(rootfs(t), "/bin/sh", "-c", `mount -t tmpfs t /slave/inside; mount -t tmpfs t /private/inside; mount -t tmpfs t /plain/inside; echo ready; until grep -q ' /slave/later ' /proc/self/mountinfo; do sleep 0.02; done; grep -o ' /[a-z]*/later ' /proc/self/mountinfo; grep -c shared: /proc/self/mountinfo`)
	privileged(spec)
	spec.Mounts = append(spec.Mounts,
		specs.Mount{Destination: "/slave", Source: src, Type: "bind", Options: []string{"rbind", "rslave"}},
		specs.Mount{Destination: "/private", Source: src, Type: "bind", Options: []string{"rbind", "rprivate"}},
		specs.Mount{Destination: "/plain", Source: src, Type: "bind", Options: []string{"rbind", "private"}},
	)
	b, err := create(t, newRuntime(Options{Root: t.TempDir()}), RunOptions{Spec: spec})
	if err != nil {
		t.Fatal(err)
	}
	ready := make([]byte, 6)
	if _, err := b.out.Read(ready); err != nil || string(ready) != "ready\n" {
		t.Fatal(string(ready), err)
	}
	table, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil || strings.Contains(string(table), src+"/inside") {
		t.Error("the host sees a mount of the container", err)
	}
	if err := unix.Mount("tmpfs", src+"/later", "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	out, code := b.wait(t)
	if out != " /slave/later \n0\n" || code != 1 {
		t.Fatalf("%q %d", out, code)
	}
}

// A bind mount that is shared shows the host what the container mounts there.
func TestSharedBind(t *testing.T) {
	src := sharedMount(t)
	out, code := sh(t, `mount -t tmpfs t /shared/inside && mount -t tmpfs t /plain/later`, func(s *specs.Spec) {
		privileged(s)
		s.Linux.RootfsPropagation = "rshared"
		s.Mounts = append(s.Mounts,
			specs.Mount{Destination: "/shared", Source: src, Type: "bind", Options: []string{"rbind", "rshared"}},
			specs.Mount{Destination: "/plain", Source: src, Type: "bind", Options: []string{"rbind", "rprivate"}},
		)
	})
	want(t, out, code, "")
	table, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil || !strings.Contains(string(table), src+"/inside ") || strings.Contains(string(table), src+"/later ") {
		t.Errorf("the host sees %s %v", table, err)
	}
}

// sharedMount is a mount of the host that has peers, with two folders in it.
func sharedMount(t *testing.T) string {
	t.Helper()
	needRoot(t)
	src := t.TempDir()
	if err := unix.Mount("tmpfs", src, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount(src, unix.MNT_DETACH) })
	if err := unix.Mount("", src, "", unix.MS_SHARED, ""); err != nil {
		t.Fatal(err)
	}
	for _, d := range []string{"/later", "/inside"} {
		if err := os.Mkdir(src+d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return src
}

// A host that keeps mount namespaces as files (snapd does, below /run) can be given to a container whole: the kernel refuses to attach such files below a namespace younger than
// they are, so they stay out. (Linux 6.18 numbers namespaces processor by processor: there the kernel may take an older one for the younger, and attach the file.)
func TestBindOfKeptNamespaces(t *testing.T) {
	needRoot(t)
	src := t.TempDir()
	if err := unix.Mount("tmpfs", src, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount(src, unix.MNT_DETACH) })
	if err := unix.Mount("", src, "", unix.MS_PRIVATE, ""); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"kept.mnt", "file"} {
		if err := os.WriteFile(src+"/"+name, []byte("text\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	keepNamespace(t, src+"/kept.mnt")
	out, code := sh(t, `cat /run/file`, func(s *specs.Spec) {
		s.Mounts = append(s.Mounts, specs.Mount{Destination: "/run", Source: src, Type: "bind", Options: []string{"rbind", "ro", "rprivate"}})
	})
	if out != "text\n" || code != 0 {
		t.Fatal(out, code)
	}
}

// keepNamespace makes a mount namespace that a file keeps.
func keepNamespace(t *testing.T, at string) {
	t.Helper()
	f, err := mount.BareNamespace()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := unix.Mount(fmt.Sprintf("/proc/self/fd/%d", f.Fd()), at, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
}
