package quota

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"syscall"
	"testing"
	"unsafe"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/linux/quota/quotatest"
)

// The layouts are those of the kernel's headers.
func TestLayouts(t *testing.T) {
	if a, b, c := unsafe.Sizeof(fsxattr{}), unsafe.Sizeof(dqblk{}), unsafe.Offsetof(state{}.flags); a != 28 || b != 72 || c != 2 {
		t.Error(a, b, c)
	}
}

func open(t *testing.T, dir string) *os.File {
	t.Helper()
	f, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// A file system that only counts, or does not even that, is told apart, by name.
func TestNotEnforced(t *testing.T) {
	err := Enforced(open(t, "/proc"))
	if !errors.Is(err, errs.NotImplemented) || !bytes.Contains([]byte(err.Error()), []byte("(proc) enforces no project quotas")) {
		t.Error(err)
	}
}

// A limit on a file system with prjquota, as a mount of an image with the features that mke2fs gives it. Kernels without quota formats refuse the mount.
func TestLimit(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	top := quotatest.Mount(t, "64M")
	if err := os.Mkdir(top+"/vol", 0o755); err != nil {
		t.Fatal(err)
	}
	dir, err := os.Open(top + "/vol")
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	if err := Enforced(dir); err != nil {
		t.Fatal(err)
	}
	id, err := Free(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := Limit(dir, id, 4<<20); err != nil {
		t.Fatal(err)
	}
	if of, err := Of(dir); err != nil || of != id {
		t.Errorf("project %d, %v; want %d", of, err, id)
	}
	if err := os.WriteFile(top+"/vol/ok", make([]byte, 3<<20), 0o600); err != nil {
		t.Error(err)
	}
	// A process with CAP_SYS_RESOURCE, which containers do not have, is not bound: somebody else writes.
	much, err := os.Create(top + "/vol/much")
	if err != nil {
		t.Fatal(err)
	}
	defer much.Close()
	dd := exec.Command("dd", "if=/dev/zero", "bs=64k", "count=48", "conv=fsync")
	dd.Stdout, dd.SysProcAttr = much, &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	if err := dd.Run(); err == nil {
		t.Error("more than the limit was written")
	}
	if use, err := Usage(dir, id); err != nil || use.Limit != 4<<20 || use.Bytes < 3<<20 {
		t.Errorf("%+v, %v", use, err)
	}
	if err := SetLimit(dir, id, 16<<20); err != nil {
		t.Error(err)
	}
	if err := os.WriteFile(top+"/vol/much", make([]byte, 3<<20), 0o600); err != nil {
		t.Error(err)
	}
}

// A disk that was mounted again without prjquota, or whose files were moved to one that knows no projects, had containers and volumes that could not be removed: their limits could not be taken away.
func TestNoLimitToTakeAway(t *testing.T) {
	dir, err := os.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	if Enforced(dir) == nil {
		t.Skip("this file system enforces project quotas")
	}
	if err := SetLimit(dir, 1<<20, 0); err != nil {
		t.Error(err)
	}
	if err := SetLimit(dir, 1<<20, 1<<20); err == nil {
		t.Error("a limit was set that nobody enforces")
	}
	proc, err := os.Open("/proc")
	if err != nil {
		t.Fatal(err)
	}
	defer proc.Close()
	if id, err := Of(proc); err != nil || id != 0 {
		t.Errorf("procfs: project %d, %v", id, err)
	}
}
