package cli

import (
	"strings"
	"testing"
)

// `load -i FOLDER` said "use of closed network connection": the connection is closed when what is sent cannot be read, and nobody said why.
func TestWhatCannotBeReadIsNamed(t *testing.T) {
	f := newFake(t, nil)
	dir := t.TempDir()
	for _, args := range [][]string{{"load", "-i", dir}, {"import", dir, "x"}, {"volume", "import", "v", dir}} {
		_, errOut, code := f.run("", args...)
		if code != 1 || !strings.Contains(errOut, dir+": is a directory") || strings.Contains(errOut, "closed") {
			t.Errorf("%v: %d %s", args, code, errOut)
		}
	}
}
