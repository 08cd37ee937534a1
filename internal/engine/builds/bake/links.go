package bake

import (
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"

	"corten.dev/corten/internal/errs"
)

// maxLinks bounds how deep compose files may lead to others.
const maxLinks = 20

// maxIncludes bounds how many includes are followed: files that each name the next one twice would be read two to the power of maxLinks times.
const maxIncludes = 500

// Missing are files that compose files name (extends, include) and that were not given: who asked for the plan gives them as extra files, and asks again. The names are paths as far as they
// follow from the names of the files that were given.
type Missing struct {
	Names []string
	// Optional are files that nothing names, but that hold where they are: of those that are not there, empty ones are given.
	Optional []string
}

// Error names the first.
func (m *Missing) Error() string {
	return slices.Concat(m.Names, m.Optional)[0] + ": no such file among those that were given"
}

// composer reads compose files and what they lead to.
type composer struct {
	extra    map[string][]byte // by path
	env      map[string]string
	missing  Missing
	read     map[string]map[string]any
	includes int // that were followed
}

// document reads a file with its variables filled in; nil: it is missing.
func (c *composer) document(name string, data []byte) (map[string]any, error) {
	var doc map[string]any
	if err := yaml.Unmarshal(data, &doc); err != nil {
		return nil, errs.New(errs.Invalid, "%s: %w", name, err)
	}
	filled, err := interpolate(doc, c.env)
	if err != nil {
		return nil, errs.New(errs.Invalid, "%s: %w", name, err)
	}
	doc, _ = filled.(map[string]any)
	return doc, nil
}

// linked reads a file that another one names.
func (c *composer) linked(from, name string) (at string, doc map[string]any, err error) {
	if strings.Contains(name, "://") || strings.HasPrefix(name, "git@") {
		return "", nil, errs.New(errs.NotImplemented, "%s: %s: files at an address are not fetched", from, name)
	}
	at = beside(from, name)
	if doc, ok := c.read[at]; ok {
		return at, doc, nil
	}
	data, ok := c.given(at)
	if !ok {
		return at, nil, nil
	}
	if doc, err = c.document(at, data); err == nil {
		if c.read == nil {
			c.read = map[string]map[string]any{}
		}
		c.read[at] = doc
	}
	return at, doc, err
}

// beside is where a file is that another one names.
func beside(from, name string) string {
	if path.IsAbs(name) {
		return name
	}
	return path.Join(path.Dir(from), name)
}

// given gives a file, or notes that it is missing.
func (c *composer) given(at string) ([]byte, bool) {
	data, ok := c.extra[at]
	if !ok && !slices.Contains(c.missing.Names, at) {
		c.missing.Names = append(c.missing.Names, at)
	}
	return data, ok
}

// implied gives the file of variables of a folder, or notes that it may be missing.
func (c *composer) implied(at string) ([]byte, bool) {
	data, ok := c.extra[at]
	if !ok && at != projectEnv && !slices.Contains(c.missing.Optional, at) { // that of the project is given from the beginning, if it is there
		c.missing.Optional = append(c.missing.Optional, at)
	}
	return data, ok
}

// environment has files of variables hold for what is read until restore: those that the item names, else .env of its folder. What the environment has goes before what they say.
func (c *composer) environment(from string, what included) (restore func(), err error) {
	env, read := c.env, c.read
	restore = func() { c.env, c.read = env, read }
	files, given := what.envFiles, c.given
	if len(files) == 0 {
		dir := what.dir
		if dir == "" {
			dir = path.Dir(what.paths[0])
		}
		files, given = []string{path.Join(dir, projectEnv)}, c.implied
	}
	c.env, c.read = maps.Clone(env), nil
	if c.env == nil {
		c.env = map[string]string{}
	}
	for _, name := range files {
		data, ok := given(beside(from, name))
		if !ok {
			continue
		}
		vars, err := dotenv(name, data, c.env)
		if err != nil {
			return restore, err
		}
		maps.Copy(c.env, vars)
		maps.Copy(c.env, env)
	}
	return restore, nil
}

// include puts what the files of "include" have into doc.
func (c *composer) include(name string, doc map[string]any, depth int) error {
	list, ok := doc["include"]
	if !ok {
		return nil
	}
	if depth > maxLinks {
		return errs.New(errs.Invalid, "%s: include leads deeper than %d files", name, maxLinks)
	}
	one, ok := list.([]any)
	if !ok {
		return errs.New(errs.Invalid, "%s: include: give a list", name)
	}
	for _, item := range one {
		if c.includes++; c.includes > maxIncludes {
			return errs.New(errs.Invalid, "%s: include leads to more than %d files", name, maxIncludes)
		}
		what, err := readInclude(name, item)
		if err != nil {
			return err
		}
		paths, dir := what.paths, what.dir
		restore, err := c.environment(name, what)
		if err != nil {
			return err
		}
		merged := map[string]any{}
		for _, p := range paths {
			at, more, err := c.linked(name, p)
			if err != nil {
				return err
			}
			more = clone(more)
			if err := c.include(at, more, depth+1); err != nil {
				return err
			}
			base := dir
			if base == "" {
				base = path.Dir(p)
			}
			rebase(more, base)
			merged = merge(merged, more).(map[string]any)
		}
		restore()
		for _, kind := range []string{"services", "secrets"} {
			have, _ := doc[kind].(map[string]any)
			more, _ := merged[kind].(map[string]any)
			for _, key := range sortedKeys(more) {
				if _, twice := have[key]; twice {
					return errs.New(errs.Invalid, "%s: imported compose file %s defines conflicting %s %s", name, strings.Join(paths, ", "), strings.TrimSuffix(kind, "s"), key)
				}
				if have == nil {
					have = map[string]any{}
					doc[kind] = have
				}
				have[key] = more[key]
			}
		}
	}
	return nil
}

// included is an item of include: files that are merged, the folder that their paths start from, and files of variables that hold for them.
type included struct {
	paths, envFiles []string
	dir             string
}

// readInclude reads an item of include: a path, or a mapping.
func readInclude(name string, item any) (what included, err error) {
	m, isMap := item.(map[string]any)
	if !isMap {
		m = map[string]any{"path": item}
	}
	var ok bool
	if what.paths, ok = texts(m["path"]); !ok || len(what.paths) == 0 {
		return what, errs.New(errs.Invalid, "%s: include: give a path, or a mapping with a path", name)
	}
	if file, has := m["env_file"]; has {
		if what.envFiles, ok = texts(file); !ok {
			return what, errs.New(errs.Invalid, "%s: include.env_file: give a path, or a list of paths", name)
		}
	}
	what.dir, _ = m["project_directory"].(string)
	return what, nil
}

// texts reads a text, or a list of them.
func texts(v any) (list []string, ok bool) {
	switch v := v.(type) {
	case string:
		return []string{v}, true
	case []any:
		for _, one := range v {
			text, ok := one.(string)
			if !ok {
				return nil, false
			}
			list = append(list, text)
		}
		return list, true
	}
	return nil, false
}

// extend gives a service with what it extends put below it.
func (c *composer) extend(file string, doc map[string]any, name string, above []string) (map[string]any, error) {
	services, _ := doc["services"].(map[string]any)
	svc, ok := services[name].(map[string]any)
	if !ok {
		return nil, errs.New(errs.Invalid, "%s: service %s is no mapping", file, name)
	}
	ext, ok := svc["extends"]
	if !ok {
		return svc, nil
	}
	key := file + " " + name
	if slices.Contains(above, key) || len(above) > maxLinks {
		return nil, errs.New(errs.Invalid, "%s: service %s extends itself", file, name)
	}
	of, from := "", ""
	switch e := ext.(type) {
	case string:
		of = e
	case map[string]any:
		of, _ = e["service"].(string)
		from, _ = e["file"].(string)
	}
	if of == "" {
		return nil, errs.New(errs.Invalid, "%s: service %s: extends: name a service", file, name)
	}
	below, at := doc, file
	if from != "" {
		var err error
		if at, below, err = c.linked(file, from); err != nil || below == nil {
			return svc, err
		}
	}
	if all, _ := below["services"].(map[string]any); all[of] == nil {
		return nil, errs.New(errs.Invalid, "%s: service %q: extends: there is no service %q in %s", file, name, of, at)
	}
	base, err := c.extend(at, below, of, append(above, key))
	if err != nil {
		return nil, err
	}
	base = clone(base)
	delete(base, "extends")
	if from != "" {
		one := map[string]any{"services": map[string]any{of: base}}
		rebase(one, path.Dir(from))
	}
	svc = clone(svc)
	delete(svc, "extends")
	for _, m := range []map[string]any{base, svc} {
		normal(m)
	}
	return merge(base, svc).(map[string]any), nil
}

// normal writes the build of a service as a mapping.
func normal(svc map[string]any) {
	if dir, ok := svc["build"].(string); ok {
		svc["build"] = map[string]any{"context": dir}
	}
}

// clone copies a tree of mappings and lists.
func clone(m map[string]any) map[string]any {
	out := maps.Clone(m)
	if out == nil {
		out = map[string]any{}
	}
	for key, v := range out {
		if sub, ok := v.(map[string]any); ok {
			out[key] = clone(sub)
		}
	}
	return out
}

// rebase moves the folders of a document that lies in dir.
func rebase(doc map[string]any, dir string) {
	if dir == "" || dir == "." {
		return
	}
	move := func(p string) string {
		if p == "" || path.IsAbs(p) || strings.Contains(p, ":") || strings.HasPrefix(p, "~") || strings.HasPrefix(p, "git@") {
			return p
		}
		return path.Join(dir, p)
	}
	services, _ := doc["services"].(map[string]any)
	for _, one := range services {
		svc, _ := one.(map[string]any)
		if svc == nil || svc["build"] == nil {
			continue
		}
		normal(svc)
		build, _ := svc["build"].(map[string]any)
		if build == nil {
			continue
		}
		at, _ := build["context"].(string)
		if at == "" {
			at = "."
		}
		build["context"] = move(at)
		if more, ok := build["additional_contexts"].(map[string]any); ok {
			for key, value := range more {
				if text, ok := value.(string); ok {
					more[key] = move(text)
				}
			}
		}
	}
	secrets, _ := doc["secrets"].(map[string]any)
	for _, one := range secrets {
		if s, ok := one.(map[string]any); ok {
			if file, ok := s["file"].(string); ok {
				s["file"] = move(file)
			}
		}
	}
}

// merge puts over on top of base, as compose does: mappings by key, lists one after the other, all else is replaced.
func merge(base, over any) any {
	a, aMap := base.(map[string]any)
	b, bMap := over.(map[string]any)
	if list, ok := base.([]any); ok && bMap {
		a, aMap = pairs(list), true
	}
	if list, ok := over.([]any); ok && aMap {
		b, bMap = pairs(list), true
	}
	if aMap && bMap {
		out := maps.Clone(a)
		for key, v := range b {
			if have, ok := out[key]; ok {
				v = merge(have, v)
			}
			out[key] = v
		}
		return out
	}
	x, isList := base.([]any)
	y, both := over.([]any)
	if !isList || !both {
		return over
	}
	out := slices.Clone(x)
	for _, v := range y {
		if !slices.ContainsFunc(out, func(have any) bool { return fmt.Sprint(have) == fmt.Sprint(v) }) {
			out = append(out, v)
		}
	}
	return out
}

// pairs is a list of NAME=VALUE as a mapping; a name alone takes the environment's value.
func pairs(list []any) map[string]any {
	out := map[string]any{}
	for _, v := range list {
		key, value, ok := strings.Cut(fmt.Sprint(v), "=")
		out[key] = nil
		if ok {
			out[key] = value
		}
	}
	return out
}
