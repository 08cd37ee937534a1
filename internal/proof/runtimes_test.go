package proof

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"corten.dev/corten/internal/enginetest"
)

// runtimesHere are the OCI runtimes that containers of the test can name: our own by its command line, which is always there, and those that are installed.
func runtimesHere(t *testing.T, bin string) map[string]any {
	t.Helper()
	all := map[string]any{"cmdline": map[string]any{"path": filepath.Join(bin, "cortend"), "runtimeArgs": []string{"runtime"}}}
	if _, err := exec.LookPath("runc"); err == nil {
		all["runc"] = map[string]any{"path": "runc"}
	}
	if path, err := exec.LookPath("crun"); err == nil {
		crun := map[string]any{"path": path}
		if _, err := os.Stat("/sys/fs/cgroup/unified"); err == nil {
			// Old ones refuse hosts with both versions of control groups, used or not: they see none here.
			wrap := filepath.Join(t.TempDir(), "crun")
			text := "#!/bin/sh\nexec unshare -m --propagation slave sh -c 'mount -t tmpfs none /sys/fs/cgroup && exec " + path + " \"$@\"' crun \"$@\"\n"
			if err := os.WriteFile(wrap, []byte(text), 0o755); err != nil {
				t.Fatal(err)
			}
			crun = map[string]any{"path": wrap, "runtimeArgs": []string{"--cgroup-manager=disabled"}}
		}
		all["crun"] = crun
	}
	return all
}

// A container that names another OCI runtime is run by that one, and is as any other for its user: output, input, terminal, exit, sessions, signals, limits, an engine that is killed.
func TestOtherRuntimes(t *testing.T) {
	all := runtimesHere(t, enginetest.Bin(t))
	conf, err := json.Marshal(map[string]any{"runtimes": all})
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "daemon.json")
	writeFile(t, file, string(conf))
	e := enginetest.Start(t, "--config-file", file)
	for _, name := range []string{"cmdline", "runc", "crun"} {
		t.Run(name, func(t *testing.T) {
			if all[name] == nil {
				t.Skip(name + " is not installed")
			}
			byRuntime(t, e, name, name != "crun" || !strings.Contains(string(conf), "--cgroup-manager=disabled"))
		})
	}
	if out, err := e.Try("create", "--runtime", "nosuch", enginetest.Busybox); err == nil || !strings.Contains(err.Error(), "unknown or invalid runtime name: nosuch") {
		t.Errorf("%s, %v", out, err)
	}
	if left, err := os.ReadDir(filepath.Join(e.Dir, "e", "runtimes")); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}

func byRuntime(t *testing.T, e *enginetest.Engine, name string, limits bool) {
	run := func(args ...string) string {
		return e.Corten(append([]string{"run", "--rm", "--runtime", name, enginetest.Busybox}, args...)...)
	}
	if got := run("echo", "hello"); got != "hello" {
		t.Errorf("output %q", got)
	}
	for want, args := range map[string][]string{"7": {"sh", "-c", "exit 7"}, "127": {"nosuch"}, "143": {"sh", "-c", "kill -TERM $$"}} {
		cmd := e.Client(append([]string{"run", "--rm", "--init", "--runtime", name, enginetest.Busybox}, args...)...)
		if want != "143" { // the first process of a namespace does not hear signals that it does not handle
			cmd = e.Client(append([]string{"run", "--rm", "--runtime", name, enginetest.Busybox}, args...)...)
		}
		out, _ := cmd.CombinedOutput()
		if got := cmd.ProcessState.String(); got != "exit status "+want {
			t.Errorf("%v: %s, want %s: %s", args, got, want, out)
		}
	}
	ctr := "by-" + name
	e.Corten("run", "-d", "--name", ctr, "--runtime", name, "-m", "64m", "--tmpfs", "/scratch", "--mount", "type=image,source="+enginetest.Busybox+",target=/other", "-i",
		enginetest.Busybox, "sh", "-c", "trap 'exit 3' TERM; read word; echo got $word; while :; do sleep 0.1; done")
	id := e.Corten("inspect", "-f", "{{.Id}}", ctr)
	// The runtime itself knows it, and its process is the monitor's.
	if _, err := os.Stat(filepath.Join(e.Dir, "e", "runtimes", id, "state", id)); err != nil {
		t.Error(err)
	}
	pid := e.Corten("inspect", "-f", "{{.State.Pid}}", ctr)
	if parent := parentName(t, pid); parent != "corten-monitor" {
		t.Errorf("the process is a child of %s", parent)
	}
	if got := e.Corten("exec", ctr, "ls", "/other/bin/busybox"); got != "/other/bin/busybox" {
		t.Errorf("mount of an image: %q", got)
	}
	if mounts, err := os.ReadFile("/proc/self/mountinfo"); err != nil || strings.Contains(string(mounts), id) {
		t.Errorf("its mounts are the host's: %v", err)
	}
	sessions(t, e, ctr)
	in := e.Client("attach", ctr)
	in.Stdin = strings.NewReader("word\n")
	if err := in.Start(); err != nil {
		t.Fatal(err)
	}
	defer in.Process.Kill() //nolint:errcheck // it has ended, unless the test failed
	wait(t, "what was typed", func() bool { return e.Corten("logs", ctr) == "got word" })
	if limits {
		e.Corten("update", "-m", "80m", "--memory-swap", "160m", ctr)
		viewOf(t, e, ctr).wants("memory.limit_in_bytes", "83886080", "memory.max", "83886080")
		e.Corten("pause", ctr)
		if got := e.Corten("inspect", "-f", "{{.State.Status}}", ctr); got != "paused" {
			t.Errorf("paused: %s", got)
		}
		e.Corten("unpause", ctr)
		if got := e.Corten("stats", "--no-stream", "--format", "{{.MemUsage}}", ctr); !strings.HasSuffix(got, "/ 80MiB") {
			t.Errorf("stats: %s", got)
		}
		if got := e.Corten("top", ctr, "-o", "comm"); !strings.Contains(got, "sh") {
			t.Errorf("top: %s", got)
		}
	}
	e.Kill9()
	e.Up()
	if got := e.Corten("exec", ctr, "echo", "again"); got != "again" {
		t.Errorf("after a restart of the engine: %q", got)
	}
	e.Corten("stop", "-t", "30", ctr)
	if err := in.Wait(); in.ProcessState.ExitCode() < 0 { // it was attached all the time
		t.Error(err)
	}
	if got := e.Corten("inspect", "-f", "{{.State.ExitCode}} {{.HostConfig.Runtime}}", ctr); got != "3 "+name {
		t.Errorf("stopped: %s", got)
	}
	e.Corten("start", ctr)
	e.Corten("rm", "-f", ctr)
}

// sessions are other processes in the container, also some that are over at once.
func sessions(t *testing.T, e *enginetest.Engine, ctr string) {
	for range 3 {
		if got := e.Corten("exec", ctr, "echo", "quick"); got != "quick" {
			t.Errorf("session: %q", got)
		}
	}
	for want, script := range map[string]string{"exit status 9": "exit 9", "exit status 127": "exec nosuch"} {
		cmd := e.Client("exec", ctr, "sh", "-c", script)
		out, _ := cmd.CombinedOutput()
		if got := cmd.ProcessState.String(); got != want {
			t.Errorf("%s: %s, want %s: %s", script, got, want, out)
		}
	}
	if out, err := e.Try("exec", ctr, "nosuch"); err == nil || !strings.Contains(out, "executable file not found") {
		t.Errorf("%s, %v", out, err)
	}
	cmd := e.Client("exec", "-i", ctr, "cat")
	cmd.Stdin = strings.NewReader("through")
	if out, err := cmd.CombinedOutput(); err != nil || string(out) != "through" {
		t.Errorf("input of a session: %q, %v", out, err)
	}
	if got := e.Corten("exec", "-t", ctr, "tty"); strings.TrimSpace(got) != "/dev/pts/0" {
		t.Errorf("terminal of a session: %q", got)
	}
}

func parentName(t *testing.T, pid string) string {
	t.Helper()
	status, err := os.ReadFile("/proc/" + pid + "/status")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(status)) {
		if parent, ok := strings.CutPrefix(line, "PPid:"); ok {
			name, err := os.ReadFile("/proc/" + strings.TrimSpace(parent) + "/comm")
			if err != nil {
				t.Fatal(err)
			}
			return strings.TrimSpace(string(name))
		}
	}
	return ""
}
