package runtime

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"corten.dev/corten/internal/linux/cgroup"
	"corten.dev/corten/internal/linux/seccomp"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

const recordName = "state.json"

// record is what is stored of a container, in state.json. It is written twice: before the cgroups are made, without a process, and when the process exists. Whether a created container was started shows in the
// presence of start.sock, whether it runs in the process itself.
type record struct {
	ID          string            `json:"id"`
	Bundle      string            `json:"bundle"`
	Rootfs      string            `json:"rootfs,omitempty"`
	Pid         int               `json:"pid"`
	StartTime   uint64            `json:"startTime"` // of the process, in ticks after boot: pids are used again
	Created     time.Time         `json:"created"`
	Owner       int               `json:"owner"`
	Cgroup      cgroup.State      `json:"cgroup"`
	Annotations map[string]string `json:"annotations,omitempty"`
	Hooks       *specs.Hooks      `json:"hooks,omitempty"`
	// Process and Seccomp are kept for a start by another process.
	Process *specs.Process      `json:"process,omitempty"`
	Agent   *specs.LinuxSeccomp `json:"agent,omitempty"` // listener path and metadata only
	Notes   []note              `json:"notes,omitempty"`
	// Filter is the compiled seccomp filter, which every exec gets too.
	Filter   []byte `json:"filter,omitempty"`
	Flags    uint   `json:"filterFlags,omitempty"`
	Notify   bool   `json:"filterNotify,omitempty"`
	UserNS   bool   `json:"userns,omitempty"`
	Rootless bool   `json:"rootless,omitempty"`
	Version  string `json:"ociVersion"`
}

// note says that operations from From on are for Text.
type note struct {
	From int    `json:"from"`
	Text string `json:"text"`
}

func packNotes(list []string) (out []note) {
	for i, text := range list {
		if len(out) == 0 || out[len(out)-1].Text != text {
			out = append(out, note{i, text})
		}
	}
	return out
}

func explainNotes(notes []note) func(int) string {
	return func(op int) string {
		text := "start program"
		for _, n := range notes {
			if n.From > op {
				break
			}
			text = n.Text
		}
		return text
	}
}

func packFilter(f *seccomp.Filter) []byte {
	if f == nil {
		return nil
	}
	out := make([]byte, 0, len(f.Prog)*8)
	for _, in := range f.Prog {
		out = append(out, byte(in.Code), byte(in.Code>>8), in.Jt, in.Jf, byte(in.K), byte(in.K>>8), byte(in.K>>16), byte(in.K>>24))
	}
	return out
}

func (r *record) filter() *seccomp.Filter {
	if len(r.Filter) == 0 {
		return nil
	}
	f := &seccomp.Filter{Flags: r.Flags, Notify: r.Notify, Prog: make([]unix.SockFilter, len(r.Filter)/8)}
	for i := range f.Prog {
		b := r.Filter[i*8:]
		f.Prog[i] = unix.SockFilter{Code: uint16(b[0]) | uint16(b[1])<<8, Jt: b[2], Jf: b[3], K: uint32(b[4]) | uint32(b[5])<<8 | uint32(b[6])<<16 | uint32(b[7])<<24}
	}
	return f
}

// save writes the record, whole or not at all. A host crash ends the process, so it is not flushed.
func (r *record) save(dir string) error {
	body, err := marshal(r)
	if err != nil {
		return err
	}
	tmp := filepath.Join(dir, "."+recordName)
	if err := os.WriteFile(tmp, body, 0o600); err != nil {
		return fmt.Errorf("record: %w", err)
	}
	if err := os.Rename(tmp, filepath.Join(dir, recordName)); err != nil {
		return errors.Join(fmt.Errorf("record: %w", err), os.Remove(tmp))
	}
	return nil
}

// StartTime is when a process was started, in ticks after boot: with its number it names the process.
func StartTime(pid int) (uint64, error) {
	start, _, err := processStat(pid)
	return start, err
}

// processStat reads when a process started and whether it is a zombie.
func processStat(pid int) (start uint64, state byte, err error) {
	body, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return 0, 0, err
	}
	// The name, in parentheses, may contain anything.
	fields := strings.Fields(string(body[strings.LastIndexByte(string(body), ')')+1:]))
	if len(fields) < 20 {
		return 0, 0, fmt.Errorf("stat of process %d: too short", pid)
	}
	start, err = strconv.ParseUint(fields[19], 10, 64)
	return start, fields[0][0], err
}

// innerPid is a process's number in the innermost pid namespace that it is in.
func innerPid(pid int) (int, error) {
	body, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/status")
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(body)) {
		if rest, ok := strings.CutPrefix(line, "NSpid:"); ok {
			if f := strings.Fields(rest); len(f) > 0 {
				return strconv.Atoi(f[len(f)-1])
			}
		}
	}
	return 0, fmt.Errorf("status of process %d: no NSpid", pid)
}
