package cgroup

import (
	"fmt"
	"os"
	"strings"
	"sync"

	"corten.dev/corten/internal/errs"
	ocicgroups "github.com/opencontainers/cgroups"
	sdcgroups "github.com/opencontainers/cgroups/systemd"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// systemd makes the cgroup as a transient scope. Limits go through systemd, so that it does not undo them when it reloads. A scope needs a process, so that the
// unit is made by the first Add; the limits that Create was given wait until then.
type systemd struct {
	m    *Manager
	form string // slice:prefix:name
	lib  ocicgroups.Manager
	cfg  *ocicgroups.Cgroup

	mu      sync.Mutex // guards applied
	applied bool
}

// initSystemd reads slice:prefix:name. The slice defaults to system.slice (user.slice for an ordinary user).
func (m *Manager) initSystemd(form string) error {
	if !sdcgroups.IsRunningSystemd() {
		return errs.New(errs.Unavailable, "systemd cgroups of %s: systemd does not run on this host", m.id)
	}
	slice, prefix, name, err := splitUnit(form, m.id)
	if err != nil {
		return err
	}
	cfg := &ocicgroups.Cgroup{
		Name: name, Parent: slice, ScopePrefix: prefix, Systemd: true, Rootless: m.rootless && os.Geteuid() != 0,
		Resources: &ocicgroups.Resources{},
	}
	m.sd = &systemd{m: m, form: form, cfg: cfg}
	if m.host.mode == V2 {
		m.sd.lib, err = sdcgroups.NewUnifiedManager(cfg, "")
	} else {
		m.sd.lib, err = sdcgroups.NewLegacyManager(cfg, nil)
	}
	if err != nil {
		return fmt.Errorf("systemd cgroup of %s: %w", m.id, err)
	}
	return m.sd.place()
}

func splitUnit(form, id string) (slice, prefix, name string, err error) {
	if form == "" {
		return "", "corten", id, nil
	}
	parts := strings.Split(form, ":")
	if len(parts) != 3 || strings.Contains(form, "/") || parts[2] == "" {
		return "", "", "", errs.New(errs.Invalid, "cgroups path %q: with systemd it has the form slice:prefix:name", form)
	}
	return parts[0], parts[1], parts[2], nil
}

// place learns from the library where systemd will put the unit.
func (s *systemd) place() error {
	paths := s.lib.GetPaths()
	if p, ok := paths[""]; ok && s.m.host.v2 != "" && strings.HasPrefix(p, s.m.host.v2+"/") {
		s.m.v2 = p
		s.m.path = strings.TrimPrefix(p, s.m.host.v2)
	}
	for i := range s.m.host.v1 {
		h := &s.m.host.v1[i]
		for _, c := range h.controllers {
			if p, ok := paths[c]; ok && strings.HasPrefix(p, h.root+"/") {
				s.m.v1 = append(s.m.v1, dir{h, p})
				s.m.path = strings.TrimPrefix(p, h.root)
				break
			}
		}
	}
	if len(s.m.v1) == 0 && s.m.v2 == "" {
		return errs.New(errs.Unavailable, "systemd cgroup of %s: no hierarchy that systemd manages is mounted", s.m.id)
	}
	return nil
}

func (s *systemd) prepare(res *specs.LinuxResources) error {
	r, err := ociResources(res)
	if err != nil {
		return err
	}
	s.cfg.Resources = r
	return nil
}

// add makes the unit around the first process; later ones join it.
func (s *systemd) add(pid int) error {
	s.mu.Lock()
	first := !s.applied && !s.lib.Exists()
	s.applied = true
	s.mu.Unlock()
	if !first {
		if err := s.lib.AddPid("", pid); err != nil {
			return fmt.Errorf("add process %d to the systemd scope of %s: %w", pid, s.m.id, err)
		}
		return nil
	}
	if err := s.lib.Apply(pid); err != nil {
		return fmt.Errorf("make the systemd scope of %s: %w", s.m.id, err)
	}
	if err := s.lib.Set(s.cfg.Resources); err != nil {
		return fmt.Errorf("limit the systemd scope of %s: %w", s.m.id, err)
	}
	return nil
}

func (s *systemd) running() bool { return s.lib.Exists() }

// set hands changed limits to systemd. The device rules stay unless new ones are given.
func (s *systemd) set(res *specs.LinuxResources) error {
	r, err := ociResources(res)
	if err != nil {
		return err
	}
	r.SkipDevices = len(r.Devices) == 0
	if err := s.lib.Set(r); err != nil {
		return fmt.Errorf("limit the systemd scope of %s: %w", s.m.id, err)
	}
	return nil
}

func (s *systemd) destroy() error {
	if err := s.lib.Destroy(); err != nil {
		return fmt.Errorf("remove the systemd scope of %s: %w", s.m.id, err)
	}
	return nil
}

// ociResources turns the spec's words into the library's.
func ociResources(res *specs.LinuxResources) (*ocicgroups.Resources, error) {
	out := &ocicgroups.Resources{}
	if res == nil {
		return out, nil
	}
	var err error
	if out.Devices, err = ociRules(res.Devices); err != nil {
		return nil, err
	}
	if mem := res.Memory; mem != nil {
		out.Memory, out.MemorySwap, out.MemoryReservation = deref(mem.Limit), deref(mem.Swap), deref(mem.Reservation)
		out.MemorySwappiness = mem.Swappiness
		out.OomKillDisable = deref(mem.DisableOOMKiller)
		out.MemoryCheckBeforeUpdate = deref(mem.CheckBeforeUpdate)
	}
	if cpu := res.CPU; cpu != nil {
		out.CpuShares, out.CpuQuota, out.CpuPeriod, out.CpuBurst = deref(cpu.Shares), deref(cpu.Quota), deref(cpu.Period), cpu.Burst
		out.CpuWeight = ocicgroups.ConvertCPUSharesToCgroupV2Value(out.CpuShares) // what v2 knows; 0 stays 0
		out.CpuRtRuntime, out.CpuRtPeriod = deref(cpu.RealtimeRuntime), deref(cpu.RealtimePeriod)
		out.CpusetCpus, out.CpusetMems, out.CPUIdle = cpu.Cpus, cpu.Mems, cpu.Idle
	}
	if res.Pids != nil {
		out.PidsLimit = res.Pids.Limit
	}
	if bio := res.BlockIO; bio != nil {
		out.BlkioWeight, out.BlkioLeafWeight = deref(bio.Weight), deref(bio.LeafWeight)
		for _, d := range bio.WeightDevice {
			out.BlkioWeightDevice = append(out.BlkioWeightDevice, ocicgroups.NewWeightDevice(d.Major, d.Minor, deref(d.Weight), deref(d.LeafWeight)))
		}
		throttle := func(list []specs.LinuxThrottleDevice) (devs []*ocicgroups.ThrottleDevice) {
			for _, d := range list {
				devs = append(devs, ocicgroups.NewThrottleDevice(d.Major, d.Minor, d.Rate))
			}
			return devs
		}
		out.BlkioThrottleReadBpsDevice = throttle(bio.ThrottleReadBpsDevice)
		out.BlkioThrottleWriteBpsDevice = throttle(bio.ThrottleWriteBpsDevice)
		out.BlkioThrottleReadIOPSDevice = throttle(bio.ThrottleReadIOPSDevice)
		out.BlkioThrottleWriteIOPSDevice = throttle(bio.ThrottleWriteIOPSDevice)
	}
	for _, l := range res.HugepageLimits {
		out.HugetlbLimit = append(out.HugetlbLimit, &ocicgroups.HugepageLimit{Pagesize: l.Pagesize, Limit: l.Limit})
	}
	if net := res.Network; net != nil {
		out.NetClsClassid = deref(net.ClassID)
		for _, p := range net.Priorities {
			out.NetPrioIfpriomap = append(out.NetPrioIfpriomap, &ocicgroups.IfPrioMap{Interface: p.Name, Priority: int64(p.Priority)})
		}
	}
	if len(res.Rdma) > 0 {
		out.Rdma = make(map[string]ocicgroups.LinuxRdma, len(res.Rdma))
		for name, l := range res.Rdma {
			out.Rdma[name] = ocicgroups.LinuxRdma{HcaHandles: l.HcaHandles, HcaObjects: l.HcaObjects}
		}
	}
	out.Unified = res.Unified
	return out, nil
}

func deref[T any](p *T) T {
	if p == nil {
		var zero T
		return zero
	}
	return *p
}
