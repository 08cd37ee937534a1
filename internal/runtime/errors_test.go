package runtime

import (
	"errors"
	"fmt"
	"math"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"corten.dev/corten/internal/errs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

func TestErrorsLeaveNothing(t *testing.T) {
	root := rootfs(t)
	dir := t.TempDir()
	rt := newRuntime(Options{Root: dir})
	os.WriteFile(root+"/plain", []byte("x"), 0o644)
	os.WriteFile(root+"/text", []byte("garbage"), 0o755)
	for name, c := range map[string]struct {
		edit func(*specs.Spec)
		kind error
		text string
	}{
		"missing":   {func(s *specs.Spec) { s.Process.Args = []string{"nope"} }, errs.NoCommand, `exec: "nope": executable file not found in $PATH`},
		"plain":     {func(s *specs.Spec) { s.Process.Args = []string{"/plain"} }, errs.NotExecutable, `exec: "/plain": permission denied`},
		"text":      {func(s *specs.Spec) { s.Process.Args = []string{"/text"} }, errs.NotExecutable, `exec format error`},
		"directory": {func(s *specs.Spec) { s.Process.Args = []string{"/etc"} }, errs.NotExecutable, `permission denied`},
		"mount":     {func(s *specs.Spec) { s.Mounts = append(s.Mounts, specs.Mount{Destination: "/x", Type: "nofs"}) }, nil, "mount nofs on /x: no such device"},
		"bind": {func(s *specs.Spec) {
			s.Mounts = append(s.Mounts, specs.Mount{Destination: "/x", Source: "/nowhere", Options: []string{"bind"}})
		}, os.ErrNotExist, "/nowhere"},
		// Whoever controls what stands on /proc controls what is written for the container's security.
		"bind on proc": {func(s *specs.Spec) {
			s.Mounts = append(s.Mounts[:0:0], specs.Mount{Destination: "/proc/.", Source: "/tmp", Options: []string{"bind"}})
		}, errs.Invalid, "mount /tmp on /proc/.: it cannot be mounted because it is not of type proc"},
		"tmpfs on proc": {func(s *specs.Spec) {
			s.Mounts = append(s.Mounts[:0:0], specs.Mount{Destination: "/proc", Type: "tmpfs", Source: "tmpfs"})
		}, errs.Invalid, "mount tmpfs on /proc: it cannot be mounted because it is not of type proc"},
		"in proc": {func(s *specs.Spec) {
			s.Mounts = append(s.Mounts, specs.Mount{Destination: "/proc/sys", Source: "/tmp", Options: []string{"bind"}})
		}, nil, "mount /tmp on /proc/sys: it is inside /proc: operation not permitted"},
		"option":     {func(s *specs.Spec) { s.Mounts[1].Options = append(s.Mounts[1].Options, "wrong=1") }, nil, "mount tmpfs on /dev: option wrong=1: invalid argument"},
		"sysctl":     {func(s *specs.Spec) { s.Linux.Sysctl = map[string]string{"kernel.core_pattern": "x"} }, errs.Invalid, "not in a separate kernel namespace"},
		"rlimit":     {func(s *specs.Spec) { s.Process.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_X"}} }, errs.Invalid, "RLIMIT_X"},
		"capability": {func(s *specs.Spec) { s.Process.Capabilities.Bounding = []string{"what"} }, errs.Invalid, "what"},
		"namespace":  {func(s *specs.Spec) { s.Linux.Namespaces[0].Path = "/proc/self/ns/net" }, errs.Invalid, "is a net namespace, not mnt"},
		"fake":       {func(s *specs.Spec) { s.Linux.Namespaces[1].Path = "/etc/passwd" }, errs.Invalid, "is not a namespace"},
		// It was the host that got the name: this one is safe to have.
		"hostname": {func(s *specs.Spec) {
			s.Linux.Namespaces = slices.DeleteFunc(s.Linux.Namespaces, func(n specs.LinuxNamespace) bool { return n.Type == specs.UTSNamespace })
			s.Hostname, _ = os.Hostname()
		}, errs.Invalid, "the host's uts namespace"},
		"hostname of the host by path": {func(s *specs.Spec) {
			for i := range s.Linux.Namespaces {
				if s.Linux.Namespaces[i].Type == specs.UTSNamespace {
					s.Linux.Namespaces[i].Path = "/proc/self/ns/uts"
				}
			}
			s.Hostname, _ = os.Hostname()
		}, errs.Invalid, "the host's uts namespace"},
		"maps": {func(s *specs.Spec) {
			s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: "user"})
		}, errs.Invalid, "mappings"},
		"apparmor": {func(s *specs.Spec) { s.Process.ApparmorProfile = "x" }, errs.Unavailable, "AppArmor"},
		// setresuid takes it for "leave it": the program ran as root.
		"no user":  {func(s *specs.Spec) { s.Process.User.UID = math.MaxUint32 }, errs.Invalid, "process.user: id 4294967295"},
		"no group": {func(s *specs.Spec) { s.Process.User.AdditionalGids = []uint32{math.MaxUint32} }, errs.Invalid, "process.user: id 4294967295"},
		// They were ignored.
		"mapped tmpfs": {func(s *specs.Spec) {
			ids := []specs.LinuxIDMapping{{HostID: 1000, Size: 1}}
			s.Mounts = append(s.Mounts, specs.Mount{Destination: "/x", Type: "tmpfs", UIDMappings: ids, GIDMappings: ids})
		}, errs.NotImplemented, "mount /x: id mappings on a new tmpfs"},
		"mask of the root": {func(s *specs.Spec) { s.Linux.MaskedPaths = []string{"/proc/.."} }, errs.Invalid, "maskedPaths: the root"},
		"offsets":          {func(s *specs.Spec) { s.Linux.TimeOffsets = map[string]specs.LinuxTimeOffset{"boottime": {Secs: 5}} }, errs.Invalid, "timeOffsets"},
		"relativeCwd":      {func(s *specs.Spec) { s.Process.Cwd = "x" }, errs.Invalid, "not absolute"},
	} {
		spec := dockerSpec(root, "/bin/true")
		c.edit(spec)
		_, err := create(t, rt, RunOptions{ID: "x", Spec: spec})
		if err == nil || !strings.Contains(err.Error(), c.text) || c.kind != nil && !errors.Is(err, c.kind) {
			t.Errorf("%s: %v", name, err)
		}
		if left, _ := os.ReadDir(dir); len(left) > 0 {
			t.Fatalf("%s: left %v", name, left)
		}
		if _, err := os.Stat("/sys/fs/cgroup/memory" + spec.Linux.CgroupsPath); err == nil {
			t.Errorf("%s: left its cgroup", name)
		}
	}
}

// An engine that was killed between making a container's folder and giving it its name left it there for ever: the next engine looks at once, when it is not a minute old yet.
func TestAbandonedFolder(t *testing.T) {
	root := t.TempDir()
	rt := New(Options{Root: root})
	dead := exec.Command("/proc/self/exe", "-test.run", "^$")
	if err := dead.Run(); err != nil {
		t.Fatal(err)
	}
	gone, busy := fmt.Sprintf("%s/:new-%d-17", root, dead.Process.Pid), fmt.Sprintf("%s/:new-%d-18", root, os.Getpid())
	for _, dir := range []string{gone, busy} {
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if ids, err := rt.List(); err != nil || len(ids) > 0 {
		t.Fatalf("list: %v %v", ids, err)
	}
	if _, err := os.Stat(gone); !os.IsNotExist(err) {
		t.Errorf("the folder of a killed process: %v", err)
	}
	if _, err := os.Stat(busy); err != nil {
		t.Errorf("the folder of a living process: %v", err)
	}
}

// A limit that not even the set-up fits in is named; the error said no more than that the process had died.
func TestMemoryLimitIsTooLow(t *testing.T) {
	if _, err := os.Stat("/sys/fs/cgroup/memory"); err != nil {
		t.Skip("needs the memory controller on v1: elsewhere it may be the clone that fails")
	}
	spec := dockerSpec(rootfs(t), "/bin/true")
	limit := int64(4096)
	spec.Linux.Resources = &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: &limit}}
	_, err := create(t, newRuntime(Options{Root: t.TempDir()}), RunOptions{Spec: spec, Gate: true})
	if err == nil || !strings.Contains(err.Error(), "memory limit is too low") {
		t.Fatal(err)
	}
}
