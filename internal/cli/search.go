package cli

import (
	"context"
	"strconv"
	"strings"

	"github.com/moby/moby/api/types/registry"
	"github.com/spf13/pflag"

	"corten.dev/corten/internal/cli/engineapi"
	"corten.dev/corten/internal/cli/show"
)

func newSearch() *verb {
	o := struct {
		filter  filters
		format  string
		limit   int
		noTrunc bool
	}{filter: filters{}}
	return &verb{
		use: "[OPTIONS] TERM", min: 1, max: 1, short: "Search a registry for images",
		long:    "Lists repositories whose names or descriptions have the term in them, on Docker Hub, or on the registry that stands before the term.",
		example: "corten search --filter is-official=true redis\ncorten search registry.example.org:5000/team",
		flags: func(f *pflag.FlagSet) {
			f.VarP(o.filter, "filter", "f", "show only what fits name=value (is-official, stars)")
			f.StringVar(&o.format, "format", "", formatUsage)
			f.IntVar(&o.limit, "limit", 0, "list at most this many (default 25)")
			f.BoolVar(&o.noTrunc, "no-trunc", false, "do not shorten")
		},
		run: func(ctx context.Context, a *app, args []string) error {
			header, err := a.authFor(ctx, domainOf(args[0]))
			if err != nil {
				return err
			}
			api, err := a.engine()
			if err != nil {
				return err
			}
			q := o.filter.into(query("term", args[0]))
			if o.limit != 0 {
				q.Set("limit", strconv.Itoa(o.limit))
			}
			var found []registry.SearchResult
			if err := api.Call(ctx, engineapi.Request{Method: "GET", Path: "/images/search", Query: q, Header: header}, &found); err != nil {
				return err
			}
			rows := make([]any, len(found))
			for i := range found {
				rows[i] = &searchRow{&found[i], o.noTrunc}
			}
			l := show.List{Format: o.format, Default: "table {{.Name}}\t{{.Description}}\t{{.StarCount}}\t{{.IsOfficial}}",
				Headers: show.Headers{"Name": "NAME", "Description": "DESCRIPTION", "StarCount": "STARS", "IsOfficial": "OFFICIAL", "IsAutomated": "AUTOMATED"}}
			return l.Print(a.Out, rows)
		},
	}
}

// searchRow is one repository.
type searchRow struct {
	r    *registry.SearchResult
	full bool
}

func (r *searchRow) MarshalJSON() ([]byte, error) { return show.MarshalRow(r) }
func (r *searchRow) Name() string                 { return r.r.Name }
func (r *searchRow) StarCount() string            { return strconv.Itoa(r.r.StarCount) }
func (r *searchRow) IsOfficial() string           { return mark(r.r.IsOfficial) }
func (r *searchRow) IsAutomated() string          { return mark(r.r.IsAutomated) } //lint:ignore SA1019 docker search --format still has it

func (r *searchRow) Description() string {
	text := strings.ReplaceAll(strings.ReplaceAll(r.r.Description, "\n", " "), "\r", " ")
	if !r.full {
		text = show.Ellipsis(text, 45)
	}
	return text
}

func mark(on bool) string {
	if on {
		return "[OK]"
	}
	return ""
}
