package cli

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/docker/go-units"
	"github.com/moby/moby/api/types/image"
	"github.com/spf13/pflag"

	"corten.dev/corten/internal/cli/show"
)

type imagesOptions struct {
	all, digests, noTrunc, quiet, asTree bool
	format                               string
	filter                               filters
}

func newImages() *verb {
	o := imagesOptions{filter: filters{}}
	return &verb{
		use: "[OPTIONS] [REPOSITORY[:TAG]]", max: 1, short: "List images", names: images,
		long: "Lists images with their names, newest first.", example: "corten images\ncorten images --filter dangling=true -q\ncorten images --tree",
		flags: func(f *pflag.FlagSet) {
			f.BoolVarP(&o.all, "all", "a", false, "show unnamed parents, too")
			f.BoolVar(&o.digests, "digests", false, "show digests")
			f.BoolVar(&o.noTrunc, "no-trunc", false, "do not shorten")
			f.BoolVarP(&o.quiet, "quiet", "q", false, "print IDs only")
			f.VarP(o.filter, "filter", "f", "show only what fits name=value")
			f.StringVar(&o.format, "format", "", formatUsage)
			f.BoolVar(&o.asTree, "tree", false, "show what the names lead to: the platforms of images, and what each takes")
		},
		run: func(ctx context.Context, a *app, args []string) error { return o.run(ctx, a, args) },
	}
}

func (o *imagesOptions) run(ctx context.Context, a *app, args []string) error {
	if len(args) == 1 {
		if err := o.filter.Set("reference=" + args[0]); err != nil {
			return err
		}
	}
	if o.asTree {
		return o.tree(ctx, a)
	}
	api, err := a.engine()
	if err != nil {
		return err
	}
	if o.format == "" && !o.quiet {
		o.format = a.cfg.ImagesFormat
	}
	var list []image.Summary
	if err := api.Get(ctx, "/images/json", o.filter.into(query("all", flag1(o.all))), &list); err != nil {
		return err
	}
	format := "table {{.Repository}}\t{{.Tag}}\t{{.ID}}\t{{.CreatedSince}}\t{{.Size}}"
	raw := "repository: {{.Repository}}\ntag: {{.Tag}}\n"
	if o.digests {
		raw += "digest: {{.Digest}}\n"
		format = "table {{.Repository}}\t{{.Tag}}\t{{.Digest}}\t{{.ID}}\t{{.CreatedSince}}\t{{.Size}}"
	}
	wantDigest := o.digests || strings.Contains(o.format, "{{.Digest}}") || strings.Contains(o.format, "{{ .Digest }}")
	now := time.Now()
	var rows []any
	for i := range list {
		for _, r := range imageRows(&list[i], wantDigest) {
			r.full, r.now = o.noTrunc, now
			rows = append(rows, r)
		}
	}
	l := show.List{Format: o.format, Default: format, Quiet: "{{.ID}}", IsQuiet: o.quiet, Headers: imageHeaders(),
		Raw: raw + "image_id: {{.ID}}\ncreated_at: {{.CreatedAt}}\nvirtual_size: {{.Size}}\n", QuietRaw: "image_id: {{.ID}}"}
	return l.Print(a.Out, rows)
}

func imageHeaders() show.Headers {
	return show.Headers{"ID": "IMAGE ID", "Repository": "REPOSITORY", "Tag": "TAG", "Digest": "DIGEST", "CreatedSince": "CREATED",
		"CreatedAt": "CREATED AT", "Size": "SIZE", "Containers": "CONTAINERS", "VirtualSize": "SIZE", "SharedSize": "SHARED SIZE", "UniqueSize": "UNIQUE SIZE"}
}

// imageRow is one name of an image.
type imageRow struct {
	s                 *image.Summary
	repo, tag, digest string
	full              bool
	now               time.Time
}

const none = "<none>"

// imageRows gives a row per tag; an image without tags has one row per repository of its digests, or one without names.
func imageRows(s *image.Summary, withDigest bool) []*imageRow {
	digests := map[string][]string{}
	var repos []string
	for _, d := range s.RepoDigests {
		name, dg, ok := strings.Cut(d, "@")
		if !ok || name == none {
			continue
		}
		if digests[name] == nil {
			repos = append(repos, name)
		}
		digests[name] = append(digests[name], dg)
	}
	var rows []*imageRow
	for _, t := range s.RepoTags {
		i := strings.LastIndex(t, ":")
		if i < 0 || t == "<none>:<none>" {
			continue
		}
		r := &imageRow{s: s, repo: t[:i], tag: t[i+1:], digest: none}
		if dgs := digests[r.repo]; withDigest && len(dgs) > 0 {
			for _, d := range dgs {
				c := *r
				c.digest = d
				rows = append(rows, &c)
			}
			continue
		}
		rows = append(rows, r)
	}
	if len(rows) > 0 {
		return rows
	}
	for _, name := range repos {
		if !withDigest {
			rows = append(rows, &imageRow{s: s, repo: name, tag: none, digest: none})
			continue
		}
		for _, d := range digests[name] {
			rows = append(rows, &imageRow{s: s, repo: name, tag: none, digest: d})
		}
	}
	if len(rows) == 0 {
		rows = append(rows, &imageRow{s: s, repo: none, tag: none, digest: none})
	}
	return rows
}

func (r *imageRow) MarshalJSON() ([]byte, error) { return show.MarshalRow(r) }

func (r *imageRow) ID() string {
	if r.full {
		return r.s.ID
	}
	return show.ShortID(r.s.ID)
}

func (r *imageRow) Repository() string { return r.repo }
func (r *imageRow) Tag() string        { return r.tag }
func (r *imageRow) Digest() string     { return r.digest }
func (r *imageRow) CreatedAt() string  { return time.Unix(r.s.Created, 0).String() }

func (r *imageRow) CreatedSince() string {
	if r.s.Created <= 0 {
		return "N/A"
	}
	return units.HumanDuration(r.now.Sub(time.Unix(r.s.Created, 0))) + " ago"
}

func (r *imageRow) Size() string        { return units.HumanSizeWithPrecision(float64(r.s.Size), 3) }
func (r *imageRow) VirtualSize() string { return units.HumanSize(float64(r.s.Size)) }

func (r *imageRow) Containers() string {
	if r.s.Containers < 0 {
		return "N/A"
	}
	return fmt.Sprint(r.s.Containers)
}

func (r *imageRow) SharedSize() string {
	if r.s.SharedSize < 0 {
		return "N/A"
	}
	return units.HumanSize(float64(r.s.SharedSize))
}

func (r *imageRow) UniqueSize() string {
	if r.s.Size < 0 || r.s.SharedSize < 0 {
		return "N/A"
	}
	return units.HumanSize(float64(r.s.Size - r.s.SharedSize))
}
