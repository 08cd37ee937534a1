package parse

import (
	"encoding/csv"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/docker/go-units"
	"github.com/moby/moby/api/types/mount"
)

// csvFields splits one line of comma separated values, with quotes.
func csvFields(s string) ([]string, error) {
	if s == "" {
		return nil, io.EOF // Docker's word for it
	}
	r := csv.NewReader(strings.NewReader(s))
	fields, err := r.Read()
	if err != nil {
		return nil, invalid("%w", err)
	}
	return fields, nil
}

// Mounted is Docker's mount and what our engine knows besides: how ids are mapped on it, and whether its content is given to the container's user.
type Mounted struct {
	mount.Mount
	IDMap string `json:",omitempty"`
	Chown bool   `json:",omitempty"`
}

// Mount reads a --mount value.
func Mount(s string) (Mounted, error) {
	m := Mounted{Mount: mount.Mount{Type: mount.TypeVolume}}
	fields, err := csvFields(s)
	if err != nil {
		return m, err
	}
	for _, f := range fields {
		key, val, hasVal := strings.Cut(f, "=")
		key = strings.ToLower(key)
		if !hasVal {
			switch key {
			case "readonly", "ro", "volume-nocopy", "bind-nonrecursive", "bind-create-src", "u", "chown":
				val = "true"
			case "idmap":
				val = "auto"
			default:
				return m, invalid("invalid field '%s' must be a key=value pair", f)
			}
		}
		if err := mountField(&m, key, val); err != nil {
			return m, err
		}
	}
	return m, checkMount(&m.Mount)
}

func mountField(m *Mounted, key, val string) (err error) {
	onOff := func() bool {
		on, perr := strconv.ParseBool(val)
		if perr != nil {
			err = invalid("invalid value for %s: %s", key, val)
		}
		return on
	}
	switch key {
	case "type":
		m.Type = mount.Type(strings.ToLower(val))
	case "source", "src":
		m.Source = val
		if strings.HasPrefix(val, "."+string(filepath.Separator)) || val == "." || strings.HasPrefix(val, "..") {
			if abs, aerr := filepath.Abs(val); aerr == nil {
				m.Source = abs
			}
		}
	case "target", "dst", "destination":
		m.Target = val
	case "readonly", "ro":
		m.ReadOnly = onOff()
	case "consistency":
		m.Consistency = mount.Consistency(strings.ToLower(val))
	case "idmap":
		m.IDMap = val
	case "u", "chown":
		m.Chown = onOff()
	case "bind-propagation":
		bindOf(&m.Mount).Propagation = mount.Propagation(strings.ToLower(val))
	case "bind-nonrecursive":
		bindOf(&m.Mount).NonRecursive = onOff()
	case "bind-create-src":
		bindOf(&m.Mount).CreateMountpoint = onOff()
	case "bind-recursive":
		return bindRecursive(bindOf(&m.Mount), key, val)
	case "volume-nocopy":
		volumeOf(&m.Mount).NoCopy = onOff()
	case "volume-label":
		v := volumeOf(&m.Mount)
		if v.Labels == nil {
			v.Labels = map[string]string{}
		}
		k, label, _ := strings.Cut(val, "=")
		v.Labels[k] = label
	case "volume-subpath":
		volumeOf(&m.Mount).Subpath = val
	case "volume-driver":
		driverOf(&m.Mount).Name = val
	case "volume-opt":
		d := driverOf(&m.Mount)
		if d.Options == nil {
			d.Options = map[string]string{}
		}
		k, opt, _ := strings.Cut(val, "=")
		d.Options[k] = opt
	case "image-subpath":
		m.ImageOptions = &mount.ImageOptions{Subpath: val}
	case "tmpfs-size":
		n, perr := units.RAMInBytes(val)
		if perr != nil {
			return invalid("invalid value for %s: %s", key, val)
		}
		tmpfsOf(&m.Mount).SizeBytes = n
	case "tmpfs-mode":
		n, perr := strconv.ParseUint(val, 8, 32)
		if perr != nil {
			return invalid("invalid value for %s: %s", key, val)
		}
		tmpfsOf(&m.Mount).Mode = os.FileMode(n)
	default:
		return invalid("unexpected key '%s' in '%s'", key, key+"="+val)
	}
	return err
}

func bindRecursive(b *mount.BindOptions, key, val string) error {
	switch val {
	case "enabled":
	case "disabled":
		b.NonRecursive = true
	case "writable":
		b.ReadOnlyNonRecursive = true
	case "readonly":
		b.ReadOnlyForceRecursive = true
	default:
		return invalid(`invalid value for %s: %s (must be "enabled", "disabled", "writable", or "readonly")`, key, val)
	}
	return nil
}

func bindOf(m *mount.Mount) *mount.BindOptions {
	if m.BindOptions == nil {
		m.BindOptions = &mount.BindOptions{}
	}
	return m.BindOptions
}

func volumeOf(m *mount.Mount) *mount.VolumeOptions {
	if m.VolumeOptions == nil {
		m.VolumeOptions = &mount.VolumeOptions{}
	}
	return m.VolumeOptions
}

func driverOf(m *mount.Mount) *mount.Driver {
	v := volumeOf(m)
	if v.DriverConfig == nil {
		v.DriverConfig = &mount.Driver{}
	}
	return v.DriverConfig
}

func tmpfsOf(m *mount.Mount) *mount.TmpfsOptions {
	if m.TmpfsOptions == nil {
		m.TmpfsOptions = &mount.TmpfsOptions{}
	}
	return m.TmpfsOptions
}

func checkMount(m *mount.Mount) error {
	switch {
	case m.Type == "":
		return invalid("type is required")
	case m.Target == "":
		return invalid("target is required")
	case m.VolumeOptions != nil && m.Type != mount.TypeVolume:
		return invalid("cannot mix 'volume-*' options with mount type '%s'", m.Type)
	case m.BindOptions != nil && m.Type != mount.TypeBind:
		return invalid("cannot mix 'bind-*' options with mount type '%s'", m.Type)
	case m.TmpfsOptions != nil && m.Type != mount.TypeTmpfs:
		return invalid("cannot mix 'tmpfs-*' options with mount type '%s'", m.Type)
	case m.ImageOptions != nil && m.Type != mount.TypeImage:
		return invalid("cannot mix 'image-*' options with mount type '%s'", m.Type)
	}
	if b := m.BindOptions; b != nil && !m.ReadOnly && (b.ReadOnlyNonRecursive || b.ReadOnlyForceRecursive) {
		word := "writable"
		if b.ReadOnlyForceRecursive {
			word = "readonly"
		}
		return invalid("option 'bind-recursive=%s' requires 'readonly' to be specified in conjunction", word)
	}
	if b := m.BindOptions; b != nil && b.ReadOnlyForceRecursive && b.Propagation != mount.PropagationRPrivate {
		return invalid("option 'bind-recursive=readonly' requires 'bind-propagation=rprivate' to be specified in conjunction")
	}
	return nil
}

// Volume reads a -v value. It yields a bind for the engine, or the path of an anonymous volume.
func Volume(s string) (bind, anonymous string, err error) {
	if s == "" {
		return "", "", invalid("invalid empty volume spec")
	}
	source, rest, ok := strings.Cut(s, ":")
	if !ok {
		return "", s, nil
	}
	if source == "" || rest == "" || strings.Count(rest, ":") > 1 {
		return "", "", invalid("invalid volume specification: '%s'", s)
	}
	if strings.HasPrefix(source, ".") {
		abs, err := filepath.Abs(source)
		if err != nil {
			return "", "", err
		}
		source = abs
	}
	return source + ":" + rest, "", nil
}
