// Package cgroup gives a container its control groups: it makes them, limits them, freezes, counts and kills what is inside, and removes them.
//
// It owns the one directory per hierarchy that a [Manager] was made for, plus the parents that it had to make on the way (/corten); it never writes to,
// kills in or removes another cgroup. Three layouts are known: [V1] (one hierarchy per controller), [V2] (one for all) and [Hybrid] (controllers on
// v1 hierarchies, beside a v2 one that may hold the few controllers that v1 does not).
//
// It promises: Create either makes everything or leaves nothing; a limit that cannot be set is an error that names the file, never skipped; Kill
// returns when nothing runs any more; Destroy fails rather than removing a cgroup with processes in it.
//
// The way in is chosen for speed. Moving a process by writing its number takes the kernel's global thread-group lock and waits for an RCU grace period (5 to
// 20 ms). A single-threaded child that writes "0" to a v1 `tasks` file does not, nor does clone3 with CLONE_INTO_CGROUP. So:
//
//	parent                                child
//	Create(limits)
//	files = JoinFiles(), dir = V2Dir()
//	clone3(CLONE_INTO_CGROUP, dir) ─────▶ write "0" to each of files (v1 and hybrid)
//	                                      …, execve
//	Add(pid) only with systemd, whose scope needs a process to exist
//
// Figures (2-core machine, kernel 6.18, nine v1 hierarchies and a v2 one; medians of the benchmarks in this package):
//
//	discover the layout 0.02 ms; make all directories 0.17 ms (half of it the memory one) and set 12 device rules 0.03 ms; open the join files
//	0.03 ms; the child's own joining 0.07 ms; figures 0.07 ms; remove all 0.10 ms
//	v2: make and remove one directory 0.04 ms, compile and attach the device program 0.15 ms
//
// That is why there is neither a pool of ready cgroups nor a parent that carries device rules for its children to inherit: both would save less than
// they cost to keep right. The child's joining is also why it writes to nine files rather than being moved by a parent: that costs one grace period each.
package cgroup

import (
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"corten.dev/corten/internal/errs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// DefaultParent is the folder under the root of each hierarchy that holds the cgroups of containers without a path of their own.
const DefaultParent = "/corten"

// Options say whose cgroups to manage.
type Options struct {
	// Path is the OCI cgroupsPath. Empty means DefaultParent/ID. With Systemd it has the form slice:prefix:name.
	Path string
	// ID is the container's id, used for default names.
	ID string
	// Systemd lets systemd make the cgroup, over D-Bus.
	Systemd bool
	// Rootless accepts that cgroups cannot be made, as long as no limit is asked for.
	Rootless bool
	// Host is the machine's layout as found by Discover; nil looks again (about 0.05 ms).
	Host *Host
}

// Manager is the handle of one container's cgroups. It keeps no descriptor open. Its methods may be called by several goroutines, but Create and Destroy
// must not run beside others.
type Manager struct {
	host     *Host
	id       string
	path     string // inside each hierarchy, clean and absolute; never "/"
	asked    bool   // the path was given, not our default
	rootless bool
	v1       []dir  // one per v1 hierarchy in use; shared with the host's, never edited in place
	v2       string // directory in the v2 tree, "" if not used
	sd       *systemd
}

// dir is the container's directory in one v1 hierarchy. A thousand managers are kept for a thousand containers, so it spells out no path that the manager knows already.
type dir struct {
	hier *hierarchy
	own  string // absolute path, where it is not the manager's path below the hierarchy's root
}

// at is the absolute path of one of the directories.
func (m *Manager) at(d dir) string {
	if d.own != "" {
		return d.own
	}
	return d.hier.root + m.path
}

// State is what Load needs to manage the same cgroups again; it is stored as JSON.
type State struct {
	ID       string `json:"id"`
	Path     string `json:"path"`
	Asked    bool   `json:"asked,omitempty"`
	Rootless bool   `json:"rootless,omitempty"`
	Systemd  bool   `json:"systemd,omitempty"`
	// Unit is the systemd form of the path.
	Unit string `json:"unit,omitempty"`
	// Dirs maps the controllers of a hierarchy ("cpu,cpuacct", "name=systemd", "" for v2) to the container's directory there.
	Dirs map[string]string `json:"dirs"`
}

// New resolves where the cgroups of a container are to be. It touches nothing yet.
func New(opts Options) (*Manager, error) {
	host := opts.Host
	if host == nil {
		var err error
		if host, err = Discover(); err != nil {
			return nil, err
		}
	}
	if strings.ContainsAny(opts.ID, "/\x00") || opts.ID == "." || opts.ID == ".." || (opts.ID == "" && opts.Path == "") {
		return nil, errs.New(errs.Invalid, "cgroup name %q: not a file name", opts.ID)
	}
	m := &Manager{host: host, id: opts.ID, rootless: opts.Rootless, asked: opts.Path != ""}
	if opts.Systemd {
		return m, m.initSystemd(opts.Path)
	}
	p := opts.Path
	if p == "" {
		p = DefaultParent + "/" + opts.ID
	}
	if strings.ContainsRune(p, 0) || hasDotDot(p) {
		return nil, errs.New(errs.Invalid, "cgroups path %q: leaves the hierarchy", p)
	}
	m.path = path.Join("/", p)
	if m.path == "/" {
		return nil, errs.New(errs.Invalid, "cgroups path %q: is the root of the hierarchy", p)
	}
	base, err := host.rootlessBase(opts.Rootless)
	if err != nil {
		return nil, err
	}
	m.path = path.Join(base, m.path)
	m.place()
	return m, nil
}

func hasDotDot(p string) bool {
	for _, part := range strings.Split(p, "/") {
		if part == ".." {
			return true
		}
	}
	return false
}

// place computes the directories from the path.
func (m *Manager) place() {
	m.v1 = m.host.all()
	if m.host.v2 != "" {
		m.v2 = m.host.v2 + m.path
	}
}

// Create makes the directories, in every hierarchy, and sets the limits and device rules. res may be nil.
func (m *Manager) Create(res *specs.LinuxResources) (err error) {
	if m.sd != nil {
		return m.sd.prepare(res)
	}
	var made []string
	defer func() {
		if err == nil {
			return
		}
		for i := len(made) - 1; i >= 0; i-- {
			if rerr := unix.Rmdir(made[i]); rerr != nil && rerr != unix.ENOENT {
				err = errors.Join(err, fmt.Errorf("remove cgroup %s: %w", made[i], rerr))
			}
		}
	}()
	var lacking []dir
	for _, d := range m.v1 {
		if err := m.mkdir(d.hier.root, m.at(d), d.hier.has("cpuset")); err != nil {
			if m.rootless && denied(err) {
				lacking = append(lacking, d)
				continue
			}
			return err
		}
		made = append(made, m.at(d))
	}
	if len(lacking) > 0 {
		m.v1 = slices.DeleteFunc(slices.Clone(m.v1), func(d dir) bool { return slices.Contains(lacking, d) })
	}
	if m.v2 != "" {
		if err := m.mkdir(m.host.v2, m.v2, false); err != nil {
			// In a hybrid layout the v2 directory is a convenience (cgroup.kill); a host that forbids it still works.
			if !denied(err) || (m.host.mode == V2 && !m.rootless) {
				return err
			}
			m.v2 = ""
		} else {
			made = append(made, m.v2)
			if err := m.enable(res); err != nil {
				return err
			}
		}
	}
	return m.set(res, true)
}

func denied(err error) bool {
	return errors.Is(err, unix.EACCES) || errors.Is(err, unix.EPERM) || errors.Is(err, unix.EROFS)
}

// mkdir makes one cgroup. One that is there already is taken over if it is empty: our own leftover is made anew (old limits must not linger), one whose path
// was asked for is kept, because someone may have prepared it.
func (m *Manager) mkdir(root, p string, cpuset bool) error {
	err := unix.Mkdir(p, 0o755)
	if err == unix.ENOENT {
		if err := m.mkdirParents(root, filepath.Dir(p), cpuset); err != nil {
			return err
		}
		err = unix.Mkdir(p, 0o755)
	}
	if err == unix.EEXIST {
		if !m.asked {
			if err = unix.Rmdir(p); err == nil || err == unix.ENOENT {
				err = unix.Mkdir(p, 0o755)
			}
		} else {
			err = nil
			if pids, perr := pidsBelow(p); perr != nil {
				return perr
			} else if len(pids) > 0 {
				err = unix.EBUSY
			}
		}
		if err == unix.EBUSY {
			return errs.New(errs.Conflict, "cgroup %s: in use by another container", p)
		}
	}
	if err != nil {
		return fmt.Errorf("make cgroup %s: %w", p, err)
	}
	if cpuset {
		return m.fillCpuset(root, p)
	}
	return nil
}

func (m *Manager) mkdirParents(root, p string, cpuset bool) error {
	if len(p) <= len(root) {
		return nil
	}
	err := unix.Mkdir(p, 0o755)
	if err == unix.ENOENT {
		if err := m.mkdirParents(root, filepath.Dir(p), cpuset); err != nil {
			return err
		}
		err = unix.Mkdir(p, 0o755)
	}
	if err == unix.EEXIST {
		return nil
	}
	if err != nil {
		return fmt.Errorf("make cgroup %s: %w", p, err)
	}
	if cpuset {
		// A parent of ours hands its processors to its children when they are made, so that a start needs not copy them.
		if err := m.fillCpuset(root, p); err != nil {
			return err
		}
		return m.writeFile(p, "cgroup.clone_children", "1")
	}
	return nil
}

// fillCpuset gives a new v1 cpuset the processors and memory nodes of its parent: an empty one takes no process.
func (m *Manager) fillCpuset(root, p string) error {
	for _, name := range []string{"cpuset.cpus", "cpuset.mems"} {
		cur, err := readFile(p, name)
		if err != nil {
			return err
		}
		if cur != "" || p == root {
			continue
		}
		up := filepath.Dir(p)
		if err := m.fillCpuset(root, up); err != nil {
			return err
		}
		val, err := readFile(up, name)
		if err != nil {
			return err
		}
		if err := m.writeFile(p, name, val); err != nil {
			return err
		}
	}
	return nil
}

// JoinNames are the paths that [Manager.JoinFiles] would open, and whether [Manager.V2Dir] would have a directory, before they exist. Create may leave some out where
// cgroups are denied.
func (m *Manager) JoinNames() (tasks []string, v2 bool) {
	if m.sd != nil && !m.sd.running() {
		return nil, false
	}
	for _, d := range m.v1 {
		tasks = append(tasks, m.at(d)+"/tasks")
	}
	return tasks, m.v2 != ""
}

// JoinFiles opens the files into which the child itself, while it has a single thread, writes "0": the `tasks` file of every v1 hierarchy.
// The caller closes them. There are none on v2, and with systemd none until the unit is there: its first process is added, later ones (exec) may join.
func (m *Manager) JoinFiles() ([]*os.File, error) {
	if m.sd != nil && !m.sd.running() {
		return nil, nil
	}
	files := make([]*os.File, 0, len(m.v1))
	for _, d := range m.v1 {
		p := m.at(d) + "/tasks"
		fd, err := openRetry(p, unix.O_WRONLY) // os.OpenFile would offer it to the poller, at twice the cost
		if err != nil {
			err = fmt.Errorf("open %s: %w", p, err)
			for _, f := range files {
				err = errors.Join(err, f.Close())
			}
			return nil, err
		}
		files = append(files, os.NewFile(uintptr(fd), p))
	}
	return files, nil
}

// V2Dir opens the container's directory in the v2 tree, for CLONE_INTO_CGROUP. It is nil where no v2 tree is in use. On a hybrid host it is set as well and to be
// used beside JoinFiles: processes that are in it can be killed all at once. The caller closes it.
func (m *Manager) V2Dir() (*os.File, error) {
	if m.v2 == "" || m.sd != nil && !m.sd.running() {
		return nil, nil
	}
	fd, err := unix.Open(m.v2, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open cgroup %s: %w", m.v2, err)
	}
	return os.NewFile(uintptr(fd), m.v2), nil
}

// Add moves a process that exists already. It is the slow way; with systemd it is the only one, and the first call makes the unit.
func (m *Manager) Add(pid int) error {
	if m.sd != nil {
		return m.sd.add(pid)
	}
	for _, p := range m.all() {
		if err := m.writeFile(p, "cgroup.procs", fmt.Sprint(pid)); err != nil {
			return fmt.Errorf("add process %d: %w", pid, err)
		}
	}
	return nil
}

// Chown gives the v2 directory to a user, for a container that has a user and a cgroup namespace of its own and manages cgroups below its own. Only the files that
// the kernel names as safe to delegate change hands. On v1 nothing is safe to delegate, and nothing is done.
func (m *Manager) Chown(uid, gid int) error {
	if m.v2 == "" || m.host.mode != V2 {
		return nil
	}
	list, err := os.ReadFile("/sys/kernel/cgroup/delegate")
	if missingFile(err) {
		list, err = []byte("cgroup.procs cgroup.threads cgroup.subtree_control"), nil // before Linux 4.15
	}
	if err != nil {
		return fmt.Errorf("delegate cgroup of %s: %w", m.id, err)
	}
	for _, name := range append(strings.Fields(string(list)), ".") {
		if err := os.Lchown(m.v2+"/"+name, uid, gid); err != nil && !missingFile(err) {
			return fmt.Errorf("delegate cgroup of %s: %w", m.id, err)
		}
	}
	return nil
}

// Set changes limits. Only what is set in res is written. If one of them is refused the error names it; those written before stay.
func (m *Manager) Set(res *specs.LinuxResources) error {
	if m.sd != nil {
		return m.sd.set(res)
	}
	return m.set(res, false)
}

// all lists every directory of the container.
func (m *Manager) all() []string {
	all := make([]string, 0, len(m.v1)+1)
	for _, d := range m.v1 {
		all = append(all, m.at(d))
	}
	if m.v2 != "" {
		all = append(all, m.v2)
	}
	return all
}

// dirOf is the container's directory for a controller: in its v1 hierarchy, or else in the v2 tree if the controller is there.
func (m *Manager) dirOf(controller string) (p string, v2 bool) {
	for _, d := range m.v1 {
		if d.hier.has(controller) {
			return m.at(d), false
		}
	}
	if m.v2 != "" && m.host.v2Has(controller) {
		return m.v2, true
	}
	return "", false
}

// Path is where the container is inside each hierarchy, as /proc/PID/cgroup shows it.
func (m *Manager) Path() string { return m.path }

// Paths maps each controller to the container's directory; the v2 directory has the name "".
func (m *Manager) Paths() map[string]string {
	paths := make(map[string]string)
	for _, d := range m.v1 {
		for _, c := range d.hier.controllers {
			paths[c] = m.at(d)
		}
	}
	if m.v2 != "" {
		paths[""] = m.v2
	}
	return paths
}

// Mode is the layout of the host.
func (m *Manager) Mode() Mode { return m.host.mode }

// State is what Load needs.
func (m *Manager) State() State {
	st := State{ID: m.id, Path: m.path, Asked: m.asked, Rootless: m.rootless, Dirs: make(map[string]string)}
	for _, d := range m.v1 {
		st.Dirs[d.hier.name] = m.at(d)
	}
	if m.v2 != "" {
		st.Dirs[""] = m.v2
	}
	if m.sd != nil {
		st.Systemd, st.Unit = true, m.sd.form
	}
	return st
}

// Load manages again the cgroups that a State tells of. A host that is laid out differently now (after a reboot) simply has none of them.
// The layout is looked at if host is nil.
func Load(host *Host, st State) (*Manager, error) {
	opts := Options{ID: st.ID, Rootless: st.Rootless, Systemd: st.Systemd, Path: st.Unit, Host: host}
	if !st.Systemd {
		opts.Path = st.Path
		opts.Rootless = false // the stored path has the base already
	}
	m, err := New(opts)
	if err != nil {
		return nil, fmt.Errorf("load cgroup of %s: %w", st.ID, err)
	}
	m.asked, m.rootless = st.Asked, st.Rootless
	keep := make([]dir, 0, len(m.v1))
	for _, d := range m.v1 {
		if p, ok := st.Dirs[d.hier.name]; ok && p == m.at(d) {
			keep = append(keep, d)
		} else if ok && strings.HasPrefix(p, d.hier.root+"/") && !hasDotDot(p) {
			keep = append(keep, dir{d.hier, p})
		}
	}
	if !slices.Equal(keep, m.v1) {
		m.v1 = keep
	}
	p, ok := st.Dirs[""]
	if !ok || m.host.v2 == "" || !strings.HasPrefix(p, m.host.v2+"/") || hasDotDot(p) {
		p = ""
	}
	m.v2 = p
	return m, nil
}
