package runtime

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// TestHooksAfterAFailure: the specification's lifecycle goes on, after a hook that fails, with the end of the container and the poststop hooks, all of them. They were not run, so
// that what earlier hooks had made outside (a network, a mount) stayed; a poststop hook that failed kept the next from running; and a container whose poststart hook failed went on.
func TestHooksAfterAFailure(t *testing.T) {
	dir := t.TempDir()
	cgroups := ""
	says := func(name string, code string) specs.Hook {
		return specs.Hook{Path: "/bin/sh", Args: []string{"sh", "-c", "test -e " + cgroups + " && alive=-alive; echo " + name + "$alive >> " + dir + "/log; exit " + code}}
	}
	for _, kind := range []string{"prestart", "createRuntime", "createContainer", "poststart", "gated poststart"} {
		spec := dockerSpec(rootfs(t), "/bin/sleep", "600")
		cgroups = "/sys/fs/cgroup/memory" + spec.Linux.CgroupsPath
		h := &specs.Hooks{Poststop: []specs.Hook{says("first", "1"), says("second", "0")}}
		spec.Hooks = h
		bad := []specs.Hook{says(strings.ReplaceAll(kind, " ", "-"), "3")}
		switch kind {
		case "prestart":
			//lint:ignore SA1019 dockerd still uses it
			h.Prestart = bad
		case "createRuntime":
			h.CreateRuntime = bad
		case "createContainer":
			h.CreateContainer = bad
		default:
			h.Poststart = bad
		}
		os.Remove(dir + "/log")
		rt := newRuntime(Options{Root: t.TempDir()})
		b, err := create(t, rt, RunOptions{Spec: spec, Gate: kind == "gated poststart"})
		if kind == "gated poststart" {
			if err != nil {
				t.Fatal(err)
			}
			err = b.ctr.Start(context.Background())
			b.wait(t) // it was stopped: it would sleep for ten minutes
			if derr := b.ctr.Delete(context.Background(), false); derr != nil {
				t.Error(kind, derr)
			}
		}
		if err == nil || !strings.Contains(err.Error(), "exit status 3") {
			t.Errorf("%s: %v", kind, err)
		}
		body, _ := os.ReadFile(dir + "/log")
		got := strings.ReplaceAll(string(body), "-alive", "")
		if want := strings.ReplaceAll(kind, " ", "-") + "\nfirst\nsecond\n"; got != want || strings.Contains(string(body), "first-alive") {
			t.Errorf("%s: hooks said %q, want %q", kind, body, want)
		}
	}
}

// TestPidsOfHooks: a hook in the container is told the number of the process there, one outside the host's; it was the host's in both. When the container is no more, its number may be another's.
func TestPidsOfHooks(t *testing.T) {
	dir := t.TempDir()
	root := rootfs(t)
	hook := func(name string) []specs.Hook {
		return []specs.Hook{{Path: "/bin/sh", Args: []string{"sh", "-c", "cat > " + name}}}
	}
	spec := dockerSpec(root, "/bin/cat", "/started")
	spec.Hooks = &specs.Hooks{
		CreateRuntime: hook(dir + "/outside"), CreateContainer: hook(dir + "/inside"),
		StartContainer: []specs.Hook{{Path: "/bin/sh", Args: []string{"sh", "-c", "cat > /started"}}},
		Poststop:       hook(dir + "/stopped"),
	}
	b, err := create(t, newRuntime(Options{Root: t.TempDir()}), RunOptions{Spec: spec, Gate: true})
	if err != nil {
		t.Fatal(err)
	}
	if err := b.ctr.Start(context.Background()); err != nil {
		t.Fatal(err)
	}
	pid := b.ctr.Pid()
	started, _ := b.wait(t)
	if err := b.ctr.Delete(context.Background(), false); err != nil {
		t.Fatal(err)
	}
	stopped, _ := os.ReadFile(filepath.Join(dir, "stopped"))
	outside, _ := os.ReadFile(filepath.Join(dir, "outside"))
	inside, _ := os.ReadFile(filepath.Join(dir, "inside"))
	for _, c := range []struct {
		name, body string
		pid        int
	}{{"createRuntime", string(outside), pid}, {"createContainer", string(inside), 1}, {"startContainer", started, 1}, {"poststop", string(stopped), 0}} {
		var st specs.State
		if err := json.Unmarshal([]byte(c.body), &st); err != nil || st.Pid != c.pid {
			t.Errorf("%s: %q has pid %d, want %d (%v)", c.name, c.body, st.Pid, c.pid, err)
		}
	}
}
