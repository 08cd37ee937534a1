package runtimecli

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// The sockets of systemd's, if they are for this process, are the container's; --preserve-fds counts from behind them. They were not passed on.
func TestListenDescriptors(t *testing.T) {
	c := newCLI(t)
	c.config("sh", "-c", "echo $LISTEN_FDS $LISTEN_PID; cat <&3; cat <&4; ls /proc/self/fd")
	for set, want := range map[string]string{
		"LISTEN_FDS=1 LISTEN_PID=$$": "1 1\nthree\nfour\n0\n1\n2\n3\n4\n5\n", "LISTEN_FDS=1 LISTEN_PID=1": "\nthree\n0\n1\n2\n3\n4\n", "LISTEN_FDS=x LISTEN_PID=$$": "\nthree\n0\n1\n2\n3\n4\n",
	} {
		cmd := exec.Command("sh", "-c", "exec 3<three 4<four; export "+set+"; exec \"$@\"", "sh", "/proc/self/exe", "--root", c.root, "run", "--preserve-fds", "1", "l")
		exe, err := os.Executable()
		if err != nil {
			t.Fatal(err)
		}
		cmd.Args[4] = exe
		cmd.Env = append(os.Environ(), "CORTEN_RUNTIME_CLI=1")
		cmd.Dir = c.bundle
		for _, name := range []string{"three", "four"} {
			if err := os.WriteFile(filepath.Join(c.bundle, name), []byte(name+"\n"), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		if out, _ := cmd.Output(); string(out) != want {
			t.Errorf("%s: %q, want %q", set, out, want)
		}
	}
}

// Flags may follow the id, as with runc; they were taken for one argument too many. After -- and in a command they are arguments.
func TestFlagsAfterArguments(t *testing.T) {
	c := newCLI(t)
	c.ok("run", "f", "--detach", "--bundle", c.bundle)
	c.ok("update", "f", "--pids-limit", "50")
	if out := c.ok("exec", "f", "echo", "--user", "x"); out != "--user x\n" {
		t.Error(out)
	}
	if out := c.ok("ps", "f", "-o", "pid,comm"); !strings.Contains(out, "sleep") {
		t.Error(out)
	}
	if _, text, code := c.run("kill", "f", "-1"); code == 0 || !strings.Contains(text, "signal -1 is unknown") {
		t.Error(text, code)
	}
	if _, text, code := c.run("kill", "--", "f", "--all"); code == 0 || !strings.Contains(text, "signal --all is unknown") {
		t.Error(text, code)
	}
	c.ok("kill", "f", "KILL", "--all")
	c.wait("f", "stopped")
	c.ok("delete", "f", "-f")
}

// An exec that ignores that the container is paused waits for it to go on.
func TestExecIntoPaused(t *testing.T) {
	c := newCLI(t)
	c.ok("run", "-d", "p")
	c.ok("pause", "p")
	if _, text, code := c.run("exec", "p", "true"); code == 0 || !strings.Contains(text, "paused") {
		t.Fatal(text, code)
	}
	cmd := c.cmd("exec", "--ignore-paused", "p", "sh", "-c", "exit 42")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	c.ok("resume", "p")
	if err := cmd.Wait(); cmd.ProcessState.ExitCode() != 42 {
		t.Fatal(err)
	}
}

// An exec may join cgroups below the container's, in all hierarchies or in some; never others.
func TestExecIntoCgroup(t *testing.T) {
	c := newCLI(t)
	spec := c.config("sleep", "1000")
	spec.Linux.Namespaces = slices.DeleteFunc(spec.Linux.Namespaces, func(n specs.LinuxNamespace) bool { return n.Type == specs.CgroupNamespace })
	c.write(spec) // and /proc/self/cgroup says all
	c.ok("run", "-d", "g")
	dirs, _ := filepath.Glob("/sys/fs/cgroup/*" + spec.Linux.CgroupsPath)
	if len(dirs) == 0 {
		dirs = []string{"/sys/fs/cgroup" + spec.Linux.CgroupsPath}
	}
	if _, text, code := c.run("exec", "--cgroup", "below", "g", "true"); code == 0 || !strings.Contains(text, "below: no such file") {
		t.Error(text, code)
	}
	for _, dir := range dirs {
		if err := os.Mkdir(dir+"/below", 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, path := range []string{"below", "/../../below/"} {
		for _, line := range strings.Split(strings.TrimSpace(c.ok("exec", "--cgroup", path, "g", "cat", "/proc/self/cgroup")), "\n") {
			if !strings.HasSuffix(line, "/below") && strings.Contains(line, "corten-runtimecli-test") {
				t.Error(path, line)
			}
		}
	}
	if _, err := os.Stat("/sys/fs/cgroup/pids" + spec.Linux.CgroupsPath); err == nil {
		out := c.ok("exec", "--cgroup", "pids:below", "g", "cat", "/proc/self/cgroup")
		if strings.Count(out, "/below\n") != 1 || !strings.Contains(out, "pids:"+spec.Linux.CgroupsPath+"/below\n") {
			t.Error(out)
		}
	}
	if _, text, code := c.run("exec", "--cgroup", "nope:below", "g", "true"); code == 0 || !strings.Contains(text, "no v1 hierarchy of nope") {
		t.Error(text, code)
	}
}

// --pids-limit 0 is no limit, as its help says; it was a limit of no process at all. In a file of limits it is that, as the specification says.
func TestNoPidsLimit(t *testing.T) {
	c := newCLI(t)
	c.config("sleep", "1000")
	c.ok("run", "-d", "n")
	limit := func() string {
		var e struct{ Data statsJSON }
		if err := json.Unmarshal([]byte(c.ok("events", "--stats", "n")), &e); err != nil {
			t.Fatal(err)
		}
		return strconv.FormatUint(e.Data.Pids.Limit, 10)
	}
	without := limit()
	c.ok("update", "--pids-limit", "50", "n")
	if got := limit(); got != "50" {
		t.Error(got)
	}
	c.ok("update", "--pids-limit", "0", "n")
	if got := limit(); got != without {
		t.Error(got, without)
	}
	if out, text, code := c.run("exec", "n", "true"); code != 0 {
		t.Error(out, text)
	}
}
