package containers

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"slices"
	"strings"
	"syscall"

	"corten.dev/corten/internal/container"
	"corten.dev/corten/internal/engine/hostspec"
	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/events"
	"corten.dev/corten/internal/image"
	"corten.dev/corten/internal/reference"
	"corten.dev/corten/internal/safefs"
	"corten.dev/corten/internal/snapshot"
	"corten.dev/corten/internal/tarfs"
)

// The engine's own marks and mount points in a tree; `diff` does not show them unless the program changed them into something else.
var ours = []string{
	"/.dockerenv", "/etc/resolv.conf", "/etc/hosts", "/etc/hostname", "/etc/mtab", "/dev/console", "/dev/pts", "/dev/shm", "/dev/mqueue", "/proc", "/sys", "/dev", "/etc", "/sbin/corten-init", "/sbin",
}

// Changes lists what the container changed in its tree.
func (s *Service) Changes(ctx context.Context, ref string) ([]snapshot.Change, error) {
	ctr, err := s.find(ref)
	if err != nil {
		return nil, err
	}
	kept, _, err := s.changes(ctx, ctr)
	if err != nil {
		return nil, fmt.Errorf("changes of container %s: %w", ref, err)
	}
	return kept, nil
}

// changes parts what a container changed from what the engine put there for it, which is named in `without`.
func (s *Service) changes(ctx context.Context, ctr *live) (kept []snapshot.Change, without []string, err error) {
	key := ctr.record().TreeKey()
	all, err := s.Trees.Changes(ctx, key)
	if err != nil || !slices.ContainsFunc(all, func(ch snapshot.Change) bool { return slices.Contains(ours, ch.Path) }) {
		return all, nil, err
	}
	mounted, err := s.openTree(ctx, ctr)
	if err != nil {
		return nil, nil, err
	}
	defer mounted.Close()
	for _, ch := range slices.Backward(all) { // children come before their parents
		below := func(k snapshot.Change) bool { return strings.HasPrefix(k.Path, ch.Path+"/") }
		if slices.Contains(ours, ch.Path) && ch.Kind != snapshot.Deleted && !slices.ContainsFunc(kept, below) && asWeMade(mounted.Root, ch.Path) {
			without = append(without, ch.Path)
			continue
		}
		if slices.Contains(ours, ch.Path) && ch.Kind == snapshot.Added { // it was there when the program began
			ch.Kind = snapshot.Modified
		}
		kept = append(kept, ch)
	}
	slices.Reverse(kept)
	return kept, without, nil
}

// asWeMade tells whether what is at one of our own paths is what the engine puts there: an empty file or directory of root's, or the link to the list of mounts.
func asWeMade(root *os.File, name string) bool {
	f, err := safefs.Open(root, name, safefs.Handle|syscall.O_NOFOLLOW, 0)
	if err != nil {
		return false
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return false
	}
	if name == "/etc/mtab" {
		target, err := safefs.Readlink(f)
		return err == nil && target == "/proc/mounts"
	}
	st, ok := fi.Sys().(*syscall.Stat_t)
	plain := ok && st.Uid == 0 && st.Gid == 0 && fi.Mode()&(os.ModeSetuid|os.ModeSetgid|os.ModeSticky) == 0
	return plain && (fi.IsDir() && fi.Mode().Perm() == 0o755 || fi.Mode().IsRegular() && fi.Size() == 0)
}

// Export writes the container's tree, without what is mounted over it.
func (s *Service) Export(ctx context.Context, ref string, begin func() io.Writer) error {
	ctr, err := s.find(ref)
	if err != nil {
		return err
	}
	mounted, err := s.openTree(ctx, ctr)
	if err != nil {
		return fmt.Errorf("export container %s: %w", ref, err)
	}
	defer mounted.Close()
	root, err := safefs.Reopen(mounted.Root, syscall.O_RDONLY|syscall.O_DIRECTORY)
	if err != nil {
		return err
	}
	defer root.Close()
	if err := tarfs.Write(ctx, root, begin(), tarfs.WriteOptions{}); err != nil {
		return fmt.Errorf("export container %s: %w", ref, err)
	}
	s.emit(ctr, "export", nil)
	return nil
}

// Commit makes an image of the container's tree and config.
func (s *Service) Commit(ctx context.Context, req CommitRequest) (imageID string, err error) {
	ctr, err := s.find(req.Container)
	if err != nil {
		return "", err
	}
	if req.Pause && ctr.record().State.Status == container.Running {
		_, proc, err := ctr.handles()
		if err != nil {
			return "", err
		}
		ctx := context.WithoutCancel(ctx)
		if err := s.freeze(ctx, ctr, proc); err != nil {
			return "", err
		}
		defer func() {
			if uerr := s.unpause(ctx, ctr, proc); uerr != nil && ctr.record().State.Status.Live() {
				err = errors.Join(err, uerr)
			}
		}()
	}
	rec := ctr.record()
	_, without, err := s.changes(ctx, ctr)
	if err != nil {
		return "", fmt.Errorf("commit container %s: %w", rec.Name, err)
	}
	run := rec.Config.RunConfig
	if req.Config != nil {
		run = merge(*req.Config, rec.Config.RunConfig).RunConfig
	}
	img, err := s.Images.Commit(ctx, image.CommitOptions{
		Key: rec.TreeKey(), Without: without, Parent: rec.Image, Ref: req.Ref, Author: req.Author, Comment: req.Comment, Run: run, Changes: req.Changes,
		CreatedBy: strings.Join(append([]string{rec.Path}, rec.Args...), " "),
	})
	if err != nil {
		return "", fmt.Errorf("commit container %s: %w", rec.Name, err)
	}
	name := ""
	if ref, err := reference.Parse(req.Ref); err == nil { // empty is an image without a name
		name = ref.WithDefaultTag().Familiar()
		s.Events.Publish(events.Event{Type: "image", Action: "tag", ID: img.ID.String(), Attributes: map[string]string{"name": name}})
	}
	s.emit(ctr, "commit", map[string]string{"comment": req.Comment, "imageID": img.ID.String(), "imageRef": name})
	return img.ID.String(), nil
}

// place is a path found in a container, open.
type place struct {
	file     *os.File // O_PATH; the link itself when it is one and was not to be followed
	root     *os.File // what links mean with "/": the container's root, or that of the volume the path lies in
	sub      string   // the path below root
	readonly string   // why nothing can be written there; empty when it can
	close    func()
}

// locate opens a path in a container as its processes see it: of a running one through its own mounts, of another one in its tree and its volumes.
func (s *Service) locate(ctx context.Context, ctr *live, ref, name string, flags int) (*place, error) {
	rec := ctr.record()
	pl := &place{}
	var err error
	ctr.mu.Lock()
	mon := ctr.mon
	ctr.mu.Unlock()
	var root *os.File
	sub := name
	switch {
	case mon != nil:
		if root, err = rootOf(mon, rec.ID); err != nil {
			return nil, err
		}
		pl.close = func() { root.Close() }
	default:
		if root, sub, pl, err = s.locateStopped(ctx, rec, name); err != nil {
			return nil, err
		}
	}
	pl.root, pl.sub = root, sub
	if pl.readonly == "" {
		pl.readonly = readonlyAt(rec, name)
	}
	if pl.file, err = safefs.Open(root, path.Join("/", sub), safefs.Handle|flags, 0); err != nil {
		pl.close()
		if hostspec.Missing(err) || errors.Is(err, syscall.ENOTDIR) {
			return nil, errs.New(errs.NotFound, "Could not find the file %s in container %s", name, ref)
		}
		return nil, err
	}
	inner := pl.close
	pl.close = func() { pl.file.Close(); inner() }
	if asLink(name) == 0 { // "/file/" and "/file/." say that it is a directory
		if fi, err := pl.file.Stat(); err != nil || !fi.IsDir() {
			pl.close()
			return nil, errs.New(errs.Invalid, "lstat %s: not a directory", name)
		}
	}
	return pl, nil
}

// mountAt finds the mount of a container that a path lies in.
func mountAt(rec *container.Record, name string) (*container.Mount, string) {
	clean := path.Clean("/" + name)
	var best *container.Mount
	for i := range rec.Mounts {
		mnt := &rec.Mounts[i]
		if clean == mnt.Target || strings.HasPrefix(clean, mnt.Target+"/") {
			if best == nil || len(mnt.Target) > len(best.Target) {
				best = mnt
			}
		}
	}
	if best == nil {
		return nil, name
	}
	return best, "/" + strings.TrimPrefix(clean, best.Target)
}

func readonlyAt(rec *container.Record, name string) string {
	mnt, _ := mountAt(rec, name)
	switch {
	case mnt != nil && !mnt.RW:
		return "mounted volume is marked read-only"
	case mnt == nil && rec.Host.ReadonlyRootfs:
		return "container rootfs is marked read-only"
	}
	return ""
}

func (s *Service) locateStopped(ctx context.Context, rec *container.Record, name string) (*os.File, string, *place, error) {
	mnt, sub := mountAt(rec, name)
	if mnt != nil && mnt.Type == "image" {
		return s.locateInImage(ctx, rec, mnt, sub)
	}
	if mnt == nil || mnt.Type == "tmpfs" {
		mounted, err := s.Trees.Mount(ctx, rec.TreeKey())
		if err != nil {
			return nil, "", nil, fmt.Errorf("mount the file tree of container %s: %w", rec.Name, err)
		}
		return mounted.Root, name, &place{close: func() {
			if err := mounted.Close(); err != nil {
				s.Log.Warn("release a file tree", "container", rec.Name, "error", err)
			}
		}}, nil
	}
	dir, release := mnt.Source, func() {}
	if mnt.Type == "volume" {
		user := rec.ID + "-cp-" + newID()[:12] // of two at a time, the first that is done must not take it from the other
		var err error
		if dir, err = s.Volumes.Mount(ctx, mnt.Name, user); err != nil {
			return nil, "", nil, err
		}
		release = func() {
			if err := s.Volumes.Unmount(context.WithoutCancel(ctx), mnt.Name, user); err != nil {
				s.Log.Warn("unmount a volume", "volume", mnt.Name, "error", err)
			}
		}
	}
	root, err := os.Open(dir)
	if err != nil {
		release()
		return nil, "", nil, err
	}
	if mnt.Request.Subpath != "" {
		return inPart(root, mnt.Request.Subpath, sub, func() { root.Close(); release() })
	}
	if fi, err := root.Stat(); err == nil && !fi.IsDir() { // a file bound into the container: its folder, and its name
		root.Close()
		if root, err = os.Open(path.Dir(dir)); err != nil {
			release()
			return nil, "", nil, err
		}
		sub = path.Base(dir)
	}
	return root, sub, &place{close: func() { root.Close(); release() }}, nil
}

// asLink tells whether a last part that is a link is meant itself: "/a/link" yes, "/a/link/" and "/a/link/." no.
func asLink(name string) int {
	if strings.HasSuffix(name, "/") || strings.HasSuffix(name, "/.") {
		return 0
	}
	return syscall.O_NOFOLLOW
}

// StatPath tells about a path in a container; a link is not followed but named.
func (s *Service) StatPath(ctx context.Context, ref, name string) (PathStat, error) {
	ctr, err := s.find(ref)
	if err != nil {
		return PathStat{}, err
	}
	pl, err := s.locate(ctx, ctr, ref, name, asLink(name))
	if err != nil {
		return PathStat{}, err
	}
	defer pl.close()
	return pl.stat(name)
}

func (pl *place) stat(name string) (PathStat, error) {
	fi, err := pl.file.Stat()
	if err != nil {
		return PathStat{}, err
	}
	st := PathStat{Name: path.Base(path.Clean("/" + name)), Size: fi.Size(), Mode: uint32(fi.Mode()), Mtime: fi.ModTime()}
	if fi.Mode()&os.ModeSymlink != 0 {
		target, err := safefs.Readlink(pl.file)
		if err != nil {
			return st, err
		}
		if !path.IsAbs(target) {
			target = path.Join(path.Dir(path.Clean("/"+name)), target)
		}
		st.LinkTarget = path.Clean(target)
	}
	return st, nil
}

// ArchivePath writes what lies at a path as tar; its names begin with the path's last part. Files of /proc and its like that cannot be read are left out, and told at the end.
func (s *Service) ArchivePath(ctx context.Context, ref, name string, begin func(PathStat) io.Writer) error {
	ctr, err := s.find(ref)
	if err != nil {
		return err
	}
	pl, err := s.locate(ctx, ctr, ref, name, asLink(name))
	if err != nil {
		return err
	}
	defer pl.close()
	st, err := pl.stat(name)
	if err != nil {
		return err
	}
	base := st.Name
	if base == "/" || strings.HasSuffix(name, "/.") {
		base = "."
	}
	fi, err := pl.file.Stat()
	if err != nil {
		return err
	}
	s.emit(ctr, "archive-path", nil)
	if !fi.IsDir() {
		return tarfs.WriteFile(ctx, pl.file, base, begin(st))
	}
	dir, err := safefs.Reopen(pl.file, syscall.O_RDONLY|syscall.O_DIRECTORY)
	if err != nil {
		return err
	}
	defer dir.Close()
	opts := tarfs.WriteOptions{Root: true, Base: base, NoMade: true, ReadMade: true} // "./file" too: clients put their own name in the place of "."
	if path.Clean("/"+name) == "/" {
		opts.Leaves = []string{base + "/dev"} // devices are the host's affair, as for docker
	}
	return tarfs.Write(ctx, dir, begin(st), opts)
}

// ExtractTo unpacks a tar stream into a directory of a container.
func (s *Service) ExtractTo(ctx context.Context, ref, name string, r io.Reader, noOverwriteDirNonDir, copyUIDGID bool) error {
	ctr, err := s.find(ref)
	if err != nil {
		return err
	}
	pl, err := s.locate(ctx, ctr, ref, name, 0)
	if err != nil {
		return err
	}
	defer pl.close()
	if fi, err := pl.file.Stat(); err != nil || !fi.IsDir() {
		return errs.New(errs.Invalid, "extraction point is not a directory")
	}
	if pl.readonly != "" {
		return errs.New(errs.Forbidden, "%s", pl.readonly)
	}
	root, err := safefs.Reopen(pl.root, syscall.O_RDONLY|syscall.O_DIRECTORY)
	if err != nil {
		return err
	}
	defer root.Close()
	opts := tarfs.Options{NoOverwriteDirNonDir: noOverwriteDirNonDir}
	if copyUIDGID && ctr.record().Config.User != "" {
		if opts.Owner, err = s.ownerOf(ctx, ctr); err != nil {
			return err
		}
	}
	if err := tarfs.ExtractTo(ctx, root, pl.sub, r, opts); err != nil { // links on the way mean the container's root, not this directory
		return fmt.Errorf("copy to %s in container %s: %w", name, ctr.record().Name, err)
	}
	s.emit(ctr, "extract-to-dir", nil)
	return nil
}

// ownerOf finds the container's user in its tree.
func (s *Service) ownerOf(ctx context.Context, ctr *live) (*tarfs.Owner, error) {
	mounted, err := s.openTree(ctx, ctr)
	if err != nil {
		return nil, err
	}
	defer mounted.Close()
	id, err := hostspec.ResolveUser(mounted.Root, ctr.record().Config.User, nil)
	if err != nil {
		return nil, err
	}
	return &tarfs.Owner{UID: int(id.UID), GID: int(id.GID)}, nil
}
