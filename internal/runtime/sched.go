package runtime

import (
	"strconv"
	"strings"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/linux/launch"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

var policies = map[specs.LinuxSchedulerPolicy]uint64{
	specs.SchedOther: unix.SCHED_NORMAL, specs.SchedFIFO: unix.SCHED_FIFO, specs.SchedRR: unix.SCHED_RR, specs.SchedBatch: unix.SCHED_BATCH,
	specs.SchedISO: 4, specs.SchedIdle: unix.SCHED_IDLE, specs.SchedDeadline: unix.SCHED_DEADLINE,
}

var schedFlags = map[specs.LinuxSchedulerFlag]uint64{
	specs.SchedFlagResetOnFork: unix.SCHED_FLAG_RESET_ON_FORK, specs.SchedFlagReclaim: unix.SCHED_FLAG_RECLAIM, specs.SchedFlagDLOverrun: unix.SCHED_FLAG_DL_OVERRUN,
	specs.SchedFlagKeepPolicy: unix.SCHED_FLAG_KEEP_POLICY, specs.SchedFlagKeepParams: unix.SCHED_FLAG_KEEP_PARAMS,
	specs.SchedFlagUtilClampMin: unix.SCHED_FLAG_UTIL_CLAMP_MIN, specs.SchedFlagUtilClampMax: unix.SCHED_FLAG_UTIL_CLAMP_MAX,
}

// scheduler adds sched_setattr. struct sched_attr: size, policy, flags, nice, priority, runtime, deadline, period.
func (p *plan) scheduler(s *specs.Scheduler) {
	policy, ok := policies[s.Policy]
	if !ok {
		p.fail(errs.New(errs.Invalid, "scheduler policy %q is unknown", s.Policy))
		return
	}
	var flags uint64
	for _, f := range s.Flags {
		bit, ok := schedFlags[f]
		if !ok {
			p.fail(errs.New(errs.Invalid, "scheduler flag %q is unknown", f))
			return
		}
		flags |= bit
	}
	p.note("set scheduler %s", s.Policy)
	attr := p.b.Words(48|policy<<32, flags, uint64(uint32(s.Nice))|uint64(uint32(s.Priority))<<32, s.Runtime, s.Deadline, s.Period)
	p.b.Sys(unix.SYS_SCHED_SETATTR, null, attr, null)
}

var ioClasses = map[specs.IOPriorityClass]int{specs.IOPRIO_CLASS_RT: 1, specs.IOPRIO_CLASS_BE: 2, specs.IOPRIO_CLASS_IDLE: 3}

func (p *plan) ioPriority(io *specs.LinuxIOPriority) {
	class, ok := ioClasses[io.Class]
	if !ok || io.Priority < 0 || io.Priority > 7 {
		p.fail(errs.New(errs.Invalid, "I/O priority %s %d is unknown", io.Class, io.Priority))
		return
	}
	p.note("set I/O priority %s %d", io.Class, io.Priority)
	p.b.Sys(unix.SYS_IOPRIO_SET, launch.Imm(1), null, launch.Imm(class<<13|io.Priority))
}

// personality selects the execution domain.
func (p *plan) personality(per *specs.LinuxPersonality) {
	if per == nil {
		return
	}
	domain, ok := map[specs.LinuxPersonalityDomain]int{specs.PerLinux: 0, specs.PerLinux32: 8}[per.Domain]
	if !ok || len(per.Flags) > 0 {
		p.fail(errs.New(errs.Invalid, "personality %s with flags %v is unknown", per.Domain, per.Flags))
		return
	}
	p.note("set personality %s", per.Domain)
	p.b.Sys(unix.SYS_PERSONALITY, launch.Imm(domain))
}

// affinity sets the processors of an exec, written as "0-3,7".
func (p *plan) affinity(list string) {
	if list == "" {
		return
	}
	var set [16]uint64
	for _, part := range strings.Split(list, ",") {
		lo, hi, ranged := strings.Cut(strings.TrimSpace(part), "-")
		if !ranged {
			hi = lo
		}
		a, err := strconv.Atoi(lo)
		z, zerr := strconv.Atoi(hi)
		if err != nil || zerr != nil || a < 0 || z < a || z >= 1024 {
			p.fail(errs.New(errs.Invalid, "processor list %q: %q is not a range", list, part))
			return
		}
		for i := a; i <= z; i++ {
			set[i/64] |= 1 << (i % 64)
		}
	}
	p.note("run on processors %s", list)
	p.b.Sys(unix.SYS_SCHED_SETAFFINITY, null, launch.Imm(len(set)*8), p.b.Words(set[:]...))
}
