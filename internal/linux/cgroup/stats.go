package cgroup

import (
	"bytes"
	"fmt"
	"math"
	"os"
	"strings"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/linux/counters"
	"golang.org/x/sys/unix"
)

// Stats are the kernel's figures for a container. Bytes and nanoseconds throughout. A figure that the host does not keep is zero.
type Stats struct {
	CPU     CPUStats
	Memory  MemoryStats
	Pids    PidsStats
	Blkio   BlkioStats
	Hugetlb []HugetlbStats
}

// CPUStats is processor time.
type CPUStats struct {
	Total, User, System                    uint64
	PerCPU                                 []uint64 // v1 only
	Periods, ThrottledPeriods, ThrottledNS uint64
	BurstPeriods, BurstNS                  uint64
	Pressure                               Pressure
}

// MemoryStats are bytes. Limit is math.MaxUint64 where there is none.
type MemoryStats struct {
	Usage, MaxUsage, Limit, Failcnt uint64
	// Cache is the page cache, RSS anonymous memory, InactiveFile the part of the cache that `stats` subtracts from Usage.
	Cache, RSS, InactiveFile uint64
	Swap, SwapLimit          uint64 // v1: memory and swap together
	Kernel, KernelTCP        uint64
	PageFaults, MajorFaults  uint64
	OOMKills                 uint64
	Pressure                 Pressure
	// Stat is the whole file memory.stat, in its order.
	Stat []Counter
}

// Counter is one line of a file of counters.
type Counter struct {
	Name  string
	Value uint64
}

// PidsStats are numbers of tasks. Limit is 0 where there is none.
type PidsStats struct{ Current, Limit uint64 }

// BlkioEntry is one figure for one device.
type BlkioEntry struct {
	Major, Minor uint64
	Op           string // "Read", "Write", and what else the kernel counts; on v2 in small letters, as in Docker's API
	Value        uint64
}

// BlkioStats is what went to and from block devices.
type BlkioStats struct {
	ServiceBytes, Serviced []BlkioEntry
	Pressure               Pressure
}

// HugetlbStats is the use of one size of huge pages ("2MB").
type HugetlbStats struct {
	PageSize                 string
	Usage, MaxUsage, Failcnt uint64
}

// Stats reads the figures: about fifteen small files on v1, eight on v2.
func (m *Manager) Stats() (Stats, error) {
	r := reader{buf: buffers.Get().(*[16384]byte)}
	defer buffers.Put(r.buf)
	st := m.figures(&r)
	if dir, v2 := m.dirOf("hugetlb"); dir != "" && m.host.mode != Hybrid {
		hugetlbStats(&r, dir, v2, &st)
	}
	if r.err != nil {
		return st, fmt.Errorf("figures of %s: %w", m.id, r.err)
	}
	return st, nil
}

func (m *Manager) figures(r *reader) (st Stats) {
	for _, part := range [...]struct {
		controller string
		v1, v2     func(r *reader, dir string, st *Stats)
	}{
		{"cpuacct", cpuacctV1, func(*reader, string, *Stats) {}},
		{"cpu", cpuV1Stats, cpuV2Stats},
		{"memory", memoryV1Stats, memoryV2Stats},
		{"pids", pidsStats, pidsStats},
		{"blkio", blkioV1Stats, blkioV2Stats},
	} {
		dir, v2 := m.dirOf(part.controller)
		switch {
		case dir == "":
		case v2:
			part.v2(r, dir, &st)
		default:
			part.v1(r, dir, &st)
		}
	}
	m.pressures(r, &st)
	return st
}

// Meter reads the figures of one container again and again, by descriptors that stay open: a tenth of the cost of Stats. It leaves huge pages out, and reads limits, swap and
// out-of-memory kills once in [RareEvery] readings only. It belongs to one goroutine at a time.
type Meter struct {
	m    *Manager
	r    reader
	n    int // readings so far
	last Stats
}

// RareEvery is in how many readings of a [Meter] limits are looked at once.
const RareEvery = 8

// Meter makes one that keeps its files open as far as the budget goes.
func (m *Manager) Meter(keep *counters.Budget) *Meter {
	return &Meter{m: m, r: reader{kept: make(map[file]*counters.Kept, 16), keep: keep}}
}

// Read reads the figures as they are now. errs.NotFound when the cgroup is gone.
func (x *Meter) Read() (Stats, error) {
	x.r.err, x.r.last, x.r.buf = nil, &x.last, buffers.Get().(*[16384]byte)
	defer buffers.Put(x.r.buf)
	if x.n%RareEvery == 0 {
		x.r.last = nil
	}
	st := x.m.figures(&x.r)
	if x.r.err == nil {
		x.last = st
		x.n++
		return st, nil
	}
	if isErrno(x.r.err, unix.ENODEV) {
		return st, errs.New(errs.NotFound, "figures of %s: the cgroup is gone", x.m.id)
	}
	return st, fmt.Errorf("figures of %s: %w", x.m.id, x.r.err)
}

// Close lets the files go.
func (x *Meter) Close() {
	for _, f := range x.r.kept {
		f.Close()
	}
	clear(x.r.kept)
	x.n = 0
}

func cpuacctV1(r *reader, dir string, st *Stats) {
	for line := range bytes.Lines(r.bytes(dir, "cpuacct.usage_all")) {
		number, rest, _ := bytes.Cut(line, []byte{' '})
		user, system, _ := bytes.Cut(rest, []byte{' '})
		if len(number) > 0 && number[0] != 'c' { // not the heading
			st.CPU.User += parseUint(user)
			st.CPU.System += parseUint(system)
		}
	}
	for _, f := range bytes.Fields(r.bytes(dir, "cpuacct.usage_percpu")) {
		n := parseUint(f)
		st.CPU.PerCPU = append(st.CPU.PerCPU, n)
		st.CPU.Total += n
	}
}

func cpuV1Stats(r *reader, dir string, st *Stats) {
	lines(r.bytes(dir, "cpu.stat"), func(key []byte, val uint64) {
		switch string(key) {
		case "nr_periods":
			st.CPU.Periods = val
		case "nr_throttled":
			st.CPU.ThrottledPeriods = val
		case "throttled_time":
			st.CPU.ThrottledNS = val
		case "nr_bursts":
			st.CPU.BurstPeriods = val
		case "burst_time":
			st.CPU.BurstNS = val
		}
	})
}

func cpuV2Stats(r *reader, dir string, st *Stats) {
	lines(r.bytes(dir, "cpu.stat"), func(key []byte, val uint64) {
		switch string(key) {
		case "usage_usec":
			st.CPU.Total = val * 1000
		case "user_usec":
			st.CPU.User = val * 1000
		case "system_usec":
			st.CPU.System = val * 1000
		case "nr_periods":
			st.CPU.Periods = val
		case "nr_throttled":
			st.CPU.ThrottledPeriods = val
		case "throttled_usec":
			st.CPU.ThrottledNS = val * 1000
		case "nr_bursts":
			st.CPU.BurstPeriods = val
		case "burst_usec":
			st.CPU.BurstNS = val * 1000
		}
	})
}

// noLimitV1 is what v1 shows for "no limit": the greatest number of whole pages.
const noLimitV1 = math.MaxInt64 &^ 0xffff

func memoryV1Stats(r *reader, dir string, st *Stats) {
	mem := &st.Memory
	mem.Usage = r.uint(dir, "memory.usage_in_bytes")
	mem.MaxUsage = r.uint(dir, "memory.max_usage_in_bytes")
	if r.last == nil {
		if mem.Limit = r.uint(dir, "memory.limit_in_bytes"); mem.Limit >= noLimitV1 {
			mem.Limit = math.MaxUint64
		}
		if mem.SwapLimit = r.uint(dir, "memory.memsw.limit_in_bytes"); mem.SwapLimit >= noLimitV1 {
			mem.SwapLimit = math.MaxUint64
		}
		mem.Swap = r.uint(dir, "memory.memsw.usage_in_bytes")
		mem.Kernel = r.uint(dir, "memory.kmem.usage_in_bytes")
		mem.KernelTCP = r.uint(dir, "memory.kmem.tcp.usage_in_bytes")
		lines(r.bytes(dir, "memory.oom_control"), func(key []byte, val uint64) {
			if string(key) == "oom_kill" {
				mem.OOMKills = val
			}
		})
	} else {
		mem.rare(&r.last.Memory)
	}
	if mem.Limit != math.MaxUint64 { // without a limit nothing fails for it
		mem.Failcnt = r.uint(dir, "memory.failcnt")
	}
	r.memoryStat(dir, mem, func(key []byte, val uint64) {
		switch string(key) {
		case "total_cache":
			mem.Cache = val
		case "total_rss":
			mem.RSS = val
		case "total_inactive_file":
			mem.InactiveFile = val
		case "total_pgfault":
			mem.PageFaults = val
		case "total_pgmajfault":
			mem.MajorFaults = val
		}
	})
}

// rare takes from the reading before what is not read each time.
func (mem *MemoryStats) rare(last *MemoryStats) {
	mem.Limit, mem.SwapLimit, mem.Swap, mem.Kernel, mem.KernelTCP, mem.OOMKills = last.Limit, last.SwapLimit, last.Swap, last.Kernel, last.KernelTCP, last.OOMKills
}

func memoryV2Stats(r *reader, dir string, st *Stats) {
	mem := &st.Memory
	mem.Usage = r.uint(dir, "memory.current")
	if r.last == nil {
		mem.MaxUsage = r.uint(dir, "memory.peak")
		mem.Limit = r.uint(dir, "memory.max")
		mem.Swap = r.uint(dir, "memory.swap.current")
		mem.SwapLimit = r.uint(dir, "memory.swap.max")
		lines(r.bytes(dir, "memory.events"), func(key []byte, val uint64) {
			switch string(key) {
			case "oom": // what Docker counts as failures on v2
				mem.Failcnt = val
			case "oom_kill":
				mem.OOMKills = val
			}
		})
	} else {
		mem.rare(&r.last.Memory)
		mem.MaxUsage, mem.Failcnt = r.last.Memory.MaxUsage, r.last.Memory.Failcnt
	}
	r.memoryStat(dir, mem, func(key []byte, val uint64) {
		switch string(key) {
		case "file":
			mem.Cache = val
		case "anon":
			mem.RSS = val
		case "inactive_file":
			mem.InactiveFile = val
		case "kernel":
			mem.Kernel = val
		case "sock":
			mem.KernelTCP = val
		case "pgfault":
			mem.PageFaults = val
		case "pgmajfault":
			mem.MajorFaults = val
		}
	})
}

func pidsStats(r *reader, dir string, st *Stats) {
	st.Pids.Current = r.uint(dir, "pids.current")
	if r.last != nil {
		st.Pids.Limit = r.last.Pids.Limit
		return
	}
	if st.Pids.Limit = r.uint(dir, "pids.max"); st.Pids.Limit == math.MaxUint64 {
		st.Pids.Limit = 0
	}
}

func blkioV1Stats(r *reader, dir string, st *Stats) {
	// They count what went to every device, whatever its scheduler.
	st.Blkio.ServiceBytes = blkioLines(r.bytes(dir, "blkio.throttle.io_service_bytes_recursive"))
	st.Blkio.Serviced = blkioLines(r.bytes(dir, "blkio.throttle.io_serviced_recursive"))
}

// blkioLines reads lines of the form "8:0 Read 4096".
func blkioLines(b []byte) (list []BlkioEntry) {
	for len(b) > 0 {
		var line []byte
		line, b, _ = bytes.Cut(b, []byte{'\n'})
		f := bytes.Fields(line)
		if len(f) != 3 {
			continue // the line "Total"
		}
		if major, minor, ok := bytes.Cut(f[0], []byte{':'}); ok {
			list = append(list, BlkioEntry{parseUint(major), parseUint(minor), string(f[1]), parseUint(f[2])})
		}
	}
	return list
}

// blkioV2Stats reads lines of the form "8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6".
func blkioV2Stats(r *reader, dir string, st *Stats) {
	for _, line := range strings.Split(string(r.bytes(dir, "io.stat")), "\n") {
		f := strings.Fields(line)
		if len(f) == 0 {
			continue
		}
		maj, mnr, ok := strings.Cut(f[0], ":")
		if !ok {
			continue
		}
		e := BlkioEntry{Major: parseUint([]byte(maj)), Minor: parseUint([]byte(mnr))}
		for _, kv := range f[1:] {
			key, val, _ := strings.Cut(kv, "=")
			e.Value = parseUint([]byte(val))
			switch key {
			case "rbytes", "rios":
				e.Op = "read"
			case "wbytes", "wios":
				e.Op = "write"
			case "dbytes", "dios":
				e.Op = "discard"
			default:
				continue
			}
			if strings.HasSuffix(key, "bytes") {
				st.Blkio.ServiceBytes = append(st.Blkio.ServiceBytes, e)
			} else {
				st.Blkio.Serviced = append(st.Blkio.Serviced, e)
			}
		}
	}
}

// hugetlbStats looks for the sizes that the machine has.
func hugetlbStats(r *reader, dir string, v2 bool, st *Stats) {
	suffix := ".usage_in_bytes"
	if v2 {
		suffix = ".current"
	}
	for _, size := range hugePageSizes(dir, suffix) {
		h := HugetlbStats{PageSize: size}
		if v2 {
			h.Usage = r.uint(dir, "hugetlb."+size+".current")
			lines(r.bytes(dir, "hugetlb."+size+".events"), func(key []byte, val uint64) {
				if string(key) == "max" {
					h.Failcnt = val
				}
			})
		} else {
			h.Usage = r.uint(dir, "hugetlb."+size+".usage_in_bytes")
			h.MaxUsage = r.uint(dir, "hugetlb."+size+".max_usage_in_bytes")
			h.Failcnt = r.uint(dir, "hugetlb."+size+".failcnt")
		}
		st.Hugetlb = append(st.Hugetlb, h)
	}
}

func hugePageSizes(dir, suffix string) (sizes []string) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil // gone meanwhile: no figures
	}
	for _, e := range entries {
		size, ok := strings.CutPrefix(e.Name(), "hugetlb.")
		if !ok {
			continue
		}
		if size, ok = strings.CutSuffix(size, suffix); ok && !strings.Contains(size, ".") {
			sizes = append(sizes, size)
		}
	}
	return sizes
}

// memoryStat keeps the whole file, and calls fn for each line. The names are those of the reading before, so that only the first one makes strings.
func (r *reader) memoryStat(dir string, mem *MemoryStats, fn func(key []byte, val uint64)) {
	mem.Stat = make([]Counter, 0, max(len(r.stat), 40))
	lines(r.bytes(dir, "memory.stat"), func(key []byte, val uint64) {
		name, i := "", len(mem.Stat)
		if i < len(r.stat) && r.stat[i].Name == string(key) {
			name = r.stat[i].Name
		} else {
			name = string(key)
		}
		mem.Stat = append(mem.Stat, Counter{name, val})
		fn(key, val)
	})
	r.stat = mem.Stat
}

// unsupported are the answers of files that are there, but not for this cgroup.
func unsupported(err error) bool {
	return isErrno(err, unix.EOPNOTSUPP) || isErrno(err, unix.ENODEV)
}
