package depot

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"sort"

	"golang.org/x/sys/unix"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/snapshot"
)

// Tree is a writable tree that is ready.
type Tree struct {
	Dir string // its folder
	Asked
}

// NewTree makes the folder of a writable tree; build fills it. Nothing stays when build fails.
func (d *Depot) NewTree(key string, chain snapshot.ChainID, opts snapshot.Options, build func(dir string) error) error {
	if key == "" {
		return errs.New(errs.Invalid, "a tree needs a key")
	}
	asked := Asked{Chain: chain, Durable: opts.Durable, Bare: opts.Bare, Skeleton: opts.Skeleton, Shared: opts.Shared, Size: opts.Size, Label: opts.Label}
	t := &tree{treeFile: treeFile{Key: key, Labels: maps.Clone(opts.Labels), Asked: asked}, busy: true}
	if err := d.reserve(t); err != nil {
		return err
	}
	dir := filepath.Join(d.root, treesDir, t.id)
	err := d.makeTree(dir, t, build)
	d.mu.Lock()
	t.busy = false
	if err != nil {
		delete(d.trees, key)
	}
	d.mu.Unlock()
	if err != nil {
		d.drop(chain)
		return fmt.Errorf("prepare tree %s: %w", key, errs.Also(err, d.discard(dir)))
	}
	return nil
}

func (d *Depot) reserve(t *tree) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.trees[t.Key] != nil {
		return errs.New(errs.Conflict, "tree %s is there already", t.Key)
	}
	if t.Chain != "" {
		l := d.layers[t.Chain]
		if l == nil {
			return noLayer(t.Chain)
		}
		l.uses++
	}
	d.next++
	t.id = formatID(d.next)
	d.trees[t.Key] = t
	return nil
}

func (d *Depot) makeTree(dir string, t *tree, build func(string) error) error {
	data, err := json.Marshal(t.treeFile)
	if err != nil {
		return err
	}
	if err := d.inTrees.Mkdir(filepath.Base(dir), 0o711); err != nil {
		return err
	}
	if err := build(dir); err != nil {
		return err
	}
	return writeRecord(dir+"/"+treeRecord, data, t.Durable)
}

// writeRecord is written last and in one go, by plain system calls: it is on the path of every container start.
func writeRecord(path string, data []byte, durable bool) error {
	fd, err := unix.Open(path, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return &os.PathError{Op: "create", Path: path, Err: err}
	}
	n, err := unix.Write(fd, data)
	if err == nil && n < len(data) {
		err = unix.ENOSPC
	}
	if err == nil && durable {
		err = unix.Fsync(fd)
	}
	if err = errs.Also(err, unix.Close(fd)); err != nil {
		return &os.PathError{Op: "write", Path: path, Err: err}
	}
	if !durable {
		return nil
	}
	dir := filepath.Dir(path)
	return errs.Also(syncDir(dir), syncDir(filepath.Dir(dir)))
}

// Get returns a tree that is ready.
func (d *Depot) Get(key string) (Tree, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	t := d.trees[key]
	if t == nil || t.busy {
		return Tree{}, noTree(key)
	}
	return Tree{Dir: d.root + "/" + treesDir + "/" + t.id, Asked: t.Asked}, nil
}

// Remove is snapshot.Store's Remove. The folder is out of sight when it returns; its content goes away in the background.
func (d *Depot) Remove(_ context.Context, key string) error {
	d.mu.Lock()
	t := d.trees[key]
	if t == nil {
		d.mu.Unlock()
		return nil
	}
	if t.busy {
		d.mu.Unlock()
		return errs.New(errs.Conflict, "tree %s is being made or removed", key)
	}
	t.busy = true
	d.mu.Unlock()
	err := d.discard(filepath.Join(d.root, treesDir, t.id))
	d.mu.Lock()
	t.busy = false
	if err == nil {
		delete(d.trees, key)
	}
	d.mu.Unlock()
	if err != nil {
		return fmt.Errorf("remove tree %s: %w", key, err)
	}
	d.drop(t.Chain)
	d.forgetUsage(key)
	return nil
}

// Walk is snapshot.Store's Walk, in the order of the keys.
func (d *Depot) Walk(ctx context.Context, fn func(key string, labels map[string]string) error) error {
	type item struct {
		key    string
		labels map[string]string
	}
	d.mu.Lock()
	all := make([]item, 0, len(d.trees))
	for _, t := range d.trees {
		if !t.busy {
			all = append(all, item{t.Key, maps.Clone(t.Labels)})
		}
	}
	d.mu.Unlock()
	sort.Slice(all, func(i, j int) bool { return all[i].key < all[j].key })
	for _, it := range all {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := fn(it.key, it.labels); err != nil {
			return err
		}
	}
	return nil
}

// MakeRoot makes the directory path with owner and mode of the chain's root.
func (d *Depot) MakeRoot(path string, chain snapshot.ChainID) error {
	if err := unix.Mkdir(path, 0o755); err != nil {
		return &os.PathError{Op: "mkdir", Path: path, Err: err}
	}
	_, err := d.likeRoot(path, chain)
	return err
}

// RootChanged tells whether the open directory has another owner or mode than the chain's root.
func (d *Depot) RootChanged(root *os.File, chain snapshot.ChainID) (bool, error) {
	var now, was unix.Stat_t
	if err := unix.Fstat(int(root.Fd()), &now); err != nil {
		return false, err
	}
	was.Mode = 0o755
	dirs, err := d.Chain(chain)
	if err != nil {
		return false, err
	}
	if len(dirs) > 0 {
		if err := unix.Stat(dirs[0], &was); err != nil {
			return false, &os.PathError{Op: "stat", Path: dirs[0], Err: err}
		}
	}
	return now.Mode&0o7777 != was.Mode&0o7777 || now.Uid != was.Uid || now.Gid != was.Gid, nil
}
