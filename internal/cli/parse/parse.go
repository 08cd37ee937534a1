// Package parse reads the small languages inside docker's flags: ports, mounts, environment files, devices, limits.
//
// It owns their grammar and docker's words for what is wrong with them. It promises to touch nothing but the files
// that a flag names, and to refuse what it does not understand instead of passing it on.
package parse

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/docker/go-units"
	"github.com/moby/moby/api/types/blkiodev"
	"github.com/moby/moby/api/types/container"

	"corten.dev/corten/internal/errs"
)

func invalid(format string, args ...any) error { return errs.New(errs.Invalid, format, args...) }

// Env completes -e values: NAME alone takes the client's own value. If there is none it stays as it is, by which the engine takes away what the image sets under that name.
func Env(values []string, lookup func(string) (string, bool)) ([]string, error) {
	var out []string
	for _, v := range values {
		name, _, ok := strings.Cut(v, "=")
		if name == "" {
			return nil, invalid("invalid environment variable: %s", v)
		}
		if val, set := lookup(name); set && !ok {
			v = name + "=" + val
		}
		out = append(out, v)
	}
	return out, nil
}

// EnvFile reads NAME=value lines. A nil lookup keeps a NAME alone (labels), else it takes the client's own value.
func EnvFile(name string, lookup func(string) (string, bool)) ([]string, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	out, err := KeyValues(f, lookup)
	if err != nil {
		return nil, invalid("invalid env file (%s): %w", name, err)
	}
	return out, nil
}

// KeyValues reads NAME=value lines; empty lines and those that begin with # are skipped.
func KeyValues(r io.Reader, lookup func(string) (string, bool)) ([]string, error) {
	sc := bufio.NewScanner(r)
	sc.Buffer(make([]byte, 0, 4096), 1<<20)
	var out []string
	for n := 1; sc.Scan(); n++ {
		line := sc.Bytes()
		if n == 1 {
			line = bytes.TrimPrefix(line, []byte("\xef\xbb\xbf"))
		}
		if !utf8.Valid(line) {
			return nil, fmt.Errorf("invalid utf8 bytes at line %d: %q", n, line)
		}
		text := strings.TrimLeftFunc(string(line), unicode.IsSpace)
		if text == "" || text[0] == '#' {
			continue
		}
		key, value, ok := strings.Cut(text, "=")
		key = strings.TrimLeft(key, " \t")
		switch {
		case strings.ContainsFunc(key, unicode.IsSpace):
			return nil, fmt.Errorf("variable '%s' contains whitespaces", key)
		case key == "":
			return nil, fmt.Errorf("no variable name on line '%s'", text)
		case ok:
			out = append(out, key+"="+value)
		case lookup == nil:
			out = append(out, key)
		default:
			if v, set := lookup(key); set {
				out = append(out, key+"="+v)
			}
		}
	}
	if err := sc.Err(); err != nil {
		return nil, err
	}
	return out, nil
}

// Map turns name=value strings into a map; NAME alone has an empty value. The last of equal names wins.
func Map(values []string) map[string]string {
	m := make(map[string]string, len(values))
	for _, v := range values {
		k, val, _ := strings.Cut(v, "=")
		m[k] = val
	}
	return m
}

// Pairs is Map for flags that insist on the equals sign.
func Pairs(flag string, values []string) (map[string]string, error) {
	if len(values) == 0 {
		return nil, nil
	}
	for _, v := range values {
		if k, _, ok := strings.Cut(v, "="); !ok || k == "" {
			return nil, invalid("invalid --%s: %q: expected name=value", flag, v)
		}
	}
	return Map(values), nil
}

// Restart reads a restart policy: no, always, unless-stopped, on-failure[:max-retries], on-unhealthy[:max-restarts].
func Restart(s string) (container.RestartPolicy, error) {
	var p container.RestartPolicy
	if s == "" {
		return p, nil
	}
	name, count, ok := strings.Cut(s, ":")
	if ok && name == "" {
		return p, invalid("invalid restart policy format: no policy provided before colon")
	}
	if ok && count != "" {
		n, err := strconv.Atoi(count)
		if err != nil {
			return p, invalid("invalid restart policy format: maximum retry count must be an integer")
		}
		p.MaximumRetryCount = n
	}
	p.Name = container.RestartPolicyMode(name)
	return p, nil
}

// Ulimit reads name=soft[:hard].
func Ulimit(s string) (*units.Ulimit, error) {
	u, err := units.ParseUlimit(s)
	if err != nil {
		return nil, errs.As(errs.Invalid, err)
	}
	return u, nil
}

// Bytes reads a size such as 512m; "-1" stands for no limit.
func Bytes(s string) (int64, error) {
	if s == "-1" {
		return -1, nil
	}
	n, err := units.RAMInBytes(s)
	if err != nil {
		return 0, errs.As(errs.Invalid, err)
	}
	return n, nil
}

// CPUs reads a decimal number of processors and returns billionths.
func CPUs(s string) (int64, error) {
	whole, frac, _ := strings.Cut(s, ".")
	if whole == "" && frac == "" {
		return 0, invalid("failed to parse %v as a rational number", s)
	}
	if strings.Trim(frac, "0") == "" {
		frac = ""
	}
	if frac = strings.TrimRight(frac, "0"); len(frac) > 9 {
		return 0, invalid("value is too precise")
	}
	if whole == "" {
		whole = "0"
	}
	n, err := strconv.ParseUint(whole, 10, 32)
	f, err2 := strconv.ParseUint(frac+strings.Repeat("0", 9-len(frac)), 10, 32)
	if err != nil || err2 != nil {
		return 0, invalid("failed to parse %v as a rational number", s)
	}
	return int64(n)*1e9 + int64(f), nil
}

// WeightDevice reads path:weight.
func WeightDevice(s string) (*blkiodev.WeightDevice, error) {
	path, num, ok := strings.Cut(s, ":")
	if !ok || num == "" {
		return nil, invalid("bad format: %s", s)
	}
	if !strings.HasPrefix(path, "/dev/") {
		return nil, invalid("bad format for device path: %s", s)
	}
	w, err := strconv.ParseUint(num, 10, 16)
	if err != nil || (w > 0 && (w < 10 || w > 1000)) {
		return nil, invalid("invalid weight for device: %s", s)
	}
	return &blkiodev.WeightDevice{Path: path, Weight: uint16(w)}, nil
}

// ThrottleDevice reads path:rate; rates in bytes may carry a unit.
func ThrottleDevice(s string, inBytes bool) (*blkiodev.ThrottleDevice, error) {
	path, num, ok := strings.Cut(s, ":")
	if !ok || num == "" {
		return nil, invalid("bad format: %s", s)
	}
	if !strings.HasPrefix(path, "/dev/") {
		return nil, invalid("bad format for device path: %s", s)
	}
	if inBytes {
		n, err := units.RAMInBytes(num)
		if err != nil || n < 0 {
			return nil, invalid("invalid rate for device: %s. The correct format is <device-path>:<number>[<unit>]. Number must be a positive integer. Unit is optional and can be kb, mb, or gb", s)
		}
		return &blkiodev.ThrottleDevice{Path: path, Rate: uint64(n)}, nil
	}
	n, err := strconv.ParseUint(num, 10, 64)
	if err != nil {
		return nil, invalid("invalid rate for device: %s. The correct format is <device-path>:<number>. Number must be a positive integer", s)
	}
	return &blkiodev.ThrottleDevice{Path: path, Rate: n}, nil
}

// Device reads path[:path-in-container[:rwm]], or a CDI name (vendor/class=device).
func Device(s string) (dev container.DeviceMapping, cdi string, err error) {
	if isCDI(s) {
		return dev, s, nil
	}
	parts := strings.Split(s, ":")
	dev.CgroupPermissions = "rwm"
	switch len(parts) {
	case 3:
		dev.CgroupPermissions = parts[2]
		fallthrough
	case 2:
		if deviceMode(parts[1]) && len(parts) == 2 {
			dev.CgroupPermissions = parts[1]
		} else {
			dev.PathInContainer = parts[1]
		}
		fallthrough
	case 1:
		dev.PathOnHost = parts[0]
	default:
		return dev, "", invalid("bad format for path: %s", s)
	}
	if dev.PathOnHost == "" {
		return dev, "", invalid("invalid device specification: %s", s)
	}
	if dev.PathInContainer == "" {
		dev.PathInContainer = dev.PathOnHost
	}
	if !strings.HasPrefix(dev.PathInContainer, "/") {
		return dev, "", invalid("%s is not an absolute path", dev.PathInContainer)
	}
	if !deviceMode(dev.CgroupPermissions) {
		return dev, "", invalid("bad mode specified: %s", dev.CgroupPermissions)
	}
	return dev, "", nil
}

func deviceMode(s string) bool {
	seen := map[rune]bool{}
	for _, r := range s {
		if !strings.ContainsRune("rwm", r) || seen[r] {
			return false
		}
		seen[r] = true
	}
	return s != ""
}

// isCDI tells a name of the Container Device Interface ("vendor.com/class=name") from a path: its specification, section "kind" and "name".
func isCDI(s string) bool {
	kind, name, ok := strings.Cut(s, "=")
	vendor, class, ok2 := strings.Cut(kind, "/")
	return ok && ok2 && cdiWord(vendor, letter, "_-.") && cdiWord(class, letter, "_-.") && cdiWord(name, letterOrDigit, "_-.:")
}

func letter(c byte) bool { return 'a' <= c|0x20 && c|0x20 <= 'z' }

func letterOrDigit(c byte) bool { return letter(c) || '0' <= c && c <= '9' }

// cdiWord tells whether s begins with what first allows, ends with a letter or digit, and has besides those only marks in between.
func cdiWord(s string, first func(byte) bool, marks string) bool {
	if s == "" || !first(s[0]) || len(s) > 1 && !letterOrDigit(s[len(s)-1]) {
		return false
	}
	for i := 1; i < len(s)-1; i++ {
		if !letterOrDigit(s[i]) && strings.IndexByte(marks, s[i]) < 0 {
			return false
		}
	}
	return true
}

// DeviceRule checks a device cgroup rule: "type major:minor rwm".
func DeviceRule(s string) error {
	f := strings.Fields(s)
	bad := invalid("invalid device cgroup format '%s'", s)
	if len(f) != 3 || len(f[0]) != 1 || !strings.Contains("abc", f[0]) || !deviceMode(f[2]) {
		return bad
	}
	major, minor, ok := strings.Cut(f[1], ":")
	for _, n := range []string{major, minor} {
		if _, err := strconv.ParseUint(n, 10, 32); err != nil && n != "*" {
			return bad
		}
	}
	if !ok {
		return bad
	}
	return nil
}

// Sysctl checks name=value: only what a namespace has for itself can be set for a container.
func Sysctl(s string) error {
	name, _, ok := strings.Cut(s, "=")
	switch name {
	case "kernel.msgmax", "kernel.msgmnb", "kernel.msgmni", "kernel.sem", "kernel.shmall", "kernel.shmmax", "kernel.shmmni", "kernel.shm_rmid_forced":
	default:
		ok = ok && (strings.HasPrefix(name, "net.") || strings.HasPrefix(name, "fs.mqueue."))
	}
	if !ok {
		return invalid("sysctl '%s' is not allowed", s)
	}
	return nil
}

// AddHost reads host:ip or host=ip and returns host:ip. The address may be host-gateway.
func AddHost(s string) (string, error) {
	i := strings.IndexAny(s, ":=")
	if i <= 0 {
		return "", invalid("bad format for add-host: %q", s)
	}
	name, ip := s[:i], s[i+1:]
	if ip == "host-gateway" {
		return name + ":" + ip, nil
	}
	if len(ip) > 2 && ip[0] == '[' && ip[len(ip)-1] == ']' {
		ip = ip[1 : len(ip)-1]
	}
	if _, err := netip.ParseAddr(ip); err != nil {
		return "", invalid("invalid IP address in add-host: %q", ip)
	}
	return name + ":" + ip, nil
}

// GPUs reads --gpus: all, a number, or count=,device=,driver=,capabilities=,options= pairs.
func GPUs(s string) (container.DeviceRequest, error) {
	req := container.DeviceRequest{Options: map[string]string{}}
	fields, err := csvFields(s)
	if err != nil {
		return req, err
	}
	seen := map[string]bool{}
	for _, f := range fields {
		key, val, ok := strings.Cut(f, "=")
		if seen[key] {
			return req, invalid("gpu request key '%s' can be specified only once", key)
		}
		seen[key] = true
		if !ok { // a count, wherever it stands, as in Docker: "device=0,1" is refused by the engine, which is asked for both
			key, val = "count", f
			seen[key] = true
		}
		switch key {
		case "driver":
			req.Driver = val
		case "count":
			if req.Count, err = gpuCount(val); err != nil {
				return req, err
			}
		case "device":
			req.DeviceIDs = strings.Split(val, ",")
		case "capabilities":
			req.Capabilities = [][]string{append(strings.Split(val, ","), "gpu")}
		case "options":
			opts, err := csvFields(val)
			if err != nil {
				return req, err
			}
			req.Options = Map(opts)
		default:
			return req, invalid("unexpected key '%s' in '%s'", key, f)
		}
	}
	if !seen["count"] && req.DeviceIDs == nil {
		req.Count = 1
	}
	if req.Capabilities == nil {
		req.Capabilities = [][]string{{"gpu"}}
	}
	return req, nil
}

func gpuCount(s string) (int, error) {
	if s == "all" {
		return -1, nil
	}
	n, err := strconv.Atoi(s)
	if err != nil {
		return 0, invalid("invalid count (%s): value must be either \"all\" or an integer: invalid syntax", s)
	}
	return n, nil
}
