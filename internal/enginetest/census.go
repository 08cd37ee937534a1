package enginetest

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// A Census is all that an engine has, in the kernel and on disk: how often each thing is there. Two of them tell what somebody left behind.
//
//	process NAME           processes of the engine: itself, its helpers, monitors, containers
//	network namespaces     distinct ones that these live in or hold open
//	descriptor KIND        open in the engine
//	goroutines             of the engine
//	link                   host ends of containers' interfaces
//	mount …  cgroup …  nft …             of the host, when they bear the engine's names
//	file PATH              below the data root and the exec root; layers and trees count as one
type Census map[string]int

// loose are counts that go up and down with connections and timers, or with pools that are filled when there is time. What is loose and belongs to a container that is gone outlives the
// engine, and is found then.
var loose = regexp.MustCompile(`^(goroutines|descriptor .*|process corten-monitor|network namespaces|link)$`)

// slack is how many more of a loose kind are no leak. A busy machine may take the first census before the pool of ready namespaces (8 on the bridge, and some bare ones) is filled,
// and the second after.
const slack = 5

var pooled = regexp.MustCompile(`^(descriptor (net|mount)|network namespaces|link)$`)

const pooledSlack = 14

// lazy are files that an engine makes when it first needs them, and keeps.
var lazy = regexp.MustCompile(`^file (e/[a-z]+\.sock|e/corten-init|e/shm|e/(monitors|runtime|log)/?|d/volumes/\.[a-z]+|d/(images|content)/[a-z-]+(\.json)?|d/registry(/.*)?|d/content/(blobs|ingest)/sha256)$`)

// Census counts what the engine has now.
func (e *Engine) Census() Census {
	c := Census{}
	namespaces := map[string]bool{}
	for _, pid := range e.processes() {
		if name, err := os.ReadFile(pid + "/comm"); err == nil {
			c["process "+strings.TrimSpace(string(name))]++
		}
		holders, _ := filepath.Glob(pid + "/fd/*")
		for _, path := range append(holders, pid+"/ns/net") {
			if to, err := os.Readlink(path); err == nil && strings.HasPrefix(to, "net:") {
				namespaces[to] = true
			}
		}
	}
	c["network namespaces"] = len(namespaces)
	for trace := range e.traces() {
		if strings.HasPrefix(trace, "link ") { // some are kept ready for the next containers, under ever new names
			trace = "link"
		}
		c[trace]++
	}
	if out, err := exec.Command("nft", "-s", "list", "table", "inet", e.Table).Output(); err == nil {
		for line := range strings.Lines(string(out)) {
			c["nft "+strings.TrimSpace(line)]++
		}
	}
	if e.running() {
		e.inside(c)
	}
	e.files(c)
	return c
}

// inside counts what the engine's process has open and going.
func (e *Engine) inside(c Census) {
	fds, _ := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", e.Cmd.Process.Pid))
	for _, path := range fds {
		to, err := os.Readlink(path)
		if err != nil {
			continue // closed meanwhile
		}
		kind, _, _ := strings.Cut(to, "[")
		switch {
		case to == "/": // a detached one: a container's tree, or what is kept ready with a namespace
			kind = "mount"
		case strings.HasPrefix(to, "/"):
			kind = "file"
		}
		c["descriptor "+strings.TrimSuffix(kind, ":")]++
	}
	if out, err := e.Try("info", "-f", "{{.NGoroutines}}"); err == nil {
		c["goroutines"], _ = strconv.Atoi(out)
	}
}

// keptByBuilds are files that stay when the cache of builds was pruned and that another build finds: journals of records and holds, the history, what is the same for all steps.
func keptByBuilds(path string) bool {
	for _, pattern := range []string{"d/builds/history/*", "d/builds/history/status/*", "d/builds/cache/*", "d/builds/checksums/*", "d/builds/sources/git/*", "d/builds/sources/http/*", "d/builds/mirrors/*",
		"d/snapshots/*/flushed", "d/snapshots/*/holds", "e/steps/files", "e/steps/files/*", "e/steps/runtime"} {
		if ok, err := filepath.Match(pattern, path); err == nil && ok {
			return true
		}
	}
	return false
}

func (e *Engine) files(c Census) {
	for _, root := range []string{"d", "e"} {
		real, err := filepath.EvalSymlinks(filepath.Join(e.Dir, root)) // a test may have put it elsewhere
		if err != nil {
			continue
		}
		_ = filepath.WalkDir(real, func(path string, d fs.DirEntry, err error) error {
			if err != nil || path == real {
				return nil //nolint:nilerr // what goes away during the walk is not there
			}
			if keptByBuilds(root + strings.TrimPrefix(path, real)) {
				if d.IsDir() {
					return fs.SkipDir
				}
				return nil
			}
			c["file "+root+strings.TrimPrefix(path, real)]++
			if name := d.Name(); d.IsDir() && (name == "tree" || name == "upper" || name == "work" || name == "_data") {
				return fs.SkipDir
			}
			return nil
		})
	}
}

// Settled takes a census once nothing changes any more: the engine fills its pools and empties its trash in the background.
func (e *Engine) Settled() Census {
	last := e.Census()
	for range 40 {
		time.Sleep(50 * time.Millisecond)
		now := e.Census()
		if more(now, last) == nil && more(last, now) == nil {
			return now
		}
		last = now
	}
	return last
}

// CheckLeft fails the test if the engine has more of something than it had before, for a minute on end: containers that come and go by themselves are no leak.
func (e *Engine) CheckLeft(before Census) {
	e.t.Helper()
	left := more(e.Census(), before)
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		if len(left) == 0 {
			return
		}
		now := more(e.Census(), before)
		left = slices.DeleteFunc(left, func(what string) bool { return !slices.Contains(now, what) })
	}
	if len(left) == 0 {
		return
	}
	for i, what := range left {
		if name, ok := strings.CutPrefix(what, "process "); ok {
			name, _, _ = strings.Cut(name, ":")
			left[i] += e.described(name)
		}
		if strings.HasPrefix(what, "descriptor file") {
			left[i] += e.openFiles()
		}
	}
	e.t.Errorf("left behind:\n%s\n%s", strings.Join(left, "\n"), e.Log())
}

// openFiles lists the files that the engine has open, one a line.
func (e *Engine) openFiles() string {
	var all []string
	fds, _ := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", e.Cmd.Process.Pid))
	for _, path := range fds {
		if to, err := os.Readlink(path); err == nil && strings.HasPrefix(to, "/") {
			all = append(all, "\n    "+to)
		}
	}
	slices.Sort(all)
	return strings.Join(all, "")
}

// described tells of each process of a name what it is, one a line.
func (e *Engine) described(name string) string {
	var all strings.Builder
	for _, pid := range e.processes() {
		if comm, err := os.ReadFile(pid + "/comm"); err == nil && strings.TrimSpace(string(comm)) == name {
			all.WriteString("\n    " + describe(pid))
		}
	}
	return all.String()
}

// describe tells what a process is: its command line, whose child it is, how old, and what it waits for. A program that was run from a descriptor is called by its number.
func describe(pid string) string {
	read := func(name string) string {
		raw, err := os.ReadFile(pid + "/" + name)
		if err != nil {
			return "?"
		}
		return strings.TrimSpace(string(bytes.ReplaceAll(raw, []byte{0}, []byte{' '})))
	}
	program, err := os.Readlink(pid + "/exe")
	if err != nil {
		program = "?"
	}
	state, parent, age := "?", "?", "?"
	stat := read("stat")
	if _, rest, ok := strings.Cut(stat, ") "); ok {
		if f := strings.Fields(rest); len(f) > 19 {
			state, parent = f[0], f[1]
			if comm, err := os.ReadFile("/proc/" + parent + "/comm"); err == nil {
				parent += " (" + strings.TrimSpace(string(comm)) + ")"
			}
			age = ageOf(f[19])
		}
	}
	return fmt.Sprintf("%s (%s) %q, program %s, child of %s, %s old, state %s in %s", filepath.Base(pid), read("comm"), read("cmdline"), program, parent, age, state, read("wchan"))
}

// ageOf tells how long ago a process began, by its time in ticks since the boot.
func ageOf(ticks string) string {
	const perSecond = 100 // USER_HZ, on every architecture that we know
	began, err := strconv.ParseFloat(ticks, 64)
	raw, rerr := os.ReadFile("/proc/uptime")
	up, _, _ := strings.Cut(string(raw), " ")
	now, perr := strconv.ParseFloat(up, 64)
	if err != nil || rerr != nil || perr != nil {
		return "?"
	}
	return fmt.Sprintf("%.1f s", now-began/perSecond)
}

// more lists of what there is more now than before.
func more(now, before Census) []string {
	var list []string
	for what, n := range now {
		switch had := before[what]; {
		case n <= had, lazy.MatchString(what), loose.MatchString(what) && n <= had+slack, pooled.MatchString(what) && n <= had+pooledSlack:
		case had == 0 && n == 1:
			list = append(list, what)
		default:
			list = append(list, fmt.Sprintf("%s: %d, before %d", what, n, had))
		}
	}
	slices.Sort(list)
	return list
}

func (e *Engine) running() bool {
	return e.Cmd != nil && e.Cmd.Process != nil && e.Cmd.ProcessState == nil
}

// pen is a cgroup of the engine's own. Its helpers and monitors are born into it and cannot be mistaken for those of another engine, whatever their names and parents
// are. Only where hierarchies are apart (cgroup v1): elsewhere the engine's own group says where it puts its helpers.
func (e *Engine) pen() string {
	const pids = "/sys/fs/cgroup/pids"
	if _, err := os.Stat(pids + "/cgroup.procs"); err != nil {
		return ""
	}
	return filepath.Join(pids, e.Table+"-engine")
}

// penned makes a command start in the pen; the process stays the same.
func (e *Engine) penned(cmd *exec.Cmd) error {
	pen := e.pen()
	if pen == "" {
		return nil
	}
	if err := os.Mkdir(pen, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	sh, err := exec.LookPath("sh")
	if err != nil {
		return err
	}
	cmd.Args = append([]string{"sh", "-c", `echo $$ > "$0" && exec "$@"`, pen + "/cgroup.procs", cmd.Path}, cmd.Args[1:]...)
	cmd.Path = sh
	return nil
}

// processes are the /proc folders of the engine and of all that came from it.
func (e *Engine) processes() []string {
	lists := []string{}
	if pen := e.pen(); pen != "" {
		lists = append(lists, pen+"/cgroup.procs")
	}
	for _, parent := range e.cgroups() {
		_ = filepath.WalkDir(parent, func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.Name() == "cgroup.procs" {
				lists = append(lists, path)
			}
			return nil
		})
	}
	found := map[string]bool{}
	for _, list := range lists {
		raw, err := os.ReadFile(list)
		if err != nil {
			continue // the group is gone
		}
		for pid := range strings.FieldsSeq(string(raw)) {
			found["/proc/"+pid] = true
		}
	}
	cmdlines, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, path := range cmdlines {
		raw, err := os.ReadFile(path)
		if err == nil && strings.Contains(string(raw), e.Dir) && strings.Contains(string(raw), "corten") {
			found[filepath.Dir(path)] = true
		}
	}
	var all []string
	for pid := range found {
		if n, err := strconv.Atoi(filepath.Base(pid)); err == nil && n != os.Getpid() && !ended(pid) {
			all = append(all, pid)
		}
	}
	slices.Sort(all)
	return all
}

// ended tells whether a process is gone, or only waits to be reaped by whoever is its parent now.
func ended(pid string) bool {
	raw, err := os.ReadFile(pid + "/stat")
	return err != nil || strings.Contains(string(raw), ") Z ")
}

// sweep takes away by force what is left, so that one failed test does not spoil the machine for the others.
func (e *Engine) sweep() {
	for range 20 {
		pids := e.processes()
		if len(pids) == 0 {
			break
		}
		for _, pid := range pids {
			n, err := strconv.Atoi(filepath.Base(pid))
			if err != nil {
				continue
			}
			if p, err := os.FindProcess(n); err == nil {
				_ = p.Kill() // it may have ended
			}
		}
		time.Sleep(50 * time.Millisecond)
	}
	groups := e.cgroups()
	if pen := e.pen(); pen != "" {
		groups = append(groups, pen)
	}
	for _, parent := range groups {
		var dirs []string
		_ = filepath.WalkDir(parent, func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				dirs = append(dirs, path)
			}
			return nil
		})
		slices.Reverse(dirs)
		for _, dir := range dirs {
			if err := os.Remove(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
				e.t.Error(err)
			}
		}
	}
	e.sweepHost()
	if err := os.RemoveAll(e.Dir); err != nil {
		e.t.Error(err)
	}
}

// sweepHost removes mounts, links and the packet table; each is usually gone already.
func (e *Engine) sweepHost() {
	for trace := range e.traces() {
		what, rest, _ := strings.Cut(trace, " ")
		switch what {
		case "mount":
			if f := strings.Fields(rest); len(f) > 4 {
				_ = exec.Command("umount", "-l", f[4]).Run()
			}
		case "link":
			_ = exec.Command("ip", "link", "delete", filepath.Base(filepath.Dir(strings.Fields(rest)[0]))).Run()
		case "bridge":
			_ = exec.Command("ip", "link", "delete", rest).Run()
		case "nft":
			_ = exec.Command("nft", "delete", "table", "inet", e.Table).Run()
		}
	}
}
