package hostspec

import (
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"sync"
	"syscall"

	"github.com/opencontainers/runtime-spec/specs-go"

	"corten.dev/corten/internal/container"
	"corten.dev/corten/internal/errs"
	linuxhost "corten.dev/corten/internal/linux/host"
)

// recursiveReadonly: mount_setattr(2) came with 5.12.
var recursiveReadonly = sync.OnceValue(func() bool { return linuxhost.KernelSince(5, 12) })

func errNoRecursiveReadonly(target string) error {
	return errs.New(errs.NotImplemented, "mount %s: recursive read-only mounts need a kernel of 5.12 or later", target)
}

func ptr[T any](v T) *T { return &v }

// defaultRules let every container use the harmless devices, and make nodes without opening them.
func defaultRules() []specs.LinuxDeviceCgroup {
	rules := []specs.LinuxDeviceCgroup{
		{Allow: false, Access: "rwm"},
		{Allow: true, Type: "c", Access: "m"},
		{Allow: true, Type: "b", Access: "m"},
	}
	// null, zero, full, tty, urandom, random, console, ptmx, pts
	for _, dev := range [...][2]int64{{1, 3}, {1, 5}, {1, 7}, {5, 0}, {1, 9}, {1, 8}, {5, 1}, {5, 2}, {136, -1}} {
		rules = append(rules, specs.LinuxDeviceCgroup{Allow: true, Type: "c", Major: ptr(dev[0]), Minor: ptr(dev[1]), Access: "rwm"})
	}
	return rules
}

// devicesOf lists the nodes to make beside the usual ones, and the rules of the devices controller.
func devicesOf(host *container.Host) ([]specs.LinuxDevice, []specs.LinuxDeviceCgroup, error) {
	if host.Privileged {
		devices, err := hostDevices("/dev", "/dev", true)
		return devices, []specs.LinuxDeviceCgroup{{Allow: true, Access: "rwm"}}, err
	}
	rules := defaultRules()
	var devices []specs.LinuxDevice
	for _, dev := range host.Resources.Devices {
		found, err := askedDevice(dev)
		if err != nil {
			return nil, nil, err
		}
		perm := dev.Permissions
		if perm == "" {
			perm = "rwm"
		}
		for _, d := range found {
			rules = append(rules, specs.LinuxDeviceCgroup{Allow: true, Type: d.Type, Major: ptr(d.Major), Minor: ptr(d.Minor), Access: perm})
		}
		devices = append(devices, found...)
	}
	for _, rule := range host.Resources.DeviceCgroupRules {
		r, err := ParseDeviceRule(rule)
		if err != nil {
			return nil, nil, err
		}
		rules = append(rules, r)
	}
	return devices, rules, nil
}

func askedDevice(dev container.Device) ([]specs.LinuxDevice, error) {
	target := dev.ContainerPath
	if target == "" {
		target = dev.HostPath
	}
	source, err := filepath.EvalSymlinks(dev.HostPath)
	if err != nil {
		return nil, errs.New(errs.Invalid, "error gathering device information while adding custom device %q: no such file or directory", dev.HostPath)
	}
	fi, err := os.Stat(source)
	if err != nil {
		return nil, err
	}
	if fi.IsDir() {
		found, err := hostDevices(source, target, false)
		if err == nil && len(found) == 0 {
			err = errs.New(errs.Invalid, "error gathering device information while adding custom device %q: no devices found", dev.HostPath)
		}
		return found, err
	}
	d, ok := deviceNode(fi, target)
	if !ok {
		return nil, errs.New(errs.Invalid, "error gathering device information while adding custom device %q: not a device node", dev.HostPath)
	}
	return []specs.LinuxDevice{d}, nil
}

// hostDevices lists the nodes below a directory of the host, as they shall appear below target. With all it is for privileged containers, which have their own pts, shm and console.
func hostDevices(dir, target string, all bool) ([]specs.LinuxDevice, error) {
	var list []specs.LinuxDevice
	err := filepath.WalkDir(dir, func(name string, entry fs.DirEntry, err error) error {
		if err != nil {
			if os.IsNotExist(err) {
				return nil // it went away while we looked
			}
			return err
		}
		if entry.IsDir() {
			switch entry.Name() {
			case "pts", "shm", "fd", "mqueue", ".lxc", ".lxd-mounts", ".udev":
				return filepath.SkipDir
			}
			return nil
		}
		if all && entry.Name() == "console" || entry.Type()&fs.ModeDevice == 0 {
			return nil
		}
		fi, err := entry.Info()
		if err != nil {
			return nil //nolint:nilerr // it went away while we looked
		}
		if d, ok := deviceNode(fi, path.Join(target, strings.TrimPrefix(name, dir))); ok {
			list = append(list, d)
		}
		return nil
	})
	return list, err
}

func deviceNode(fi fs.FileInfo, target string) (specs.LinuxDevice, bool) {
	d := specs.LinuxDevice{Path: target, FileMode: ptr(fi.Mode().Perm())}
	switch {
	case fi.Mode()&fs.ModeCharDevice != 0:
		d.Type = "c"
	case fi.Mode()&fs.ModeDevice != 0:
		d.Type = "b"
	default:
		return d, false
	}
	st, ok := fi.Sys().(*syscall.Stat_t)
	if !ok {
		return d, false
	}
	d.Major, d.Minor = linuxhost.Numbers(uint64(st.Rdev))
	d.UID, d.GID = ptr(st.Uid), ptr(st.Gid)
	return d, true
}
