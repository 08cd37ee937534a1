package server

import (
	"bytes"
	"encoding/json"
	"math"
	"reflect"
	"testing"
	"time"

	wire "github.com/moby/moby/api/types/container"

	"corten.dev/corten/internal/engine/containers"
	"corten.dev/corten/internal/runtime"
)

// statsView is what the API's type says that a reading is; what is written by hand must mean the same.
func statsView(prior, now *containers.Stats, version int) wire.StatsResponse {
	out := wire.StatsResponse{ID: now.ID, Name: "/" + now.Name}
	if version >= 52 {
		out.OSType = "linux"
	}
	if !now.Running {
		return out
	}
	out.Read, out.PreRead, out.CPUStats, out.PreCPUStats = now.Read, prior.Read, cpuView(now), cpuView(prior)
	out.MemoryStats = wire.MemoryStats{Usage: now.MemoryUsage, MaxUsage: now.MemoryMax, Failcnt: now.Failcnt, Limit: now.MemoryLimit}
	for _, c := range now.MemoryStat {
		if out.MemoryStats.Stats == nil {
			out.MemoryStats.Stats = map[string]uint64{}
		}
		out.MemoryStats.Stats[c.Name] = c.Value
	}
	out.PidsStats = wire.PidsStats{Current: now.Pids, Limit: now.PidsLimit}
	for _, n := range now.Networks {
		if out.Networks == nil {
			out.Networks = map[string]wire.NetworkStats{}
		}
		out.Networks[n.Name] = wire.NetworkStats{RxBytes: n.RxBytes, RxPackets: n.RxPackets, RxErrors: n.RxErrors, RxDropped: n.RxDropped,
			TxBytes: n.TxBytes, TxPackets: n.TxPackets, TxErrors: n.TxErrors, TxDropped: n.TxDropped}
	}
	var none []wire.BlkioStatEntry
	if now.CgroupV2 {
		out.MemoryStats.MaxUsage = 0
	} else {
		none = []wire.BlkioStatEntry{}
	}
	list := func(entries []runtime.BlkioEntry) []wire.BlkioStatEntry {
		all := none
		for _, e := range entries {
			all = append(all, wire.BlkioStatEntry{Major: e.Major, Minor: e.Minor, Op: e.Op, Value: e.Value})
		}
		return all
	}
	out.BlkioStats = wire.BlkioStats{IoServiceBytesRecursive: list(now.BlkioServiceBytes), IoServicedRecursive: list(now.BlkioServiced), IoQueuedRecursive: none, IoServiceTimeRecursive: none,
		IoWaitTimeRecursive: none, IoMergedRecursive: none, IoTimeRecursive: none, SectorsRecursive: none}
	return out
}

func cpuView(st *containers.Stats) wire.CPUStats {
	return wire.CPUStats{
		CPUUsage:    wire.CPUUsage{TotalUsage: st.CPUTotal, PercpuUsage: st.PerCPU, UsageInKernelmode: st.CPUSystem, UsageInUsermode: st.CPUUser},
		SystemUsage: st.SystemCPU, OnlineCPUs: uint32(st.OnlineCPUs),
		ThrottlingData: wire.ThrottlingData{Periods: st.Periods, ThrottledPeriods: st.ThrottledPeriods, ThrottledTime: st.ThrottledNS},
	}
}

func fullReading() *containers.Stats {
	return &containers.Stats{ID: "abc", Name: "web", Read: time.Date(2026, 11, 22, 10, 0, 0, 123456789, time.UTC), Running: true, OnlineCPUs: 4, SystemCPU: math.MaxUint64,
		Stats: runtime.Stats{CPUTotal: 1, CPUUser: 2, CPUSystem: 3, PerCPU: []uint64{4, 5}, Periods: 6, ThrottledPeriods: 7, ThrottledNS: 8, MemoryUsage: 9, MemoryLimit: 10, MemoryMax: 11, Failcnt: 12,
			MemoryStat: []runtime.Counter{{Name: "cache", Value: 13}, {Name: "total_inactive_file", Value: 14}}, Pids: 15, PidsLimit: 16,
			BlkioServiceBytes: []runtime.BlkioEntry{{Major: 8, Minor: 1, Op: "Read", Value: 17}, {Major: 8, Minor: 1, Op: "Total", Value: 17}}},
		Networks: []containers.NetStats{{Name: "eth0", RxBytes: 1, RxPackets: 2, RxErrors: 3, RxDropped: 4, TxBytes: 5, TxPackets: 6, TxErrors: 7, TxDropped: 8}, {Name: "a\"\\\n<é", RxBytes: 1}}}
}

func TestStatsAsTheTypeSays(t *testing.T) {
	v2, idle, empty := fullReading(), fullReading(), &containers.Stats{}
	v2.CgroupV2, idle.Running = true, false
	for name, c := range map[string]struct{ prior, now *containers.Stats }{
		"first": {empty, fullReading()}, "next": {fullReading(), fullReading()}, "v2": {v2, v2}, "idle": {empty, idle}, "bare": {empty, &containers.Stats{Running: true}},
	} {
		for _, version := range []int{24, 52} {
			line := appendStats(nil, c.prior, c.now, version)
			if bytes.Count(line, []byte("\n")) != 1 || line[len(line)-1] != '\n' {
				t.Errorf("%s: not one line", name)
			}
			var got, want wire.StatsResponse
			dec := json.NewDecoder(bytes.NewReader(line))
			dec.DisallowUnknownFields()
			if err := dec.Decode(&got); err != nil {
				t.Fatalf("%s: %v in %s", name, err, line)
			}
			text, err := json.Marshal(statsView(c.prior, c.now, version))
			if err != nil {
				t.Fatal(err)
			}
			if err := json.Unmarshal(text, &want); err != nil {
				t.Fatal(err)
			}
			if !reflect.DeepEqual(got, want) {
				t.Errorf("%s at 1.%d:\n%s\n%s", name, version, line, text)
			}
		}
	}
}

func BenchmarkStats(b *testing.B) {
	st := fullReading()
	var line []byte
	b.ReportAllocs()
	for b.Loop() {
		line = appendStats(line[:0], st, st, 50)
	}
}
