package runtimecli

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"strconv"

	"github.com/docker/go-units"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"corten.dev/corten/internal/errs"
)

// number is a flag that tells whether it was given.
type number[T int64 | uint64] struct{ p **T }

func (n number[T]) String() string {
	if n.p == nil || *n.p == nil {
		return ""
	}
	return fmt.Sprint(**n.p)
}

func (n number[T]) Set(s string) error {
	var v T
	var err error
	switch p := any(&v).(type) {
	case *int64:
		*p, err = strconv.ParseInt(s, 10, 64)
	case *uint64:
		*p, err = strconv.ParseUint(s, 10, 64)
	}
	if err != nil {
		return fmt.Errorf("%q is not a number", s)
	}
	*n.p = &v
	return nil
}

// size is a flag for bytes, as a number or as 64m; -1 is what the kernel means by no limit.
type size struct{ p **int64 }

func (n size) String() string { return number[int64](n).String() }

func (n size) Set(s string) error {
	v, err := int64(-1), error(nil)
	if s != "-1" {
		v, err = units.RAMInBytes(s)
	}
	if err != nil {
		return err
	}
	*n.p = &v
	return nil
}

func update(c *call, fs *flag.FlagSet) func([]string) (int, error) {
	var cpu specs.LinuxCPU
	var mem specs.LinuxMemory
	var pids, idle *int64
	var weight *uint64
	file := fs.String("resources", "", "`file` with the limits as JSON, - for standard input")
	fs.StringVar(file, "r", "", "short for --resources")
	fs.Var(number[uint64]{&weight}, "blkio-weight", "10 to 1000")
	fs.Var(number[uint64]{&cpu.Period}, "cpu-period", "microseconds")
	fs.Var(number[int64]{&cpu.Quota}, "cpu-quota", "microseconds of each period")
	fs.Var(number[uint64]{&cpu.Burst}, "cpu-burst", "microseconds")
	fs.Var(number[uint64]{&cpu.Shares}, "cpu-share", "relative weight")
	fs.Var(number[uint64]{&cpu.RealtimePeriod}, "cpu-rt-period", "microseconds")
	fs.Var(number[int64]{&cpu.RealtimeRuntime}, "cpu-rt-runtime", "microseconds")
	fs.Var(number[int64]{&idle}, "cpu-idle", "1: run only when nothing else does")
	fs.StringVar(&cpu.Cpus, "cpuset-cpus", "", "processors (0-3,5)")
	fs.StringVar(&cpu.Mems, "cpuset-mems", "", "memory nodes")
	fs.Var(size{&mem.Limit}, "memory", "bytes, or 64m")
	fs.Var(size{&mem.Reservation}, "memory-reservation", "bytes, or 64m")
	fs.Var(size{&mem.Swap}, "memory-swap", "bytes, or 64m, of memory and swap together, -1 for no limit")
	fs.Var(number[int64]{&pids}, "pids-limit", "processes, 0 or -1 for no limit")
	return func(args []string) (int, error) {
		id, err := one(args)
		if err != nil {
			return 1, err
		}
		res := &specs.LinuxResources{}
		if *file != "" {
			if res, err = readResources(*file, c.In); err != nil {
				return 1, err
			}
			res.Devices = nil // rules are for creation
		} else {
			cpu.Idle = idle
			if cpu != (specs.LinuxCPU{}) {
				res.CPU = &cpu
			}
			if mem != (specs.LinuxMemory{}) {
				res.Memory = &mem
			}
			if pids != nil {
				if *pids == 0 { // in a file of limits it is one
					*pids = -1
				}
				res.Pids = &specs.LinuxPids{Limit: pids}
			}
			if weight != nil {
				w := uint16(*weight)
				if *weight > 1000 {
					return 1, errs.New(errs.Invalid, "--blkio-weight %d: must be 10 to 1000", *weight)
				}
				res.BlockIO = &specs.LinuxBlockIO{Weight: &w}
			}
		}
		ctr, err := c.load(id)
		if err != nil {
			return 1, err
		}
		return 0, errors.Join(ctr.Update(c.ctx, res), ctr.Close())
	}
}

func readResources(name string, in io.Reader) (*specs.LinuxResources, error) {
	if name != "-" {
		f, err := os.Open(name)
		if err != nil {
			return nil, fmt.Errorf("resources: %w", err)
		}
		defer f.Close()
		in = f
	}
	res := &specs.LinuxResources{}
	if err := json.NewDecoder(io.LimitReader(in, maxConfig)).Decode(res); err != nil {
		return nil, errs.New(errs.Invalid, "resources %s: %w", name, err)
	}
	return res, nil
}
