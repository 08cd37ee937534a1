package cgroup

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"corten.dev/corten/internal/errs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// set writes what res asks for, each section to wherever its controller is. fresh tells that nothing runs in the cgroup yet.
func (m *Manager) set(res *specs.LinuxResources, fresh bool) error {
	if res == nil {
		return nil
	}
	type section struct {
		controller string
		asked      bool
		v1, v2     func(dir string) error
	}
	cpu, mem, bio := res.CPU, res.Memory, res.BlockIO
	for _, s := range []section{
		{"devices", len(res.Devices) > 0, func(d string) error { return m.devicesV1(d, res.Devices, fresh) }, func(d string) error { return m.devicesV2(d, res.Devices) }},
		{"memory", mem != nil && memoryAsked(mem), func(d string) error { return m.memoryV1(d, mem) }, func(d string) error { return m.memoryV2(d, mem) }},
		{"cpu", cpu != nil && cpuAsked(cpu), func(d string) error { return m.cpuV1(d, cpu) }, func(d string) error { return m.cpuV2(d, cpu) }},
		{"cpuset", cpu != nil && (cpu.Cpus != "" || cpu.Mems != ""), func(d string) error { return m.cpuset(d, cpu) }, func(d string) error { return m.cpuset(d, cpu) }},
		{"pids", res.Pids != nil && res.Pids.Limit != nil, func(d string) error { return m.pids(d, res.Pids) }, func(d string) error { return m.pids(d, res.Pids) }},
		{"blkio", bio != nil && blkioAsked(bio), func(d string) error { return m.blkioV1(d, bio) }, func(d string) error { return m.blkioV2(d, bio) }},
		{"hugetlb", len(res.HugepageLimits) > 0, func(d string) error { return m.hugetlb(d, res, "limit_in_bytes") }, func(d string) error { return m.hugetlb(d, res, "max") }},
		{"rdma", len(res.Rdma) > 0, func(d string) error { return m.rdma(d, res) }, func(d string) error { return m.rdma(d, res) }},
		{"net_cls", res.Network != nil && res.Network.ClassID != nil && *res.Network.ClassID != 0, func(d string) error { return m.netCls(d, res) }, nil},
		{"net_prio", res.Network != nil && len(res.Network.Priorities) > 0, func(d string) error { return m.netPrio(d, res) }, nil},
	} {
		if !s.asked {
			continue
		}
		dir, v2 := m.dirOf(s.controller)
		switch {
		case dir == "" && s.controller == "devices" && m.rootless:
			// An ordinary user can neither set device rules nor make devices, so there is nothing that they would forbid.
		case dir == "":
			return m.missing(s.controller)
		case v2:
			if err := s.v2(dir); err != nil {
				return err
			}
		default:
			if err := s.v1(dir); err != nil {
				return err
			}
		}
	}
	return m.unified(res.Unified)
}

func (m *Manager) missing(controller string) error {
	if m.rootless {
		return errs.New(errs.Forbidden, "limit %s of %s: the cgroup controller %s was not delegated to this user", controller, m.id, controller)
	}
	return errs.New(errs.Unavailable, "limit %s of %s: the kernel of this host has no cgroup controller %s mounted", controller, m.id, controller)
}

func cpuAsked(c *specs.LinuxCPU) bool {
	return c.Shares != nil || c.Quota != nil || c.Period != nil || c.Burst != nil || c.Idle != nil || c.RealtimePeriod != nil || c.RealtimeRuntime != nil
}

// kernelLimit is the limit of kernel memory, which cgroup v1 on older kernels has.
func kernelLimit(c *specs.LinuxMemory) *int64 {
	return c.Kernel //lint:ignore SA1019 asked for is asked for: it is applied where the kernel has it, and refused where not
}

func memoryAsked(c *specs.LinuxMemory) bool {
	return set(c.Limit) || set(c.Swap) || set(c.Reservation) || set(kernelLimit(c)) || set(c.KernelTCP) || c.Swappiness != nil || c.DisableOOMKiller != nil && *c.DisableOOMKiller
}

func blkioAsked(b *specs.LinuxBlockIO) bool {
	return set(b.Weight) || set(b.LeafWeight) || len(b.WeightDevice) > 0 || len(b.ThrottleReadBpsDevice) > 0 ||
		len(b.ThrottleWriteBpsDevice) > 0 || len(b.ThrottleReadIOPSDevice) > 0 || len(b.ThrottleWriteIOPSDevice) > 0
}

// set tells whether a number was given. Zero counts as not given: no limit of nothing can be run with, and callers of old leave zeros behind.
func set[T int64 | uint64 | uint16](p *T) bool { return p != nil && *p != 0 }

// cpuset has the same files on v1 and v2.
func (m *Manager) cpuset(dir string, c *specs.LinuxCPU) error {
	if c.Cpus != "" {
		if err := m.writeFile(dir, "cpuset.cpus", c.Cpus); err != nil {
			return fmt.Errorf("use processors %q: %w", c.Cpus, err)
		}
	}
	if c.Mems != "" {
		if err := m.writeFile(dir, "cpuset.mems", c.Mems); err != nil {
			return fmt.Errorf("use memory nodes %q: %w", c.Mems, err)
		}
	}
	return nil
}

func (m *Manager) pids(dir string, p *specs.LinuxPids) error {
	return m.writeFile(dir, "pids.max", orMax(*p.Limit))
}

// orMax formats a limit for files that say "max" for none.
func orMax(n int64) string {
	if n < 0 {
		return "max"
	}
	return strconv.FormatInt(n, 10)
}

func (m *Manager) hugetlb(dir string, res *specs.LinuxResources, suffix string) error {
	for _, l := range res.HugepageLimits {
		if strings.ContainsAny(l.Pagesize, "/.") || l.Pagesize == "" {
			return errs.New(errs.Invalid, "huge page size %q: not a size", l.Pagesize)
		}
		val := strconv.FormatUint(l.Limit, 10)
		if err := m.writeFile(dir, "hugetlb."+l.Pagesize+"."+suffix, val); err != nil {
			return fmt.Errorf("limit huge pages of %s: %w", l.Pagesize, err)
		}
		// Reservations are counted apart since Linux 5.7; both limits are needed, or a reservation kills at first touch.
		rsvd := "hugetlb." + l.Pagesize + ".rsvd." + suffix
		if err := m.writeFile(dir, rsvd, val); err != nil && !missingFile(err) {
			return fmt.Errorf("limit huge pages of %s: %w", l.Pagesize, err)
		}
	}
	return nil
}

func (m *Manager) rdma(dir string, res *specs.LinuxResources) error {
	for name, l := range res.Rdma {
		line := name
		if l.HcaHandles != nil {
			line += fmt.Sprintf(" hca_handle=%d", *l.HcaHandles)
		}
		if l.HcaObjects != nil {
			line += fmt.Sprintf(" hca_object=%d", *l.HcaObjects)
		}
		if err := m.writeFile(dir, "rdma.max", line); err != nil {
			return fmt.Errorf("limit rdma device %s: %w", name, err)
		}
	}
	return nil
}

func (m *Manager) netCls(dir string, res *specs.LinuxResources) error {
	return m.writeFile(dir, "net_cls.classid", strconv.FormatUint(uint64(*res.Network.ClassID), 10))
}

func (m *Manager) netPrio(dir string, res *specs.LinuxResources) error {
	for _, p := range res.Network.Priorities {
		if err := m.writeFile(dir, "net_prio.ifpriomap", fmt.Sprintf("%s %d", p.Name, p.Priority)); err != nil {
			return fmt.Errorf("network priority: %w", err)
		}
	}
	return nil
}

// unified writes the spec's map of v2 files as it stands.
func (m *Manager) unified(files map[string]string) error {
	if len(files) == 0 {
		return nil
	}
	if m.v2 == "" {
		return errs.New(errs.Unavailable, "unified cgroup settings of %s: this host has no cgroup v2 tree", m.id)
	}
	names := make([]string, 0, len(files))
	for name := range files {
		names = append(names, name)
	}
	slices.Sort(names) // a fixed order, so that the same settings fail in the same way
	for _, name := range names {
		controller, rest, ok := strings.Cut(name, ".")
		if !ok || rest == "" || strings.Contains(name, "/") {
			return errs.New(errs.Invalid, "unified cgroup setting %q: not a file of a cgroup", name)
		}
		if controller != "cgroup" && !m.host.v2Has(controller) {
			return m.missing(controller)
		}
		// Files that take one setting a line (io.max) get one write for each.
		lines := strings.Split(strings.TrimRight(files[name], "\n"), "\n")
		if err := m.writeFile(m.v2, name, lines...); err != nil {
			return fmt.Errorf("unified cgroup setting: %w", err)
		}
	}
	return nil
}

// enable switches on controllers for the container's directory in the v2 tree, from the root down. On v2 all that there are, so that everything is
// counted; on a hybrid host only those that the limits need.
func (m *Manager) enable(res *specs.LinuxResources) error {
	var want []string
	if m.host.mode == V2 {
		want = m.host.v2Controllers
	} else {
		want = m.hybridNeeds(res)
	}
	if len(want) == 0 {
		return nil
	}
	have, err := readFile(m.v2, "cgroup.controllers")
	if err != nil {
		return fmt.Errorf("cgroup controllers: %w", err)
	}
	if containsAll(strings.Fields(have), want) {
		return nil
	}
	at := m.host.v2
	for _, part := range strings.Split(strings.TrimPrefix(filepath.Dir(m.path), "/"), "/") {
		if err := m.enableAt(at, want); err != nil {
			return err
		}
		if part == "" {
			return nil
		}
		at += "/" + part
	}
	return m.enableAt(at, want)
}

func (m *Manager) hybridNeeds(res *specs.LinuxResources) (want []string) {
	if res == nil {
		return nil
	}
	need := func(controller string) {
		if slices.Contains(m.host.v2Controllers, controller) && !slices.Contains(want, controller) {
			want = append(want, controller)
		}
	}
	if len(res.HugepageLimits) > 0 {
		need("hugetlb")
	}
	if len(res.Rdma) > 0 {
		need("rdma")
	}
	if res.BlockIO != nil {
		need("io")
	}
	if res.Memory != nil {
		need("memory")
	}
	if res.Pids != nil {
		need("pids")
	}
	if res.CPU != nil {
		need("cpu")
		need("cpuset")
	}
	for name := range res.Unified {
		controller, _, _ := strings.Cut(name, ".")
		need(controller)
	}
	return want
}

func containsAll(have, want []string) bool {
	for _, w := range want {
		if !slices.Contains(have, w) {
			return false
		}
	}
	return true
}

// enableAt hands controllers on to the children of one directory. A controller that the directory does not have itself, or that it may not hand on, is left out:
// a limit that needs it fails later, with its name.
func (m *Manager) enableAt(at string, want []string) error {
	on, err := readFile(at, "cgroup.subtree_control")
	if err != nil {
		return fmt.Errorf("cgroup controllers: %w", err)
	}
	var missing []string
	for _, c := range want {
		if !slices.Contains(strings.Fields(on), c) {
			missing = append(missing, "+"+c)
		}
	}
	if len(missing) == 0 {
		return nil
	}
	if m.writeFile(at, "cgroup.subtree_control", strings.Join(missing, " ")) == nil {
		return nil
	}
	for _, c := range missing {
		err := m.writeFile(at, "cgroup.subtree_control", c)
		switch {
		case err == nil:
		case isErrno(err, unix.EBUSY):
			return errs.New(errs.Unavailable, "enable the cgroup controller %s in %s: processes live in that cgroup itself; move them to a child of it first", c[1:], at)
		case isErrno(err, unix.ENOENT), isErrno(err, unix.EINVAL), isErrno(err, unix.EOPNOTSUPP), m.rootless && denied(err):
		default:
			return fmt.Errorf("enable the cgroup controller %s: %w", c[1:], err)
		}
	}
	return nil
}

// CheckMemory refuses a limit below what is in use, for the spec's checkBeforeUpdate.
func checkMemory(dir, usageFile string, c *specs.LinuxMemory) error {
	if c.CheckBeforeUpdate == nil || !*c.CheckBeforeUpdate || !set(c.Limit) || *c.Limit < 0 {
		return nil
	}
	usage, err := readUint(dir, usageFile)
	if err != nil {
		return err
	}
	if usage > uint64(*c.Limit) {
		return errs.New(errs.Invalid, "limit memory to %d: %d bytes are in use", *c.Limit, usage)
	}
	return nil
}

func exists(dir, name string) bool {
	_, err := os.Lstat(dir + "/" + name)
	return err == nil
}
