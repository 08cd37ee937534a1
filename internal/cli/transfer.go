package cli

import (
	"context"
	"encoding/json"
	"io"
	"net/url"
	"os"
	"path/filepath"
	"strings"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/spf13/pflag"

	"corten.dev/corten/internal/cli/engineapi"
	"corten.dev/corten/internal/manifest"
)

const tarType = "application/x-tar"

func newLoad() *verb {
	var input, platform string
	var quiet bool
	return &verb{
		use: "[OPTIONS]", short: "Bring images in from an archive", long: "Reads images from an archive made by `corten save` or `docker save`, or from an OCI layout, as a file or on standard input;\nplain or compressed by gzip or zstd.",
		example: "corten load -i busybox.tar\ncurl https://example.org/app.tar.gz | corten load",
		flags: func(f *pflag.FlagSet) {
			f.StringVarP(&input, "input", "i", "", "file to read instead of STDIN")
			f.BoolVarP(&quiet, "quiet", "q", false, "do not show progress")
			f.StringVar(&platform, "platform", "", "load this platform only, os[/arch[/variant]]")
		},
		run: func(ctx context.Context, a *app, args []string) error {
			var in io.Reader = a.In
			if input != "" {
				f, err := os.Open(input)
				if err != nil {
					return err
				}
				defer f.Close()
				in = f
			} else if _, terminal := a.stdinFd(); terminal {
				return &exitError{code: 1, text: "requested load from stdin, but stdin is empty"}
			}
			_, live := terminalFd(a.Out)
			api, err := a.engine()
			if err != nil {
				return err
			}
			q := query("quiet", "1")
			if !quiet && live {
				q.Set("quiet", "0")
			}
			if platform != "" {
				p, err := platformJSON(platform)
				if err != nil {
					return err
				}
				q.Set("platform", p)
			}
			resp, err := api.Do(ctx, engineapi.Request{Method: "POST", Path: "/images/load", Query: q, Stream: in, ContentType: tarType})
			if err != nil {
				return err
			}
			defer resp.Body.Close()
			if strings.HasPrefix(resp.Header["content-type"], "application/json") {
				return a.progress(resp.Body, a.Out)
			}
			return copyOut(a.Out, resp.Body)
		},
	}
}

// platformJSON writes os/arch/variant as the API's object.
func platformJSON(s string) (string, error) {
	p, err := manifest.ParsePlatform(s)
	if err != nil {
		return "", err
	}
	js, err := json.Marshal(ocispec.Platform{OS: p.OS, Architecture: p.Arch, Variant: p.Variant})
	return string(js), err
}

func newImport() *verb {
	var changes []string
	var message, platform string
	return &verb{
		use: "[OPTIONS] file|URL|- [REPOSITORY[:TAG]]", min: 1, max: 2, short: "Make an image from a file system in an archive",
		long:    "Makes an image with one layer from a tar archive (plain or compressed): a file, standard input (-), or what the engine\nfetches from a URL. Prints the image's ID.",
		example: "tar -C rootfs -c . | corten import - busybox\ncorten import -c 'CMD [\"sh\"]' rootfs.tar.gz busybox:1",
		flags: func(f *pflag.FlagSet) {
			list(f, &changes, "change", "c", "Dockerfile instruction to apply")
			f.StringVarP(&message, "message", "m", "", "comment for the image's history")
			f.StringVar(&platform, "platform", "", "platform of the image, os[/arch[/variant]]")
		},
		run: func(ctx context.Context, a *app, args []string) error {
			api, err := a.engine()
			if err != nil {
				return err
			}
			q := query("fromSrc", "-", "message", message, "platform", platform)
			if len(args) == 2 {
				name, tag, err := newName(args[1])
				if err != nil {
					return err
				}
				q.Set("repo", name)
				if tag != "" {
					q.Set("tag", tag)
				}
			}
			q["changes"] = changes
			req := engineapi.Request{Method: "POST", Path: "/images/create", Query: q}
			switch src := args[0]; {
			case src == "-":
				req.Stream, req.ContentType = a.In, tarType
			case strings.HasPrefix(src, "http://"), strings.HasPrefix(src, "https://"):
				q.Set("fromSrc", src)
			default:
				f, err := os.Open(strings.TrimPrefix(src, "file://"))
				if err != nil {
					return err
				}
				defer f.Close()
				req.Stream, req.ContentType = f, tarType
			}
			resp, err := api.Do(ctx, req)
			if err != nil {
				return err
			}
			defer resp.Body.Close()
			return a.progress(resp.Body, a.Out)
		},
	}
}

func newSave() *verb {
	var output string
	var platforms, since []string
	return &verb{
		use: "[OPTIONS] IMAGE [IMAGE...]", min: 1, max: -1, short: "Write images to an archive", names: images,
		long:    "Writes images with all their layers and names to a file or to standard output, for `corten load` or `docker load`.\nWith --since, layers that another image has are left out: the archive is for engines that have that image.",
		example: "corten save -o busybox.tar busybox\ncorten save app:1 app:2 | gzip > app.tgz\ncorten save --since app:1 -o update.tar app:2",
		flags: func(f *pflag.FlagSet) {
			f.StringVarP(&output, "output", "o", "", "file to write instead of STDOUT")
			list(f, &platforms, "platform", "", "save this platform only, os[/arch[/variant]]")
			list(f, &since, "since", "", "leave out the layers of this image")
		},
		run: func(ctx context.Context, a *app, args []string) error {
			q := url.Values{"names": args}
			for _, p := range platforms {
				js, err := platformJSON(p)
				if err != nil {
					return err
				}
				q.Add("platform", js)
			}
			api, err := a.engine()
			if err != nil {
				return err
			}
			for _, name := range since {
				chains, err := chainsOf(ctx, api, name)
				if err != nil {
					return err
				}
				q["without"] = append(q["without"], chains...)
			}
			return a.download(ctx, "/images/get", q, output)
		},
	}
}

func newExport() *verb {
	var output string
	return &verb{
		use: "[OPTIONS] CONTAINER", min: 1, max: 1, short: "Write a container's file system to an archive", names: containers,
		long: "Writes all files of the container (not those in volumes) as a tar archive.", example: "corten export -o root.tar web",
		flags: func(f *pflag.FlagSet) { f.StringVarP(&output, "output", "o", "", "file to write instead of STDOUT") },
		run: func(ctx context.Context, a *app, args []string) error {
			return a.download(ctx, "/containers/"+esc(args[0])+"/export", nil, output)
		},
	}
}

// download writes an answer to a file or to standard output. A file appears only when it is complete.
func (a *app) download(ctx context.Context, path string, q url.Values, output string) error {
	if _, terminal := terminalFd(a.Out); terminal && output == "" {
		return &exitError{code: 1, text: "cowardly refusing to save to a terminal. Use the -o flag or redirect"}
	}
	if output != "" {
		if err := checkOutput(output); err != nil {
			return err
		}
	}
	api, err := a.engine()
	if err != nil {
		return err
	}
	req := engineapi.Request{Method: "GET", Path: path, Query: q}
	if output == "" || special(output) {
		return fetchTo(ctx, api, req, func(body io.Reader) error {
			if output == "" {
				return copyOut(a.Out, body)
			}
			return writeTo(output, body)
		})
	}
	return whole(ctx, func(ctx context.Context) error {
		return fetchTo(ctx, api, req, func(body io.Reader) error { return writeFile(output, body) })
	})
}

func fetchTo(ctx context.Context, api *engineapi.Client, req engineapi.Request, write func(io.Reader) error) error {
	resp, err := api.Do(ctx, req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	return write(resp.Body)
}

func checkOutput(name string) error {
	if st, err := os.Stat(name); err == nil && st.IsDir() {
		return invalid("%s is a directory", name)
	}
	if st, err := os.Stat(filepath.Dir(name)); err != nil || !st.IsDir() {
		return invalid("invalid output path: directory %q does not exist", filepath.Dir(name))
	}
	return nil
}
