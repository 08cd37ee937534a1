package cli

import (
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/pflag"
)

type pushOptions struct {
	transferFlags
	compression string
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
			o.register(f, "send all tags of the repository", "send this platform only", "nothing is signed; false is refused")
			f.StringVar(&o.compression, "compression", "", "of layers that were never compressed: gzip (default) or zstd")
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
	ref, err := o.ref(a, name)
	if err == nil && ref.Digest != "" {
		err = &exitError{code: 1, text: "cannot push a digest reference"}
	}
	if err != nil {
		return err
	}
	q := query("tag", ref.Tag, "compression", o.compression)
	if o.platform != "" {
		text, err := platformJSON(o.platform)
		if err != nil {
			return err
		}
		q.Set("platform", text)
	}
	api, err := a.engine()
	if err != nil {
		return err
	}
	path := "/images/" + escRef(ref.Name()) + "/push"
	if !o.quiet {
		return a.transfer(ctx, api, ref, path, q, a.Out)
	}
	if err := a.transfer(ctx, api, ref, path, q, io.Discard); err != nil {
		return err
	}
	fmt.Fprintln(a.Out, ref)
	return nil
}
