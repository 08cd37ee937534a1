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
	linuxhost "corten.dev/corten/internal/linux/host"
	"corten.dev/corten/internal/runtime"
	"corten.dev/corten/internal/task"
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
	look := s.figures.look(s, ctr)
	defer s.figures.leave(ctr, look)
	prior := &Stats{}
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-s.ctx.Done():
			return nil
		case now := <-look.c:
			if s.table.lost(ctr) {
				return nil
			}
			if now.fault != nil {
				return now.fault
			}
			if err := fn(prior, now); err != nil {
				return err
			}
			prior = now
		}
	}
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

// figures reads what containers use, for all who look at any of them: one goroutine, at one pace, and only while somebody looks.
//
//	look ─▶ wake ─▶ the loop reads what is new ──▶ ┌ each second: all that somebody looks at ─▶ everyone's channel
//	leave, exit ─▶ wake ─▶ the loop closes files ─▶ └ nobody is left: the loop ends
//
// The files stay open meanwhile, as far as the engine's limit of open files allows. The loop alone has them.
type figures struct {
	keep *counters.Budget
	wake chan struct{} // holds one

	mu    sync.Mutex // guards what follows
	all   map[*live]*watched
	awake bool
}

// watched is a container that somebody looks at, or did until just now.
type watched struct {
	lookers map[*looker]struct{}
	last    *Stats
	meter   meter // the loop's alone
}

// looker is one who looks. Of several readings that it has no time for it gets the last.
type looker struct {
	c    chan *Stats
	told time.Time // when the last one was read; the loop's alone
}

func newFigures() *figures {
	files, _, err := linuxhost.OpenFiles()
	if err != nil {
		files = 1024
	}
	return &figures{keep: counters.NewBudget(int(min(files/2, 1<<17))), wake: make(chan struct{}, 1), all: map[*live]*watched{}}
}

func (f *figures) look(s *Service, ctr *live) *looker {
	f.mu.Lock()
	defer f.mu.Unlock()
	w := f.all[ctr]
	if w == nil {
		w = &watched{lookers: map[*looker]struct{}{}, meter: meter{ctr: ctr, keep: f.keep}}
		f.all[ctr] = w
	}
	look := &looker{c: make(chan *Stats, 1)}
	w.lookers[look] = struct{}{}
	if !f.awake {
		f.awake = true
		s.background(func(ctx context.Context) { f.loop(ctx, s) })
	}
	f.nudge()
	return look
}

func (f *figures) leave(ctr *live, look *looker) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if w := f.all[ctr]; w != nil {
		delete(w.lookers, look)
		if len(w.lookers) == 0 {
			f.nudge()
		}
	}
}

// nudge has the loop look at who looks.
func (f *figures) nudge() {
	select {
	case f.wake <- struct{}{}:
	default:
	}
}

// ended lets the files of a container go whose run is over: they hold its network.
func (f *figures) ended(ctr *live) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.all[ctr] != nil {
		f.nudge()
	}
}

func (f *figures) last(ctr *live) *Stats {
	f.mu.Lock()
	defer f.mu.Unlock()
	if w := f.all[ctr]; w != nil {
		return w.last
	}
	return nil
}

func (f *figures) loop(ctx context.Context, s *Service) {
	tick := time.NewTicker(pace)
	defer tick.Stop()
	for {
		all := true
		select {
		case <-ctx.Done():
		case <-f.wake:
			all = false
		case <-tick.C:
		}
		round := f.round(ctx.Err() != nil)
		if round == nil {
			return
		}
		host := systemCPU()
		for _, w := range round {
			f.tell(s, w, host, all)
		}
	}
}

// round lists what somebody looks at and lets the rest go; nil when there is nothing left, which ends the loop.
func (f *figures) round(over bool) []*watched {
	f.mu.Lock()
	defer f.mu.Unlock()
	var round []*watched
	for ctr, w := range f.all {
		if len(w.lookers) == 0 || over {
			w.meter.close()
			delete(f.all, ctr)
			continue
		}
		round = append(round, w)
	}
	f.awake = round != nil
	return round
}

// tell reads one container's figures and tells those who wait for them: everyone, or only who has none yet.
func (f *figures) tell(s *Service, w *watched, host uint64, all bool) {
	f.mu.Lock()
	waiting := make([]*looker, 0, len(w.lookers))
	now := time.Now()
	for look := range w.lookers {
		if look.told.IsZero() || all && now.Sub(look.told) >= tooSoon {
			waiting = append(waiting, look)
		}
	}
	f.mu.Unlock()
	if len(waiting) == 0 {
		w.meter.settle()
		return
	}
	var st *Stats
	var err error
	func() {
		defer task.Contain(s.Log, "figures of a container", &err)
		st = w.meter.read(host)
	}()
	if err != nil {
		st = &Stats{fault: err}
	}
	f.mu.Lock()
	w.last = st
	f.mu.Unlock()
	for _, look := range waiting {
		look.told = now
		select {
		case <-look.c: // it had no time for the one before
		default:
		}
		look.c <- st // the loop alone sends
	}
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
