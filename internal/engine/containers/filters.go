package containers

import (
	"strconv"
	"strings"
	"time"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/filter"
	"corten.dev/corten/internal/image"
)

// Until reads the filter until=…: a moment, or a duration before now. The zero time when it was not given.
func Until(f filter.Args) (time.Time, error) {
	values := f["until"]
	switch len(values) {
	case 0:
		return time.Time{}, nil
	case 1:
	default:
		return time.Time{}, errs.New(errs.Invalid, "more than one until filter specified")
	}
	return Moment(values[0], time.Now())
}

// Moment reads a time as Docker's filters take it: RFC 3339 (also shortened), seconds since 1970 with a fraction, or a duration before now.
func Moment(v string, now time.Time) (time.Time, error) {
	if d, err := time.ParseDuration(v); err == nil {
		return now.Add(-d), nil
	}
	for _, layout := range []string{time.RFC3339Nano, "2006-01-02T15:04:05.999999999", "2006-01-02T15:04:05", "2006-01-02T15:04", "2006-01-02T15", "2006-01-02Z07:00", "2006-01-02"} {
		if t, err := time.ParseInLocation(layout, v, time.Local); err == nil {
			return t, nil
		}
	}
	whole, frac, _ := strings.Cut(v, ".")
	sec, err := strconv.ParseInt(whole, 10, 64)
	if err != nil {
		return time.Time{}, errs.New(errs.Invalid, "invalid time %q", v)
	}
	nsec := int64(0)
	if frac != "" {
		if nsec, err = strconv.ParseInt((frac + "000000000")[:9], 10, 64); err != nil {
			return time.Time{}, errs.New(errs.Invalid, "invalid time %q", v)
		}
	}
	return time.Unix(sec, nsec), nil
}

func layersOf(fs image.RootFS) []string {
	list := make([]string, len(fs.DiffIDs))
	for i, id := range fs.DiffIDs {
		list[i] = id.String()
	}
	return list
}
