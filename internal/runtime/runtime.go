// Package runtime is the room of the OCI runtime: a bundle in, a process out.
//
// It owns <root>/<id>/state.json (root is <exec-root>/runtime for the engine, --root for the command line) and the container's cgroups. It knows runtime-spec 1.2+ and the kernel; it knows
// neither images nor the engine. It promises: no path inside a container's root is resolved by name alone; no descriptor leaks in; no procfs write goes anywhere but procfs; what a failed
// create or start made is taken down again.
//
// Who makes the process is the caller's [Launcher]: the engine hands a monitor, the command line starts it itself.
//
// # What is stored
//
//	<root>/<id>/state.json   written once, when the process exists
//	<root>/<id>/start.sock   only between create and start: the child listens there
//
// # How the first process is made
//
// Its life before its program is a list of system calls ([launch.Program]), prepared here and walked by a raw clone3 child of a small process. The other candidate was to
// execute a tiny program (1.2 MB, Go, static) that sets itself up. Measured on 2 cores, kernel 6.18, until a static /bin/true was executed and reaped: 0.88 ms against 1.90 ms; and
// the list leaves no binary in the container that could be overwritten. A docker-like container (overlay root, new net, pid, mount, ipc, uts and cgroup namespace, ten v1
// hierarchies, 23 mounts, 12 masks) then takes 3.0 ms from Create to a program executed, 0.9 ms until /bin/true's end is seen and 0.25 ms to delete; 1.0 ms of it is clone3
// (0.4 ms the network namespace), 0.55 ms the 500 operations, 0.2 ms the cgroups, 0.35 ms writing the program.
//
// # What grows with the containers that run
//
// Measured with 1,000 running (5,600 threads, 1,000 network namespaces), CPU time of one start, before and after:
//
//	pivot_root looks at every thread of the machine               2.0 ms   not called: see bare.go
//	sysctls by the host's procfs, one chain of names for all      2.4 ms   through the container's own procfs
//	a sysfs is compared with that of every network namespace      1.5 ms   the kernel's; whoever makes the namespace beforehand can keep one
//	a cpuset of v1 looks at its siblings                          0.7 ms   the kernel's; likewise
//
// # The hand-shake
//
// A plain container says nothing between clone3 and execve: the end of file on the close-on-exec sync socket is the success. What needs an answer is drawn in sync.go.
package runtime

import (
	"context"
	"os"

	"corten.dev/corten/internal/linux/cgroup"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// Launcher clones the process that walks program; it returns once the clone was made.
type Launcher interface {
	Launch(ctx context.Context, program []byte, files []*os.File) (pid int, pidfd *os.File, err error)
}

// LauncherFunc makes a function a Launcher.
type LauncherFunc func(ctx context.Context, program []byte, files []*os.File) (int, *os.File, error)

// Launch calls f.
func (f LauncherFunc) Launch(ctx context.Context, program []byte, files []*os.File) (int, *os.File, error) {
	return f(ctx, program, files)
}

// RunOptions describe a container to create.
type RunOptions struct {
	ID     string
	Bundle string
	Spec   *specs.Spec
	// Root, if set, is a descriptor of the root file system: a detached mount (RootDetached) or a directory. Else Spec.Root.Path in the bundle is opened.
	Root         *os.File
	RootDetached bool
	// Sources are detached mounts to attach for bind mounts whose Source is a name of theirs: what has no path on the host. Each is for one mount; they stay the caller's to close.
	Sources map[string]*os.File
	// NetNS, if set, is the network namespace to join instead of one made or joined by the spec.
	NetNS *os.File
	// Gate keeps the process before its credentials and execve until Start is called (OCI create). Without it Create returns after execve succeeded. A gate needs a
	// folder for its socket (StateDir, or Options.Root).
	Gate bool
	// Terminal programs open their console and send its master over launch.SlotConsole.
	Launcher Launcher
	// DieWithLauncher has the kernel kill the process when the thread that cloned it ends. It is for launchers that stay as long as the process, as a monitor does.
	DieWithLauncher bool
	// SystemdCgroup makes cgroups through systemd over D-Bus.
	SystemdCgroup bool
	PreserveFDs   int
	// Rootless relaxes what an ordinary user cannot do.
	Rootless bool
	NoPivot  bool
	// NoNewKeyring leaves the session keyring of the caller to the container.
	NoNewKeyring bool
	// StateDir is the folder of this container's record; empty: Options.Root/ID. Such a container is found again by LoadDir.
	StateDir string
}

// Status is the OCI state of a container.
type Status string

const (
	Creating Status = "creating"
	Created  Status = "created"
	Running  Status = "running"
	Paused   Status = "paused"
	Stopped  Status = "stopped"
)

// Stats are the kernel's figures for a container; units as in the cgroup files (bytes, nanoseconds).
type Stats struct {
	CPUTotal, CPUUser, CPUSystem            uint64
	PerCPU                                  []uint64
	ThrottledPeriods, Periods, ThrottledNS  uint64
	MemoryUsage, MemoryLimit, MemoryMax     uint64
	MemoryStat                              []Counter // memory.stat, in its order
	Failcnt, OOMKills, Swap                 uint64
	Pids, PidsLimit                         uint64
	BlkioServiceBytes, BlkioServiced        []BlkioEntry
	CPUPressure, MemoryPressure, IOPressure Pressure
}

// Pressure is for how long tasks had to wait for a resource.
type Pressure = cgroup.Pressure

// Details are what Stats leaves out.
type Details = cgroup.Details

// Counter is one line of a file of counters.
type Counter = cgroup.Counter

// BlkioEntry is one line of a blkio file.
type BlkioEntry = cgroup.BlkioEntry

// Exec describes another process in a running container.
type Exec struct {
	Process  *specs.Process
	Launcher Launcher
	// DieWithLauncher and PreserveFDs as in RunOptions.
	DieWithLauncher bool
	PreserveFDs     int
	// IgnorePaused lets it into a paused container: it is frozen at once, and Exec returns once the container goes on.
	IgnorePaused bool
	// Cgroups are cgroups below the container's that it joins, as [cgroup.Manager.Below] takes them; the container's own without.
	Cgroups []string
}
