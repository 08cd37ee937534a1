package system

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	goruntime "runtime"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"

	"corten.dev/corten/internal/container"
	"corten.dev/corten/internal/engine/containers"
	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/events"
	"corten.dev/corten/internal/filter"
	"corten.dev/corten/internal/image"
	"corten.dev/corten/internal/linux/cgroup"
	linuxhost "corten.dev/corten/internal/linux/host"
)

// Containers lists containers and who uses what.
type Containers interface {
	List(ctx context.Context, opts containers.ListOptions) ([]containers.View, error)
	ImageUsers(id digest.Digest) (stopped, running []string)
	VolumeMounts() map[string]int
}

// Images lists images and knows what they take.
type Images interface {
	List(ctx context.Context) ([]image.Image, error)
	DiskUsage(ctx context.Context, inUse func(digest.Digest) bool) (image.DiskUsage, error)
}

// Volumes knows what volumes held when they were counted last, and never waits ([volume.Store]).
type Volumes interface {
	LastUsage(name string) (bytes int64, counted time.Time, counting bool)
}

// Trees is where layers and writable trees are. It knows what they held when they were counted last, and never waits ([snapshot.Store]).
type Trees interface {
	Name() string
	LastUsage(key string) (bytes int64, counted time.Time)
}

// Devices knows the devices that have names ([hostspec.CDI]).
type Devices interface {
	Dirs() []string
	Devices() (names, warnings []string)
}

// Options join the service with its rooms.
type Options struct {
	Containers Containers
	Images     Images
	Volumes    Volumes
	Trees      Trees
	Events     *events.Bus
	Devices    Devices // nil: none have names
	// Plugins names the plugins in use that implement an interface ("VolumeDriver", "NetworkDriver"); nil: there are none.
	Plugins  func(iface string) []string
	DataRoot string
	Labels   []string
	// AddressPools are those that were set.
	AddressPools []AddressPool
	// HTTPProxy, HTTPSProxy and NoProxy are the operator's; what is empty is the environment's.
	HTTPProxy, HTTPSProxy, NoProxy string

	LogDriver  string   // the default
	LogDrivers []string // all there are

	// Runtimes are those beside our own; DefaultRuntime is that of containers that name none.
	Runtimes       map[string]Runtime
	DefaultRuntime string

	SystemdCgroup bool
	Debug         bool
	Version       string
}

// Service implements [API].
type Service struct {
	Options
	id string
}

var _ API = (*Service)(nil)

// New makes the service. The engine's id is made once and kept in the data root.
func New(opts Options) *Service { return &Service{Options: opts, id: engineID(opts.DataRoot)} }

// engineID reads the engine's id, or makes one. An id that cannot be kept is still one for this run.
func engineID(root string) string {
	path := filepath.Join(root, "engine-id")
	if b, err := os.ReadFile(path); err == nil && len(b) >= 36 {
		return string(b[:36])
	}
	var b [16]byte
	rand.Read(b[:]) // never fails
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	id := fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
	if err := os.WriteFile(path, []byte(id+"\n"), 0o600); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return id
	}
	return id
}

func (s *Service) plugins(iface string) []string {
	if s.Plugins == nil {
		return nil
	}
	return s.Plugins(iface)
}

// runtimes are our own and the others.
func (s *Service) runtimes() map[string]Runtime {
	all := map[string]Runtime{"corten": {Path: "built in"}}
	maps.Copy(all, s.Runtimes)
	return all
}

// Info implements [API].
func (s *Service) Info(ctx context.Context) (Info, error) {
	list, err := s.Containers.List(ctx, containers.ListOptions{All: true})
	if err != nil {
		return Info{}, err
	}
	imgs, err := s.Images.List(ctx)
	if err != nil {
		return Info{}, err
	}
	info := Info{
		ID: s.id, Containers: len(list), Images: len(imgs), Driver: s.Trees.Name(), DriverStatus: s.driverStatus(), DataRoot: s.DataRoot, Debug: s.Debug, Labels: s.Labels,
		OSType: "linux", Architecture: machine(), NCPU: goruntime.NumCPU(), DefaultRuntime: cmp.Or(s.DefaultRuntime, "corten"), Runtimes: s.runtimes(),
		Goroutines: goruntime.NumGoroutine(), FDs: descriptors(), LogDriver: s.LogDriver, LogDrivers: append(slices.Clone(s.LogDrivers), s.plugins("LogDriver")...), VolumeDrivers: append([]string{"local"}, s.plugins("VolumeDriver")...),
		NetworkDrivers: append([]string{"bridge", "host", "null"}, s.plugins("NetworkDriver")...), HTTPProxy: proxy(s.HTTPProxy, "HTTP_PROXY"), HTTPSProxy: proxy(s.HTTPSProxy, "HTTPS_PROXY"), NoProxy: proxy(s.NoProxy, "NO_PROXY"), InitBinary: "corten-init", AddressPools: s.AddressPools,
	}
	for _, view := range list {
		switch view.State.Status {
		case container.Running, container.Restarting:
			info.Running++
		case container.Paused:
			info.Paused++
		default:
			info.Stopped++
		}
	}
	if info.Name, err = os.Hostname(); err != nil {
		return info, err
	}
	host(&info)
	s.cgroups(&info)
	if s.Devices != nil {
		names, warnings := s.Devices.Devices()
		info.CDISpecDirs, info.CDIDevices = s.Devices.Dirs(), names
		for _, w := range warnings {
			info.Warnings = append(info.Warnings, "WARNING: "+w)
		}
	}
	return info, nil
}

func (s *Service) driverStatus() [][2]string {
	name, err := linuxhost.FileSystem(s.DataRoot)
	if err != nil {
		return nil
	}
	return [][2]string{{"Backing Filesystem", name}}
}

func machine() string {
	return cmp.Or(linuxhost.Machine(), goruntime.GOARCH)
}

// proxy is what the operator set, or else the environment says. A password does not belong into `info`.
func proxy(set, name string) string {
	v := cmp.Or(set, os.Getenv(name), os.Getenv(strings.ToLower(name)))
	at := strings.LastIndexByte(v, '@')
	if at < 0 {
		return v
	}
	scheme, _, ok := strings.Cut(v, "://")
	if !ok {
		return "xxxxx:xxxxx@" + v[at+1:]
	}
	return scheme + "://xxxxx:xxxxx@" + v[at+1:]
}

func descriptors() int {
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return 0
	}
	return len(entries)
}

// host fills in what the kernel and the distribution say of themselves.
func host(info *Info) {
	info.KernelVersion, info.MemTotal = linuxhost.Kernel(), linuxhost.Memory()
	for _, path := range []string{"/etc/os-release", "/usr/lib/os-release"} {
		b, err := os.ReadFile(path)
		if err != nil {
			continue
		}
		for line := range strings.Lines(string(b)) {
			key, value, _ := strings.Cut(strings.TrimSpace(line), "=")
			value = strings.Trim(value, `"'`)
			switch key {
			case "PRETTY_NAME":
				info.OperatingSystem = value
			case "VERSION_ID":
				info.OSVersion = value
			}
		}
		break
	}
	if b, err := os.ReadFile("/proc/sys/net/ipv4/ip_forward"); err == nil {
		info.IPv4Forwarding = strings.TrimSpace(string(b)) == "1"
	}
	if !info.IPv4Forwarding {
		info.Warnings = append(info.Warnings, "WARNING: IPv4 forwarding is disabled")
	}
	if _, err := os.Stat("/proc/self/seccomp"); err == nil || fileHas("/proc/self/status", "Seccomp:") {
		info.SecurityOptions = append(info.SecurityOptions, "name=seccomp,profile=builtin")
	}
	if fileHas("/sys/module/apparmor/parameters/enabled", "Y") {
		info.SecurityOptions = append(info.SecurityOptions, "name=apparmor")
	}
	if _, err := os.Stat("/sys/fs/selinux/enforce"); err == nil {
		info.SecurityOptions = append(info.SecurityOptions, "name=selinux")
	}
}

func fileHas(path, word string) bool {
	b, err := os.ReadFile(path)
	return err == nil && strings.Contains(string(b), word)
}

// cgroups says which limits this host can set.
func (s *Service) cgroups(info *Info) {
	info.CgroupDriver = "cgroupfs"
	if s.SystemdCgroup {
		info.CgroupDriver = "systemd"
	}
	h, err := cgroup.Discover()
	if err != nil {
		info.Warnings = append(info.Warnings, "WARNING: no cgroups: "+err.Error())
		return
	}
	info.CgroupVersion = "1"
	if h.Mode() == cgroup.V2 {
		info.CgroupVersion = "2"
		info.SecurityOptions = append(info.SecurityOptions, "name=cgroupns")
	}
	mem, cpu := h.Has("memory"), h.Has("cpu")
	info.MemoryLimit, info.CPUCfsPeriod, info.CPUCfsQuota, info.CPUShares = mem, cpu, cpu, cpu
	info.CPUSet, info.PidsLimit, info.OomKillDisable = h.Has("cpuset"), h.Has("pids"), mem && info.CgroupVersion == "1"
	info.SwapLimit = mem
	if info.CgroupVersion == "1" {
		_, err := os.Stat("/sys/fs/cgroup/memory/memory.memsw.limit_in_bytes")
		info.SwapLimit = err == nil
	}
	for _, w := range []struct {
		ok   bool
		text string
	}{
		{info.MemoryLimit, "WARNING: No memory limit support"}, {info.SwapLimit, "WARNING: No swap limit support"}, {info.CPUCfsQuota, "WARNING: No cpu cfs quota support"},
		{info.CPUShares, "WARNING: No cpu shares support"}, {info.CPUSet, "WARNING: No cpuset support"}, {info.PidsLimit, "WARNING: No pids limit support"},
	} {
		if !w.ok {
			info.Warnings = append(info.Warnings, w.text)
		}
	}
}

// Events implements [API].
func (s *Service) Events(ctx context.Context, since, until time.Time, filters filter.Args, fn func(events.Event) error) error {
	err := filters.Accept("config", "container", "daemon", "event", "image", "label", "network", "node", "plugin", "scope", "secret", "service", "type", "volume")
	if err != nil {
		return err
	}
	if !until.IsZero() && !since.IsZero() && until.Before(since) {
		return errs.New(errs.Invalid, "`since` time (%d) cannot be after `until` time (%d)", since.Unix(), until.Unix())
	}
	if since.IsZero() && !until.IsZero() {
		since = time.Unix(0, 0) // an end without a beginning asks for what was, as Docker's
	}
	past, listener := s.Options.Events.Subscribe(since)
	defer listener.Close()
	send := func(e events.Event) error {
		if !until.IsZero() && e.Time.After(until) || !matches(filters, e) {
			return nil
		}
		return fn(e)
	}
	for _, e := range past {
		if err := send(e); err != nil {
			return err
		}
	}
	var end <-chan time.Time
	if !until.IsZero() {
		left := time.Until(until)
		if left <= 0 {
			return nil
		}
		timer := time.NewTimer(left)
		defer timer.Stop()
		end = timer.C
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-end:
			return nil
		case e, ok := <-listener.C:
			if !ok {
				return errs.New(errs.Unavailable, "events came faster than they were read: the stream was ended")
			}
			if err := send(e); err != nil {
				return err
			}
		}
	}
}

// matches applies the filters of `events`. A noun's filter matches its id or name, of the actor or in its attributes.
func matches(f filter.Args, e events.Event) bool {
	action, _, _ := strings.Cut(e.Action, ":") // "exec_create: ls" is an exec_create
	if f.Has("event") && !slices.Contains(f["event"], action) && !slices.Contains(f["event"], e.Action) {
		return false
	}
	if !f.Exact("type", e.Type) || !f.Labels("label", e.Attributes) || !f.Exact("scope", "local") {
		return false
	}
	for _, noun := range []string{"config", "container", "daemon", "image", "network", "node", "plugin", "secret", "service", "volume"} {
		if f.Has(noun) && !actor(f, noun, e) {
			return false
		}
	}
	return true
}

func actor(f filter.Args, noun string, e events.Event) bool {
	if noun == "image" { // containers match by the image that they were made of
		name := e.Attributes["image"]
		if e.Type == "image" {
			name = e.Attributes["name"]
		}
		bare, _, _ := strings.Cut(name, ":")
		return e.Type == "image" && f.Exact("image", e.ID) || name != "" && (f.Exact("image", name) || f.Exact("image", bare))
	}
	if e.Type != noun {
		return noun == "container" && e.Attributes["container"] != "" && f.Prefix("container", e.Attributes["container"])
	}
	return f.Match(noun, e.ID) || f.Prefix(noun, e.ID) || f.Match(noun, e.Attributes["name"])
}

// ImageUsage implements [API].
func (s *Service) ImageUsage(ctx context.Context) (image.DiskUsage, error) {
	return s.Images.DiskUsage(ctx, func(id digest.Digest) bool {
		stopped, running := s.Containers.ImageUsers(id)
		return len(stopped)+len(running) > 0
	})
}

// ImageBytes are all bytes that images take on disk, blobs and broken downloads included, and what would go if all went that is not in use.
func ImageBytes(disk image.DiskUsage) (all, reclaimable int64) {
	return disk.LayerBytes + disk.Content.BlobBytes + disk.Content.IngestedBytes, disk.Reclaimable
}
