package main

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"
)

const lockHolder = "CORTEND_TEST_LOCK"

func TestMain(m *testing.M) {
	if dir := os.Getenv(lockHolder); dir != "" {
		if _, err := lock(dir, 0); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		fmt.Println("locked")
		select {}
	}
	os.Exit(m.Run())
}

// An engine was killed in the middle of a volume's snapshot, and a new one was started at once: it ended with "another engine uses …", because the old one was not quite gone.
func TestLockWaitsForAKilledEngineToBeGone(t *testing.T) {
	dir := t.TempDir()
	old := exec.Command(os.Args[0])
	old.Env = append(os.Environ(), lockHolder+"="+dir)
	out, err := old.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := old.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = old.Process.Kill(); _ = old.Wait() })
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "locked\n" {
		t.Fatal(line, err)
	}
	want := fmt.Sprintf("another engine (process %d) uses %s", old.Process.Pid, dir)
	if _, err := lock(dir, 0); err == nil || !strings.Contains(err.Error(), want) {
		t.Fatalf("lock of a folder that an engine has: %v, want %s", err, want)
	}
	kill := time.AfterFunc(100*time.Millisecond, func() { _ = old.Process.Kill() })
	defer kill.Stop()
	unlock, err := lock(dir, 30*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	unlock()
}
