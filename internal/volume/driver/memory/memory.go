// Package memory is a volume driver in memory, for tests of those who use drivers.
//
// It owns nothing. It promises the contract of driver.Driver, with mounts that are counted and lead to an empty folder, and failures where a test wants them.
package memory

import (
	"context"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/volume/driver"
)

// Driver keeps volumes below a folder.
type Driver struct {
	name string
	root string

	mu    sync.Mutex // guards what follows
	fail  func(method, volume string) error
	after bool
	vols  map[string]*vol
	calls []string
}

type vol struct {
	created time.Time
	opts    map[string]string
	ids     map[string]int
}

var _ driver.Driver = (*Driver)(nil)

// New makes a driver whose volumes are folders below root.
func New(name, root string) *Driver {
	return &Driver{name: name, root: root, vols: map[string]*vol{}, fail: func(string, string) error { return nil }}
}

// Fail says which calls fail, and with what; after tells that they fail when their work is done. Nil: none does.
func (d *Driver) Fail(after bool, fail func(method, volume string) error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if fail == nil {
		fail = func(string, string) error { return nil }
	}
	d.fail, d.after = fail, after
}

// Calls are those made so far, as "Method volume id".
func (d *Driver) Calls() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.calls)
}

// Mounted counts the mounts of a volume by id.
func (d *Driver) Mounted(name string) map[string]int {
	d.mu.Lock()
	defer d.mu.Unlock()
	if v := d.vols[name]; v != nil {
		return maps.Clone(v.ids)
	}
	return nil
}

func (d *Driver) do(method, name, id string, work func() error) error {
	d.mu.Lock()
	fail, after := d.fail, d.after
	d.calls = append(d.calls, strings.TrimSpace(method+" "+name+" "+id))
	d.mu.Unlock()
	err := fail(method, name) // may take its time
	if err != nil && !after {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if werr := work(); werr != nil {
		return werr
	}
	return err
}

func (d *Driver) with(name string, work func(v *vol) error) func() error {
	return func() error {
		if v := d.vols[name]; v != nil {
			return work(v)
		}
		return errs.New(errs.NotFound, "no such volume: %s", name)
	}
}

// Name is the driver's name.
func (d *Driver) Name() string { return d.name }

func (d *Driver) path(name string) string { return filepath.Join(d.root, name) }

// Create makes a volume.
func (d *Driver) Create(_ context.Context, name string, opts map[string]string) error {
	return d.do("Create", name, "", func() error {
		if d.vols[name] != nil {
			return errs.New(errs.Conflict, "%s exists", name)
		}
		d.vols[name] = &vol{created: time.Now().UTC().Truncate(time.Second), opts: maps.Clone(opts), ids: map[string]int{}}
		return os.MkdirAll(d.path(name), 0o755)
	})
}

// Remove unmakes a volume.
func (d *Driver) Remove(_ context.Context, name string) error {
	return d.do("Remove", name, "", d.with(name, func(v *vol) error {
		if len(v.ids) > 0 {
			return errs.New(errs.Conflict, "%s is mounted", name)
		}
		delete(d.vols, name)
		return os.RemoveAll(d.path(name))
	}))
}

// Mount counts a mount.
func (d *Driver) Mount(_ context.Context, name, id string) (string, error) {
	return d.path(name), d.do("Mount", name, id, d.with(name, func(v *vol) error { v.ids[id]++; return nil }))
}

// Unmount counts it back.
func (d *Driver) Unmount(_ context.Context, name, id string) error {
	return d.do("Unmount", name, id, d.with(name, func(v *vol) error {
		if v.ids[id]--; v.ids[id] < 0 {
			delete(v.ids, id)
			return errs.New(errs.Conflict, "%s is not mounted for %s", name, id)
		}
		if v.ids[id] == 0 {
			delete(v.ids, id)
		}
		return nil
	}))
}

// Path is where a volume is while it is mounted.
func (d *Driver) Path(_ context.Context, name string) (path string, err error) {
	err = d.do("Path", name, "", d.with(name, func(v *vol) error {
		if len(v.ids) > 0 {
			path = d.path(name)
		}
		return nil
	}))
	return path, err
}

func (d *Driver) tell(name string, v *vol) driver.Volume {
	t := driver.Volume{Name: name, Created: v.created, Status: map[string]any{"options": len(v.opts)}}
	if len(v.ids) > 0 {
		t.Mountpoint = d.path(name)
	}
	return t
}

// Get tells of a volume.
func (d *Driver) Get(_ context.Context, name string) (t driver.Volume, err error) {
	err = d.do("Get", name, "", d.with(name, func(v *vol) error { t = d.tell(name, v); return nil }))
	return t, err
}

// List tells of all volumes.
func (d *Driver) List(context.Context) (list []driver.Volume, err error) {
	err = d.do("List", "", "", func() error {
		for name, v := range d.vols {
			list = append(list, d.tell(name, v))
		}
		return nil
	})
	return list, err
}

// Capabilities are global.
func (d *Driver) Capabilities(context.Context) (driver.Capabilities, error) {
	return driver.Capabilities{Global: true}, d.do("Capabilities", "", "", func() error { return nil })
}
