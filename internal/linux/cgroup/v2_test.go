package cgroup

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/linux/counters"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// fakeV2 is a plain directory that looks like a v2 tree: files appear when they are written.
func fakeV2(t *testing.T) *Host {
	t.Helper()
	h := &Host{mode: V2, v2: t.TempDir(), openFlags: unix.O_CREAT | unix.O_APPEND}
	h.v2Controllers = []string{"cpuset", "cpu", "io", "memory", "hugetlb", "pids", "rdma", "misc"}
	return h
}

// put writes the files that the kernel would have made.
func put(t *testing.T, dir string, files map[string]string) {
	t.Helper()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, body := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(body), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

func fakeManager(t *testing.T, h *Host, files map[string]string) *Manager {
	t.Helper()
	m, err := New(Options{ID: "c", Path: "/p/c", Host: h})
	if err != nil {
		t.Fatal(err)
	}
	put(t, m.v2, files)
	return m
}

func TestV2Files(t *testing.T) {
	p64, u64, i64, u16 := ptr[int64], ptr[uint64], ptr[int64], ptr[uint16]
	dev := func(rate uint64) []specs.LinuxThrottleDevice {
		d := specs.LinuxThrottleDevice{Rate: rate}
		d.Major, d.Minor = 8, 0
		return []specs.LinuxThrottleDevice{d}
	}
	weights := []specs.LinuxWeightDevice{{Weight: u16(500)}}
	weights[0].Major, weights[0].Minor = 8, 16
	for name, c := range map[string]struct {
		res   specs.LinuxResources
		start map[string]string
		want  map[string]string
	}{
		"memory and swap":   {specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: p64(100), Swap: p64(250), Reservation: p64(50)}}, nil, map[string]string{"memory.max": "100", "memory.swap.max": "150", "memory.low": "50"}},
		"no swap":           {specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: p64(100), Swap: p64(100)}}, nil, map[string]string{"memory.max": "100", "memory.swap.max": "0"}},
		"unlimited":         {specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: p64(-1), Swap: p64(-1)}}, nil, map[string]string{"memory.max": "max", "memory.swap.max": "max"}},
		"swap alone":        {specs.LinuxResources{Memory: &specs.LinuxMemory{Swap: p64(300)}}, map[string]string{"memory.max": "100\n"}, map[string]string{"memory.swap.max": "200"}},
		"zeros say nothing": {specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: p64(0), Swap: p64(0)}, CPU: &specs.LinuxCPU{Shares: u64(0), Quota: i64(0)}}, nil, map[string]string{}},
		"shares least":      {specs.LinuxResources{CPU: &specs.LinuxCPU{Shares: u64(2)}}, nil, map[string]string{"cpu.weight": "1"}},
		"shares usual":      {specs.LinuxResources{CPU: &specs.LinuxCPU{Shares: u64(1024)}}, nil, map[string]string{"cpu.weight": "100"}},
		"shares most":       {specs.LinuxResources{CPU: &specs.LinuxCPU{Shares: u64(262144)}}, nil, map[string]string{"cpu.weight": "10000"}},
		"quota":             {specs.LinuxResources{CPU: &specs.LinuxCPU{Quota: i64(50000), Period: u64(100000)}}, nil, map[string]string{"cpu.max": "50000 100000"}},
		"quota alone":       {specs.LinuxResources{CPU: &specs.LinuxCPU{Quota: i64(50000)}}, nil, map[string]string{"cpu.max": "50000"}},
		"quota off":         {specs.LinuxResources{CPU: &specs.LinuxCPU{Quota: i64(-1), Period: u64(20000)}}, nil, map[string]string{"cpu.max": "max 20000"}},
		"idle":              {specs.LinuxResources{CPU: &specs.LinuxCPU{Idle: i64(1), Shares: u64(512)}}, nil, map[string]string{"cpu.idle": "1"}},
		"cpuset":            {specs.LinuxResources{CPU: &specs.LinuxCPU{Cpus: "0-1", Mems: "0"}}, nil, map[string]string{"cpuset.cpus": "0-1", "cpuset.mems": "0"}},
		"pids":              {specs.LinuxResources{Pids: &specs.LinuxPids{Limit: p64(100)}}, nil, map[string]string{"pids.max": "100"}},
		"pids off":          {specs.LinuxResources{Pids: &specs.LinuxPids{Limit: p64(-1)}}, nil, map[string]string{"pids.max": "max"}},
		"io weight":         {specs.LinuxResources{BlockIO: &specs.LinuxBlockIO{Weight: u16(1000)}}, nil, map[string]string{"io.weight": "10000"}},
		"io bfq weight":     {specs.LinuxResources{BlockIO: &specs.LinuxBlockIO{Weight: u16(500), WeightDevice: weights}}, map[string]string{"io.bfq.weight": ""}, map[string]string{"io.bfq.weight": "5008:16 500"}},
		"io limits":         {specs.LinuxResources{BlockIO: &specs.LinuxBlockIO{ThrottleReadBpsDevice: dev(1000), ThrottleWriteIOPSDevice: dev(0)}}, nil, map[string]string{"io.max": "8:0 rbps=10008:0 wiops=max"}},
		"huge pages":        {specs.LinuxResources{HugepageLimits: []specs.LinuxHugepageLimit{{Pagesize: "2MB", Limit: 4096}}}, nil, map[string]string{"hugetlb.2MB.max": "4096", "hugetlb.2MB.rsvd.max": "4096"}},
		"rdma":              {specs.LinuxResources{Rdma: map[string]specs.LinuxRdma{"mlx5_1": {HcaHandles: ptr[uint32](3)}}}, nil, map[string]string{"rdma.max": "mlx5_1 hca_handle=3"}},
		"unified":           {specs.LinuxResources{Unified: map[string]string{"memory.high": "70", "io.max": "8:0 rbps=1\n8:0 wbps=2"}}, nil, map[string]string{"memory.high": "70", "io.max": "8:0 rbps=18:0 wbps=2"}},
	} {
		t.Run(name, func(t *testing.T) {
			m := fakeManager(t, fakeV2(t), c.start)
			if err := m.Set(&c.res); err != nil {
				t.Fatal(err)
			}
			entries, err := os.ReadDir(m.v2)
			if err != nil {
				t.Fatal(err)
			}
			got := make(map[string]string)
			for _, e := range entries {
				if body, err := os.ReadFile(filepath.Join(m.v2, e.Name())); err != nil {
					t.Fatal(err)
				} else if _, there := c.start[e.Name()]; !there || string(body) != c.start[e.Name()] {
					got[e.Name()] = string(body)
				}
			}
			if fmt.Sprint(got) != fmt.Sprint(c.want) {
				t.Errorf("wrote %q, want %q", got, c.want)
			}
		})
	}
}

func TestV2Refused(t *testing.T) {
	p64 := ptr[int64]
	for text, res := range map[string]specs.LinuxResources{
		//lint:ignore SA1019 users still ask for it
		"kernel memory":                    {Memory: &specs.LinuxMemory{Kernel: p64(1)}},
		"swappiness":                       {Memory: &specs.LinuxMemory{Swappiness: ptr(uint64(60))}},
		"disable the out-of-memory killer": {Memory: &specs.LinuxMemory{DisableOOMKiller: ptr(true)}},
		"less than the memory limit":       {Memory: &specs.LinuxMemory{Limit: p64(100), Swap: p64(50)}},
		"needs a memory limit":             {Memory: &specs.LinuxMemory{Swap: p64(50)}},
		"bytes are in use":                 {Memory: &specs.LinuxMemory{Limit: p64(100), CheckBeforeUpdate: ptr(true)}},
		"realtime":                         {CPU: &specs.LinuxCPU{RealtimeRuntime: p64(5)}},
		"leaf weight":                      {BlockIO: &specs.LinuxBlockIO{LeafWeight: ptr(uint16(10))}},
		"no cgroup controller net_cls":     {Network: &specs.LinuxNetwork{ClassID: ptr(uint32(5))}},
		"not a size":                       {HugepageLimits: []specs.LinuxHugepageLimit{{Pagesize: "../x"}}},
		"not a file of a cgroup":           {Unified: map[string]string{"../../x.y": "1"}},
		"no cgroup controller unknown":     {Unified: map[string]string{"unknown.max": "1"}},
		"unknown type":                     {Devices: []specs.LinuxDeviceCgroup{{Type: "z"}}},
		"only r, w and m":                  {Devices: []specs.LinuxDeviceCgroup{{Type: "c", Access: "x"}}},
	} {
		m := fakeManager(t, fakeV2(t), map[string]string{"memory.max": "max\n", "memory.current": "500\n"})
		if err := m.Set(&res); err == nil || !strings.Contains(err.Error(), text) {
			t.Errorf("%s: %v", text, err)
		}
	}
}

func TestV2Enable(t *testing.T) {
	h := fakeV2(t)
	put(t, h.v2, map[string]string{"cgroup.subtree_control": "cpu memory\n"})
	put(t, h.v2+"/p", map[string]string{"cgroup.subtree_control": ""})
	m := fakeManager(t, h, map[string]string{"cgroup.controllers": "\n"})
	h.v2Controllers = []string{"cpu", "memory", "pids"}
	if err := m.enable(nil); err != nil {
		t.Fatal(err)
	}
	for p, want := range map[string]string{h.v2: "cpu memory\n+pids", h.v2 + "/p": "+cpu +memory +pids"} {
		if got, err := os.ReadFile(p + "/cgroup.subtree_control"); err != nil || string(got) != want {
			t.Errorf("%s: %q, %v; want %q", p, got, err, want)
		}
	}
	if exists(m.v2, "cgroup.subtree_control") {
		t.Error("the container's own cgroup hands controllers on")
	}
}

func TestV2Stats(t *testing.T) {
	m := fakeManager(t, fakeV2(t), map[string]string{
		"cpu.stat":       "usage_usec 30\nuser_usec 20\nsystem_usec 10\nnr_periods 5\nnr_throttled 2\nthrottled_usec 7\n",
		"memory.current": "1000\n", "memory.max": "max\n", "memory.peak": "2000\n", "memory.swap.current": "5\n", "memory.swap.max": "6\n",
		"memory.stat":   "anon 300\nfile 400\nkernel 50\ninactive_file 100\npgfault 9\npgmajfault 1\n",
		"memory.events": "low 0\nhigh 0\nmax 4\noom 3\noom_kill 2\n",
		"pids.current":  "7\n", "pids.max": "max\n",
		"io.stat":             "8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=0 dios=0\n253:1 \n",
		"cpu.pressure":        "some avg10=0.00 avg60=0.00 avg300=0.00 total=2\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=1\n",
		"memory.pressure":     "some avg10=0.00 avg60=0.00 avg300=0.00 total=3\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=0\n",
		"hugetlb.2MB.current": "4096\n", "hugetlb.2MB.events": "max 3\n", "hugetlb.2MB.rsvd.current": "0\n",
	})
	st, err := m.Stats()
	if err != nil {
		t.Fatal(err)
	}
	want := "{CPU:{Total:30000 User:20000 System:10000 PerCPU:[] Periods:5 ThrottledPeriods:2 ThrottledNS:7000 BurstPeriods:0 BurstNS:0 Pressure:{Some:2000 Full:1000 Known:true}} " +
		"Memory:{Usage:1000 MaxUsage:2000 Limit:18446744073709551615 Failcnt:3 Cache:400 RSS:300 InactiveFile:100 Swap:5 SwapLimit:6 Kernel:50 KernelTCP:0 PageFaults:9 MajorFaults:1 OOMKills:2 Pressure:{Some:3000 Full:0 Known:true} Stat:[{Name:anon Value:300} {Name:file Value:400} {Name:kernel Value:50} {Name:inactive_file Value:100} {Name:pgfault Value:9} {Name:pgmajfault Value:1}]} " +
		"Pids:{Current:7 Limit:0} Blkio:{ServiceBytes:[{Major:8 Minor:0 Op:read Value:1} {Major:8 Minor:0 Op:write Value:2} {Major:8 Minor:0 Op:discard Value:0}] " +
		"Serviced:[{Major:8 Minor:0 Op:read Value:3} {Major:8 Minor:0 Op:write Value:4} {Major:8 Minor:0 Op:discard Value:0}] Pressure:{Some:0 Full:0 Known:false}} Hugetlb:[{PageSize:2MB Usage:4096 MaxUsage:0 Failcnt:3}]}"
	if got := fmt.Sprintf("%+v", st); got != want {
		t.Errorf("figures\n%s\nwant\n%s", got, want)
	}
	// A meter says the same, again and again, and what changed.
	keep := counters.NewBudget(100)
	meter := m.Meter(keep)
	for i := range 2 {
		again, err := meter.Read()
		again.Hugetlb = st.Hugetlb
		if err != nil || !reflect.DeepEqual(again, st) || keep.Used() == 0 {
			t.Errorf("reading %d: %+v, %v, %d files open", i, again, err, keep.Used())
		}
	}
	if err := os.WriteFile(m.v2+"/pids.current", []byte("9\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if again, err := meter.Read(); err != nil || again.Pids.Current != 9 {
		t.Errorf("%+v, %v", again.Pids, err)
	}
	meter.Close()
	if keep.Used() != 0 {
		t.Errorf("%d files stay open", keep.Used())
	}
	if killed, err := m.OOMKilled(); err != nil || !killed {
		t.Errorf("oom: %v, %v", killed, err)
	}
	if m.OOMEvents() != m.v2+"/memory.events" {
		t.Error(m.OOMEvents())
	}
}

// v2Only is this host as one that has the v2 tree alone, which is real, if poor in controllers.
func v2Only(t testing.TB) *Host {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	h, err := Discover()
	if err != nil {
		t.Fatal(err)
	}
	if h.v2 == "" {
		t.Skip("needs a cgroup v2 tree")
	}
	return &Host{mode: V2, v2: h.v2, v2Controllers: h.v2Controllers}
}

func managedV2(t testing.TB, name string) *Manager {
	t.Helper()
	h := v2Only(t)
	before, err := readFile(h.v2, "cgroup.subtree_control")
	if err != nil {
		t.Fatal(err)
	}
	m, err := New(Options{Path: testParent() + "/" + name, ID: name, Host: h})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Destroy(); err != nil {
			t.Error(err)
		}
		if err := RemoveParent(h, testParent()); err != nil {
			t.Error(err)
		}
		after, err := readFile(h.v2, "cgroup.subtree_control")
		if err != nil {
			t.Error(err)
		}
		for _, c := range strings.Fields(after) { // hand back what the test switched on
			if !slices.Contains(strings.Fields(before), c) {
				if err := m.writeFile(h.v2, "cgroup.subtree_control", "-"+c); err != nil {
					t.Error(err)
				}
			}
		}
	})
	return m
}

func TestV2Life(t *testing.T) {
	m := managedV2(t, "v2life")
	res := &specs.LinuxResources{Devices: defaultDevices()}
	if slices.Contains(m.host.v2Controllers, "hugetlb") {
		res.HugepageLimits = []specs.LinuxHugepageLimit{{Pagesize: "2MB", Limit: 4 << 20}}
	}
	if err := m.Create(res); err != nil {
		t.Fatal(err)
	}
	if len(res.HugepageLimits) > 0 {
		if got := read(t, m, "hugetlb", "hugetlb.2MB.max"); got != "4194304" {
			t.Errorf("hugetlb.2MB.max is %s", got)
		}
	}
	if files, err := m.JoinFiles(); err != nil || len(files) != 0 {
		t.Errorf("join files on v2: %v, %v", files, err)
	}
	cmd := inside(t, m, "sleep 60 & sleep 60 & wait")
	waitPids(t, m, 3)
	for range 2 {
		if err := m.Freeze(); err != nil {
			t.Fatal(err)
		}
		if frozen, err := m.Frozen(); err != nil || !frozen {
			t.Fatalf("frozen: %v, %v", frozen, err)
		}
		if err := m.Thaw(); err != nil {
			t.Fatal(err)
		}
	}
	if err := m.Freeze(); err != nil {
		t.Fatal(err)
	}
	again, err := Load(m.host, m.State())
	if err != nil {
		t.Fatal(err)
	}
	if err := again.Kill(unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // killed
	if err := again.Destroy(); err != nil {
		t.Fatal(err)
	}
}

// The device program forbids and allows as told, and an update replaces it.
func TestV2Devices(t *testing.T) {
	m := managedV2(t, "v2dev")
	dir := t.TempDir()
	for name, minor := range map[string]uint32{"null": 3, "full": 7, "kmsg": 11} {
		if err := unix.Mknod(filepath.Join(dir, name), unix.S_IFCHR|0o666, int(unix.Mkdev(1, minor))); err != nil {
			t.Fatal(err)
		}
	}
	try := func(name string) error {
		cmd := inside(t, m, "exec 2>/dev/null; : < "+filepath.Join(dir, name))
		return cmd.Wait()
	}
	if err := m.Create(&specs.LinuxResources{Devices: defaultDevices()}); err != nil {
		t.Fatal(err)
	}
	if try("null") != nil || try("full") != nil || try("kmsg") == nil {
		t.Errorf("null %v, full %v, kmsg %v", try("null"), try("full"), try("kmsg"))
	}
	rules := append(defaultDevices()[:4], specs.LinuxDeviceCgroup{Allow: true, Type: "c", Major: ptr(int64(1)), Minor: ptr(int64(11)), Access: "r"})
	if err := m.Set(&specs.LinuxResources{Devices: rules}); err != nil {
		t.Fatal(err)
	}
	if try("null") != nil || try("full") == nil || try("kmsg") != nil {
		t.Errorf("after the update: null %v, full %v, kmsg %v", try("null"), try("full"), try("kmsg"))
	}
}

func TestMissingController(t *testing.T) {
	h := fakeV2(t)
	h.v2Controllers = []string{"pids"}
	err := fakeManager(t, h, nil).Set(&specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: ptr(int64(1))}})
	if !errors.Is(err, errs.Unavailable) || !strings.Contains(err.Error(), "no cgroup controller memory") {
		t.Error(err)
	}
	m := fakeManager(t, h, nil)
	m.rootless = true
	err = m.Set(&specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: ptr(int64(1))}})
	if !errors.Is(err, errs.Forbidden) || !strings.Contains(err.Error(), "not delegated") {
		t.Error(err)
	}
}

func FuzzMounts(f *testing.F) {
	f.Add("36 25 0:31 / /sys/fs/cgroup/memory rw,relatime shared:1 - cgroup cgroup rw,memory\n")
	f.Fuzz(func(t *testing.T, table string) {
		p := filepath.Join(t.TempDir(), "mountinfo")
		if err := os.WriteFile(p, []byte(table), 0o600); err != nil {
			t.Fatal(err)
		}
		_, _ = v1Mounts(p) // must not panic; a line too long is an error
	})
}

func BenchmarkV2(b *testing.B) {
	m := managedV2(b, "v2bench")
	if err := m.Create(nil); err != nil {
		b.Fatal(err)
	}
	b.Run("create+destroy", func(b *testing.B) {
		for b.Loop() {
			one, err := New(Options{Path: testParent() + "/one", ID: "one", Host: m.host})
			if err != nil {
				b.Fatal(err)
			}
			if err := one.Create(nil); err != nil {
				b.Fatal(err)
			}
			if err := one.Destroy(); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("devices", func(b *testing.B) {
		for b.Loop() {
			if err := m.Set(&specs.LinuxResources{Devices: defaultDevices()}); err != nil {
				b.Fatal(err)
			}
		}
	})
}
