package cgroup

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"corten.dev/corten/internal/errs"
	"golang.org/x/sys/unix"
)

// Bounds of the loops that wait for the kernel.
const (
	freezeTimeout  = 10 * time.Second
	killTimeout    = 10 * time.Second
	destroyTimeout = 2 * time.Second
)

// Freeze stops every process, and returns when all of them stand still.
func (m *Manager) Freeze() error {
	dir, v2 := m.dirOf("freezer")
	if dir == "" {
		return m.missing("freezer")
	}
	if v2 {
		return m.freezeV2(dir, true)
	}
	return m.freezeV1(dir)
}

// freezeV1 asks, waits, and asks again: a process that forks while the freezer walks along keeps the cgroup in the state FREEZING until it is told once more.
func (m *Manager) freezeV1(dir string) error {
	deadline := time.Now().Add(freezeTimeout)
	wait := 20 * time.Microsecond
	for try := 1; ; try++ {
		if err := m.writeFile(dir, "freezer.state", "FROZEN"); err != nil {
			return fmt.Errorf("freeze %s: %w", m.id, err)
		}
		state, err := readFile(dir, "freezer.state")
		if err != nil {
			return fmt.Errorf("freeze %s: %w", m.id, err)
		}
		if state == "FROZEN" {
			return nil
		}
		if time.Now().After(deadline) {
			err := errs.New(errs.Unavailable, "freeze %s: processes do not stop within %s", m.id, freezeTimeout)
			return errors.Join(err, m.Thaw())
		}
		if try%25 == 0 { // let a process out that waits for a frozen one (vfork, ptrace)
			if err := m.writeFile(dir, "freezer.state", "THAWED"); err != nil {
				return fmt.Errorf("freeze %s: %w", m.id, err)
			}
		}
		time.Sleep(wait)
		wait = min(2*wait, 10*time.Millisecond)
	}
}

// freezeV2 writes cgroup.freeze and waits until cgroup.events agrees.
func (m *Manager) freezeV2(dir string, frozen bool) error {
	val := "0"
	if frozen {
		val = "1"
	}
	fd, err := openRetry(dir+"/cgroup.events", unix.O_RDONLY)
	if err != nil {
		return fmt.Errorf("freeze %s: %w", m.id, err)
	}
	defer unix.Close(fd) //nolint:errcheck // read only
	if err := m.writeFile(dir, "cgroup.freeze", val); err != nil {
		return fmt.Errorf("freeze %s: %w", m.id, err)
	}
	deadline := time.Now().Add(freezeTimeout)
	for {
		var buf [256]byte
		n, err := unix.Pread(fd, buf[:], 0)
		if err != nil {
			return fmt.Errorf("freeze %s: %w", m.id, err)
		}
		if strings.Contains(string(buf[:n]), "frozen "+val) {
			return nil
		}
		left := time.Until(deadline)
		if left <= 0 {
			err := errs.New(errs.Unavailable, "freeze %s: processes do not stop within %s", m.id, freezeTimeout)
			if frozen {
				err = errors.Join(err, m.writeFile(dir, "cgroup.freeze", "0"))
			}
			return err
		}
		// The kernel reports a change of cgroup.events as an urgent event.
		if _, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLPRI}}, int(left/time.Millisecond)+1); err != nil && err != unix.EINTR {
			return fmt.Errorf("freeze %s: %w", m.id, err)
		}
	}
}

// Thaw lets the processes go on.
func (m *Manager) Thaw() error {
	dir, v2 := m.dirOf("freezer")
	switch {
	case dir == "":
		return m.missing("freezer")
	case v2:
		return m.freezeV2(dir, false)
	}
	if err := m.writeFile(dir, "freezer.state", "THAWED"); err != nil {
		return fmt.Errorf("thaw %s: %w", m.id, err)
	}
	return nil
}

// Frozen tells whether the processes stand still.
func (m *Manager) Frozen() (bool, error) {
	dir, v2 := m.dirOf("freezer")
	if dir == "" {
		return false, nil
	}
	file, yes := "freezer.state", "FROZEN"
	if v2 {
		file, yes = "cgroup.freeze", "1"
	}
	state, err := readFile(dir, file)
	if err != nil {
		return false, fmt.Errorf("frozen state of %s: %w", m.id, err)
	}
	return state == yes, nil
}

// Pids lists all processes of the container, those in cgroups below its own included.
func (m *Manager) Pids() ([]int, error) {
	dir := m.procsDir()
	if dir == "" {
		return nil, nil
	}
	pids, err := pidsBelow(dir)
	if err != nil {
		return nil, fmt.Errorf("processes of %s: %w", m.id, err)
	}
	return pids, nil
}

// procsDir is the directory whose processes are the container's. A v1 hierarchy that a container can hardly be in two minds about comes first: what the monitor
// joined by `tasks` is there for certain.
func (m *Manager) procsDir() string {
	for _, c := range []string{"freezer", "devices", "pids", "memory"} {
		for _, d := range m.v1 {
			if d.hier.has(c) {
				return m.at(d)
			}
		}
	}
	if len(m.v1) > 0 {
		return m.at(m.v1[0])
	}
	return m.v2
}

// pidsBelow reads cgroup.procs of a directory and all below. A cgroup that is gone has no processes.
func pidsBelow(dir string) ([]int, error) {
	var pids []int
	err := walk(dir, func(d string) error {
		data, err := os.ReadFile(d + "/cgroup.procs")
		switch {
		case missingFile(err), isErrno(err, unix.ENODEV), isErrno(err, unix.EOPNOTSUPP):
			return nil // gone meanwhile, or a threaded cgroup, whose processes its parent lists
		case err != nil:
			return err
		}
		for _, f := range strings.Fields(string(data)) {
			pid, err := strconv.Atoi(f)
			if err != nil {
				return fmt.Errorf("%s/cgroup.procs: %w", d, err)
			}
			pids = append(pids, pid)
		}
		return nil
	})
	return pids, err
}

// walk calls fn for dir and every cgroup below it, parents first.
func walk(dir string, fn func(string) error) error {
	if err := fn(dir); err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Lstat(dir, &st); err != nil || st.Nlink <= 2 {
		if err == unix.ENOENT {
			err = nil
		}
		return err // the kernel counts a cgroup's children in its links: most have none
	}
	entries, err := os.ReadDir(dir)
	if missingFile(err) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.IsDir() {
			if err := walk(dir+"/"+e.Name(), fn); err != nil {
				return err
			}
		}
	}
	return nil
}

// Kill signals every process. With SIGKILL it returns when none is left, and thaws what was frozen, because a frozen process of v1 dies only then.
func (m *Manager) Kill(sig unix.Signal) error {
	if sig != unix.SIGKILL {
		_, err := m.signal(sig)
		return err
	}
	if m.v2 != "" {
		// All at once, forks included (Linux 5.14). On a hybrid host some process may not be in the v2 tree: the loop below looks.
		err := m.writeFile(m.v2, "cgroup.kill", "1")
		if err != nil && !missingFile(err) && !isErrno(err, unix.EOPNOTSUPP) {
			return fmt.Errorf("kill %s: %w", m.id, err)
		}
	}
	deadline := time.Now().Add(killTimeout)
	wait := 100 * time.Microsecond
	for round := 0; ; round++ {
		n, err := m.killRound(round)
		if err != nil {
			return err
		}
		if n == 0 {
			return nil
		}
		if time.Now().After(deadline) {
			return errs.New(errs.Unavailable, "kill %s: %d processes do not end within %s", m.id, n, killTimeout)
		}
		time.Sleep(wait)
		wait = min(2*wait, 20*time.Millisecond)
	}
}

// killRound kills whom it finds. From the third round on it freezes them first, so that a fork bomb cannot outrun it.
func (m *Manager) killRound(round int) (int, error) {
	if dir, v2 := m.dirOf("freezer"); dir != "" && !v2 {
		if round >= 2 {
			if err := m.writeFile(dir, "freezer.state", "FROZEN"); err != nil && !missingFile(err) {
				return 0, fmt.Errorf("kill %s: %w", m.id, err)
			}
		}
		n, err := m.signal(unix.SIGKILL)
		if terr := m.writeFile(dir, "freezer.state", "THAWED"); terr != nil && !missingFile(terr) {
			err = errors.Join(err, fmt.Errorf("kill %s: %w", m.id, terr))
		}
		return n, err
	}
	return m.signal(unix.SIGKILL)
}

// heldAtOnce bounds how many processes are held at a time, by our limit of open files.
const heldAtOnce = 512

// signal sends sig to each process that is in the cgroup now, and returns how many it found.
func (m *Manager) signal(sig unix.Signal) (int, error) {
	pids, err := m.Pids()
	if err != nil {
		return 0, err
	}
	for some := range slices.Chunk(pids, heldAtOnce) {
		if err := m.signalSome(some, sig); err != nil {
			return 0, err
		}
	}
	return len(pids), nil
}

// signalSome signals those of pids that are still in the cgroup. A number that was read may belong to a stranger a moment later: so take hold of the process first, then look whether it is still listed.
func (m *Manager) signalSome(pids []int, sig unix.Signal) error {
	held := make([]int, 0, len(pids))
	defer func() {
		for _, fd := range held {
			if fd >= 0 {
				_ = unix.Close(fd) // a handle, nothing to lose
			}
		}
	}()
	for _, pid := range pids {
		fd, err := unix.PidfdOpen(pid, 0)
		if err != nil && err != unix.ESRCH && err != unix.EINVAL {
			return fmt.Errorf("signal process %d of %s: %w", pid, m.id, err)
		}
		if err != nil {
			fd = -1
		}
		held = append(held, fd)
	}
	still, err := m.Pids()
	if err != nil {
		return err
	}
	for i, fd := range held {
		if fd < 0 || !slices.Contains(still, pids[i]) {
			continue
		}
		if err := unix.PidfdSendSignal(fd, sig, nil, 0); err != nil && err != unix.ESRCH {
			return fmt.Errorf("signal process %d of %s: %w", pids[i], m.id, err)
		}
	}
	return nil
}

// Destroy removes the directories, and the ones that the container made below them. A cgroup whose last process is just ending is busy for a moment: Destroy
// waits for it, bounded. It never kills.
func (m *Manager) Destroy() error {
	if m.sd != nil {
		return m.sd.destroy()
	}
	ctx, cancel := context.WithTimeout(context.Background(), destroyTimeout)
	defer cancel()
	var all []error
	for _, p := range m.all() {
		if err := remove(ctx, p); err != nil {
			all = append(all, err)
		}
	}
	return errors.Join(all...)
}

// remove takes one directory away, children first if it has some.
func remove(ctx context.Context, p string) error {
	wait := 50 * time.Microsecond
	for {
		err := unix.Rmdir(p)
		if err == nil || err == unix.ENOENT {
			return nil
		}
		if err != unix.EBUSY && err != unix.EINTR {
			return fmt.Errorf("remove cgroup %s: %w", p, err)
		}
		// Out of descriptors is a matter of moments, too; a group that was given up then stayed for good.
		if err := removeChildren(p); err != nil && !errors.Is(err, unix.EMFILE) && !errors.Is(err, unix.ENFILE) {
			return err
		}
		select {
		case <-ctx.Done():
			pids, perr := pidsBelow(p)
			if perr != nil {
				return fmt.Errorf("remove cgroup %s: %w", p, perr)
			}
			return errs.New(errs.Conflict, "remove cgroup %s: still in use by processes %v", p, pids)
		case <-time.After(wait):
		}
		wait = min(2*wait, 50*time.Millisecond)
	}
}

func removeChildren(p string) error {
	var below []string
	if err := walk(p, func(d string) error { below = append(below, d); return nil }); err != nil {
		return fmt.Errorf("remove cgroup %s: %w", p, err)
	}
	for i := len(below) - 1; i > 0; i-- {
		if err := unix.Rmdir(below[i]); err != nil && err != unix.ENOENT && err != unix.EBUSY {
			return fmt.Errorf("remove cgroup %s: %w", below[i], err)
		}
	}
	return nil
}

// Unit is the systemd unit (a service or scope) that this process lives in, as the last part of its path in the v2 tree; empty outside of one.
func (h *Host) Unit() (string, error) {
	own, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return "", fmt.Errorf("find own cgroup: %w", err)
	}
	for line := range strings.Lines(string(own)) {
		p, ok := strings.CutPrefix(strings.TrimSpace(line), "0::")
		if !ok {
			continue
		}
		for _, part := range strings.Split(p, "/") {
			if strings.HasSuffix(part, ".service") || strings.HasSuffix(part, ".scope") {
				return part, nil
			}
		}
	}
	return "", nil
}

// Folder makes a cgroup of the v2 tree without limits and opens it, for CLONE_INTO_CGROUP: a place for processes that are to outlive the unit that started them. One
// that is there is taken as it is. The caller closes it.
func Folder(host *Host, name string) (*os.File, error) {
	m, err := New(Options{Path: name, ID: "folder", Host: host})
	if err != nil {
		return nil, err
	}
	if m.v2 == "" {
		return nil, errs.New(errs.Unavailable, "cgroup %s: this host has no v2 tree", name)
	}
	if err := m.mkdirParents(host.v2, m.v2, false); err != nil {
		return nil, err
	}
	return m.V2Dir()
}

// RemoveParent removes a folder of cgroups (such as DefaultParent) from every hierarchy if nothing is in it any more; with containers left it does nothing.
func RemoveParent(host *Host, parent string) error {
	m, err := New(Options{Path: parent, ID: "parent", Host: host})
	if err != nil {
		return err
	}
	for _, p := range m.all() {
		if err := unix.Rmdir(p); err != nil && err != unix.ENOENT && err != unix.EBUSY {
			return fmt.Errorf("remove cgroup %s: %w", p, err)
		}
	}
	return nil
}
