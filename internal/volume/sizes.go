package volume

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"github.com/docker/go-units"
	"golang.org/x/sys/unix"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/linux/ext4"
	"corten.dev/corten/internal/linux/quota"
)

// A volume made with size=… holds that many bytes and no more. Where the file system of the volumes enforces project quotas, the volume's directory is a project. Elsewhere the volume is an ext4 file
// system in a sparse image beside its directory, mounted while it is used.

// sizeOf reads the option size; 0 is no limit.
func sizeOf(opts map[string]string) (int64, error) {
	text, given := opts["size"]
	if !given {
		return 0, nil
	}
	if opts["type"] != "" {
		return 0, errs.New(errs.Invalid, "invalid option: %q limits directories of this host: a file system of type %s has options of its own for that (o=size=… of a tmpfs)", "size", opts["type"])
	}
	size, err := units.RAMInBytes(text)
	if err != nil || size < 0 {
		return 0, errs.New(errs.Invalid, "invalid option: size %q is no number of bytes, as 10G", text)
	}
	if size > 0 && size < ext4.MinSize || size > ext4.MaxSize {
		return 0, errs.New(errs.Invalid, "invalid option: size %q is not between %s and %s", text, units.BytesSize(ext4.MinSize), units.BytesSize(ext4.MaxSize))
	}
	return size, nil
}

// isMount tells whether a volume's content is a file system of its own, mounted while it is used.
func (rec *stored) isMount() bool { return rec.Image || rec.Options["type"] != "" }

// bound gives a new volume, whose folder is dir, its limit; what it chooses is noted in the record. An image gets its name when the record is written: see [LocalStore.settleImage].
func bound(rec *stored, dir string) error {
	size, err := sizeOf(rec.Options)
	if err != nil || size == 0 {
		return err
	}
	data, err := openDir(unix.AT_FDCWD, filepath.Join(dir, dataDir), 0)
	if err != nil {
		return err
	}
	defer data.Close() //nolint:errcheck // a directory
	none := quota.Enforced(data)
	if none == nil {
		if rec.Project, err = quota.Free(data); err != nil {
			return err
		}
		return quota.Limit(data, rec.Project, size)
	}
	rec.Image = true
	if err := makeImage(filepath.Join(dir, newImage), filepath.Join(dir, dataDir), size); err != nil {
		return fmt.Errorf("%w (%w)", err, none)
	}
	return nil
}

// makeImage makes an image and tries on a directory whether it can be mounted, so that one who wants a limit learns at once that there can be none.
func makeImage(path, at string, size int64) error {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	err = ext4.Format(f, size)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err := mountImage(path, at); err != nil {
		return fmt.Errorf("no way to limit the size of a volume: %w", err)
	}
	return unmountAll(at)
}

// settleImage gives a new image its name, once there is a record of the volume: one without a record and with this name has content, and is kept.
func settleImage(rec *stored, dir string) error {
	if !rec.Image {
		return nil
	}
	err := os.Rename(filepath.Join(dir, newImage), filepath.Join(dir, imageFile))
	if errors.Is(err, os.ErrNotExist) {
		if _, serr := os.Lstat(filepath.Join(dir, imageFile)); serr == nil {
			return nil
		}
	}
	if err != nil {
		return err
	}
	return syncDir(dir)
}

// unbound forgets the limit of a volume that goes. A project without files is free for others.
func unbound(rec *stored, dir string) error {
	if rec.Project == 0 {
		return nil
	}
	top, err := openDir(unix.AT_FDCWD, dir, 0)
	if err != nil {
		return err
	}
	err = quota.SetLimit(top, rec.Project, 0)
	return errors.Join(err, top.Close())
}

// aside makes a directory beside a volume's, from which files can be moved into it: of the same project.
func aside(rec *stored, path string) error {
	if err := os.Mkdir(path, 0o700); err != nil {
		return err
	}
	if rec.Project == 0 {
		return nil
	}
	dir, err := openDir(unix.AT_FDCWD, path, 0)
	if err != nil {
		return err
	}
	err = quota.Join(dir, rec.Project)
	return errors.Join(err, dir.Close())
}

// status is what inspect tells about a volume with a limit.
func (rec *stored) status() map[string]any {
	size, err := sizeOf(rec.Options)
	if err != nil || size == 0 {
		return nil
	}
	by := "project quota"
	if rec.Image {
		by = "ext4 image"
	}
	return map[string]any{"Size": strconv.FormatInt(size, 10), "LimitedBy": by}
}
