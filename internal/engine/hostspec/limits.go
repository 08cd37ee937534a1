package hostspec

import (
	"os"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"corten.dev/corten/internal/container"
	"corten.dev/corten/internal/errs"
	linuxhost "corten.dev/corten/internal/linux/host"
)

// Resources converts limits to the runtime's form.
func Resources(res *container.Resources) (*specs.LinuxResources, error) {
	out := &specs.LinuxResources{Memory: &specs.LinuxMemory{}, CPU: &specs.LinuxCPU{}}
	mem, cpu := out.Memory, out.CPU
	if res.Memory > 0 {
		mem.Limit = ptr(res.Memory)
	}
	if res.MemoryReservation > 0 {
		mem.Reservation = ptr(res.MemoryReservation)
	}
	if res.MemorySwap != 0 {
		mem.Swap = ptr(res.MemorySwap)
	}
	if res.KernelMemory > 0 {
		mem.Kernel = ptr(res.KernelMemory) //lint:ignore SA1019 older kernels have it
	}
	if sw := res.MemorySwappiness; sw != nil && *sw >= 0 {
		mem.Swappiness = ptr(uint64(*sw))
	}
	if res.OomKillDisable != nil && *res.OomKillDisable {
		mem.DisableOOMKiller = ptr(true)
	}
	if res.CPUShares > 0 {
		cpu.Shares = ptr(uint64(res.CPUShares))
	}
	if res.NanoCPUs > 0 {
		cpu.Period, cpu.Quota = ptr(uint64(100000)), ptr(res.NanoCPUs*100000/1e9)
	}
	if res.CPUPeriod > 0 {
		cpu.Period = ptr(uint64(res.CPUPeriod))
	}
	if res.CPUQuota != 0 {
		cpu.Quota = ptr(res.CPUQuota)
	}
	if res.CPURealtimePeriod > 0 {
		cpu.RealtimePeriod = ptr(uint64(res.CPURealtimePeriod))
	}
	if res.CPURealtimeRuntime > 0 {
		cpu.RealtimeRuntime = ptr(res.CPURealtimeRuntime)
	}
	cpu.Cpus, cpu.Mems = res.CpusetCpus, res.CpusetMems
	if p := res.PidsLimit; p != nil {
		limit := *p
		if limit <= 0 { // both mean none
			limit = -1
		}
		out.Pids = &specs.LinuxPids{Limit: &limit}
	}
	var err error
	out.BlockIO, err = blockIO(res)
	return out, err
}

func blockIO(res *container.Resources) (*specs.LinuxBlockIO, error) {
	if res.BlkioWeight == 0 && len(res.BlkioWeightDevice)+len(res.BlkioDeviceReadBps)+len(res.BlkioDeviceWriteBps)+len(res.BlkioDeviceReadIOps)+len(res.BlkioDeviceWriteIOps) == 0 {
		return nil, nil
	}
	out := &specs.LinuxBlockIO{}
	if res.BlkioWeight > 0 {
		out.Weight = ptr(res.BlkioWeight)
	}
	for _, w := range res.BlkioWeightDevice {
		dev, err := blockDevice(w.Path)
		if err != nil {
			return nil, err
		}
		out.WeightDevice = append(out.WeightDevice, specs.LinuxWeightDevice{LinuxBlockIODevice: dev, Weight: ptr(w.Weight)})
	}
	for _, group := range []struct {
		from []container.ThrottleDevice
		to   *[]specs.LinuxThrottleDevice
	}{
		{res.BlkioDeviceReadBps, &out.ThrottleReadBpsDevice}, {res.BlkioDeviceWriteBps, &out.ThrottleWriteBpsDevice},
		{res.BlkioDeviceReadIOps, &out.ThrottleReadIOPSDevice}, {res.BlkioDeviceWriteIOps, &out.ThrottleWriteIOPSDevice},
	} {
		for _, t := range group.from {
			dev, err := blockDevice(t.Path)
			if err != nil {
				return nil, err
			}
			*group.to = append(*group.to, specs.LinuxThrottleDevice{LinuxBlockIODevice: dev, Rate: t.Rate})
		}
	}
	return out, nil
}

func blockDevice(name string) (specs.LinuxBlockIODevice, error) {
	major, minor, err := linuxhost.Device(name)
	if err != nil {
		return specs.LinuxBlockIODevice{}, errs.New(errs.Invalid, "block device %s: %w", name, err)
	}
	return specs.LinuxBlockIODevice{Major: major, Minor: minor}, nil
}

// Lift adds to back what takes away every limit that res sets and back does not, so that back undoes res.
func Lift(back, res *specs.LinuxResources) {
	mem, cpu := back.Memory, back.CPU
	for _, l := range []struct{ back, set **int64 }{
		{&mem.Limit, &res.Memory.Limit}, {&mem.Swap, &res.Memory.Swap}, {&mem.Reservation, &res.Memory.Reservation}, {&cpu.Quota, &res.CPU.Quota},
	} {
		if *l.back == nil && *l.set != nil {
			*l.back = ptr(int64(-1))
		}
	}
	if cpu.Shares == nil && res.CPU.Shares != nil {
		cpu.Shares = ptr(uint64(1024))
	}
	if cpu.Period == nil && res.CPU.Period != nil {
		cpu.Period = ptr(uint64(100000))
	}
	if back.Pids == nil && res.Pids != nil {
		back.Pids = &specs.LinuxPids{Limit: ptr(int64(-1))}
	}
	if cpu.Cpus == "" && res.CPU.Cpus != "" {
		cpu.Cpus = Online("cpu")
	}
	if cpu.Mems == "" && res.CPU.Mems != "" {
		cpu.Mems = Online("node")
	}
}

// Online is the list of processors ("cpu") or memory nodes ("node") of this host.
func Online(kind string) string {
	b, err := os.ReadFile("/sys/devices/system/" + kind + "/online")
	if err != nil { // a kernel without the file has one of the kind
		return "0"
	}
	return strings.TrimSpace(string(b))
}
