// Package foreign drives the command line of other OCI runtimes (crun, runc, runsc, kata-runtime, youki …), with which a container can be run instead of with our own.
//
// It owns <root>, drawn below. It knows the command line that these runtimes have in common (runc's; crun's manual describes it) and the runtime specification; it does not know what a runtime does inside.
// It promises: what a container is asked for that its runtime says it cannot do is refused; a container that is removed leaves nothing; a record names the command itself, so that a container can
// be controlled when the engine's settings have changed meanwhile.
//
//	<root>/<id>/bundle/config.json    the OCI configuration
//	           /bundle/rootfs, mounts/<n>   where the file tree and other detached mounts are attached
//	           /record.json           command, number of the first process
//	           /create.pid, .tty, .log      of the command at work; exec-<n>… the same of sessions
//	           /state/                the runtime's own (--root), so that all of it goes with the container
//	      /.<id>                      of a container that is being removed
//
// # Who makes the process
//
// A monitor does, as for our own runtime: it is handed a program ([launch.Builder.Makes]) that ends in the runtime's create. So the container's process has the monitor's pipes, and becomes its child
// when create ended: the monitor is its subreaper, keeps its output, log and exit, and outlives the engine.
//
//	engine ──program──▶ monitor ──clone──▶ [own mount namespace, file tree attached] ──execve──▶ crun create --pid-file … ──▶ container's process, waiting
//	   │                   ▲                                                                        │ ends                    │
//	   │                   └───────────────────────── adopts by the pid file ◀──────────────────────┴─────────────────────────┘
//	   └──crun start, state, exec, kill, pause, resume, update, ps, delete
//
// File tree and detached mounts are attached in a mount namespace of the create command alone, which the container's is made from: the host's mount table shows nothing of them, and nothing is left when
// all end. The same holds for runtimes that keep a process of their own beside the container.
package foreign

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/linux/cgroup"
	"corten.dev/corten/internal/runtime"
)

// Command is how a runtime is called.
type Command struct {
	Name string   // what containers call it
	Path string   // of the program; a bare name is looked for in $PATH
	Args []string // before everything else
}

// Options of Runtimes.
type Options struct {
	Root     string // folder of the records; made when needed
	Commands []Command
	Systemd  bool // cgroups are made through systemd (--systemd-cgroup)
	Logger   *slog.Logger
}

// Runtimes makes containers by other runtimes, and finds them again. It may be used by many goroutines.
type Runtimes struct {
	opts     Options
	log      *slog.Logger
	commands map[string]Command
	host     func() (*cgroup.Host, error)
	features features
}

// New makes a Runtimes. It touches nothing.
func New(opts Options) *Runtimes {
	r := &Runtimes{opts: opts, log: opts.Logger, commands: map[string]Command{}, host: sync.OnceValues(cgroup.Discover)}
	if r.log == nil {
		r.log = slog.New(slog.DiscardHandler)
	}
	for _, c := range opts.Commands {
		r.commands[c.Name] = c
	}
	return r
}

// Has tells whether there is a runtime of that name.
func (r *Runtimes) Has(name string) bool {
	_, ok := r.commands[name]
	return ok
}

const recordName = "record.json"

// record is what is stored of a container. It is written before its runtime is asked for anything, without a process, and again with it.
type record struct {
	ID      string
	Command Command
	Systemd bool
	Cgroup  string // the configuration's cgroupsPath
	PID     int    `json:",omitempty"`
	Start   uint64 `json:",omitempty"` // of the process, in ticks after boot: numbers are used again
	Started bool   `json:",omitempty"`
}

func (r *Runtimes) dir(id string) string { return filepath.Join(r.opts.Root, id) }

// Load finds a container that was made earlier; errs.NotFound. One that was never started has no process.
func (r *Runtimes) Load(ctx context.Context, id string) (*Container, error) {
	if id == "" || strings.ContainsAny(id, "/\x00") || id[0] == '.' {
		return nil, errs.New(errs.Invalid, "container id %q", id)
	}
	body, err := os.ReadFile(filepath.Join(r.dir(id), recordName))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, errs.New(errs.NotFound, "container %s does not exist", id)
	}
	if err != nil {
		return nil, fmt.Errorf("load container %s: %w", id, err)
	}
	ctr := &Container{r: r, dir: r.dir(id)}
	if err := json.Unmarshal(body, &ctr.rec); err != nil {
		return nil, fmt.Errorf("load container %s: record: %w", id, err)
	}
	if start, err := runtime.StartTime(ctr.rec.PID); err != nil || start != ctr.rec.Start {
		ctr.rec.PID = 0
	}
	if ctr.rec.PID != 0 && !ctr.rec.Started { // who made it was killed in between
		if st, err := ctr.state(ctx); err != nil || st.Status == specs.StateCreated {
			ctr.rec.PID = 0
		}
	}
	return ctr, nil
}

// Prepare makes the folder of all, where there is a runtime, and clears away what a killed engine left of the containers that it was removing. A long-lived caller calls it once, before all else; without it the
// first container makes the folder.
func (r *Runtimes) Prepare() {
	left, err := filepath.Glob(r.dir(".*"))
	for _, dir := range left {
		err = errors.Join(err, os.RemoveAll(dir))
	}
	if len(r.commands) > 0 {
		err = errors.Join(err, os.MkdirAll(r.opts.Root, 0o700))
	}
	if err != nil {
		r.log.Warn("the folder of other runtimes' containers", "error", err)
	}
}

// List names the containers of which there is anything.
func (r *Runtimes) List() ([]string, error) {
	entries, err := os.ReadDir(r.opts.Root)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list containers of other runtimes: %w", err)
	}
	var ids []string
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), ".") {
			ids = append(ids, e.Name())
		}
	}
	return ids, nil
}

// save writes the record aside and renames it. A boot takes it away as it does the container, so that it is not flushed.
func (ctr *Container) save() error {
	body, err := json.Marshal(ctr.rec)
	if err != nil {
		return err
	}
	path := filepath.Join(ctr.dir, recordName)
	err = os.WriteFile(path+".new", body, 0o600)
	if err == nil {
		err = os.Rename(path+".new", path)
	}
	if err != nil {
		_ = os.Remove(path + ".new") // it may not be there
	}
	return err
}
