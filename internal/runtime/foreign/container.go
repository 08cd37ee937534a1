package foreign

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"corten.dev/corten/internal/linux/cgroup"
	"corten.dev/corten/internal/linux/counters"
	"corten.dev/corten/internal/runtime"
)

// Container is a container that another runtime made. Its methods may be called by several goroutines.
type Container struct {
	r   *Runtimes
	dir string
	rec record

	mu    sync.Mutex // guards execs
	execs int
}

// PID is the first process; 0 when it never was there, or is gone.
func (ctr *Container) PID() int { return ctr.rec.PID }

// Exec starts another process in the container, and returns when it was made.
func (ctr *Container) Exec(ctx context.Context, x runtime.Exec) (pid int, err error) {
	ctr.mu.Lock()
	ctr.execs++
	name := "exec-" + strconv.Itoa(os.Getpid()) + "-" + strconv.Itoa(ctr.execs)
	ctr.mu.Unlock()
	file := filepath.Join(ctr.dir, name+".json")
	body, err := json.Marshal(x.Process)
	if err != nil {
		return 0, err
	}
	if err := os.WriteFile(file, body, 0o600); err != nil {
		return 0, err
	}
	defer os.Remove(file) //nolint:errcheck // goes with the folder
	pid, pidfd, err := ctr.launch(ctx, job{
		launcher: x.Launcher, terminal: x.Process.Terminal, name: name, verb: []string{"exec", "--detach", "--process", file}, id: ctr.rec.ID,
	})
	if err != nil {
		return 0, err
	}
	return pid, pidfd.Close()
}

// Signal sends a signal to the first process, or with all to every process. errs.NotFound when the container has ended.
func (ctr *Container) Signal(ctx context.Context, sig syscall.Signal, all bool) error {
	verb := []string{"kill"}
	if all {
		verb = append(verb, "--all")
	}
	_, err := ctr.call(ctx, nil, append(verb, ctr.rec.ID, strconv.Itoa(int(sig)))...)
	return err
}

// state is what the runtime says of the container.
func (ctr *Container) state(ctx context.Context) (specs.State, error) {
	var st specs.State
	out, err := ctr.call(ctx, nil, "state", ctr.rec.ID)
	if err == nil {
		err = json.Unmarshal(out, &st)
	}
	return st, err
}

// Pause stops all processes.
func (ctr *Container) Pause(ctx context.Context) error {
	_, err := ctr.call(ctx, nil, "pause", ctr.rec.ID)
	return err
}

// Resume lets them go on. One that is not paused is what was wanted.
func (ctr *Container) Resume(ctx context.Context) error {
	st, err := ctr.state(ctx)
	if err != nil || st.Status != "paused" {
		return gone(err)
	}
	_, err = ctr.call(ctx, nil, "resume", ctr.rec.ID)
	return err
}

// Update changes the limits.
func (ctr *Container) Update(ctx context.Context, res *specs.LinuxResources) error {
	body, err := json.Marshal(res)
	if err != nil {
		return err
	}
	_, err = ctr.call(ctx, body, "update", "--resources", "-", ctr.rec.ID)
	return err
}

// PIDs lists all processes.
func (ctr *Container) PIDs(ctx context.Context) ([]int, error) {
	out, err := ctr.call(ctx, nil, "ps", "--format", "json", ctr.rec.ID)
	if err != nil {
		return nil, err
	}
	var pids []int
	if err := json.Unmarshal(out, &pids); err != nil {
		return nil, fmt.Errorf("processes of container %s, as runtime %s lists them: %w", ctr.rec.ID, ctr.rec.Command.Name, err)
	}
	return pids, nil
}

// Delete kills what is left, and removes what the runtime and this package have of the container.
func (ctr *Container) Delete(ctx context.Context) error {
	if _, err := ctr.call(ctx, nil, "delete", "--force", ctr.rec.ID); gone(err) != nil {
		return fmt.Errorf("delete container %s: %w", ctr.rec.ID, err)
	}
	return ctr.removeFolder()
}

// Meter reads the figures of the container's cgroup, which runtimes make where the configuration says.
type Meter struct {
	cg  *cgroup.Meter
	err error
}

// Meter makes one that keeps its files open as far as the budget goes.
func (ctr *Container) Meter(keep *counters.Budget) *Meter {
	host, err := ctr.r.host()
	if err != nil {
		return &Meter{err: err}
	}
	cg, err := cgroup.New(cgroup.Options{Path: ctr.rec.Cgroup, ID: ctr.rec.ID, Systemd: ctr.rec.Systemd, Host: host})
	if err != nil {
		return &Meter{err: err}
	}
	return &Meter{cg: cg.Meter(keep)}
}

// Read reads the figures as they are now; errs.NotFound when there is no such cgroup.
func (m *Meter) Read() (runtime.Stats, error) {
	if m.err != nil {
		return runtime.Stats{}, m.err
	}
	s, err := m.cg.Read()
	if err != nil {
		return runtime.Stats{}, err
	}
	return runtime.FromCgroup(&s), nil
}

// Close lets the files go.
func (m *Meter) Close() {
	if m.cg != nil {
		m.cg.Close()
	}
}

// feature is the part of the specification's features that matters here.
type feature struct {
	MountOptions []string
	Linux        struct {
		MountExtensions struct {
			IDMap struct{ Enabled bool }
		}
	}
}

// features remembers what runtimes say they can, by their commands.
type features struct {
	mu    sync.Mutex // guards known
	known map[string]*feature
}

// can asks the runtime. One that cannot be asked can nothing; it is asked again for the next container, since it may be another program by then.
func (ctr *Container) can(ctx context.Context, what func(*feature) bool) bool {
	fs := &ctr.r.features
	key := ctr.rec.Command.Name
	fs.mu.Lock()
	f := fs.known[key]
	fs.mu.Unlock()
	if f == nil {
		f = &feature{}
		out, err := ctr.call(ctx, nil, "features")
		if err == nil {
			err = json.Unmarshal(out, f)
		}
		if err != nil {
			ctr.r.log.Debug("a runtime does not say what it can", "runtime", key, "error", err)
			return false
		}
		fs.mu.Lock()
		if fs.known == nil {
			fs.known = map[string]*feature{}
		}
		fs.known[key] = f
		fs.mu.Unlock()
	}
	return what(f)
}
