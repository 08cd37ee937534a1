package volume

import (
	"context"
	"net"
	"net/netip"
	"slices"
	"strings"

	"corten.dev/corten/internal/errs"
	"golang.org/x/sys/unix"
)

// mountOptions are the driver options of a volume that is a mount: `--opt type=nfs --opt o=addr=10.0.0.1,rw --opt device=:/export`.
type mountOptions struct {
	fstype, device string
	flags          uintptr   // MS_ flags
	propagation    []uintptr // MS_ flags that need calls of their own
	data           []string  // for the file system
}

// flag is what a word of mount(8) sets or clears.
type flag struct {
	clear bool
	bits  uintptr
}

var flags = map[string]flag{
	"defaults": {}, "async": {true, unix.MS_SYNCHRONOUS}, "atime": {true, unix.MS_NOATIME}, "bind": {false, unix.MS_BIND},
	"dev": {true, unix.MS_NODEV}, "diratime": {true, unix.MS_NODIRATIME}, "dirsync": {false, unix.MS_DIRSYNC},
	"exec": {true, unix.MS_NOEXEC}, "mand": {false, unix.MS_MANDLOCK}, "noatime": {false, unix.MS_NOATIME},
	"nodev": {false, unix.MS_NODEV}, "nodiratime": {false, unix.MS_NODIRATIME}, "noexec": {false, unix.MS_NOEXEC},
	"nomand": {true, unix.MS_MANDLOCK}, "norelatime": {true, unix.MS_RELATIME}, "nostrictatime": {true, unix.MS_STRICTATIME},
	"nosuid": {false, unix.MS_NOSUID}, "rbind": {false, unix.MS_BIND | unix.MS_REC}, "relatime": {false, unix.MS_RELATIME},
	"remount": {false, unix.MS_REMOUNT}, "ro": {false, unix.MS_RDONLY}, "rw": {true, unix.MS_RDONLY},
	"strictatime": {false, unix.MS_STRICTATIME}, "suid": {true, unix.MS_NOSUID}, "sync": {false, unix.MS_SYNCHRONOUS},
}

var propagations = map[string]uintptr{
	"private": unix.MS_PRIVATE, "rprivate": unix.MS_PRIVATE | unix.MS_REC, "shared": unix.MS_SHARED, "rshared": unix.MS_SHARED | unix.MS_REC,
	"slave": unix.MS_SLAVE, "rslave": unix.MS_SLAVE | unix.MS_REC, "unbindable": unix.MS_UNBINDABLE, "runbindable": unix.MS_UNBINDABLE | unix.MS_REC,
}

// parseOptions checks the driver options in Docker's words and takes them apart.
func parseOptions(opts map[string]string) (mountOptions, error) {
	var mo mountOptions
	if len(opts) == 0 {
		return mo, nil
	}
	keys := make([]string, 0, len(opts))
	for key := range opts {
		keys = append(keys, key)
	}
	slices.Sort(keys)
	for _, key := range keys {
		switch key {
		case "type", "o", "device":
		case "size":
			return mo, errs.New(errs.Invalid, "quota size requested but no quota support")
		default:
			return mo, errs.New(errs.Invalid, "invalid option: %q", key)
		}
	}
	for _, need := range [][2]string{{"device", "type"}, {"type", "device"}, {"o", "device"}, {"o", "type"}} {
		_, given := opts[need[0]]
		if _, ok := opts[need[1]]; given && !ok {
			return mo, errs.New(errs.Invalid, "missing required option: %q", need[1])
		}
	}
	for key, val := range opts {
		if strings.ContainsRune(val, 0) {
			return mo, errs.New(errs.Invalid, "invalid option: %q has a zero byte", key)
		}
	}
	mo.fstype, mo.device = opts["type"], opts["device"]
	for _, o := range strings.Split(opts["o"], ",") {
		if o == "" {
			continue
		}
		if f, ok := flags[o]; ok {
			if f.clear {
				mo.flags &^= f.bits
			} else {
				mo.flags |= f.bits
			}
		} else if p, ok := propagations[o]; ok {
			mo.propagation = append(mo.propagation, p)
		} else {
			mo.data = append(mo.data, o)
		}
	}
	if mo.flags&unix.MS_REMOUNT != 0 {
		return mo, errs.New(errs.Invalid, "invalid option: %q", "remount")
	}
	if mo.flags&unix.MS_BIND != 0 && !strings.HasPrefix(mo.device, "/") {
		return mo, errs.New(errs.Invalid, "invalid option: %q: a bind mount needs an absolute path as device", mo.device)
	}
	return mo, nil
}

// resolve finds the address of a network file system's server. The kernel takes numbers only.
func (mo *mountOptions) resolve(ctx context.Context, lookup func(ctx context.Context, host string) (netip.Addr, error)) error {
	switch mo.fstype {
	case "nfs", "nfs4", "cifs", "smb3":
	default:
		return nil
	}
	host := ""
	for i, o := range mo.data {
		key, val, _ := strings.Cut(o, "=")
		if key != "addr" && key != "ip" || val == "" {
			continue
		}
		if _, err := netip.ParseAddr(val); err == nil {
			return nil
		}
		addr, err := lookup(ctx, val)
		if err != nil {
			return errs.New(errs.Unavailable, "find the address of %s: %w", val, err)
		}
		mo.data[i] = key + "=" + addr.String()
		return nil
	}
	if mo.fstype == "cifs" || mo.fstype == "smb3" {
		host, _, _ = strings.Cut(strings.TrimPrefix(mo.device, "//"), "/")
	} else {
		host, _, _ = strings.Cut(mo.device, ":/")
	}
	host = strings.Trim(host, "[]")
	if host == "" || host == mo.device {
		return nil // the kernel will say what it lacks
	}
	addr, err := netip.ParseAddr(host)
	if err != nil {
		if addr, err = lookup(ctx, host); err != nil {
			return errs.New(errs.Unavailable, "find the address of %s: %w", host, err)
		}
	}
	mo.data = append(mo.data, "addr="+addr.String())
	return nil
}

// lookupHost asks the host's resolver.
func lookupHost(ctx context.Context, host string) (netip.Addr, error) {
	addrs, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
	if err != nil {
		return netip.Addr{}, err
	}
	for _, a := range addrs {
		if a.Unmap().Is4() {
			return a.Unmap(), nil
		}
	}
	return addrs[0], nil
}
