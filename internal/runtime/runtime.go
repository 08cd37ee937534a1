// Package runtime is the room of the OCI runtime: a bundle in, a process out.
//
// It owns <root>/<id>/state.json (root is <exec-root>/runtime for the engine, --root for the command line) and the container's cgroups. It knows runtime-spec 1.2+ and the kernel; it knows
// neither images nor the engine. It promises: no path inside a container's root is resolved by name alone; no descriptor leaks in; no procfs write goes anywhere but procfs; what a failed
// create or start made is taken down again.
//
// Who makes the process is the caller's [Launcher]: the engine hands a monitor, the command line starts it itself.
//
// The hand-shake (sync socket, drawn in full in sync.go):
//
//	runtime                                   first process (no Go runtime; walks a launch.Program)
//	prepare spec → program, cgroups, files
//	Launcher.Launch ───────────clone3───────▶ begins
//	                 ◀── "namespaces ready" ─ (only when id maps, hooks or a seccomp notifier need the runtime)
//	id maps, hooks   ─── "go on" ───────────▶ mounts, pivot_root, masks, caps, seccomp
//	                 ◀── "ready" ──────────── (only with a gate: OCI create)
//	start            ─── "go" ──────────────▶ execve
//	                 ◀── EOF (close on exec): started;  or {operation, errno}: failed
package runtime

import (
	"context"
	"os"

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
	// NetNS, if set, is the network namespace to join instead of one made or joined by the spec.
	NetNS *os.File
	// Gate keeps the process before execve until Start is called (OCI create). Without it Create returns after execve succeeded.
	Gate bool
	// Terminal programs open their console and send its master over launch.SlotConsole.
	Launcher Launcher
	// SystemdCgroup makes cgroups through systemd over D-Bus.
	SystemdCgroup bool
	PreserveFDs   int
	// Rootless relaxes what an ordinary user cannot do.
	Rootless bool
	NoPivot  bool
	// Persist writes state.json under Root, so that Load finds the container again.
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
	CPUTotal, CPUUser, CPUSystem           uint64
	PerCPU                                 []uint64
	ThrottledPeriods, Periods, ThrottledNS uint64
	MemoryUsage, MemoryLimit, MemoryMax    uint64
	MemoryStat                             map[string]uint64
	Failcnt                                uint64
	Pids, PidsLimit                        uint64
	BlkioServiceBytes, BlkioServiced       []BlkioEntry
}

// BlkioEntry is one line of a blkio file.
type BlkioEntry struct {
	Major, Minor uint64
	Op           string
	Value        uint64
}

// Exec describes another process in a running container.
type Exec struct {
	Process  *specs.Process
	Launcher Launcher
	// PreserveFDs as in RunOptions.
	PreserveFDs int
}
