package server

import (
	"net/netip"
	"strings"

	"github.com/docker/go-units"
	"github.com/moby/moby/api/types/blkiodev"
	wire "github.com/moby/moby/api/types/container"

	"corten.dev/corten/internal/container"
	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/server/parse"
)

// hostBody is Docker's HostConfig with what older versions had besides.
type hostBody struct {
	wire.HostConfig
	Mounts          []mountBody
	KernelMemory    int64
	KernelMemoryTCP int64
}

// toHost converts what a client asked of this host, with the defaults that its version expects.
func (s *Server) toHost(h hostBody, version int) (container.Host, []string, error) {
	if err := checkHost(h, version); err != nil {
		return container.Host{}, nil, err
	}
	published, warnings, err := toPorts(h.PortBindings, version)
	if err != nil {
		return container.Host{}, nil, err
	}
	mounts, err := toMounts(h.Mounts, version)
	if err != nil {
		return container.Host{}, nil, err
	}
	res, err := toResources(h.Resources)
	if err != nil {
		return container.Host{}, nil, err
	}
	if version < 42 {
		res.KernelMemory = h.KernelMemory
	}
	if len(h.Mounts) > 0 && h.VolumeDriver != "" && version >= 48 {
		warnings = append(warnings, "WARNING: the container-wide volume-driver configuration is ignored for volumes specified via 'mount'. Use '--mount type=volume,volume-driver=...' instead")
	}
	host := container.Host{
		Binds: h.Binds, ContainerIDFile: h.ContainerIDFile,
		Log:         container.LogConfig{Type: h.LogConfig.Type, Config: h.LogConfig.Config},
		NetworkMode: networkMode(string(h.NetworkMode)),
		Ports:       published, PublishAll: h.PublishAllPorts,
		Restart:    container.RestartPolicy{Name: string(h.RestartPolicy.Name), MaxRetries: h.RestartPolicy.MaximumRetryCount},
		AutoRemove: h.AutoRemove, VolumeDriver: h.VolumeDriver, VolumesFrom: h.VolumesFrom,
		Mounts: mounts, Tmpfs: h.Tmpfs,
		CapAdd: h.CapAdd, CapDrop: h.CapDrop, CgroupnsMode: string(h.CgroupnsMode),
		DNS: h.DNS, DNSOptions: h.DNSOptions, DNSSearch: h.DNSSearch, ExtraHosts: h.ExtraHosts, GroupAdd: h.GroupAdd,
		IpcMode: string(h.IpcMode), Cgroup: string(h.Cgroup), Links: h.Links, OomScoreAdj: h.OomScoreAdj, PidMode: string(h.PidMode),
		Privileged: h.Privileged, ReadonlyRootfs: h.ReadonlyRootfs, SecurityOpt: h.SecurityOpt, StorageOpt: h.StorageOpt,
		UTSMode: string(h.UTSMode), UsernsMode: string(h.UsernsMode), ShmSize: h.ShmSize, Sysctls: h.Sysctls, Runtime: h.Runtime,
		MaskedPaths: h.MaskedPaths, ReadonlyPaths: h.ReadonlyPaths, Init: h.Init,
		Resources: res,
	}
	if version >= 42 {
		host.ConsoleSize = h.ConsoleSize
	}
	if version >= 43 {
		host.Annotations = h.Annotations
	}
	s.oldDefaults(&host, version)
	return host, warnings, nil
}

// oldDefaults gives older clients what they took for granted.
func (s *Server) oldDefaults(host *container.Host, version int) {
	if version < 40 {
		if host.IpcMode == "" {
			host.IpcMode = string(wire.IPCModeShareable)
		}
		if p := host.Resources.PidsLimit; p != nil && *p <= 0 {
			host.Resources.PidsLimit = nil
		}
	}
	if version < 41 && !s.CgroupV2 && host.CgroupnsMode == "" {
		host.CgroupnsMode = string(wire.CgroupnsModeHost)
	}
}

// networkMode has one word for the default network; which one that is, the engine knows.
func networkMode(mode string) string {
	if mode == "" {
		return "default"
	}
	return mode
}

// checkHost refuses what cannot be meant, before the engine is asked.
func checkHost(h hostBody, version int) error {
	if h.AutoRemove && !h.RestartPolicy.IsNone() {
		return errs.New(errs.Invalid, "can't create 'AutoRemove' container with restart policy")
	}
	switch {
	case !h.Isolation.IsDefault():
		return errs.New(errs.Invalid, "invalid isolation '%s' on linux", h.Isolation)
	case !h.CgroupnsMode.Valid():
		return errs.New(errs.Invalid, "invalid cgroup namespace mode: %v", h.CgroupnsMode)
	case !h.IpcMode.Valid():
		return errs.New(errs.Invalid, "invalid IPC mode: %v", h.IpcMode)
	case !h.PidMode.Valid():
		return errs.New(errs.Invalid, "invalid PID mode: %v", h.PidMode)
	case !h.UTSMode.Valid():
		return errs.New(errs.Invalid, "invalid UTS mode: %v", h.UTSMode)
	case !h.UsernsMode.Valid():
		return errs.New(errs.Invalid, "invalid user namespace mode: %v", h.UsernsMode)
	case h.OomScoreAdj < -1000 || h.OomScoreAdj > 1000:
		return errs.New(errs.Invalid, "invalid value %d, range for oom score adj is [-1000, 1000]", h.OomScoreAdj)
	case h.ShmSize < 0:
		return errs.New(errs.Invalid, "SHM size can not be less than 0")
	case h.NetworkMode.IsContainer() && h.NetworkMode.ConnectedContainer() == "":
		return errs.New(errs.Invalid, "invalid container format container:<name|id>")
	case h.NetworkMode.IsHost() && len(h.Links) > 0:
		return errs.New(errs.Invalid, "conflicting options: host type networking can't be used with links. This would result in undefined behavior")
	case h.UTSMode.IsHost() && h.NetworkMode.IsContainer():
		return errs.New(errs.Invalid, "conflicting options: container type network can't be used with the host's UTS namespace")
	case h.CPUCount != 0 || h.CPUPercent != 0 || h.IOMaximumBandwidth != 0 || h.IOMaximumIOps != 0:
		return errs.New(errs.Invalid, "CpuCount, CpuPercent, IOMaximumBandwidth and IOMaximumIOps are settings of Windows containers")
	case h.Umask != nil && version >= 56:
		return errs.New(errs.NotImplemented, "setting the umask of a container is not part of this version")
	}
	for target, options := range h.Tmpfs {
		if err := parse.Tmpfs(target, options); err != nil {
			return err
		}
	}
	return checkNames(h)
}

func checkNames(h hostBody) error {
	for _, extra := range h.ExtraHosts {
		if err := parse.ExtraHost(extra); err != nil {
			return err
		}
	}
	for _, domain := range h.DNSSearch {
		if strings.ContainsAny(domain, " \t\r\n") {
			return errs.New(errs.Invalid, "bad dns search domain %q", domain)
		}
	}
	for _, addr := range h.DNS {
		if !addr.IsValid() {
			return errs.New(errs.Invalid, "bad dns server address: it is empty")
		}
	}
	for key := range h.Sysctls {
		if key == "" {
			return errs.New(errs.Invalid, "invalid sysctl: the name is empty")
		}
	}
	return nil
}

func toResources(r wire.Resources) (container.Resources, error) {
	res := container.Resources{
		CPUShares: r.CPUShares, NanoCPUs: r.NanoCPUs, CgroupParent: r.CgroupParent, BlkioWeight: r.BlkioWeight,
		CPUPeriod: r.CPUPeriod, CPUQuota: r.CPUQuota, CPURealtimePeriod: r.CPURealtimePeriod, CPURealtimeRuntime: r.CPURealtimeRuntime,
		CpusetCpus: r.CpusetCpus, CpusetMems: r.CpusetMems, DeviceCgroupRules: r.DeviceCgroupRules,
		Memory: r.Memory, MemoryReservation: r.MemoryReservation, MemorySwap: r.MemorySwap, MemorySwappiness: r.MemorySwappiness,
		OomKillDisable: r.OomKillDisable, PidsLimit: r.PidsLimit,
	}
	if r.BlkioWeightDevice != nil {
		res.BlkioWeightDevice = []container.WeightDevice{}
	}
	for _, d := range r.BlkioWeightDevice {
		if d == nil {
			return res, errs.New(errs.Invalid, "invalid BlkioWeightDevice: null")
		}
		res.BlkioWeightDevice = append(res.BlkioWeightDevice, container.WeightDevice{Path: d.Path, Weight: d.Weight})
	}
	for _, t := range []struct {
		from []*blkiodev.ThrottleDevice
		to   *[]container.ThrottleDevice
	}{
		{r.BlkioDeviceReadBps, &res.BlkioDeviceReadBps}, {r.BlkioDeviceWriteBps, &res.BlkioDeviceWriteBps},
		{r.BlkioDeviceReadIOps, &res.BlkioDeviceReadIOps}, {r.BlkioDeviceWriteIOps, &res.BlkioDeviceWriteIOps},
	} {
		if t.from != nil {
			*t.to = []container.ThrottleDevice{}
		}
		for _, d := range t.from {
			if d == nil {
				return res, errs.New(errs.Invalid, "invalid blkio throttle device: null")
			}
			*t.to = append(*t.to, container.ThrottleDevice{Path: d.Path, Rate: d.Rate})
		}
	}
	for _, d := range r.Devices {
		if d.PathOnHost == "" {
			return res, errs.New(errs.Invalid, "invalid device: the path on the host is empty")
		}
		res.Devices = append(res.Devices, container.Device{HostPath: d.PathOnHost, ContainerPath: d.PathInContainer, Permissions: d.CgroupPermissions})
	}
	for _, d := range r.DeviceRequests {
		res.DeviceRequests = append(res.DeviceRequests, container.DeviceRequest{
			Driver: d.Driver, Count: d.Count, DeviceIDs: d.DeviceIDs, Capabilities: d.Capabilities, Options: d.Options,
		})
	}
	for _, u := range r.Ulimits {
		if u == nil || u.Name == "" {
			return res, errs.New(errs.Invalid, "invalid ulimit: the name is empty")
		}
		if u.Hard != -1 && (u.Soft > u.Hard || u.Soft == -1) {
			return res, errs.New(errs.Invalid, "ulimit soft limit must be less than or equal to hard limit: %d > %d", u.Soft, u.Hard)
		}
		res.Ulimits = append(res.Ulimits, container.Ulimit{Name: u.Name, Soft: u.Soft, Hard: u.Hard})
	}
	return res, nil
}

func fromResources(r container.Resources) wire.Resources {
	res := wire.Resources{
		CPUShares: r.CPUShares, NanoCPUs: r.NanoCPUs, CgroupParent: r.CgroupParent, BlkioWeight: r.BlkioWeight,
		BlkioWeightDevice:  []*blkiodev.WeightDevice{},
		BlkioDeviceReadBps: throttles(r.BlkioDeviceReadBps), BlkioDeviceWriteBps: throttles(r.BlkioDeviceWriteBps),
		BlkioDeviceReadIOps: throttles(r.BlkioDeviceReadIOps), BlkioDeviceWriteIOps: throttles(r.BlkioDeviceWriteIOps),
		CPUPeriod: r.CPUPeriod, CPUQuota: r.CPUQuota, CPURealtimePeriod: r.CPURealtimePeriod, CPURealtimeRuntime: r.CPURealtimeRuntime,
		CpusetCpus: r.CpusetCpus, CpusetMems: r.CpusetMems, Devices: []wire.DeviceMapping{}, DeviceCgroupRules: r.DeviceCgroupRules,
		Memory: r.Memory, MemoryReservation: r.MemoryReservation, MemorySwap: r.MemorySwap, MemorySwappiness: r.MemorySwappiness,
		OomKillDisable: r.OomKillDisable, PidsLimit: r.PidsLimit, Ulimits: []*units.Ulimit{},
	}
	for _, d := range r.BlkioWeightDevice {
		res.BlkioWeightDevice = append(res.BlkioWeightDevice, &blkiodev.WeightDevice{Path: d.Path, Weight: d.Weight})
	}
	for _, d := range r.Devices {
		res.Devices = append(res.Devices, wire.DeviceMapping{PathOnHost: d.HostPath, PathInContainer: d.ContainerPath, CgroupPermissions: d.Permissions})
	}
	for _, d := range r.DeviceRequests {
		res.DeviceRequests = append(res.DeviceRequests, wire.DeviceRequest{
			Driver: d.Driver, Count: d.Count, DeviceIDs: d.DeviceIDs, Capabilities: d.Capabilities, Options: d.Options,
		})
	}
	for _, u := range r.Ulimits {
		res.Ulimits = append(res.Ulimits, &units.Ulimit{Name: u.Name, Soft: u.Soft, Hard: u.Hard})
	}
	return res
}

func throttles(list []container.ThrottleDevice) []*blkiodev.ThrottleDevice {
	out := []*blkiodev.ThrottleDevice{}
	for _, d := range list {
		out = append(out, &blkiodev.ThrottleDevice{Path: d.Path, Rate: d.Rate})
	}
	return out
}

// hostView is HostConfig as inspect shows it: kernel memory was there, always zero, until 1.42.
type hostView struct {
	*wire.HostConfig
	Mounts          []mountBody `json:",omitempty"`
	KernelMemory    *int64      `json:",omitempty"`
	KernelMemoryTCP *int64      `json:",omitempty"`
}

// fromHost is the way back, for inspect.
func fromHost(h container.Host, version int) hostView {
	out := &wire.HostConfig{
		Binds: h.Binds, ContainerIDFile: h.ContainerIDFile,
		LogConfig:    wire.LogConfig{Type: h.Log.Type, Config: h.Log.Config},
		NetworkMode:  wire.NetworkMode(h.NetworkMode),
		PortBindings: bindings(h.Ports), PublishAllPorts: h.PublishAll,
		RestartPolicy: wire.RestartPolicy{Name: wire.RestartPolicyMode(h.Restart.Name), MaximumRetryCount: h.Restart.MaxRetries},
		AutoRemove:    h.AutoRemove, VolumeDriver: h.VolumeDriver, VolumesFrom: h.VolumesFrom,
		ConsoleSize: h.ConsoleSize, Annotations: h.Annotations,
		CapAdd: h.CapAdd, CapDrop: h.CapDrop, CgroupnsMode: wire.CgroupnsMode(h.CgroupnsMode),
		DNS: h.DNS, DNSOptions: orEmpty(h.DNSOptions), DNSSearch: orEmpty(h.DNSSearch), ExtraHosts: h.ExtraHosts, GroupAdd: h.GroupAdd,
		IpcMode: wire.IpcMode(h.IpcMode), Cgroup: wire.CgroupSpec(h.Cgroup), Links: h.Links, OomScoreAdj: h.OomScoreAdj, PidMode: wire.PidMode(h.PidMode),
		Privileged: h.Privileged, ReadonlyRootfs: h.ReadonlyRootfs, SecurityOpt: h.SecurityOpt, StorageOpt: h.StorageOpt, Tmpfs: h.Tmpfs,
		UTSMode: wire.UTSMode(h.UTSMode), UsernsMode: wire.UsernsMode(h.UsernsMode), ShmSize: h.ShmSize, Sysctls: h.Sysctls, Runtime: h.Runtime,
		MaskedPaths: h.MaskedPaths, ReadonlyPaths: h.ReadonlyPaths, Init: h.Init,
		Resources: fromResources(h.Resources),
	}
	if out.DNS == nil {
		out.DNS = []netip.Addr{}
	}
	if out.LogConfig.Config == nil {
		out.LogConfig.Config = map[string]string{}
	}
	view := hostView{HostConfig: out, Mounts: fromMounts(h.Mounts)}
	if version < 42 {
		view.KernelMemory, view.KernelMemoryTCP = &h.Resources.KernelMemory, new(int64)
	}
	return view
}
