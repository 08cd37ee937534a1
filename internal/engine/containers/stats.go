package containers

import (
	"bytes"
	"context"
	"errors"
	"os"
	goruntime "runtime"
	"strconv"
	"strings"
	"sync"
	"time"

	"corten.dev/corten/internal/errs"
)

// Stats gives a reading a second until ctx ends; of a container that does not run, empty ones, as Docker does.
func (s *Service) Stats(ctx context.Context, ref string, once bool, fn func(prior, now Stats) error) error {
	ctr, err := s.find(ref)
	if err != nil {
		return err
	}
	if once {
		now, err := s.reading(ctx, ctr)
		if err != nil {
			return err
		}
		return fn(Stats{}, now)
	}
	prior, err := s.reading(ctx, ctr)
	if err != nil {
		return err
	}
	if err := fn(Stats{}, prior); err != nil {
		return err
	}
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-s.ctx.Done():
			return nil
		case <-tick.C:
		}
		if s.table.lost(ctr) {
			return nil
		}
		now, err := s.reading(ctx, ctr)
		if err != nil {
			return err
		}
		if err := fn(prior, now); err != nil {
			return err
		}
		prior = now
	}
}

func (s *Service) reading(ctx context.Context, ctr *live) (Stats, error) {
	now := Stats{ID: ctr.id, Name: ctr.record().Name, Read: time.Now().UTC(), OnlineCPUs: goruntime.NumCPU()}
	mon, proc, err := ctr.handles()
	if err != nil {
		return now, nil //nolint:nilerr // it does not run: an empty reading
	}
	if now.Stats, err = proc.Stats(ctx); err != nil {
		if _, _, herr := ctr.handles(); herr != nil || errors.Is(err, errs.NotFound) {
			return now, nil // it ended meanwhile
		}
		return now, err
	}
	now.Running = true
	if now.MemoryLimit == 0 || now.MemoryLimit > hostMemory() { // no limit is what the host has
		now.MemoryLimit = hostMemory()
	}
	now.SystemCPU = systemCPU()
	if ctr.record().Host.NetworkMode != "host" {
		now.Networks = netStats(mon.PID())
	}
	return now, nil
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
	fields := strings.Fields(string(line))
	total := uint64(0)
	for i := 1; i < len(fields) && i <= 8; i++ { // guest time is part of user time
		v, _ := strconv.ParseUint(fields[i], 10, 64)
		total += v
	}
	return total * (1e9 / ticks)
}

// netStats reads the counters of the interfaces in a process's network namespace.
func netStats(pid int) map[string]NetStats {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/net/dev")
	if err != nil {
		return nil
	}
	all := map[string]NetStats{}
	for line := range strings.Lines(string(b)) {
		name, counters, ok := strings.Cut(line, ":")
		f := strings.Fields(counters)
		if !ok || len(f) < 12 {
			continue
		}
		if name = strings.TrimSpace(name); name == "lo" {
			continue
		}
		v := func(i int) uint64 { n, _ := strconv.ParseUint(f[i], 10, 64); return n }
		all[name] = NetStats{
			RxBytes: v(0), RxPackets: v(1), RxErrors: v(2), RxDropped: v(3), TxBytes: v(8), TxPackets: v(9), TxErrors: v(10), TxDropped: v(11),
		}
	}
	return all
}
