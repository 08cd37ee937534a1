package tarfs

import (
	"context"
	"errors"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"corten.dev/corten/internal/errs"
)

// WriteChanges writes what differs between two whole trees as a layer archive: what is new or changed, with the directories it lies in, and
// a deletion for what is gone.
func WriteChanges(ctx context.Context, before, after *os.File, w io.Writer, opts WriteOptions) error {
	wr := newWriter(ctx, w, opts)
	// Names that look like deletions are refused as in a layer's own directory; overlayfs' marks have no meaning in a plain tree.
	wr.layer = true
	if opts.Root {
		if err := wr.rootEntry(int(after.Fd()), "."); err != nil {
			return err
		}
	}
	err := Compare(ctx, before, after, func(path string, how Change) {
		if wr.err != nil || wr.omits(path[1:]) {
			return
		}
		wr.err = wr.changed(int(after.Fd()), path[1:], how)
	})
	if err = errs.Also(err, wr.err); err != nil {
		return err
	}
	return wr.close()
}

func (w *writer) changed(root int, path string, how Change) error {
	at, base := split(path)
	if how == Deleted {
		return w.marker(join(at, whPrefix+base))
	}
	dir, err := openIn(root, at, unix.O_RDONLY|unix.O_DIRECTORY, resolveStrict)
	if err == unix.ENOENT {
		return nil // gone meanwhile
	}
	if err != nil {
		return &os.PathError{Op: "open", Path: "/" + at, Err: err}
	}
	defer unix.Close(dir)
	err = w.single(dir, base, path)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	return err
}
