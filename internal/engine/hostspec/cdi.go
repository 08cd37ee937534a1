package hostspec

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"tags.cncf.io/container-device-interface/pkg/cdi"

	"corten.dev/corten/internal/container"
	"corten.dev/corten/internal/errs"
)

// CDI gives containers the devices that vendors describe in files of the Container Device Interface: a name ("vendor.com/class=name") stands for device nodes with their
// rules, mounts, environment and hooks. It keeps nothing and watches nothing: the files are read when a container asks for a device, and cost others nothing.
//
// GPUs asked for by number (--gpus) are devices of a kind that their vendor's tool describes. What the devices bring becomes part of the container's own device rules, which
// are handed to whoever makes the cgroup: a GPU stays when systemd reloads.
type CDI struct{ dirs []string }

// NewCDI reads descriptions from folders; a file of a later one wins over one of an earlier. Without folders no device has a name.
func NewCDI(dirs []string) *CDI {
	return &CDI{dirs: slices.DeleteFunc(slices.Clone(dirs), func(dir string) bool { return dir == "" })}
}

// Dirs are the folders.
func (c *CDI) Dirs() []string {
	if c == nil {
		return nil
	}
	return c.dirs
}

func (c *CDI) read() *cdi.Cache {
	cache, err := cdi.NewCache(cdi.WithSpecDirs(c.dirs...), cdi.WithAutoRefresh(false))
	if err != nil {
		return nil // the library promises that there is none
	}
	return cache
}

// Devices lists the names of all devices, and what is wrong with files that could not be used.
func (c *CDI) Devices() (names, warnings []string) {
	if c == nil || len(c.dirs) == 0 {
		return nil, nil
	}
	cache := c.read()
	return cache.ListDevices(), troubles(cache)
}

// troubles are what is wrong with files, one line for each.
func troubles(cache *cdi.Cache) (list []string) {
	wrong := cache.GetErrors()
	for _, file := range slices.Sorted(maps.Keys(wrong)) {
		for _, err := range wrong[file] {
			list = append(list, fmt.Sprintf("CDI file %s: %v", file, err))
		}
	}
	return list
}

// gpuKinds are the kinds of devices that --gpus stands for, by the name of their driver. Without a name the first that there are devices of is taken.
var gpuKinds = []struct{ driver, kind string }{{"nvidia", "nvidia.com/gpu"}, {"amd", "amd.com/gpu"}}

// Inject gives a configuration the devices of requests: those of the driver "cdi" by name, GPUs by number or name.
func (c *CDI) Inject(spec *specs.Spec, requests []container.DeviceRequest) error {
	if len(requests) == 0 {
		return nil
	}
	if c == nil || len(c.dirs) == 0 {
		return noDriver(requests[0])
	}
	cache := c.read()
	var names []string
	for _, req := range requests {
		more, err := requested(cache, req)
		if err != nil {
			return err
		}
		for _, name := range more {
			if !slices.Contains(names, name) {
				names = append(names, name)
			}
		}
	}
	if len(names) == 0 {
		return nil
	}
	if _, err := cache.InjectDevices(spec, names...); err != nil {
		if wrong := troubles(cache); len(wrong) > 0 {
			err = fmt.Errorf("%w (%s)", err, strings.Join(wrong, "; "))
		}
		return errs.New(errs.Invalid, "CDI device injection failed: %w", err)
	}
	return nil
}

// noDriver is Docker's answer to devices that nobody can give.
func noDriver(req container.DeviceRequest) error {
	return errs.New(errs.Invalid, "could not select device driver %q with capabilities: %v", req.Driver, req.Capabilities)
}

// requested names the devices of one request.
func requested(cache *cdi.Cache, req container.DeviceRequest) ([]string, error) {
	if req.Driver == "cdi" {
		if req.Count != 0 || len(req.Options) > 0 {
			return nil, errs.New(errs.Invalid, "device request of the driver cdi: it takes names of devices only, neither a count nor options")
		}
		return req.DeviceIDs, nil
	}
	if !wantsGPU(req) {
		return nil, noDriver(req)
	}
	if req.Count != 0 && len(req.DeviceIDs) > 0 {
		return nil, errs.New(errs.Invalid, "cannot set both Count and DeviceIDs on device request")
	}
	for _, gpu := range gpuKinds {
		if req.Driver != "" && req.Driver != gpu.driver {
			continue
		}
		if have := ofKind(cache, gpu.kind); len(have) > 0 {
			return pick(gpu.kind, have, req)
		}
	}
	return nil, noDriver(req)
}

// wantsGPU tells whether one of the alternatives of a request can be met by a GPU.
func wantsGPU(req container.DeviceRequest) bool {
	return slices.ContainsFunc(req.Capabilities, func(all []string) bool { return slices.Contains(all, "gpu") })
}

// ofKind lists the devices of a kind ("vendor.com/class").
func ofKind(cache *cdi.Cache, kind string) []string {
	return slices.DeleteFunc(cache.ListDevices(), func(name string) bool { return !strings.HasPrefix(name, kind+"=") })
}

// pick chooses among the devices of a kind. Vendors number them from 0, and may have one that stands for all.
func pick(kind string, have []string, req container.DeviceRequest) (names []string, err error) {
	for _, id := range req.DeviceIDs {
		names = append(names, kind+"="+strings.TrimPrefix(id, kind+"="))
	}
	if req.Count < 0 {
		if all := kind + "=all"; slices.Contains(have, all) {
			return []string{all}, nil
		}
		return have, nil
	}
	for n := range min(req.Count, len(have)+1) {
		name := kind + "=" + strconv.Itoa(n)
		if !slices.Contains(have, name) {
			return nil, errs.New(errs.Invalid, "%d GPUs asked for, but there is no device %s; there are: %s", req.Count, name, strings.Join(have, ", "))
		}
		names = append(names, name)
	}
	return names, nil
}
