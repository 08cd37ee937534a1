package steps_test

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"syscall"
	"testing"

	"corten.dev/corten/internal/snapshot"
)

// parts are what this test program does inside of a step, where busybox cannot.
var parts = map[string]func(args []string) error{
	"engine": engine,
	// as becomes a user, as gosu does, and then another program.
	"as": func(args []string) error {
		uid, err := strconv.Atoi(args[0])
		if err != nil {
			return err
		}
		if err := syscall.Setuid(uid); err != nil {
			return err
		}
		return syscall.Exec(args[1], args[1:], os.Environ())
	},
	// dial connects to a socket, writes a word and prints what comes back.
	"dial": func(args []string) error {
		c, err := net.Dial("unix", args[0])
		if err != nil {
			return err
		}
		defer c.Close()
		want := 3 + len(args[1])
		if _, err := c.Write([]byte(args[1])); err != nil {
			return err
		}
		_, err = io.CopyN(os.Stdout, c, int64(want))
		return err
	},
}

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && parts[os.Args[1]] != nil {
		if err := parts[os.Args[1]](os.Args[2:]); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// withSelf is the base with this program as /self.
func (h *host) withSelf() snapshot.ChainID {
	h.t.Helper()
	self, err := os.ReadFile("/proc/self/exe")
	must(h.t, err)
	var b bytes.Buffer
	tw := tar.NewWriter(&b)
	must(h.t, tw.WriteHeader(&tar.Header{Name: "self", Typeflag: tar.TypeReg, Mode: 0o755, Size: int64(len(self))}))
	_, err = tw.Write(self)
	must(h.t, err)
	must(h.t, tw.Close())
	layer, err := h.trees.Apply(h.t.Context(), h.base, "", &b)
	must(h.t, err)
	return layer.Chain
}
