package containers

import (
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"corten.dev/corten/internal/container"
	"corten.dev/corten/internal/engine/hostspec"
	"corten.dev/corten/internal/errs"
)

// ParseBind reads one -v: source:target[:options], or a target alone. Beside Docker's options there are U, which gives the tree to the container's user, and idmap[=…]
// (see engine/hostspec).
func ParseBind(bind string) (container.Mount, error) {
	bad := errs.New(errs.Invalid, "invalid volume specification: '%s'", strings.ReplaceAll(bind, "\x00", `\0`))
	parts := strings.Split(bind, ":")
	req := container.MountRequest{Type: "volume"}
	mode := ""
	switch len(parts) {
	case 1:
		req.Target = parts[0]
	case 2:
		if _, err := readMode(parts[1]); err == nil { // "target:mode": a volume without a source has no mode
			return container.Mount{}, bad
		}
		req.Source, req.Target = parts[0], parts[1]
	case 3:
		req.Source, req.Target, mode = parts[0], parts[1], parts[2]
	default:
		return container.Mount{}, bad
	}
	if parts[0] == "" || strings.ContainsRune(bind, 0) {
		return container.Mount{}, bad
	}
	m, err := readMode(mode)
	if err != nil {
		return container.Mount{}, err
	}
	if path.IsAbs(req.Source) {
		req.Type, req.CreateMountpoint = "bind", true
	}
	req.ReadOnly, req.Propagation, req.NoCopy, req.Chown, req.IDMap = m.readOnly, m.propagation, m.noCopy, m.chown, m.idmap
	if req.Type == "volume" && m.propagation != "" {
		return container.Mount{}, errs.New(errs.Invalid, `%w: invalid mount config for type "volume": field BindOptions must not be specified`, bad)
	}
	if req.Type == "bind" && m.noCopy {
		return container.Mount{}, errs.New(errs.Invalid, `%w: invalid mount config for type "bind": field VolumeOptions must not be specified`, bad)
	}
	mnt, err := resolveRequest(req)
	if err != nil {
		return mnt, errs.New(errs.Invalid, "%w: %w", bad, err)
	}
	// What inspect lists of it comes from HostConfig.Binds; the request keeps what a start must know.
	mnt.Mode, mnt.Relabel = mode, relabel(mode)
	if mode == "" && mnt.Type == "volume" {
		mnt.Mode = "z"
	}
	return mnt, nil
}

// bindMode is what the options of a -v mean.
type bindMode struct {
	readOnly, noCopy, chown bool
	propagation, idmap      string
}

// readMode reads the options of a -v; of each kind there may be one.
func readMode(mode string) (bindMode, error) {
	var m bindMode
	if mode == "" {
		return m, nil
	}
	bad := errs.New(errs.Invalid, "invalid mode: %s", mode)
	seen := map[string]bool{}
	for opt := range strings.SplitSeq(mode, ",") {
		kind := opt
		word, val, hasVal := strings.Cut(opt, "=")
		switch {
		case opt == "rw" || opt == "ro":
			kind, m.readOnly = "rw", opt == "ro"
		case opt == "z" || opt == "Z":
			kind = "label"
		case slices.Contains(propagations, opt):
			kind, m.propagation = "propagation", opt
		case opt == "nocopy":
			m.noCopy = true
		case opt == "cached" || opt == "delegated" || opt == "consistent" || opt == "default":
			kind = "consistency" // all mean the same on Linux
		case opt == "U":
			m.chown = true
		case word == "idmap":
			if kind, m.idmap = word, hostspec.AutoIDMap; hasVal {
				m.idmap = val
			}
			if _, err := hostspec.ParseIDMap(m.idmap); err != nil {
				return m, err
			}
		default:
			return m, bad
		}
		if seen[kind] {
			return m, bad
		}
		seen[kind] = true
	}
	return m, nil
}

var propagations = []string{"private", "rprivate", "shared", "rshared", "slave", "rslave"}

// relabel is how the options of a mount ask for its content to be labelled for SELinux: "z" for all containers, "Z" for this one, "" not at all.
func relabel(mode string) string {
	for opt := range strings.SplitSeq(mode, ",") {
		if opt == "z" || opt == "Z" {
			return opt
		}
	}
	return ""
}

// resolveRequest checks one mount, in Docker's words.
func resolveRequest(req container.MountRequest) (container.Mount, error) {
	mnt := container.Mount{Type: req.Type, Target: path.Clean(req.Target), RW: !req.ReadOnly, Request: req}
	if req.ReadOnly {
		mnt.Mode = "ro"
	}
	if err := checkRequest(&mnt, req); err != nil {
		return container.Mount{}, errs.New(errs.Invalid, "invalid mount config for type %q: %w", req.Type, err)
	}
	return mnt, nil
}

func checkRequest(mnt *container.Mount, req container.MountRequest) error {
	if req.Target == "" {
		return errs.New(errs.Invalid, "field Target must not be empty")
	}
	if strings.ContainsRune(req.Target+req.Source+req.Subpath, 0) {
		return errs.New(errs.Invalid, "a path has a zero byte")
	}
	if err := checkTarget(req.Target); err != nil {
		return err
	}
	if _, err := hostspec.ParseIDMap(req.IDMap); err != nil {
		return err
	}
	if req.Subpath != "" && !filepath.IsLocal(req.Subpath) {
		return errs.New(errs.Invalid, "subpath must be a relative path within the volume")
	}
	switch req.Type {
	case "bind":
		return bindRequest(mnt, req)
	case "volume":
		return volumeRequest(mnt, req)
	case "tmpfs":
		switch {
		case req.Source != "":
			return errs.New(errs.Invalid, "field Source must not be specified")
		case req.IDMap != "" || req.Chown:
			return errs.New(errs.Invalid, "a tmpfs has no owners to change: give it uid= and gid=")
		}
	case "image":
		switch {
		case req.Source == "":
			return errs.New(errs.Invalid, "field Source must not be empty")
		case req.Chown:
			return errs.New(errs.Invalid, "an image is read-only: nothing in it can be given away")
		}
		mnt.Name, mnt.RW = req.Source, false
	default: // npipe is Windows', cluster is swarm's
		return errs.New(errs.Invalid, "mount type unknown")
	}
	return nil
}

func bindRequest(mnt *container.Mount, req container.MountRequest) error {
	switch {
	case req.Source == "":
		return errs.New(errs.Invalid, "field Source must not be empty")
	case req.Propagation != "" && !slices.Contains(propagations, req.Propagation):
		return errs.New(errs.Invalid, "invalid propagation mode: %s", req.Propagation)
	}
	if err := absolute(req.Source); err != nil {
		return err
	}
	mnt.Source, mnt.Propagation = path.Clean(req.Source), req.Propagation
	if req.CreateMountpoint {
		return nil
	}
	if _, err := os.Stat(mnt.Source); err != nil {
		return errs.New(errs.Invalid, "bind source path does not exist: %s", mnt.Source)
	}
	return nil
}

// volumeRequest leaves the name to the volume's driver, whose words are not those of a mount.
func volumeRequest(mnt *container.Mount, req container.MountRequest) error {
	switch {
	case req.Source == "" && req.Subpath != "":
		return errs.New(errs.Invalid, "must not set Subpath when using anonymous volumes")
	case req.Source == "" && req.ReadOnly:
		return errs.New(errs.Invalid, "must not set ReadOnly mode when using anonymous volumes")
	}
	mnt.Name, mnt.Source, mnt.Driver, mnt.Anonymous = req.Source, "", req.Driver, req.Source == ""
	if mnt.Mode == "" {
		mnt.Mode = "z"
	}
	return nil
}
