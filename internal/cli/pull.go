package cli

import (
	"context"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"github.com/spf13/pflag"

	"corten.dev/corten/internal/cli/credentials"
	"corten.dev/corten/internal/cli/engineapi"
	"corten.dev/corten/internal/cli/progress"
	"corten.dev/corten/internal/cli/term"
	"corten.dev/corten/internal/http1"
	"corten.dev/corten/internal/reference"
)

// transferFlags are those that pull and push share.
type transferFlags struct {
	all, quiet, untrusted bool
	platform              string
}

func (o *transferFlags) register(f *pflag.FlagSet, all, platform, trust string) {
	f.BoolVarP(&o.all, "all-tags", "a", false, all)
	f.BoolVarP(&o.quiet, "quiet", "q", false, "print the name only")
	f.StringVar(&o.platform, "platform", "", platform+", os[/arch[/variant]]")
	f.BoolVar(&o.untrusted, "disable-content-trust", true, trust)
}

// ref reads the name that is meant, and says which tag it has if nobody named one.
func (o *transferFlags) ref(a *app, name string) (reference.Ref, error) {
	ref, err := reference.Parse(name)
	switch {
	case err != nil:
		return ref, err
	case !o.untrusted:
		return ref, noTrust("--disable-content-trust=false")
	case o.all && (ref.Tag != "" || ref.Digest != ""):
		return ref, &exitError{code: 1, text: "tag can't be used with --all-tags/-a"}
	}
	if !o.all && ref.Tag == "" && ref.Digest == "" {
		ref = ref.WithDefaultTag()
		if !o.quiet {
			fmt.Fprintln(a.Out, "Using default tag: "+ref.Tag)
		}
	}
	return ref, nil
}

type pullOptions struct {
	transferFlags
	allPlatforms bool
}

func newPull() *verb {
	var o pullOptions
	return &verb{
		use: "[OPTIONS] NAME[:TAG|@DIGEST]", min: 1, max: 1, short: "Bring an image in from a registry", names: images,
		long: "Downloads an image: only the layers that are missing, side by side, and what an interrupted pull already has is not\n" +
			"downloaded again. A name without a registry means Docker Hub.",
		example: "corten pull busybox\ncorten pull registry.example.org:5000/team/app@sha256:…\ncorten pull --platform linux/arm64 debian:12",
		flags: func(f *pflag.FlagSet) {
			o.register(f, "bring all tags of the repository in", "platform of the image", "no signatures are checked; false is refused")
			f.BoolVar(&o.allPlatforms, "all-platforms", false, "bring the images of all platforms in, and the index that lists them")
		},
		run: func(ctx context.Context, a *app, args []string) error { return o.run(ctx, a, args[0]) },
	}
}

func (o *pullOptions) run(ctx context.Context, a *app, name string) error {
	ref, err := o.ref(a, name)
	if err != nil {
		return err
	}
	out := a.Out
	if o.quiet {
		out = io.Discard
	}
	api, err := a.engine()
	if err != nil {
		return err
	}
	q := query("platform", o.platform, "allplatforms", flag1(o.allPlatforms))
	if err := a.pullFrom(ctx, api, ref, q, out); err != nil {
		return err
	}
	fmt.Fprintln(a.Out, ref)
	return nil
}

// noTrust refuses what would make people believe that signatures are checked.
func noTrust(what string) error {
	return &exitError{code: 1, text: what + ": content trust is not part of this version; name images by digest to be sure of them"}
}

// noTrustAsked looks whether the environment asks for it.
func noTrustAsked() error {
	if on, err := strconv.ParseBool(os.Getenv("DOCKER_CONTENT_TRUST")); err == nil && on {
		return noTrust("DOCKER_CONTENT_TRUST=1")
	}
	return nil
}

// pullFrom asks the engine for an image (all tags of a repository, when ref has none) and shows the progress on out.
func (a *app) pullFrom(ctx context.Context, api *engineapi.Client, ref reference.Ref, q map[string][]string, out io.Writer) error {
	q["fromImage"] = []string{ref.Name()}
	if tag := ref.Digest; tag != "" {
		q["tag"] = []string{tag}
	} else if ref.Tag != "" {
		q["tag"] = []string{ref.Tag}
	}
	return a.transfer(ctx, api, ref, "/images/create", q, out)
}

// transfer asks the engine for something that it does with a registry, with what is known about that, and shows the progress on out.
func (a *app) transfer(ctx context.Context, api *engineapi.Client, ref reference.Ref, path string, q map[string][]string, out io.Writer) error {
	if err := noTrustAsked(); err != nil {
		return err
	}
	header, err := a.authFor(ctx, ref.Domain)
	if err != nil {
		return err
	}
	resp, err := api.Do(ctx, engineapi.Request{Method: "POST", Path: path, Query: q, Header: header})
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	return a.progress(resp.Body, out)
}

// pull asks for an image that `run` or `create` need.
func (a *app) pull(ctx context.Context, api *engineapi.Client, name string, o *ctrFlags) error {
	ref, err := reference.Parse(name)
	if err != nil {
		return err
	}
	out := a.Err
	if o.quiet {
		out = io.Discard
	}
	return a.pullFrom(ctx, api, ref.WithDefaultTag(), query("platform", o.platform), out)
}

// authFor is the header with what is known about a registry.
func (a *app) authFor(ctx context.Context, domain string) ([]http1.Field, error) {
	file := a.logins()
	if file.Nothing() {
		return nil, nil
	}
	server := credentials.Server(domain)
	if server == credentials.DefaultServer {
		var err error
		if server, err = a.defaultServer(ctx); err != nil {
			return nil, err
		}
	}
	auth, err := file.Get(ctx, server)
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	if err != nil { // a helper of another machine, say: most images can be had without
		fmt.Fprintf(a.Err, "WARNING: %v; going on without a login\n", err)
		return nil, nil
	}
	if auth.Empty() {
		return nil, nil
	}
	return []http1.Field{{Name: "X-Registry-Auth", Value: auth.Header()}}, nil
}

// defaultServer is the key of the registry that names without one lead to: Docker Hub, or what the engine has instead.
func (a *app) defaultServer(ctx context.Context) (string, error) {
	api, err := a.engine()
	if err != nil {
		return "", err
	}
	var info struct{ IndexServerAddress string }
	if err := api.Get(ctx, "/info", nil, &info); err != nil {
		return "", err
	}
	return credentials.Server(info.IndexServerAddress), nil
}

// domainOf is the registry that a repository's or search's name begins with.
func domainOf(name string) string {
	first, _, ok := strings.Cut(name, "/")
	if !ok || !strings.ContainsAny(first, ".:") && first != "localhost" {
		return reference.DefaultDomain
	}
	return first
}

// progress shows the engine's report: lines that are redrawn on a terminal, each state once in a pipe.
func (a *app) progress(r io.Reader, out io.Writer) error {
	fd, live := terminalFd(out)
	return progress.Screen{Out: out, Live: live, Wide: func() int {
		size, err := term.GetSize(fd)
		if err != nil {
			return 80 // a terminal that does not know its size
		}
		return int(size.Width)
	}}.Show(r)
}
