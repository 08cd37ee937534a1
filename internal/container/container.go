// Package container is the stored noun of a container: what was asked for, what became of it, and which moves between states are legal.
//
// It owns the record's shape (kept as JSON in <data-root>/containers/<id>) and the table of states in state.go. It is pure: no files, no locks, no live handles, and
// no wire types; the server converts to and from Docker's API. It promises that a record written by one version is read by the next.
package container

import (
	"net/netip"
	"time"

	"github.com/opencontainers/go-digest"

	"corten.dev/corten/internal/image"
	"corten.dev/corten/internal/network"
)

// Record is all that is kept about a container.
type Record struct {
	ID       string
	Name     string // without the leading slash
	Created  time.Time
	Image    digest.Digest // id of the image; empty when it was removed by force
	ImageRef string        // as the user wrote it
	Platform string
	Config   Config
	Host     Host
	// Networks maps the network's name (or mode) to what was asked.
	Networks map[string]EndpointSettings
	// Path and Args are the resolved command (entrypoint and cmd).
	Path string
	Args []string
	// Mounts are resolved at create: volumes have names and anonymous ones exist.
	Mounts []Mount
	State  State
	// Sandbox is what the network room made for the running container.
	Sandbox      *network.Sandbox `json:",omitempty"`
	RestartCount int
	// Tree is the key of the file tree where it is not the id; use [Record.TreeKey].
	Tree string `json:",omitempty"`
	// Previous is what the settings were before they were changed last; undo goes back to it. nil: they never were.
	Previous *Settings `json:",omitempty"`
	// Next is what the settings are about to become: the container is being stopped for it. nil at other times.
	Next *Settings `json:",omitempty"`
	// Trial is set while the settings have to prove themselves: should they fail, or the engine find them failed, Previous comes back.
	Trial bool `json:",omitempty"`
	// ProcessLabel and MountLabel are the SELinux labels of its processes and of its files; empty where the host has no policy for containers.
	ProcessLabel string `json:",omitempty"`
	MountLabel   string `json:",omitempty"`
	// StoppedByUser is set by stop and kill and cleared by start; it keeps unless-stopped containers down at boot and always-containers until then.
	StoppedByUser bool
}

// Config is the portable part of what was asked for (Docker's Config).
type Config struct {
	image.RunConfig
	Hostname, Domainname                    string
	AttachStdin, AttachStdout, AttachStderr bool
	Tty, OpenStdin, StdinOnce               bool
	NetworkDisabled                         bool
	Image                                   string
}

// Host is the part that belongs to this host (Docker's HostConfig).
type Host struct {
	Binds           []string
	ContainerIDFile string
	Log             LogConfig
	NetworkMode     string
	Ports           []network.Port // parsed PortBindings
	PublishAll      bool
	Restart         RestartPolicy
	AutoRemove      bool
	VolumeDriver    string
	VolumesFrom     []string
	Mounts          []MountRequest
	Tmpfs           map[string]string
	ConsoleSize     [2]uint // height, width
	Annotations     map[string]string

	CapAdd, CapDrop []string
	CgroupnsMode    string
	DNS             []netip.Addr
	DNSOptions      []string
	DNSSearch       []string
	ExtraHosts      []string
	GroupAdd        []string
	IpcMode         string
	Cgroup          string
	Links           []string
	OomScoreAdj     int
	PidMode         string
	Privileged      bool
	ReadonlyRootfs  bool
	SecurityOpt     []string
	StorageOpt      map[string]string
	UTSMode         string
	UsernsMode      string
	ShmSize         int64
	Sysctls         map[string]string
	Runtime         string
	MaskedPaths     []string // nil: the default list
	ReadonlyPaths   []string // nil: the default list
	Init            *bool

	Resources Resources
}

// LogConfig chooses where output is kept.
type LogConfig struct {
	Type   string // a log driver, or several with commas between them
	Config map[string]string
	// Own is set when nobody named a driver: the engine's own format alone, whatever Type says. Type is then what clients are shown, who read logs back of drivers they know only.
	Own bool `json:",omitempty"`
}

// RestartPolicy is "no", "always", "unless-stopped", "on-failure" or, ours, "on-unhealthy": as unless-stopped, and a container that its health check finds unhealthy is
// stopped and started again, at most MaxRetries times (0: any number).
type RestartPolicy struct {
	Name       string
	MaxRetries int
}

// RestartOnUnhealthy is the policy that Docker does not have.
const RestartOnUnhealthy = "on-unhealthy"

// Keeps tells whether the policy keeps a container up whatever it ends with, also over a restart of the host; always even after a stop by hand.
func (p RestartPolicy) Keeps() (up, always bool) {
	switch p.Name {
	case "always":
		return true, true
	case "unless-stopped", RestartOnUnhealthy:
		return true, false
	}
	return false, false
}

// Resources are the limits of a container; units as in Docker's API.
type Resources struct {
	CPUShares            int64
	NanoCPUs             int64
	CgroupParent         string
	BlkioWeight          uint16
	BlkioWeightDevice    []WeightDevice
	BlkioDeviceReadBps   []ThrottleDevice
	BlkioDeviceWriteBps  []ThrottleDevice
	BlkioDeviceReadIOps  []ThrottleDevice
	BlkioDeviceWriteIOps []ThrottleDevice
	CPUPeriod, CPUQuota  int64
	CPURealtimePeriod    int64
	CPURealtimeRuntime   int64
	CpusetCpus           string
	CpusetMems           string
	Devices              []Device
	DeviceCgroupRules    []string
	DeviceRequests       []DeviceRequest
	Memory               int64
	MemoryReservation    int64
	MemorySwap           int64
	MemorySwappiness     *int64
	KernelMemory         int64
	OomKillDisable       *bool
	PidsLimit            *int64
	Ulimits              []Ulimit
}

// WeightDevice and ThrottleDevice are per-device block I/O settings.
type WeightDevice struct {
	Path   string
	Weight uint16
}

// ThrottleDevice limits bytes or operations per second.
type ThrottleDevice struct {
	Path string
	Rate uint64
}

// Device is --device host:container:perm.
type Device struct{ HostPath, ContainerPath, Permissions string }

// DeviceRequest is --gpus and CDI.
type DeviceRequest struct {
	Driver       string
	Count        int
	DeviceIDs    []string
	Capabilities [][]string
	Options      map[string]string
}

// Ulimit is one --ulimit.
type Ulimit struct {
	Name       string
	Soft, Hard int64
}

// MountRequest is one --mount as it was asked.
type MountRequest struct {
	Type                                         string // bind, volume, tmpfs, image, npipe, cluster
	Source, Target                               string
	ReadOnly                                     bool
	Consistency                                  string
	Propagation                                  string
	NonRecursive                                 bool
	CreateMountpoint                             bool
	ReadOnlyNonRecursive, ReadOnlyForceRecursive bool
	NoCopy                                       bool
	Subpath                                      string
	Labels                                       map[string]string
	Driver                                       string
	DriverOptions                                map[string]string
	TmpfsSize                                    int64
	TmpfsMode                                    uint32
	TmpfsOptions                                 [][]string
	// IDMap asks for mapped ids on the mount: "" no, "auto", or "uids=FS-MOUNT-LENGTH#…;gids=…" (see engine/hostspec).
	IDMap string `json:",omitempty"`
	// Chown gives the whole tree to the container's user at each start.
	Chown bool `json:",omitempty"`
}

// Mount is one resolved mount of a container, as `inspect` lists it.
type Mount struct {
	Type        string // bind, volume, tmpfs, image
	Name        string // volume; reference of an image
	Source      string // host path; id of an image
	Target      string
	Driver      string
	Mode        string
	RW          bool
	Propagation string
	// Relabel asks for the content to be labelled for SELinux: "z" for all containers, "Z" for this one.
	Relabel   string `json:",omitempty"`
	Anonymous bool   // removed with the container by rm -v and --rm
	Request   MountRequest
}

// EndpointSettings is what was asked for one network.
type EndpointSettings struct {
	Aliases    []string
	Links      []string
	IPv4, IPv6 netip.Addr
	LinkLocal  []netip.Addr `json:",omitempty"`
	MAC        string
	DriverOpts map[string]string
	GwPriority int
}
