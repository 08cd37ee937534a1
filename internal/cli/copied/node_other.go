//go:build !linux

package copied

import (
	"archive/tar"
	"io/fs"

	"corten.dev/corten/internal/errs"
)

// node refuses: this system's files are not the container's.
func (x *extractor) node(name string, h *tar.Header, _ fs.FileMode) error {
	return errs.New(errs.NotImplemented, "pipes and devices can be copied on Linux only (%s)", name)
}
