//go:build linux

package autostart

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// The test program is its own cortend: started under that name it counts the start and listens.
func TestMain(m *testing.M) {
	if dir := os.Getenv("FAKE_CORTEND"); dir != "" {
		os.Exit(fakeEngine(dir))
	}
	os.Exit(m.Run())
}

func fakeEngine(dir string) int {
	if os.Getenv("FAKE_FAILS") != "" {
		os.Stderr.WriteString(os.Getenv("FAKE_FAILS") + "\n")
		return 1
	}
	f, err := os.OpenFile(filepath.Join(dir, "starts"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return 1
	}
	f.WriteString("x")
	time.Sleep(50 * time.Millisecond)
	l, err := net.Listen("unix", filepath.Join(dir, "s"))
	if err != nil {
		return 1
	}
	time.AfterFunc(time.Minute, func() { l.Close() })
	for {
		c, err := l.Accept()
		if err != nil {
			return 0
		}
		buf := make([]byte, 4)
		if n, _ := c.Read(buf); string(buf[:n]) == "end" {
			return 0
		}
		c.Close()
	}
}

// place gives roots, and a PATH whose cortend is this program.
func place(t *testing.T) Roots {
	t.Helper()
	dir, err := os.MkdirTemp("", "cas")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(self, filepath.Join(dir, "cortend")); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir)
	t.Setenv("FAKE_CORTEND", dir)
	return Roots{Data: filepath.Join(dir, "data"), Exec: filepath.Join(dir, "exec"), Socket: filepath.Join(dir, "s")}
}

func TestManyClientsStartOneEngine(t *testing.T) {
	r := place(t)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			nc, err := Start(context.Background(), r, func(string) {})
			if err != nil {
				t.Error(err)
				return
			}
			nc.Close()
		})
	}
	wg.Wait()
	data, err := os.ReadFile(filepath.Join(filepath.Dir(r.Socket), "starts"))
	if err != nil || string(data) != "x" {
		t.Errorf("%q starts, %v", data, err)
	}
	if nc, err := dial(r.Socket); err == nil {
		nc.Write([]byte("end"))
		nc.Close()
	}
}

func TestAFailedStartIsToldInTheEnginesWords(t *testing.T) {
	for said, want := range map[string]string{
		"cortend: the disk is on fire": ": cortend: the disk is on fire",
		// An ordinary user was shown the whole line, with its date and its level.
		`time=2026-11-22T12:58:11.090Z level=ERROR msg="cortend ends" err="cortend needs \"root\" in this version"`: `: cortend needs "root" in this version`,
		`time=x level=ERROR msg="cortend ends" err=plain`:                                                           ` err=plain`,
	} {
		r := place(t)
		t.Setenv("FAKE_FAILS", said)
		if _, err := Start(context.Background(), r, func(string) {}); err == nil || !strings.HasSuffix(err.Error(), want) {
			t.Error(err)
		}
	}
}

func TestNoEngineToStart(t *testing.T) {
	r := place(t)
	t.Setenv("PATH", ".:"+t.TempDir())
	if _, err := Start(context.Background(), r, func(string) {}); err == nil || !strings.Contains(err.Error(), "neither beside corten nor in PATH") {
		t.Error(err)
	}
}

func TestUserRoots(t *testing.T) {
	t.Setenv("XDG_RUNTIME_DIR", "/run/user/5")
	t.Setenv("XDG_DATA_HOME", "/home/u/data")
	r, err := UserRoots(5)
	if err != nil || r.Socket != "/run/user/5/corten/corten.sock" || r.Data != "/home/u/data/corten" {
		t.Error(r, err)
	}
	if got := strings.Join(r.Args(), " "); !strings.Contains(got, "-H unix:///run/user/5/corten/corten.sock") {
		t.Error(got)
	}
}

// The log of an engine that did not start is told from its end, however long it is; all of it was read into memory.
func TestLastLineOfALongLog(t *testing.T) {
	name := filepath.Join(t.TempDir(), "cortend.log")
	for _, before := range []int{0, 10, 5000} {
		if err := os.WriteFile(name, []byte(strings.Repeat("an older line of the log\n", before)+`level=ERROR msg=x err="port in use"`+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		if got := lastLine(name); got != "port in use" {
			t.Errorf("behind %d lines: %q", before, got)
		}
	}
}
