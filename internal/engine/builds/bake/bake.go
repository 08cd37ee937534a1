// Package bake reads bake files (HCL, JSON, compose files) and makes the plan of builds that `docker buildx bake --print` shows.
//
// It owns nothing and reads nothing but what it is given: files, names of targets, overrides, an environment. It promises: the plan depends on these alone; an error names the file and line,
// or the target and attribute; cycles end.
//
//	files ─▶ blocks (variable, function, group, target) of all files together
//	variables ◀─ environment, defaults; each evaluated when it is first needed
//	target ─▶ matrix ─▶ attributes of each ─▶ inherits ─▶ overrides ─▶ plan
package bake

import (
	"encoding/json"
	"path"
	"slices"
	"sort"
	"strings"

	"corten.dev/corten/internal/errs"
)

// File is one bake file.
type File struct {
	Name string
	Data []byte
	// Extra: it is there only because another one names it (see [Missing]).
	Extra bool
}

// Request is what `bake` was asked.
type Request struct {
	Files     []File
	Targets   []string // none: "default"
	Overrides []string // "target.key=value", "target.key+=value"
	Env       map[string]string
	Platform  string // of this host, for BAKE_LOCAL_PLATFORM
}

// Group is a name for several targets or groups.
type Group struct {
	Targets     []string `json:"targets"`
	Description string   `json:"description,omitempty"`
}

// Plan is what is to be built.
type Plan struct {
	Groups  map[string]Group  `json:"group,omitempty"`
	Targets map[string]Target `json:"target"`
}

// JSON is the plan as `--print` writes it.
func (p Plan) JSON() ([]byte, error) {
	data, err := json.MarshalIndent(p, "", "  ")
	return append(data, '\n'), err
}

// maxTargets bounds what matrices may multiply to.
const maxTargets = 10_000

// maxFile bounds one file.
const maxFile = 4 << 20

// Make makes the plan; the error is [Missing] when files are needed that were not given.
func Make(req Request) (Plan, error) {
	for _, f := range req.Files {
		if len(f.Data) > maxFile {
			return Plan{}, errs.New(errs.Invalid, "%s: a bake file has at most %d bytes", f.Name, maxFile)
		}
	}
	conf, err := read(req)
	if err != nil {
		return Plan{}, err
	}
	if err := conf.override(req); err != nil {
		return Plan{}, err
	}
	return conf.plan(req.Targets)
}

// config is all files together, evaluated.
type config struct {
	groups  map[string]Group
	targets map[string]Target
	order   []string // of targets
	changes map[string][]change
}

// plan resolves the asked names.
func (c *config) plan(names []string) (Plan, error) {
	p := Plan{Groups: map[string]Group{}, Targets: map[string]Target{}}
	if len(names) == 0 {
		names = []string{"default"}
	}
	var asked []string
	for _, name := range names {
		if name != "default" {
			asked = append(asked, name)
		}
		targets, groups, err := c.expand(name, nil)
		if err != nil {
			return p, err
		}
		for _, g := range groups {
			p.Groups[g] = c.groups[g]
		}
		for _, t := range targets {
			if err := c.add(&p, t, false, nil); err != nil {
				return p, err
			}
		}
	}
	if g, ok := p.Groups["default"]; ok || len(asked) > 0 {
		g.Targets = append(slices.Clone(g.Targets), asked...)
		sort.Strings(g.Targets)
		g.Targets = slices.Compact(g.Targets)
		p.Groups["default"] = g
	} else if _, ok := p.Targets["default"]; ok {
		p.Groups["default"] = Group{Targets: []string{"default"}}
	}
	return p, nil
}

// expand gives the targets that a name stands for, and the groups on the way.
func (c *config) expand(name string, above []string) (targets, groups []string, err error) {
	if slices.Contains(above, name) {
		return nil, nil, errs.New(errs.Invalid, "group %s contains itself", name)
	}
	g, ok := c.groups[name]
	if !ok {
		found := c.match(name)
		if len(found) == 0 {
			return nil, nil, errs.New(errs.NotFound, "failed to find target %s", name)
		}
		return found, nil, nil
	}
	groups = []string{name}
	for _, member := range g.Targets {
		if member == name { // a target of the same name
			if _, ok := c.targets[name]; ok {
				targets = append(targets, name)
				continue
			}
		}
		ts, gs, err := c.expand(member, append(above, name))
		if err != nil {
			return nil, nil, err
		}
		targets, groups = append(targets, ts...), append(groups, gs...)
	}
	return targets, groups, nil
}

// match finds targets by name, or by a pattern.
func (c *config) match(pattern string) (found []string) {
	if _, ok := c.targets[pattern]; ok {
		return []string{pattern}
	}
	for _, name := range c.order {
		if ok, err := path.Match(pattern, name); err == nil && ok {
			found = append(found, name)
		}
	}
	return found
}

// add puts a target into the plan, with those that its contexts name.
func (c *config) add(p *Plan, name string, linked bool, above []string) error {
	if _, ok := p.Targets[name]; ok {
		if !linked { // it was only a context so far
			if out, ok := p.Targets[name]["output"].([]object); ok && len(out) == 1 && out[0]["type"] == "cacheonly" {
				linked = true
			}
		}
		if !linked || len(above) > 0 {
			return nil
		}
	}
	if slices.Contains(above, name) {
		return errs.New(errs.Invalid, "target %s is a context of itself: %s", name, strings.Join(append(above, name), " "))
	}
	t, err := c.resolve(name, nil)
	if err != nil {
		return err
	}
	if len(above) > 0 {
		t["output"] = []object{{"type": "cacheonly"}}
	}
	p.Targets[name] = t
	contexts, _ := t["contexts"].(map[string]string)
	for _, key := range sortedKeys(contexts) {
		if other, ok := strings.CutPrefix(contexts[key], "target:"); ok {
			if _, known := c.targets[other]; !known {
				return errs.New(errs.NotFound, "target %s: context %s: failed to find target %s", name, key, other)
			}
			if err := c.add(p, other, true, append(above, name)); err != nil {
				return err
			}
		}
	}
	return nil
}

// resolve gives a target with what it inherits, its overrides, and the defaults.
func (c *config) resolve(name string, above []string) (Target, error) {
	t, err := c.inherit(name, above)
	if err != nil {
		return nil, err
	}
	delete(t, "inherits")
	for key, def := range map[string]string{"context": ".", "dockerfile": "Dockerfile"} {
		if s, _ := t[key].(string); s == "" {
			t[key] = def
		}
	}
	t.tidy()
	return t, nil
}

func (c *config) inherit(name string, above []string) (Target, error) {
	if slices.Contains(above, name) {
		return nil, errs.New(errs.Invalid, "target %s inherits from itself: %s", name, strings.Join(append(above, name), " "))
	}
	own, ok := c.targets[name]
	if !ok {
		return nil, errs.New(errs.NotFound, "failed to find target %s", name)
	}
	t := Target{}
	parents, _ := own["inherits"].([]string)
	for _, parent := range parents {
		p, err := c.inherit(parent, append(above, name))
		if err != nil {
			return nil, err
		}
		t.merge(p)
	}
	t.merge(own)
	for _, ch := range c.changes[name] {
		if err := ch.apply(t); err != nil {
			return nil, err
		}
	}
	return t, nil
}

func sortedKeys[T any](m map[string]T) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	sort.Strings(keys)
	return keys
}
