package volume

import (
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
	loop           bool      // device is a file, to be made a block device
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

// unmeant are words for other readers of fstab(5), which change nothing about a mount.
var unmeant = map[string]bool{
	"_netdev": true, "auto": true, "noauto": true, "nofail": true, "user": true, "nouser": true, "users": true, "owner": true, "group": true, "fg": true,
}

// secretWords are options that no message shows.
var secretWords = map[string]bool{"pass": true, "password": true, "password2": true}

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
		case "type", "o", "device", "size":
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
	if err := mo.words(opts["o"]); err != nil {
		return mo, err
	}
	if mo.flags&unix.MS_REMOUNT != 0 {
		return mo, errs.New(errs.Invalid, "invalid option: %q", "remount")
	}
	if mo.flags&unix.MS_BIND != 0 && !strings.HasPrefix(mo.device, "/") {
		return mo, errs.New(errs.Invalid, "invalid option: %q: a bind mount needs an absolute path as device", mo.device)
	}
	if mo.loop && (mo.flags&unix.MS_BIND != 0 || !strings.HasPrefix(mo.device, "/")) {
		return mo, errs.New(errs.Invalid, "invalid option: %q: device must be the absolute path of an image", "loop")
	}
	return mo, nil
}

// splitWords splits mount options at their commas. In a password the kernel's clients take two commas for one that belongs to it.
func splitWords(list string) (words []string) {
	for list != "" {
		key, _, _ := strings.Cut(list, "=")
		end := strings.IndexByte(list, ',')
		for end >= 0 && secretWords[key] && strings.HasPrefix(list[end:], ",,") {
			next := strings.IndexByte(list[end+2:], ',')
			if next >= 0 {
				next += end + 2
			}
			end = next
		}
		if end < 0 {
			return append(words, list)
		}
		words, list = append(words, list[:end]), list[end+1:]
	}
	return words
}

// words takes the mount options apart, as mount(8) does.
func (mo *mountOptions) words(list string) error {
	for _, o := range splitWords(list) {
		key, _, _ := strings.Cut(o, "=")
		switch {
		case o == "" || unmeant[o] || key == "comment" || strings.HasPrefix(key, "x-"):
			continue
		case key == "loop":
			if mo.loop = true; o != "loop" {
				return errs.New(errs.Invalid, "invalid option: %q: the loop device is found, not named", o)
			}
			continue
		case o == "bg" || key == "retry":
			return errs.New(errs.Invalid, "invalid option: %q is an option of mount.nfs, not of the kernel: a mount is tried once, when a container starts", o)
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
	return nil
}
