package cgroup

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Support tells which limits the kernel of a host can set at all, as Docker asks before it promises one. What is false would fail with the name of a file.
type Support struct {
	Memory, Swap, Reservation, Swappiness, OOMKillDisable, KernelMemory bool
	CPUShares, CPUQuota, Realtime, Cpuset, Pids                         bool
	BlkioWeight, BlkioRates                                             bool
}

// Supports looks at the files of the hierarchies; a few dozen microseconds, so that callers who ask often keep the answer.
func (h *Host) Supports() Support {
	var s Support
	for i := range h.v1 {
		h.v1[i].supports(&s)
	}
	if h.v2 == "" {
		return s
	}
	// The root of the tree has hardly any of the files of a limit: a cgroup below it shows them.
	child := h.anyChild()
	has := func(controller, file string) bool { return h.v2Has(controller) && (child == "" || exists(child, file)) }
	s.Memory = s.Memory || h.v2Has("memory")
	s.Reservation = s.Reservation || h.v2Has("memory")
	s.Swap = s.Swap || has("memory", "memory.swap.max")
	s.CPUShares = s.CPUShares || has("cpu", "cpu.weight")
	s.CPUQuota = s.CPUQuota || has("cpu", "cpu.max")
	s.Cpuset = s.Cpuset || h.v2Has("cpuset")
	s.Pids = s.Pids || h.v2Has("pids")
	s.BlkioWeight = s.BlkioWeight || has("blkio", "io.weight") || has("blkio", "io.bfq.weight")
	s.BlkioRates = s.BlkioRates || has("blkio", "io.max")
	return s
}

func (h *hierarchy) supports(s *Support) {
	has := func(file string) bool { return exists(h.root, file) }
	if h.has("memory") {
		s.Memory, s.Swap, s.Reservation = has("memory.limit_in_bytes"), has("memory.memsw.limit_in_bytes"), has("memory.soft_limit_in_bytes")
		s.Swappiness, s.OOMKillDisable, s.KernelMemory = has("memory.swappiness"), has("memory.oom_control"), has("memory.kmem.limit_in_bytes")
	}
	if h.has("cpu") {
		s.CPUShares, s.CPUQuota, s.Realtime = has("cpu.shares"), has("cpu.cfs_quota_us"), has("cpu.rt_runtime_us")
	}
	s.Cpuset = s.Cpuset || h.has("cpuset")
	s.Pids = s.Pids || h.has("pids")
	if h.has("blkio") {
		// The root has no weight itself; where it counts what bfq does, the cgroups below have bfq's weights.
		s.BlkioWeight, s.BlkioRates = has("blkio.weight") || has("blkio.bfq.io_serviced"), has("blkio.throttle.read_bps_device")
	}
}

// anyChild is a cgroup of the v2 tree that has the controllers of the root; "" if there is none yet.
func (h *Host) anyChild() string {
	list, err := os.ReadDir(h.v2)
	if err != nil {
		return ""
	}
	for _, entry := range list {
		dir := filepath.Join(h.v2, entry.Name())
		if !entry.IsDir() || !exists(dir, "cgroup.controllers") {
			continue
		}
		// One that was handed fewer controllers would deny what the host has.
		if h.handed(dir) {
			return dir
		}
	}
	return ""
}

// handed tells whether a cgroup has all the controllers whose files are looked for.
func (h *Host) handed(dir string) bool {
	have, err := readFile(dir, "cgroup.controllers")
	if err != nil {
		return false
	}
	for _, c := range []string{"memory", "cpu", "io"} {
		if h.v2Has(c) && !slices.Contains(strings.Fields(have), c) {
			return false
		}
	}
	return true
}
