package server

import (
	"math"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/filter"
)

// form is the query of a request (with the fields of an urlencoded body, which some old clients send).
type form url.Values

func readForm(r *http.Request) (form, error) {
	if r.URL.RawQuery == "" && r.Header.Get("Content-Type") != "application/x-www-form-urlencoded" {
		return nil, nil
	}
	if r.URL.RawQuery != "" && r.Header.Get("Content-Type") != "application/x-www-form-urlencoded" {
		values, err := url.ParseQuery(r.URL.RawQuery)
		if err != nil {
			return nil, errs.New(errs.Invalid, "invalid query: %w", err)
		}
		return form(values), nil
	}
	r.Body = http.MaxBytesReader(nil, r.Body, maxBody)
	if err := r.ParseForm(); err != nil {
		return nil, errs.New(errs.Invalid, "invalid form: %w", err)
	}
	return form(r.Form), nil
}

func (f form) get(key string) string { return url.Values(f).Get(key) }

func (f form) has(key string) bool { return len(f[key]) > 0 }

// flag reads a truth value as Docker does: everything but these few words is true.
func (f form) flag(key string) bool {
	switch strings.ToLower(strings.TrimSpace(f.get(key))) {
	case "", "0", "no", "false", "none":
		return false
	}
	return true
}

func (f form) flagOr(key string, absent bool) bool {
	if !f.has(key) {
		return absent
	}
	return f.flag(key)
}

// number reads an integer; absent gives 0.
func (f form) number(key string) (int, error) {
	text := f.get(key)
	if text == "" {
		return 0, nil
	}
	n, err := strconv.Atoi(text)
	if err != nil {
		return 0, errs.New(errs.Invalid, "invalid value for %s: %q is not a whole number", key, text)
	}
	return n, nil
}

func (f form) filters() (filter.Args, error) { return filter.Parse(f.get("filters")) }

// moment reads a time: seconds since 1970 with an optional fraction, RFC 3339 in Docker's shorter forms too, or a duration before now. Absent or "0" gives the zero time.
func (f form) moment(key string, now time.Time) (time.Time, error) {
	text := f.get(key)
	if text == "" || text == "0" {
		return time.Time{}, nil
	}
	if t, ok := unixTime(text); ok {
		return t, nil
	}
	for _, layout := range []string{time.RFC3339Nano, "2006-01-02T15:04:05.999999999", "2006-01-02T15:04", "2006-01-02T15", "2006-01-02Z07:00", "2006-01-02"} {
		if t, err := time.ParseInLocation(layout, text, time.Local); err == nil {
			return t, nil
		}
	}
	if d, err := time.ParseDuration(text); err == nil {
		return now.Add(-d), nil
	}
	return time.Time{}, errs.New(errs.Invalid, "invalid value for %s: %q is neither a time nor a duration", key, text)
}

// instant is moment for events: there, "0" is the beginning of 1970, and so asks for all that are remembered.
func (f form) instant(key string, now time.Time) (time.Time, error) {
	if f.get(key) == "0" {
		return time.Unix(0, 0), nil
	}
	return f.moment(key, now)
}

func unixTime(text string) (time.Time, bool) {
	whole, fraction, _ := strings.Cut(text, ".")
	seconds, err := strconv.ParseInt(whole, 10, 64)
	if err != nil || seconds > math.MaxInt64/int64(time.Second) || seconds < math.MinInt64/int64(time.Second) {
		return time.Time{}, false
	}
	if len(fraction) > 9 {
		fraction = fraction[:9]
	}
	nanos := int64(0)
	if fraction != "" {
		if nanos, err = strconv.ParseInt(fraction+strings.Repeat("0", 9-len(fraction)), 10, 64); err != nil || nanos < 0 {
			return time.Time{}, false
		}
	}
	return time.Unix(seconds, nanos), true
}
