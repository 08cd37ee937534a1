package program

import (
	"os"
	"os/exec"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// The test becomes itself, from a file that has no path, and tells what it is then.
const mode = "CORTEN_TEST_PROGRAM"

func TestMain(m *testing.M) {
	self := func() *os.File {
		f, err := os.Open("/proc/self/exe")
		if err != nil {
			panic(err)
		}
		return f
	}
	again := func(f *os.File, err error) {
		if err == nil {
			err = Exec(f, []string{"some name", "x"}, []string{mode + "=tell"})
		}
		os.Stderr.WriteString(err.Error())
		os.Exit(1)
	}
	switch os.Getenv(mode) {
	case "sealed":
		again(Sealed("it", self()))
	case "nameless":
		again(Nameless(os.Getenv("DIR"), self()))
	case "tell":
		exe, err := os.Readlink("/proc/self/exe")
		if err != nil {
			panic(err)
		}
		os.Stdout.WriteString(strings.Join(os.Args, " ") + ": " + exe)
	default:
		os.Exit(m.Run())
	}
}

func TestExec(t *testing.T) {
	dir := t.TempDir()
	for how, where := range map[string]string{"sealed": "/memfd:it (deleted)", "nameless": dir + "/"} {
		cmd := exec.Command("/proc/self/exe")
		cmd.Env = []string{mode + "=" + how, "DIR=" + dir}
		out, err := cmd.CombinedOutput()
		if err != nil || !strings.HasPrefix(string(out), "some name x: "+where) {
			t.Errorf("%s: %q, %v", how, out, err)
		}
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
		t.Errorf("left over: %v, %v", left, err)
	}
}

func TestNobodyWrites(t *testing.T) {
	sealed, err := Sealed("it", strings.NewReader("#!/bin/sh"))
	if err != nil {
		t.Fatal(err)
	}
	defer sealed.Close()
	if _, err := unix.Pwrite(int(sealed.Fd()), []byte("x"), 0); err != unix.EPERM {
		t.Errorf("a sealed file takes writes: %v", err)
	}
	nameless, err := Nameless(t.TempDir(), strings.NewReader("#!/bin/sh"))
	if err != nil {
		t.Fatal(err)
	}
	defer nameless.Close()
	if _, err := nameless.Write([]byte("x")); err == nil {
		t.Error("a file without a name takes writes")
	}
	if f, err := os.OpenFile(path(nameless), os.O_RDONLY, 0); err != nil {
		t.Error(err)
	} else if err := f.Close(); err != nil {
		t.Error(err)
	}
}
