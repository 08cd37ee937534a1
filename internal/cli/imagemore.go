package cli

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/docker/go-units"
	"github.com/moby/moby/api/types/image"
	"github.com/spf13/pflag"

	"corten.dev/corten/internal/cli/engineapi"
	"corten.dev/corten/internal/cli/show"
)

func newTag() *verb {
	return &verb{
		use: "SOURCE_IMAGE[:TAG] TARGET_IMAGE[:TAG]", min: 2, max: 2, short: "Give an image a further name", names: images,
		long: "Makes a name point to an image. If the name exists, it moves.", example: "corten tag app:1 app:latest",
		run: func(ctx context.Context, a *app, args []string) error {
			api, err := a.engine()
			if err != nil {
				return err
			}
			name, tag, err := newName(args[1])
			if err != nil {
				return err
			}
			if tag == "" {
				tag = "latest"
			}
			return api.Post(ctx, "/images/"+escRef(args[0])+"/tag", query("repo", name, "tag", tag), nil, nil)
		},
	}
}

func newRmi() *verb {
	var force, noPrune bool
	var platforms []string
	return &verb{
		use: "[OPTIONS] IMAGE [IMAGE...]", min: 1, max: -1, short: "Remove images", names: images,
		long: "Removes names of images, and with the last name the image and the layers that no other image needs.", example: "corten rmi app:1\ncorten rmi $(corten images -q --filter dangling=true)",
		flags: func(f *pflag.FlagSet) {
			f.BoolVarP(&force, "force", "f", false, "remove even if stopped containers or several names use it")
			f.BoolVar(&noPrune, "no-prune", false, "keep unnamed parents")
			list(f, &platforms, "platform", "", "remove this platform only, os[/arch[/variant]]")
		},
		run: func(ctx context.Context, a *app, args []string) error {
			api, err := a.engine()
			if err != nil {
				return err
			}
			q := query("force", flag1(force), "noprune", flag1(noPrune))
			for _, p := range platforms {
				js, err := platformJSON(p)
				if err != nil {
					return err
				}
				q.Add("platforms", js)
			}
			return a.each(args, func(ref string) error {
				var gone []image.DeleteResponse
				err := api.Delete(ctx, "/images/"+escRef(ref), q, &gone)
				if force && isNotFound(err) {
					fmt.Fprintln(a.Err, a.explain(err))
					return nil
				}
				if err != nil {
					return err
				}
				printDeleted(a, gone)
				return nil
			})
		},
	}
}

func printDeleted(a *app, gone []image.DeleteResponse) {
	for _, g := range gone {
		if g.Deleted != "" {
			fmt.Fprintln(a.Out, "Deleted: "+g.Deleted)
		} else {
			fmt.Fprintln(a.Out, "Untagged: "+g.Untagged)
		}
	}
}

func newHistory() *verb {
	var format, platform string
	var human, noTrunc, quiet bool
	return &verb{
		use: "[OPTIONS] IMAGE", min: 1, max: 1, short: "Show how an image was made", names: images,
		long: "Lists the image's layers, newest first, with the instruction that made each.", example: "corten history busybox",
		flags: func(f *pflag.FlagSet) {
			f.StringVar(&format, "format", "", formatUsage)
			f.BoolVarP(&human, "human", "H", true, "print sizes and times for people")
			f.BoolVar(&noTrunc, "no-trunc", false, "do not shorten")
			f.BoolVarP(&quiet, "quiet", "q", false, "print IDs only")
			f.StringVar(&platform, "platform", "", "platform of the image, os[/arch[/variant]]")
		},
		run: func(ctx context.Context, a *app, args []string) error {
			api, err := a.engine()
			if err != nil {
				return err
			}
			q := query()
			if platform != "" {
				js, err := platformJSON(platform)
				if err != nil {
					return err
				}
				q.Set("platform", js)
			}
			var items []image.HistoryResponseItem
			if err := api.Get(ctx, "/images/"+escRef(args[0])+"/history", q, &items); err != nil {
				return err
			}
			l := show.List{Format: format, Quiet: "{{.ID}}", IsQuiet: quiet,
				Default: "table {{.ID}}\t{{.CreatedSince}}\t{{.CreatedBy}}\t{{.Size}}\t{{.Comment}}",
				Headers: show.Headers{"ID": "IMAGE", "CreatedSince": "CREATED", "CreatedAt": "CREATED AT", "CreatedBy": "CREATED BY", "Size": "SIZE", "Comment": "COMMENT"}}
			if !human {
				l.Default = "table {{.ID}}\t{{.CreatedAt}}\t{{.CreatedBy}}\t{{.Size}}\t{{.Comment}}"
			}
			now := time.Now()
			rows := make([]any, len(items))
			for i := range items {
				rows[i] = &historyRow{&items[i], noTrunc, human, now}
			}
			return l.Print(a.Out, rows)
		},
	}
}

type historyRow struct {
	h           *image.HistoryResponseItem
	full, human bool
	now         time.Time
}

func (r *historyRow) MarshalJSON() ([]byte, error) { return show.MarshalRow(r) }

func (r *historyRow) ID() string {
	if r.full {
		return r.h.ID
	}
	return show.ShortID(r.h.ID)
}

func (r *historyRow) CreatedAt() string {
	if r.h.Created <= 0 {
		return "N/A"
	}
	return time.Unix(r.h.Created, 0).Format(time.RFC3339)
}

func (r *historyRow) CreatedSince() string {
	if !r.human {
		return r.CreatedAt()
	}
	if r.h.Created <= 0 {
		return "N/A"
	}
	return units.HumanDuration(r.now.Sub(time.Unix(r.h.Created, 0))) + " ago"
}

func (r *historyRow) CreatedBy() string {
	by := strings.ReplaceAll(r.h.CreatedBy, "\t", " ")
	if !r.full {
		by = show.Ellipsis(by, 45)
	}
	return by
}

func (r *historyRow) Size() string {
	if r.human {
		return units.HumanSizeWithPrecision(float64(r.h.Size), 3)
	}
	return fmt.Sprint(r.h.Size)
}

func (r *historyRow) Comment() string { return r.h.Comment }

func newCommit() *verb {
	var author, message string
	var changes []string
	var pause, noPause bool
	return &verb{
		use: "[OPTIONS] CONTAINER [REPOSITORY[:TAG]]", min: 1, max: 2, short: "Make an image from a container's changes", names: containers,
		long: "Makes an image from the container's image and what it changed since, and prints the image's ID.\nWhat lies in volumes is not part of it.", example: "corten commit -m 'with tools' web web:tools\ncorten commit -c 'CMD [\"httpd\"]' web web:2",
		flags: func(f *pflag.FlagSet) {
			f.StringVarP(&author, "author", "a", "", "author, \"Name <mail>\"")
			list(f, &changes, "change", "c", "Dockerfile instruction to apply")
			f.StringVarP(&message, "message", "m", "", "comment for the image's history")
			f.BoolVarP(&pause, "pause", "p", true, "freeze the container meanwhile")
			f.BoolVar(&noPause, "no-pause", false, "do not freeze the container")
		},
		run: func(ctx context.Context, a *app, args []string) error {
			api, err := a.engine()
			if err != nil {
				return err
			}
			q := query("container", args[0], "author", author, "comment", message)
			if len(args) == 2 && args[1] != "" {
				name, tag, err := newName(args[1])
				if err != nil {
					return err
				}
				q.Set("repo", name)
				if tag != "" {
					q.Set("tag", tag)
				}
			}
			if !pause || noPause {
				q.Set("pause", "0")
			}
			if len(changes) > 0 {
				q["changes"] = changes
			}
			var made struct{ ID string }
			if err := api.Call(ctx, engineapi.Request{Method: "POST", Path: "/commit", Query: q}, &made); err != nil {
				return err
			}
			fmt.Fprintln(a.Out, made.ID)
			return nil
		},
	}
}
