package overlay

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/linux/ext4"
	"corten.dev/corten/internal/linux/loop"
	"corten.dev/corten/internal/linux/mount"
	"corten.dev/corten/internal/linux/quota"
	"corten.dev/corten/internal/snapshot"
	"corten.dev/corten/internal/snapshot/depot"
)

// A tree with a size. Where the file system of the store enforces project quotas, its directories are the tops of one project. Elsewhere they lie in an ext4 file system in a sparse image:
//
//	trees/<id>/upper, work     of one project, whose limit is the size
//	or
//	trees/<id>/image           the file system: upper and work in it
//	trees/<id>/fs              an empty directory: where it is mounted, in the mount namespace of a thread that makes an overlay on it and then ends
//
// The image is attached to a loop device while something of it is mounted or looked at. There must be one device only, as each would be a file system of its own: within this process
// the map of devices sees to that, and the kernel knows the devices that mounts of an earlier engine hold. Nothing is left when all end: device and mounts go with their last user.

const imageOption = "discard" // what is deleted is given back to the host

// device is the loop device of an image, while somebody uses it.
type device struct {
	once sync.Once
	file *os.File
	err  error
	uses int // guarded by Store.mu
}

func inImage(t depot.Tree) bool {
	if t.Size == 0 {
		return false
	}
	_, err := os.Lstat(t.Dir + "/image")
	return err == nil
}

// prepareSized makes a tree whose files may take opts.Size bytes.
func (s *Store) prepareSized(key string, chain snapshot.ChainID, opts snapshot.Options) error {
	none := s.quotas()
	project := uint32(0)
	err := s.NewTree(key, chain, opts, func(dir string) (err error) {
		if none == nil {
			project, err = s.makeProject(dir, chain)
			return err
		}
		if err := s.makeImage(dir, chain, opts.Size); err != nil {
			return fmt.Errorf("no way to limit its size: %w (%w)", err, none)
		}
		return nil
	})
	if err != nil || project == 0 {
		return err
	}
	// Last, as a project without a tree would keep its limit for ever, and a tree without a limit goes with the container that is not there yet.
	if err := s.setLimit(project, opts.Size); err != nil {
		return errs.Also(err, s.Depot.Remove(context.Background(), key))
	}
	return nil
}

// quotas tells whether the kernel keeps limits of projects where the trees are.
func (s *Store) quotas() error {
	root, err := os.Open(s.Root())
	if err != nil {
		return err
	}
	return errors.Join(quota.Enforced(root), root.Close())
}

func (s *Store) setLimit(project uint32, bytes int64) error {
	root, err := os.Open(s.Root())
	if err != nil {
		return err
	}
	return errors.Join(quota.SetLimit(root, project, bytes), root.Close())
}

// makeProject makes the directories of a tree tops of one new project.
func (s *Store) makeProject(dir string, chain snapshot.ChainID) (project uint32, err error) {
	if err := s.makeDirs(dir, chain); err != nil {
		return 0, err
	}
	for _, name := range []string{"/upper", "/work"} {
		top, err := os.Open(dir + name)
		if err != nil {
			return 0, err
		}
		if project == 0 {
			project, err = quota.Free(top)
		}
		if err == nil {
			err = quota.Join(top, project)
		}
		if err = errors.Join(err, top.Close()); err != nil {
			return 0, err
		}
	}
	return project, nil
}

// projectOf is the project of a tree; 0 for none.
func projectOf(t depot.Tree) (uint32, error) {
	top, err := os.Open(t.Dir + "/upper")
	if err != nil {
		return 0, err
	}
	project, err := quota.Of(top)
	return project, errors.Join(err, top.Close())
}

// makeImage makes the file system of a tree, with its directories.
func (s *Store) makeImage(dir string, chain snapshot.ChainID, size int64) error {
	if err := unix.Mkdir(dir+"/fs", 0o700); err != nil {
		return &os.PathError{Op: "mkdir", Path: dir + "/fs", Err: err}
	}
	f, err := os.OpenFile(dir+"/image", os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	if err := errs.Also(ext4.Format(f, size), f.Close()); err != nil {
		return err
	}
	root, err := s.lookInto(dir)
	if err != nil {
		return err
	}
	return errs.Also(s.makeDirs("/proc/self/fd/"+strconv.Itoa(int(root.Fd())), chain), root.Close())
}

// lookInto mounts the image of a tree where nobody sees it.
func (s *Store) lookInto(dir string) (*os.File, error) {
	dev, done, err := s.attachImage(dir)
	if err != nil {
		return nil, err
	}
	defer done() // the mount holds it
	return mount.FS("ext4", dev, mount.Options{Data: []string{imageOption}})
}

// onImage fits a layout to a tree in an image. The device stays at least until done is called, and as long as what is mounted of it.
func (s *Store) onImage(t depot.Tree, l *layout) (done func(), err error) {
	l.at = t.Dir + "/fs"
	l.upper, l.work = l.at+"/upper", l.at+"/work"
	l.device, done, err = s.attachImage(t.Dir)
	return done, err
}

// openUpper opens the directory of a tree's own changes.
func (s *Store) openUpper(t depot.Tree) (*os.File, error) {
	if !inImage(t) {
		return os.Open(t.Dir + "/upper")
	}
	root, err := s.lookInto(t.Dir)
	if err != nil {
		return nil, fmt.Errorf("look into the image of a tree: %w", err)
	}
	defer root.Close() //nolint:errcheck // the directory holds the mount
	fd, err := unix.Openat(int(root.Fd()), "upper", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: t.Dir + "/image: upper", Err: err}
	}
	return os.NewFile(uintptr(fd), t.Dir+"/fs/upper"), nil
}

// attachImage gives the name of the block device of a tree's image.
func (s *Store) attachImage(dir string) (name string, done func(), err error) {
	s.mu.Lock()
	dev := s.devices[dir]
	if dev == nil {
		dev = &device{}
		s.devices[dir] = dev
	}
	dev.uses++
	s.mu.Unlock()
	dev.once.Do(func() {
		dev.file, dev.err = loop.Of(dir + "/image")
		if errors.Is(dev.err, errs.NotFound) {
			dev.file, dev.err = loop.Attach(dir+"/image", loop.Options{})
		}
	})
	done = func() {
		s.mu.Lock()
		dev.uses--
		last := dev.uses == 0
		if last {
			delete(s.devices, dir)
		}
		s.mu.Unlock()
		if last && dev.file != nil {
			if err := dev.file.Close(); err != nil {
				s.log.Warn("let a loop device go", "device", dev.file.Name(), "error", err)
			}
		}
	}
	if dev.err != nil {
		done()
		return "", nil, dev.err
	}
	return dev.file.Name(), done, nil
}

// Remove also ends the limit of a tree's project, so that the project is free for others when the files are gone. The limit goes first: a kill in between leaves a tree that is about to go, not
// a limit that nobody knows of.
func (s *Store) Remove(ctx context.Context, key string) error {
	t, err := s.Get(key)
	if err != nil || t.Size == 0 || inImage(t) {
		return s.Depot.Remove(ctx, key)
	}
	project, err := projectOf(t)
	if err == nil && project == 0 {
		return s.Depot.Remove(ctx, key)
	}
	if err == nil {
		err = s.setLimit(project, 0)
	}
	if err != nil {
		return fmt.Errorf("remove tree %s: %w", key, err)
	}
	if err := s.Depot.Remove(ctx, key); err != nil {
		return errs.Also(err, s.setLimit(project, t.Size))
	}
	return nil
}
