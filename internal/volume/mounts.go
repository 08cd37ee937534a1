package volume

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"corten.dev/corten/internal/linux/loop"
)

// Mount returns the directory of a volume. One without options is a directory and nothing else; one with options is mounted for its first user.
func (s *LocalStore) Mount(ctx context.Context, name, user string) (string, error) {
	s.mu.Lock()
	e := s.vols[name]
	if e != nil && e.rec != nil && !e.rec.isMount() && !e.swapping {
		s.mu.Unlock()
		return s.data(name), nil
	}
	s.mu.Unlock()
	e, err := s.enter(ctx, name)
	if err != nil {
		return "", err
	}
	defer e.leave()
	s.mu.Lock()
	rec := *e.rec
	s.mu.Unlock()
	if !rec.isMount() {
		return s.data(name), nil
	}
	mounted, err := isMountpoint(s.data(name))
	if err != nil {
		return "", fmt.Errorf("mount volume %s: %w", name, err)
	}
	if !mounted {
		if err := s.mount(ctx, &rec); err != nil {
			return "", err
		}
	}
	if slices.Contains(rec.Mounters, user) {
		return s.data(name), nil
	}
	rec.Mounters = append(slices.Clone(rec.Mounters), user)
	rec.Boot = s.boot
	if err := s.save(e, &rec, false); err != nil { // a crash of the machine takes the mount along, so that no flush is needed
		if !mounted {
			err = errors.Join(err, s.unmount(&rec))
		}
		return "", fmt.Errorf("mount volume %s: %w", name, err)
	}
	return s.data(name), nil
}

// Unmount forgets a user's mount and unmounts after the last one. A user that never mounted is no error.
func (s *LocalStore) Unmount(ctx context.Context, name, user string) error {
	s.mu.Lock()
	e := s.vols[name]
	if e == nil || e.rec == nil || !e.rec.isMount() {
		s.mu.Unlock()
		return nil
	}
	s.mu.Unlock()
	e, err := s.enter(ctx, name)
	if err != nil {
		return err
	}
	defer e.leave()
	s.mu.Lock()
	rec := *e.rec
	s.mu.Unlock()
	i := slices.Index(rec.Mounters, user)
	if i < 0 {
		return nil
	}
	rec.Mounters = slices.Delete(slices.Clone(rec.Mounters), i, i+1)
	if len(rec.Mounters) == 0 {
		if err := s.unmount(&rec); err != nil {
			return err
		}
	}
	if err := s.save(e, &rec, false); err != nil {
		return fmt.Errorf("unmount volume %s: %w", name, err)
	}
	return nil
}

// isMountpoint asks the kernel whether something is mounted on a directory (Linux 5.8).
func isMountpoint(path string) (bool, error) {
	var st unix.Statx_t
	// Without asking the file system: one whose server is gone would never answer.
	err := unix.Statx(unix.AT_FDCWD, path, unix.AT_SYMLINK_NOFOLLOW|unix.AT_NO_AUTOMOUNT|unix.AT_STATX_DONT_SYNC, 0, &st)
	if err != nil {
		return false, fmt.Errorf("look at %s: %w", path, err)
	}
	return st.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0, nil
}

// mount mounts the file system of a volume on its directory.
func (s *LocalStore) mount(ctx context.Context, rec *stored) error {
	if err := s.mountOn(ctx, rec, s.data(rec.Name)); err != nil {
		return fmt.Errorf("mount volume %s: %w", rec.Name, err)
	}
	return nil
}

func (s *LocalStore) mountOn(ctx context.Context, rec *stored, target string) error {
	if rec.Image {
		return mountImage(filepath.Join(filepath.Dir(target), imageFile), target)
	}
	mo, err := parseOptions(rec.Options)
	if err == nil {
		err = mo.complete(ctx, theHost())
	}
	if err == nil {
		err = mo.mountOn(target)
	}
	return err
}

// mountImage mounts the file system in the image of a volume with a size. What is deleted in it takes no room in the image any more.
func mountImage(image, target string) error {
	mo := mountOptions{fstype: "ext4", device: image, data: []string{"discard"}, loop: true}
	return mo.mountOn(target)
}

// bindKeeps are the flags that a bind mount takes only afterwards, by a remount of itself.
const bindKeeps = unix.MS_RDONLY | unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC | unix.MS_NOATIME | unix.MS_NODIRATIME | unix.MS_RELATIME | unix.MS_STRICTATIME

func (mo *mountOptions) mountOn(target string) (err error) {
	device := mo.device
	if mo.loop {
		dev, err := loop.Attach(device, loop.Options{ReadOnly: mo.flags&unix.MS_RDONLY != 0})
		if err != nil {
			return err
		}
		defer dev.Close() // the mount holds it, and the last one lets it go
		device = dev.Name()
	}
	if err := unix.Mount(device, target, mo.fstype, mo.flags, strings.Join(mo.data, ",")); err != nil {
		return fmt.Errorf("mount %s on %s (type %s, data %q): %w", mo.device, target, mo.fstype, mo.shown(), mo.explain(err))
	}
	defer func() {
		if err == nil {
			return
		}
		if uerr := unix.Unmount(target, unix.MNT_DETACH); uerr != nil {
			err = errors.Join(err, fmt.Errorf("unmount %s: %w", target, uerr))
		}
	}()
	if keep := mo.flags & bindKeeps; mo.flags&unix.MS_BIND != 0 && keep != 0 {
		if err := unix.Mount("", target, "", unix.MS_BIND|unix.MS_REMOUNT|keep, ""); err != nil {
			return fmt.Errorf("remount %s: %w", target, err)
		}
	}
	for _, p := range mo.propagation {
		if err := unix.Mount("", target, "", p, ""); err != nil {
			return fmt.Errorf("change propagation of %s: %w", target, err)
		}
	}
	return nil
}

// unmount takes away what is mounted on a volume's directory, however often; nothing mounted is no error. A file system that is still in use by a process is let go of
// when that ends.
func (s *LocalStore) unmount(rec *stored) error {
	if !rec.isMount() {
		return nil
	}
	if err := unmountAll(s.data(rec.Name)); err != nil {
		return fmt.Errorf("unmount volume %s: %w", rec.Name, err)
	}
	return nil
}

func unmountAll(target string) error {
	for {
		mounted, err := isMountpoint(target)
		if errors.Is(err, unix.ENOENT) || err == nil && !mounted {
			return nil
		}
		if err != nil {
			return err
		}
		err = unix.Unmount(target, unix.UMOUNT_NOFOLLOW)
		if err == unix.EBUSY {
			err = unix.Unmount(target, unix.UMOUNT_NOFOLLOW|unix.MNT_DETACH)
		}
		if err != nil {
			return err
		}
	}
}
