package volume_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"corten.dev/corten/internal/volume"
	"golang.org/x/sys/unix"
)

// dead mounts a file system that never answers anything, as one whose server is gone.
func dead(t *testing.T, at string) {
	t.Helper()
	fd, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Skip("no FUSE here:", err)
	}
	if err := unix.Mount("dead", at, "fuse", 0, fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0", fd)); err != nil {
		must(t, unix.Close(fd))
		t.Skip("no FUSE here:", err)
	}
	t.Cleanup(func() {
		must(t, unix.Close(fd)) // whoever waits gets ENOTCONN
		must(t, unix.Unmount(at, unix.MNT_DETACH))
	})
}

func counted(t *testing.T, s *volume.LocalStore, name string) int64 {
	t.Helper()
	for until := time.Now().Add(time.Minute); time.Now().Before(until); time.Sleep(time.Millisecond) {
		if bytes, when, _ := s.LastUsage(name); !when.IsZero() {
			return bytes
		}
	}
	t.Fatalf("%s is never counted", name)
	return 0
}

// An NFS server that went away once stopped `system df`, and with it the engine's start: whoever looked at the volume stood still with it.
func TestDeadFileSystem(t *testing.T) {
	needRoot(t)
	root := t.TempDir()
	s := open(t, root, quiet())
	for i := range 3 { // more than there are slots
		dead(t, mustCreate(t, s, fmt.Sprint("dead", i), nil).Mountpoint)
	}
	must(t, os.WriteFile(filepath.Join(mustCreate(t, s, "alive", nil).Mountpoint, "f"), make([]byte, 10), 0o600))
	began := time.Now()
	if size := counted(t, s, "alive"); size != 10 {
		t.Errorf("alive holds %d", size)
	}
	for i := range 3 {
		if bytes, when, counting := s.LastUsage(fmt.Sprint("dead", i)); bytes != -1 || !when.IsZero() || !counting {
			t.Errorf("a file system that is dead holds %d at %v, %t", bytes, when, counting)
		}
	}
	if took := time.Since(began); took > 30*time.Second {
		t.Errorf("asking took %v", took)
	}
	must(t, os.WriteFile(filepath.Join(mustCreate(t, s, "late", nil).Mountpoint, "f"), make([]byte, 20), 0o600))
	if size := counted(t, s, "late"); size != 20 { // the dead ones have the slots, and must give them up
		t.Errorf("late holds %d", size)
	}
	for given := time.Now(); ; time.Sleep(10 * time.Millisecond) {
		if _, _, counting := s.LastUsage("dead0"); !counting {
			break
		}
		if time.Since(given) > time.Minute {
			t.Fatal("after seconds somebody is still told to wait for a dead file system")
		}
	}
	must(t, s.Remove(context.Background(), "alive", false))
	began = time.Now()
	again := open(t, root, quiet())
	if list, err := again.List(context.Background()); err != nil || len(list) != 4 {
		t.Errorf("after a restart: %d volumes, %v", len(list), err)
	}
	if took := time.Since(began); took > 30*time.Second {
		t.Errorf("a restart took %v", took)
	}
}
