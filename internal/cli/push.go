package cli

import (
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/pflag"

	"corten.dev/corten/internal/cli/engineapi"
	"corten.dev/corten/internal/reference"
)

type pushOptions struct {
	all, quiet, untrusted bool
	platform, compression string
}

func newPush() *verb {
	var o pushOptions
	return &verb{
		use: "[OPTIONS] NAME[:TAG] | ssh://[USER@]HOST IMAGE...", min: 1, max: -1, short: "Send an image to a registry, or images to another host", names: images,
		long: "Uploads an image: only the layers that the registry does not have, side by side. Layers that came from a registry keep\n" +
			"their digests. An image that was brought in with all its platforms goes out with all of them.\n" +
			"With ssh://HOST (or tcp://, unix://) first, images go to the engine of that host, without a registry: only the layers that it does not have.",
		example: "corten push registry.example.org:5000/team/app:1\ncorten push --compression zstd registry.example.org:5000/team/app\ncorten image push ssh://me@server app:1",
		flags: func(f *pflag.FlagSet) {
			f.BoolVarP(&o.all, "all-tags", "a", false, "send all tags of the repository")
			f.BoolVarP(&o.quiet, "quiet", "q", false, "print the name only")
			f.StringVar(&o.platform, "platform", "", "send this platform only, os[/arch[/variant]]")
			f.StringVar(&o.compression, "compression", "", "of layers that were never compressed: gzip (default) or zstd")
			f.BoolVar(&o.untrusted, "disable-content-trust", true, "nothing is signed; false is refused")
		},
		run: func(ctx context.Context, a *app, args []string) error {
			if strings.Contains(args[0], "://") {
				return o.toHost(ctx, a, args[0], args[1:])
			}
			if len(args) > 1 {
				return &usageError{text: fmt.Sprintf("\"corten push\" sends one image; got %d arguments", len(args)), code: 1, see: "See"}
			}
			return o.run(ctx, a, args[0])
		},
	}
}

func (o *pushOptions) run(ctx context.Context, a *app, name string) error {
	ref, err := reference.Parse(name)
	if err != nil {
		return err
	}
	if err := noTrustAsked(); err != nil {
		return err
	}
	switch {
	case !o.untrusted:
		return noTrust("--disable-content-trust=false")
	case o.all && (ref.Tag != "" || ref.Digest != ""):
		return &exitError{code: 1, text: "tag can't be used with --all-tags/-a"}
	case ref.Digest != "":
		return &exitError{code: 1, text: "cannot push a digest reference"}
	case !o.all && ref.Tag == "":
		ref = ref.WithDefaultTag()
		if !o.quiet {
			fmt.Fprintln(a.Out, "Using default tag: "+ref.Tag)
		}
	}
	q := query("tag", ref.Tag, "compression", o.compression)
	if o.platform != "" {
		text, err := platformJSON(o.platform)
		if err != nil {
			return err
		}
		q.Set("platform", text)
	}
	header, err := a.authFor(ctx, ref.Domain)
	if err != nil {
		return err
	}
	api, err := a.engine()
	if err != nil {
		return err
	}
	resp, err := api.Do(ctx, engineapi.Request{Method: "POST", Path: "/images/" + escRef(ref.Name()) + "/push", Query: q, Header: header})
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if !o.quiet {
		return a.progress(resp.Body, a.Out)
	}
	if err := a.progress(resp.Body, io.Discard); err != nil {
		return err
	}
	fmt.Fprintln(a.Out, ref)
	return nil
}
