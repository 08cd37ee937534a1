package cgroup

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"corten.dev/corten/internal/errs"
	ocicgroups "github.com/opencontainers/cgroups"
	_ "github.com/opencontainers/cgroups/devices" // sets DevicesSetV2
	devconfig "github.com/opencontainers/cgroups/devices/config"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// rule is one device rule in the kernel's words.
type rule struct {
	allow  bool
	typ    byte // 'a', 'b', 'c'
	major  int64
	minor  int64 // -1 is any
	access string
}

func (r rule) String() string {
	if r.typ == 'a' {
		return "a"
	}
	return string(r.typ) + " " + star(r.major) + ":" + star(r.minor) + " " + r.access
}

func star(n int64) string {
	if n < 0 {
		return "*"
	}
	return strconv.FormatInt(n, 10)
}

// parseRules reads the spec's device rules.
func parseRules(list []specs.LinuxDeviceCgroup) ([]rule, error) {
	rules := make([]rule, 0, len(list))
	for _, d := range list {
		r := rule{allow: d.Allow, typ: 'a', major: -1, minor: -1, access: d.Access}
		switch d.Type {
		case "", "a":
		case "b", "c":
			r.typ = d.Type[0]
		case "u":
			r.typ = 'c'
		default:
			return nil, errs.New(errs.Invalid, "device rule: unknown type %q", d.Type)
		}
		if d.Major != nil {
			r.major = max(*d.Major, -1)
		}
		if d.Minor != nil {
			r.minor = max(*d.Minor, -1)
		}
		if r.access == "" {
			r.access = "rwm"
		}
		if strings.Trim(r.access, "rwm") != "" {
			return nil, errs.New(errs.Invalid, "device rule: access %q: only r, w and m are known", d.Access)
		}
		if r.typ != 'a' {
			rules = append(rules, r)
			continue
		}
		if r.major < 0 && r.minor < 0 && strings.Contains(r.access, "r") && strings.Contains(r.access, "w") && strings.Contains(r.access, "m") {
			rules = append(rules, r)
			continue
		}
		// "All devices" with a number or with less than full access means both types: the kernel ignores what follows an 'a'.
		for _, t := range []byte{'b', 'c'} {
			r.typ = t
			rules = append(rules, r)
		}
	}
	return rules, nil
}

// devicesV1 writes the rules in their order: an "a" forbids or allows everything and forgets the rules before it.
func (m *Manager) devicesV1(dir string, list []specs.LinuxDeviceCgroup, fresh bool) error {
	rules, err := parseRules(list)
	if err != nil {
		return err
	}
	if !fresh {
		if rules, err = m.deviceChanges(dir, rules); err != nil {
			return err
		}
	}
	// Consecutive rules of one kind share an open file: 1 µs a rule instead of 5.
	fd, open := -1, ""
	defer func() {
		if fd >= 0 {
			_ = unix.Close(fd) // every write was checked
		}
	}()
	for _, r := range rules {
		file := "devices.deny"
		if r.allow {
			file = "devices.allow"
		}
		if file != open {
			if fd >= 0 {
				_ = unix.Close(fd) // every write was checked
			}
			if fd, err = openRetry(dir+"/"+file, unix.O_WRONLY|m.host.openFlags); err != nil {
				return fmt.Errorf("device rules: open %s/%s: %w", dir, file, err)
			}
			open = file
		}
		if err := writeRetry(fd, r.String()); err != nil {
			if m.rootless && denied(err) {
				return nil
			}
			return fmt.Errorf("device rules: write %q to %s/%s: %w", r, dir, file, err)
		}
	}
	return nil
}

// deviceChanges turns a complete list of rules (one that begins with "forbid all") into the steps from the rules in force, so that an update never takes a device
// away for a moment from a container that is to keep it.
func (m *Manager) deviceChanges(dir string, rules []rule) ([]rule, error) {
	if len(rules) == 0 || rules[0].typ != 'a' || rules[0].allow || slices.ContainsFunc(rules[1:], func(r rule) bool { return !r.allow || r.typ == 'a' }) {
		return rules, nil
	}
	var buf [16384]byte
	n, err := readInto(dir, "devices.list", buf[:])
	if err != nil {
		return nil, fmt.Errorf("device rules: %w", err)
	}
	have := strings.Fields(strings.ReplaceAll(strings.ReplaceAll(string(buf[:n]), " ", "_"), "_\n", "\n"))
	if slices.Contains(have, "a_*:*_rwm") || n == len(buf) {
		return rules, nil
	}
	var steps []rule
	want := make([]string, 0, len(rules))
	for _, r := range rules[1:] {
		want = append(want, strings.ReplaceAll(r.String(), " ", "_"))
		steps = append(steps, r) // allowing again what is allowed is nothing
	}
	for _, line := range have {
		if slices.Contains(want, line) {
			continue
		}
		old, ok := parseLine(line)
		if !ok {
			return rules, nil
		}
		// The kernel merges rules of one device, so that a line may hold more than was wanted: take away the rest of its access only.
		for _, r := range rules[1:] {
			if r.typ == old.typ && r.major == old.major && r.minor == old.minor {
				old.access = strings.Map(func(c rune) rune {
					if strings.ContainsRune(r.access, c) {
						return -1
					}
					return c
				}, old.access)
			}
		}
		if old.access != "" {
			steps = append(steps, old)
		}
	}
	return steps, nil
}

// parseLine reads a line of devices.list, with "_" for blanks.
func parseLine(line string) (rule, bool) {
	parts := strings.Split(line, "_")
	if len(parts) != 3 || len(parts[0]) != 1 {
		return rule{}, false
	}
	major, minor, ok := strings.Cut(parts[1], ":")
	r := rule{typ: parts[0][0], access: parts[2]}
	var err1, err2 error
	if r.major, err1 = number(major); err1 != nil {
		return r, false
	}
	if r.minor, err2 = number(minor); err2 != nil {
		return r, false
	}
	return r, ok
}

func number(s string) (int64, error) {
	if s == "*" {
		return -1, nil
	}
	return strconv.ParseInt(s, 10, 64)
}

// devicesV2 attaches an eBPF program that answers for the rules, in place of the one attached before.
func (m *Manager) devicesV2(dir string, list []specs.LinuxDeviceCgroup) error {
	rules, err := ociRules(list)
	if err != nil {
		return err
	}
	if err := ocicgroups.DevicesSetV2(dir, &ocicgroups.Resources{Devices: rules}); err != nil {
		if m.rootless && denied(err) {
			return nil // an ordinary user cannot make devices either
		}
		return fmt.Errorf("device rules of %s: %w", dir, err)
	}
	return nil
}

func ociRules(list []specs.LinuxDeviceCgroup) ([]*devconfig.Rule, error) {
	rules, err := parseRules(list)
	if err != nil {
		return nil, err
	}
	out := make([]*devconfig.Rule, len(rules))
	for i, r := range rules {
		out[i] = &devconfig.Rule{
			Type: devconfig.Type(r.typ), Major: r.major, Minor: r.minor,
			Permissions: devconfig.Permissions(r.access), Allow: r.allow,
		}
	}
	return out, nil
}
