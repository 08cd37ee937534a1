package proof

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"corten.dev/corten/internal/enginetest"
)

// kernelView reads what the kernel says of a running container.
type kernelView struct {
	t   *testing.T
	pid string
	v2  bool
	dir map[string]string // of each controller; "" is v2
}

func viewOf(t *testing.T, e *enginetest.Engine, name string) kernelView {
	t.Helper()
	v := kernelView{t: t, pid: e.Corten("inspect", "-f", "{{.State.Pid}}", name), dir: map[string]string{}}
	_, err := os.Stat("/sys/fs/cgroup/cgroup.controllers")
	v.v2 = err == nil
	table, err := os.ReadFile("/proc/" + v.pid + "/cgroup")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(table)) {
		f := strings.SplitN(strings.TrimSpace(line), ":", 3)
		for _, controller := range strings.Split(f[1], ",") {
			v.dir[controller] = filepath.Join("/sys/fs/cgroup", f[1], f[2])
		}
	}
	return v
}

// file is a file of the container's cgroup, by its name on v1 ("memory.limit_in_bytes"), or on v2.
func (v kernelView) file(v1, v2 string) string {
	v.t.Helper()
	controller, _, _ := strings.Cut(v1, ".")
	path := v.dir[controller] + "/" + v1
	if v.v2 {
		path = v.dir[""] + "/" + v2
	}
	b, err := os.ReadFile(path)
	if err != nil {
		v.t.Fatal(err)
	}
	return strings.TrimSpace(string(b))
}

func (v kernelView) wants(v1, on1, v2, on2 string) {
	v.t.Helper()
	want := on1
	if v.v2 {
		want = on2
	}
	if got := v.file(v1, v2); got != want {
		v.t.Errorf("%s (%s) is %q, want %q", v1, v2, got, want)
	}
}

// Every limit of run, and of update while it runs, is what the kernel has; what an update does not name stays, and a refused one changes nothing.
func TestLimitsAsTheKernelHasThem(t *testing.T) {
	e := enginetest.Start(t)
	e.Corten("run", "-d", "--name", "lim", "-m", "64m", "--memory-swap", "96m", "--memory-reservation", "32m", "-c", "512", "--cpu-period", "50000", "--cpu-quota", "25000", "--cpuset-cpus", "0",
		"--cpuset-mems", "0", "--pids-limit", "50", "--oom-score-adj", "500", "--ulimit", "nofile=100:200", "--shm-size", "1m", "--sysctl", "kernel.shmmax=65536", "--sysctl", "net.ipv4.ip_forward=1",
		enginetest.Busybox, "sleep", "600")
	v := viewOf(t, e, "lim")
	v.wants("memory.limit_in_bytes", "67108864", "memory.max", "67108864")
	v.wants("memory.memsw.limit_in_bytes", "100663296", "memory.swap.max", "33554432")
	v.wants("memory.soft_limit_in_bytes", "33554432", "memory.low", "33554432")
	v.wants("cpu.shares", "512", "cpu.weight", "20")
	v.wants("cpu.cfs_quota_us", "25000", "cpu.max", "25000 50000")
	v.wants("cpuset.cpus", "0", "cpuset.cpus", "0")
	v.wants("cpuset.mems", "0", "cpuset.mems", "0")
	v.wants("pids.max", "50", "pids.max", "50")
	if b, err := os.ReadFile("/proc/" + v.pid + "/oom_score_adj"); err != nil || string(b) != "500\n" {
		t.Errorf("oom_score_adj is %q, %v", b, err)
	}
	if b, err := os.ReadFile("/proc/" + v.pid + "/limits"); err != nil || !strings.Contains(strings.Join(strings.Fields(string(b)), " "), "Max open files 100 200 files") {
		t.Errorf("limits: %s, %v", b, err)
	}
	if out := e.Corten("exec", "lim", "sh", "-c", "cat /proc/sys/net/ipv4/ip_forward /proc/sys/kernel/shmmax; grep /dev/shm /proc/mounts"); !strings.HasPrefix(out, "1\n65536\n") || !strings.Contains(out, "size=1024k") {
		t.Error(out)
	}

	e.Corten("update", "-m", "128m", "--memory-swap", "256m", "--cpu-quota", "40000", "--pids-limit", "-1", "lim")
	v.wants("memory.limit_in_bytes", "134217728", "memory.max", "134217728")
	v.wants("memory.memsw.limit_in_bytes", "268435456", "memory.swap.max", "134217728")
	v.wants("cpu.cfs_quota_us", "40000", "cpu.max", "40000 50000")
	v.wants("cpu.shares", "512", "cpu.weight", "20")
	v.wants("pids.max", "max", "pids.max", "max")
	before := e.Corten("inspect", "-f", "{{json .HostConfig}}", "lim")
	// The last one's memory is taken by the kernel before its shares are refused; it has to be taken back.
	for _, bad := range [][]string{{"-m", "512m"}, {"--cpuset-cpus", "4095"}, {"--cpus", "1"}, {"-m", "100m", "--memory-swap", "200m", "-c", "300000"}} {
		if _, err := e.Try(append(append([]string{"update"}, bad...), "lim")...); err == nil && (bad[0] != "-m" || !v.v2) {
			t.Errorf("update %q was taken", bad)
		}
	}
	if !v.v2 { // v2 has a greatest weight for all greater shares
		if after := e.Corten("inspect", "-f", "{{json .HostConfig}}", "lim"); after != before {
			t.Errorf("a refused update changed the record:\n%s\n%s", before, after)
		}
		v.wants("memory.limit_in_bytes", "134217728", "", "")
		v.wants("memory.memsw.limit_in_bytes", "268435456", "", "")
		v.wants("cpu.shares", "512", "", "")
	}
	e.Corten("rm", "-f", "lim")
}

// The figures of the API are the kernel's, those of the metrics page too; and a stream goes on through an update, a restart and to the end of its container.
func TestStatsAsTheKernelHasThem(t *testing.T) {
	addr := enginetest.Addr(t)
	e := enginetest.Start(t, "--metrics-addr", addr)
	e.Corten("run", "-d", "--name", "fig", "-m", "64m", "--pids-limit", "30", "--cpus", "0.5", enginetest.Busybox, "sh", "-c", "i=0; while [ $i -lt 5000 ]; do i=$((i+1)); done; exec sleep 600")
	v := viewOf(t, e, "fig")
	for end := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
		if b, err := os.ReadFile("/proc/" + v.pid + "/cmdline"); err == nil && strings.HasPrefix(string(b), "sleep") {
			break
		}
		if time.Now().After(end) {
			t.Fatal("the container does not come to rest")
		}
	}
	client := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", strings.TrimPrefix(e.Socket(), "unix://"))
	}}}
	defer client.CloseIdleConnections()
	type reading struct {
		Read, PreRead time.Time
		CPU           struct {
			Usage struct {
				Total  uint64   `json:"total_usage"`
				PerCPU []uint64 `json:"percpu_usage"`
				User   uint64   `json:"usage_in_usermode"`
			} `json:"cpu_usage"`
			System     uint64 `json:"system_cpu_usage"`
			Throttling struct{ Periods uint64 }
		} `json:"cpu_stats"`
		PreCPU struct {
			System uint64 `json:"system_cpu_usage"`
		} `json:"precpu_stats"`
		Memory struct {
			Usage, Limit uint64
			Stats        map[string]uint64
		} `json:"memory_stats"`
		Pids     struct{ Current, Limit uint64 } `json:"pids_stats"`
		Networks map[string]map[string]uint64
	}
	one := func(query string) (r reading) {
		t.Helper()
		resp, err := client.Get("http://corten/v1.50/containers/fig/stats?" + query)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		if err := json.NewDecoder(resp.Body).Decode(&r); err != nil {
			t.Fatal(err)
		}
		return r
	}
	number := func(s string) uint64 {
		n, err := strconv.ParseUint(s, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	usage := func() uint64 {
		if !v.v2 {
			return number(v.file("cpuacct.usage", ""))
		}
		var us uint64
		if _, err := fmt.Sscanf(v.file("", "cpu.stat"), "usage_usec %d", &us); err != nil {
			t.Fatal(err)
		}
		return us * 1000
	}
	low := usage()
	got := one("stream=0&one-shot=1")
	if high := usage(); got.CPU.Usage.Total < low-min(low, 1000) || got.CPU.Usage.Total > high {
		t.Errorf("processor time %d, the kernel says %d to %d", got.CPU.Usage.Total, low, high)
	}
	// Pages come and go between the two readings: the kernel counts them in batches for each processor.
	if want := number(v.file("memory.usage_in_bytes", "memory.current")); max(got.Memory.Usage, want)-min(got.Memory.Usage, want) > 2<<20 || got.Memory.Limit != 64<<20 {
		t.Errorf("memory %d of %d, the kernel says %d", got.Memory.Usage, got.Memory.Limit, want)
	}
	for line := range strings.Lines(v.file("memory.stat", "memory.stat")) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), " ")
		if n, ok := got.Memory.Stats[name]; !ok || (strings.HasSuffix(name, "inactive_file") || name == "rss" || name == "anon") && max(n, number(value))-min(n, number(value)) > 2<<20 {
			t.Errorf("%s is %d (%v), the kernel says %s", name, n, ok, value)
		}
	}
	if got.Pids.Current != number(v.file("pids.current", "pids.current")) || got.Pids.Limit != 30 {
		t.Errorf("processes %+v", got.Pids)
	}
	table, err := os.ReadFile("/proc/" + v.pid + "/net/dev")
	if err != nil {
		t.Fatal(err)
	}
	for name, n := range got.Networks {
		_, line, ok := strings.Cut(string(table), name+":")
		if f := strings.Fields(line); !ok || len(f) < 16 || n["tx_packets"] > number(f[9]) || n["rx_packets"] > number(f[1]) {
			t.Errorf("%s: %v, the kernel says %q", name, n, f)
		}
	}
	if len(got.Networks) != 1 || got.PreCPU.System != 0 {
		t.Errorf("networks %v, before %d", got.Networks, got.PreCPU.System)
	}
	// Without one-shot there is a reading before it, about a second ago.
	if got = one("stream=0"); got.PreCPU.System == 0 || got.CPU.System <= got.PreCPU.System || got.Read.Sub(got.PreRead) < 400*time.Millisecond {
		t.Errorf("%+v", got)
	}
	scrape(t, addr, "fig")
	streamThrough(t, e, client)
}

// scrape looks for a container's figures on the page.
func scrape(t *testing.T, addr, name string) {
	t.Helper()
	resp, err := http.Get("http://" + addr + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text := new(strings.Builder)
	if _, err := io.Copy(text, resp.Body); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"container_memory_usage_bytes{", "container_cpu_usage_seconds_total{", "container_spec_memory_limit_bytes{", "corten_container_state{"} {
		found := false
		for line := range strings.Lines(text.String()) {
			found = found || strings.HasPrefix(line, want) && strings.Contains(line, `name="`+name+`"`)
		}
		if !found {
			t.Errorf("no %s of %s in\n%s", want, name, text)
		}
	}
}

// streamThrough reads a stream while its container is updated, restarted and removed.
func streamThrough(t *testing.T, e *enginetest.Engine, client *http.Client) {
	t.Helper()
	resp, err := client.Get("http://corten/v1.50/containers/fig/stats?stream=1")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	dec := json.NewDecoder(resp.Body)
	wait := func(what string, ok func(limit, pids uint64) bool) {
		t.Helper()
		end := time.Now().Add(time.Minute)
		for time.Now().Before(end) {
			var r struct {
				Memory struct{ Limit uint64 }   `json:"memory_stats"`
				Pids   struct{ Current uint64 } `json:"pids_stats"`
			}
			if err := dec.Decode(&r); err != nil {
				t.Fatalf("%s: %v", what, err)
			}
			if ok(r.Memory.Limit, r.Pids.Current) {
				return
			}
		}
		t.Errorf("%s: not seen within 30 s", what)
	}
	wait("first", func(limit, pids uint64) bool { return limit == 64<<20 && pids == 1 })
	e.Corten("update", "-m", "32m", "fig")
	wait("update", func(limit, _ uint64) bool { return limit == 32<<20 })
	e.Corten("kill", "fig")
	wait("end", func(_, pids uint64) bool { return pids == 0 })
	e.Corten("start", "fig")
	wait("another run", func(limit, pids uint64) bool { return limit == 32<<20 && pids >= 1 })
	e.Corten("rm", "-f", "fig")
	for {
		var r json.RawMessage
		if dec.Decode(&r) != nil {
			return // the stream ends with its container
		}
	}
}

// A device of a description works inside, is bound to its rule, and stays after an update; its hooks run.
func TestDevicesByDescription(t *testing.T) {
	dir := t.TempDir()
	spec := `{"cdiVersion":"0.7.0","kind":"vendor.com/thing","devices":[{"name":"zero","containerEdits":{"env":["THING=zero"],
	 "deviceNodes":[{"path":"/dev/thing","hostPath":"/dev/zero","permissions":"r"}],
	 "mounts":[{"hostPath":"` + dir + `","containerPath":"/thing","options":["ro","rbind"]}],
	 "hooks":[{"hookName":"createRuntime","path":"/bin/sh","args":["sh","-c","cat >` + dir + `/hooked"],"env":["PATH=/bin:/usr/bin"]}]}}]}`
	if err := os.WriteFile(dir+"/thing.json", []byte(spec), 0o644); err != nil {
		t.Fatal(err)
	}
	e := enginetest.Start(t, "--cdi-spec-dir", dir)
	out := e.Corten("run", "--rm", "--device", "vendor.com/thing=zero", enginetest.Busybox, "sh", "-c", "echo $THING; ls /thing; head -c 3 /dev/thing | od -An -tx1; echo x 2>&1 >/dev/thing")
	if !strings.HasPrefix(out, "zero\nhooked\nthing.json\n 00 00 00") {
		t.Error(out)
	}
	if b, err := os.ReadFile(dir + "/hooked"); err != nil || !strings.Contains(string(b), `"status":"creat`) {
		t.Errorf("the hook got %q, %v", b, err)
	}
	if info := e.Corten("info", "-f", "{{range .DiscoveredDevices}}{{.ID}}{{end}} {{.CDISpecDirs}}"); info != "vendor.com/thing=zero ["+dir+"]" {
		t.Error(info)
	}
	for _, c := range []struct{ flag, value, want string }{
		{"--device", "vendor.com/thing=none", "CDI device injection failed: unresolvable CDI devices vendor.com/thing=none"},
		{"--gpus", "all", `could not select device driver "" with capabilities: [[gpu]]`},
	} {
		if _, err := e.Try("run", "--rm", c.flag, c.value, enginetest.Busybox, "true"); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s %s: %v", c.flag, c.value, err)
		}
	}
}
