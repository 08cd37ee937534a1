package runtime

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/linux/cgroup"
	"corten.dev/corten/internal/linux/spread"
	"golang.org/x/sys/unix"
)

// Options of a Runtime.
type Options struct {
	// Root is the folder of the containers' records. Empty: nothing is recorded, and Load and List find nothing.
	Root string
	// Systemd makes cgroups through systemd for every container.
	Systemd bool
	// Rootless is for an ordinary user.
	Rootless bool
	// Logger hears what is odd but not wrong; nil for silence.
	Logger *slog.Logger
}

// Runtime makes containers and finds them again. It may be used by many goroutines; nothing is locked across containers.
type Runtime struct {
	opts Options
	log  *slog.Logger
	host func() (*cgroup.Host, error) // looked at once

	filters filters
	bare    bare
	folders *spread.Folder // Root, once it is prepared
}

// New makes a Runtime. It touches nothing.
func New(opts Options) *Runtime {
	rt := &Runtime{opts: opts, log: opts.Logger, host: sync.OnceValues(cgroup.Discover)}
	if rt.log == nil {
		rt.log = slog.New(slog.DiscardHandler)
	}
	return rt
}

// checkID refuses ids that are not file names.
func checkID(id string) error {
	const letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_+.-"
	if id == "" || len(id) > 255 || strings.Trim(id, letters) != "" || id == "." || id == ".." {
		return errs.New(errs.Invalid, "container id %q: may have letters, digits and _ + - . only", id)
	}
	return nil
}

func (rt *Runtime) dir(id string) string { return filepath.Join(rt.opts.Root, id) }

// Load finds a container that was created earlier, by whatever process.
func (rt *Runtime) Load(id string) (*Container, error) {
	if err := checkID(id); err != nil {
		return nil, err
	}
	if rt.opts.Root == "" {
		return nil, errs.New(errs.NotFound, "container %s does not exist", id)
	}
	return rt.LoadDir(rt.dir(id), id)
}

// LoadDir is Load for a container whose record is in a folder of its own (RunOptions.StateDir).
func (rt *Runtime) LoadDir(dir, id string) (*Container, error) {
	body, err := os.ReadFile(filepath.Join(dir, recordName))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, errs.New(errs.NotFound, "container %s does not exist", id)
	}
	if err != nil {
		return nil, fmt.Errorf("load container %s: %w", id, err)
	}
	ctr := &Container{rt: rt, dir: dir}
	if err := json.Unmarshal(body, &ctr.rec); err != nil {
		return nil, fmt.Errorf("load container %s: record: %w", id, err)
	}
	host, err := rt.host()
	if err != nil {
		return nil, fmt.Errorf("load container %s: %w", id, err)
	}
	if ctr.cg, err = cgroup.Load(host, ctr.rec.Cgroup); err != nil {
		return nil, fmt.Errorf("load container %s: %w", id, err)
	}
	ctr.rec.Filter = rt.filters.share(ctr.rec.Filter)
	ctr.rec.Cgroup = cgroup.State{} // the manager knows
	ctr.openPidfd()
	return ctr, nil
}

// abandoned tells whether who made a folder was killed meanwhile.
func abandoned(maker string, e fs.DirEntry) bool {
	pid, _, _ := strings.Cut(maker, "-")
	if n, err := strconv.Atoi(pid); err == nil && unix.Kill(n, 0) == unix.ESRCH {
		return true
	}
	info, err := e.Info() // its number may have another process now
	return err == nil && time.Since(info.ModTime()) > time.Minute
}

// List names the containers under Root.
func (rt *Runtime) List() ([]string, error) {
	if rt.opts.Root == "" {
		return nil, nil
	}
	entries, err := os.ReadDir(rt.opts.Root)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list containers: %w", err)
	}
	var ids []string
	for _, e := range entries {
		dir := filepath.Join(rt.opts.Root, e.Name())
		if maker, ok := strings.CutPrefix(e.Name(), newFolder); ok {
			if abandoned(maker, e) {
				_ = os.RemoveAll(dir) // a name that stays is a nuisance at worst
			}
		} else if _, err := os.Stat(filepath.Join(dir, recordName)); err == nil {
			ids = append(ids, e.Name())
		}
	}
	return ids, nil
}

// apparmorLoaded tells whether the kernel has a profile. Where that cannot be seen, or the name is one of several or of another policy namespace, the kernel shall say.
func apparmorLoaded(name string) bool {
	list, err := os.ReadFile("/sys/kernel/security/apparmor/profiles")
	if err != nil || strings.Contains(name, "//") || strings.HasPrefix(name, ":") {
		return true
	}
	return strings.Contains("\n"+string(list), "\n"+name+" (")
}

// apparmorEnabled tells whether the kernel runs AppArmor.
func apparmorEnabled() bool {
	body, err := os.ReadFile("/sys/module/apparmor/parameters/enabled")
	return err == nil && len(body) > 0 && body[0] == 'Y'
}

// selinuxEnabled tells whether the kernel runs SELinux.
func selinuxEnabled() bool { return exists("/sys/fs/selinux/enforce") }

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

func marshal(v any) ([]byte, error) {
	body, err := json.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("encode: %w", err)
	}
	return body, nil
}
