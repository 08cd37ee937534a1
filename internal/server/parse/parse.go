// Package parse reads the small languages inside Docker's requests: `--tmpfs` options, `--add-host` entries, host port ranges.
//
// It owns their syntax and the words of their refusals. It is pure: it never looks at the host. It promises that what it accepts has one meaning only.
package parse

import (
	"net/netip"
	"path"
	"strconv"
	"strings"

	"corten.dev/corten/internal/errs"
)

// VolumeName checks the name of a volume.
func VolumeName(name string) error {
	if Name(name) {
		return nil
	}
	if len(name) == 1 {
		return errs.New(errs.Invalid, "create %s: volume name is too short, names should be at least two alphanumeric characters", name)
	}
	return errs.New(errs.Invalid, "create %s: %q includes invalid characters for a local volume name, only \"[a-zA-Z0-9][a-zA-Z0-9_.-]\" are allowed. If you intended to pass a host directory, use absolute path", name, name)
}

// Name tells whether s fits Docker's rule for names of containers and volumes: [a-zA-Z0-9][a-zA-Z0-9_.-]+.
func Name(s string) bool {
	if len(s) < 2 {
		return false
	}
	for i := range len(s) {
		c := s[i]
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9':
		case i > 0 && (c == '_' || c == '.' || c == '-'):
		default:
			return false
		}
	}
	return true
}

// tmpfsFlags are the options of a tmpfs that take no value.
var tmpfsFlags = map[string]bool{
	"rw": true, "ro": true, "exec": true, "noexec": true, "suid": true, "nosuid": true, "dev": true, "nodev": true,
	"sync": true, "async": true, "dirsync": true, "remount": false, "mand": true, "nomand": true,
	"atime": true, "noatime": true, "diratime": true, "nodiratime": true, "relatime": true, "norelatime": true,
	"strictatime": true, "nostrictatime": true, "bind": false, "rbind": false, "defaults": true,
	"private": true, "rprivate": true, "shared": true, "rshared": true, "slave": true, "rslave": true, "unbindable": true, "runbindable": true,
	"tmpcopyup": true, "notmpcopyup": true,
}

// tmpfsValues are the options of a tmpfs that take a value.
var tmpfsValues = map[string]bool{"size": true, "mode": true, "uid": true, "gid": true, "nr_inodes": true, "nr_blocks": true, "mpol": true}

// Tmpfs checks one entry of HostConfig.Tmpfs.
func Tmpfs(target, options string) error {
	if !strings.HasPrefix(target, "/") {
		return errs.New(errs.Invalid, "invalid mount path: '%s' mount path must be absolute", target)
	}
	if path.Clean(target) == "/" {
		return errs.New(errs.Invalid, "invalid specification: destination can't be '/'")
	}
	if options == "" {
		return nil
	}
	for option := range strings.SplitSeq(options, ",") {
		key, _, hasValue := strings.Cut(option, "=")
		if hasValue && !tmpfsValues[key] || !hasValue && !tmpfsFlags[key] {
			return errs.New(errs.Invalid, "invalid tmpfs option [%q]", option)
		}
	}
	return nil
}

// ExtraHost checks one `name:address`; address may be host-gateway.
func ExtraHost(entry string) error {
	name, addr, ok := strings.Cut(entry, ":")
	if !ok || name == "" {
		return errs.New(errs.Invalid, "bad format for add-host: %q", entry)
	}
	if addr == "host-gateway" {
		return nil
	}
	if _, err := netip.ParseAddr(strings.Trim(addr, "[]")); err != nil {
		return errs.New(errs.Invalid, "invalid IP address in add-host: %q", addr)
	}
	return nil
}

// HostPort parses the HostPort of a port binding: empty (any), "8080", or a range "8000-8010" to choose from.
func HostPort(text string) (start, end uint16, err error) {
	if text == "" {
		return 0, 0, nil
	}
	first, last, isRange := strings.Cut(text, "-")
	if !isRange {
		last = first
	}
	a, err1 := strconv.ParseUint(first, 10, 16)
	b, err2 := strconv.ParseUint(last, 10, 16)
	if err1 != nil || err2 != nil || b < a || isRange && a == 0 {
		return 0, 0, errs.New(errs.Invalid, "invalid port specification: %q", text)
	}
	return uint16(a), uint16(b), nil
}
