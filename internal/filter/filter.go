// Package filter is Docker's filter argument: keys with sets of values, as `--filter` and the API's `filters` carry them.
//
// It owns the two JSON forms and the matching rules. It is pure. It promises that an unknown key is refused, never ignored.
package filter

import (
	"encoding/json"
	"regexp"
	"slices"
	"strings"

	"corten.dev/corten/internal/errs"
)

// Args maps a key to its values, in the order given.
type Args map[string][]string

// Parse reads the API's form {"key":{"value":true}} and the older {"key":["value"]}.
func Parse(s string) (Args, error) {
	if s == "" {
		return nil, nil
	}
	args := Args{}
	var now map[string]map[string]bool
	if err := json.Unmarshal([]byte(s), &now); err == nil {
		for key, values := range now {
			args[key] = []string{}
			for v, on := range values {
				if on {
					args[key] = append(args[key], v)
				}
			}
			slices.Sort(args[key])
		}
		return args, nil
	}
	var old map[string][]string
	if err := json.Unmarshal([]byte(s), &old); err != nil {
		return nil, errs.New(errs.Invalid, "invalid filter")
	}
	for key, values := range old {
		args[key] = values
	}
	return args, nil
}

// Accept refuses keys that are not among those given.
func (a Args) Accept(keys ...string) error {
	for key := range a {
		if !slices.Contains(keys, key) {
			return errs.New(errs.Invalid, "invalid filter '%s'", key)
		}
	}
	return nil
}

// Has tells whether a key was given.
func (a Args) Has(key string) bool { return len(a[key]) > 0 }

// Exact is true when the key was not given or one of its values equals v.
func (a Args) Exact(key, v string) bool {
	return !a.Has(key) || slices.Contains(a[key], v)
}

// Match is true when the key was not given or one of its values equals v, or matches it as a regular expression (Docker's rule for names and ids).
func (a Args) Match(key, v string) bool {
	if a.Exact(key, v) {
		return true
	}
	for _, pattern := range a[key] {
		if ok, err := regexp.MatchString(pattern, v); err == nil && ok {
			return true
		}
	}
	return false
}

// Prefix is true when the key was not given or one of its values begins v.
func (a Args) Prefix(key, v string) bool {
	if !a.Has(key) {
		return true
	}
	for _, p := range a[key] {
		if strings.HasPrefix(v, p) {
			return true
		}
	}
	return false
}

// Labels is true when every value of the key ("name" or "name=value") holds for the labels.
func (a Args) Labels(key string, labels map[string]string) bool {
	for _, want := range a[key] {
		name, value, exact := strings.Cut(want, "=")
		got, ok := labels[name]
		if !ok || exact && got != value {
			return false
		}
	}
	return true
}

// Bool reads a key that is true or false; absent gives the default.
func (a Args) Bool(key string, absent bool) (bool, error) {
	values := a[key]
	if len(values) == 0 {
		return absent, nil
	}
	for _, v := range values {
		switch v {
		case "1", "true", "True":
			return true, nil
		case "0", "false", "False":
		default:
			return false, errs.New(errs.Invalid, "invalid filter '%s=%s'", key, v)
		}
	}
	return false, nil
}
