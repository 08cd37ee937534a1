package bake

import (
	"path"
	"slices"
	"strconv"
	"strings"

	"corten.dev/corten/internal/errs"
)

// change is one override of one target.
type change struct {
	target string
	key    string // of the attribute, or "push", "load"
	sub    string // of a table's entry
	value  string
	more   bool // += : beside what is there
	first  bool // the first of several for one list: it replaces, the others are beside it
}

// spellings are the keys of overrides that are called otherwise in files.
var spellings = map[string]string{"platform": "platforms", "secrets": "secret", "tag": "tags", "extra-host": "extra-hosts"}

// override reads --set.
func (c *config) override(req Request) error {
	seen := map[string]bool{}
	for _, text := range req.Overrides {
		left, value, given := strings.Cut(text, "=")
		more := given && strings.HasSuffix(left, "+")
		left = strings.TrimSuffix(left, "+")
		parts := strings.SplitN(left, ".", 3)
		if len(parts) < 2 || parts[0] == "" {
			return errs.New(errs.Invalid, "invalid override key %s, expected target.name", left)
		}
		ch := change{key: parts[1], value: value, more: more}
		if s, ok := spellings[ch.key]; ok {
			ch.key = s
		}
		if len(parts) == 3 {
			ch.sub = parts[2]
		}
		k, known := kinds[ch.key]
		switch {
		case !known && ch.key != "push" && ch.key != "load":
			return errs.New(errs.Invalid, "unknown override key: %s", parts[1])
		case known && (k == table) != (len(parts) == 3):
			return errs.New(errs.Invalid, "invalid override key %s: %s takes target.%s%s=value", left, ch.key, ch.key, map[bool]string{true: ".name"}[k == table])
		}
		if !given {
			if k != table {
				return errs.New(errs.Invalid, "override %s has no value", text)
			}
			v, ok := req.Env[ch.sub]
			if !ok {
				continue // as `--build-arg NAME`
			}
			ch.value = v
		}
		targets := c.overridden(parts[0])
		if len(targets) == 0 {
			return errs.New(errs.NotFound, "could not find any target matching '%s'", parts[0])
		}
		for _, name := range targets {
			one := ch
			one.target = name
			at := name + "." + ch.key
			one.first = !more && !seen[at]
			seen[at] = true
			c.changes[name] = append(c.changes[name], one)
		}
	}
	return nil
}

// overridden are the targets that a pattern of --set means: groups stand for theirs.
func (c *config) overridden(pattern string) (names []string) {
	if _, ok := c.groups[pattern]; ok {
		if list, _, err := c.expand(pattern, nil); err == nil {
			return list
		}
	}
	for _, name := range c.order {
		if ok, err := path.Match(pattern, name); err == nil && ok && !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	return names
}

// apply changes a target.
func (ch change) apply(t Target) error {
	switch ch.key {
	case "push", "load":
		return ch.output(t)
	}
	switch kinds[ch.key] {
	case text:
		t[ch.key] = ch.value
	case flag:
		b, err := strconv.ParseBool(ch.value)
		if err != nil {
			return errs.New(errs.Invalid, "invalid value %s for boolean key %s", ch.value, ch.key)
		}
		t[ch.key] = b
	case list, growing:
		old, _ := t[ch.key].([]string)
		if ch.first {
			old = nil
		}
		t[ch.key] = append(slices.Clone(old), ch.value)
	case table:
		t.merge(Target{ch.key: map[string]string{ch.sub: ch.value}})
	default:
		old, _ := t[ch.key].([]object)
		if ch.first {
			old = nil
		}
		if ch.value == "" {
			t[ch.key] = old
			return nil
		}
		o, err := parseObject(ch.key, ch.value)
		if err != nil {
			return err
		}
		t[ch.key] = mergeObjects(ch.key, old, []object{o})
	}
	return nil
}

// output is --set target.push=true and target.load=true: what becomes of the image besides.
func (ch change) output(t Target) error {
	on, err := strconv.ParseBool(ch.value)
	if err != nil {
		return errs.New(errs.Invalid, "invalid value %s for boolean key %s", ch.value, ch.key)
	}
	old, _ := t["output"].([]object)
	outputs := slices.Clone(old)
	if ch.key == "load" {
		if on && !slices.ContainsFunc(outputs, func(o object) bool { return o["type"] == "docker" }) {
			outputs = append(outputs, object{"type": "docker"})
		}
		t["output"] = outputs
		return nil
	}
	found := false
	for i, o := range outputs {
		if o["type"] == "image" || o["type"] == "registry" {
			found = true
			changed := object{}
			for k, v := range o {
				changed[k] = v
			}
			changed["push"] = strconv.FormatBool(on)
			outputs[i] = changed
		}
	}
	if !found && on {
		outputs = append(outputs, object{"type": "image", "push": "true"})
	}
	t["output"] = outputs
	return nil
}
