package script

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/rogpeppe/go-internal/testscript"
	"github.com/vishvananda/netlink"
)

func TestScripts(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("containers need root here")
	}
	busybox := findBusybox()
	if busybox == "" {
		t.Skip("no static busybox for an image (install busybox-static)")
	}
	bin := programs(t)
	eng := startEngine(t, bin)
	eng.importBusybox(t, busybox)
	t.Run("verbs", func(t *testing.T) {
		testscript.Run(t, testscript.Params{
			Dir: "script",
			Setup: func(env *testscript.Env) error {
				env.Setenv("HOME", env.WorkDir)
				env.Setenv("CORTEN_HOST", eng.host)
				env.Setenv("PATH", bin+string(os.PathListSeparator)+os.Getenv("PATH"))
				return nil
			},
			Cmds: map[string]func(*testscript.TestScript, bool, []string){"corten": cmdCorten, "exits": cmdExits, "retry": cmdRetry, "until": cmdUntil},
		})
	})
}

func cmdCorten(ts *testscript.TestScript, neg bool, args []string) {
	err := ts.Exec("corten", args...)
	if neg && err == nil {
		ts.Fatalf("corten %s: succeeded unexpectedly", strings.Join(args, " "))
	}
	if !neg {
		ts.Check(err)
	}
}

func cmdExits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exits CODE ARG...")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	got := 0
	err = ts.Exec("corten", args[1:]...)
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		got = exit.ExitCode()
	} else {
		ts.Check(err)
	}
	if got != want {
		ts.Fatalf("corten %s: exit code %d, want %d", strings.Join(args[1:], " "), got, want)
	}
}

func cmdRetry(ts *testscript.TestScript, neg bool, args []string) {
	repeat(ts, args, func(_ string, err error) bool { return (err == nil) != neg })
}

func cmdUntil(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) < 2 {
		ts.Fatalf("usage: until TEXT ARG...")
	}
	repeat(ts, args[1:], func(out string, _ error) bool { return strings.Contains(out, args[0]) != neg })
}

func repeat(ts *testscript.TestScript, args []string, good func(string, error) bool) {
	for end := time.Now().Add(5 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		err := ts.Exec("corten", args...)
		if good(ts.ReadFile("stdout"), err) {
			return
		}
		if time.Now().After(end) {
			ts.Fatalf("corten %s: not what was waited for after five seconds", strings.Join(args, " "))
		}
	}
}

// findBusybox wants a static one: it will be all that is in the image.
func findBusybox() string {
	for _, p := range []string{"/bin/busybox", "/usr/bin/busybox"} {
		if _, err := os.Stat(p); err == nil {
			return p
		}
	}
	return ""
}

// programs gives a folder with corten and cortend.
func programs(t *testing.T) string {
	t.Helper()
	if dir := os.Getenv("CORTEN_BIN_DIR"); dir != "" {
		abs, err := filepath.Abs(dir)
		if err != nil {
			t.Fatal(err)
		}
		return abs
	}
	dir := t.TempDir()
	cmd := exec.Command("make", "-C", "../..", "build", "BIN="+dir)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	if _, err := os.Stat(filepath.Join(dir, "cortend")); err != nil {
		t.Fatal("make build BIN=… left no cortend; set CORTEN_BIN_DIR")
	}
	return dir
}

type engine struct {
	bin, host, bridge, table string
	log                      string
}

// startEngine runs a cortend of our own until the end of the test.
func startEngine(t *testing.T, bin string) *engine {
	t.Helper()
	dir, err := os.MkdirTemp("", "cscript") // short: a socket's path has 108 bytes at most
	if err != nil {
		t.Fatal(err)
	}
	id := os.Getpid() % 100000
	e := &engine{bin: bin, host: "unix://" + filepath.Join(dir, "s"), bridge: fmt.Sprintf("cs%d", id), table: fmt.Sprintf("cscript%d", id), log: filepath.Join(dir, "log")}
	log, err := os.Create(e.log)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	cmd := exec.Command(filepath.Join(bin, "cortend"), "--data-root", filepath.Join(dir, "data"), "--exec-root", filepath.Join(dir, "exec"),
		"-H", e.host, "--bridge", e.bridge, "--bip", fmt.Sprintf("10.214.%d.1/24", id%250), "--default-address-pool", "base=10.215.0.0/16,size=24",
		"--nft-table", e.table, "--pidfile", filepath.Join(dir, "pid"), "--config-file", filepath.Join(dir, "none.json"))
	cmd.Stdout, cmd.Stderr = log, log
	if err := os.WriteFile(filepath.Join(dir, "none.json"), []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { e.stop(t, cmd, dir) })
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if c, err := net.Dial("unix", strings.TrimPrefix(e.host, "unix://")); err == nil {
			c.Close()
			return e
		}
		if time.Now().After(end) {
			t.Fatalf("the engine does not answer:\n%s", e.tail())
		}
	}
}

func (e *engine) tail() string {
	data, err := os.ReadFile(e.log)
	if err != nil {
		return err.Error()
	}
	return string(data[max(0, len(data)-4096):])
}

func (e *engine) corten(stdin []byte, args ...string) (string, error) {
	cmd := exec.Command(filepath.Join(e.bin, "corten"), append([]string{"-H", e.host}, args...)...)
	cmd.Stdin = bytes.NewReader(stdin)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// stop removes what the scripts left, ends the engine and takes its bridge and table away.
func (e *engine) stop(t *testing.T, cmd *exec.Cmd, dir string) {
	if t.Failed() {
		t.Logf("the engine's log ends:\n%s", e.tail())
	}
	if out, err := e.corten(nil, "ps", "-aq"); err == nil {
		if ids := strings.Fields(out); len(ids) > 0 {
			if out, err := e.corten(nil, append([]string{"rm", "-f", "-v"}, ids...)...); err != nil {
				t.Errorf("remove containers: %s", out)
			}
		}
	}
	if out, err := e.corten(nil, "network", "prune", "-f"); err != nil {
		t.Errorf("remove networks: %s", out)
	}
	cmd.Process.Signal(syscall.SIGTERM)
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	select {
	case err := <-done:
		if err != nil {
			t.Errorf("the engine ended badly: %v\n%s", err, e.tail())
		}
	case <-time.After(20 * time.Second):
		cmd.Process.Kill()
		t.Errorf("the engine did not end within 20 s:\n%s", e.tail())
	}
	if link, err := netlink.LinkByName(e.bridge); err == nil {
		if err := netlink.LinkDel(link); err != nil {
			t.Errorf("remove bridge: %v", err)
		}
	}
	if err := dropTable(e.table); err != nil {
		t.Errorf("remove nftables table: %v", err)
	}
	if err := os.RemoveAll(dir); err != nil {
		t.Errorf("something is left: %v", err)
	}
}

func dropTable(name string) error {
	conn, err := nftables.New()
	if err != nil {
		return err
	}
	tables, err := conn.ListTables()
	if err != nil {
		return err
	}
	for _, tb := range tables {
		if tb.Name == name {
			conn.DelTable(tb)
		}
	}
	return conn.Flush()
}

// importBusybox makes an image out of a single program and its links.
func (e *engine) importBusybox(t *testing.T, program string) {
	t.Helper()
	list, err := exec.Command(program, "--list").Output()
	if err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(program)
	if err != nil {
		t.Fatal(err)
	}
	var buf bytes.Buffer
	tw := tar.NewWriter(&buf)
	put := func(h *tar.Header, content []byte) {
		h.Size = int64(len(content))
		if err := tw.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := tw.Write(content); err != nil {
			t.Fatal(err)
		}
	}
	for _, d := range []string{"bin/", "etc/", "root/", "tmp/", "home/"} {
		mode := int64(0o755)
		if d == "tmp/" {
			mode = 0o1777
		}
		put(&tar.Header{Name: d, Typeflag: tar.TypeDir, Mode: mode}, nil)
	}
	put(&tar.Header{Name: "bin/busybox", Typeflag: tar.TypeReg, Mode: 0o755}, data)
	put(&tar.Header{Name: "etc/passwd", Typeflag: tar.TypeReg, Mode: 0o644}, []byte("root:x:0:0:root:/root:/bin/sh\nguest:x:1000:1000:guest:/home:/bin/sh\n"))
	put(&tar.Header{Name: "etc/group", Typeflag: tar.TypeReg, Mode: 0o644}, []byte("root:x:0:\nguest:x:1000:\nextra:x:2000:guest\n"))
	for _, name := range strings.Fields(string(list)) {
		if name != "busybox" {
			put(&tar.Header{Name: "bin/" + name, Typeflag: tar.TypeSymlink, Linkname: "busybox", Mode: 0o777}, nil)
		}
	}
	if err := tw.Close(); err != nil {
		t.Fatal(err)
	}
	if out, err := e.corten(buf.Bytes(), "import", "-c", `CMD ["sh"]`, "-c", "ENV PATH=/bin", "-", "busybox:latest"); err != nil {
		t.Fatalf("import busybox: %s\n%s", out, e.tail())
	}
}
