package cgroup

import (
	"errors"
	"testing"

	"corten.dev/corten/internal/errs"
	sdcgroups "github.com/opencontainers/cgroups/systemd"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

func TestUnitForm(t *testing.T) {
	for form, want := range map[string][3]string{
		"":                           {"", "corten", "c1"},
		"system.slice:docker:abc":    {"system.slice", "docker", "abc"},
		":corten:abc":                {"", "corten", "abc"},
		"user-1000.slice::abc.slice": {"user-1000.slice", "", "abc.slice"},
	} {
		slice, prefix, name, err := splitUnit(form, "c1")
		if got := [3]string{slice, prefix, name}; err != nil || got != want {
			t.Errorf("%q: %v, %v", form, got, err)
		}
	}
	for _, form := range []string{"/a/b", "a:b", "a:b:c:d", "a:b:", "../x:b:c"} {
		if _, _, _, err := splitUnit(form, "c1"); !errors.Is(err, errs.Invalid) {
			t.Errorf("%q: %v", form, err)
		}
	}
}

func TestResourcesForSystemd(t *testing.T) {
	weight := specs.LinuxWeightDevice{Weight: ptr(uint16(20))}
	weight.Major, weight.Minor = 8, 1
	got, err := ociResources(&specs.LinuxResources{
		Devices: defaultDevices(),
		Memory:  &specs.LinuxMemory{Limit: ptr(int64(1)), Swap: ptr(int64(2)), Reservation: ptr(int64(3)), DisableOOMKiller: ptr(true)},
		CPU:     &specs.LinuxCPU{Shares: ptr(uint64(4)), Quota: ptr(int64(5)), Period: ptr(uint64(6)), Cpus: "0", Mems: "1"},
		Pids:    &specs.LinuxPids{Limit: ptr(int64(7))},
		BlockIO: &specs.LinuxBlockIO{Weight: ptr(uint16(8)), WeightDevice: []specs.LinuxWeightDevice{weight}},
		Network: &specs.LinuxNetwork{ClassID: ptr(uint32(9))}, Unified: map[string]string{"a.b": "c"},
		HugepageLimits: []specs.LinuxHugepageLimit{{Pagesize: "2MB", Limit: 10}}, Rdma: map[string]specs.LinuxRdma{"x": {HcaHandles: ptr(uint32(11))}},
	})
	if err != nil {
		t.Fatal(err)
	}
	if got.Memory != 1 || got.MemorySwap != 2 || got.MemoryReservation != 3 || !got.OomKillDisable || got.CpuShares != 4 || got.CpuQuota != 5 || got.CpuPeriod != 6 ||
		got.CpusetCpus != "0" || got.CpusetMems != "1" || *got.PidsLimit != 7 || got.BlkioWeight != 8 || got.BlkioWeightDevice[0].WeightString() != "8:1 20" ||
		got.NetClsClassid != 9 || got.HugetlbLimit[0].Limit != 10 || *got.Rdma["x"].HcaHandles != 11 || got.Unified["a.b"] != "c" || len(got.Devices) != len(defaultDevices()) {
		t.Errorf("%+v", got)
	}
}

// Runs where systemd does: a scope is made around a process, found in the cgroup tree, and goes with it.
func TestSystemd(t *testing.T) {
	if !sdcgroups.IsRunningSystemd() {
		_, err := New(Options{ID: "x", Systemd: true})
		if !errors.Is(err, errs.Unavailable) {
			t.Errorf("without systemd: %v", err)
		}
		t.Skip("needs a host with systemd")
	}
	m, err := New(Options{ID: "corten-test-scope", Systemd: true})
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Create(&specs.LinuxResources{Devices: defaultDevices(), Pids: &specs.LinuxPids{Limit: ptr(int64(30))}, Memory: &specs.LinuxMemory{Limit: ptr(int64(64 << 20))}}); err != nil {
		t.Fatal(err)
	}
	cmd := inside(t, m, "sleep 60")
	if err := m.Add(cmd.Process.Pid); err != nil {
		t.Fatal(err)
	}
	waitPids(t, m, 1)
	again, err := Load(nil, m.State())
	if err != nil {
		t.Fatal(err)
	}
	second := inside(t, again, "sleep 60") // as exec does
	waitPids(t, again, 2)
	st, err := again.Stats()
	if err != nil || st.Pids.Limit != 30 || st.Memory.Limit != 64<<20 {
		t.Errorf("figures %+v, %v", st, err)
	}
	if err := again.Set(&specs.LinuxResources{Pids: &specs.LinuxPids{Limit: ptr(int64(40))}}); err != nil {
		t.Error(err)
	}
	if err := again.Freeze(); err != nil {
		t.Error(err)
	}
	if err := again.Kill(unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	_, _ = cmd.Wait(), second.Wait() // killed
	if err := again.Destroy(); err != nil {
		t.Fatal(err)
	}
}
