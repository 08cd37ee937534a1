package bake

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"corten.dev/corten/internal/errs"
)

// compose reads the services of a compose file that are built as targets, and their group as "default"; with what it gets by other files (extends, include). Nothing else of a compose
// project matters here.
func (c *config) compose(f File, links *composer) error {
	wrong := func(format string, args ...any) error {
		return errs.New(errs.Invalid, "%s: %w", f.Name, fmt.Errorf(format, args...))
	}
	doc, err := links.document(f.Name, f.Data)
	if err != nil {
		return err
	}
	if err := links.include(f.Name, doc, 0); err != nil {
		return err
	}
	services, _ := doc["services"].(map[string]any)
	secrets, _ := doc["secrets"].(map[string]any)
	if len(services) == 0 && len(links.missing.Names) == 0 {
		return wrong("it has no services")
	}
	g := c.groups["default"]
	for _, name := range sortedKeys(services) {
		svc, err := links.extend(f.Name, doc, name, nil)
		if err != nil {
			return err
		}
		if svc["build"] == nil {
			continue
		}
		t, err := service(svc, secrets, links.env)
		if err != nil {
			return wrong("service %s: %w", name, err)
		}
		name = strings.ReplaceAll(name, ".", "_")
		if !validName(name) {
			return wrong("service %q: a name has letters, digits, _ and - only", name)
		}
		c.take(name, t)
		if !slices.Contains(g.Targets, name) {
			g.Targets = append(g.Targets, name)
		}
	}
	c.groups["default"] = g
	return nil
}

// composeKeys are the keys of `build` that are attributes under another name, or the same. Others are handled one by one.
var composeKeys = map[string]string{
	"context": "context", "dockerfile": "dockerfile", "dockerfile_inline": "dockerfile-inline", "args": "args", "labels": "labels", "tags": "tags", "cache_from": "cache-from",
	"cache_to": "cache-to", "network": "network", "platforms": "platforms", "target": "target", "no_cache": "no-cache", "pull": "pull", "shm_size": "shm-size", "extra_hosts": "extra-hosts",
	"entitlements": "entitlements", "ssh": "ssh", "additional_contexts": "contexts",
}

func service(svc, secrets map[string]any, env map[string]string) (Target, error) {
	build, ok := svc["build"].(map[string]any)
	if !ok {
		dir, ok := svc["build"].(string)
		if !ok {
			return nil, fmt.Errorf("build is neither a folder nor a mapping")
		}
		build = map[string]any{"context": dir}
	}
	t := Target{}
	for _, key := range sortedKeys(build) {
		attr, ok := composeKeys[key]
		var err error
		switch {
		case ok:
			err = t.plain(attr, build[key], env)
		case key == "secrets":
			err = t.secrets(build[key], secrets)
		case key == "ulimits":
			err = t.ulimits(build[key])
		case key == "privileged":
			if build[key] == true {
				t.merge(Target{"entitlements": []string{"security.insecure"}})
			}
		case key == "provenance" || key == "sbom":
			t.attest(key, build[key])
		case strings.HasPrefix(key, "x-") || key == "isolation":
		default:
			err = fmt.Errorf("not known")
		}
		if err != nil {
			return nil, fmt.Errorf("build.%s: %w", key, err)
		}
	}
	for name, value := range t.table("contexts") {
		if other, ok := strings.CutPrefix(value, "service:"); ok {
			t.table("contexts")[name] = "target:" + strings.ReplaceAll(other, ".", "_")
		}
	}
	if image, ok := svc["image"].(string); ok && t["tags"] == nil {
		t["tags"] = []string{image}
	}
	extra, _ := build["x-bake"].(map[string]any)
	for _, key := range sortedKeys(extra) {
		if _, ok := kinds[key]; !ok {
			return nil, fmt.Errorf("x-bake: a target has no attribute %q", key)
		}
		if err := t.plain(key, extra[key], env); err != nil {
			return nil, fmt.Errorf("x-bake.%s: %w", key, err)
		}
	}
	return t, nil
}

func (t Target) table(key string) map[string]string {
	m, _ := t[key].(map[string]string)
	return m
}

// plain sets an attribute of a value that is written as YAML.
func (t Target) plain(attr string, value any, env map[string]string) error {
	switch kinds[attr] {
	case text:
		s, ok := scalar(value)
		if !ok {
			return fmt.Errorf("give a string")
		}
		t[attr] = s
	case flag:
		b, ok := value.(bool)
		if !ok {
			return fmt.Errorf("give true or false")
		}
		t[attr] = b
	case table:
		m, err := mapping(value, env)
		if err != nil {
			return err
		}
		t.merge(Target{attr: m})
	case list, growing:
		all, err := sequence(value)
		if err != nil {
			return err
		}
		t[attr] = all
	default:
		all, err := sequence(value)
		if err != nil {
			return err
		}
		objs := []object{}
		for _, s := range all {
			o, err := parseObject(attr, s)
			if err != nil {
				return err
			}
			objs = append(objs, o)
		}
		t.merge(Target{attr: objs})
	}
	return nil
}

func (t Target) secrets(value any, declared map[string]any) error {
	list, ok := value.([]any)
	if !ok {
		return fmt.Errorf("give a list")
	}
	for _, one := range list {
		name, _ := one.(string)
		id := name
		if m, ok := one.(map[string]any); ok {
			name, _ = m["source"].(string)
			if id, _ = m["target"].(string); id == "" {
				id = name
			}
		}
		decl, ok := declared[name].(map[string]any)
		if !ok {
			return fmt.Errorf("secret %q is not declared", name)
		}
		o := object{"id": id}
		if file, ok := decl["file"].(string); ok {
			o["src"] = file
		} else if env, ok := decl["environment"].(string); ok {
			o["env"] = env
		} else {
			return fmt.Errorf("secret %q is neither of a file nor of the environment", name)
		}
		t.merge(Target{"secret": []object{o}})
	}
	return nil
}

func (t Target) ulimits(value any) error {
	limits, ok := value.(map[string]any)
	if !ok {
		return fmt.Errorf("give a mapping")
	}
	var all []string
	for _, name := range sortedKeys(limits) {
		if m, ok := limits[name].(map[string]any); ok {
			soft, sok := scalar(m["soft"])
			hard, hok := scalar(m["hard"])
			if !sok || !hok {
				return fmt.Errorf("%s: give soft and hard", name)
			}
			all = append(all, name+"="+soft+":"+hard)
			continue
		}
		n, ok := scalar(limits[name])
		if !ok {
			return fmt.Errorf("%s: give a number", name)
		}
		all = append(all, name+"="+n)
	}
	t["ulimits"] = all
	return nil
}

func (t Target) attest(kind string, value any) {
	o := object{"type": kind}
	switch v := value.(type) {
	case bool:
		if !v {
			o["disabled"] = "true"
		}
	case string:
		for f := range strings.SplitSeq(v, ",") {
			k, val, ok := strings.Cut(f, "=")
			switch {
			case ok:
				o[k] = val
			case f == "false":
				o["disabled"] = "true"
			}
		}
	}
	t.merge(Target{"attest": []object{o}})
}

func scalar(v any) (string, bool) {
	switch v := v.(type) {
	case string:
		return v, true
	case bool:
		return strconv.FormatBool(v), true
	case int, int64, uint64, float64:
		return fmt.Sprint(v), true
	}
	return "", false
}

// sequence reads a list, or a single entry, or a mapping as id=value.
func sequence(v any) (all []string, err error) {
	switch v := v.(type) {
	case []any:
		for _, one := range v {
			s, ok := scalar(one)
			if !ok {
				return nil, fmt.Errorf("give a list of strings")
			}
			all = append(all, s)
		}
		return all, nil
	case map[string]any:
		for _, k := range sortedKeys(v) {
			s, _ := scalar(v[k])
			all = append(all, strings.TrimSuffix(k+"="+s, "="))
		}
		return all, nil
	}
	if s, ok := scalar(v); ok {
		return []string{s}, nil
	}
	return nil, fmt.Errorf("give a list of strings")
}

// mapping reads a mapping, or a list of key=value. What has no value takes that of the environment, or is left out.
func mapping(v any, env map[string]string) (map[string]string, error) {
	m := map[string]string{}
	set := func(k, s string, given bool) {
		if !given {
			if s, given = env[k]; !given {
				return
			}
		}
		m[k] = s
	}
	switch v := v.(type) {
	case map[string]any:
		for k, one := range v {
			s, ok := scalar(one)
			if !ok && one != nil {
				return nil, fmt.Errorf("%s: give a string", k)
			}
			set(k, s, ok)
		}
	case []any:
		for _, one := range v {
			s, ok := scalar(one)
			if !ok {
				return nil, fmt.Errorf("give key=value")
			}
			k, val, given := strings.Cut(s, "=")
			if !given && strings.Contains(s, ":") { // host:address
				k, val, given = strings.Cut(s, ":")
			}
			set(k, val, given)
		}
	case nil:
	default:
		return nil, fmt.Errorf("give a mapping")
	}
	return m, nil
}
