package step

import (
	"encoding/hex"
	"errors"
	"io/fs"
	"runtime"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/moby/buildkit/solver/pb"

	"corten.dev/corten/internal/errs"
)

const qemuARM64 = "enabled\ninterpreter /usr/bin/qemu-aarch64-static\nflags: OCF\noffset 0\nmagic 7f454c460201010000000000000000000200b700\nmask ffffffffffffff00fffffffffffffffffeffffff\n"

func TestEmulators(t *testing.T) {
	file := func(text string) *fstest.MapFile { return &fstest.MapFile{Data: []byte(text)} }
	on := fstest.MapFS{"status": file("enabled\n"), "register": {Mode: 0o200}, "qemu-aarch64": file(qemuARM64), "jar": file("enabled\ninterpreter /usr/bin/jexec\nflags: \nextension .jar\n")}
	for arch, want := range map[string]bool{"arm64": true, "s390x": false, "arm": false, "amd64": false, "pdp11": false} {
		if emulated(on, arch) != want {
			t.Errorf("%s: %v", arch, !want)
		}
	}
	off := fstest.MapFS{"status": file("enabled\n"), "qemu-aarch64": file(strings.Replace(qemuARM64, "enabled", "disabled", 1))}
	all := fstest.MapFS{"status": file("disabled\n"), "qemu-aarch64": file(qemuARM64)}
	for name, dir := range map[string]fs.FS{"handler": off, "all": all, "none": fstest.MapFS{}} {
		if emulated(dir, "arm64") {
			t.Errorf("%s disabled: arm64 runs", name)
		}
	}
}

func TestRunnable(t *testing.T) {
	for _, p := range []*pb.Platform{nil, {}, {OS: "linux"}, {OS: "linux", Architecture: runtime.GOARCH}} {
		if err := runnable(p); err != nil {
			t.Errorf("%v: %v", p, err)
		}
	}
	err := runnable(&pb.Platform{OS: "linux", Architecture: "pdp11", Variant: "v7"})
	if !errors.Is(err, errs.Unavailable) || !strings.Contains(err.Error(), "platform linux/pdp11/v7") || !strings.Contains(err.Error(), "qemu-user-static") {
		t.Error(err)
	}
	if err := runnable(&pb.Platform{OS: "windows", Architecture: "amd64"}); !errors.Is(err, errs.NotImplemented) {
		t.Error(err)
	}
}

func FuzzHandler(f *testing.F) {
	f.Add([]byte(qemuARM64))
	f.Add([]byte("enabled\noffset 99999999999\nmagic 00\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		h, ok := parseHandler(text)
		if !ok {
			return
		}
		h.takes(machines["arm64"].program())
		if len(h.magic) != len(h.mask) || len(hex.EncodeToString(h.magic)) == 0 {
			t.Errorf("%+v", h)
		}
	})
}
