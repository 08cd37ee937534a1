// Package disk keeps a registry's bytes in a folder of a local file system.
//
// It owns that folder:
//
//	blobs/<algorithm>/<hh>/<hex>   whole and verified; never changed; the modification time is when it was last stored or touched
//	uploads/<id>                   bytes of a blob that is still coming; the attribute user.corten.hash says how far it is hashed
//	values/<key>                   a small value, a file for each
//	tmp/<random>                   a value before it has its name
//	lock                           byte i of it is locked while somebody moves a name of shard i
//
// It promises: what has a name was flushed before, its content and its name; a killed process leaves nothing but files in uploads (resumed, or
// collected by age) and in tmp (removed an hour later, by the next one that opens the folder); several processes may work on one folder. There is no
// lock over writing or flushing: a shard's lock covers one rename, touch or compared removal, each of which takes microseconds and waits for nothing.
//
// Why this is not the content room of the engine: a registry keeps sha384 and sha512 too, lets sessions be named by their clients' requests, moves the
// time of a blob that somebody counts on, deletes on conditions, and shares its folder between processes. The content room would learn all that for
// one user only; and rooms of one floor do not know each other. What they share is the way: written aside, verified, flushed, then named.
package disk

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/registry/server"
)

// Options describe a folder.
type Options struct {
	Root   string
	Logger *slog.Logger // nil: no log
}

// Driver is a server.Driver on a folder.
type Driver struct {
	root    string
	boot    string // id of this boot of the host; "" if it has none
	log     *slog.Logger
	shards  *shards
	flushes flushes
	open    server.Uploads
}

var _ server.Driver = (*Driver)(nil)

// algorithms are the digests that can be kept: each has a folder.
var algorithms = []digest.Algorithm{digest.SHA256, digest.SHA384, digest.SHA512}

const tmpAge = time.Hour

// New opens or makes the folder.
func New(opts Options) (*Driver, error) {
	if opts.Root == "" {
		return nil, errs.New(errs.Invalid, "a registry on disk needs a folder")
	}
	d := &Driver{root: opts.Root, log: opts.Logger}
	if d.log == nil {
		d.log = slog.New(slog.DiscardHandler)
	}
	for _, dir := range []string{"", "blobs", "uploads", "values", "tmp"} {
		if err := os.MkdirAll(filepath.Join(d.root, dir), 0o700); err != nil {
			return nil, fmt.Errorf("open registry folder: %w", err)
		}
	}
	var err error
	if d.shards, err = openShards(filepath.Join(d.root, "lock"), d.log); err != nil {
		return nil, fmt.Errorf("open registry folder: %w", err)
	}
	if boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id"); err == nil {
		d.boot = string(boot)
	}
	if err := d.tidy(); err != nil {
		d.shards.close()
		return nil, fmt.Errorf("open registry folder: %w", err)
	}
	return d, nil
}

// tidy removes what killed processes left before they named it. Another process may be writing just now, hence the age.
func (d *Driver) tidy() error {
	old, err := os.ReadDir(d.tmp(""))
	if err != nil {
		return err
	}
	for _, e := range old {
		if info, err := e.Info(); err != nil || time.Since(info.ModTime()) < tmpAge {
			continue
		}
		if err := os.Remove(d.tmp(e.Name())); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return nil
}

// Close lets go of the folder.
func (d *Driver) Close() error { return d.shards.close() }

func (d *Driver) tmp(name string) string    { return filepath.Join(d.root, "tmp", name) }
func (d *Driver) upload(id string) string   { return filepath.Join(d.root, "uploads", id) }
func (d *Driver) blobs(more string) string  { return filepath.Join(d.root, "blobs", more) }
func (d *Driver) values(more string) string { return filepath.Join(d.root, "values", more) }

// path is where a blob is. The digest is checked, because it becomes a file name.
func (d *Driver) path(dgst digest.Digest) (string, error) {
	if err := server.CheckDigest(dgst); err != nil {
		return "", err
	}
	hex := dgst.Encoded()
	return filepath.Join(d.root, "blobs", dgst.Algorithm().String(), hex[:2], hex), nil
}

func blobError(dgst digest.Digest, err error) error {
	if errors.Is(err, os.ErrNotExist) {
		return errs.New(errs.NotFound, "blob %s: not found", dgst)
	}
	return fmt.Errorf("blob %s: %w", dgst, err)
}

// Stat describes a blob.
func (d *Driver) Stat(_ context.Context, dgst digest.Digest) (server.BlobInfo, error) {
	path, err := d.path(dgst)
	if err != nil {
		return server.BlobInfo{}, err
	}
	st, err := os.Stat(path)
	if err != nil {
		return server.BlobInfo{}, blobError(dgst, err)
	}
	return server.BlobInfo{Digest: dgst, Size: st.Size(), Stored: st.ModTime()}, nil
}

// Open reads a part of a blob.
func (d *Driver) Open(_ context.Context, dgst digest.Digest, offset, length int64) (io.ReadCloser, error) {
	path, err := d.path(dgst)
	if err != nil {
		return nil, err
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, blobError(dgst, err)
	}
	if offset > 0 {
		if _, err := f.Seek(offset, io.SeekStart); err != nil {
			return nil, errors.Join(blobError(dgst, err), f.Close())
		}
	}
	if length < 0 {
		return f, nil // *os.File is an io.WriterTo, and is sent by the kernel
	}
	return &section{f: f, left: io.LimitedReader{R: f, N: length}}, nil
}

// section is a part of a file that the kernel can send without copying it.
type section struct {
	f    *os.File
	left io.LimitedReader
}

func (s *section) Read(p []byte) (int, error) { return s.left.Read(p) }
func (s *section) Close() error               { return s.f.Close() }

// WriteTo hands the file itself down, so that what is below can use sendfile.
func (s *section) WriteTo(w io.Writer) (int64, error) {
	if rf, ok := w.(io.ReaderFrom); ok {
		return rf.ReadFrom(&s.left)
	}
	return io.Copy(w, &s.left)
}

// Touch moves the time of a blob.
func (d *Driver) Touch(ctx context.Context, dgst digest.Digest) (server.BlobInfo, error) {
	path, err := d.path(dgst)
	if err != nil {
		return server.BlobInfo{}, err
	}
	err = d.shards.with(string(dgst), func() error {
		now := time.Now()
		return os.Chtimes(path, now, now)
	})
	if err != nil {
		return server.BlobInfo{}, blobError(dgst, err)
	}
	return d.Stat(ctx, dgst)
}

// DeleteBlob removes a blob that is older than that.
func (d *Driver) DeleteBlob(_ context.Context, dgst digest.Digest, before time.Time) error {
	path, err := d.path(dgst)
	if err != nil {
		return err
	}
	gone := false
	err = d.shards.with(string(dgst), func() error {
		st, err := os.Stat(path)
		if errors.Is(err, os.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		if !st.ModTime().Before(before) {
			return errs.New(errs.Conflict, "it was stored at %s", st.ModTime().Format(time.RFC3339))
		}
		gone = true
		return os.Remove(path)
	})
	if err != nil {
		return fmt.Errorf("delete blob %s: %w", dgst, err)
	}
	if gone {
		return d.flushes.dir(filepath.Dir(path))
	}
	return nil
}

// WalkBlobs goes through the folders of blobs.
func (d *Driver) WalkBlobs(ctx context.Context, fn func(server.BlobInfo) error) error {
	for _, alg := range algorithms {
		top := d.blobs(alg.String())
		shards, err := os.ReadDir(top)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("list blobs: %w", err)
		}
		for _, shard := range shards {
			entries, err := os.ReadDir(filepath.Join(top, shard.Name()))
			if err != nil {
				return fmt.Errorf("list blobs: %w", err)
			}
			for _, e := range entries {
				if err := ctx.Err(); err != nil {
					return err
				}
				dgst := digest.NewDigestFromEncoded(alg, e.Name())
				info, err := e.Info()
				if err != nil || dgst.Validate() != nil {
					continue // deleted meanwhile, or not ours
				}
				if err := fn(server.BlobInfo{Digest: dgst, Size: info.Size(), Stored: info.ModTime()}); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// place gives a flushed file its name below dir, making dir as needed (it may be removed as empty at the same time).
func (d *Driver) place(from, to, lock string) error {
	dir := filepath.Dir(to)
	for try := 0; ; try++ {
		err := d.shards.with(lock, func() error { return unix.Rename(from, to) })
		if err == nil {
			return d.flushes.dir(dir)
		}
		if !errors.Is(err, unix.ENOENT) || try == 8 {
			return &os.LinkError{Op: "rename", Old: from, New: to, Err: err}
		}
		if err := d.makeDir(dir); err != nil {
			return err
		}
	}
}

// makeDir is MkdirAll that flushes each folder which got a new entry.
func (d *Driver) makeDir(dir string) error {
	err := os.Mkdir(dir, 0o700)
	switch {
	case err == nil:
		return d.flushes.dir(filepath.Dir(dir))
	case errors.Is(err, os.ErrExist):
		return nil
	case !errors.Is(err, os.ErrNotExist) || dir == d.root:
		return err
	}
	if err := d.makeDir(filepath.Dir(dir)); err != nil {
		return err
	}
	return d.makeDir(dir)
}
