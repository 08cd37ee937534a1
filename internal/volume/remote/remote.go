// Package remote is the volume driver that is a program of its own: it speaks Docker's volume plugin protocol.
//
//	VolumeDriver.Create        {"Name", "Opts"}   ─▶ {"Err"}
//	VolumeDriver.Remove        {"Name"}           ─▶ {"Err"}
//	VolumeDriver.Mount         {"Name", "ID"}     ─▶ {"Mountpoint", "Err"}
//	VolumeDriver.Unmount       {"Name", "ID"}     ─▶ {"Err"}
//	VolumeDriver.Path          {"Name"}           ─▶ {"Mountpoint", "Err"}
//	VolumeDriver.Get           {"Name"}           ─▶ {"Volume": {"Name", "Mountpoint", "CreatedAt", "Status"}, "Err"}
//	VolumeDriver.List          {}                 ─▶ {"Volumes": [{"Name", "Mountpoint", "Status"}], "Err"}
//	VolumeDriver.Capabilities  {}                 ─▶ {"Capabilities": {"Scope": "local" or "global"}}
//
// It owns how long each call may take and which may be repeated. It promises what package driver does, whatever the plugin answers: a mount point that is not an absolute path, or a volume without a
// name, is an error of the plugin's.
package remote

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/plugin"
	"corten.dev/corten/internal/volume/driver"
)

// How long a plugin may take: what makes and mounts file systems longer than what only tells.
const (
	longTime  = 2 * time.Minute
	shortTime = time.Minute
)

// Driver is a plugin as a volume driver.
type Driver struct{ client *plugin.Client }

var _ driver.Driver = (*Driver)(nil)

// New makes a driver of a plugin. It need not be there yet.
func New(plugins *plugin.Set, name string) (*Driver, error) {
	c, err := plugins.Client(name, driver.Interface)
	if err != nil {
		return nil, err
	}
	return &Driver{c}, nil
}

// Name is the plugin's name.
func (d *Driver) Name() string { return d.client.Name() }

type named struct{ Name string }

type mounting struct{ Name, ID string }

type told struct {
	Name       string
	Mountpoint string
	CreatedAt  string         `json:",omitempty"`
	Status     map[string]any `json:",omitempty"`
}

// call makes one call and translates its failures.
func (d *Driver) call(ctx context.Context, call plugin.Call) error {
	err := d.client.Do(ctx, call)
	if plugin.Uncertain(err) {
		return errs.As(driver.Uncertain, err)
	}
	return err
}

// Create makes a volume.
func (d *Driver) Create(ctx context.Context, name string, opts map[string]string) error {
	if opts == nil {
		opts = map[string]string{} // many plugins look into it without asking
	}
	in := struct {
		Name string
		Opts map[string]string
	}{name, opts}
	return d.call(ctx, plugin.Call{Method: "Create", In: in, Limit: longTime})
}

// Remove unmakes a volume.
func (d *Driver) Remove(ctx context.Context, name string) error {
	return d.call(ctx, plugin.Call{Method: "Remove", In: named{name}, Limit: longTime, NoWait: true})
}

// Mount mounts a volume for an id. A mount whose answer makes no sense is Uncertain: the plugin counts it.
func (d *Driver) Mount(ctx context.Context, name, id string) (string, error) {
	var out struct{ Mountpoint string }
	if err := d.call(ctx, plugin.Call{Method: "Mount", In: mounting{name, id}, Out: &out, Limit: longTime}); err != nil {
		return "", err
	}
	path, err := d.path(out.Mountpoint)
	if err == nil && path == "" {
		err = errors.New("no mount point")
	}
	if err != nil {
		return "", errs.As(driver.Uncertain, fmt.Errorf("plugin %s: mount of %s: %w", d.Name(), name, err))
	}
	return path, nil
}

// Unmount lets go of an id. It may be repeated: the id says whose mount it was.
func (d *Driver) Unmount(ctx context.Context, name, id string) error {
	return d.call(ctx, plugin.Call{Method: "Unmount", In: mounting{name, id}, Limit: longTime, Again: true, NoWait: true})
}

// Path tells where a volume is mounted.
func (d *Driver) Path(ctx context.Context, name string) (string, error) {
	var out struct{ Mountpoint string }
	if err := d.call(ctx, plugin.Call{Method: "Path", In: named{name}, Out: &out, Limit: shortTime, Again: true, NoWait: true}); err != nil {
		return "", err
	}
	path, err := d.path(out.Mountpoint)
	if err != nil {
		return "", fmt.Errorf("plugin %s: path of %s: %w", d.Name(), name, err)
	}
	return path, nil
}

// path checks a mount point.
func (d *Driver) path(mountpoint string) (string, error) {
	if mountpoint == "" {
		return "", nil
	}
	if !filepath.IsAbs(mountpoint) || strings.ContainsRune(mountpoint, 0) {
		return "", fmt.Errorf("the mount point %.200q is not an absolute path", mountpoint)
	}
	return filepath.Clean(mountpoint), nil
}

// Get tells of one volume.
func (d *Driver) Get(ctx context.Context, name string) (driver.Volume, error) {
	var out struct{ Volume *told }
	if err := d.call(ctx, plugin.Call{Method: "Get", In: named{name}, Out: &out, Limit: shortTime, Again: true, NoWait: true}); err != nil {
		return driver.Volume{}, err
	}
	if out.Volume == nil {
		return driver.Volume{}, errs.New(errs.NotFound, "plugin %s: no such volume: %s", d.Name(), name)
	}
	vol, err := d.volume(*out.Volume)
	vol.Name = name // some plugins leave it out
	return vol, err
}

// List tells of all volumes. One that makes no sense is left out: it must not hide the others.
func (d *Driver) List(ctx context.Context) ([]driver.Volume, error) {
	var out struct{ Volumes []*told }
	in := struct{}{}
	if err := d.call(ctx, plugin.Call{Method: "List", In: in, Out: &out, Limit: shortTime, Again: true, NoWait: true}); err != nil {
		return nil, err
	}
	list := make([]driver.Volume, 0, len(out.Volumes))
	for _, t := range out.Volumes {
		if t == nil || driver.CheckName(t.Name) != nil {
			continue
		}
		if vol, err := d.volume(*t); err == nil {
			list = append(list, vol)
		}
	}
	return list, nil
}

func (d *Driver) volume(t told) (driver.Volume, error) {
	path, err := d.path(t.Mountpoint)
	if err != nil {
		return driver.Volume{}, fmt.Errorf("plugin %s: %w", d.Name(), err)
	}
	vol := driver.Volume{Name: t.Name, Mountpoint: path, Status: t.Status}
	if at, err := time.Parse(time.RFC3339, t.CreatedAt); err == nil { // a time that cannot be read is as good as none
		vol.Created = at
	}
	return vol, nil
}

// Capabilities tells what the plugin is. Plugins from before this call, and scopes that nobody knows, mean local.
func (d *Driver) Capabilities(ctx context.Context) (driver.Capabilities, error) {
	var out struct{ Capabilities struct{ Scope string } }
	in := struct{}{}
	err := d.call(ctx, plugin.Call{Method: "Capabilities", In: in, Out: &out, Limit: shortTime, Again: true, NoWait: true})
	if plugin.Unknown(err) {
		return driver.Capabilities{}, nil
	}
	return driver.Capabilities{Global: strings.EqualFold(out.Capabilities.Scope, "global")}, err
}

// Plugins are all volume drivers of a host that are plugins.
type Plugins struct{ Set *plugin.Set }

// Driver makes the driver of that name, without a look at whether there is one.
func (p Plugins) Driver(name string) (driver.Driver, error) { return New(p.Set, name) }

// Names lists the plugins of which there is a trace, whatever they implement.
func (p Plugins) Names() ([]string, error) { return p.Set.Names() }

// Ready tells whether a plugin answers and is a volume driver: errs.Unavailable when it does not answer, errs.Invalid when it is something else.
func (p Plugins) Ready(ctx context.Context, name string) error {
	c, err := p.Set.Client(name, driver.Interface)
	if err != nil {
		return err
	}
	return c.Ready(ctx)
}

// Await waits for a plugin that is about to come up.
func (p Plugins) Await(ctx context.Context, name string) error {
	_, err := p.Set.Get(ctx, name, driver.Interface)
	return err
}

// Active lists the volume drivers that were in use.
func (p Plugins) Active() []string { return p.Set.Active(driver.Interface) }
