package cli

import (
	"context"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"corten.dev/corten/internal/cli/engineapi"
)

type logsOptions struct {
	follow, timestamps, details bool
	since, until, tail          string
}

func newLogs() *verb {
	var o logsOptions
	return &verb{
		use: "[OPTIONS] CONTAINER", min: 1, max: 1, short: "Print what a container wrote", names: containers,
		long:    "Prints the container's standard output and error, as far as its log driver keeps them.\nTimes are dates, seconds since 1970, or durations such as 10m that count back from now.",
		example: "corten logs web\ncorten logs -f --tail 20 web\ncorten logs --since 10m -t web",
		flags: func(f *pflag.FlagSet) {
			f.BoolVarP(&o.follow, "follow", "f", false, "go on with what is written from now")
			f.BoolVarP(&o.timestamps, "timestamps", "t", false, "put the time before each line")
			f.BoolVar(&o.details, "details", false, "put the log's extra attributes before each line")
			f.StringVar(&o.since, "since", "", "only what was written since this time")
			f.StringVar(&o.until, "until", "", "only what was written before this time")
			f.StringVarP(&o.tail, "tail", "n", "all", "only the last lines")
		},
		run: func(ctx context.Context, a *app, args []string) error { return o.run(ctx, a, args[0]) },
	}
}

func (o *logsOptions) run(ctx context.Context, a *app, name string) error {
	since, err := timeArg(o.since, time.Now())
	if err != nil {
		return invalid(`invalid value for "since": %w`, err)
	}
	until, err := timeArg(o.until, time.Now())
	if err != nil {
		return invalid(`invalid value for "until": %w`, err)
	}
	api, err := a.engine()
	if err != nil {
		return err
	}
	q := query("stdout", "1", "stderr", "1", "follow", flag1(o.follow), "timestamps", flag1(o.timestamps),
		"details", flag1(o.details), "since", since, "until", until, "tail", o.tail)
	resp, err := api.Do(ctx, engineapi.Request{Method: "GET", Path: "/containers/" + esc(name) + "/logs", Query: q})
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	switch resp.Header["content-type"] {
	case "application/vnd.docker.multiplexed-stream":
		return engineapi.Demux(a.Out, a.Err, resp.Body)
	case "application/vnd.docker.raw-stream":
		if !engineapi.Less(api.Version(), "1.42") { // older engines say this of both kinds
			return copyOut(a.Out, resp.Body)
		}
	}
	ctr, err := inspectState(ctx, api, name)
	if err != nil {
		return err
	}
	if ctr.Config.Tty {
		return copyOut(a.Out, resp.Body)
	}
	return engineapi.Demux(a.Out, a.Err, resp.Body)
}

func copyOut(w io.Writer, r io.Reader) error {
	_, err := io.CopyBuffer(struct{ io.Writer }{w}, r, make([]byte, 128<<10))
	return err
}

// timeArg turns a date, a number of seconds since 1970 or a duration before now into the API's seconds.nanoseconds.
func timeArg(s string, now time.Time) (string, error) {
	if s == "" {
		return "", nil
	}
	if d, err := time.ParseDuration(s); err == nil && s != "0" { // that is 1970
		t := now.Add(-d)
		return stamp(t), nil
	}
	if strings.ContainsAny(s, "T:-") && !strings.HasPrefix(s, "-") {
		layouts := []string{time.RFC3339Nano, "2006-01-02T15:04:05.999999999", "2006-01-02T15:04:05", "2006-01-02T15:04", "2006-01-02T15", "2006-01-02Z07:00", "2006-01-02"}
		for _, l := range layouts {
			if t, err := time.ParseInLocation(l, s, now.Location()); err == nil {
				return stamp(t), nil
			}
		}
		return "", invalid("failed to parse value as time or duration: %q", s)
	}
	whole, frac, _ := strings.Cut(s, ".")
	if _, err := strconv.ParseInt(whole, 10, 64); err != nil {
		return "", invalid("failed to parse value as time or duration: %q", s)
	}
	if frac != "" {
		if _, err := strconv.ParseUint(frac, 10, 64); err != nil || len(frac) > 9 {
			return "", invalid("failed to parse value as time or duration: %q", s)
		}
	}
	return s, nil
}

func stamp(t time.Time) string {
	return strconv.FormatInt(t.Unix(), 10) + "." + pad9(t.Nanosecond())
}

func pad9(n int) string {
	s := strconv.Itoa(n)
	return strings.Repeat("0", 9-len(s)) + s
}
