package containers

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"syscall"

	"corten.dev/corten/internal/container"
	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/linux/mount"
	"corten.dev/corten/internal/safefs"
	"corten.dev/corten/internal/snapshot"
	"corten.dev/corten/internal/task"
)

// An image that a container mounts gets a tree of its own, which the container's record keeps and which goes with the container: its layers stay as long, and there is a
// mount for each container, also on kernels that cannot clone a detached one.

// mountKey is the key of such a tree. Settings to go back to may have had another image at the same place.
func mountKey(id string, mnt *container.Mount) string {
	sum := sha256.Sum256([]byte(mnt.Target + "\x00" + mnt.Source))
	return id + "-" + hex.EncodeToString(sum[:6])
}

// claimImage finds the image of a mount and makes its tree.
func (s *Service) claimImage(ctx context.Context, rec *container.Record, mnt *container.Mount, undo *task.Undo) error {
	img, err := s.Images.Get(ctx, mnt.Name)
	if err != nil {
		return noOther(err)
	}
	mnt.Source = string(img.ID)
	key := mountKey(rec.ID, mnt)
	opts := snapshot.Options{Labels: map[string]string{labelOwner: rec.ID}, Durable: !rec.Host.AutoRemove, Bare: true, Label: rec.MountLabel}
	if err := s.Trees.Prepare(ctx, key, img.Chain, opts); err != nil {
		return fmt.Errorf("make the file tree of image %s: %w", mnt.Name, err)
	}
	undo.Push(func(ctx context.Context) error { return s.Trees.Remove(ctx, key) })
	return nil
}

// treesOf names all trees that a record stands for: of the container and of the images that it mounts, as it is, was, and is about to become.
func treesOf(rec *container.Record) []string {
	keys := rec.TreeKeys()
	add := func(mounts []container.Mount) {
		for i := range mounts {
			if mounts[i].Type != "image" {
				continue
			}
			if key := mountKey(rec.ID, &mounts[i]); !slices.Contains(keys, key) {
				keys = append(keys, key)
			}
		}
	}
	add(rec.Mounts)
	for _, other := range []*container.Settings{rec.Previous, rec.Next} {
		if other != nil {
			add(other.Mounts)
		}
	}
	return keys
}

// removeTrees removes them all.
func (s *Service) removeTrees(ctx context.Context, rec *container.Record) error {
	var all []error
	for _, key := range treesOf(rec) {
		all = append(all, s.Trees.Remove(ctx, key))
	}
	return errors.Join(all...)
}

// mountImage has the tree of an image ready to be attached.
func (s *Service) mountImage(ctx context.Context, r *run, mnt container.Mount, undo *task.Undo) error {
	mounted, err := s.Trees.Mount(ctx, mountKey(r.rec.ID, &mnt))
	if err != nil {
		return fmt.Errorf("mount image %s: %w", mnt.Name, err)
	}
	r.closers = append(r.closers, mounted.Close)
	undo.Push(func(context.Context) error { return mounted.Close() })
	switch {
	case mnt.Request.Subpath != "":
		f, err := openSubpath(mounted.Root, mnt.Request.Subpath)
		if err != nil {
			return fmt.Errorf("mount image %s: %w", mnt.Name, err)
		}
		defer f.Close()
		tree, err := s.clonePart(r, mounted, f)
		if err != nil {
			return fmt.Errorf("mount image %s: %w", mnt.Name, err)
		}
		r.attach(mnt.Target, tree)
	case mounted.Detached:
		r.trees[r.treeName(mnt.Target)] = mounted.Root
	default:
		tree, err := mount.TreeAt(mounted.Root, false)
		if err != nil {
			return fmt.Errorf("mount image %s: %w", mnt.Name, err)
		}
		r.attach(mnt.Target, tree)
	}
	return nil
}

// partMark ends the names of folders for clonePart.
const partMark = "-image"

func (s *Service) partDir(id string) string { return filepath.Join(s.ExecRoot, id+partMark) }

// clonePart clones a part of a mounted tree. A mount that stands nowhere gives no parts before Linux 6.15: it stands somewhere for a moment then.
func (s *Service) clonePart(r *run, mounted *snapshot.Mounted, part *os.File) (*os.File, error) {
	tree, err := mount.TreeAt(part, false)
	if err == nil || !mounted.Detached || !errors.Is(err, syscall.EINVAL) {
		return tree, err
	}
	dir := s.partDir(r.ctr.id)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	defer os.Remove(dir)
	at, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	defer at.Close()
	if err := mount.Attach(mounted.Root, at); err != nil {
		return nil, err
	}
	tree, err = mount.TreeAt(part, false)
	return tree, errors.Join(err, mount.Detach(dir))
}

// mountSubpath has a part of a volume ready to be attached: what the name leads to now, whatever becomes of it.
func (r *run) mountSubpath(mnt container.Mount, dir string) error {
	root, err := safefs.Root(dir)
	if err != nil {
		return fmt.Errorf("mount volume %s: %w", mnt.Name, err)
	}
	defer root.Close()
	f, err := openSubpath(root, mnt.Request.Subpath)
	if err != nil {
		return fmt.Errorf("mount volume %s: %w", mnt.Name, err)
	}
	defer f.Close()
	tree, err := mount.TreeAt(f, true)
	if err != nil {
		return fmt.Errorf("mount volume %s: %w", mnt.Name, err)
	}
	r.attach(mnt.Target, tree)
	return nil
}

// openSubpath opens a directory or file inside a volume or an image, without leaving it by links.
func openSubpath(root *os.File, sub string) (*os.File, error) {
	f, err := safefs.Open(root, path.Join("/", sub), safefs.Handle, 0)
	if err != nil {
		return nil, errs.New(errs.Invalid, "cannot access path %s: %w", sub, err)
	}
	return f, nil
}

// treeName is how the configuration of the container calls a tree that is handed over as a descriptor. No path begins with it.
func (r *run) treeName(target string) string {
	name := "tree:" + target
	r.sources[target] = name
	return name
}

// attach has a detached mount attached at target when the container begins.
func (r *run) attach(target string, tree *os.File) {
	r.trees[r.treeName(target)] = tree
	r.held = append(r.held, tree)
}

// locateInImage is locateStopped for what lies in an image that the container mounts.
func (s *Service) locateInImage(ctx context.Context, rec *container.Record, mnt *container.Mount, sub string) (*os.File, string, *place, error) {
	mounted, err := s.Trees.Mount(ctx, mountKey(rec.ID, mnt))
	if err != nil {
		return nil, "", nil, fmt.Errorf("mount image %s: %w", mnt.Name, err)
	}
	release := func() {
		if err := mounted.Close(); err != nil {
			s.Log.Warn("release a file tree", "container", rec.Name, "error", err)
		}
	}
	if mnt.Request.Subpath == "" {
		return mounted.Root, sub, &place{close: release}, nil
	}
	return inPart(mounted.Root, mnt.Request.Subpath, sub, release)
}

// inPart finds sub in the part of root that is mounted. A part that is a file is a name in its folder.
func inPart(root *os.File, part, sub string, release func()) (*os.File, string, *place, error) {
	f, err := openSubpath(root, part)
	if err != nil {
		release()
		return nil, "", nil, err
	}
	if fi, serr := f.Stat(); serr == nil && !fi.IsDir() {
		f.Close()
		if f, err = openSubpath(root, path.Dir(path.Clean(part))); err != nil {
			release()
			return nil, "", nil, err
		}
		sub = path.Base(part)
	}
	return f, sub, &place{close: func() { f.Close(); release() }}, nil
}
