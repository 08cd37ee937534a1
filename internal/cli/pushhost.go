package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"slices"
	"strings"

	"github.com/moby/moby/api/types/image"
	"github.com/opencontainers/go-digest"

	"corten.dev/corten/internal/cli/endpoint"
	"corten.dev/corten/internal/cli/engineapi"
	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/http1"
	"corten.dev/corten/internal/reference"
	"corten.dev/corten/internal/version"
)

// toHost sends images from our engine to another host's, without a registry between them:
//
//	ask ours     image inspect              the chains of layers of the images
//	ask theirs   POST /corten/chains        which of them are there
//	ours         GET /images/get?without=…  an archive of the others ──▶ theirs  POST /images/load
//
// An engine that does not know the question (Docker's) gets everything.
func (o *pushOptions) toHost(ctx context.Context, a *app, host string, names []string) error {
	switch {
	case len(names) == 0:
		return &usageError{text: "no image named to send to " + host, code: 1, see: "See"}
	case o.all, o.platform != "", o.compression != "":
		return invalid("--all-tags, --platform and --compression are for registries; %s gets the images as they are", host)
	}
	here, err := a.engine()
	if err != nil {
		return err
	}
	there, err := a.otherEngine(host)
	if err != nil {
		return err
	}
	defer there.Close()
	var chains []string
	for _, name := range names {
		some, err := chainsOf(ctx, here, name)
		if err != nil {
			return err
		}
		chains = append(chains, some...)
	}
	slices.Sort(chains)
	chains = slices.Compact(chains)
	var answer struct{ Have []string }
	err = there.Post(ctx, "/corten/chains", nil, struct{ Chains []string }{chains}, &answer)
	if err != nil && !errors.Is(err, errs.NotFound) {
		return fmt.Errorf("ask %s what it has: %w", host, err)
	}
	if !o.quiet {
		fmt.Fprintf(a.Out, "%d of %d layers are there\n", len(answer.Have), len(chains))
	}
	resp, err := here.Do(ctx, engineapi.Request{Method: "GET", Path: "/images/get", Query: url.Values{"names": names, "without": answer.Have}})
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	loaded, err := there.Do(ctx, engineapi.Request{Method: "POST", Path: "/images/load", Query: query("quiet", flag1(o.quiet)), Stream: resp.Body, ContentType: tarType})
	if err == nil {
		out := a.Out
		if o.quiet {
			out = io.Discard
		}
		err = a.progress(loaded.Body, out)
		loaded.Body.Close()
	}
	if own := (*http1.SourceError)(nil); errors.As(err, &own) { // it was ours that broke off
		return own
	}
	if err != nil {
		return fmt.Errorf("send to %s: %w", host, err)
	}
	return nil
}

// otherEngine is an engine at an address that is no setting of ours.
func (a *app) otherEngine(host string) (*engineapi.Client, error) {
	cfg := a.config()
	flags := a.global.Flags
	flags.Host, flags.Context = host, ""
	ep, err := endpoint.Resolve(flags, cfg)
	if err != nil {
		return nil, err
	}
	dial := func(ctx context.Context) (net.Conn, error) {
		nc, err := ep.Dial(ctx)
		if err != nil {
			return nil, &reachError{host: ep.Host, err: err}
		}
		return nc, nil
	}
	return engineapi.New(engineapi.Config{Dial: dial, Authority: ep.Authority(), BasePath: ep.BasePath(), Header: cfg.HTTPHeaders, UserAgent: "Corten-Client/" + version.Version, Name: ep.Host}), nil
}

// chainsOf are the chain ids of an image's layers (image-spec config.md, "Layer ChainID"), lowest first. A name without a tag means all tags, as it does for `save`.
func chainsOf(ctx context.Context, api *engineapi.Client, name string) (chains []string, err error) {
	ids := []string{name}
	if ref, err := reference.Parse(name); err == nil && ref.Tag == "" && ref.Digest == "" {
		var all []image.Summary
		if err := api.Get(ctx, "/images/json", filters{"reference": {name: true}}.into(query()), &all); err != nil {
			return nil, err
		}
		if len(all) > 0 { // else it may be an id
			ids = nil
		}
		for _, img := range all {
			ids = append(ids, img.ID)
		}
	}
	for _, id := range ids {
		var img image.InspectResponse
		if err := api.Get(ctx, "/images/"+escRef(id)+"/json", nil, &img); err != nil {
			return nil, err
		}
		chain := ""
		for _, diff := range img.RootFS.Layers {
			if chain = strings.TrimSpace(chain + " " + diff); chain != diff {
				chain = digest.FromString(chain).String()
			}
			chains = append(chains, chain)
		}
	}
	return chains, nil
}
