package cli

import (
	"context"

	"github.com/spf13/pflag"

	"corten.dev/corten/internal/cli/engineapi"
	"corten.dev/corten/internal/cli/show"
	"corten.dev/corten/internal/reference"
)

func newImageTags() *verb {
	var format string
	return &verb{
		use: "[OPTIONS] REPOSITORY", min: 1, max: 1, short: "List the tags that a registry has",
		long:    "Asks the registry for all tags of a repository, and prints one a line.",
		example: "corten image tags debian\ncorten image tags --format '{{.Name}}' registry.example.org:5000/team/app",
		flags:   func(f *pflag.FlagSet) { f.StringVar(&format, "format", "", formatUsage) },
		run: func(ctx context.Context, a *app, args []string) error {
			ref, err := reference.Parse(args[0])
			if err != nil {
				return err
			}
			if ref.Tag != "" || ref.Digest != "" {
				return invalid("%s: give the name of a repository, without tag or digest", args[0])
			}
			header, err := a.authFor(ctx, ref.Domain)
			if err != nil {
				return err
			}
			api, err := a.engine()
			if err != nil {
				return err
			}
			var list struct{ Tags []string }
			if err := api.Call(ctx, engineapi.Request{Method: "GET", Path: "/corten/tags/" + escRef(ref.Name()), Header: header}, &list); err != nil {
				return err
			}
			rows := make([]any, len(list.Tags))
			for i, tag := range list.Tags {
				rows[i] = &tagRow{ref.FamiliarName(), tag}
			}
			l := show.List{Format: format, Default: "{{.Tag}}", Headers: show.Headers{"Repository": "REPOSITORY", "Tag": "TAG", "Name": "NAME"}}
			return l.Print(a.Out, rows)
		},
	}
}

// tagRow is one tag.
type tagRow struct{ repo, tag string }

func (r *tagRow) MarshalJSON() ([]byte, error) { return show.MarshalRow(r) }
func (r *tagRow) Repository() string           { return r.repo }
func (r *tagRow) Tag() string                  { return r.tag }
func (r *tagRow) Name() string                 { return r.repo + ":" + r.tag }
