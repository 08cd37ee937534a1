package cgroup

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strconv"

	"corten.dev/corten/internal/errs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

func isErrno(err error, e unix.Errno) bool { return errors.Is(err, e) }

func missingFile(err error) bool { return errors.Is(err, fs.ErrNotExist) }

// memoryV1 sets memory limits. The kernel keeps limit <= memsw at every moment, so that the order depends on which way both move: the limit first, and if that is
// refused, the other one first.
func (m *Manager) memoryV1(dir string, c *specs.LinuxMemory) error {
	limit, swap := c.Limit, c.Swap
	if set(limit) && *limit < 0 && !set(swap) && exists(dir, "memory.memsw.limit_in_bytes") {
		swap = limit // no limit of memory alone makes no sense under one of both
	}
	if set(swap) && !exists(dir, "memory.memsw.limit_in_bytes") {
		if *swap > 0 && (!set(limit) || *swap != *limit) {
			return errs.New(errs.Unavailable, "limit memory and swap to %d: the kernel does not count swap (boot it with swapaccount=1)", *swap)
		}
		swap = nil
	}
	if err := checkMemory(dir, "memory.usage_in_bytes", c); err != nil {
		return err
	}
	writeLimit := func() error {
		if !set(limit) {
			return nil
		}
		return m.writeFile(dir, "memory.limit_in_bytes", strconv.FormatInt(*limit, 10))
	}
	writeSwap := func() error {
		if !set(swap) {
			return nil
		}
		return m.writeFile(dir, "memory.memsw.limit_in_bytes", strconv.FormatInt(*swap, 10))
	}
	err := writeLimit()
	switch {
	case err != nil && isErrno(err, unix.EINVAL) && set(swap):
		if err = writeSwap(); err == nil {
			err = writeLimit()
		}
	case err == nil:
		err = writeSwap()
	}
	if err != nil {
		return m.memoryRefused(dir, c, err)
	}
	for _, w := range []struct {
		file string
		val  *int64
	}{
		{"memory.soft_limit_in_bytes", c.Reservation},
		{"memory.kmem.limit_in_bytes", kernelLimit(c)},
		{"memory.kmem.tcp.limit_in_bytes", c.KernelTCP},
	} {
		if !set(w.val) {
			continue
		}
		if err := m.writeFile(dir, w.file, strconv.FormatInt(*w.val, 10)); err != nil {
			return fmt.Errorf("limit memory: %w", err)
		}
	}
	if c.Swappiness != nil && *c.Swappiness <= 100 {
		if err := m.writeFile(dir, "memory.swappiness", strconv.FormatUint(*c.Swappiness, 10)); err != nil {
			return fmt.Errorf("memory swappiness: %w", err)
		}
	} else if c.Swappiness != nil && int64(*c.Swappiness) != -1 {
		return errs.New(errs.Invalid, "memory swappiness %d: valid range is 0 to 100", *c.Swappiness)
	}
	if c.DisableOOMKiller != nil && *c.DisableOOMKiller {
		if err := m.writeFile(dir, "memory.oom_control", "1"); err != nil {
			return fmt.Errorf("disable the out-of-memory killer: %w", err)
		}
	}
	return nil
}

// memoryRefused says why a memory limit was not taken.
func (m *Manager) memoryRefused(dir string, c *specs.LinuxMemory, err error) error {
	limit := int64(0)
	if set(c.Limit) {
		limit = *c.Limit
	}
	if isErrno(err, unix.EBUSY) {
		usage, uerr := readUint(dir, "memory.usage_in_bytes")
		if uerr == nil {
			return errs.New(errs.Conflict, "limit memory to %d: %d bytes are in use and cannot be freed", limit, usage)
		}
	}
	if isErrno(err, unix.EINVAL) && !set(c.Swap) {
		return errs.New(errs.Invalid, "limit memory to %d: memory limit should be smaller than already set memoryswap limit, update the memoryswap at the same time", limit)
	}
	return fmt.Errorf("limit memory: %w", err)
}

func (m *Manager) cpuV1(dir string, c *specs.LinuxCPU) error {
	if set(c.Shares) {
		if *c.Shares < 2 || *c.Shares > 262144 {
			return errs.New(errs.Invalid, "cpu shares %d: valid range is 2 to 262144", *c.Shares)
		}
		if err := m.writeFile(dir, "cpu.shares", strconv.FormatUint(*c.Shares, 10)); err != nil {
			return fmt.Errorf("cpu shares: %w", err)
		}
	}
	if c.Idle != nil {
		if err := m.writeFile(dir, "cpu.idle", strconv.FormatInt(*c.Idle, 10)); err != nil {
			return fmt.Errorf("cpu idle: %w", err)
		}
	}
	period := func() error {
		if !set(c.Period) {
			return nil
		}
		return m.writeFile(dir, "cpu.cfs_period_us", strconv.FormatUint(*c.Period, 10))
	}
	quota := func() error {
		if !set(c.Quota) {
			return nil
		}
		return m.writeFile(dir, "cpu.cfs_quota_us", strconv.FormatInt(*c.Quota, 10))
	}
	// With a limit on a parent, the new period with the old quota may be too much: then the quota goes first.
	err := period()
	if err != nil && isErrno(err, unix.EINVAL) && set(c.Quota) {
		if err = quota(); err == nil {
			err = period()
		}
	} else if err == nil {
		err = quota()
	}
	if err != nil {
		return fmt.Errorf("limit cpu: %w", err)
	}
	if c.Burst != nil {
		if err := m.writeFile(dir, "cpu.cfs_burst_us", strconv.FormatUint(*c.Burst, 10)); err != nil {
			return fmt.Errorf("cpu burst: %w", err)
		}
	}
	if set(c.RealtimePeriod) {
		if err := m.writeFile(dir, "cpu.rt_period_us", strconv.FormatUint(*c.RealtimePeriod, 10)); err != nil {
			return fmt.Errorf("realtime period: %w", err)
		}
	}
	if set(c.RealtimeRuntime) {
		if err := m.writeFile(dir, "cpu.rt_runtime_us", strconv.FormatInt(*c.RealtimeRuntime, 10)); err != nil {
			// The kernel hands out no more than the parent was given, which is nothing unless someone did.
			if parent, perr := readFile(filepath.Dir(dir), "cpu.rt_runtime_us"); perr == nil && isErrno(err, unix.EINVAL) {
				return errs.New(errs.Invalid, "realtime runtime %d: the parent has %s us to hand out; write more to %s/cpu.rt_runtime_us first", *c.RealtimeRuntime, parent, filepath.Dir(dir))
			}
			return fmt.Errorf("realtime runtime: %w", err)
		}
	}
	return nil
}

func (m *Manager) blkioV1(dir string, b *specs.LinuxBlockIO) error {
	prefix := "blkio."
	if !exists(dir, "blkio.weight") {
		prefix = "blkio.bfq."
	}
	if set(b.Weight) {
		if err := m.writeFile(dir, prefix+"weight", strconv.Itoa(int(*b.Weight))); err != nil {
			return ioWeightError(err)
		}
	}
	if set(b.LeafWeight) {
		if err := m.writeFile(dir, "blkio.leaf_weight", strconv.Itoa(int(*b.LeafWeight))); err != nil {
			return ioWeightError(err)
		}
	}
	for _, w := range b.WeightDevice {
		if set(w.Weight) {
			if err := m.writeFile(dir, prefix+"weight_device", fmt.Sprintf("%d:%d %d", w.Major, w.Minor, *w.Weight)); err != nil {
				return ioWeightError(err)
			}
		}
		if set(w.LeafWeight) {
			if err := m.writeFile(dir, "blkio.leaf_weight_device", fmt.Sprintf("%d:%d %d", w.Major, w.Minor, *w.LeafWeight)); err != nil {
				return ioWeightError(err)
			}
		}
	}
	for _, t := range []struct {
		file string
		devs []specs.LinuxThrottleDevice
	}{
		{"blkio.throttle.read_bps_device", b.ThrottleReadBpsDevice},
		{"blkio.throttle.write_bps_device", b.ThrottleWriteBpsDevice},
		{"blkio.throttle.read_iops_device", b.ThrottleReadIOPSDevice},
		{"blkio.throttle.write_iops_device", b.ThrottleWriteIOPSDevice},
	} {
		for _, d := range t.devs {
			if err := m.writeFile(dir, t.file, fmt.Sprintf("%d:%d %d", d.Major, d.Minor, d.Rate)); err != nil {
				return fmt.Errorf("limit block device: %w", err)
			}
		}
	}
	return nil
}

func ioWeightError(err error) error {
	if missingFile(err) {
		return errs.New(errs.Unavailable, "block i/o weight: the kernel has no i/o scheduler with weights here: %w", err)
	}
	return fmt.Errorf("block i/o weight: %w", err)
}
