//go:build !linux

package copied

import (
	"archive/tar"
	"io/fs"
	"os"
	"time"

	"corten.dev/corten/internal/errs"
)

// node refuses: this system's files are not the container's.
func node(_ *os.Root, name string, _ *tar.Header, _ fs.FileMode) error {
	return errs.New(errs.NotImplemented, "pipes and devices can be made on Linux only (%s)", name)
}

// linkTime leaves a symbolic link with the time at which it was made.
func linkTime(*os.Root, string, time.Time) error { return nil }

// capabilities are unknown on this system.
func capabilities(*os.File) string { return "" }

// setCapabilities goes without.
func setCapabilities(*os.File, string) error { return nil }
