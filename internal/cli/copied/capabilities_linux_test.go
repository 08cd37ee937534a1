package copied

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// A ping that was copied could no longer be used by anybody but root: docker's cp takes file capabilities along.
func TestCapabilitiesAreCopied(t *testing.T) {
	dir := t.TempDir()
	from, to := filepath.Join(dir, "from"), filepath.Join(dir, "to")
	netRaw := []byte{1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0} // vfs_cap_data, version 2: cap_net_raw=ep
	if err := errors.Join(os.Mkdir(to, 0o755), os.WriteFile(from, []byte("ping"), 0o755)); err != nil {
		t.Fatal(err)
	}
	if err := unix.Setxattr(from, capabilityAttr, netRaw, 0); err != nil {
		t.Skipf("no file capabilities here: %v", err)
	}
	src, err := Open(from, false)
	if err != nil {
		t.Fatal(err)
	}
	for _, owners := range []bool{false, true} {
		var stream bytes.Buffer
		if err := src.Write(&stream, "it"); err != nil {
			t.Fatal(err)
		}
		if err := Extract(&stream, Target{Dir: to, From: "it", To: "it"}, owners); err != nil {
			t.Fatal(err)
		}
		var have [64]byte
		n, err := unix.Getxattr(filepath.Join(to, "it"), capabilityAttr, have[:])
		if err != nil || !bytes.Equal(have[:n], netRaw) {
			t.Errorf("with owners %t the copy may do %x: %v", owners, have[:max(n, 0)], err)
		}
	}
}
