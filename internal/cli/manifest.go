package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"strings"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/spf13/pflag"

	"corten.dev/corten/internal/cli/engineapi"
	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/http1"
	"corten.dev/corten/internal/manifest"
	"corten.dev/corten/internal/reference"
)

// remote asks registries, through the engine, for documents.
type remote struct {
	a   *app
	api *engineapi.Client
}

func (a *app) remote() (*remote, error) {
	api, err := a.engine()
	if err != nil {
		return nil, err
	}
	return &remote{a, api}, nil
}

// read sends a request that is answered by bytes.
func (r *remote) read(ctx context.Context, domain string, req engineapi.Request, limit int64) ([]byte, *http1.Response, error) {
	header, err := r.a.authFor(ctx, domain)
	if err != nil {
		return nil, nil, err
	}
	req.Header = append(req.Header, header...)
	resp, err := r.api.Do(ctx, req)
	if err != nil {
		return nil, nil, err
	}
	raw, err := io.ReadAll(io.LimitReader(resp.Body, limit+1))
	if cerr := resp.Body.Close(); err == nil {
		err = cerr
	}
	if err == nil && int64(len(raw)) > limit {
		err = invalid("the answer has more than %d bytes", limit)
	}
	return raw, resp, err
}

// document is the manifest or index behind a name.
func (r *remote) document(ctx context.Context, ref reference.Ref) (manifest.Document, error) {
	raw, resp, err := r.read(ctx, ref.Domain, engineapi.Request{Method: "GET", Path: "/corten/manifests/" + escRef(ref.String())}, manifest.MaxSize)
	if err != nil {
		return manifest.Document{}, err
	}
	return manifest.Parse(resp.Header["content-type"], raw)
}

// put stores a document; from names where what it lists is now.
func (r *remote) put(ctx context.Context, tag reference.Ref, doc manifest.Document, from []string) error {
	q := query()
	for _, f := range from {
		q.Add("from", f)
	}
	_, _, err := r.read(ctx, tag.Domain, engineapi.Request{Method: "PUT", Path: "/corten/manifests/" + escRef(tag.String()), Query: q, Stream: bytes.NewReader(doc.Raw), ContentType: doc.MediaType}, 1<<20)
	return err
}

// platform is what an image's config says it was made for.
func (r *remote) platform(ctx context.Context, ref reference.Ref, doc manifest.Document) (*ocispec.Platform, error) {
	cfg := doc.Manifest.Config
	name := ref.Name() + "@" + cfg.Digest.String()
	raw, _, err := r.read(ctx, ref.Domain, engineapi.Request{Method: "GET", Path: "/corten/blobs/" + escRef(name), Query: query("size", fmt.Sprint(cfg.Size))}, manifest.MaxConfig)
	if err != nil {
		return nil, err
	}
	var p ocispec.Platform
	if err := json.Unmarshal(raw, &p); err != nil {
		return nil, invalid("config of %s: %w", ref.Familiar(), err)
	}
	return &p, nil
}

// parseRemote reads a name that must lead to one manifest.
func parseRemote(s string) (reference.Ref, error) {
	ref, err := reference.Parse(s)
	return ref.WithDefaultTag(), err
}

// noInsecure refuses what the client cannot decide here: the engine talks to registries.
func noInsecure(insecure bool, domain string) error {
	host, _, err := net.SplitHostPort(domain)
	if err != nil {
		host = domain
	}
	if ip := net.ParseIP(strings.Trim(host, "[]")); !insecure || host == "localhost" || ip != nil && ip.IsLoopback() {
		return nil // the engine takes those without TLS anyway
	}
	return invalid("--insecure: the engine talks to %s; add it to insecure-registries in the engine's daemon.json", domain)
}

func newManifestInspect() *verb {
	var verbose, insecure bool
	return &verb{
		use: "[OPTIONS] [MANIFEST_LIST] MANIFEST", min: 1, max: 2, short: "Show a manifest or index, here or at a registry",
		long:    "Shows the document as the registry keeps it. With the name of a list made by `corten manifest create`, shows that, or one\nmanifest of it.",
		example: "corten manifest inspect debian\ncorten manifest inspect -v registry.example.org/team/app:1.2",
		flags: func(f *pflag.FlagSet) {
			f.BoolVarP(&verbose, "verbose", "v", false, "show descriptors, layers and platforms as well")
			insecureFlag(f, &insecure)
		},
		run: func(ctx context.Context, a *app, args []string) error {
			ref, err := parseRemote(args[len(args)-1])
			if err != nil {
				return err
			}
			if err := noInsecure(insecure, ref.Domain); err != nil {
				return err
			}
			return a.manifestInspect(ctx, ref, args, verbose)
		},
	}
}

func (a *app) manifestInspect(ctx context.Context, ref reference.Ref, args []string, verbose bool) error {
	store := a.lists()
	listRef, err := parseRemote(args[0])
	if err != nil {
		return err
	}
	list, err := store.read(listRef)
	switch {
	case err == nil && len(args) == 2:
		e := list.entry(ref)
		if e == nil {
			return errs.New(errs.NotFound, "No such manifest: %s", args[1])
		}
		return a.printDocs([]listEntry{*e}, true, verbose)
	case err == nil:
		if verbose {
			return a.printDocs(list.Entries, false, true)
		}
		doc, err := list.document()
		if err != nil {
			return err
		}
		return a.indented(doc.Raw)
	case len(args) == 2 || !isNotFound(err):
		return err
	}
	r, err := a.remote()
	if err != nil {
		return err
	}
	doc, err := r.document(ctx, ref)
	if err != nil {
		return err
	}
	if !verbose {
		return a.indented(doc.Raw)
	}
	if doc.Manifest != nil {
		e, err := r.entry(ctx, ref, doc)
		if err != nil {
			return err
		}
		return a.printDocs([]listEntry{e}, true, true)
	}
	var entries []listEntry
	for _, d := range doc.Index.Manifests {
		one := ref
		one.Digest = d.Digest.String()
		sub, err := r.document(ctx, one)
		if err != nil {
			return err
		}
		entries = append(entries, listEntry{Ref: ref.String() + "@" + d.Digest.String(), Descriptor: d, Raw: sub.Raw})
	}
	return a.printDocs(entries, false, true)
}

// entry describes a single image: its descriptor with the platform of its config.
func (r *remote) entry(ctx context.Context, ref reference.Ref, doc manifest.Document) (listEntry, error) {
	p, err := r.platform(ctx, ref, doc)
	if err != nil {
		return listEntry{}, err
	}
	return listEntry{Ref: ref.String(), Raw: doc.Raw, Descriptor: ocispec.Descriptor{MediaType: doc.MediaType, Digest: doc.Digest, Size: int64(len(doc.Raw)), Platform: p}}, nil
}

func (a *app) indented(raw []byte) error {
	var buf bytes.Buffer
	if err := json.Indent(&buf, bytes.TrimSpace(raw), "", "\t"); err != nil {
		return err
	}
	buf.WriteByte('\n')
	_, err := a.Out.Write(buf.Bytes())
	return err
}

// printDocs prints entries in docker's form: an object for one, a list for several.
func (a *app) printDocs(entries []listEntry, one, verbose bool) error {
	type verboseEntry struct {
		Ref              string
		Descriptor       ocispec.Descriptor
		Raw              []byte
		SchemaV2Manifest json.RawMessage `json:",omitempty"`
		OCIManifest      json.RawMessage `json:",omitempty"`
	}
	var out []any
	for _, e := range entries {
		if !verbose {
			out = append(out, json.RawMessage(e.Raw))
			continue
		}
		v := verboseEntry{Ref: e.Ref, Descriptor: e.Descriptor, Raw: e.Raw}
		if e.Descriptor.MediaType == manifest.DockerManifest {
			v.SchemaV2Manifest = e.Raw
		} else {
			v.OCIManifest = e.Raw
		}
		out = append(out, v)
	}
	var doc any = out
	if one {
		doc = out[0]
	}
	raw, err := json.Marshal(doc)
	if err != nil {
		return err
	}
	return a.indented(raw)
}

func newManifestCreate() *verb {
	var amend, insecure bool
	return &verb{
		use: "[OPTIONS] MANIFEST_LIST MANIFEST [MANIFEST...]", min: 2, max: -1, short: "Make a list of manifests, to be pushed as one name for several platforms",
		long:    "Asks the registry for each manifest and keeps the list on this side, beside docker's configuration, until `corten manifest push`.",
		example: "corten manifest create reg.example.org/app:1 reg.example.org/app:1-amd64 reg.example.org/app:1-arm64",
		flags: func(f *pflag.FlagSet) {
			f.BoolVarP(&amend, "amend", "a", false, "add to a list that is there")
			insecureFlag(f, &insecure)
		},
		run: func(ctx context.Context, a *app, args []string) error {
			target, store, err := a.listNamed(args[0], insecure)
			if err != nil {
				return err
			}
			list, err := store.read(target)
			switch {
			case err == nil && !amend:
				return errs.New(errs.Conflict, "refusing to amend an existing manifest list with no --amend flag")
			case err != nil && !isNotFound(err):
				return err
			}
			r, err := a.remote()
			if err != nil {
				return err
			}
			for _, arg := range args[1:] {
				ref, err := parseRemote(arg)
				if err != nil {
					return err
				}
				doc, err := r.document(ctx, ref)
				if err != nil {
					return err
				}
				if doc.Manifest == nil {
					return invalid("%s is a manifest list", arg)
				}
				e, err := r.entry(ctx, ref, doc)
				if err != nil {
					return err
				}
				list.put(e)
			}
			if err := store.write(target, list); err != nil {
				return err
			}
			fmt.Fprintln(a.Out, "Created manifest list "+target.String())
			return nil
		},
	}
}

func newManifestAnnotate() *verb {
	var p ocispec.Platform
	return &verb{
		use: "[OPTIONS] MANIFEST_LIST MANIFEST", min: 2, max: 2, short: "Say for which platform a manifest of a list is",
		long:    "Changes the entry of a list made by `corten manifest create`.",
		example: "corten manifest annotate reg.example.org/app:1 reg.example.org/app:1-arm --arch arm --variant v7",
		flags: func(f *pflag.FlagSet) {
			f.StringVar(&p.Architecture, "arch", "", "architecture")
			f.StringVar(&p.OS, "os", "", "operating system")
			f.StringSliceVar(&p.OSFeatures, "os-features", nil, "features of the operating system")
			f.StringVar(&p.OSVersion, "os-version", "", "version of the operating system")
			f.StringVar(&p.Variant, "variant", "", "variant of the architecture")
		},
		run: func(_ context.Context, a *app, args []string) error {
			target, store, err := a.listNamed(args[0], false)
			if err != nil {
				return err
			}
			list, err := store.read(target)
			if err != nil {
				return err
			}
			ref, err := parseRemote(args[1])
			if err != nil {
				return err
			}
			e := list.entry(ref)
			if e == nil {
				return errs.New(errs.NotFound, "manifest for image %s does not exist in %s", args[1], args[0])
			}
			if e.Descriptor.Platform == nil {
				e.Descriptor.Platform = &ocispec.Platform{}
			}
			have := e.Descriptor.Platform
			set := func(to *string, value string) {
				if value != "" {
					*to = value
				}
			}
			set(&have.Architecture, p.Architecture)
			set(&have.OS, p.OS)
			set(&have.OSVersion, p.OSVersion)
			set(&have.Variant, p.Variant)
			if len(p.OSFeatures) > 0 {
				have.OSFeatures = p.OSFeatures
			}
			return store.write(target, list)
		},
	}
}

func newManifestPush() *verb {
	var purge, insecure bool
	return &verb{
		use: "[OPTIONS] MANIFEST_LIST", min: 1, max: 1, short: "Send a list of manifests to its registry",
		long:    "Stores the list under its name. Manifests of other repositories of the same registry become part of the target repository\nwithout any layer travelling.",
		example: "corten manifest push --purge reg.example.org/app:1",
		flags: func(f *pflag.FlagSet) {
			f.BoolVarP(&purge, "purge", "p", false, "forget the list here after the push")
			insecureFlag(f, &insecure)
		},
		run: func(ctx context.Context, a *app, args []string) error {
			target, store, err := a.listNamed(args[0], insecure)
			if err != nil {
				return err
			}
			list, err := store.read(target)
			if err != nil {
				return err
			}
			doc, err := list.document()
			if err != nil {
				return err
			}
			var from []string
			for _, e := range list.Entries {
				ref, err := reference.Parse(e.Ref)
				if err != nil {
					return err
				}
				from = append(from, ref.Name()+"@"+e.Descriptor.Digest.String())
			}
			r, err := a.remote()
			if err != nil {
				return err
			}
			if err := r.put(ctx, target, doc, from); err != nil {
				return err
			}
			fmt.Fprintln(a.Out, doc.Digest)
			if purge {
				return store.remove(target)
			}
			return nil
		},
	}
}

func newManifestRm() *verb {
	return &verb{
		use: "MANIFEST_LIST [MANIFEST_LIST...]", min: 1, max: -1, short: "Forget lists of manifests kept here",
		long: "Removes what `corten manifest create` keeps on this side; registries are not asked.", example: "corten manifest rm reg.example.org/app:1",
		run: func(_ context.Context, a *app, args []string) error {
			store := a.lists()
			return a.each(args, func(name string) error {
				ref, err := parseRemote(name)
				if err == nil {
					_, err = store.read(ref)
				}
				if err == nil {
					err = store.remove(ref)
				}
				return err
			})
		},
	}
}

// insecureFlag is docker's --insecure; see noInsecure for what it means here.
func insecureFlag(f *pflag.FlagSet, to *bool) {
	f.BoolVar(to, "insecure", false, "the registry has no TLS (loopback addresses only; others: insecure-registries of the engine)")
}

// listNamed reads the name of a list that is being made, and opens the folder where it is kept.
func (a *app) listNamed(name string, insecure bool) (target reference.Ref, store listStore, err error) {
	if target, err = parseRemote(name); err != nil {
		return target, store, err
	}
	if err = noInsecure(insecure, target.Domain); err != nil {
		return target, store, err
	}
	return target, a.lists(), nil
}

// lists is the folder of manifest lists that were made and not pushed yet.
func (a *app) lists() listStore { return listStore{filepath.Join(a.config().Dir, "manifest-lists")} }
