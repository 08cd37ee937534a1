package script

import (
	"archive/tar"
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"corten.dev/corten/internal/enginetest"
	"corten.dev/corten/internal/plugin/plugintest"
)

func TestScripts(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("containers need root here")
	}
	busybox := findBusybox()
	if busybox == "" {
		t.Skip("no static busybox for an image (install busybox-static)")
	}
	t.Setenv("CORTEN_BIN_DIR", programs(t))
	eng := enginetest.New(t)
	eng.Up()
	importBusybox(t, eng, busybox)
	open, private := registries(t, eng.Bin)
	plugintest.StartVolume(t, plugintest.Build(t, "volume"), filepath.Join(eng.Plugins(), "demo.sock"), "-scope", "global")
	plugintest.StartNetwork(t, plugintest.Build(t, "network"), filepath.Join(eng.Plugins(), "lab.sock"))
	t.Run("verbs", func(t *testing.T) {
		testscript.Run(t, testscript.Params{
			Dir: "script",
			Setup: func(env *testscript.Env) error {
				env.Setenv("HOME", env.WorkDir)
				env.Setenv("CORTEN_HOST", eng.Socket())
				env.Setenv("REGISTRY", open.Addr)
				env.Setenv("PRIVATE", private.Addr)
				env.Setenv("PLUGINS", eng.Plugins())
				env.Setenv("SUBNET", eng.Lab.String())
				env.Setenv("ADDRESS", strings.TrimSuffix(eng.Lab.Addr().String(), "0")+"9") // in SUBNET
				env.Setenv("PATH", eng.Bin+string(os.PathListSeparator)+os.Getenv("PATH"))
				return nil
			},
			Cmds: map[string]func(*testscript.TestScript, bool, []string){"corten": cmdCorten, "exits": cmdExits, "retry": cmdRetry, "until": cmdUntil},
		})
	})
	if t.Failed() {
		t.Log(eng.Log())
	}
}

// registries are one for everybody and one for "me" with the password "s3cret".
func registries(t *testing.T, bin string) (open, private *enginetest.Registry) {
	users := filepath.Join(t.TempDir(), "htpasswd")
	cmd := exec.Command(filepath.Join(bin, "cortend"), "registry", "htpasswd", "--file", users, "me")
	cmd.Stdin = strings.NewReader("s3cret\n")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("htpasswd: %v: %s", err, out)
	}
	return enginetest.NewRegistry(t), enginetest.NewRegistry(t, "--htpasswd", users)
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
	for end := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
		err := ts.Exec("corten", args...)
		if good(ts.ReadFile("stdout"), err) {
			return
		}
		if time.Now().After(end) {
			ts.Fatalf("corten %s: not what was waited for after a minute", strings.Join(args, " "))
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

// importBusybox makes an image out of a single program and its links.
func importBusybox(t *testing.T, eng *enginetest.Engine, program string) {
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
	cmd := eng.Client("import", "-c", `CMD ["sh"]`, "-c", "ENV PATH=/bin", "-", "busybox:latest")
	cmd.Stdin = &buf
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("import busybox: %v: %s\n%s", err, out, eng.Log())
	}
}
