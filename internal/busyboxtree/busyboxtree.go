// Package busyboxtree makes a root file system of the host's static busybox, for tests and measures.
//
// It owns nothing. It promises that the same busybox gives the same bytes.
package busyboxtree

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// Path is where Debian's busybox-static has it.
const Path = "/bin/busybox"

// Tar gives the archive: busybox of that path under all its names; root, two users and their groups; a world-writable /tmp; a file of the user web in /data.
func Tar(path string) ([]byte, error) {
	bin, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("a static busybox is needed (Debian: busybox-static): %w", err)
	}
	list, err := exec.Command(path, "--list").Output()
	if err != nil {
		return nil, fmt.Errorf("names of %s: %w", path, err)
	}
	var buf bytes.Buffer
	tw := tar.NewWriter(&buf)
	add := func(h tar.Header, body string) {
		h.Size = int64(len(body))
		err = errors.Join(err, tw.WriteHeader(&h))
		_, werr := tw.Write([]byte(body))
		err = errors.Join(err, werr)
	}
	for _, dir := range []string{"bin/", "data/", "dev/", "etc/", "home/", "proc/", "root/", "sys/", "var/"} {
		add(tar.Header{Name: dir, Typeflag: tar.TypeDir, Mode: 0o755}, "")
	}
	add(tar.Header{Name: "tmp/", Typeflag: tar.TypeDir, Mode: 0o1777}, "")
	add(tar.Header{Name: "etc/passwd", Typeflag: tar.TypeReg, Mode: 0o644}, "root:x:0:0:root:/root:/bin/sh\nweb:x:500:501:web:/home/web:/bin/sh\nalice:x:1000:1000::/home/alice:/bin/sh\n")
	add(tar.Header{Name: "etc/group", Typeflag: tar.TypeReg, Mode: 0o644}, "root:x:0:\nstaff:x:50:alice\nweb:x:501:\nextra:x:600:root,web\nalice:x:1000:\n")
	add(tar.Header{Name: "data/seed", Typeflag: tar.TypeReg, Mode: 0o640, Uid: 500, Gid: 501}, "seed\n")
	add(tar.Header{Name: "bin/busybox", Typeflag: tar.TypeReg, Mode: 0o755}, string(bin))
	for name := range strings.FieldsSeq(string(list)) {
		if name = filepath.Base(name); name != "busybox" {
			add(tar.Header{Name: "bin/" + name, Typeflag: tar.TypeSymlink, Linkname: "busybox", Mode: 0o777}, "")
		}
	}
	return buf.Bytes(), errors.Join(err, tw.Close())
}
