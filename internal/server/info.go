package server

import (
	"net/http"
	"net/netip"
	"time"

	wirec "github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/registry"
	"github.com/moby/moby/api/types/swarm"
	wire "github.com/moby/moby/api/types/system"

	"corten.dev/corten/internal/engine/system"
)

// infoView is Info with what it had in older versions only.
type infoView struct {
	wire.Info
	BridgeNfIptables  *bool `json:",omitempty"` // until 1.49
	BridgeNfIP6tables *bool `json:"BridgeNfIp6tables,omitempty"`
	KernelMemory      *bool `json:",omitempty"` // until 1.41
	KernelMemoryTCP   *bool `json:",omitempty"` // until 1.51
	ContainerdCommit  any   // with Expected until 1.48
	RuncCommit        any
	InitCommit        any
}

// oldCommit is the version of a helper program; there are none here.
type oldCommit struct{ ID, Expected string }

// MaxAPI is the newest version of the Docker Engine API that is served.
func MaxAPI() string { return api(maxVersion) }

func api(version int) string {
	return "1." + string([]byte{byte('0' + version/10), byte('0' + version%10)})
}

func (s *Server) info(w http.ResponseWriter, r *request) error {
	info, err := s.System.Info(r.Context())
	if err != nil {
		return err
	}
	return ok(w, s.fromInfo(info, r.version, time.Now()))
}

func (s *Server) fromInfo(i system.Info, version int, now time.Time) infoView {
	out := infoView{Info: wire.Info{
		ID: i.ID, Name: i.Name, Containers: i.Containers, ContainersRunning: i.Running, ContainersPaused: i.Paused, ContainersStopped: i.Stopped, Images: i.Images,
		Driver: i.Driver, DriverStatus: orEmpty(i.DriverStatus), LoggingDriver: i.LogDriver,
		Plugins: wire.PluginsInfo{
			Volume: orEmpty(i.VolumeDrivers), Network: orEmpty(i.NetworkDrivers), Authorization: nil, Log: orEmpty(i.LogDrivers),
		},
		MemoryLimit: i.MemoryLimit, SwapLimit: i.SwapLimit, CPUCfsPeriod: i.CPUCfsPeriod, CPUCfsQuota: i.CPUCfsQuota, CPUShares: i.CPUShares, CPUSet: i.CPUSet,
		PidsLimit: i.PidsLimit, OomKillDisable: i.OomKillDisable, IPv4Forwarding: i.IPv4Forwarding,
		Debug: i.Debug, NFd: i.FDs, NGoroutines: i.Goroutines, SystemTime: now.Format(time.RFC3339Nano),
		CgroupDriver: i.CgroupDriver, CgroupVersion: i.CgroupVersion,
		KernelVersion: i.KernelVersion, OperatingSystem: i.OperatingSystem, OSVersion: i.OSVersion, OSType: i.OSType, Architecture: i.Architecture,
		NCPU: i.NCPU, MemTotal: i.MemTotal, IndexServerAddress: s.indexServer(),
		RegistryConfig: s.registryConfig(),
		DockerRootDir:  i.DataRoot, HTTPProxy: i.HTTPProxy, HTTPSProxy: i.HTTPSProxy, NoProxy: i.NoProxy, Labels: orEmpty(i.Labels),
		ServerVersion: s.Version.Version, Runtimes: map[string]wire.RuntimeWithStatus{}, DefaultRuntime: i.DefaultRuntime,
		Swarm: swarm.Info{LocalNodeState: swarm.LocalNodeStateInactive, RemoteManagers: nil},
		// Containers always outlive the engine here.
		LiveRestoreEnabled: true, Isolation: wirec.IsolationEmpty, InitBinary: i.InitBinary,
		SecurityOptions: orEmpty(i.SecurityOptions), CDISpecDirs: orEmpty(i.CDISpecDirs), Warnings: i.Warnings,
	}}
	for name, rt := range i.Runtimes {
		out.Runtimes[name] = wire.RuntimeWithStatus{Runtime: wire.Runtime{Path: rt.Path, Args: rt.Args}}
	}
	for _, pool := range i.AddressPools {
		out.DefaultAddressPools = append(out.DefaultAddressPools, wire.NetworkAddressPool{Base: pool.Base, Size: pool.Size})
	}
	out.ContainerdCommit, out.RuncCommit, out.InitCommit = wire.Commit{}, wire.Commit{}, wire.Commit{}
	if version < 49 {
		out.ContainerdCommit, out.RuncCommit, out.InitCommit = oldCommit{}, oldCommit{}, oldCommit{}
	} else {
		out.FirewallBackend = &wire.FirewallInfo{Driver: "nftables"}
	}
	off := false
	if version >= 50 {
		for _, name := range i.CDIDevices {
			out.DiscoveredDevices = append(out.DiscoveredDevices, wire.DeviceInfo{Source: "cdi", ID: name})
		}
	}
	if version < 50 {
		out.BridgeNfIptables, out.BridgeNfIP6tables = &off, &off
	}
	if version < 42 {
		out.KernelMemory = &off
	}
	if version < 52 {
		out.KernelMemoryTCP = &off
	}
	return out
}

// indexServer is the registry of names that name none, as clients key its credentials.
func (s *Server) indexServer() string {
	if s.DefaultRegistry != "" {
		return s.DefaultRegistry
	}
	return hubIndex
}

// registryConfig is what the operator said of registries, in docker's words.
func (s *Server) registryConfig() *registry.ServiceConfig {
	cfg := &registry.ServiceConfig{InsecureRegistryCIDRs: []netip.Prefix{netip.MustParsePrefix("::1/128"), netip.MustParsePrefix("127.0.0.0/8")}, Mirrors: orEmpty(s.Mirrors), IndexConfigs: map[string]*registry.IndexInfo{
		"docker.io": {Name: "docker.io", Mirrors: orEmpty(s.Mirrors), Secure: true, Official: true},
	}}
	for _, name := range s.Insecure {
		if p, err := netip.ParsePrefix(name); err == nil {
			cfg.InsecureRegistryCIDRs = append(cfg.InsecureRegistryCIDRs, p)
			continue
		}
		cfg.IndexConfigs[name] = &registry.IndexInfo{Name: name, Mirrors: []string{}}
	}
	return cfg
}
