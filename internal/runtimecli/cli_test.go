package runtimecli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"corten.dev/corten/internal/linux/cgroup"
	"corten.dev/corten/internal/runtime"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// The test binary is the command line itself when asked to be.
func TestMain(m *testing.M) {
	if os.Getenv("CORTEN_RUNTIME_CLI") == "1" {
		os.Exit(Main(context.Background(), os.Args[1:], IO{In: os.Stdin, Out: os.Stdout, Err: os.Stderr, Version: "test"}))
	}
	code := m.Run()
	for _, parent := range []string{"/corten-runtimecli-test", cgroup.DefaultParent} { // the second of bundles that name no path; it stays where others have containers
		if err := cgroup.RemoveParent(nil, parent); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = max(code, 1)
		}
	}
	os.Exit(code)
}

// cli runs command lines with a root of their own.
type cli struct {
	t      *testing.T
	root   string
	bundle string
}

func newCLI(t *testing.T) *cli {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	body, err := os.ReadFile("/bin/busybox")
	if err != nil {
		t.Skip("needs busybox-static")
	}
	c := &cli{t, t.TempDir(), t.TempDir()}
	if err := os.MkdirAll(c.bundle+"/rootfs/bin", 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(c.bundle+"/rootfs/bin/busybox", body, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"sh", "cat", "sleep", "id", "echo", "ls", "true", "tty", "kill", "ps"} {
		if err := os.Symlink("busybox", c.bundle+"/rootfs/bin/"+name); err != nil {
			t.Fatal(err)
		}
	}
	c.config("sleep", "1000")
	t.Cleanup(func() {
		out, _, _ := c.run("list", "-q")
		for _, id := range strings.Fields(out) {
			if text, _, code := c.run("delete", "--force", id); code != 0 {
				t.Error("clean up:", text)
			}
		}
	})
	return c
}

// config writes a config.json without a terminal.
func (c *cli) config(args ...string) *specs.Spec {
	s := runtime.ExampleSpec()
	s.Process.Terminal = false
	s.Process.Args = args
	s.Linux.CgroupsPath = fmt.Sprintf("/corten-runtimecli-test/%d", time.Now().UnixNano())
	c.write(s)
	return s
}

func (c *cli) write(s *specs.Spec) {
	body, _ := json.Marshal(s)
	if err := os.WriteFile(c.bundle+"/config.json", body, 0o644); err != nil {
		c.t.Fatal(err)
	}
}

func (c *cli) cmd(args ...string) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe", append([]string{"--root", c.root}, args...)...)
	cmd.Env = append(os.Environ(), "CORTEN_RUNTIME_CLI=1")
	cmd.Dir = c.bundle
	return cmd
}

func (c *cli) run(args ...string) (out, errText string, code int) {
	c.t.Helper()
	cmd := c.cmd(args...)
	// Files, not pipes: the container keeps them, and must not keep us waiting.
	o, _ := os.CreateTemp(c.t.TempDir(), "out")
	e, _ := os.CreateTemp(c.t.TempDir(), "err")
	defer o.Close()
	defer e.Close()
	cmd.Stdout, cmd.Stderr = o, e
	err := cmd.Run()
	if x, ok := err.(*exec.ExitError); ok {
		code = x.ExitCode()
	} else if err != nil {
		c.t.Fatal(err)
	}
	ob, _ := os.ReadFile(o.Name())
	eb, _ := os.ReadFile(e.Name())
	return string(ob), string(eb), code
}

// ok demands success.
func (c *cli) ok(args ...string) string {
	c.t.Helper()
	out, text, code := c.run(args...)
	if code != 0 {
		c.t.Fatalf("%v: exit %d: %s", args, code, text)
	}
	return out
}

func (c *cli) status(id string) string {
	c.t.Helper()
	var st stateJSON
	if err := json.Unmarshal([]byte(c.ok("state", id)), &st); err != nil {
		c.t.Fatal(err)
	}
	return string(st.Status)
}

func (c *cli) wait(id, status string) {
	c.t.Helper()
	for end := time.Now().Add(time.Minute); c.status(id) != status; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			c.t.Fatalf("%s never was %s", id, status)
		}
	}
}

func TestLifeCycle(t *testing.T) {
	c := newCLI(t)
	pidFile := t.TempDir() + "/pid"
	c.ok("create", "--bundle", c.bundle, "--pid-file", pidFile, "a")
	if pid, err := os.ReadFile(pidFile); err != nil || len(pid) == 0 {
		t.Fatal(err)
	}
	c.wait("a", "created")
	if _, text, code := c.run("create", "a"); code == 0 || !strings.Contains(text, "exists") {
		t.Fatal(text)
	}
	c.ok("start", "a")
	c.wait("a", "running")
	if out := c.ok("list"); !strings.Contains(out, "running") || !strings.Contains(out, c.bundle) {
		t.Fatal(out)
	}
	if out := c.ok("exec", "-e", "X=1", "--user", "5:6", "a", "sh", "-c", "echo $X; id -u; id -g; exit 0"); out != "1\n5\n6\n" {
		t.Fatal(out)
	}
	if _, _, code := c.run("exec", "a", "sh", "-c", "exit 9"); code != 9 {
		t.Fatal(code)
	}
	if _, text, code := c.run("exec", "a", "nope"); code != 127 || !strings.Contains(text, `exec: "nope": executable file not found in $PATH`) {
		t.Fatal(code, text)
	}
	c.ok("pause", "a")
	c.wait("a", "paused")
	if _, text, code := c.run("exec", "a", "true"); code == 0 || !strings.Contains(text, "paused") {
		t.Fatal(text)
	}
	if _, text, code := c.run("pause", "a"); code == 0 || !strings.Contains(text, "paused already") {
		t.Fatal(code, text)
	}
	c.ok("resume", "a")
	c.ok("update", "--memory", "64m", "--pids-limit", "50", "a")
	var ev struct {
		Type string
		Data statsJSON
	}
	if err := json.Unmarshal([]byte(c.ok("events", "--stats", "a")), &ev); err != nil || ev.Type != "stats" || ev.Data.Memory.Usage.Limit != 67108864 || ev.Data.Pids.Limit != 50 {
		t.Fatalf("%+v %v", ev, err)
	}
	if d, v1 := ev.Data, ev.Data.CPU.Usage.Percpu != nil; v1 && (d.Memory.Swap.Limit == 0 || d.Memory.Swap.Max == 0 || len(d.Cpuset.CPUs) == 0 || len(d.CPU.Usage.PercpuKernel) != len(d.CPU.Usage.Percpu)) {
		t.Errorf("swap, cpuset or processors: %+v", d)
	}
	var pids []int
	if err := json.Unmarshal([]byte(c.ok("ps", "--format", "json", "a")), &pids); err != nil || len(pids) != 1 {
		t.Fatal(pids, err)
	}
	if out := c.ok("ps", "a"); !strings.Contains(out, "sleep 1000") {
		t.Fatal(out)
	}
	if _, text, code := c.run("delete", "a"); code == 0 || !strings.Contains(text, "not stopped") {
		t.Fatal(text)
	}
	c.ok("kill", "a", "KILL")
	c.wait("a", "stopped")
	if _, text, code := c.run("kill", "a", "TERM"); code == 0 || !strings.Contains(text, "container not running") {
		t.Fatal(text)
	}
	c.ok("delete", "a")
	if _, text, code := c.run("state", "a"); code == 0 || !strings.Contains(text, "does not exist") {
		t.Fatal(text)
	}
	c.ok("delete", "--force", "a")
}

func TestRunForeground(t *testing.T) {
	c := newCLI(t)
	c.config("sh", "-c", "echo out; cat; exit 4")
	cmd := c.cmd("run", "b")
	cmd.Stdin = strings.NewReader("in\n")
	out, err := cmd.Output()
	if x, ok := err.(*exec.ExitError); !ok || x.ExitCode() != 4 || string(out) != "out\nin\n" {
		t.Fatal(string(out), err)
	}
	c.config("sh", "-c", "trap 'echo got; exit 0' TERM; echo ready; while :; do sleep 0.05; done")
	cmd = c.cmd("run", "b")
	pipe, _ := cmd.StdoutPipe()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 6)
	if _, err := io.ReadFull(pipe, buf); err != nil {
		t.Fatal(err)
	}
	cmd.Process.Signal(syscall.SIGTERM)
	rest, _ := io.ReadAll(pipe)
	if err := cmd.Wait(); err != nil || string(rest) != "got\n" {
		t.Fatal(string(rest), err)
	}
	if out := c.ok("list", "-q"); out != "" {
		t.Fatal("left behind:", out)
	}
}

func TestErrorsAreOneLine(t *testing.T) {
	c := newCLI(t)
	for _, x := range []struct {
		edit func(*specs.Spec)
		want string
	}{
		{func(s *specs.Spec) { s.Process.Args = []string{"nope"} }, `exec: "nope": executable file not found in $PATH`},
		{func(s *specs.Spec) { s.Process.Args = []string{"/bin"} }, `exec: "/bin": is a directory: permission denied`},
		{func(s *specs.Spec) { s.Process.Args = []string{"/x/y"} }, `exec: "/x/y": stat /x/y: no such file or directory`},
		{func(s *specs.Spec) { s.Root.Path = "none" }, "none: no such file or directory"},
		{func(s *specs.Spec) { s.Version = "9" }, "ociVersion"},
	} {
		s := c.config("true")
		x.edit(s)
		c.write(s)
		log := t.TempDir() + "/log"
		_, text, code := c.run("--log", log, "--log-format", "json", "create", "e")
		if code != 1 || !strings.Contains(text, x.want) || strings.Count(text, "\n") != 1 {
			t.Errorf("%d %q, want %q", code, text, x.want)
		}
		var line struct{ Level, Msg string }
		body, _ := os.ReadFile(log)
		if err := json.Unmarshal(body, &line); err != nil || line.Level != "error" || !strings.Contains(line.Msg, x.want) {
			t.Errorf("log: %s", body)
		}
	}
	for _, args := range [][]string{{"nonsense"}, {"kill", "e", "NOSUCH"}, {"checkpoint", "e"}, {"state"}, {"start", "../x"}, {"--rootless", "what", "list"}, {"create", "--what", "x"}} {
		if _, text, code := c.run(args...); code != 1 || text == "" {
			t.Errorf("%v: %d %s", args, code, text)
		}
	}
}

func TestConsoleSocket(t *testing.T) {
	c := newCLI(t)
	s := c.config("sh", "-c", "tty; sleep 1000")
	s.Process.Terminal = true
	c.write(s)
	sock := t.TempDir() + "/console"
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: sock, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	got := make(chan *os.File, 1)
	go func() {
		conn, err := l.AcceptUnix()
		if err != nil {
			return
		}
		defer conn.Close()
		buf, oob := make([]byte, 64), make([]byte, 64)
		_, n, _, _, _ := conn.ReadMsgUnix(buf, oob)
		msgs, _ := unix.ParseSocketControlMessage(oob[:n])
		fds, _ := unix.ParseUnixRights(&msgs[0])
		got <- os.NewFile(uintptr(fds[0]), "master")
	}()
	c.ok("run", "-d", "--console-socket", sock, "t")
	master := <-got
	defer master.Close()
	buf := make([]byte, 64)
	n, err := master.Read(buf)
	if err != nil || !strings.HasPrefix(string(buf[:n]), "/dev/pts/0") {
		t.Fatal(string(buf[:n]), err)
	}
}

func TestPreserveDescriptors(t *testing.T) {
	c := newCLI(t)
	c.config("sh", "-c", "cat <&3; cat <&4; ls /proc/self/fd")
	cmd := c.cmd("run", "--preserve-fds", "2", "p")
	for _, text := range []string{"three\n", "four\n"} {
		f, err := os.CreateTemp(t.TempDir(), "f")
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		f.WriteString(text)
		f.Seek(0, 0)
		cmd.ExtraFiles = append(cmd.ExtraFiles, f)
	}
	var text bytes.Buffer
	cmd.Stderr = &text
	out, err := cmd.Output()
	if err != nil || string(out) != "three\nfour\n0\n1\n2\n3\n4\n5\n" { // 5 is the folder that ls reads
		t.Fatalf("%q %v %s", out, err, text.String())
	}
}

// A descriptor of the caller that nobody asked to keep does not reach the container, close-on-exec or not.
func TestNoDescriptorLeaks(t *testing.T) {
	c := newCLI(t)
	c.config("ls", "/proc/self/fd")
	cmd := c.cmd("run", "l")
	for range 5 {
		f, err := os.Open("/")
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		cmd.ExtraFiles = append(cmd.ExtraFiles, f)
	}
	out, err := cmd.Output()
	if err != nil || string(out) != "0\n1\n2\n3\n" {
		t.Fatalf("%q %v", out, err)
	}
}

// CVE-2024-21626, with the caller's help: a directory of the host that is passed on purpose is no way out as a working directory. And the story of a find on the way: of one that could not be made
// the number of the error (40 of a loop, 20 of a file in the way) was closed as if it were a descriptor, and the container died of that, without a word.
func TestWorkingDirectoryOfTheHost(t *testing.T) {
	c := newCLI(t)
	host, err := os.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer host.Close()
	for _, cwd := range []string{"/proc/self/fd/3", "/proc/self/fd/3/../..", "/proc/self/fd/9", "/dev/null", "/dev/null/x", "/proc/self/fd/0/x", "/loop/x"} {
		s := c.config("ls")
		if err := os.Symlink("loop", filepath.Join(c.bundle, s.Root.Path, "loop")); err != nil && !errors.Is(err, os.ErrExist) {
			t.Fatal(err)
		}
		s.Process.Cwd = cwd
		c.write(s)
		cmd := c.cmd("run", "--preserve-fds", "1", "w")
		cmd.ExtraFiles = []*os.File{host}
		if out, err := cmd.CombinedOutput(); err == nil || !strings.Contains(string(out), "change to directory "+cwd+": ") {
			t.Errorf("%s: %v %s", cwd, err, out)
		}
	}
}

func TestSpecAndFeatures(t *testing.T) {
	c := newCLI(t)
	dir := t.TempDir()
	c.ok("spec", "--bundle", dir)
	if s, err := ReadSpec(dir); err != nil || s.Version != specs.Version {
		t.Fatal(s, err)
	}
	if _, _, code := c.run("spec", "--bundle", dir); code == 0 {
		t.Fatal("overwrote a config.json")
	}
	if out := c.ok("features"); !strings.Contains(out, `"ociVersionMax"`) || !strings.Contains(out, `"rro"`) {
		t.Fatal(out)
	}
	if out := c.ok("--version"); !strings.Contains(out, "spec: 1.") {
		t.Fatal(out)
	}
}

// A spec that is nonsense is refused, or understood, but never brings the runtime down.
func FuzzConfig(f *testing.F) {
	body, _ := json.Marshal(runtime.ExampleSpec())
	f.Add(body)
	f.Add([]byte(`{"ociVersion":"1.0.0","process":{"args":[""],"cwd":"/"},"root":{"path":""},"linux":{"seccomp":{}}}`))
	f.Add([]byte(`{"process":{"args":["a"],"cwd":"/","rlimits":[{"type":"RLIMIT_NOFILE","soft":2,"hard":1}],"scheduler":{"policy":"x"}},"root":{"path":"x"},"mounts":[{"destination":"x","options":["idmap","rro"]}]}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		var s specs.Spec
		if json.Unmarshal(body, &s) != nil {
			return
		}
		_ = runtime.Check(&s)
	})
}

// CVE-2019-5736: a container that executes /proc/self/exe runs the file of the process that made it, and could overwrite it on the host.
func TestRuntimeCannotBeOverwritten(t *testing.T) {
	c := newCLI(t)
	c.config("/proc/self/exe")
	c.ok("create", "w")
	var st stateJSON
	if err := json.Unmarshal([]byte(c.ok("state", "w")), &st); err != nil {
		t.Fatal(err)
	}
	fd, err := unix.Open(fmt.Sprintf("/proc/%d/exe", st.Pid), unix.O_PATH, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if !sealed(fd) {
		t.Fatal("the runtime's file is writable")
	}
	var fs unix.Statfs_t
	if err := unix.Fstatfs(fd, &fs); err != nil || fs.Flags&unix.ST_RDONLY == 0 {
		t.Fatal("the mount of the runtime's file is writable")
	}
	// And the mount cannot be made writable, or cloned, by who finds it.
	if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &unix.MountAttr{Attr_clr: unix.MOUNT_ATTR_RDONLY}); err == nil {
		t.Fatal("the mount was made writable")
	}
}

// Where no mount can be made, the runtime runs from a sealed copy.
func TestSealedCopy(t *testing.T) {
	f, err := memoryCopy()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := unix.Pwrite(int(f.Fd()), []byte("x"), 0); err != unix.EPERM {
		t.Fatal(err)
	}
}

// CVE-2022-29162: `exec --cap` put capabilities into the inheritable set, from where programs with file capabilities take them.
func TestExecCapIsNotInheritable(t *testing.T) {
	c := newCLI(t)
	c.ok("run", "-d", "x")
	out := c.ok("exec", "--cap", "CAP_NET_ADMIN", "x", "cat", "/proc/self/status")
	if !strings.Contains(out, "CapInh:\t0000000000000000") || !strings.Contains(out, "CapEff:\t0000000020001420") {
		t.Fatal(out)
	}
}

// Engines leave HOME to the runtime, as runc and crun set it.
func TestHome(t *testing.T) {
	c := newCLI(t)
	if err := os.Mkdir(filepath.Join(c.bundle, "rootfs/etc"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(c.bundle, "rootfs/etc/passwd"), []byte("broken\nroot:x:0:0::/root:/bin/sh\nseven:x:7:7::/home/seven:/bin/sh\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	spec := c.config("sh", "-c", "echo $HOME")
	spec.Process.User.UID = 7
	c.write(spec)
	if out := c.ok("run", "first"); out != "/home/seven\n" {
		t.Error(out)
	}
	c.config("sleep", "1000")
	c.ok("run", "-d", "h")
	for user, home := range map[string]string{"7": "/home/seven", "0": "/root", "8": "/"} {
		if out := c.ok("exec", "--user", user, "h", "sh", "-c", "echo $HOME"); out != home+"\n" {
			t.Errorf("user %s: %s", user, out)
		}
	}
	if out := c.ok("exec", "--env", "HOME=/mine", "h", "sh", "-c", "echo $HOME"); out != "/mine\n" {
		t.Error(out)
	}
}
