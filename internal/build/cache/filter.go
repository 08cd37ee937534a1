package cache

import (
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/filter"
)

// matcher is what filters ask of a line of usage; all of it must hold.
type matcher []func(u *Usage) bool

func (m matcher) match(u *Usage) bool {
	for _, f := range m {
		if !f(u) {
			return false
		}
	}
	return true
}

// compile reads filters. Docker splits them at the first "=", so an operator before it stays with the key: "type" is type=… or type==…, "type!" is type!=…, "id~" is id~=… with a regular expression. Of
// several values of a key one must fit; of those that are not to fit, none.
//
//	id, parent, parents   the id, or its beginning          inuse, mutable, immutable, shared, private   true (or nothing) and false
//	type                  the kind                          until, unused-for                            not used since: a duration, or a time
//	description           all of it, or a part
func compile(args filter.Args, now time.Time) (matcher, error) {
	var all matcher
	for key, values := range args {
		name, not, pattern := key, false, false
		switch {
		case strings.HasSuffix(key, "!"):
			name, not = strings.TrimSuffix(key, "!"), true
		case strings.HasSuffix(key, "~"):
			name, pattern = strings.TrimSuffix(key, "~"), true
		}
		f, err := condition(name, values, pattern, now)
		if err != nil {
			return nil, err
		}
		if not {
			all = append(all, func(u *Usage) bool { return !f(u) })
			continue
		}
		all = append(all, f)
	}
	return all, nil
}

func condition(name string, values []string, pattern bool, now time.Time) (func(*Usage) bool, error) {
	if len(values) == 0 {
		values = []string{""}
	}
	switch name {
	case "inuse", "mutable", "immutable", "shared", "private":
		if pattern {
			return nil, errs.New(errs.Invalid, "invalid filter '%s~': it is true or false", name)
		}
		return flag(name, values)
	case "until", "unused-for":
		if pattern {
			return nil, errs.New(errs.Invalid, "invalid filter '%s~': it is a time", name)
		}
		return until(name, values, now)
	}
	fields, ok := map[string]func(*Usage) []string{
		"id":          func(u *Usage) []string { return []string{u.ID} },
		"parent":      func(u *Usage) []string { return u.Parents },
		"parents":     func(u *Usage) []string { return u.Parents },
		"type":        func(u *Usage) []string { return []string{u.Kind} },
		"description": func(u *Usage) []string { return []string{u.Description} },
	}[name]
	if !ok {
		return nil, errs.New(errs.Invalid, "invalid filter '%s'", name)
	}
	var tests []func(string) bool
	for _, v := range values {
		v = strings.TrimPrefix(v, "=")
		test := func(s string) bool { return s == v }
		switch {
		case pattern:
			re, err := regexp.Compile(v)
			if err != nil {
				return nil, errs.New(errs.Invalid, "invalid filter '%s~=%s': %w", name, v, err)
			}
			test = re.MatchString
		case name == "description":
			test = func(s string) bool { return strings.Contains(s, v) }
		case name != "type":
			test = func(s string) bool { return v != "" && strings.HasPrefix(s, v) }
		}
		tests = append(tests, test)
	}
	return func(u *Usage) bool {
		return slices.ContainsFunc(fields(u), func(s string) bool {
			return slices.ContainsFunc(tests, func(test func(string) bool) bool { return test(s) })
		})
	}, nil
}

func flag(name string, values []string) (func(*Usage) bool, error) {
	var wants []bool
	for _, v := range values {
		v = strings.TrimPrefix(v, "=")
		want, err := strconv.ParseBool(v)
		if v == "" {
			want, err = true, nil
		}
		if err != nil {
			return nil, errs.New(errs.Invalid, "invalid filter '%s=%s': it is true or false", name, v)
		}
		wants = append(wants, want)
	}
	return func(u *Usage) bool {
		is := map[string]bool{"inuse": u.InUse, "mutable": u.Mutable, "immutable": !u.Mutable, "shared": u.Shared, "private": !u.Shared}[name]
		return slices.Contains(wants, is)
	}, nil
}

func until(name string, values []string, now time.Time) (func(*Usage) bool, error) {
	limit := now
	for _, v := range values {
		at, err := instant(strings.TrimPrefix(v, "="), now)
		if err != nil {
			return nil, errs.New(errs.Invalid, "invalid filter '%s=%s': it is neither a duration nor a time", name, v)
		}
		if at.Before(limit) {
			limit = at
		}
	}
	return func(u *Usage) bool { return !u.used().After(limit) }, nil
}

// instant reads "24h" (so long ago), a time of RFC 3339, a day, or seconds since 1970.
func instant(s string, now time.Time) (time.Time, error) {
	if d, err := time.ParseDuration(s); err == nil {
		return now.Add(-d), nil
	}
	for _, layout := range []string{time.RFC3339Nano, "2006-01-02T15:04:05", "2006-01-02T15:04", "2006-01-02"} {
		if at, err := time.ParseInLocation(layout, s, now.Location()); err == nil {
			return at, nil
		}
	}
	sec, err := strconv.ParseFloat(s, 64)
	if err != nil || sec < 0 || sec > 1<<32 {
		return time.Time{}, errs.New(errs.Invalid, "no time: %s", s)
	}
	return time.Unix(0, int64(sec*1e9)), nil
}
