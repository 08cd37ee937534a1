package runtime

import (
	"os"
	"strings"
	"testing"

	"corten.dev/corten/internal/linux/mount"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// Each of these directories had a tmpfs of its own, and the end of every container went through the lists of all file systems of all others (3 ms of processor time where 1,000 ran).
func TestSmallDirectoriesShareAFileSystem(t *testing.T) {
	needRoot(t)
	if os.Getenv(inBare) == "" || !mount.ClonesDetached() {
		t.Skip("for containers of an engine, from Linux 6.15 on")
	}
	const dirs = "/dev /sys/firmware /dev/shm"
	out, code := sh(t, `
		stat -c %d `+dirs+`
		touch /sys/firmware/x 2>&1 | sed 's/.*: //'; ls -A /sys/firmware
		echo mine >/dev/file && cat /dev/file
		grep -c ' /dev/shm .* shm ' /proc/self/mountinfo
		awk '$5 == "/dev" {print $6}' /proc/self/mountinfo`, nil)
	lines := strings.Split(strings.TrimSpace(out), "\n")
	if code != 0 || len(lines) != 7 || strings.Join(lines[3:], ";") != "Read-only file system;mine;1;rw,nosuid" {
		t.Fatalf("%d %q", code, out)
	}
	if lines[0] != lines[1] || lines[0] == lines[2] {
		t.Errorf("the file systems of %s: %v", dirs, lines[:3])
	}
	// One that was asked for in another way is as it was asked for.
	out, code = sh(t, `stat -c %d /dev /sys/firmware; df -k /dev | tail -1 | awk '{print $2}'; ls -ld /dev | cut -c1-10`, func(s *specs.Spec) {
		s.Mounts[1].Options = []string{"nosuid", "mode=700", "size=1024k"}
	})
	lines = strings.Split(strings.TrimSpace(out), "\n")
	if code != 0 || len(lines) != 4 || lines[0] == lines[1] || lines[2] != "1024" || lines[3] != "drwx------" {
		t.Errorf("%d %q", code, out)
	}
}
