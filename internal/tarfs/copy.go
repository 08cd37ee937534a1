package tarfs

import (
	"context"
	"io"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"

	"corten.dev/corten/internal/errs"
)

// ExtractTo extracts an archive into the directory name of root. Links, in name and in the way of the archive's names, resolve
// inside of root.
func ExtractTo(ctx context.Context, root *os.File, name string, r io.Reader, opts Options) error {
	fd, real, err := openDir(int(root.Fd()), strings.TrimPrefix(path.Clean("/"+name), "/"))
	if err == unix.ENOTDIR {
		return errs.New(errs.Invalid, "extraction point is not a directory")
	}
	if err != nil {
		if err == unix.ENOENT || err == unix.ELOOP {
			return errs.New(errs.NotFound, "%s: %w", name, err)
		}
		return &os.PathError{Op: "open", Path: name, Err: err}
	}
	unix.Close(fd)
	opts.At = real
	_, err = Extract(ctx, root, r, opts)
	return err
}
