package bake

import (
	"encoding/csv"
	"slices"
	"strings"

	"corten.dev/corten/internal/errs"
)

// Target is one build, by the names of its attributes as `--print` shows them. Values are of the Go types that kinds tells; what is not set is not there.
type Target map[string]any

// object is an entry like type=registry,ref=x, by its keys. Values are strings, or lists of them.
type object map[string]any

type kind int

const (
	text    kind = iota // string
	flag                // bool
	list                // []string; a later one replaces an earlier one
	growing             // []string; a later one comes behind an earlier one
	table               // map[string]string, key by key
	objects             // []object; a later one replaces an earlier one
	keyed               // []object; a later entry replaces the earlier one of the same identity
)

// kinds are the attributes of a target.
var kinds = map[string]kind{
	"inherits": growing, "description": text, "annotations": growing, "attest": keyed, "context": text, "contexts": table, "dockerfile": text, "dockerfile-inline": text, "args": table,
	"labels": table, "tags": list, "cache-from": keyed, "cache-to": objects, "target": text, "secret": keyed, "ssh": keyed, "platforms": list, "output": objects, "pull": flag, "no-cache": flag,
	"network": text, "no-cache-filter": list, "shm-size": text, "ulimits": growing, "call": text, "entitlements": growing, "extra-hosts": table,
}

// merge takes what other has.
func (t Target) merge(other Target) {
	for key, value := range other {
		switch kinds[key] {
		case growing:
			old, _ := t[key].([]string)
			t[key] = slices.Concat(old, value.([]string))
		case table:
			old, _ := t[key].(map[string]string)
			all := make(map[string]string, len(old))
			for k, v := range old {
				all[k] = v
			}
			for k, v := range value.(map[string]string) {
				all[k] = v
			}
			t[key] = all
		case keyed:
			old, _ := t[key].([]object)
			t[key] = mergeObjects(key, old, value.([]object))
		default:
			t[key] = value
		}
	}
}

// identity is what makes two entries the same one.
func identity(key string, o object) string {
	switch key {
	case "attest":
		return str(o["type"])
	case "secret", "ssh":
		return str(o["id"])
	}
	var all strings.Builder
	for _, k := range sortedKeys(o) {
		all.WriteString(k + "=" + str(o[k]) + ",")
	}
	return all.String()
}

func str(v any) string {
	switch v := v.(type) {
	case string:
		return v
	case []string:
		return strings.Join(v, ",")
	}
	return ""
}

func mergeObjects(key string, old, more []object) []object {
	all := slices.Clone(old)
	for _, o := range more {
		if i := slices.IndexFunc(all, func(have object) bool { return identity(key, have) == identity(key, o) }); i >= 0 {
			all[i] = o
			continue
		}
		all = append(all, o)
	}
	return all
}

// tidy drops empty and doubled entries of lists, and what is empty then.
func (t Target) tidy() {
	for key, value := range t {
		switch v := value.(type) {
		case []string:
			var once []string
			for _, s := range v {
				if s != "" && !slices.Contains(once, s) {
					once = append(once, s)
				}
			}
			if len(once) == 0 {
				delete(t, key)
			} else {
				t[key] = once
			}
		case []object:
			if len(v) == 0 {
				delete(t, key)
			}
		case map[string]string:
			if len(v) == 0 {
				delete(t, key)
			}
		}
	}
}

// parseObject reads an entry in the form of the command line's flags.
func parseObject(key, text string) (object, error) {
	if key == "ssh" {
		id, paths, _ := strings.Cut(text, "=")
		o := object{"id": id}
		if paths != "" {
			o["paths"] = strings.Split(paths, ",")
		}
		return o, nil
	}
	fields, err := csv.NewReader(strings.NewReader(text)).Read()
	if err != nil {
		return nil, errs.New(errs.Invalid, "%s %q: %w", key, text, err)
	}
	if len(fields) == 1 && !strings.Contains(fields[0], "=") {
		switch key {
		case "cache-from", "cache-to":
			return object{"type": "registry", "ref": fields[0]}, nil
		case "output":
			if fields[0] == "-" {
				return object{"type": "tar", "dest": "-"}, nil
			}
			return object{"type": "local", "dest": fields[0]}, nil
		}
	}
	o := object{}
	for _, f := range fields {
		k, v, ok := strings.Cut(f, "=")
		if !ok {
			return nil, errs.New(errs.Invalid, "%s %q: %q is not key=value", key, text, f)
		}
		o[strings.ToLower(strings.TrimSpace(k))] = v
	}
	if _, ok := o["type"]; !ok {
		switch key {
		case "output":
			return nil, errs.New(errs.Invalid, "output %q: type is required", text)
		case "cache-from", "cache-to":
			return nil, errs.New(errs.Invalid, "%s %q: type required form> \"type=registry\"", key, text)
		}
	}
	return o, nil
}
