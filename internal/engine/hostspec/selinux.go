package hostspec

import (
	"errors"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"github.com/opencontainers/selinux/go-selinux"
	"github.com/opencontainers/selinux/go-selinux/label"

	"corten.dev/corten/internal/container"
	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/linux/host"
)

// SharedLabel is the label of files that all containers may use; it is empty where the host does not run SELinux with a policy that has types for containers. Where it has none (Debian's names them and lacks
// them) no process could be given one: why says so, and containers run without labels, as the host's own services do.
func SharedLabel() (file, why string) {
	if !selinux.GetEnabled() {
		return "", "SELinux is not enabled on this host"
	}
	process, file, err := label.InitLabels(nil)
	if err == nil {
		selinux.ReleaseLabel(process)
		for _, l := range []string{process, file} {
			if l == "" {
				return "", "the SELinux policy of this host names no types for containers (contexts/lxc_contexts)"
			}
			if err := selinux.SecurityCheckContext(l); err != nil {
				ctx, _ := selinux.NewContext(l)
				return "", "the SELinux policy of this host has no type " + ctx["type"]
			}
		}
		file, err = withoutCategories(file)
	}
	if err != nil {
		return "", "the SELinux policy of this host: " + err.Error()
	}
	return file, ""
}

// levels counts who uses a level: several containers have one where one joins the processes or the memory of another, or where it was asked for (label=level:). The library keeps each level once, and would
// give one that was given back by the first of them to a stranger.
type levels struct {
	mu   sync.Mutex // also held while the library takes and gives back, which it does in memory
	used map[string]int
}

// takeLocked notes one more user of the level of a label.
func (l *levels) takeLocked(process string) {
	if level := levelOf(process); level != "" {
		if l.used == nil {
			l.used = map[string]int{}
		}
		l.used[level]++
	}
}

// giveLocked notes one user less, and tells whether that was the last.
func (l *levels) giveLocked(process string) (last bool) {
	level := levelOf(process)
	if l.used[level]--; l.used[level] > 0 {
		return false
	}
	delete(l.used, level)
	return true
}

// levelOf is the last part of user:role:type:level.
func levelOf(process string) string {
	if parts := strings.SplitN(process, ":", 4); len(parts) == 4 {
		return parts[3]
	}
	return ""
}

// Labels are the SELinux labels of a container's processes and of its files; both are empty where there is no policy for containers. They are taken until ReleaseLabels. Processes of
// a container that is privileged, or sees the processes or the memory of the host, are not confined.
//
// shared is the label of the processes of the container whose processes or memory it joins, "" for none: they could not meet otherwise.
func (s *Security) Labels(host *container.Host, shared string) (process, file string, err error) {
	sec, err := ParseSecurityOpt(host.SecurityOpt)
	if err != nil {
		return "", "", err
	}
	if !s.selinux {
		if len(sec.Label) > 0 {
			return "", "", errs.New(errs.Invalid, "security option label=%s asked for, but %s", sec.Label[0], s.noSELinux)
		}
		return "", "", nil
	}
	opts := sec.Label
	switch {
	case len(opts) > 0 && !sec.LabelDisable:
	case sec.LabelDisable, host.Privileged, host.PidMode == "host", host.IpcMode == "host":
		opts = []string{"disable"}
	case shared != "":
		if opts, err = selinux.DupSecOpt(shared); err != nil {
			return "", "", errs.New(errs.Invalid, "label of the container that is joined: %w", err)
		}
	}
	s.levels.mu.Lock()
	process, file, err = label.InitLabels(opts)
	if err == nil {
		s.levels.takeLocked(process)
	}
	s.levels.mu.Unlock()
	if err != nil {
		return "", "", errs.New(errs.Invalid, "security option label: %w", err)
	}
	for _, l := range []string{process, file} {
		if l == "" {
			continue
		}
		if err := selinux.SecurityCheckContext(l); err != nil {
			s.ReleaseLabels(process)
			return "", "", errs.New(errs.Invalid, "security option label: the SELinux policy of this host does not take %q", l)
		}
	}
	return process, file, nil
}

// ReserveLabels has no other container be given the categories of a label that one has already, from before this engine.
func (s *Security) ReserveLabels(process string) {
	if process == "" || !s.selinux {
		return
	}
	s.levels.mu.Lock()
	defer s.levels.mu.Unlock()
	s.levels.takeLocked(process)
	_ = selinux.ReserveLabelV2(process) // they may be another's already, as of a container that joined this one's processes
}

// ReleaseLabels gives the categories of a label back, once for each time that they were taken or reserved.
func (s *Security) ReleaseLabels(process string) {
	if process == "" || !s.selinux {
		return
	}
	s.levels.mu.Lock()
	defer s.levels.mu.Unlock()
	if s.levels.giveLocked(process) {
		selinux.ReleaseLabel(process)
	}
}

// LabelLayers gives a folder that layers of images are made in the label of files that all containers may read: what is made in it later has it from there. An overlay's mount shows files under a label of
// its own, but who maps one into memory is judged by the file's. It is for hosts that have a [SharedLabel].
func LabelLayers(dir string) error {
	want := selinux.ROFileLabel() //lint:ignore SA1019 nothing else reads it of the policy
	if want == "" {
		return nil
	}
	if now, err := selinux.FileLabel(dir); err == nil && now == want {
		return nil
	}
	return Relabel(want, dir, false)
}

func withoutCategories(file string) (string, error) {
	ctx, err := selinux.NewContext(file)
	if err != nil {
		return "", err
	}
	ctx["level"] = "s0"
	return ctx.Get(), nil
}

// Relabel gives a directory or file, which may be named by a descriptor's path, and all below it the label file, or with shared the one of it that all containers may use. A file system that knows no
// labels is left as it is.
func Relabel(file, path string, shared bool) (err error) {
	if shared {
		if file, err = withoutCategories(file); err != nil {
			return err
		}
	}
	st, err := os.Stat(path)
	if err != nil {
		return err
	}
	if st.IsDir() {
		if strings.HasPrefix(path, "/proc/self/fd/") {
			path += "/." // the walk would take the descriptor's path for a link
		}
		err = selinux.Chcon(path, file, true)
	} else {
		err = selinux.SetFileLabel(path, file)
	}
	if errors.Is(err, syscall.ENOTSUP) {
		return nil
	}
	return err
}

// LabelScratch gives a tree that is open and in memory, which a step of a build has for itself, the label file. Other trees show theirs already.
func LabelScratch(file string, tree *os.File) error {
	path := "/proc/self/fd/" + strconv.Itoa(int(tree.Fd()))
	if kind, err := host.FileSystem(path); err != nil || kind != "tmpfs" {
		return err
	}
	return Relabel(file, path, false)
}

// Share gives a directory or file and all below it the label of files that all containers may use, unless it has that already. file is a container's own.
func Share(file, path string) error {
	file, err := withoutCategories(file)
	if err != nil {
		return err
	}
	if now, err := selinux.FileLabel(path); err == nil && now == file {
		return nil
	}
	return Relabel(file, path, false)
}
