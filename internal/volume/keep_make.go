package volume

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/linux/quota"
	"corten.dev/corten/internal/tarfs"
)

// makeWith makes a volume with content:
//
//	.making/<name>@<n> ─ filled, flushed ─▶ record, flushed ─▶ rename to <root>/<name>
//	(dropped at start)                      (renamed at start)
func (s *LocalStore) makeWith(ctx context.Context, opts CreateOptions, fill func(data *os.File) error) (Volume, error) {
	rec, err := newRecord(opts)
	if err != nil {
		return Volume{}, err
	}
	if rec.Options["type"] != "" {
		return Volume{}, errs.New(errs.Invalid, "create %s: a volume that is a mount (type %s) takes no content when it is made", rec.Name, rec.Options["type"])
	}
	e := newEntry(nil)
	e.gate <- struct{}{} // nobody else knows it yet
	defer e.leave()
	s.mu.Lock()
	_, there := s.vols[rec.Name]
	if !there {
		s.vols[rec.Name] = e
	}
	s.mu.Unlock()
	if there {
		return Volume{}, errs.New(errs.Conflict, "create %s: conflict: volume name must be unique", rec.Name)
	}
	rec.Filled = true
	err = s.fillNew(rec, fill)
	s.mu.Lock()
	if err == nil {
		e.rec = rec
	} else {
		delete(s.vols, rec.Name)
	}
	s.mu.Unlock()
	if err != nil {
		return Volume{}, fmt.Errorf("create volume %s: %w", rec.Name, err)
	}
	vol := s.volume(rec)
	vol.Made = true
	return vol, nil
}

func (s *LocalStore) fillNew(rec *stored, fill func(data *os.File) error) (err error) {
	dir := s.makingName(rec.Name)
	if err := os.MkdirAll(filepath.Dir(dir), 0o700); err != nil {
		return err
	}
	if err := os.Mkdir(dir, 0o701); err != nil {
		return err
	}
	written := false
	defer func() {
		if err == nil {
			return
		}
		if written {
			err = errors.Join(err, s.records.Delete(rec.Name, true))
		}
		err = errors.Join(err, unmountAll(filepath.Join(dir, dataDir)), unbound(rec, dir), removeTree(dir))
	}()
	data := filepath.Join(dir, dataDir)
	if err := os.Mkdir(data, 0o755); err != nil {
		return err
	}
	if err := bound(rec, dir); err != nil {
		return err
	}
	if err := settleImage(rec, dir); err != nil {
		return err
	}
	if rec.Image {
		if err := mountImage(filepath.Join(dir, imageFile), data); err != nil {
			return err
		}
	}
	if err := into(data, fill); err != nil {
		return err
	}
	if rec.Image {
		if err := unmountAll(data); err != nil {
			return err
		}
	}
	if err := syncDir(dir); err != nil {
		return err
	}
	if err := s.records.Put(rec.Name, *rec, true); err != nil {
		return err
	}
	written = true
	if err := os.Rename(dir, s.dir(rec.Name)); err != nil {
		return err
	}
	return syncDir(s.root)
}

// into fills a directory and has the file system write it.
func into(path string, fill func(data *os.File) error) error {
	dir, err := openDir(unix.AT_FDCWD, path, 0)
	if err != nil {
		return err
	}
	err = fill(dir)
	return errors.Join(err, dir.Close())
}

// recoverMaking finishes volumes that had their record, and drops the others.
func (s *LocalStore) recoverMaking(recs map[string]stored) error {
	entries, err := os.ReadDir(filepath.Join(s.root, makingDir))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		dir := filepath.Join(s.root, makingDir, e.Name())
		if err := unmountAll(filepath.Join(dir, dataDir)); err != nil {
			return err
		}
		name, _, _ := strings.Cut(e.Name(), "@")
		if _, ok := recs[name]; ok {
			if _, err := os.Lstat(s.dir(name)); errors.Is(err, fs.ErrNotExist) {
				if err := os.Rename(dir, s.dir(name)); err != nil {
					return err
				}
				continue
			}
		}
		s.log.Info("dropped a volume that was not copied to the end", "volume", name)
		if err := errors.Join(dropProject(dir), removeTree(dir)); err != nil {
			s.log.Warn("what is left of a copy stays", "path", dir, "err", err)
		}
	}
	return nil
}

// dropProject takes the limit away from the project of a volume that no record tells of.
func dropProject(dir string) error {
	data, err := openDir(unix.AT_FDCWD, filepath.Join(dir, dataDir), 0)
	if err != nil {
		return nil //nolint:nilerr // it has none yet
	}
	defer data.Close() //nolint:errcheck // a directory
	if id, err := quota.Of(data); err == nil && id != 0 && quota.Enforced(data) == nil {
		return quota.SetLimit(data, id, 0)
	}
	return nil
}

// Clone implements [Keeper].
func (s *LocalStore) Clone(ctx context.Context, what CopySource, opts CreateOptions) (vol Volume, err error) {
	old, err := s.Get(ctx, what.Name)
	if err != nil {
		return vol, err
	}
	if opts.Labels == nil {
		opts.Labels = maps.Clone(old.Labels)
		delete(opts.Labels, AnonymousLabel)
	}
	if size, ok := old.Options["size"]; ok && opts.Options == nil {
		opts.Options = map[string]string{"size": size}
	}
	src, err := s.from(ctx, what)
	if err != nil {
		return vol, err
	}
	defer func() { err = errors.Join(err, src.close()) }()
	return s.makeWith(ctx, opts, func(data *os.File) error {
		return s.still(ctx, what, src, func() error { return copyVolume(ctx, src.dir, data) })
	})
}

// Export implements [Keeper].
func (s *LocalStore) Export(ctx context.Context, what CopySource, w io.Writer) (err error) {
	src, err := s.from(ctx, what)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, src.close()) }()
	if what.Snapshot == "" && what.Quiesce != nil {
		if err := s.readCopy(ctx, what, src); err != nil {
			return fmt.Errorf("export volume %s: %w", what.Name, err)
		}
	}
	if err := tarfs.Write(ctx, src.dir, w, tarfs.WriteOptions{Root: true}); err != nil {
		return fmt.Errorf("export volume %s: %w", what.Name, err)
	}
	return nil
}

// readCopy has a source read a copy of itself, which goes when the source is closed, and with a killed engine at start.
func (s *LocalStore) readCopy(ctx context.Context, what CopySource, src *source) error {
	at := s.snapshotPath(what.Name, "@"+filepath.Base(s.makingName(what.Name)))
	if err := s.copyAside(ctx, what, src, at); err != nil {
		return err
	}
	src.done = append(src.done, func() error { return removeTree(at) })
	return src.open(at)
}

// Import implements [Keeper].
func (s *LocalStore) Import(ctx context.Context, opts CreateOptions, r io.Reader) (Volume, error) {
	return s.makeWith(ctx, opts, func(data *os.File) error {
		end := &archiveEnd{r: r}
		if _, err := tarfs.Extract(ctx, data, end, tarfs.Options{Root: true, Holes: true}); err != nil {
			return err
		}
		if !end.reached() {
			return errs.New(errs.Invalid, "the archive is cut off: it has no end")
		}
		return retry(func() error { return unix.Syncfs(int(data.Fd())) })
	})
}

// archiveEnd tells whether an archive ended with blocks of zeros, as all do that were written to the end: one that a broken pipe cut between two files would be taken for whole.
type archiveEnd struct {
	r     io.Reader
	zeros int64 // at the end of what was read
}

func (a *archiveEnd) Read(p []byte) (int, error) {
	n, err := a.r.Read(p)
	for i := n - 1; ; i-- {
		if i < 0 {
			a.zeros += int64(n)
			break
		}
		if p[i] != 0 {
			a.zeros = int64(n - 1 - i)
			break
		}
	}
	return n, err
}

func (a *archiveEnd) reached() bool { return a.zeros >= 1024 }
