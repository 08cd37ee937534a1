package runtimecli

import (
	"context"
	"flag"
	"time"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/linux/cgroup"
	"corten.dev/corten/internal/runtime"
)

// event is a line of `events`, in runc's form.
type event struct {
	Type string `json:"type"`
	ID   string `json:"id"`
	Data any    `json:"data,omitempty"`
}

type usageJSON struct {
	Total  uint64   `json:"total,omitempty"`
	Percpu []uint64 `json:"percpu,omitempty"`
	// As runc's, on v1 alone.
	PercpuKernel []uint64 `json:"percpu_kernel,omitempty"`
	PercpuUser   []uint64 `json:"percpu_user,omitempty"`
	Kernel       uint64   `json:"kernel"`
	User         uint64   `json:"user"`
}

type throttlingJSON struct {
	Periods          uint64 `json:"periods,omitempty"`
	ThrottledPeriods uint64 `json:"throttledPeriods,omitempty"`
	ThrottledTime    uint64 `json:"throttledTime,omitempty"`
}

type entryJSON struct {
	Limit   uint64 `json:"limit"`
	Usage   uint64 `json:"usage,omitempty"`
	Max     uint64 `json:"max,omitempty"`
	Failcnt uint64 `json:"failcnt"`
}

type cpusetJSON struct {
	CPUs                  []uint16 `json:"cpus,omitempty"`
	CPUExclusive          uint64   `json:"cpu_exclusive"`
	Mems                  []uint16 `json:"mems,omitempty"`
	MemHardwall           uint64   `json:"mem_hardwall"`
	MemExclusive          uint64   `json:"mem_exclusive"`
	MemoryMigrate         uint64   `json:"memory_migrate"`
	MemorySpreadPage      uint64   `json:"memory_spread_page"`
	MemorySpreadSlab      uint64   `json:"memory_spread_slab"`
	MemoryPressure        uint64   `json:"memory_pressure"`
	SchedLoadBalance      uint64   `json:"sched_load_balance"`
	SchedRelaxDomainLevel int64    `json:"sched_relax_domain_level"`
}

type hugetlbJSON struct {
	Usage   uint64 `json:"usage,omitempty"`
	Max     uint64 `json:"max,omitempty"`
	Failcnt uint64 `json:"failcnt"`
}

type blkioJSON struct {
	Major uint64 `json:"major,omitempty"`
	Minor uint64 `json:"minor,omitempty"`
	Op    string `json:"op,omitempty"`
	Value uint64 `json:"value,omitempty"`
}

type statsJSON struct {
	CPU struct {
		Usage      usageJSON      `json:"usage"`
		Throttling throttlingJSON `json:"throttling"`
	} `json:"cpu"`
	Cpuset cpusetJSON `json:"cpuset"`
	Memory struct {
		Cache     uint64            `json:"cache,omitempty"`
		Usage     entryJSON         `json:"usage"`
		Swap      entryJSON         `json:"swap"`
		Kernel    entryJSON         `json:"kernel"`
		KernelTCP entryJSON         `json:"kernelTCP"`
		Raw       map[string]uint64 `json:"raw,omitempty"`
	} `json:"memory"`
	Pids struct {
		Current uint64 `json:"current,omitempty"`
		Limit   uint64 `json:"limit,omitempty"`
	} `json:"pids"`
	Blkio struct {
		ServiceBytes []blkioJSON `json:"ioServiceBytesRecursive,omitempty"`
		Serviced     []blkioJSON `json:"ioServicedRecursive,omitempty"`
	} `json:"blkio"`
	Hugetlb map[string]hugetlbJSON `json:"hugetlb"`
}

func toJSON(s runtime.Stats, d runtime.Details) (out statsJSON) {
	out.CPU.Usage = usageJSON{s.CPUTotal, s.PerCPU, d.PerCPUSystem, d.PerCPUUser, s.CPUSystem, s.CPUUser}
	if d.Cpuset != nil {
		out.Cpuset = cpusetOf(d.Cpuset)
	}
	out.Memory.Swap, out.Memory.Kernel, out.Memory.KernelTCP = entryJSON(d.MemorySwap), entryJSON(d.Kernel), entryJSON(d.KernelTCP)
	out.Hugetlb = make(map[string]hugetlbJSON, len(d.Hugetlb))
	for _, h := range d.Hugetlb {
		out.Hugetlb[h.PageSize] = hugetlbJSON{h.Usage, h.MaxUsage, h.Failcnt}
	}
	out.CPU.Throttling = throttlingJSON{s.Periods, s.ThrottledPeriods, s.ThrottledNS}
	out.Memory.Usage = entryJSON{s.MemoryLimit, s.MemoryUsage, s.MemoryMax, s.Failcnt}
	out.Memory.Raw = make(map[string]uint64, len(s.MemoryStat))
	for _, c := range s.MemoryStat {
		out.Memory.Raw[c.Name] = c.Value
	}
	out.Memory.Cache = out.Memory.Raw["cache"]
	out.Pids.Current, out.Pids.Limit = s.Pids, s.PidsLimit
	for _, e := range s.BlkioServiceBytes {
		out.Blkio.ServiceBytes = append(out.Blkio.ServiceBytes, blkioJSON(e))
	}
	for _, e := range s.BlkioServiced {
		out.Blkio.Serviced = append(out.Blkio.Serviced, blkioJSON(e))
	}
	return out
}

func cpusetOf(s *cgroup.CpusetStats) cpusetJSON {
	bit := func(on bool) uint64 {
		if on {
			return 1
		}
		return 0
	}
	return cpusetJSON{
		CPUs: s.CPUs, Mems: s.Mems, CPUExclusive: bit(s.CPUExclusive), MemExclusive: bit(s.MemExclusive), MemHardwall: bit(s.MemHardwall), MemoryMigrate: bit(s.MemoryMigrate),
		MemorySpreadPage: bit(s.MemorySpreadPage), MemorySpreadSlab: bit(s.MemorySpreadSlab), MemoryPressure: s.MemoryPressure, SchedLoadBalance: bit(s.SchedLoadBalance),
		SchedRelaxDomainLevel: s.SchedRelaxDomainLevel,
	}
}

func events(c *call, fs *flag.FlagSet) func([]string) (int, error) {
	interval := fs.Duration("interval", 5*time.Second, "how often figures are printed")
	once := fs.Bool("stats", false, "print the figures once")
	return func(args []string) (int, error) {
		id, err := one(args)
		if err != nil {
			return 1, err
		}
		if *interval <= 0 {
			return 1, errs.New(errs.Invalid, "--interval %s: must be above zero", *interval)
		}
		ctr, err := c.load(id)
		if err != nil {
			return 1, err
		}
		defer ctr.Close()
		show := func() error {
			s, err := ctr.Stats()
			if err != nil {
				return err
			}
			more, err := ctr.Details()
			if err != nil {
				return err
			}
			return printJSON(c.Out, event{"stats", id, toJSON(s, more)}, false)
		}
		if *once {
			return 0, show()
		}
		return c.follow(ctr, *interval, show)
	}
}

func (c *call) follow(ctr *runtime.Container, interval time.Duration, show func() error) (int, error) {
	ctx, cancel := context.WithCancel(c.ctx)
	defer cancel()
	ch, err := ctr.Events(ctx)
	if err != nil {
		return 1, err
	}
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		select {
		case e, ok := <-ch:
			if !ok || e.Kind == "exit" {
				return 0, nil
			}
			if err := printJSON(c.Out, event{Type: e.Kind, ID: ctr.ID()}, false); err != nil {
				return 1, err
			}
		case <-tick.C:
			if err := show(); err != nil {
				return 1, err
			}
		}
	}
}
