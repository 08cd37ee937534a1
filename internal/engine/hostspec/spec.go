package hostspec

import (
	"fmt"
	"maps"
	"os"
	"path"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"corten.dev/corten/internal/container"
	"corten.dev/corten/internal/linux/cgroup"
	linuxhost "corten.dev/corten/internal/linux/host"
)

// Maker has what all specs of an engine have in common.
type Maker struct {
	Security      *Security
	CgroupParent  string // empty: the usual one
	SystemdCgroup bool
	NoNewPrivs    bool                        // default of all
	Ulimits       map[string]container.Ulimit // defaults of all
	CDI           *CDI                        // nil: no devices by name
}

// Run is one run of a container, or of a step of a build, once it is known what it gets of the other rooms.
type Run struct {
	ID     string
	Args   []string
	Config *container.Config
	Host   *container.Host
	Mounts []container.Mount
	User   Identity
	Files  Files
	// Sources are the directories or files on the host, by the target of their mount.
	Sources map[string]string
	// IDMaps are the mappings of ids on mounts, by their target.
	IDMaps map[string]Mapping
	Extra  []specs.Mount // mounts that are none of a container's
	Shm    string        // host path of a shared /dev/shm; empty for one of its own
	Init   string        // host path of the init program; empty without --init
	Env    []string      // variables that the image and the user did not set, but may
	Joins  map[specs.LinuxNamespaceType]string
	// ProcessLabel and MountLabel are SELinux labels of [Security.Labels].
	ProcessLabel, MountLabel string
}

// Files are the paths of the three files that every container gets; an empty one is left out.
type Files struct{ ResolvConf, Hosts, Hostname string }

var (
	defaultMasked = []string{
		"/proc/asound", "/proc/acpi", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug", "/proc/scsi",
		"/sys/firmware", "/sys/devices/virtual/powercap",
	}
	defaultReadonly = []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"}
)

const initTarget = "/sbin/corten-init"

// Spec writes the OCI configuration of a run: Docker's defaults and what was asked for.
func (m *Maker) Spec(r *Run) (*specs.Spec, error) {
	cfg, host := r.Config, r.Host
	sec, err := ParseSecurityOpt(host.SecurityOpt)
	if err != nil {
		return nil, err
	}
	process, err := m.process(r, sec)
	if err != nil {
		return nil, err
	}
	profile, err := m.Security.Seccomp(sec.Seccomp, host.Privileged, process.Capabilities.Bounding)
	if err != nil {
		return nil, err
	}
	mounts, err := mounts(r)
	if err != nil {
		return nil, err
	}
	devices, rules, err := devicesOf(host)
	if err != nil {
		return nil, err
	}
	res, err := Resources(&host.Resources)
	if err != nil {
		return nil, err
	}
	res.Devices = rules
	spec := &specs.Spec{
		Version: specs.Version, Process: process, Root: &specs.Root{Path: "rootfs", Readonly: host.ReadonlyRootfs}, Mounts: mounts,
		Annotations: host.Annotations,
		Linux: &specs.Linux{
			Resources: res, CgroupsPath: m.CgroupsPath(r.ID, host), Namespaces: namespaces(host, r.Joins), Devices: devices, Seccomp: profile,
			Sysctl: sysctls(host), RootfsPropagation: rootPropagation(r.Mounts),
		},
	}
	if host.UTSMode != "host" {
		spec.Hostname, spec.Domainname = cfg.Hostname, cfg.Domainname
	}
	spec.Linux.MaskedPaths, spec.Linux.ReadonlyPaths = HiddenPaths(host, sec)
	spec.Process.SelinuxLabel, spec.Linux.MountLabel = r.ProcessLabel, r.MountLabel
	if err := m.CDI.Inject(spec, host.Resources.DeviceRequests); err != nil {
		return nil, err
	}
	return spec, nil
}

func (m *Maker) process(r *Run, sec SecurityOpt) (*specs.Process, error) {
	cfg, host := r.Config, r.Host
	names, err := m.Security.Capabilities(host, host.Privileged)
	if err != nil {
		return nil, err
	}
	profile, err := m.Security.AppArmor(sec.AppArmor, host.Privileged)
	if err != nil {
		return nil, err
	}
	args := r.Args
	if r.Init != "" {
		args = append([]string{initTarget, "--"}, args...)
	}
	cwd := cfg.WorkingDir
	if cwd == "" {
		cwd = "/"
	}
	noNewPrivs := m.NoNewPrivs
	if sec.NoNewPrivs != nil {
		noNewPrivs = *sec.NoNewPrivs
	}
	p := &specs.Process{
		Terminal: cfg.Tty, User: r.User.User, Args: args, Env: Environment(cfg.Hostname, cfg.Tty, r.User.Home, r.Env, cfg.Env), Cwd: path.Clean(cwd),
		Capabilities: Capabilities(names, r.User.UID), Rlimits: m.Rlimits(host.Resources.Ulimits), NoNewPrivileges: noNewPrivs && !host.Privileged,
		ApparmorProfile: profile, OOMScoreAdj: &host.OomScoreAdj,
	}
	if sec.NoNewPrivs != nil {
		p.NoNewPrivileges = *sec.NoNewPrivs
	}
	if cfg.Tty && host.ConsoleSize != [2]uint{} {
		p.ConsoleSize = &specs.Box{Height: host.ConsoleSize[0], Width: host.ConsoleSize[1]}
	}
	return p, nil
}

// HiddenPaths are the paths that a container does not see, and those that it cannot write.
func HiddenPaths(host *container.Host, sec SecurityOpt) (masked, readonly []string) {
	if host.Privileged || sec.SystemUnconfined {
		return nil, nil
	}
	masked, readonly = host.MaskedPaths, host.ReadonlyPaths
	if masked == nil {
		masked = defaultMasked
	}
	if readonly == nil {
		readonly = defaultReadonly
	}
	return masked, readonly
}

// Capabilities gives a process its sets: an ordinary user has them within reach (bounding), but not in hand.
func Capabilities(names []string, uid uint32) *specs.LinuxCapabilities {
	c := &specs.LinuxCapabilities{Bounding: names}
	if uid == 0 {
		c.Effective, c.Permitted = names, names
	}
	return c
}

// Rlimits are the engine's own bounds, and above them what was asked for.
func (m *Maker) Rlimits(asked []container.Ulimit) []specs.POSIXRlimit {
	all := make(map[string]container.Ulimit, len(m.Ulimits)+len(asked)+1)
	if files, ok := openFiles(); ok {
		all["nofile"] = files
	}
	maps.Copy(all, m.Ulimits)
	for _, u := range asked {
		all[u.Name] = u
	}
	limits := make([]specs.POSIXRlimit, 0, len(all))
	for _, name := range slices.Sorted(maps.Keys(all)) {
		u := all[name]
		limits = append(limits, specs.POSIXRlimit{Type: rlimits[name], Soft: uint64(u.Soft), Hard: uint64(u.Hard)}) // -1 is the kernel's infinity
	}
	return limits
}

// openFiles is the engine's bound of open files, as it was given by who started it: Go raises its own soft one to one below the hard one. A program that closes every
// descriptor up to its bound, or has a table of that size, would suffer from what Go likes. Lower ones were 1024, which is the kernel's and systemd's default.
func openFiles() (container.Ulimit, bool) {
	soft, hard, err := linuxhost.OpenFiles()
	if err != nil || soft != hard-1 {
		return container.Ulimit{}, false
	}
	return container.Ulimit{Name: "nofile", Soft: int64(min(1024, soft)), Hard: int64(hard)}, true
}

// CgroupsPath is where the cgroups of id are.
func (m *Maker) CgroupsPath(id string, host *container.Host) string {
	parent := host.Resources.CgroupParent
	if parent == "" {
		parent = m.CgroupParent
	}
	if parent == "" {
		parent = cgroup.DefaultParent
		if m.SystemdCgroup {
			parent = "system.slice"
		}
	}
	if m.SystemdCgroup {
		return parent + ":corten:" + id
	}
	return path.Join("/", parent, id)
}

func namespaces(host *container.Host, joins map[specs.LinuxNamespaceType]string) []specs.LinuxNamespace {
	list := []specs.LinuxNamespace{{Type: specs.MountNamespace}}
	add := func(kind specs.LinuxNamespaceType, own bool) {
		if own || joins[kind] != "" {
			list = append(list, specs.LinuxNamespace{Type: kind, Path: joins[kind]})
		}
	}
	add(specs.NetworkNamespace, host.NetworkMode != "host")
	add(specs.UTSNamespace, host.UTSMode != "host")
	add(specs.IPCNamespace, host.IpcMode != "host")
	add(specs.PIDNamespace, host.PidMode != "host")
	add(specs.CgroupNamespace, host.CgroupnsMode == "private")
	return list
}

// sysctls adds what Docker allows every container with a network of its own: low ports and ping for everybody inside.
func sysctls(host *container.Host) map[string]string {
	all := maps.Clone(host.Sysctls)
	if host.NetworkMode == "host" || strings.HasPrefix(host.NetworkMode, "container:") {
		return all
	}
	if all == nil {
		all = map[string]string{}
	}
	for key, value := range map[string]string{"net.ipv4.ip_unprivileged_port_start": "0", "net.ipv4.ping_group_range": "0 2147483647"} {
		if _, ok := all[key]; !ok {
			all[key] = value
		}
	}
	return all
}

// rootPropagation is what the root must have so that mounts can travel as the binds ask.
func rootPropagation(mounts []container.Mount) string {
	mode := ""
	for _, mnt := range mounts {
		switch mnt.Propagation {
		case "shared", "rshared":
			return "shared"
		case "slave", "rslave":
			mode = "rslave"
		}
	}
	return mode
}

// mounts lists everything that is mounted over the root: the usual file systems, the generated files, and what was asked for, shallow ones first.
func mounts(r *Run) ([]specs.Mount, error) {
	host := r.Host
	asked, err := askedMounts(r)
	if err != nil {
		return nil, err
	}
	taken := make(map[string]bool, len(asked))
	for _, mnt := range asked {
		taken[mnt.Destination] = true
	}
	var all []specs.Mount
	for _, mnt := range usualMounts(host, r.Shm) {
		if !taken[mnt.Destination] && !(taken["/dev"] && strings.HasPrefix(mnt.Destination, "/dev/")) {
			all = append(all, mnt)
		}
	}
	usual := len(all)
	all = append(append(all, generatedFiles(r, asked, taken)...), asked...)
	slices.SortStableFunc(all[usual:], func(a, b specs.Mount) int {
		return strings.Count(a.Destination, "/") - strings.Count(b.Destination, "/")
	})
	return all, nil
}

// generatedFiles are the mounts of what the engine wrote or carries for the container. They go among the asked ones by depth, so that a volume over /etc does not hide how names are found.
func generatedFiles(r *Run, asked []specs.Mount, taken map[string]bool) []specs.Mount {
	mode := "rw"
	if r.Host.ReadonlyRootfs {
		mode = "ro"
	}
	var list []specs.Mount
	for _, file := range [][2]string{{r.Files.ResolvConf, "/etc/resolv.conf"}, {r.Files.Hostname, "/etc/hostname"}, {r.Files.Hosts, "/etc/hosts"}} {
		if file[0] != "" && !taken[file[1]] && hasPlace(asked, file[1]) {
			list = append(list, specs.Mount{Type: "bind", Source: file[0], Destination: file[1], Options: []string{"rbind", "rprivate", mode}})
		}
	}
	if r.Init != "" {
		list = append(list, specs.Mount{Type: "bind", Source: r.Init, Destination: initTarget, Options: []string{"bind", "ro", "rprivate"}})
	}
	return list
}

// hasPlace tells whether a file can be mounted at name: nothing can be made in a directory that is bound read-only over its parent.
func hasPlace(asked []specs.Mount, name string) bool {
	for _, mnt := range asked {
		if mnt.Destination != path.Dir(name) || mnt.Type != "bind" || !slices.Contains(mnt.Options, "ro") {
			continue
		}
		_, err := os.Lstat(path.Join(mnt.Source, path.Base(name)))
		return err == nil
	}
	return true
}

func usualMounts(host *container.Host, shm string) []specs.Mount {
	sys, cgroup := "ro", "ro"
	if host.Privileged {
		sys, cgroup = "rw", "rw"
	}
	list := []specs.Mount{
		{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
		{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"}},
		{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"nosuid", "noexec", "nodev", sys}},
		{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup", Options: []string{cgroup, "nosuid", "noexec", "nodev"}},
		{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: []string{"nosuid", "noexec", "nodev"}}, // shows the queues of the ipc namespace, also the host's
	}
	switch {
	case shm != "":
		list = append(list, specs.Mount{Destination: "/dev/shm", Type: "bind", Source: shm, Options: []string{"rbind", "rprivate"}})
	case host.IpcMode != "none":
		size := fmt.Sprintf("size=%d", host.ShmSize)
		list = append(list, specs.Mount{Destination: "/dev/shm", Type: "tmpfs", Source: "shm", Options: []string{"nosuid", "noexec", "nodev", "mode=1777", size}})
	}
	return list
}

// askedMounts are the binds, volumes and tmpfs of the container.
func askedMounts(r *Run) ([]specs.Mount, error) {
	list := slices.Clone(r.Extra)
	for _, mnt := range r.Mounts {
		switch mnt.Type {
		case "tmpfs":
			list = append(list, specs.Mount{Destination: mnt.Target, Type: "tmpfs", Source: "tmpfs", Options: tmpfsRequest(mnt.Request)})
		default:
			opts, err := bindOptions(mnt)
			if err != nil {
				return nil, err
			}
			ids := r.IDMaps[mnt.Target]
			list = append(list, specs.Mount{Destination: mnt.Target, Type: "bind", Source: r.Sources[mnt.Target], Options: opts, UIDMappings: ids.UIDs, GIDMappings: ids.GIDs})
		}
	}
	for _, target := range slices.Sorted(maps.Keys(r.Host.Tmpfs)) {
		var asked []string
		if v := r.Host.Tmpfs[target]; v != "" {
			asked = strings.Split(v, ",")
		}
		list = append(list, specs.Mount{Destination: path.Clean(target), Type: "tmpfs", Source: "tmpfs", Options: tmpfsOptions(asked)})
	}
	return list, nil
}

func bindOptions(mnt container.Mount) ([]string, error) {
	bind := "rbind"
	if mnt.Request.NonRecursive {
		bind = "bind"
	}
	prop := mnt.Propagation
	if prop == "" {
		prop = "rprivate"
	}
	opts := []string{bind, prop}
	if mnt.RW {
		return opts, nil
	}
	opts = append(opts, "ro")
	if mnt.Type == "bind" && !mnt.Request.NonRecursive && !mnt.Request.ReadOnlyNonRecursive {
		switch {
		case recursiveReadonly():
			opts = append(opts, "rro")
		case mnt.Request.ReadOnlyForceRecursive:
			return nil, errNoRecursiveReadonly(mnt.Target)
		}
	}
	return opts, nil
}

func tmpfsRequest(req container.MountRequest) []string {
	var asked []string
	if req.TmpfsSize > 0 {
		asked = append(asked, fmt.Sprintf("size=%d", req.TmpfsSize))
	}
	if req.TmpfsMode != 0 {
		asked = append(asked, fmt.Sprintf("mode=%o", req.TmpfsMode))
	}
	for _, kv := range req.TmpfsOptions {
		asked = append(asked, strings.Join(kv, "="))
	}
	if req.ReadOnly {
		asked = append(asked, "ro")
	}
	return tmpfsOptions(asked)
}

// tmpfsOptions puts what was asked for over the careful defaults.
func tmpfsOptions(asked []string) []string {
	opts := []string{"noexec", "nosuid", "nodev"}
	for _, opt := range asked {
		opts = slices.DeleteFunc(opts, func(have string) bool { return have == "no"+opt })
		if !slices.Contains(opts, opt) {
			opts = append(opts, opt)
		}
	}
	return append(opts, "rprivate")
}
