package metrics

import (
	"context"
	"math"
	"os"
	"runtime"
	"strconv"
	"strings"
	"syscall"

	"corten.dev/corten/internal/engine/containers"
	engineruntime "corten.dev/corten/internal/runtime"
)

// engine tells about the engine itself, by dockerd's names.
func (o *Options) engine(ctx context.Context, p *page) error {
	i, err := o.System.Info(ctx)
	if err != nil {
		return err
	}
	p.family("engine_daemon_engine", info, "", "The engine and the system that it runs on")
	p.add(labels("version", o.Version, "commit", o.Commit, "architecture", i.Architecture, "graphdriver", i.Driver, "kernel", i.KernelVersion, "os", i.OperatingSystem,
		"os_type", i.OSType, "os_version", i.OSVersion, "daemon_id", i.ID), 1)
	p.family("engine_daemon_engine_cpus_cpus", gauge, "cpus", "Processors of the host")
	p.add("", float64(i.NCPU))
	p.family("engine_daemon_engine_memory_bytes", gauge, "bytes", "Memory of the host")
	p.add("", float64(i.MemTotal))
	p.family("engine_daemon_container_states_containers", gauge, "containers", "Containers in each state")
	for _, s := range []struct {
		state string
		n     int
	}{{"paused", i.Paused}, {"running", i.Running}, {"stopped", i.Stopped}} {
		p.add(labels("state", s.state), float64(s.n))
	}
	p.family("corten_images", gauge, "", "Images in the store")
	p.add("", float64(i.Images))
	p.family("engine_daemon_events", counter, "", "Events that happened since the engine started")
	p.add("", float64(o.Events()))
	own(p)
	return nil
}

// own tells what the engine's process uses.
func own(p *page) {
	var use syscall.Rusage
	if syscall.Getrusage(syscall.RUSAGE_SELF, &use) == nil {
		p.family("process_cpu_seconds", counter, "seconds", "Processor time of the engine")
		p.add("", float64(use.Utime.Nano()+use.Stime.Nano())/1e9)
	}
	if b, err := os.ReadFile("/proc/self/statm"); err == nil {
		if f := strings.Fields(string(b)); len(f) > 1 {
			if pages, err := strconv.ParseUint(f[1], 10, 64); err == nil {
				p.family("process_resident_memory_bytes", gauge, "bytes", "Memory of the engine")
				p.add("", float64(pages*uint64(os.Getpagesize())))
			}
		}
	}
	p.family("go_goroutines", gauge, "", "Goroutines of the engine")
	p.add("", float64(runtime.NumGoroutine()))
}

// states tells about all containers, also those that do not run.
func states(p *page, views []containers.View) {
	all := make([]string, len(views))
	for i := range views {
		all[i] = labels("id", views[i].ID, "name", views[i].Name, "image", views[i].ImageRef)
	}
	p.family("corten_container_state", gauge, "", "1 for the state that a container is in")
	for i := range views {
		p.add(all[i]+","+labels("state", string(views[i].State.Status)), 1)
	}
	p.family("corten_container_restarts", counter, "", "How often the restart policy started a container again")
	for i := range views {
		p.add(all[i], float64(views[i].RestartCount))
	}
	p.family("container_start_time_seconds", gauge, "seconds", "When a container was started, since the epoch")
	for i := range views {
		if at := views[i].State.StartedAt; !at.IsZero() {
			p.add(all[i], float64(at.UnixMilli())/1000)
		}
	}
}

// figure is a family with one sample for each container.
type figure struct {
	name string
	kind kind
	unit string
	help string
	of   func(st *containers.Stats) (value float64, known bool)
}

func always(fn func(st *containers.Stats) uint64) func(*containers.Stats) (float64, bool) {
	return func(st *containers.Stats) (float64, bool) { return float64(fn(st)), true }
}

func seconds(fn func(st *containers.Stats) uint64) func(*containers.Stats) (float64, bool) {
	return func(st *containers.Stats) (float64, bool) { return float64(fn(st)) / 1e9, true }
}

// counterOf finds a line of memory.stat by its names on v1 and v2.
func counterOf(v1, v2 string) func(*containers.Stats) (float64, bool) {
	return func(st *containers.Stats) (float64, bool) {
		name := v1
		if st.CgroupV2 {
			name = v2
		}
		for _, c := range st.MemoryStat {
			if c.Name == name {
				return float64(c.Value), true
			}
		}
		return 0, false
	}
}

var inactive = counterOf("total_inactive_file", "inactive_file")

// workingSet is what cannot be given back, as `stats` shows it.
func workingSet(st *containers.Stats) (float64, bool) {
	cold, _ := inactive(st)
	return max(float64(st.MemoryUsage)-cold, 0), true
}

func cpuPressure(st *containers.Stats) engineruntime.Pressure    { return st.CPUPressure }
func memoryPressure(st *containers.Stats) engineruntime.Pressure { return st.MemoryPressure }
func ioPressure(st *containers.Stats) engineruntime.Pressure     { return st.IOPressure }

// waited is a pressure in seconds, where the kernel counts it.
func waited(of func(*containers.Stats) engineruntime.Pressure, all bool) func(*containers.Stats) (float64, bool) {
	return func(st *containers.Stats) (float64, bool) {
		p := of(st)
		ns := p.Some
		if all {
			ns = p.Full
		}
		return float64(ns) / 1e9, p.Known
	}
}

// figures are those of cadvisor.
func figures() []figure {
	return []figure{
		{"container_cpu_usage_seconds", counter, "seconds", "Processor time", seconds(func(st *containers.Stats) uint64 { return st.CPUTotal })},
		{"container_cpu_user_seconds", counter, "seconds", "Processor time outside the kernel", seconds(func(st *containers.Stats) uint64 { return st.CPUUser })},
		{"container_cpu_system_seconds", counter, "seconds", "Processor time in the kernel", seconds(func(st *containers.Stats) uint64 { return st.CPUSystem })},
		{"container_cpu_cfs_periods", counter, "", "Periods of the processor limit that went by", always(func(st *containers.Stats) uint64 { return st.Periods })},
		{"container_cpu_cfs_throttled_periods", counter, "", "Periods in which the limit was reached", always(func(st *containers.Stats) uint64 { return st.ThrottledPeriods })},
		{"container_cpu_cfs_throttled_seconds", counter, "seconds", "Time that was waited for the next period", seconds(func(st *containers.Stats) uint64 { return st.ThrottledNS })},
		{"container_memory_usage_bytes", gauge, "bytes", "Memory in use, with all of the page cache", always(func(st *containers.Stats) uint64 { return st.MemoryUsage })},
		{"container_memory_working_set_bytes", gauge, "bytes", "Memory in use, without inactive page cache", workingSet},
		{"container_memory_cache", gauge, "", "Page cache in bytes", counterOf("total_cache", "file")},
		{"container_memory_rss", gauge, "", "Anonymous memory in bytes", counterOf("total_rss", "anon")},
		{"container_memory_max_usage_bytes", gauge, "bytes", "Most memory that was in use", func(st *containers.Stats) (float64, bool) { return float64(st.MemoryMax), st.MemoryMax > 0 }},
		{"container_memory_failcnt", counter, "", "How often the memory limit was hit", always(func(st *containers.Stats) uint64 { return st.Failcnt })},
		{"container_oom_events", counter, "", "Processes that were killed because memory ran out", always(func(st *containers.Stats) uint64 { return st.OOMKills })},
		{"container_spec_memory_limit_bytes", gauge, "bytes", "Memory limit; the host's memory where there is none", always(func(st *containers.Stats) uint64 { return st.MemoryLimit })},
		{"container_threads", gauge, "", "Threads", always(func(st *containers.Stats) uint64 { return st.Pids })},
		{"container_threads_max", gauge, "", "Most threads that are allowed", func(st *containers.Stats) (float64, bool) {
			return float64(st.PidsLimit), st.PidsLimit > 0 && st.PidsLimit < math.MaxInt64
		}},
		{"container_pressure_cpu_waiting_seconds", counter, "seconds", "Time in which some task waited for a processor", waited(cpuPressure, false)},
		{"container_pressure_cpu_stalled_seconds", counter, "seconds", "Time in which all tasks waited for a processor", waited(cpuPressure, true)},
		{"container_pressure_memory_waiting_seconds", counter, "seconds", "Time in which some task waited for memory", waited(memoryPressure, false)},
		{"container_pressure_memory_stalled_seconds", counter, "seconds", "Time in which all tasks waited for memory", waited(memoryPressure, true)},
		{"container_pressure_io_waiting_seconds", counter, "seconds", "Time in which some task waited for a disk", waited(ioPressure, false)},
		{"container_pressure_io_stalled_seconds", counter, "seconds", "Time in which all tasks waited for a disk", waited(ioPressure, true)},
		{"container_last_seen", gauge, "", "When the figures were read, since the epoch", func(st *containers.Stats) (float64, bool) { return float64(st.Read.UnixMilli()) / 1000, true }},
	}
}

// usage tells what the containers use that run.
func usage(p *page, views []containers.View, readings []*containers.Stats) {
	byID := make(map[string]*containers.View, len(views))
	for i := range views {
		byID[views[i].ID] = &views[i]
	}
	all := make([]string, len(readings))
	for i, st := range readings {
		image := ""
		if view := byID[st.ID]; view != nil {
			image = view.ImageRef
		}
		all[i] = labels("id", st.ID, "name", st.Name, "image", image)
	}
	for _, f := range figures() {
		p.family(f.name, f.kind, f.unit, f.help)
		for i, st := range readings {
			if value, known := f.of(st); known {
				p.add(all[i], value)
			}
		}
	}
	traffic(p, byID, readings, all)
	disks(p, readings, all)
}

// traffic tells what went through the interfaces, each with the network that it is on.
func traffic(p *page, byID map[string]*containers.View, readings []*containers.Stats, all []string) {
	ends := make([][]string, len(readings))
	for i, st := range readings {
		for _, n := range st.Networks {
			network := ""
			if view := byID[st.ID]; view != nil && view.Sandbox != nil {
				for _, ep := range view.Sandbox.Endpoints {
					if ep.Interface == n.Name {
						network = ep.Network
					}
				}
			}
			ends[i] = append(ends[i], all[i]+","+labels("interface", n.Name, "network", network))
		}
	}
	for _, f := range []struct {
		name, unit, help string
		of               func(n *containers.NetStats) uint64
	}{
		{"container_network_receive_bytes", "bytes", "Bytes received", func(n *containers.NetStats) uint64 { return n.RxBytes }},
		{"container_network_receive_packets", "packets", "Packets received", func(n *containers.NetStats) uint64 { return n.RxPackets }},
		{"container_network_receive_errors", "errors", "Errors while receiving", func(n *containers.NetStats) uint64 { return n.RxErrors }},
		{"container_network_receive_packets_dropped", "", "Packets dropped while receiving", func(n *containers.NetStats) uint64 { return n.RxDropped }},
		{"container_network_transmit_bytes", "bytes", "Bytes sent", func(n *containers.NetStats) uint64 { return n.TxBytes }},
		{"container_network_transmit_packets", "packets", "Packets sent", func(n *containers.NetStats) uint64 { return n.TxPackets }},
		{"container_network_transmit_errors", "errors", "Errors while sending", func(n *containers.NetStats) uint64 { return n.TxErrors }},
		{"container_network_transmit_packets_dropped", "", "Packets dropped while sending", func(n *containers.NetStats) uint64 { return n.TxDropped }},
	} {
		p.family(f.name, counter, f.unit, f.help)
		for i, st := range readings {
			for j := range st.Networks {
				p.add(ends[i][j], float64(f.of(&st.Networks[j])))
			}
		}
	}
}

// disks tells what went to and from block devices.
func disks(p *page, readings []*containers.Stats, all []string) {
	for _, f := range []struct {
		name, unit, help, op string
		of                   func(st *containers.Stats) []engineruntime.BlkioEntry
	}{
		{"container_fs_reads_bytes", "bytes", "Bytes read from block devices", "read", func(st *containers.Stats) []engineruntime.BlkioEntry { return st.BlkioServiceBytes }},
		{"container_fs_writes_bytes", "bytes", "Bytes written to block devices", "write", func(st *containers.Stats) []engineruntime.BlkioEntry { return st.BlkioServiceBytes }},
		{"container_fs_reads", "", "Reads from block devices", "read", func(st *containers.Stats) []engineruntime.BlkioEntry { return st.BlkioServiced }},
		{"container_fs_writes", "", "Writes to block devices", "write", func(st *containers.Stats) []engineruntime.BlkioEntry { return st.BlkioServiced }},
	} {
		p.family(f.name, counter, f.unit, f.help)
		for i, st := range readings {
			for _, e := range f.of(st) {
				if strings.EqualFold(e.Op, f.op) {
					p.add(all[i]+","+labels("device", strconv.FormatUint(e.Major, 10)+":"+strconv.FormatUint(e.Minor, 10)), float64(e.Value))
				}
			}
		}
	}
}

func (o *Options) networks(ctx context.Context, p *page) error {
	list, err := o.Networks.List(ctx, nil)
	if err != nil {
		return err
	}
	p.family("corten_network", info, "", "Networks")
	for _, nw := range list {
		p.add(labels("id", nw.ID, "name", nw.Name, "driver", nw.Driver), 1)
	}
	p.family("corten_network_containers", gauge, "containers", "Running containers on a network")
	for _, nw := range list {
		p.add(labels("name", nw.Name), float64(len(nw.Containers)))
	}
	return nil
}

// volumes tells about volumes; what they hold only on request, since that has them counted.
func (o *Options) volumes(ctx context.Context, p *page, sizes bool) error {
	list, err := o.Volumes.Known(ctx) // nobody who scrapes waits for a plugin
	if err != nil {
		return err
	}
	p.family("corten_volume", info, "", "Volumes")
	for _, vol := range list {
		p.add(labels("name", vol.Name, "driver", vol.Driver), 1)
	}
	p.family("corten_volume_containers", gauge, "containers", "Containers that use a volume")
	for _, vol := range list {
		p.add(labels("name", vol.Name), float64(o.Volumes.Users(vol.Name)))
	}
	if !sizes {
		return nil
	}
	names := make([]string, len(list))
	for i, vol := range list {
		names[i] = vol.Name
	}
	p.family("corten_volume_size_bytes", gauge, "bytes", "What a volume holds, as it was counted last")
	for i, n := range o.System.VolumeSizes(ctx, names) {
		if n >= 0 {
			p.add(labels("name", names[i]), float64(n))
		}
	}
	return nil
}
