package containers

import (
	"runtime"
	"strconv"
	"strings"

	"corten.dev/corten/internal/container"
	"corten.dev/corten/internal/engine/hostspec"
	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/linux/cgroup"
	linuxhost "corten.dev/corten/internal/linux/host"
)

// machine is what limits are checked against.
type machine struct {
	cgroup.Support
	cpus          int
	online, nodes string // processors and memory nodes, as the kernel lists them
}

// thisMachine looks at the host. The files of its cgroups stay while the engine runs; processors may come and go.
func (s *Service) thisMachine() machine {
	return machine{Support: s.supports(), cpus: runtime.NumCPU(), online: hostspec.Online("cpu"), nodes: hostspec.Online("node")}
}

// supports is what the cgroups of this host can limit.
func supports(host func() (*cgroup.Host, error)) func() cgroup.Support {
	return func() cgroup.Support {
		h, err := host()
		if err != nil {
			return cgroup.Support{} // the runtime says so when it matters
		}
		have := h.Supports()
		have.KernelMemory = have.KernelMemory && !linuxhost.KernelSince(5, 16) // since then it counts with the rest, whatever the file says
		return have
	}
}

// limitCheck collects warnings up to the first error.
type limitCheck struct {
	machine
	res      *container.Resources
	update   bool // only what is given changes
	warnings []string
}

func badLimit(format string, args ...any) error { return errs.New(errs.Invalid, format, args...) }

// checkResources refuses limits that cannot be meant, in Docker's words, and discards with a warning what the kernel of this host cannot set. With update, res holds only what
// is to change.
func checkResources(res *container.Resources, m machine, update bool) (warnings []string, err error) {
	c := limitCheck{machine: m, res: res, update: update}
	for _, step := range []func() error{c.memory, c.swapping, c.pids, c.cpu, c.realtime, c.cpuset, c.blkio, c.others} {
		if err := step(); err != nil {
			return nil, err
		}
	}
	return c.warnings, nil
}

// lack warns of a limit that the kernel does not have; the caller takes it away.
func (c *limitCheck) lack(text string) {
	c.warnings = append(c.warnings, "Your kernel does not support "+text)
}

func (c *limitCheck) memory() error {
	const least = 6 << 20
	res := c.res
	if res.Memory != 0 && res.Memory < least {
		return badLimit("Minimum memory limit allowed is 6MB")
	}
	if res.Memory > 0 && !c.Memory {
		c.lack("memory limit capabilities or the cgroup is not mounted. Limitation discarded.")
		res.Memory, res.MemorySwap = 0, -1
	}
	if res.Memory > 0 && res.MemorySwap != -1 && !c.Swap {
		c.lack("swap limit capabilities or the cgroup is not mounted. Memory limited without swap.")
		res.MemorySwap = -1
	}
	switch {
	case res.Memory > 0 && res.MemorySwap > 0 && res.MemorySwap < res.Memory:
		return badLimit("Minimum memoryswap limit should be larger than memory limit, see usage")
	case res.Memory == 0 && res.MemorySwap > 0 && !c.update:
		return badLimit("You should always set the Memory limit when using Memoryswap limit, see usage")
	}
	if res.MemoryReservation > 0 && !c.Reservation {
		c.lack("memory soft limit capabilities or the cgroup is not mounted. Limitation discarded.")
		res.MemoryReservation = 0
	}
	switch {
	case res.MemoryReservation != 0 && res.MemoryReservation < least:
		return badLimit("Minimum memory reservation allowed is 6MB")
	case res.Memory > 0 && res.MemoryReservation > res.Memory:
		return badLimit("Minimum memory limit can not be less than memory reservation limit, see usage")
	}
	if res.KernelMemory > 0 && !c.KernelMemory {
		c.lack("kernel memory limit capabilities or the cgroup is not mounted. Limitation discarded.")
		res.KernelMemory = 0
	}
	if res.KernelMemory != 0 && res.KernelMemory < least {
		return badLimit("Minimum kernel memory limit allowed is 6MB")
	}
	return nil
}

func (c *limitCheck) swapping() error {
	res := c.res
	if sw := res.MemorySwappiness; sw != nil && *sw != -1 {
		if *sw < 0 || *sw > 100 {
			return badLimit("invalid value: %d, valid memory swappiness range is 0-100", *sw)
		}
		if !c.Swappiness {
			c.lack("memory swappiness capabilities or the cgroup is not mounted. Memory swappiness discarded.")
			res.MemorySwappiness = nil
		}
	}
	if off := res.OomKillDisable; off != nil && *off {
		switch {
		case !c.OOMKillDisable:
			c.lack("OomKillDisable. OomKillDisable discarded.")
			res.OomKillDisable = nil
		case res.Memory == 0 && !c.update:
			c.warnings = append(c.warnings, "OOM killer is disabled for the container, but no memory limit is set, this can result in the system running out of resources.")
		}
	}
	return nil
}

func (c *limitCheck) pids() error {
	if n := c.res.PidsLimit; n != nil && *n > 0 && !c.Pids {
		c.lack("PIDs limit capabilities or the cgroup is not mounted. PIDs limit discarded.")
		c.res.PidsLimit = nil
	}
	return nil
}

func (c *limitCheck) cpu() error {
	res := c.res
	switch {
	case res.NanoCPUs > 0 && res.CPUPeriod > 0:
		return badLimit("Conflicting options: Nano CPUs and CPU Period cannot both be set")
	case res.NanoCPUs > 0 && res.CPUQuota > 0:
		return badLimit("Conflicting options: Nano CPUs and CPU Quota cannot both be set")
	case res.NanoCPUs > 0 && !c.CPUQuota:
		return badLimit("NanoCPUs can not be set, as your kernel does not support CPU CFS scheduler or the cgroup is not mounted")
	case res.NanoCPUs < 0 || res.NanoCPUs > int64(c.cpus)*1e9:
		return badLimit("range of CPUs is from 0.01 to %[1]d.00, as there are only %[1]d CPUs available", c.cpus)
	case res.CPUShares < 0:
		return badLimit("shares must be greater than or equal to 0")
	}
	if res.CPUShares > 0 && !c.CPUShares {
		c.lack("CPU shares or the cgroup is not mounted. Shares discarded.")
		res.CPUShares = 0
	}
	if (res.CPUPeriod != 0 || res.CPUQuota != 0) && !c.CPUQuota {
		c.lack("CPU CFS scheduler. CPU period/quota discarded.")
		res.CPUPeriod, res.CPUQuota = 0, 0
	}
	switch {
	case res.CPUPeriod != 0 && (res.CPUPeriod < 1000 || res.CPUPeriod > 1000000):
		return badLimit("CPU cfs period can not be less than 1ms (i.e. 1000) or larger than 1s (i.e. 1000000)")
	case res.CPUQuota > 0 && res.CPUQuota < 1000:
		return badLimit("CPU cfs quota can not be less than 1ms (i.e. 1000)")
	}
	return nil
}

func (c *limitCheck) realtime() error {
	res := c.res
	switch {
	case res.CPURealtimePeriod < 0 || res.CPURealtimeRuntime < 0:
		return badLimit("cpu real-time period and runtime cannot be negative")
	case (res.CPURealtimePeriod != 0 || res.CPURealtimeRuntime != 0) && !c.Realtime:
		return badLimit("kernel does not support CPU real-time scheduler")
	case res.CPURealtimePeriod != 0 && res.CPURealtimeRuntime > res.CPURealtimePeriod:
		return badLimit("cpu real-time runtime cannot be higher than cpu real-time period")
	}
	return nil
}

func (c *limitCheck) cpuset() error {
	res := c.res
	if (res.CpusetCpus != "" || res.CpusetMems != "") && !c.Cpuset {
		c.lack("cpuset or the cgroup is not mounted. Cpuset discarded.")
		res.CpusetCpus, res.CpusetMems = "", ""
	}
	if err := checkSet("cpus", "CPUs", res.CpusetCpus, c.online); err != nil {
		return err
	}
	return checkSet("mems", "memory nodes", res.CpusetMems, c.nodes)
}

func (c *limitCheck) blkio() error {
	res := c.res
	if res.BlkioWeight > 0 && !c.BlkioWeight {
		c.lack("Block I/O weight or the cgroup is not mounted. Weight discarded.")
		res.BlkioWeight = 0
	}
	if res.BlkioWeight > 0 && (res.BlkioWeight < 10 || res.BlkioWeight > 1000) {
		return badLimit("range of blkio weight is from 10 to 1000")
	}
	if len(res.BlkioWeightDevice) > 0 && !c.BlkioWeight {
		c.lack("Block I/O weight_device or the cgroup is not mounted. Weight-device discarded.")
		res.BlkioWeightDevice = []container.WeightDevice{}
	}
	for _, w := range res.BlkioWeightDevice {
		if w.Weight > 0 && (w.Weight < 10 || w.Weight > 1000) {
			return badLimit("invalid weight for device: %s:%d", w.Path, w.Weight)
		}
	}
	for _, rate := range []struct {
		list *[]container.ThrottleDevice
		text string
	}{
		{&res.BlkioDeviceReadBps, "BPS Block I/O read limit or the cgroup is not mounted. Block I/O BPS read limit discarded."},
		{&res.BlkioDeviceWriteBps, "BPS Block I/O write limit or the cgroup is not mounted. Block I/O BPS write limit discarded."},
		{&res.BlkioDeviceReadIOps, "IOPS Block read limit or the cgroup is not mounted. Block I/O IOPS read limit discarded."},
		{&res.BlkioDeviceWriteIOps, "IOPS Block write limit or the cgroup is not mounted. Block I/O IOPS write limit discarded."},
	} {
		if len(*rate.list) > 0 && !c.BlkioRates {
			c.lack(rate.text)
			*rate.list = []container.ThrottleDevice{}
		}
	}
	return nil
}

func (c *limitCheck) others() error {
	for _, u := range c.res.Ulimits {
		if _, ok := hostspec.Rlimit(u.Name); !ok {
			return badLimit("invalid ulimit type: %s", u.Name)
		}
		if u.Hard != -1 && (u.Soft > u.Hard || u.Soft == -1) {
			return badLimit("ulimit soft limit must be less than or equal to hard limit: %d > %d", u.Soft, u.Hard)
		}
	}
	for _, rule := range c.res.DeviceCgroupRules {
		if _, err := hostspec.ParseDeviceRule(rule); err != nil {
			return err
		}
	}
	return nil
}

// checkSet checks "0-2,5" against what this host has.
func checkSet(file, noun, value, have string) error {
	if value == "" {
		return nil
	}
	want, err := parseSet(value)
	if err != nil {
		return badLimit("Invalid value %s for cpuset %s: %w", value, file, err)
	}
	online, err := parseSet(have)
	if err != nil {
		return err
	}
	for n := range want {
		if !online[n] {
			return badLimit("Requested %s are not available - requested %s, available: %s", noun, value, have)
		}
	}
	return nil
}

// parseSet reads a list of numbers and ranges as the kernel writes them.
func parseSet(s string) (map[int]bool, error) {
	set := map[int]bool{}
	for _, part := range strings.Split(s, ",") {
		lo, hi, isRange := strings.Cut(part, "-")
		if !isRange {
			hi = lo
		}
		a, err1 := strconv.ParseUint(lo, 10, 16)
		b, err2 := strconv.ParseUint(hi, 10, 16)
		if err1 != nil || err2 != nil || a > b || b >= 8192 { // more than any kernel is built for
			return nil, badLimit("invalid format: %s", s)
		}
		for n := a; n <= b; n++ {
			set[int(n)] = true
		}
	}
	return set, nil
}
