package cgroup

import (
	"fmt"
	"strconv"

	"corten.dev/corten/internal/errs"
	ocicgroups "github.com/opencontainers/cgroups"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// memoryV2 sets memory limits. The spec's swap is memory and swap together; the file memory.swap.max is swap alone.
func (m *Manager) memoryV2(dir string, c *specs.LinuxMemory) error {
	if set(kernelLimit(c)) || set(c.KernelTCP) {
		return errs.New(errs.Invalid, "limit kernel memory of %s: not possible with cgroup v2", m.id)
	}
	if c.Swappiness != nil && int64(*c.Swappiness) != -1 {
		return errs.New(errs.Invalid, "memory swappiness of %s: not possible with cgroup v2", m.id)
	}
	if c.DisableOOMKiller != nil && *c.DisableOOMKiller {
		return errs.New(errs.Invalid, "disable the out-of-memory killer of %s: not possible with cgroup v2", m.id)
	}
	if err := checkMemory(dir, "memory.current", c); err != nil {
		return err
	}
	if set(c.Swap) {
		swap, err := swapV2(dir, c)
		if err != nil {
			return err
		}
		if err := m.writeFile(dir, "memory.swap.max", swap); err != nil {
			// A kernel without swap accounting has no such file; no limit of swap, or none but memory, needs none.
			if !missingFile(err) || (swap != "max" && swap != "0") {
				return fmt.Errorf("limit swap: %w", err)
			}
		}
	}
	if set(c.Limit) {
		if err := m.writeFile(dir, "memory.max", orMax(*c.Limit)); err != nil {
			return fmt.Errorf("limit memory: %w", err)
		}
	}
	if set(c.Reservation) {
		if err := m.writeFile(dir, "memory.low", orMax(*c.Reservation)); err != nil {
			return fmt.Errorf("reserve memory: %w", err)
		}
	}
	return nil
}

func swapV2(dir string, c *specs.LinuxMemory) (string, error) {
	if *c.Swap < 0 {
		return "max", nil
	}
	mem := int64(0)
	if set(c.Limit) {
		mem = *c.Limit
	} else {
		// An update of swap alone counts from the limit in force.
		cur, err := readFile(dir, "memory.max")
		if err != nil {
			return "", fmt.Errorf("limit swap: %w", err)
		}
		if cur == "max" {
			mem = -1
		} else if mem, err = strconv.ParseInt(cur, 10, 64); err != nil {
			return "", fmt.Errorf("limit swap: memory.max: %w", err)
		}
	}
	if mem < 0 {
		return "", errs.New(errs.Invalid, "limit memory and swap to %d: needs a memory limit as well", *c.Swap)
	}
	if *c.Swap < mem {
		return "", errs.New(errs.Invalid, "limit memory and swap to %d: less than the memory limit %d", *c.Swap, mem)
	}
	return strconv.FormatInt(*c.Swap-mem, 10), nil
}

func (m *Manager) cpuV2(dir string, c *specs.LinuxCPU) error {
	if set(c.RealtimePeriod) || set(c.RealtimeRuntime) {
		return errs.New(errs.Invalid, "realtime cpu limits of %s: not possible with cgroup v2", m.id)
	}
	if c.Idle != nil {
		if err := m.writeFile(dir, "cpu.idle", strconv.FormatInt(*c.Idle, 10)); err != nil {
			return fmt.Errorf("cpu idle: %w", err)
		}
	}
	if set(c.Shares) && (c.Idle == nil || *c.Idle == 0) { // an idle cgroup has no weight
		weight := ocicgroups.ConvertCPUSharesToCgroupV2Value(*c.Shares)
		if err := m.writeFile(dir, "cpu.weight", strconv.FormatUint(weight, 10)); err != nil {
			return fmt.Errorf("cpu weight: %w", err)
		}
	}
	// A burst may not exceed the quota: a smaller one goes before it, a greater one after.
	burst := func() error {
		if c.Burst == nil {
			return nil
		}
		return m.writeFile(dir, "cpu.max.burst", strconv.FormatUint(*c.Burst, 10))
	}
	burstFirst := burst() == nil
	if set(c.Quota) || set(c.Period) {
		val, err := cpuMax(dir, c)
		if err != nil {
			return err
		}
		if err := m.writeFile(dir, "cpu.max", val); err != nil {
			return fmt.Errorf("limit cpu: %w", err)
		}
	}
	if !burstFirst {
		if err := burst(); err != nil {
			return fmt.Errorf("cpu burst: %w", err)
		}
	}
	return nil
}

// cpuMax is the line for cpu.max: "quota period", where what is not given stays as it is.
func cpuMax(dir string, c *specs.LinuxCPU) (string, error) {
	if set(c.Quota) {
		quota := "max"
		if *c.Quota > 0 {
			quota = strconv.FormatInt(*c.Quota, 10)
		}
		if set(c.Period) {
			return quota + " " + strconv.FormatUint(*c.Period, 10), nil
		}
		return quota, nil // the kernel keeps the period
	}
	cur, err := readFile(dir, "cpu.max")
	if err != nil {
		return "", fmt.Errorf("limit cpu: %w", err)
	}
	var quota string
	if _, err := fmt.Sscan(cur, &quota); err != nil {
		return "", fmt.Errorf("limit cpu: cpu.max %q: %w", cur, err)
	}
	return quota + " " + strconv.FormatUint(*c.Period, 10), nil
}

func (m *Manager) blkioV2(dir string, b *specs.LinuxBlockIO) error {
	if set(b.LeafWeight) {
		return errs.New(errs.Invalid, "block i/o leaf weight of %s: not possible with cgroup v2", m.id)
	}
	bfq := exists(dir, "io.bfq.weight")
	weight := func(dev string, w uint16) error {
		file, val := "io.bfq.weight", uint64(w)
		if !bfq {
			file, val = "io.weight", ocicgroups.ConvertBlkIOToIOWeightValue(w)
		}
		if err := m.writeFile(dir, file, dev+strconv.FormatUint(val, 10)); err != nil {
			return ioWeightError(err)
		}
		return nil
	}
	if set(b.Weight) {
		if err := weight("", *b.Weight); err != nil {
			return err
		}
	}
	for _, d := range b.WeightDevice {
		if set(d.LeafWeight) {
			return errs.New(errs.Invalid, "block i/o leaf weight of %s: not possible with cgroup v2", m.id)
		}
		if set(d.Weight) {
			if err := weight(fmt.Sprintf("%d:%d ", d.Major, d.Minor), *d.Weight); err != nil {
				return err
			}
		}
	}
	for _, t := range []struct {
		key  string
		devs []specs.LinuxThrottleDevice
	}{
		{"rbps", b.ThrottleReadBpsDevice}, {"wbps", b.ThrottleWriteBpsDevice},
		{"riops", b.ThrottleReadIOPSDevice}, {"wiops", b.ThrottleWriteIOPSDevice},
	} {
		for _, d := range t.devs {
			rate := "max" // a rate of 0 lifts the limit, as on v1
			if d.Rate > 0 {
				rate = strconv.FormatUint(d.Rate, 10)
			}
			if err := m.writeFile(dir, "io.max", fmt.Sprintf("%d:%d %s=%s", d.Major, d.Minor, t.key, rate)); err != nil {
				return fmt.Errorf("limit block device: %w", err)
			}
		}
	}
	return nil
}
