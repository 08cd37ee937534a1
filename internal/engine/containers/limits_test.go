package containers

import (
	"errors"
	"reflect"
	"slices"
	"strings"
	"testing"

	"corten.dev/corten/internal/container"
	"corten.dev/corten/internal/engine/hostspec"
	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/linux/cgroup"
)

func ref[T any](v T) *T { return &v }

var (
	oldHost = machine{cpus: 4, online: "0-3", nodes: "0", Support: cgroup.Support{Memory: true, Swap: true, Reservation: true, Swappiness: true, OOMKillDisable: true, KernelMemory: true,
		CPUShares: true, CPUQuota: true, Realtime: true, Cpuset: true, Pids: true, BlkioWeight: true, BlkioRates: true}}
	newHost = machine{cpus: 2, online: "0-1", nodes: "0", Support: cgroup.Support{Memory: true, Swap: true, Reservation: true, CPUShares: true, CPUQuota: true, Cpuset: true, Pids: true,
		BlkioWeight: true, BlkioRates: true}}
	bareHost = machine{cpus: 1, online: "0", nodes: "0"}
)

// The words are Docker's: people search for them, and tools match them.
func TestLimitsThatCannotBeMeant(t *testing.T) {
	for _, c := range []struct {
		res  container.Resources
		on   machine
		want string
	}{
		{container.Resources{Memory: 6<<20 - 1}, newHost, "Minimum memory limit allowed is 6MB"},
		{container.Resources{Memory: -5}, newHost, "Minimum memory limit allowed is 6MB"},
		{container.Resources{Memory: 64 << 20, MemorySwap: 32 << 20}, newHost, "Minimum memoryswap limit should be larger than memory limit, see usage"},
		{container.Resources{MemorySwap: 32 << 20}, newHost, "You should always set the Memory limit when using Memoryswap limit, see usage"},
		{container.Resources{MemoryReservation: 1 << 20}, newHost, "Minimum memory reservation allowed is 6MB"},
		{container.Resources{Memory: 64 << 20, MemoryReservation: 65 << 20}, newHost, "Minimum memory limit can not be less than memory reservation limit, see usage"},
		{container.Resources{KernelMemory: 1 << 20}, oldHost, "Minimum kernel memory limit allowed is 6MB"},
		{container.Resources{MemorySwappiness: ref(int64(101))}, oldHost, "invalid value: 101, valid memory swappiness range is 0-100"},
		{container.Resources{NanoCPUs: 1e9, CPUPeriod: 1000}, newHost, "Conflicting options: Nano CPUs and CPU Period cannot both be set"},
		{container.Resources{NanoCPUs: 1e9, CPUQuota: 1000}, newHost, "Conflicting options: Nano CPUs and CPU Quota cannot both be set"},
		{container.Resources{NanoCPUs: 3e9}, newHost, "range of CPUs is from 0.01 to 2.00, as there are only 2 CPUs available"},
		{container.Resources{NanoCPUs: -1}, newHost, "range of CPUs is from 0.01 to 2.00, as there are only 2 CPUs available"},
		{container.Resources{NanoCPUs: 1e9}, bareHost, "NanoCPUs can not be set, as your kernel does not support CPU CFS scheduler or the cgroup is not mounted"},
		{container.Resources{CPUShares: -1}, newHost, "shares must be greater than or equal to 0"},
		{container.Resources{CPUPeriod: 999}, newHost, "CPU cfs period can not be less than 1ms (i.e. 1000) or larger than 1s (i.e. 1000000)"},
		{container.Resources{CPUQuota: 999}, newHost, "CPU cfs quota can not be less than 1ms (i.e. 1000)"},
		{container.Resources{CPURealtimeRuntime: 10}, newHost, "kernel does not support CPU real-time scheduler"},
		{container.Resources{CPURealtimePeriod: 10, CPURealtimeRuntime: 11}, oldHost, "cpu real-time runtime cannot be higher than cpu real-time period"},
		{container.Resources{CpusetCpus: "0-2"}, newHost, "Requested CPUs are not available - requested 0-2, available: 0-1"},
		{container.Resources{CpusetCpus: "1-0"}, newHost, "Invalid value 1-0 for cpuset cpus: invalid format: 1-0"},
		{container.Resources{CpusetMems: "1"}, newHost, "Requested memory nodes are not available - requested 1, available: 0"},
		{container.Resources{BlkioWeight: 9}, newHost, "range of blkio weight is from 10 to 1000"},
		{container.Resources{Ulimits: []container.Ulimit{{Name: "x"}}}, newHost, "invalid ulimit type: x"},
		{container.Resources{Ulimits: []container.Ulimit{{Name: "nofile", Soft: -1, Hard: 5}}}, newHost, "ulimit soft limit must be less than or equal to hard limit: -1 > 5"},
		{container.Resources{DeviceCgroupRules: []string{"c 1 r"}}, newHost, "invalid device cgroup rule format: 'c 1 r'"},
	} {
		if _, err := checkResources(&c.res, c.on, false); err == nil || err.Error() != c.want || !errors.Is(err, errs.Invalid) {
			t.Errorf("%+v: %v, want %s", c.res, err, c.want)
		}
	}
}

// What a kernel cannot do is said and left out, so that the rest still works: that is how the same compose file runs on every host.
func TestLimitsThatTheKernelLacks(t *testing.T) {
	all := func() container.Resources {
		rate := []container.ThrottleDevice{{Path: "/dev/x", Rate: 1}}
		return container.Resources{
			Memory: 64 << 20, MemorySwap: 128 << 20, MemoryReservation: 32 << 20, MemorySwappiness: ref(int64(5)), KernelMemory: 32 << 20, OomKillDisable: ref(true), PidsLimit: ref(int64(9)),
			CPUShares: 5, CPUPeriod: 1000, CPUQuota: 1000, CpusetCpus: "0", CpusetMems: "0", BlkioWeight: 10, BlkioWeightDevice: []container.WeightDevice{{Path: "/dev/x", Weight: 10}},
			BlkioDeviceReadBps: rate, BlkioDeviceWriteBps: rate, BlkioDeviceReadIOps: rate, BlkioDeviceWriteIOps: rate,
		}
	}
	res := all()
	if warnings, err := checkResources(&res, oldHost, false); err != nil || len(warnings) > 0 || !reflect.DeepEqual(res, all()) {
		t.Errorf("cgroup v1: %v, %v", warnings, err)
	}
	warnings, err := checkResources(&res, newHost, false)
	if err != nil || len(warnings) != 3 || res.OomKillDisable != nil || res.MemorySwappiness != nil || res.KernelMemory != 0 || res.Memory == 0 {
		t.Errorf("cgroup v2: %q, %v", warnings, err)
	}
	res = all()
	warnings, err = checkResources(&res, bareHost, false)
	if err != nil || len(warnings) != 15 {
		t.Errorf("no cgroups: %d warnings, %v: %q", len(warnings), err, warnings)
	}
	for _, w := range warnings {
		if !strings.HasPrefix(w, "Your kernel does not support ") || !strings.HasSuffix(w, "iscarded.") && !strings.HasSuffix(w, "without swap.") {
			t.Errorf("%s", w)
		}
	}
	spec, err := hostspec.Resources(&res)
	if err != nil || spec.Memory.Limit != nil || spec.CPU.Shares != nil || spec.CPU.Cpus != "" || spec.Pids != nil || spec.BlockIO != nil {
		t.Errorf("what was discarded reaches the runtime: %+v, %v", spec, err)
	}
}

func TestUpdateBesideWhatThereIs(t *testing.T) {
	for _, c := range []struct {
		have, asked container.Resources
		want        string
	}{
		{container.Resources{NanoCPUs: 1}, container.Resources{CPUPeriod: 1000}, "Conflicting options: CPU Period cannot be updated as NanoCPUs has already been set"},
		{container.Resources{NanoCPUs: 1}, container.Resources{CPUQuota: 1000}, "Conflicting options: CPU Quota cannot be updated as NanoCPUs has already been set"},
		{container.Resources{CPUPeriod: 1}, container.Resources{NanoCPUs: 1000}, "Conflicting options: Nano CPUs cannot be updated as CPU Period has already been set"},
		{container.Resources{CPUQuota: 1}, container.Resources{NanoCPUs: 1000}, "Conflicting options: Nano CPUs cannot be updated as CPU Quota has already been set"},
		{container.Resources{Memory: 8 << 20, MemorySwap: 16 << 20}, container.Resources{Memory: 17 << 20}, "Memory limit should be smaller than already set memoryswap limit, update the memoryswap at the same time"},
	} {
		if err := conflicts(c.have, c.asked); err == nil || err.Error() != c.want {
			t.Errorf("%+v: %v", c.asked, err)
		}
	}
	got := layOver(container.Resources{CPUShares: 5, PidsLimit: ref(int64(7))}, container.Resources{Memory: 8 << 20, PidsLimit: ref(int64(-1))})
	if got.CPUShares != 5 || got.Memory != 8<<20 || got.MemorySwap != 16<<20 || *got.PidsLimit != 0 {
		t.Errorf("%+v", got)
	}
}

// An update that fails half way must leave the kernel with what was there before, also where that was no limit at all.
func TestLift(t *testing.T) {
	asked := container.Resources{Memory: 8 << 20, MemorySwap: 16 << 20, MemoryReservation: 7 << 20, CPUQuota: 1000, CPUPeriod: 2000, CPUShares: 7, PidsLimit: ref(int64(3)), CpusetCpus: "0", CpusetMems: "0"}
	res, err := hostspec.Resources(&asked)
	if err != nil {
		t.Fatal(err)
	}
	back, err := hostspec.Resources(&container.Resources{CPUShares: 99})
	if err != nil {
		t.Fatal(err)
	}
	hostspec.Lift(back, res)
	if *back.Memory.Limit != -1 || *back.Memory.Swap != -1 || *back.Memory.Reservation != -1 || *back.CPU.Quota != -1 || *back.CPU.Period != 100000 || *back.CPU.Shares != 99 ||
		*back.Pids.Limit != -1 || back.CPU.Cpus == "" || back.CPU.Mems == "" {
		t.Errorf("%+v %+v", back.Memory, back.CPU)
	}
}

func FuzzCpuset(f *testing.F) {
	for _, s := range []string{"0", "0-3", "0,2", "1-0", "-", ",", "0-99999", "0x1", "+1"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		set, err := parseSet(s)
		if err != nil {
			return
		}
		var parts []string
		for n := range 8192 {
			if set[n] {
				parts = append(parts, num10(n))
			}
		}
		if again, err := parseSet(strings.Join(parts, ",")); err != nil || !reflect.DeepEqual(set, again) || !slices.Contains(parts, parts[0]) {
			t.Errorf("%q: %v, %v", s, parts, err)
		}
	})
}
