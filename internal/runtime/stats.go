package runtime

import (
	"context"
	"time"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/linux/cgroup"
	"corten.dev/corten/internal/linux/counters"
	"corten.dev/corten/internal/linux/pidfd"
)

// Stats are the kernel's figures at this moment.
func (ctr *Container) Stats() (Stats, error) {
	s, err := ctr.cg.Stats()
	if err != nil {
		return Stats{}, ctr.wrap("stats of", err)
	}
	return FromCgroup(&s), nil
}

// Details are the kernel's figures that few ask for: swap, kernel memory, processors and huge pages.
func (ctr *Container) Details() (Details, error) {
	d, err := ctr.cg.Details()
	if err != nil {
		return d, ctr.wrap("stats of", err)
	}
	return d, nil
}

// Meter reads the figures of one container again and again, cheaply. It belongs to one goroutine at a time.
type Meter struct {
	ctr *Container
	cg  *cgroup.Meter
}

// Meter makes one that keeps its files open as far as the budget goes.
func (ctr *Container) Meter(keep *counters.Budget) *Meter {
	return &Meter{ctr: ctr, cg: ctr.cg.Meter(keep)}
}

// Read reads the figures as they are now; errs.NotFound when the cgroup is gone.
func (m *Meter) Read() (Stats, error) {
	s, err := m.cg.Read()
	if err != nil {
		return Stats{}, m.ctr.wrap("stats of", err)
	}
	return FromCgroup(&s), nil
}

// Close lets the files go.
func (m *Meter) Close() { m.cg.Close() }

// FromCgroup are the figures of a cgroup that was read.
func FromCgroup(s *cgroup.Stats) Stats {
	return Stats{
		CPUTotal: s.CPU.Total, CPUUser: s.CPU.User, CPUSystem: s.CPU.System, PerCPU: s.CPU.PerCPU,
		Periods: s.CPU.Periods, ThrottledPeriods: s.CPU.ThrottledPeriods, ThrottledNS: s.CPU.ThrottledNS,
		MemoryUsage: s.Memory.Usage, MemoryLimit: s.Memory.Limit, MemoryMax: s.Memory.MaxUsage, MemoryStat: s.Memory.Stat, Failcnt: s.Memory.Failcnt,
		OOMKills: s.Memory.OOMKills, Swap: s.Memory.Swap, Pids: s.Pids.Current, PidsLimit: s.Pids.Limit,
		BlkioServiceBytes: s.Blkio.ServiceBytes, BlkioServiced: s.Blkio.Serviced,
		CPUPressure: s.CPU.Pressure, MemoryPressure: s.Memory.Pressure, IOPressure: s.Blkio.Pressure,
	}
}

// Event is something that happened to a container.
type Event struct {
	Kind string // "oom" or "exit"
	Err  error  // why no more events can be told
}

// Events tells of out-of-memory kills until the container ends or ctx does; the channel is closed then.
func (ctr *Container) Events(ctx context.Context) (<-chan Event, error) {
	if !ctr.alive() {
		return nil, ctr.wrap("events of", errs.New(errs.Conflict, "container not running"))
	}
	out := make(chan Event, 8)
	kills := func() (uint64, error) {
		s, err := ctr.cg.Stats()
		return s.Memory.OOMKills, err
	}
	seen, err := kills()
	if err != nil {
		return nil, ctr.wrap("events of", err)
	}
	tell := func(e Event) {
		select {
		case out <- e:
		case <-ctx.Done(): // nobody may listen any more
		}
	}
	go func() {
		defer close(out)
		for {
			ended := ctr.wait(ctx, 200*time.Millisecond)
			if n, err := kills(); err == nil && n > seen {
				seen = n
				tell(Event{Kind: "oom"})
			}
			if ctx.Err() != nil {
				return
			}
			if ended {
				tell(Event{Kind: "exit"})
				return
			}
		}
	}()
	return out, nil
}

// wait waits a while for the end.
func (ctr *Container) wait(ctx context.Context, d time.Duration) bool {
	if ctx.Err() != nil {
		return false
	}
	return ctr.pidfd == nil || pidfd.Ended(ctr.pidfd, d)
}
