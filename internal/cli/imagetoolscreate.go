package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/spf13/pflag"

	"corten.dev/corten/internal/manifest"
	"corten.dev/corten/internal/reference"
)

// toolsCreate are buildx's flags.
type toolsCreate struct {
	tags, files, annotations, platforms []string
	appends, dryRun, preferIndex        bool
	metadataFile, progress, builder     string
}

func newImagetoolsCreate() *verb {
	var o toolsCreate
	return &verb{
		use: "[OPTIONS] [SOURCE...]", max: -1, short: "Make an image of several platforms from images at a registry",
		long: "Makes an index of the manifests of all sources, and stores it under each tag. A source is a name, a digest in the repository of the\n" +
			"first tag, or a descriptor as JSON. Nothing is built, and no layer travels.",
		example: "corten buildx imagetools create -t reg.example.org/app:1 reg.example.org/app:1-amd64 reg.example.org/app:1-arm64\n" +
			"corten buildx imagetools create -t reg.example.org/app:stable reg.example.org/app:1\n" +
			"corten buildx imagetools create --append -t reg.example.org/app:1 reg.example.org/app:1-riscv64",
		flags: func(f *pflag.FlagSet) {
			list(f, &o.tags, "tag", "t", "name of the new image")
			list(f, &o.files, "file", "f", "read a source's descriptor from this file")
			list(f, &o.annotations, "annotation", "", "add an annotation to the index, [index:|manifest-descriptor:]name=value")
			f.StringSliceVarP(&o.platforms, "platform", "p", nil, "take only these platforms")
			f.BoolVar(&o.appends, "append", false, "keep what the index under the first tag has")
			f.BoolVar(&o.dryRun, "dry-run", false, "print the index and store nothing")
			f.BoolVar(&o.preferIndex, "prefer-index", true, "make an index even of a single manifest")
			f.StringVar(&o.metadataFile, "metadata-file", "", "write what is known of the result to this file, as JSON")
			f.StringVar(&o.progress, "progress", "auto", "quiet says nothing; anything else names what was stored")
			f.StringVar(&o.builder, "builder", "", "only the engine itself is there: default")
		},
		run: func(ctx context.Context, a *app, args []string) error { return o.run(ctx, a, args) },
	}
}

// toolsSource is one manifest or index that a source leads to.
type toolsSource struct {
	ref  reference.Ref
	desc ocispec.Descriptor
	doc  manifest.Document
}

func (o *toolsCreate) run(ctx context.Context, a *app, args []string) error {
	if err := onlyBuilder(o.builder); err != nil {
		return err
	}
	switch {
	case len(args) == 0 && len(o.files) == 0:
		return &exitError{code: 1, text: "ERROR: no sources specified"}
	case len(o.tags) == 0 && (!o.dryRun || o.appends):
		return &exitError{code: 1, text: "ERROR: can't push with no tags specified, please set --tag or --dry-run"}
	}
	var tags []reference.Ref
	for _, t := range o.tags {
		ref, err := parseRemote(t)
		if err != nil {
			return invalid("ERROR: invalid tag %q: %w", t, err)
		}
		tags = append(tags, ref)
	}
	r, err := a.remote()
	if err != nil {
		return err
	}
	sources, err := o.sources(ctx, r, tags, args)
	if err != nil {
		return err
	}
	doc, from, err := o.combine(ctx, r, sources)
	if err != nil {
		return err
	}
	if o.dryRun {
		fmt.Fprintln(a.Out, string(bytes.TrimSpace(doc.Raw)))
		return nil
	}
	for _, tag := range tags {
		if err := r.put(ctx, tag, doc, from); err != nil {
			return fmt.Errorf("ERROR: store %s: %w", tag.Familiar(), err)
		}
		if o.progress != "quiet" {
			fmt.Fprintf(a.Err, "pushed %s to %s\n", doc.Digest, tag)
		}
	}
	return o.describe(doc, tags)
}

// describe writes --metadata-file.
func (o *toolsCreate) describe(doc manifest.Document, tags []reference.Ref) error {
	if o.metadataFile == "" {
		return nil
	}
	var names []string
	for _, t := range tags {
		names = append(names, t.String())
	}
	raw, err := json.MarshalIndent(map[string]any{
		"containerimage.descriptor": ocispec.Descriptor{MediaType: doc.MediaType, Digest: doc.Digest, Size: int64(len(doc.Raw))}, "containerimage.digest": doc.Digest, "image.name": names,
	}, "", "  ")
	if err != nil {
		return err
	}
	if err := os.WriteFile(o.metadataFile, raw, 0o644); err != nil {
		return fmt.Errorf("--metadata-file: %w", err)
	}
	return nil
}

// sources reads what the sources lead to, what the first tag has first when it is to be kept.
func (o *toolsCreate) sources(ctx context.Context, r *remote, tags []reference.Ref, args []string) (all []toolsSource, err error) {
	if o.appends {
		doc, err := r.document(ctx, tags[0])
		if err != nil {
			return nil, fmt.Errorf("ERROR: --append: %w", err)
		}
		all = append(all, toolsSource{ref: tags[0], doc: doc})
	}
	for _, name := range o.files {
		data, err := os.ReadFile(name)
		if name == "-" {
			data, err = io.ReadAll(io.LimitReader(r.a.In, manifest.MaxSize))
		}
		if err != nil {
			return nil, fmt.Errorf("ERROR: --file: %w", err)
		}
		args = append(args, string(data))
	}
	for _, arg := range args {
		src := toolsSource{}
		text := strings.TrimSpace(arg)
		switch {
		case strings.HasPrefix(text, "{"):
			if err := json.Unmarshal([]byte(text), &src.desc); err != nil || src.desc.Digest == "" {
				return nil, errors.Join(invalid("ERROR: %q is no descriptor with a digest", text), err)
			}
			text = src.desc.Digest.String()
			fallthrough
		case strings.HasPrefix(text, "sha256:"):
			if len(tags) == 0 {
				return nil, invalid("ERROR: %s: no repository specified for a source that is a digest; name one with --tag", text)
			}
			src.ref = tags[0]
			src.ref.Tag, src.ref.Digest = "", text
		default:
			if src.ref, err = parseRemote(text); err != nil {
				return nil, invalid("ERROR: invalid source %q: %w", text, err)
			}
		}
		if src.doc, err = r.document(ctx, src.ref); err != nil {
			return nil, err
		}
		all = append(all, src)
	}
	return all, nil
}

// combine makes the index. from names each manifest of it where it is now.
func (o *toolsCreate) combine(ctx context.Context, r *remote, sources []toolsSource) (doc manifest.Document, from []string, err error) {
	if len(sources) == 1 && len(o.annotations) == 0 && len(o.platforms) == 0 && (sources[0].doc.Index != nil || !o.preferIndex) {
		src := sources[0] // a copy, byte for byte
		for _, d := range listed(src) {
			from = append(from, src.ref.Name()+"@"+d.Digest.String())
		}
		return src.doc, from, nil
	}
	idx := ocispec.Index{MediaType: manifest.DockerList, Manifests: []ocispec.Descriptor{}}
	idx.SchemaVersion = 2
	seen := map[string]int{}
	for _, src := range sources {
		list := listed(src)
		if src.doc.Index == nil && list[0].Platform == nil {
			if list[0].Platform, err = r.platform(ctx, src.ref, src.doc); err != nil {
				return doc, nil, err
			}
		}
		for _, d := range o.chosen(list) {
			if at, ok := seen[d.Digest.String()]; ok {
				if d.Platform != nil {
					idx.Manifests[at].Platform = d.Platform
				}
				continue
			}
			if d.MediaType == manifest.OCIManifest {
				idx.MediaType = manifest.OCIIndex
			}
			seen[d.Digest.String()] = len(idx.Manifests)
			idx.Manifests = append(idx.Manifests, d)
			from = append(from, src.ref.Name()+"@"+d.Digest.String())
		}
	}
	if len(idx.Manifests) == 0 {
		return doc, nil, &exitError{code: 1, text: "ERROR: no source has any of the platforms " + strings.Join(o.platforms, ", ")}
	}
	if err := o.annotate(&idx); err != nil {
		return doc, nil, err
	}
	raw, err := json.MarshalIndent(idx, "", "  ")
	if err != nil {
		return doc, nil, err
	}
	doc, err = manifest.Parse(idx.MediaType, raw)
	return doc, from, err
}

// listed are the manifests of a source.
func listed(src toolsSource) []ocispec.Descriptor {
	if src.doc.Index != nil {
		return slices.Clone(src.doc.Index.Manifests)
	}
	d := ocispec.Descriptor{MediaType: src.doc.MediaType, Digest: src.doc.Digest, Size: int64(len(src.doc.Raw)), Platform: src.desc.Platform, Annotations: src.desc.Annotations}
	return []ocispec.Descriptor{d}
}

// chosen are those of the platforms that are wanted, each with its attestations.
func (o *toolsCreate) chosen(list []ocispec.Descriptor) (out []ocispec.Descriptor) {
	if len(o.platforms) == 0 {
		return list
	}
	taken := map[string]bool{}
	for _, d := range list {
		if p := d.Platform; p != nil {
			name := manifest.Platform{OS: p.OS, Arch: p.Architecture, Variant: p.Variant}.String()
			bare := manifest.Platform{OS: p.OS, Arch: p.Architecture}.String()
			taken[d.Digest.String()] = slices.Contains(o.platforms, name) || slices.Contains(o.platforms, bare)
		}
	}
	for _, d := range list {
		if taken[d.Digest.String()] || taken[d.Annotations["vnd.docker.reference.digest"]] {
			out = append(out, d)
		}
	}
	return out
}

// annotate adds --annotation. Docker's list has no place for them: it becomes an OCI index.
func (o *toolsCreate) annotate(idx *ocispec.Index) error {
	for _, text := range o.annotations {
		key, value, ok := strings.Cut(text, "=")
		kind, name, typed := strings.Cut(key, ":")
		if !typed {
			kind, name = "index", key
		}
		if !ok || name == "" {
			return invalid("ERROR: invalid annotation %q: use [type:]name=value", text)
		}
		kind, platform, one := strings.Cut(strings.TrimSuffix(kind, "]"), "[")
		switch kind {
		case "index":
			if idx.Annotations == nil {
				idx.Annotations = map[string]string{}
			}
			idx.Annotations[name] = value
		case "manifest-descriptor":
			for i := range idx.Manifests {
				d := &idx.Manifests[i]
				if p := d.Platform; one && (p == nil || platform != manifest.Platform{OS: p.OS, Arch: p.Architecture, Variant: p.Variant}.String()) {
					continue
				}
				more := maps.Clone(d.Annotations)
				if more == nil {
					more = map[string]string{}
				}
				more[name] = value
				d.Annotations = more
			}
		default:
			return invalid("ERROR: annotation %q: %s annotations cannot be added to images that are there; use index or manifest-descriptor", text, kind)
		}
		idx.MediaType = manifest.OCIIndex
	}
	return nil
}
