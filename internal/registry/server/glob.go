package server

import (
	"path"
	"strings"

	"corten.dev/corten/internal/errs"
)

// Match tells whether a pattern covers a whole name: "*" and "?" and "[…]" stay within one level, "**" is any number of levels (also none). Rules of what is
// kept, of who may what and of what is cached all mean this by a pattern.
func Match(pattern, name string) bool {
	return globParts(strings.Split(pattern, "/"), strings.Split(name, "/"))
}

func globParts(pattern, name []string) bool {
	if len(pattern) == 0 {
		return len(name) == 0
	}
	if pattern[0] == "**" {
		for skip := range len(name) + 1 {
			if globParts(pattern[1:], name[skip:]) {
				return true
			}
		}
		return false
	}
	if len(name) == 0 {
		return false
	}
	ok, err := path.Match(pattern[0], name[0])
	return err == nil && ok && globParts(pattern[1:], name[1:])
}

// matches tells whether one of the patterns does; none matches everything if empty says so.
func matches(patterns []string, name string, empty bool) bool {
	if len(patterns) == 0 {
		return empty
	}
	for _, p := range patterns {
		if Match(p, name) {
			return true
		}
	}
	return false
}

// check refuses patterns that would silently match nothing.
func (rule Rule) check() error {
	if rule.KeepLast < 0 || rule.KeepFor < 0 || rule.Untagged < 0 {
		return errs.New(errs.Invalid, "retention rule: a number is negative")
	}
	for _, list := range [][]string{rule.Repositories, rule.Tags, rule.Keep} {
		for _, p := range list {
			if p == "" {
				return errs.New(errs.Invalid, "retention rule: a pattern is empty")
			}
			if _, err := path.Match(p, ""); err != nil {
				return errs.New(errs.Invalid, "retention rule: pattern %q: %w", p, err)
			}
		}
	}
	return nil
}
