// Package caps knows Linux capabilities: their names, their numbers, and Docker's rules for adding and dropping them.
//
// It owns the table of names up to the newest capability that Corten knows. It promises that a name that this kernel does not have is told apart from one that
// nobody knows, and that Resolve answers as Docker does.
package caps

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"corten.dev/corten/internal/errs"
)

// names by number, as in linux/capability.h, without the prefix CAP_.
var names = [...]string{
	"CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID", "SETPCAP", "LINUX_IMMUTABLE",
	"NET_BIND_SERVICE", "NET_BROADCAST", "NET_ADMIN", "NET_RAW", "IPC_LOCK", "IPC_OWNER", "SYS_MODULE", "SYS_RAWIO", "SYS_CHROOT", "SYS_PTRACE",
	"SYS_PACCT", "SYS_ADMIN", "SYS_BOOT", "SYS_NICE", "SYS_RESOURCE", "SYS_TIME", "SYS_TTY_CONFIG", "MKNOD", "LEASE", "AUDIT_WRITE",
	"AUDIT_CONTROL", "SETFCAP", "MAC_OVERRIDE", "MAC_ADMIN", "SYSLOG", "WAKE_ALARM", "BLOCK_SUSPEND", "AUDIT_READ", "PERFMON", "BPF",
	"CHECKPOINT_RESTORE",
}

// Known is the highest capability that has a name here.
const Known = len(names) - 1

// lastFile is where the kernel tells its highest capability.
const lastFile = "/proc/sys/kernel/cap_last_cap"

// Last is the highest capability of this kernel. Where /proc cannot be asked it is the highest known one. The kernel is asked once.
func Last() int { return last() }

var last = sync.OnceValue(askLast)

func askLast() int {
	data, err := os.ReadFile(lastFile)
	if err != nil {
		return Known
	}
	n, err := strconv.Atoi(strings.TrimSpace(string(data)))
	if err != nil || n < 0 || n > 63 {
		return Known
	}
	return n
}

// Name is the name of a capability with its prefix ("CAP_CHOWN"), "" if it has none.
func Name(i int) string {
	if i < 0 || i > Known {
		return ""
	}
	return "CAP_" + names[i]
}

// All lists the names of the capabilities that this kernel has and Corten knows, by number.
func All() []string {
	last := min(Last(), Known)
	all := make([]string, last+1)
	for i := range all {
		all[i] = Name(i)
	}
	return all
}

// number finds a capability; the name has no prefix and is in capitals.
func number(name string) int { return slices.Index(names[:], name) }

// Parse makes a mask of names as config.json has them ("CAP_CHOWN"). Names that nobody knows, or that this kernel does not have, are in unknown; they are no error,
// since the specification wants a warning. A string that is no capability's name at all is an error.
func Parse(list []string) (mask uint64, unknown []string, err error) {
	last := Last()
	for _, s := range list {
		name, ok := strings.CutPrefix(strings.ToUpper(s), "CAP_")
		if !ok || name == "" || strings.Trim(name, "ABCDEFGHIJKLMNOPQRSTUVWXYZ_0123456789") != "" {
			return 0, nil, errs.New(errs.Invalid, "capability %q: not a capability's name", s)
		}
		if n := number(name); n >= 0 && n <= last {
			mask |= 1 << n
		} else {
			unknown = append(unknown, s)
		}
	}
	return mask, unknown, nil
}

// Names lists the capabilities of a mask by number.
func Names(mask uint64) []string {
	var list []string
	for i := range names {
		if mask&(1<<i) != 0 {
			list = append(list, Name(i))
		}
	}
	return list
}

// Default are the fourteen capabilities that a container has if nothing else is said.
func Default() []string {
	return []string{
		"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FSETID", "CAP_FOWNER", "CAP_MKNOD", "CAP_NET_RAW", "CAP_SETGID",
		"CAP_SETUID", "CAP_SETFCAP", "CAP_SETPCAP", "CAP_NET_BIND_SERVICE", "CAP_SYS_CHROOT", "CAP_KILL", "CAP_AUDIT_WRITE",
	}
}

// Lacking tells which of the named capabilities ("CAP_NET_ADMIN") are not effective for this process.
func Lacking(need ...string) (lacking []string, err error) {
	var data [2]unix.CapUserData // 32 capabilities each
	if err := unix.Capget(&unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}, &data[0]); err != nil {
		return nil, fmt.Errorf("ask for own capabilities: %w", err)
	}
	have := uint64(data[0].Effective) | uint64(data[1].Effective)<<32
	for _, name := range need {
		if n := number(strings.TrimPrefix(name, "CAP_")); n < 0 || have&(1<<n) == 0 {
			lacking = append(lacking, name)
		}
	}
	return lacking, nil
}

const everything = "ALL"

// Resolve answers Docker's --cap-add and --cap-drop: names with or without CAP_, in any case, or ALL.
//
//	privileged         all
//	add has ALL        all but what is dropped
//	drop has ALL       only what is added
//	else               the default, without what is dropped, with what is added
func Resolve(add, drop []string, privileged bool) ([]string, error) {
	if privileged {
		return All(), nil
	}
	add, err := normalize(add)
	if err != nil {
		return nil, err
	}
	if drop, err = normalize(drop); err != nil {
		return nil, err
	}
	switch {
	case slices.Contains(add, everything):
		return without(All(), drop), nil
	case slices.Contains(drop, everything):
		return add, nil
	}
	out := without(Default(), drop)
	for _, name := range add {
		if !slices.Contains(out, name) {
			out = append(out, name)
		}
	}
	return out, nil
}

func without(list, drop []string) []string {
	return slices.DeleteFunc(list, func(name string) bool { return slices.Contains(drop, name) })
}

// normalize checks names and gives them their prefix; doubles are dropped.
func normalize(list []string) ([]string, error) {
	var out []string
	last := Last()
	for _, s := range list {
		name := strings.ToUpper(strings.TrimSpace(s))
		if name != everything {
			n := number(strings.TrimPrefix(name, "CAP_"))
			if n < 0 {
				return nil, errs.New(errs.Invalid, "unknown capability: %q", "CAP_"+strings.TrimPrefix(name, "CAP_"))
			}
			if n > last {
				return nil, errs.New(errs.Invalid, "capability not supported by your kernel or not available in the current environment: %q", Name(n))
			}
			name = Name(n)
		}
		if !slices.Contains(out, name) {
			out = append(out, name)
		}
	}
	return out, nil
}
