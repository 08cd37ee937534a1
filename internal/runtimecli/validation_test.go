package runtimecli

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	goruntime "runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// build compiles package pkg of the module in dir to out.
func build(t testing.TB, dir, out string, pkg ...string) {
	t.Helper()
	cmd := exec.Command("go", append([]string{"build", "-o", out}, pkg...)...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if text, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("go build %v: %v\n%s", pkg, err, text)
	}
}

// expectations reads validation/expected.txt.
func expectations(t *testing.T) map[string]string {
	t.Helper()
	f, err := os.Open("validation/expected.txt")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	want := map[string]string{}
	for s := bufio.NewScanner(f); s.Scan(); {
		if name, rest, ok := strings.Cut(s.Text(), " "); ok && name != "#" {
			verdict, _, _ := strings.Cut(strings.TrimSpace(rest), " ")
			want[name] = verdict
		}
	}
	return want
}

// The specification's own programs judge the command line. Which pass, and why the others cannot, is in validation/expected.txt; a program that starts to pass must be moved there too.
func TestSpecificationPrograms(t *testing.T) {
	if os.Getuid() != 0 || testing.Short() {
		t.Skip("needs root, and most of a minute")
	}
	const tools = "github.com/opencontainers/runtime-tools"
	dir := t.TempDir()
	progs := filepath.Join(dir, "programs")
	if err := os.Mkdir(progs, 0o755); err != nil {
		t.Fatal(err)
	}
	build(t, "validation", progs+"/", tools+"/validation/...")
	build(t, "validation", filepath.Join(dir, "runtimetest"), tools+"/cmd/runtimetest")
	build(t, ".", filepath.Join(dir, "runtime"), "./testdata/runtime")
	where := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", tools)
	where.Dir = "validation"
	module, err := where.Output()
	if err != nil {
		t.Fatal(err)
	}
	archive := "rootfs-" + goruntime.GOARCH + ".tar.gz"
	if err := os.Symlink(filepath.Join(strings.TrimSpace(string(module)), archive), filepath.Join(dir, archive)); err != nil {
		t.Fatal(err)
	}
	state := filepath.Join(dir, "state")
	wrapper := filepath.Join(dir, "wrapper")
	if err := os.WriteFile(wrapper, []byte("#!/bin/sh\nexec "+dir+"/runtime --root "+state+" \"$@\"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	tmp := filepath.Join(dir, "tmp")
	if err := os.Mkdir(tmp, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { sweep(wrapper, tmp) })
	want := expectations(t)
	entries, err := os.ReadDir(progs)
	if err != nil {
		t.Fatal(err)
	}
	var group sync.WaitGroup
	var cgroups sync.Mutex // these all use the same cgroup
	var mu sync.Mutex      // guards odd
	var odd []string
	right := func(name, got string) bool { return got == want[name] || want[name] == "either" }
	slots := make(chan struct{}, 8)
	for _, e := range entries {
		name := e.Name()
		group.Add(1)
		go func() {
			defer group.Done()
			if strings.HasPrefix(name, "linux_cgroups") || strings.HasPrefix(name, "delete") {
				cgroups.Lock()
				defer cgroups.Unlock()
			}
			slots <- struct{}{}
			defer func() { <-slots }()
			if got, _ := judge(dir, tmp, wrapper, filepath.Join(progs, name)); !right(name, got) {
				mu.Lock()
				odd = append(odd, name)
				mu.Unlock()
			}
		}()
	}
	group.Wait()
	// Some programs give the runtime so many seconds (kill: 10 s until `true` has ended, and 30 s for all of what is done to a `sleep 30`), which a machine with much else to do does not keep. Alone
	// they have no excuse.
	for _, name := range odd {
		if got, text := judge(dir, tmp, wrapper, filepath.Join(progs, name)); !right(name, got) {
			t.Errorf("%s: %s, expected %q\n%s", name, got, want[name], text)
		}
	}
}

// judge runs one program: it passes when it exits with 0 and no line of its protocol says "not ok".
func judge(dir, tmp, wrapper, prog string) (string, string) {
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, prog)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "RUNTIME="+wrapper, "TMPDIR="+tmp)
	cmd.WaitDelay = time.Second
	out, err := cmd.CombinedOutput()
	var bad []string
	for _, line := range strings.Split(string(out), "\n") {
		if strings.HasPrefix(strings.TrimSpace(line), "not ok") {
			bad = append(bad, line)
		}
	}
	if err != nil || len(bad) > 0 {
		return "fail", fmt.Sprint(err, "\n", strings.Join(bad, "\n"), "\n", string(out[max(0, len(out)-1500):]))
	}
	return "pass", ""
}

// sweep removes what the programs themselves leave behind.
func sweep(wrapper, tmp string) {
	out, _ := exec.Command(wrapper, "list", "-q").Output()
	for _, id := range strings.Fields(string(out)) {
		_ = exec.Command(wrapper, "delete", "--force", id).Run()
	}
	mounts, _ := os.ReadFile("/proc/self/mountinfo")
	for _, line := range strings.Split(string(mounts), "\n") {
		if f := strings.Fields(line); len(f) > 4 && strings.HasPrefix(f[4], tmp) {
			_ = unix.Unmount(f[4], unix.MNT_DETACH)
		}
	}
	for _, name := range []string{"cgrouptest", "testdir/cgrouptest", "testdir"} {
		dirs, _ := filepath.Glob("/sys/fs/cgroup/*/" + name)
		for _, d := range dirs {
			_ = os.Remove(d)
		}
	}
}
