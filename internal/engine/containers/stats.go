package containers

import (
	"bytes"
	"context"
	"errors"
	"os"
	goruntime "runtime"
	"strconv"
	"sync"
	"time"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/linux/counters"
	"corten.dev/corten/internal/runtime"
)

// pace is how often the figures of a container are read while somebody looks at them; tooSoon is what is no second reading: a share of the processor over so short a time
// says nothing.
const (
	pace    = time.Second
	tooSoon = pace / 2
)

// Stats gives a reading at once and one a second until ctx ends; of a container that does not run, empty ones, as Docker does. Readings are shared by all who look, and must not
// be changed.
func (s *Service) Stats(ctx context.Context, ref string, once bool, fn func(prior, now *Stats) error) error {
	ctr, err := s.find(ref)
	if err != nil {
		return err
	}
	if once {
		now, err := s.reading(ctr)
		if err != nil {
			return err
		}
		return fn(&Stats{}, now)
	}
	return s.figures.watch(ctx, s, ctr, fn)
}

// Readings are the figures of all containers that run, for those who count everything: those that somebody looks at as they were read last, others read now.
func (s *Service) Readings(context.Context) []*Stats {
	var list []*Stats
	for _, ctr := range s.table.all() {
		if !ctr.record().State.Status.Live() {
			continue
		}
		now := s.figures.last(ctr)
		if now == nil || time.Since(now.Read) > pace+tooSoon {
			var err error
			if now, err = s.reading(ctr); err != nil {
				s.Log.Warn("figures of a container", "container", ctr.record().Name, "error", err)
				continue
			}
		}
		if now.Running {
			list = append(list, now)
		}
	}
	return list
}

// reading reads once, without leaving anything open.
func (s *Service) reading(ctr *live) (*Stats, error) {
	m := meter{ctr: ctr}
	defer m.close()
	now := m.read(systemCPU())
	return now, now.fault
}

// meter reads the figures of a container, through its runs.
type meter struct {
	ctr  *live
	keep *counters.Budget // nil: nothing stays open
	proc Process          // of the run that the files are of
	cg   Meter
	net  *counters.Kept // nil: it has the host's network
}

func (m *meter) close() {
	if m.cg != nil {
		m.cg.Close()
	}
	if m.net != nil {
		m.net.Close()
	}
	m.proc, m.cg, m.net = nil, nil, nil
}

// settle has the files of the run that is now, or none; it tells whether there is one.
func (m *meter) settle() bool {
	mon, proc, err := m.ctr.handles()
	if err != nil {
		m.close()
		return false
	}
	if proc == m.proc {
		return true
	}
	m.close()
	m.proc, m.cg = proc, proc.Meter(m.keep)
	if m.ctr.record().Host.NetworkMode != "host" {
		m.net = counters.New("/proc/"+strconv.Itoa(mon.PID())+"/net/dev", m.keep)
	}
	return true
}

// read reads once; host is the processor time of the whole host.
func (m *meter) read(host uint64) *Stats {
	now := &Stats{ID: m.ctr.id, Name: m.ctr.record().Name, Read: time.Now().UTC(), OnlineCPUs: goruntime.NumCPU(), CgroupV2: cgroup2()}
	if !m.settle() {
		return now
	}
	figures, err := m.cg.Read()
	if err != nil {
		if m.settle() && m.cg != nil && !errors.Is(err, errs.NotFound) {
			now.fault = err
		}
		return now // else it ended meanwhile
	}
	now.Stats, now.Running, now.SystemCPU = figures, true, host
	if now.MemoryLimit == 0 || now.MemoryLimit > hostMemory() { // no limit is what the host has
		now.MemoryLimit = hostMemory()
	}
	if m.net != nil {
		var buf [8192]byte
		if n, err := m.net.Read(buf[:]); err == nil { // a process that ended has none
			now.Networks = netStats(buf[:n])
		}
	}
	return now
}

// hostMemory is the memory of this host in bytes.
var hostMemory = sync.OnceValue(func() uint64 { return readHost().memory * 1024 })

// systemCPU is the processor time of the whole host in nanoseconds.
func systemCPU() uint64 {
	f, err := os.Open("/proc/stat")
	if err != nil {
		return 0
	}
	defer f.Close()
	buf := make([]byte, 512)
	n, _ := f.Read(buf)
	line, _, _ := bytes.Cut(buf[:n], []byte{'\n'})
	total := uint64(0)
	for i, field := range bytes.Fields(line) {
		if i >= 1 && i <= 8 { // guest time is part of user time
			total += decimal(field)
		}
	}
	return total * (1e9 / ticks)
}

// netStats reads the table of the interfaces of a network namespace (/proc/PID/net/dev), without the loopback.
func netStats(table []byte) (all []NetStats) {
	for len(table) > 0 {
		var line []byte
		line, table, _ = bytes.Cut(table, []byte{'\n'})
		name, numbers, ok := bytes.Cut(line, []byte{':'})
		if !ok {
			continue // the heading
		}
		var v [12]uint64
		n := 0
		for field := range bytes.FieldsSeq(numbers) {
			if n == len(v) {
				break
			}
			v[n] = decimal(field)
			n++
		}
		if name = bytes.TrimSpace(name); n < len(v) || string(name) == "lo" {
			continue
		}
		all = append(all, NetStats{
			Name: string(name), RxBytes: v[0], RxPackets: v[1], RxErrors: v[2], RxDropped: v[3], TxBytes: v[8], TxPackets: v[9], TxErrors: v[10], TxDropped: v[11],
		})
	}
	return all
}

// decimal reads a number of the kernel's; anything else is zero.
func decimal(b []byte) (n uint64) {
	for _, c := range b {
		if c < '0' || c > '9' {
			return 0
		}
		n = n*10 + uint64(c-'0')
	}
	return n
}

// Meter reads the figures of a run again and again ([runtime.Meter]).
type Meter interface {
	Read() (runtime.Stats, error)
	Close()
}
