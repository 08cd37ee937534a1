package steps_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/moby/buildkit/solver/pb"

	"corten.dev/corten/internal/build"
	"corten.dev/corten/internal/build/step"
	"corten.dev/corten/internal/errs"
)

// BuildKit removes the empty files and directories that it made for mount points after a step, by name; a step that put links in the way had it remove files of the host (CVE-2024-23652).
func TestMountPointsBehindLinks(t *testing.T) {
	h := newHost(t)
	victim := t.TempDir()
	must(t, os.MkdirAll(victim+"/b/c", 0o755))
	must(t, os.WriteFile(victim+"/file", nil, 0o600))
	tmpfs := func(dest string) *pb.Mount {
		return &pb.Mount{Dest: dest, Input: -1, Output: -1, MountType: pb.MountType_TMPFS}
	}
	secret := &pb.Mount{Dest: "/s/file", Input: -1, Output: -1, MountType: pb.MountType_SECRET, SecretOpt: &pb.SecretOpt{ID: "x", Mode: 0o400}}
	r := h.sh("mv /a /moved && ln -s "+victim+" /a; mv /s /gone && ln -s "+victim+" /s; mv /data /data2; ln -s "+victim+" /data; ls -l /", tmpfs("/a/b/c"), tmpfs("/data/b"), secret)
	r.session = &build.Session{Secrets: secrets{"x": "y"}}
	chain, out := h.do(r)
	for _, path := range []string{"/b/c", "/file"} {
		if _, err := os.Lstat(victim + path); err != nil {
			t.Errorf("the host's %s: %v\n%s", path, err, out)
		}
	}
	got := h.files(chain)
	for _, name := range []string{"a:0", "s:0"} {
		if !strings.Contains(got, name) {
			t.Errorf("no link %s in %s", name, got)
		}
	}
	for _, name := range []string{"moved/b", "gone/file"} { // followed to where they are, by descriptor
		if strings.Contains(got, name) {
			t.Errorf("%s stayed: %s", name, got)
		}
	}
}

// What a step put into its mount points' directories is not a stub, and stays; what it never touched leaves no trace, not even a new time of the directory around.
func TestMountPointsLeaveNothing(t *testing.T) {
	h := newHost(t)
	tmpfs := func(dest string) *pb.Mount {
		return &pb.Mount{Dest: dest, Input: -1, Output: -1, MountType: pb.MountType_TMPFS}
	}
	seen, _ := h.do(h.sh("stat -c %Y /data >/when; touch -d 2001-02-03 /data /"))
	r := h.sh("touch /x/y/keep", tmpfs("/x/y/z/deep"), tmpfs("/data/here"))
	r.in[0].Chain = seen
	chain, _ := h.do(r)
	got := h.files(chain)
	if !strings.Contains(got, "x/y/keep") || strings.Contains(got, "z") || strings.Contains(got, "here") {
		t.Errorf("the layer has %s", got)
	}
	r = h.sh("stat -c '%y %n' /data /")
	r.in[0].Chain = chain
	if _, out := h.do(r); strings.Count(out, "2001-02-03") != 1 || !strings.HasPrefix(out, "2001-02-03") {
		t.Errorf("times of directories: %s", out) // the root's own changed: x was made there by the step
	}
	r = h.sh("true", tmpfs("/x1/y"))
	r.exec.Meta.RemoveMountStubsRecursive = false
	if chain, _ = h.do(r); h.files(chain) != "x1/:0" {
		t.Errorf("not recursive: %s", h.files(chain))
	}
}

// A step that shares a cache mount swapped a directory for a link just when another step's mount of that directory was made, by name: the host's files appeared in the step (CVE-2024-23651).
func TestSourceOfAMountIsSwapped(t *testing.T) {
	h := newHost(t)
	victim := t.TempDir()
	must(t, os.MkdirAll(victim+"/sub", 0o755))
	must(t, os.WriteFile(victim+"/sub/file", []byte("the host's\n"), 0o644))
	cache := func(sel string) *pb.Mount {
		return &pb.Mount{Dest: "/c", Input: -1, Output: -1, MountType: pb.MountType_CACHE, Selector: sel, CacheOpt: &pb.CacheOpt{ID: "swap"}}
	}
	h.do(h.sh("mkdir -p /c/dir/sub; echo inside >/c/dir/sub/file; ln -s "+victim+" /c/link", cache("")))
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	swap := h.sh("cd /c; while true; do mv dir x; mv link dir; mv dir link; mv x dir; done", cache(""))
	swap.ctx = ctx
	swapped := make(chan error, 1)
	go func() {
		_, _, err := h.try(swap)
		swapped <- err
	}()
	inside := 0
	for range 60 {
		_, out, err := h.try(h.sh("cat /c/file", cache("/dir/sub")))
		switch {
		case strings.Contains(out, "host's"):
			t.Fatal("the host's file was in the step")
		case err == nil && out == "inside\n":
			inside++
		case err != nil && !strings.Contains(err.Error(), "not found"):
			t.Error(err, out)
		}
	}
	cancel()
	if err := <-swapped; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if inside == 0 {
		t.Error("no step ever got its mount")
	}
}

// Interactive containers of frontends were not asked for the entitlements that steps are: any frontend image could run with privileges (CVE-2024-23653).
func TestContainersNeedEntitlements(t *testing.T) {
	h := newHost(t)
	env := build.Env{}
	spec := step.ContainerSpec{Mounts: []*pb.Mount{{Dest: "/"}}, Inputs: []build.Output{{Chain: h.base}}}
	ctr, err := h.steps.NewContainer(t.Context(), env, spec)
	must(t, err)
	defer ctr.Release(t.Context())
	cmd := step.Command{Args: []string{"/bin/sleep", "60"}}
	_, err = ctr.Start(cmd, nil)
	must(t, err)
	for range 2 {
		cmd.Security = pb.SecurityMode_INSECURE
		if _, err := ctr.Start(cmd, nil); !errors.Is(err, errs.Forbidden) || err.Error() != "security.insecure is not allowed" {
			t.Error(err)
		}
	}
	spec.Network = pb.NetMode_HOST
	if _, err := h.steps.NewContainer(t.Context(), env, spec); !errors.Is(err, errs.Forbidden) || err.Error() != "network.host is not allowed" {
		t.Error(err)
	}
}

func TestMountsThatLeadOut(t *testing.T) {
	h := newHost(t)
	host, err := os.Hostname()
	must(t, err)
	tricks, _ := h.do(h.sh("ln -s /../../../../etc/hostname /up; ln -s /proc/1/root /magic; ln -s /etc /dir; mkdir /a; ln -s ../../../../../../../etc /a/up"))
	for _, sel := range []string{"/up", "/magic/etc/hostname", "/../../../etc/hostname", "../../etc/hostname", "/a/up/hostname", "/dir/hostname"} {
		r := h.sh("cat /m", &pb.Mount{Dest: "/m", Input: 1, Output: -1, Readonly: true, Selector: sel})
		r.in = []build.Output{{Chain: h.base}, {Chain: tricks}}
		if _, out, err := h.try(r); strings.Contains(out, host) || err == nil {
			t.Errorf("%s: %v %q", sel, err, out)
		}
	}
	for _, dest := range []string{"/proc", "/proc/sys", "/proc/self/fd", "/dir/../proc/self", "/../..", "/magic/x"} {
		r := h.sh("ls /proc/1 >/dev/null && echo fine", &pb.Mount{Dest: dest, Input: -1, Output: -1, MountType: pb.MountType_TMPFS})
		r.in = []build.Output{{Chain: tricks}}
		op, err := h.steps.Make(h.vertex(r))
		if err != nil {
			continue
		}
		if _, err := op.Run(t.Context(), r.env(&progress{}), r.in); err == nil {
			t.Errorf("a file system was mounted on %s", dest)
		}
	}
}

// counter counts output, and keeps none.
type counter struct {
	progress
	n      atomic.Int64
	enough func()
}

// much is enough output to see whether it is kept.
const much = 10 << 20

func (c *counter) Log(_ int, data []byte) {
	if n := c.n.Add(int64(len(data))); n >= much && n-int64(len(data)) < much {
		c.enough()
	}
}

func TestEndlessOutput(t *testing.T) {
	h := newHost(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	r := h.sh("yes")
	op, err := h.steps.Make(h.vertex(r))
	must(t, err)
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	var start time.Time
	c := &counter{enough: func() { start = time.Now(); cancel() }}
	_, err = op.Run(ctx, r.env(c), r.in)
	if !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if took := time.Since(start); took > 30*time.Second {
		t.Errorf("it ended %s after its context", took)
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	if c.n.Load() < much || after.HeapAlloc > before.HeapAlloc+8<<20 {
		t.Errorf("%d bytes of output, heap %d, then %d", c.n.Load(), before.HeapAlloc, after.HeapAlloc)
	}
}

// A fork bomb takes at most half of the host's process numbers, and all of it ends at once with the build.
func TestForkBomb(t *testing.T) {
	h := newHost(t)
	limit, err := os.ReadFile("/proc/sys/kernel/pid_max")
	must(t, err)
	most, err := strconv.Atoi(strings.TrimSpace(string(limit)))
	must(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	r := h.sh("cat /sys/fs/cgroup/pids/pids.max /sys/fs/cgroup/pids.max 2>/dev/null; i=0; while [ $i -lt 300 ]; do sh -c 'trap \"\" 1 2 15; while true; do sleep 100; done' & i=$((i+1)); done; echo ready; wait")
	r.ctx = ctx
	var p progress
	op, err := h.steps.Make(h.vertex(r))
	must(t, err)
	done := make(chan error, 1)
	go func() {
		_, err := op.Run(ctx, r.env(&p), r.in)
		done <- err
	}()
	for i := 0; !strings.Contains(p.String(), "ready") && i < 6000; i++ {
		time.Sleep(10 * time.Millisecond)
	}
	if want := strconv.Itoa(most/2) + "\n"; !strings.HasPrefix(p.String(), want) {
		t.Errorf("bound %q, want %q", p.String(), want)
	}
	start := time.Now()
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if took := time.Since(start); took > 30*time.Second {
		t.Errorf("it took %s to end", took)
	}
	if left, _ := filepath.Glob("/sys/fs/cgroup/pids" + testCgroups + "/step-*"); len(left) > 0 {
		t.Errorf("cgroups are left: %q", left)
	}
}
