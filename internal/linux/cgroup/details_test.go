package cgroup

import (
	"fmt"
	"math"
	"reflect"
	"testing"
)

func TestV2Details(t *testing.T) {
	m := fakeManager(t, fakeV2(t), map[string]string{
		"memory.current": "1000\n", "memory.max": "5000\n", "memory.swap.current": "5\n", "memory.swap.max": "600\n", "memory.stat": "anon 300\nkernel 50\nsock 7\n",
		"cpuset.cpus.effective": "0-2,7\n", "cpuset.mems.effective": "0\n", "hugetlb.2MB.current": "4096\n", "hugetlb.2MB.events": "max 3\n", "hugetlb.2MB.rsvd.current": "0\n",
	})
	d, err := m.Details()
	if err != nil {
		t.Fatal(err)
	}
	want := Details{
		MemorySwap: Amount{Limit: 5600, Usage: 1005}, Kernel: Amount{Usage: 50}, KernelTCP: Amount{Usage: 7},
		Cpuset: &CpusetStats{CPUs: []uint16{0, 1, 2, 7}, Mems: []uint16{0}}, Hugetlb: []HugetlbStats{{PageSize: "2MB", Usage: 4096, Failcnt: 3}},
	}
	if !reflect.DeepEqual(d, want) {
		t.Errorf("%+v, cpuset %+v", d, d.Cpuset)
	}
	put(t, m.v2, map[string]string{"memory.swap.max": "max\n"})
	if d, err := m.Details(); err != nil || d.MemorySwap.Limit != math.MaxUint64 {
		t.Error(d.MemorySwap, err)
	}
}

func TestV1Details(t *testing.T) {
	dir := t.TempDir()
	put(t, dir, map[string]string{
		"cpuset.cpus": "0-1\n", "cpuset.mems": "\n", "cpuset.cpu_exclusive": "1\n", "cpuset.memory_pressure": "9\n", "cpuset.sched_load_balance": "1\n", "cpuset.sched_relax_domain_level": "-1\n",
	})
	var d Details
	r := reader{buf: new([16384]byte)}
	perCPU([]byte("cpu user system\n0 10 20\n1 30 40\n"), &d)
	d.Cpuset = cpusetV1(&r, dir)
	got := fmt.Sprintf("%v %v %+v %v", d.PerCPUUser, d.PerCPUSystem, *d.Cpuset, r.err)
	if want := "[10 30] [20 40] {CPUs:[0 1] Mems:[] CPUExclusive:true MemExclusive:false MemHardwall:false MemoryMigrate:false MemorySpreadPage:false MemorySpreadSlab:false MemoryPressure:9 " +
		"SchedLoadBalance:true SchedRelaxDomainLevel:-1} <nil>"; got != want {
		t.Errorf("%s\nwant\n%s", got, want)
	}
}
