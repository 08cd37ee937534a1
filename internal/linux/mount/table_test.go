package mount

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestTmpfsAndDetach(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("not root")
	}
	dir := filepath.Join(t.TempDir(), "shm")
	if err := Detach(dir); err != nil {
		t.Errorf("what is not there: %v", err)
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := Detach(dir); err != nil {
		t.Errorf("what is not mounted: %v", err)
	}
	if err := Tmpfs("shm", dir, "mode=1777,size=65536"); err != nil {
		t.Fatal(err)
	}
	defer Detach(dir)
	fi, err := os.Stat(dir)
	if err != nil || fi.Mode()&os.ModeSticky == 0 || fi.Mode().Perm() != 0o777 {
		t.Errorf("%v, %v", fi.Mode(), err)
	}
	if err := os.WriteFile(dir+"/big", make([]byte, 1<<17), 0o600); err == nil {
		t.Error("more was written than the size allows")
	}
	table, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(table)) {
		if strings.Contains(line, " "+dir+" ") {
			for _, want := range []string{"nosuid", "nodev", "noexec", " tmpfs shm "} {
				if !strings.Contains(line, want) {
					t.Errorf("no %s in %s", want, line)
				}
			}
		}
	}
	if err := Detach(dir); err != nil {
		t.Fatal(err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("%v, %v is left", left, err)
	}
}
