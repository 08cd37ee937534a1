package cgroup

import (
	"bufio"
	"fmt"
	"os"
	"path"
	"slices"
	"strings"
	"sync"

	"corten.dev/corten/internal/errs"
	"golang.org/x/sys/unix"
)

// Mode is how the host has laid out its control groups.
type Mode int

// The layouts.
const (
	V1     Mode = iota + 1 // one hierarchy per controller
	Hybrid                 // the same, and a v2 tree beside
	V2                     // one tree for everything
)

// String gives the words that `info` shows.
func (m Mode) String() string {
	switch m {
	case V1:
		return "1"
	case Hybrid:
		return "hybrid"
	case V2:
		return "2"
	}
	return "unknown"
}

const mountPoint = "/sys/fs/cgroup"

// Host is where the control groups of a machine are mounted. It does not change while the machine runs, so that an engine asks once.
type Host struct {
	mode          Mode
	v1            []hierarchy
	v2            string   // mount point of the v2 tree, "" if there is none
	v2Controllers []string // what the v2 tree's root offers
	openFlags     int      // O_CREAT where tests use a plain directory as the tree

	once sync.Once // makes dirs
	dirs []dir
}

// all is one dir for each v1 hierarchy, shared by the managers that use them all.
func (h *Host) all() []dir {
	h.once.Do(func() {
		h.dirs = make([]dir, len(h.v1))
		for i := range h.v1 {
			h.dirs[i].hier = &h.v1[i]
		}
	})
	return h.dirs
}

// hierarchy is one mounted v1 hierarchy.
type hierarchy struct {
	name        string // as /proc/self/cgroup has it: "cpu,cpuacct" or "name=systemd"
	controllers []string
	root        string
}

func (h *hierarchy) has(controller string) bool { return slices.Contains(h.controllers, controller) }

// Mode is the layout.
func (h *Host) Mode() Mode { return h.mode }

// Has tells whether limits of a controller can be set on this host.
func (h *Host) Has(controller string) bool {
	for i := range h.v1 {
		if h.v1[i].has(controller) {
			return true
		}
	}
	return h.v2 != "" && h.v2Has(controller)
}

// v2Has tells whether a controller is in the v2 tree. Devices and freezer are no controllers there, but always present.
func (h *Host) v2Has(controller string) bool {
	switch controller {
	case "devices", "freezer":
		return true
	case "blkio":
		controller = "io"
	case "cpuacct":
		controller = "cpu"
	}
	return slices.Contains(h.v2Controllers, controller)
}

// Discover finds the layout. It asks the usual places first, and reads the table of mounts, which is long on a busy host, only where that fails.
func Discover() (*Host, error) {
	own, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return nil, fmt.Errorf("find cgroups: %w", err)
	}
	h := &Host{}
	if isFS(mountPoint, unix.CGROUP2_SUPER_MAGIC) {
		h.mode, h.v2 = V2, mountPoint
		return h, h.readControllers()
	}
	if isFS(mountPoint+"/unified", unix.CGROUP2_SUPER_MAGIC) {
		h.v2 = mountPoint + "/unified"
	}
	var mounts map[string]string
	for _, line := range strings.Split(strings.TrimSpace(string(own)), "\n") {
		_, rest, _ := strings.Cut(line, ":")
		name, _, ok := strings.Cut(rest, ":")
		if !ok || name == "" {
			continue
		}
		root := mountPoint + "/" + strings.TrimPrefix(name, "name=")
		if !isFS(root, unix.CGROUP_SUPER_MAGIC) {
			if mounts == nil {
				if mounts, err = v1Mounts("/proc/self/mountinfo"); err != nil {
					return nil, fmt.Errorf("find cgroups: %w", err)
				}
			}
			first, _, _ := strings.Cut(name, ",")
			if root, ok = mounts[first]; !ok {
				continue // known to the kernel, but not mounted: not usable here
			}
		}
		h.v1 = append(h.v1, hierarchy{name, strings.Split(name, ","), root})
	}
	switch {
	case len(h.v1) == 0 && h.v2 == "":
		return nil, errs.New(errs.Unavailable, "no control groups are mounted below %s; mount them first: mount -t cgroup2 none %s", mountPoint, mountPoint)
	case h.v2 == "":
		h.mode = V1
		return h, nil
	case len(h.v1) == 0:
		h.mode = V2
	default:
		h.mode = Hybrid
	}
	return h, h.readControllers()
}

func (h *Host) readControllers() error {
	s, err := readFile(h.v2, "cgroup.controllers")
	if err != nil {
		return fmt.Errorf("find cgroup controllers: %w", err)
	}
	h.v2Controllers = strings.Fields(s)
	return nil
}

func isFS(p string, magic int64) bool {
	var st unix.Statfs_t
	return unix.Statfs(p, &st) == nil && int64(st.Type) == magic
}

// v1Mounts maps the first controller of each mounted v1 hierarchy to its mount point.
func v1Mounts(table string) (map[string]string, error) {
	f, err := os.Open(table)
	if err != nil {
		return nil, err
	}
	defer f.Close() //nolint:errcheck // read only
	mounts := make(map[string]string)
	sc := bufio.NewScanner(f)
	for sc.Scan() {
		before, after, ok := strings.Cut(sc.Text(), " - ")
		fields, tail := strings.Fields(before), strings.Fields(after)
		if !ok || len(fields) < 5 || len(tail) < 3 || tail[0] != "cgroup" {
			continue
		}
		for _, opt := range strings.Split(tail[2], ",") {
			if _, dup := mounts[opt]; !dup {
				mounts[opt] = unescape(fields[4])
			}
		}
	}
	return mounts, sc.Err()
}

// unescape undoes the octal escapes of the table of mounts.
func unescape(s string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(s)
}

// rootlessBase is where an ordinary user may make cgroups: beside its own one, in the subtree that systemd has delegated.
func (h *Host) rootlessBase(rootless bool) (string, error) {
	if !rootless || h.mode != V2 {
		return "/", nil
	}
	own, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return "", fmt.Errorf("find own cgroup: %w", err)
	}
	for _, line := range strings.Split(string(own), "\n") {
		if p, ok := strings.CutPrefix(line, "0::"); ok {
			return path.Dir(path.Clean(p)), nil
		}
	}
	return "/", nil
}
