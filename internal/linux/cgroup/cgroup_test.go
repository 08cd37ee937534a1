package cgroup

import (
	"errors"
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"corten.dev/corten/internal/errs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

func ptr[T any](v T) *T { return &v }

// testParent is a folder of cgroups of this test process alone.
func testParent() string { return fmt.Sprintf("/corten-test-%d", os.Getpid()) }

// managed makes a manager under the test's own parent, and removes both at the end.
func managed(t testing.TB, name string) *Manager {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	m, err := New(Options{Path: testParent() + "/" + name, ID: filepath.Base(name)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Destroy(); err != nil {
			t.Error(err)
		}
		if err := RemoveParent(nil, testParent()); err != nil {
			t.Error(err)
		}
		for _, p := range m.all() {
			if exists(filepath.Dir(p), filepath.Base(p)) {
				t.Errorf("%s is left over", p)
			}
		}
	})
	return m
}

// defaultDevices are the rules that a container gets if nothing is said.
func defaultDevices() []specs.LinuxDeviceCgroup {
	rules := []specs.LinuxDeviceCgroup{
		{Access: "rwm"},
		{Allow: true, Type: "c", Access: "m"},
		{Allow: true, Type: "b", Access: "m"},
	}
	for _, d := range [][2]int64{{1, 3}, {1, 5}, {1, 7}, {1, 8}, {1, 9}, {5, 0}, {5, 1}, {5, 2}, {10, 200}, {136, -1}} {
		rules = append(rules, specs.LinuxDeviceCgroup{Allow: true, Type: "c", Major: ptr(d[0]), Minor: ptr(d[1]), Access: "rwm"})
	}
	return rules
}

// inside starts a shell script in the cgroup: cloned into the v2 directory, and joined to the others by itself.
func inside(t testing.TB, m *Manager, script string) *exec.Cmd {
	t.Helper()
	files, err := m.JoinFiles()
	if err != nil {
		t.Fatal(err)
	}
	join := ""
	for i := range files {
		join += fmt.Sprintf("echo 0 >&%d || exit 99; ", i+3)
	}
	for i := range files {
		if i+3 < 10 {
			join += fmt.Sprintf("exec %d>&-; ", i+3)
		}
	}
	cmd := exec.Command("/bin/bash", "-c", join+script)
	cmd.ExtraFiles = files
	cmd.Stderr = os.Stderr
	dir, err := m.V2Dir()
	if err != nil {
		t.Fatal(err)
	}
	if dir != nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(dir.Fd())}
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for _, f := range append(files, dir) {
		if f != nil {
			if err := f.Close(); err != nil {
				t.Fatal(err)
			}
		}
	}
	t.Cleanup(func() {
		if cmd.ProcessState == nil {
			_ = m.Kill(unix.SIGKILL) // the test failed before it waited
			_ = cmd.Wait()           // as above
		}
	})
	return cmd
}

func read(t testing.TB, m *Manager, controller, file string) string {
	t.Helper()
	dir, _ := m.dirOf(controller)
	s, err := readFile(dir, file)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestLifeOnThisHost(t *testing.T) {
	m := managed(t, "life")
	res := &specs.LinuxResources{
		Devices: defaultDevices(),
		Memory:  &specs.LinuxMemory{Limit: ptr(int64(64 << 20)), Swap: ptr(int64(128 << 20)), Reservation: ptr(int64(32 << 20))},
		CPU:     &specs.LinuxCPU{Shares: ptr(uint64(512)), Quota: ptr(int64(50000)), Period: ptr(uint64(100000)), Cpus: "0"},
		Pids:    &specs.LinuxPids{Limit: ptr(int64(50))},
	}
	if err := m.Create(res); err != nil {
		t.Fatal(err)
	}
	if m.Mode() != V2 {
		for _, want := range [][3]string{
			{"memory", "memory.limit_in_bytes", "67108864"}, {"memory", "memory.memsw.limit_in_bytes", "134217728"},
			{"cpu", "cpu.shares", "512"}, {"cpu", "cpu.cfs_quota_us", "50000"}, {"cpuset", "cpuset.cpus", "0"}, {"pids", "pids.max", "50"},
		} {
			if got := read(t, m, want[0], want[1]); got != want[2] {
				t.Errorf("%s is %s, want %s", want[1], got, want[2])
			}
		}
		list := strings.Fields(read(t, m, "devices", "devices.list"))
		if !slices.Contains(list, "1:3") || slices.Contains(list, "a") {
			t.Errorf("device rules: %v", list)
		}
	} else if got := read(t, m, "memory", "memory.swap.max"); got != "67108864" {
		t.Errorf("memory.swap.max is %s", got)
	}

	cmd := inside(t, m, "sleep 60 & sleep 60 & wait")
	waitPids(t, m, 3)
	own, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range strings.Split(strings.TrimSpace(string(own)), "\n") {
		if !strings.HasSuffix(line, ":"+m.Path()) {
			t.Errorf("the process is not in every hierarchy: %s", line)
		}
	}

	if err := m.Freeze(); err != nil {
		t.Fatal(err)
	}
	if frozen, err := m.Frozen(); err != nil || !frozen {
		t.Fatalf("frozen: %v, %v", frozen, err)
	}
	if err := m.Thaw(); err != nil {
		t.Fatal(err)
	}
	if frozen, err := m.Frozen(); err != nil || frozen {
		t.Fatalf("frozen: %v, %v", frozen, err)
	}

	st, err := m.Stats()
	if err != nil {
		t.Fatal(err)
	}
	if st.CPU.Total == 0 || st.Memory.Usage == 0 || st.Memory.Limit != 64<<20 || st.Pids.Current != 3 || st.Pids.Limit != 50 {
		t.Errorf("figures: %+v", st)
	}

	// Another process takes the cgroups over from the stored state, frozen as they are, and ends them.
	if err := m.Freeze(); err != nil {
		t.Fatal(err)
	}
	again, err := Load(nil, m.State())
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(again.all(), m.all()) {
		t.Errorf("loaded %v, want %v", again.all(), m.all())
	}
	if err := again.Destroy(); !errors.Is(err, errs.Conflict) {
		t.Errorf("destroy with processes inside: %v", err)
	}
	if err := again.Kill(unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // killed
	if err := again.Destroy(); err != nil {
		t.Fatal(err)
	}
	if err := again.Destroy(); err != nil {
		t.Errorf("a second time: %v", err)
	}
}

func waitPids(t testing.TB, m *Manager, n int) {
	t.Helper()
	for range 30000 {
		pids, err := m.Pids()
		if err != nil {
			t.Fatal(err)
		}
		if len(pids) == n {
			return
		}
		time.Sleep(time.Millisecond)
	}
	t.Fatalf("there are never %d processes", n)
}

func TestUpdate(t *testing.T) {
	m := managed(t, "update")
	if err := m.Create(&specs.LinuxResources{Devices: defaultDevices()}); err != nil {
		t.Fatal(err)
	}
	// Up, down, and away, each in the order that the kernel wants.
	for _, lim := range [][2]int64{{64 << 20, 64 << 20}, {256 << 20, 512 << 20}, {32 << 20, 48 << 20}, {-1, -1}} {
		if err := m.Set(&specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: ptr(lim[0]), Swap: ptr(lim[1])}}); err != nil {
			t.Fatal(err)
		}
		st, err := m.Stats()
		if err != nil {
			t.Fatal(err)
		}
		want := uint64(lim[0])
		if lim[0] < 0 {
			want = math.MaxUint64
		}
		if st.Memory.Limit != want {
			t.Errorf("limit is %d, want %d", st.Memory.Limit, want)
		}
	}
	if m.Mode() == V2 {
		return
	}
	rules := append(defaultDevices()[:5], specs.LinuxDeviceCgroup{Allow: true, Type: "c", Major: ptr(int64(10)), Minor: ptr(int64(229)), Access: "rw"})
	if err := m.Set(&specs.LinuxResources{Devices: rules}); err != nil {
		t.Fatal(err)
	}
	want := "c *:* m\nb *:* m\nc 1:3 rwm\nc 1:5 rwm\nc 10:229 rw"
	if got := read(t, m, "devices", "devices.list"); got != want {
		t.Errorf("device rules after the update:\n%s\nwant\n%s", got, want)
	}
}

func TestOOM(t *testing.T) {
	m := managed(t, "oom")
	if err := m.Create(&specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: ptr(int64(8 << 20)), Swap: ptr(int64(8 << 20))}}); err != nil {
		t.Fatal(err)
	}
	events, err := m.OOMEventFD()
	if err != nil {
		t.Fatal(err)
	}
	defer events.Close() //nolint:errcheck // test
	if killed, err := m.OOMKilled(); err != nil || killed {
		t.Fatalf("before: %v, %v", killed, err)
	}
	cmd := inside(t, m, "x=$(head -c 64000000 /dev/zero | tr '\\0' a); echo ${#x}")
	if err := cmd.Wait(); err == nil {
		t.Fatal("nothing was killed")
	}
	if err := events.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	if _, err := events.Read(make([]byte, 4096)); err != nil {
		t.Errorf("no event: %v", err)
	}
	if killed, err := m.OOMKilled(); err != nil || !killed {
		t.Fatalf("after: %v, %v", killed, err)
	}
}

// A fork bomb must not outrun the kill.
func TestKillForkBomb(t *testing.T) {
	m := managed(t, "bomb")
	if err := m.Create(&specs.LinuxResources{Pids: &specs.LinuxPids{Limit: ptr(int64(60))}}); err != nil {
		t.Fatal(err)
	}
	cmd := inside(t, m, "exec 2>/dev/null; f() { f & f & }; while :; do f; done")
	time.Sleep(50 * time.Millisecond)
	start := time.Now()
	if err := m.Kill(unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	t.Log("took", time.Since(start))
	_ = cmd.Wait() // killed
	if pids, err := m.Pids(); err != nil || len(pids) > 0 {
		t.Fatalf("left: %v, %v", pids, err)
	}
}

// What a container makes below its own cgroup goes with it.
func TestDestroyChildren(t *testing.T) {
	m := managed(t, "nested")
	if err := m.Create(nil); err != nil {
		t.Fatal(err)
	}
	for _, p := range m.all() {
		if err := os.MkdirAll(p+"/a/b/c", 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := m.Destroy(); err != nil {
		t.Fatal(err)
	}
}

func TestInUse(t *testing.T) {
	m := managed(t, "busy")
	if err := m.Create(nil); err != nil {
		t.Fatal(err)
	}
	cmd := inside(t, m, "sleep 60")
	waitPids(t, m, 1)
	other, err := New(Options{Path: m.Path(), ID: "other"})
	if err != nil {
		t.Fatal(err)
	}
	if err := other.Create(nil); !errors.Is(err, errs.Conflict) {
		t.Errorf("a second container in the same cgroup: %v", err)
	}
	if err := m.Kill(unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // killed
}

// Containers that start side by side find the parent half made by each other.
func TestConcurrentCreate(t *testing.T) {
	host, err := Discover()
	if err != nil {
		t.Fatal(err)
	}
	var all []*Manager
	for i := range 8 {
		all = append(all, managed(t, fmt.Sprintf("side/by/side%d", i)))
	}
	t.Cleanup(func() { // runs first: the containers, then their folders
		for _, m := range all {
			if err := m.Destroy(); err != nil {
				t.Error(err)
			}
		}
		for _, p := range []string{"/side/by", "/side"} {
			if err := RemoveParent(host, testParent()+p); err != nil {
				t.Error(err)
			}
		}
	})
	var wg sync.WaitGroup
	for _, m := range all {
		wg.Go(func() {
			if err := m.Create(&specs.LinuxResources{Devices: defaultDevices()}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	for _, m := range all {
		if err := inside(t, m, "true").Wait(); err != nil {
			t.Error(err)
		}
	}
}

func TestRefusedPaths(t *testing.T) {
	host := &Host{mode: V2, v2: t.TempDir()}
	for _, o := range []Options{
		{}, {ID: ".."}, {ID: "."}, {ID: "a/b"}, {ID: "x", Path: "/"}, {ID: "x", Path: "/a/../../b"}, {ID: "x", Path: ".."}, {ID: "x", Path: "a\x00b"},
	} {
		o.Host = host
		if _, err := New(o); !errors.Is(err, errs.Invalid) {
			t.Errorf("%+v: %v", o, err)
		}
	}
}

// A limit that cannot be set is an error, and nothing is left of the attempt.
func TestFailedCreateLeavesNothing(t *testing.T) {
	m := managed(t, "failed")
	err := m.Create(&specs.LinuxResources{CPU: &specs.LinuxCPU{Cpus: "4095"}})
	if err == nil {
		t.Fatal("processor 4095 was given")
	}
	for _, p := range m.all() {
		if exists(filepath.Dir(p), filepath.Base(p)) {
			t.Errorf("%s is left over", p)
		}
	}
}

func BenchmarkLifecycle(b *testing.B) {
	m := managed(b, "bench")
	host, err := Discover()
	if err != nil {
		b.Fatal(err)
	}
	if err := m.Create(nil); err != nil { // makes the parents, as in an engine that has run
		b.Fatal(err)
	}
	res := &specs.LinuxResources{Devices: defaultDevices()}
	b.Run("discover", func(b *testing.B) {
		for b.Loop() {
			if _, err := Discover(); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("create+destroy", func(b *testing.B) {
		for b.Loop() {
			one, err := New(Options{Path: testParent() + "/one", ID: "one", Host: host})
			if err != nil {
				b.Fatal(err)
			}
			if err := one.Create(res); err != nil {
				b.Fatal(err)
			}
			if err := one.Destroy(); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("create", func(b *testing.B) {
		for b.Loop() {
			one, err := New(Options{Path: testParent() + "/one", ID: "one", Host: host})
			if err != nil {
				b.Fatal(err)
			}
			if err := one.Create(res); err != nil {
				b.Fatal(err)
			}
			b.StopTimer()
			if err := one.Destroy(); err != nil {
				b.Fatal(err)
			}
			b.StartTimer()
		}
	})
	b.Run("joinfiles", func(b *testing.B) {
		for b.Loop() {
			files, err := m.JoinFiles()
			if err != nil {
				b.Fatal(err)
			}
			for _, f := range files {
				if err := f.Close(); err != nil {
					b.Fatal(err)
				}
			}
		}
	})
	b.Run("stats", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := m.Stats(); err != nil {
				b.Fatal(err)
			}
		}
	})
}

const joinerEnv = "CORTEN_TEST_CGROUP_JOINER"

// TestJoiner is no test: it is the process that BenchmarkJoin measures.
func TestJoiner(t *testing.T) {
	n, err := strconv.Atoi(os.Getenv(joinerEnv))
	if err != nil {
		t.Skip("run by BenchmarkJoin")
	}
	runtime.LockOSThread()
	start := time.Now()
	for fd := 3; fd < 3+n; fd++ {
		if _, err := unix.Write(fd, []byte("0")); err != nil {
			t.Fatal(err)
		}
	}
	fmt.Println("joined in", time.Since(start).Nanoseconds())
}

// BenchmarkJoin is what a child spends on moving itself into every v1 hierarchy.
func BenchmarkJoin(b *testing.B) {
	m := managed(b, "join")
	if err := m.Create(&specs.LinuxResources{Devices: defaultDevices()}); err != nil {
		b.Fatal(err)
	}
	var all []int
	for b.Loop() {
		files, err := m.JoinFiles()
		if err != nil {
			b.Fatal(err)
		}
		cmd := exec.Command(os.Args[0], "-test.run=^TestJoiner$")
		cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%d", joinerEnv, len(files)))
		cmd.ExtraFiles = files
		out, err := cmd.Output()
		if err != nil {
			b.Fatal(err, string(out))
		}
		var ns int
		if _, err := fmt.Sscanf(string(out), "joined in %d", &ns); err != nil {
			b.Fatal(err)
		}
		all = append(all, ns)
		for _, f := range files {
			if err := f.Close(); err != nil {
				b.Fatal(err)
			}
		}
	}
	slices.Sort(all)
	b.ReportMetric(float64(all[len(all)/2]), "ns/join")
}
