package containers

import (
	"bufio"
	"io"
	"os"
	"path"
	"path/filepath"
	"strings"

	"corten.dev/corten/internal/container"
	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/safefs"
)

// checkBind refuses a bind that the kernel would refuse with less clear words, or that would silently not do what it says.
func checkBind(r *run, mnt container.Mount, source os.FileInfo) error {
	if err := checkPropagation(mnt); err != nil {
		return err
	}
	for _, other := range r.rec.Mounts {
		if other.Target != mnt.Target && strings.HasPrefix(mnt.Target, other.Target+"/") {
			return nil // what is below another mount is not to be seen yet
		}
	}
	target, err := safefs.Open(r.mounted.Root, path.Join("/", mnt.Target), safefs.Handle, 0)
	if err != nil {
		return nil //nolint:nilerr // it will be made
	}
	defer target.Close()
	if fi, err := target.Stat(); err != nil || fi.IsDir() == source.IsDir() {
		return err
	}
	return errs.New(errs.Invalid, "%s: error mounting %q to rootfs at %q: not a directory: Are you trying to mount a directory onto a file (or vice-versa)? "+
		"Check if the specified host path exists and is the expected type", notCreated, mnt.Source, mnt.Target)
}

// checkPropagation: mounts come in or go out only where the host's mount that the source lies on does that too.
func checkPropagation(mnt container.Mount) error {
	kind := strings.TrimPrefix(mnt.Request.Propagation, "r") // what nobody asked for may mean nothing
	if kind != "shared" && kind != "slave" {
		return nil
	}
	real, err := filepath.EvalSymlinks(mnt.Source)
	if err != nil {
		return err
	}
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	defer f.Close()
	at, fields, err := mountOf(f, real)
	switch {
	case err != nil:
		return err
	case strings.Contains(fields, "shared:") || kind == "slave" && strings.Contains(fields, "master:"):
		return nil
	case kind == "slave":
		return errs.New(errs.Invalid, "path %s is mounted on %s but it is not a shared or slave mount", mnt.Source, at)
	}
	return errs.New(errs.Invalid, "path %s is mounted on %s but it is not a shared mount", mnt.Source, at)
}

// mountOf finds the mount that a path lies on, and its optional fields: "36 35 98:0 /root /mnt rw,noatime shared:1 master:2 - ext3 …".
func mountOf(table io.Reader, name string) (at, optional string, err error) {
	unescape := strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)
	lines := bufio.NewScanner(table)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		head, _, _ := strings.Cut(lines.Text(), " - ")
		f := strings.Fields(head)
		if len(f) < 6 {
			continue
		}
		point := path.Clean(unescape.Replace(f[4]))
		if below := point == "/" || name == point || strings.HasPrefix(name, point+"/"); below && len(point) >= len(at) { // a later line lies over an earlier one
			at, optional = point, strings.Join(f[6:], " ")
		}
	}
	return at, optional, lines.Err()
}
