package server

import (
	"encoding/json"
	"strconv"
	"time"

	"corten.dev/corten/internal/engine/containers"
	"corten.dev/corten/internal/runtime"
)

// appendStats writes a reading, and the one before it, as the API's StatsResponse and a newline. It writes by hand what the library would find out by reflection: hundreds of
// containers are streamed each second, to everyone who looks.
func appendStats(b []byte, prior, now *containers.Stats, version int) []byte {
	w := jsonWriter{b}
	w.open('{')
	w.text("id", now.ID)
	w.text("name", "/"+now.Name)
	if version >= 52 {
		w.text("os_type", "linux")
	}
	idle := &containers.Stats{} // of a container that does not run, Docker knows not even the time
	if !now.Running {
		prior, now = idle, idle
	}
	w.time("read", now.Read)
	w.cpu("cpu_stats", now)
	w.memory(now)
	w.networks(now.Networks)
	w.begin("pids_stats", '{')
	w.some("current", now.Pids)
	w.some("limit", now.PidsLimit)
	w.close('}')
	w.blkio(now)
	w.number("num_procs", 0)
	w.begin("storage_stats", '{')
	w.close('}')
	w.time("preread", prior.Read)
	w.cpu("precpu_stats", prior)
	w.close('}')
	return append(w.b, '\n')
}

func (w *jsonWriter) cpu(name string, st *containers.Stats) {
	w.begin(name, '{')
	w.begin("cpu_usage", '{')
	w.number("total_usage", st.CPUTotal)
	if len(st.PerCPU) > 0 {
		w.begin("percpu_usage", '[')
		for _, n := range st.PerCPU {
			w.comma()
			w.b = strconv.AppendUint(w.b, n, 10)
		}
		w.close(']')
	}
	w.number("usage_in_kernelmode", st.CPUSystem)
	w.number("usage_in_usermode", st.CPUUser)
	w.close('}')
	w.some("system_cpu_usage", st.SystemCPU)
	w.some("online_cpus", uint64(st.OnlineCPUs))
	w.begin("throttling_data", '{')
	w.number("periods", st.Periods)
	w.number("throttled_periods", st.ThrottledPeriods)
	w.number("throttled_time", st.ThrottledNS)
	w.close('}')
	w.close('}')
}

func (w *jsonWriter) memory(st *containers.Stats) {
	w.begin("memory_stats", '{')
	w.some("usage", st.MemoryUsage)
	if !st.CgroupV2 {
		w.some("max_usage", st.MemoryMax)
	}
	if len(st.MemoryStat) > 0 {
		w.begin("stats", '{')
		for _, c := range st.MemoryStat {
			w.number(c.Name, c.Value)
		}
		w.close('}')
	}
	w.some("failcnt", st.Failcnt)
	w.some("limit", st.MemoryLimit)
	w.close('}')
}

func (w *jsonWriter) networks(list []containers.NetStats) {
	if len(list) == 0 {
		return
	}
	w.begin("networks", '{')
	for i := range list {
		n := &list[i]
		w.begin(n.Name, '{')
		w.number("rx_bytes", n.RxBytes)
		w.number("rx_packets", n.RxPackets)
		w.number("rx_errors", n.RxErrors)
		w.number("rx_dropped", n.RxDropped)
		w.number("tx_bytes", n.TxBytes)
		w.number("tx_packets", n.TxPackets)
		w.number("tx_errors", n.TxErrors)
		w.number("tx_dropped", n.TxDropped)
		w.close('}')
	}
	w.close('}')
}

// blkio writes the lists that Linux still keeps; of the others there is nothing to count any more, which v1 shows as empty and v2 as null.
func (w *jsonWriter) blkio(st *containers.Stats) {
	null := st.CgroupV2 || !st.Running
	w.begin("blkio_stats", '{')
	w.entries("io_service_bytes_recursive", st.BlkioServiceBytes, null)
	w.entries("io_serviced_recursive", st.BlkioServiced, null)
	for _, name := range [...]string{"io_queue_recursive", "io_service_time_recursive", "io_wait_time_recursive", "io_merged_recursive", "io_time_recursive", "sectors_recursive"} {
		w.entries(name, nil, null)
	}
	w.close('}')
}

func (w *jsonWriter) entries(name string, list []runtime.BlkioEntry, null bool) {
	if len(list) == 0 && null {
		w.name(name)
		w.b = append(w.b, "null"...)
		return
	}
	w.begin(name, '[')
	for i := range list {
		e := &list[i]
		w.comma()
		w.open('{')
		w.number("major", e.Major)
		w.number("minor", e.Minor)
		w.text("op", e.Op)
		w.number("value", e.Value)
		w.close('}')
	}
	w.close(']')
}

// jsonWriter writes JSON piece by piece.
type jsonWriter struct{ b []byte }

// comma stands before everything but the first of its kind.
func (w *jsonWriter) comma() {
	if n := len(w.b); n > 0 && w.b[n-1] != '{' && w.b[n-1] != '[' {
		w.b = append(w.b, ',')
	}
}

func (w *jsonWriter) open(c byte)  { w.b = append(w.b, c) }
func (w *jsonWriter) close(c byte) { w.b = append(w.b, c) }

func (w *jsonWriter) name(name string) {
	w.comma()
	w.quote(name)
	w.b = append(w.b, ':')
}

func (w *jsonWriter) begin(name string, c byte) {
	w.name(name)
	w.open(c)
}

func (w *jsonWriter) number(name string, n uint64) {
	w.name(name)
	w.b = strconv.AppendUint(w.b, n, 10)
}

// some leaves a zero out.
func (w *jsonWriter) some(name string, n uint64) {
	if n != 0 {
		w.number(name, n)
	}
}

func (w *jsonWriter) text(name, s string) {
	w.name(name)
	w.quote(s)
}

func (w *jsonWriter) time(name string, t time.Time) {
	w.name(name)
	w.b = append(w.b, '"')
	w.b = t.AppendFormat(w.b, time.RFC3339Nano)
	w.b = append(w.b, '"')
}

// quote writes a string. Nearly all are plain; a container may have given its interface a name that is not.
func (w *jsonWriter) quote(s string) {
	for i := 0; i < len(s); i++ {
		if c := s[i]; c < ' ' || c > '~' || c == '"' || c == '\\' {
			if text, err := json.Marshal(s); err == nil { // a string always can
				w.b = append(w.b, text...)
			}
			return
		}
	}
	w.b = append(w.b, '"')
	w.b = append(w.b, s...)
	w.b = append(w.b, '"')
}
