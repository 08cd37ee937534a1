package overlay

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"corten.dev/corten/internal/errs"
)

// Supported tells whether overlayfs works in the folder root (which is made when missing), by a real mount in it: a file below is
// seen, deleted, and its deletion is seen. The error says what does not work.
func Supported(root string) error {
	if err := os.MkdirAll(root, 0o711); err != nil {
		return err
	}
	if old, err := filepath.Glob(filepath.Join(root, ".try-*")); err == nil {
		for _, dir := range old {
			_ = os.RemoveAll(dir) // of a killed process; the next one tries again
		}
	}
	dir, err := os.MkdirTemp(root, ".try-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	return errs.As(errs.NotImplemented, try(dir))
}

func try(dir string) (err error) {
	s, err := New(Options{Root: dir, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		return err
	}
	defer func() { err = errs.Also(err, s.Close()) }()
	l := layout{lower: []string{filepath.Join(dir, "low")}, upper: filepath.Join(dir, "up"), work: filepath.Join(dir, "work")}
	for _, path := range []string{l.lower[0], l.upper, l.work} {
		if err := os.Mkdir(path, 0o755); err != nil {
			return err
		}
	}
	if err := os.WriteFile(filepath.Join(l.lower[0], "file"), nil, 0o600); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(l.lower[0], "other"), nil, 0o600); err != nil {
		return err
	}
	root, err := s.mount(l)
	if err != nil {
		return err
	}
	defer func() { err = errs.Also(err, root.Close()) }()
	if err := unix.Unlinkat(int(root.Fd()), "file", 0); err != nil {
		return fmt.Errorf("overlay: delete a file of the layer below: %w", err)
	}
	if err := unix.Faccessat(int(root.Fd()), "file", unix.F_OK, 0); err != unix.ENOENT {
		return fmt.Errorf("overlay: a deleted file is still there: %w", err)
	}
	if err := unix.Faccessat(int(root.Fd()), "other", unix.F_OK, 0); err != nil {
		return fmt.Errorf("overlay: a file of the layer below is not there: %w", err)
	}
	var st unix.Stat_t
	if err := unix.Stat(filepath.Join(l.upper, "file"), &st); err != nil || st.Rdev != 0 {
		return fmt.Errorf("overlay: no mark for the deleted file: %w", err)
	}
	// Files without a type in their directory make overlayfs show its own marks.
	fd, err := unix.Openat(int(root.Fd()), ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	top := os.NewFile(uintptr(fd), "overlay")
	defer top.Close()
	names, err := top.Readdirnames(-1)
	if err != nil {
		return err
	}
	if len(names) != 1 {
		return fmt.Errorf("overlay: shows %q instead of one file; the file system keeps no file types in its directories", names)
	}
	return nil
}
