package disk

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/registry/server"
)

// key is where a value is. The name is checked, because it becomes a path.
func (d *Driver) key(key string) (string, error) {
	if err := server.CheckKey(key); err != nil {
		return "", err
	}
	return d.values(key), nil
}

func valueError(key string, err error) error {
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.EISDIR) || errors.Is(err, unix.ENOTDIR) {
		return errs.New(errs.NotFound, "value %s: not found", key)
	}
	return fmt.Errorf("value %s: %w", key, err)
}

// Get reads a value.
func (d *Driver) Get(_ context.Context, key string) ([]byte, error) {
	path, err := d.key(key)
	if err != nil {
		return nil, err
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, valueError(key, err)
	}
	return data, nil
}

// Put writes a value aside, flushes it and gives it its name.
func (d *Driver) Put(_ context.Context, key string, value []byte) error {
	path, err := d.key(key)
	if err != nil {
		return err
	}
	tmp := d.tmp(rand.Text())
	if err := writeFlushed(tmp, value); err != nil {
		return fmt.Errorf("value %s: %w", key, errors.Join(err, removed(tmp)))
	}
	if err := d.place(tmp, path, key); err != nil {
		return fmt.Errorf("value %s: %w", key, errors.Join(err, removed(tmp)))
	}
	return nil
}

func writeFlushed(path string, value []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(value)
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

// removed takes away what has no name yet; it may be gone already.
func removed(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// Delete removes a value, and the folders that are empty without it.
func (d *Driver) Delete(_ context.Context, key string, old []byte) error {
	path, err := d.key(key)
	if err != nil {
		return err
	}
	gone := false
	err = d.shards.with(key, func() error {
		if old != nil {
			have, err := os.ReadFile(path)
			if errors.Is(err, os.ErrNotExist) {
				return nil
			}
			if err != nil {
				return err
			}
			if !bytes.Equal(have, old) {
				return errs.New(errs.Conflict, "it changed meanwhile")
			}
		}
		err := unix.Unlink(path)
		if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.EISDIR) {
			return nil
		}
		gone = err == nil
		return err
	})
	if err != nil {
		return fmt.Errorf("delete value %s: %w", key, err)
	}
	if !gone {
		return nil
	}
	dir := d.prune(filepath.Dir(path))
	if err := d.flushes.dir(dir); err != nil {
		return fmt.Errorf("delete value %s: %w", key, err)
	}
	return nil
}

// prune removes empty folders upwards and returns the first that stays. Whoever is about to put something there makes them again (see place).
func (d *Driver) prune(dir string) string {
	for dir != d.values("") && unix.Rmdir(dir) == nil {
		dir = filepath.Dir(dir)
	}
	return dir
}

// List reads one folder of values.
func (d *Driver) List(ctx context.Context, key, after string, fn func(name string, dir bool) error) error {
	path := d.values("")
	if key != "" {
		var err error
		if path, err = d.key(key); err != nil {
			return err
		}
	}
	entries, err := os.ReadDir(path) // sorted
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("list %s: %w", key, err)
	}
	for _, e := range entries {
		if e.Name() <= after {
			continue
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := fn(e.Name(), e.IsDir()); err != nil {
			return err
		}
	}
	return nil
}
