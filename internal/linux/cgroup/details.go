package cgroup

import (
	"bytes"
	"fmt"
	"math"
)

// Details are figures that few ask for: [Manager.Stats] and a [Meter] do not read them.
type Details struct {
	// PerCPUSystem and PerCPUUser are nanoseconds on each processor; v1 only.
	PerCPUSystem, PerCPUUser []uint64
	// MemorySwap is memory and swap together, as v1 counts. Kernel and KernelTCP are parts of the memory; v2 has no limits of their own for them.
	MemorySwap, Kernel, KernelTCP Amount
	// Cpuset is nil where the controller is not there.
	Cpuset  *CpusetStats
	Hugetlb []HugetlbStats
}

// Amount is bytes of one kind of memory. What the kernel does not count is 0.
type Amount struct{ Limit, Usage, Max, Failcnt uint64 }

// CpusetStats is where processes may run. On v2 there are only the two lists, of what is in effect.
type CpusetStats struct {
	CPUs, Mems                                                                                 []uint16
	CPUExclusive, MemExclusive, MemHardwall, MemoryMigrate, MemorySpreadPage, MemorySpreadSlab bool
	MemoryPressure                                                                             uint64
	SchedLoadBalance                                                                           bool
	SchedRelaxDomainLevel                                                                      int64
}

// Details reads the figures that Stats leaves out.
func (m *Manager) Details() (Details, error) {
	r := reader{buf: buffers.Get().(*[16384]byte)}
	defer buffers.Put(r.buf)
	var d Details
	if dir, v2 := m.dirOf("cpuacct"); dir != "" && !v2 {
		perCPU(r.bytes(dir, "cpuacct.usage_all"), &d)
	}
	if dir, v2 := m.dirOf("memory"); v2 {
		memoryDetailsV2(&r, dir, &d)
	} else if dir != "" {
		amount := func(prefix string) Amount {
			return Amount{r.uint(dir, prefix+".limit_in_bytes"), r.uint(dir, prefix+".usage_in_bytes"), r.uint(dir, prefix+".max_usage_in_bytes"), r.uint(dir, prefix+".failcnt")}
		}
		d.MemorySwap, d.Kernel, d.KernelTCP = amount("memory.memsw"), amount("memory.kmem"), amount("memory.kmem.tcp")
	}
	if dir, v2 := m.dirOf("cpuset"); v2 {
		d.Cpuset = &CpusetStats{CPUs: ranges(r.bytes(dir, "cpuset.cpus.effective")), Mems: ranges(r.bytes(dir, "cpuset.mems.effective"))}
	} else if dir != "" {
		d.Cpuset = cpusetV1(&r, dir)
	}
	if dir, v2 := m.dirOf("hugetlb"); dir != "" && m.host.mode != Hybrid {
		var st Stats
		hugetlbStats(&r, dir, v2, &st)
		d.Hugetlb = st.Hugetlb
	}
	if r.err != nil {
		return d, fmt.Errorf("figures of %s: %w", m.id, r.err)
	}
	return d, nil
}

// perCPU reads "cpu user system" lines below a heading.
func perCPU(b []byte, d *Details) {
	for line := range bytes.Lines(b) {
		if f := bytes.Fields(line); len(f) == 3 && f[0][0] != 'c' {
			d.PerCPUUser, d.PerCPUSystem = append(d.PerCPUUser, parseUint(f[1])), append(d.PerCPUSystem, parseUint(f[2]))
		}
	}
}

// memoryDetailsV2 counts swap as v1 does: with the memory.
func memoryDetailsV2(r *reader, dir string, d *Details) {
	d.MemorySwap = Amount{Limit: math.MaxUint64, Usage: r.uint(dir, "memory.swap.current") + r.uint(dir, "memory.current")}
	memory, swap := r.uint(dir, "memory.max"), r.uint(dir, "memory.swap.max")
	if memory != math.MaxUint64 && swap != math.MaxUint64 { // no limit of the one is none of both
		d.MemorySwap.Limit = memory + swap
	}
	lines(r.bytes(dir, "memory.stat"), func(key []byte, val uint64) {
		switch string(key) {
		case "kernel":
			d.Kernel.Usage = val
		case "sock":
			d.KernelTCP.Usage = val
		}
	})
}

func cpusetV1(r *reader, dir string) *CpusetStats {
	on := func(name string) bool { return r.uint(dir, "cpuset."+name) != 0 }
	set := &CpusetStats{
		CPUs: ranges(r.bytes(dir, "cpuset.cpus")), Mems: ranges(r.bytes(dir, "cpuset.mems")), CPUExclusive: on("cpu_exclusive"), MemExclusive: on("mem_exclusive"), MemHardwall: on("mem_hardwall"),
		MemoryMigrate: on("memory_migrate"), MemorySpreadPage: on("memory_spread_page"), MemorySpreadSlab: on("memory_spread_slab"), MemoryPressure: r.uint(dir, "cpuset.memory_pressure"),
		SchedLoadBalance: on("sched_load_balance"),
	}
	level, below := bytes.CutPrefix(r.bytes(dir, "cpuset.sched_relax_domain_level"), []byte{'-'})
	if set.SchedRelaxDomainLevel = int64(parseUint(level)); below {
		set.SchedRelaxDomainLevel = -set.SchedRelaxDomainLevel
	}
	return set
}

// ranges reads a list as "0-2,7".
func ranges(b []byte) (list []uint16) {
	for part := range bytes.SplitSeq(bytes.TrimSpace(b), []byte{','}) {
		from, to, many := bytes.Cut(part, []byte{'-'})
		if len(from) == 0 {
			continue
		}
		first := parseUint(from)
		last := first
		if many {
			last = parseUint(to)
		}
		for n := first; n <= min(last, 1<<16-1); n++ {
			list = append(list, uint16(n))
		}
	}
	return list
}
