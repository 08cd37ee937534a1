package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"sort"
	"strings"
	"time"

	"github.com/moby/moby/api/types/events"
	"github.com/spf13/pflag"

	"corten.dev/corten/internal/cli/engineapi"
	"corten.dev/corten/internal/cli/show"
)

func newEvents() *verb {
	f := filters{}
	var since, until, format string
	return &verb{
		use: "[OPTIONS]", short: "Follow what happens in the engine", long: "Prints what happens as it happens; with --since also what was, with --until only up to then.",
		example: "corten events --filter type=container\ncorten events --since 1h --until 0s --format json",
		flags: func(fs *pflag.FlagSet) {
			fs.VarP(f, "filter", "f", "show only what fits name=value")
			fs.StringVar(&since, "since", "", "show what was since this time")
			fs.StringVar(&until, "until", "", "end at this time")
			fs.StringVar(&format, "format", "", "how to print: json or a Go template")
		},
		run: func(ctx context.Context, a *app, args []string) error {
			now := time.Now()
			from, err := timeArg(since, now)
			if err != nil {
				return err
			}
			to, err := timeArg(until, now)
			if err != nil {
				return err
			}
			if _, err := show.Parse(format); err != nil {
				return err
			}
			api, err := a.engine()
			if err != nil {
				return err
			}
			resp, err := api.Do(ctx, engineapi.Request{Method: "GET", Path: "/events", Query: f.into(query("since", from, "until", to))})
			if err != nil {
				return err
			}
			defer resp.Body.Close()
			dec := json.NewDecoder(resp.Body)
			for {
				var raw json.RawMessage
				if err := dec.Decode(&raw); err == io.EOF {
					return nil
				} else if err != nil {
					return fmt.Errorf("read events: %w", err)
				}
				if err := printEvent(a.Out, raw, format); err != nil {
					return err
				}
			}
		},
	}
}

func printEvent(w io.Writer, raw json.RawMessage, format string) error {
	if format == "json" || format == "{{json .}}" {
		_, err := fmt.Fprintf(w, "%s\n", raw)
		return err
	}
	var e events.Message
	if err := json.Unmarshal(raw, &e); err != nil {
		return fmt.Errorf("read event: %w", err)
	}
	if format != "" {
		return show.Text(w, format, e)
	}
	at := time.Unix(e.Time, 0)
	if e.TimeNano != 0 {
		at = time.Unix(0, e.TimeNano)
	}
	line := fmt.Sprintf("%s %s %s %s", at.Format("2006-01-02T15:04:05.000000000Z07:00"), e.Type, e.Action, e.Actor.ID)
	if len(e.Actor.Attributes) > 0 {
		attrs := make([]string, 0, len(e.Actor.Attributes))
		for k, v := range e.Actor.Attributes {
			attrs = append(attrs, k+"="+v)
		}
		sort.Strings(attrs)
		line += " (" + strings.Join(attrs, ", ") + ")"
	}
	_, err := fmt.Fprintln(w, line)
	return err
}
