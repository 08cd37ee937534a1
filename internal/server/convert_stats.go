package server

import (
	wire "github.com/moby/moby/api/types/container"

	"corten.dev/corten/internal/engine/containers"
	"corten.dev/corten/internal/runtime"
)

// statsView converts a reading and the one before it.
func statsView(prior, now containers.Stats, version int) wire.StatsResponse {
	out := wire.StatsResponse{ID: now.ID, Name: "/" + now.Name, Read: now.Read, PreRead: prior.Read}
	if version >= 52 {
		out.OSType = "linux"
	}
	if !now.Running {
		return out
	}
	out.CPUStats = cpuStats(now)
	if !prior.Read.IsZero() {
		out.PreCPUStats = cpuStats(prior)
	}
	out.MemoryStats = wire.MemoryStats{
		Usage: now.MemoryUsage, MaxUsage: now.MemoryMax, Stats: now.MemoryStat, Failcnt: now.Failcnt, Limit: now.MemoryLimit,
	}
	out.PidsStats = wire.PidsStats{Current: now.Pids, Limit: now.PidsLimit}
	out.BlkioStats = wire.BlkioStats{IoServiceBytesRecursive: blkio(now.BlkioServiceBytes), IoServicedRecursive: blkio(now.BlkioServiced)}
	if len(now.Networks) > 0 {
		out.Networks = make(map[string]wire.NetworkStats, len(now.Networks))
		for name, n := range now.Networks {
			out.Networks[name] = wire.NetworkStats{
				RxBytes: n.RxBytes, RxPackets: n.RxPackets, RxErrors: n.RxErrors, RxDropped: n.RxDropped,
				TxBytes: n.TxBytes, TxPackets: n.TxPackets, TxErrors: n.TxErrors, TxDropped: n.TxDropped,
			}
		}
	}
	return out
}

func cpuStats(st containers.Stats) wire.CPUStats {
	return wire.CPUStats{
		CPUUsage:       wire.CPUUsage{TotalUsage: st.CPUTotal, PercpuUsage: st.PerCPU, UsageInKernelmode: st.CPUSystem, UsageInUsermode: st.CPUUser},
		SystemUsage:    st.SystemCPU,
		OnlineCPUs:     uint32(st.OnlineCPUs),
		ThrottlingData: wire.ThrottlingData{Periods: st.Periods, ThrottledPeriods: st.ThrottledPeriods, ThrottledTime: st.ThrottledNS},
	}
}

func blkio(list []runtime.BlkioEntry) []wire.BlkioStatEntry {
	var out []wire.BlkioStatEntry
	for _, e := range list {
		out = append(out, wire.BlkioStatEntry{Major: e.Major, Minor: e.Minor, Op: e.Op, Value: e.Value})
	}
	return out
}
