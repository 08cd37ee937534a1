package cli

import (
	"fmt"
	"io"
	"sort"
	"strings"

	"github.com/docker/go-units"
	"github.com/moby/moby/api/types/system"
)

// printInfo writes the engine's facts in docker's lines.
func printInfo(w io.Writer, i *system.Info) {
	p := func(format string, args ...any) { fmt.Fprintf(w, " "+format+"\n", args...) }
	p("Containers: %d", i.Containers)
	p(" Running: %d", i.ContainersRunning)
	p(" Paused: %d", i.ContainersPaused)
	p(" Stopped: %d", i.ContainersStopped)
	p("Images: %d", i.Images)
	opt(p, "Server Version", i.ServerVersion)
	opt(p, "Storage Driver", i.Driver)
	for _, kv := range i.DriverStatus {
		p(" %s: %s", kv[0], kv[1])
	}
	opt(p, "Logging Driver", i.LoggingDriver)
	opt(p, "Cgroup Driver", i.CgroupDriver)
	opt(p, "Cgroup Version", i.CgroupVersion)
	p("Plugins:")
	p(" Volume: %s", words(i.Plugins.Volume))
	p(" Network: %s", words(i.Plugins.Network))
	p(" Log: %s", words(i.Plugins.Log))
	if len(i.CDISpecDirs) > 0 {
		p("CDI spec directories:")
		for _, dir := range i.CDISpecDirs {
			p(" %s", dir)
		}
	}
	if len(i.DiscoveredDevices) > 0 {
		p("Discovered Devices:")
		for _, dev := range i.DiscoveredDevices {
			p(" %s: %s", dev.Source, dev.ID)
		}
	}
	if i.Swarm.LocalNodeState != "" {
		p("Swarm: %s", i.Swarm.LocalNodeState)
	}
	var runtimes []string
	for name := range i.Runtimes {
		runtimes = append(runtimes, name)
	}
	sort.Strings(runtimes)
	if len(runtimes) > 0 {
		p("Runtimes: %s", words(runtimes))
		p("Default Runtime: %s", i.DefaultRuntime)
	}
	opt(p, "Init Binary", i.InitBinary)
	opt(p, "containerd version", i.ContainerdCommit.ID)
	opt(p, "runc version", i.RuncCommit.ID)
	opt(p, "init version", i.InitCommit.ID)
	if len(i.SecurityOptions) > 0 {
		p("Security Options:")
		for _, s := range i.SecurityOptions {
			printSecurity(p, s)
		}
	}
	printHost(p, i)
}

// printSecurity writes name=seccomp,profile=default as a name with its settings below.
func printSecurity(p func(string, ...any), s string) {
	for _, part := range strings.Split(s, ",") {
		k, v, ok := strings.Cut(part, "=")
		switch {
		case ok && k == "name":
			p(" %s", v)
		case ok && k == "profile":
			p("  Profile: %s", v)
		case ok:
			p("  %s: %s", k, v)
		default:
			p(" %s", part)
		}
	}
}

func printHost(p func(string, ...any), i *system.Info) {
	opt(p, "Kernel Version", i.KernelVersion)
	opt(p, "Operating System", i.OperatingSystem)
	opt(p, "OSType", i.OSType)
	opt(p, "Architecture", i.Architecture)
	p("CPUs: %d", i.NCPU)
	p("Total Memory: %s", units.BytesSize(float64(i.MemTotal)))
	opt(p, "Name", i.Name)
	opt(p, "ID", i.ID)
	opt(p, "Docker Root Dir", i.DockerRootDir)
	p("Debug Mode: %s", yes(i.Debug))
	opt(p, "HTTP Proxy", i.HTTPProxy)
	opt(p, "HTTPS Proxy", i.HTTPSProxy)
	opt(p, "No Proxy", i.NoProxy)
	if len(i.Labels) > 0 {
		p("Labels:")
		for _, l := range i.Labels {
			p(" %s", l)
		}
	}
	p("Experimental: %s", yes(i.ExperimentalBuild))
	if r := i.RegistryConfig; r != nil {
		p("Insecure Registries:")
		for _, c := range r.InsecureRegistryCIDRs {
			p(" %s", c.String())
		}
	}
	p("Live Restore Enabled: %s", yes(i.LiveRestoreEnabled))
	for _, pool := range i.DefaultAddressPools {
		p("Default Address Pool: Base: %s, Size: %d", pool.Base, pool.Size)
	}
}

func opt(p func(string, ...any), name, value string) {
	if value != "" {
		p("%s: %s", name, value)
	}
}
