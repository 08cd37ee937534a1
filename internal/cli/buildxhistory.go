package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/docker/go-units"
	"github.com/spf13/pflag"

	"corten.dev/corten/internal/buildwire"
	"corten.dev/corten/internal/cli/engineapi"
	"corten.dev/corten/internal/cli/show"
	"corten.dev/corten/internal/reference"
)

// builds lists the engine's history, the newest first.
func (a *app) builds(ctx context.Context) ([]buildwire.Build, error) {
	api, err := a.engine()
	if err != nil {
		return nil, err
	}
	resp, err := api.Do(ctx, engineapi.Request{Method: "GET", Path: buildwire.HistoryPath})
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	var list []buildwire.Build
	dec := json.NewDecoder(resp.Body)
	for {
		var b buildwire.Build
		if err := dec.Decode(&b); errors.Is(err, io.EOF) {
			slices.Reverse(list)
			return list, nil
		} else if err != nil {
			return nil, fmt.Errorf("read the history of builds: %w", err)
		}
		list = append(list, b)
	}
}

// findBuild finds a build by its id, a beginning of it, or ^N: the Nth before the last; the last one without a word.
func findBuild(list []buildwire.Build, word string) (*buildwire.Build, error) {
	word = word[strings.LastIndexByte(word, '/')+1:]
	n := -1
	switch {
	case word == "":
		n = 0
	case word[0] == '^':
		before, err := strconv.ParseUint(word[1:], 10, 16)
		if err != nil {
			return nil, invalid("invalid build %q: use ^1 for the one before the last", word)
		}
		n = int(before)
	}
	if n >= 0 {
		if n >= len(list) {
			return nil, &exitError{code: 1, text: "ERROR: no such build in the history"}
		}
		return &list[n], nil
	}
	var found *buildwire.Build
	for i := range list {
		if list[i].Ref == word {
			return &list[i], nil
		}
		if strings.HasPrefix(list[i].Ref, word) {
			if found != nil {
				return nil, &exitError{code: 1, text: fmt.Sprintf("ERROR: %q is the beginning of several builds", word)}
			}
			found = &list[i]
		}
	}
	if found == nil {
		return nil, &exitError{code: 1, text: fmt.Sprintf("ERROR: no record found for ref %q", word)}
	}
	return found, nil
}

// buildRow is a line of history ls.
type buildRow struct {
	b    *buildwire.Build
	full bool
	now  time.Time
}

func (r *buildRow) MarshalJSON() ([]byte, error) { return show.MarshalRow(r) }
func (r *buildRow) Ref() string                  { return r.b.Ref }

// Name is what people know the build by: the image's name, or where its files came from.
func (r *buildRow) Name() string {
	name := buildName(r.b)
	if !r.full && len(name) > 45 {
		name = name[:42] + "..."
	}
	return name
}

func buildName(b *buildwire.Build) string {
	for _, e := range b.Exports {
		first, _, _ := strings.Cut(e.Attrs["name"], ",")
		if ref, err := reference.Parse(first); err == nil && first != "" {
			return ref.Familiar()
		}
	}
	name := b.Attrs["filename"]
	if c := b.Attrs["context"]; c != "" {
		name = strings.TrimSuffix(path.Base(strings.TrimSuffix(c, "/")), ".git")
	}
	if t := b.Attrs["target"]; t != "" {
		name += " (" + t + ")"
	}
	return name
}

func (r *buildRow) Status() string {
	switch {
	case r.b.Completed.IsZero():
		return "Running"
	case strings.HasSuffix(r.b.Error, "context canceled"):
		return "Canceled"
	case r.b.Error != "":
		return "Error"
	}
	return "Completed"
}

func (r *buildRow) CreatedAt() string { return units.HumanDuration(r.now.Sub(r.b.Created)) + " ago" }

func (r *buildRow) Duration() string { return buildTime(r.b, r.now) }

func buildTime(b *buildwire.Build, now time.Time) string {
	end := b.Completed
	if end.IsZero() {
		end = now
	}
	d := end.Sub(b.Created)
	if d < time.Minute {
		return fmt.Sprintf("%.1fs", d.Seconds())
	}
	return fmt.Sprintf("%dm %2ds", int(d.Minutes()), int(d.Seconds())%60)
}

func newHistoryLs() *verb {
	var noTrunc bool
	var format string
	return &verb{
		use: "[OPTIONS]", short: "List builds", long: "Lists the builds that the engine remembers, the newest first.", example: "corten buildx history ls\ncorten buildx history ls --format json",
		flags: func(f *pflag.FlagSet) {
			f.BoolVar(&noTrunc, "no-trunc", false, "do not shorten")
			f.StringVar(&format, "format", "", formatUsage)
		},
		run: func(ctx context.Context, a *app, args []string) error {
			list, err := a.builds(ctx)
			if err != nil {
				return err
			}
			var rows []any
			now := time.Now()
			for i := range list {
				rows = append(rows, &buildRow{&list[i], noTrunc, now})
			}
			l := show.List{Format: format, Default: "table {{.Ref}}\t{{.Name}}\t{{.Status}}\t{{.CreatedAt}}\t{{.Duration}}",
				Headers: show.Headers{"Ref": "BUILD ID", "Name": "NAME", "Status": "STATUS", "CreatedAt": "CREATED AT", "Duration": "DURATION"}}
			return l.Print(a.Out, rows)
		},
	}
}

func newHistoryInspect() *verb {
	var format string
	return &verb{
		use: "[OPTIONS] [REF]", max: -1, short: "Show what is known of a build", long: "Shows the last build, or the one whose ID (or the beginning of it, or ^1 for the one before the last) is given.",
		example: "corten buildx history inspect\ncorten buildx history inspect ^1",
		flags:   func(f *pflag.FlagSet) { f.StringVar(&format, "format", "", formatUsage) },
		run: func(ctx context.Context, a *app, args []string) error {
			if first(args) == "attachment" {
				return &exitError{code: 1, text: "ERROR: history keeps no attachments of builds: corten buildx imagetools inspect --format '{{json .Provenance}}' IMAGE shows those of an image at a registry"}
			}
			if len(args) > 1 {
				return &exitError{code: 1, text: "ERROR: one build is shown at a time"}
			}
			list, err := a.builds(ctx)
			if err != nil {
				return err
			}
			b, err := findBuild(list, first(args))
			if err != nil {
				return err
			}
			if format != "" {
				return show.Text(a.Out, format, b)
			}
			return buildText(a.Out, b, time.Now())
		},
	}
}

func first(args []string) string {
	if len(args) == 0 {
		return ""
	}
	return args[0]
}

// buildText is one build in words.
func buildText(w io.Writer, b *buildwire.Build, now time.Time) error {
	lines := []string{"Name:\t" + buildName(b)}
	add := func(label, value string) {
		if value != "" {
			lines = append(lines, label+":\t"+value)
		}
	}
	add("Context", b.Attrs["context"])
	add("Dockerfile", b.Attrs["filename"])
	add("Target", b.Attrs["target"])
	add("Platform", b.Attrs["platform"])
	lines = append(lines, "Started:\t"+b.Created.Local().Format("2006-01-02 15:04:05"), "Duration:\t"+buildTime(b, now), "Status:\t"+(&buildRow{b: b}).Status())
	add("Error", b.Error)
	if b.Steps > 0 {
		add("Build Steps", fmt.Sprintf("%d (%d%% cached)", b.Steps, 100*b.Cached/b.Steps))
	}
	if b.Warnings > 0 {
		add("Warnings", fmt.Sprint(b.Warnings))
	}
	add("Image", b.Response["image.name"])
	add("Digest", imageID(buildwire.Response{Exporter: b.Response}))
	return tabbed(w, lines)
}

func newHistoryLogs() *verb {
	var progress string
	return &verb{
		use: "[OPTIONS] [REF]", max: 1, short: "Show what a build said", long: "Replays the progress of the last build, or of the one that is named; of one that runs, until it ends.",
		example: "corten buildx history logs\ncorten buildx history logs --progress rawjson ^1",
		flags: func(f *pflag.FlagSet) {
			f.StringVar(&progress, "progress", "plain", "how to show it: plain, tty or rawjson")
		},
		run: func(ctx context.Context, a *app, args []string) error {
			list, err := a.builds(ctx)
			if err != nil {
				return err
			}
			b, err := findBuild(list, first(args))
			if err != nil {
				return err
			}
			return a.replay(ctx, b.Ref, progress)
		},
	}
}

func newHistoryRm() *verb {
	var all bool
	return &verb{
		use: "[OPTIONS] [REF...]", max: -1, short: "Forget builds", long: "Removes builds from the history; what they made stays. The engine forgets the oldest by itself.",
		example: "corten buildx history rm ^1\ncorten buildx history rm --all",
		flags:   func(f *pflag.FlagSet) { f.BoolVar(&all, "all", false, "all builds that are over") },
		run: func(ctx context.Context, a *app, args []string) error {
			if all == (len(args) > 0) {
				return &exitError{code: 1, text: "ERROR: give the builds to forget, or --all"}
			}
			list, err := a.builds(ctx)
			if err != nil {
				return err
			}
			var refs []string
			for _, b := range list {
				if all && !b.Completed.IsZero() {
					refs = append(refs, b.Ref)
				}
			}
			for _, word := range args {
				b, err := findBuild(list, word)
				if err != nil {
					return err
				}
				refs = append(refs, b.Ref)
			}
			api, err := a.engine()
			if err != nil {
				return err
			}
			for _, ref := range refs {
				resp, err := api.Do(ctx, engineapi.Request{Method: "DELETE", Path: buildwire.HistoryPath, Query: query("ref", ref)})
				if err != nil {
					return err
				}
				if err := resp.Body.Close(); err != nil {
					return err
				}
			}
			return nil
		},
	}
}

// replay shows the status of a build that was, or is under way.
func (a *app) replay(ctx context.Context, ref, mode string) error {
	d, err := a.buildDisplay(mode, false, "")
	if err != nil {
		return err
	}
	api, err := a.engine()
	if err != nil {
		return err
	}
	resp, err := api.Do(ctx, engineapi.Request{Method: "GET", Path: buildwire.StatusPath, Query: query("ref", ref)})
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	dec := json.NewDecoder(resp.Body)
	for {
		var raw json.RawMessage
		if err := dec.Decode(&raw); errors.Is(err, io.EOF) {
			return d.Finish()
		} else if err != nil {
			return fmt.Errorf("read the status of build %s: %w", ref, err)
		}
		if err := d.Update(raw, ""); err != nil {
			return err
		}
	}
}

func newHistoryExport() *verb {
	var output string
	var all, finalize bool
	return &verb{
		use: "[OPTIONS] [REF...]", max: -1, short: "Write builds to a file for Docker Desktop", long: "Writes what is known of the last build, or of those that are named, to a .dockerbuild file: settings, steps and output. Results are not in it: history keeps none.",
		example: "corten buildx history export -o build.dockerbuild\ncorten buildx history export --all -o builds.dockerbuild",
		flags: func(f *pflag.FlagSet) {
			f.StringVarP(&output, "output", "o", "", "file to write instead of STDOUT")
			f.BoolVar(&all, "all", false, "all builds that are over")
			f.BoolVar(&finalize, "finalize", false, "wait until records are complete: they are as soon as their build is over")
		},
		run: func(ctx context.Context, a *app, args []string) error {
			if all && len(args) > 0 {
				return &exitError{code: 1, text: "ERROR: cannot specify refs when using --all"}
			}
			if _, ok := terminalFd(a.Out); ok && output == "" {
				return &exitError{code: 1, text: "ERROR: refusing to write to console, use --output to specify a file"}
			}
			list, err := a.builds(ctx)
			if err != nil {
				return err
			}
			list = slices.DeleteFunc(list, func(b buildwire.Build) bool { return b.Completed.IsZero() })
			if len(list) == 0 {
				return &exitError{code: 1, text: "ERROR: no records found"}
			}
			q := url.Values{}
			if all {
				for _, b := range list {
					q.Add("ref", b.Ref)
				}
				args = nil
			} else if len(args) == 0 {
				args = []string{""}
			}
			for _, word := range args {
				b, err := findBuild(list, word)
				if err != nil {
					return err
				}
				if !slices.Contains(q["ref"], b.Ref) {
					q.Add("ref", b.Ref)
				}
			}
			return a.download(ctx, buildwire.ArchivePath, q, output)
		},
	}
}
