package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"text/template"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/spf13/pflag"

	"corten.dev/corten/internal/manifest"
	"corten.dev/corten/internal/reference"
)

func newImagetoolsInspect() *verb {
	var raw bool
	var format string
	return &verb{
		use: "[OPTIONS] NAME", min: 1, max: 1, short: "Show what a registry has under a name",
		long:    "Shows the digest and media type, and for an index all its entries with their platforms. Nothing is downloaded.",
		example: "corten buildx imagetools inspect debian:12\ncorten buildx imagetools inspect --raw debian:12\ncorten buildx imagetools inspect --format '{{.Manifest.Digest}}' debian",
		flags: func(f *pflag.FlagSet) {
			f.BoolVar(&raw, "raw", false, "print the document as the registry has it")
			f.StringVar(&format, "format", "", "template of {{.Name}}, {{.Manifest}} and {{json .Manifest}}")
		},
		run: func(ctx context.Context, a *app, args []string) error {
			ref, err := parseRemote(args[0])
			if err != nil {
				return err
			}
			if raw && format != "" {
				return invalid("--format cannot be used together with --raw")
			}
			r, err := a.remote()
			if err != nil {
				return err
			}
			doc, err := r.document(ctx, ref)
			if err != nil {
				return err
			}
			switch {
			case raw:
				_, err := a.Out.Write(doc.Raw)
				return err
			case format != "":
				return a.imagetoolsFormat(ref, doc, format)
			}
			a.imagetoolsText(ref, doc)
			return nil
		},
	}
}

// imagetoolsText prints buildx's lines.
func (a *app) imagetoolsText(ref reference.Ref, doc manifest.Document) {
	fmt.Fprintf(a.Out, "Name:      %s\nMediaType: %s\nDigest:    %s\n", ref, doc.MediaType, doc.Digest)
	if doc.Index == nil {
		return
	}
	fmt.Fprint(a.Out, "           \nManifests: \n")
	for i, d := range doc.Index.Manifests {
		if i > 0 {
			fmt.Fprint(a.Out, "             \n")
		}
		fmt.Fprintf(a.Out, "  Name:        %s@%s\n  MediaType:   %s\n", ref, d.Digest, d.MediaType)
		if p := d.Platform; p != nil {
			fmt.Fprintf(a.Out, "  Platform:    %s\n", manifest.Platform{OS: p.OS, Arch: p.Architecture, Variant: p.Variant})
		}
		if len(d.Annotations) > 0 {
			fmt.Fprint(a.Out, "  Annotations: \n")
			for _, k := range slices.Sorted(maps.Keys(d.Annotations)) {
				fmt.Fprintf(a.Out, "    %s: %s\n", k, d.Annotations[k])
			}
		}
	}
}

// toolsManifest is what a template may ask of a document.
type toolsManifest struct {
	SchemaVersion int                  `json:"schemaVersion"`
	MediaType     string               `json:"mediaType"`
	Digest        string               `json:"digest"`
	Size          int64                `json:"size"`
	Manifests     []ocispec.Descriptor `json:"manifests,omitempty"`
	Config        *ocispec.Descriptor  `json:"config,omitempty"`
	Layers        []ocispec.Descriptor `json:"layers,omitempty"`
}

func (a *app) imagetoolsFormat(ref reference.Ref, doc manifest.Document, format string) error {
	m := toolsManifest{SchemaVersion: 2, MediaType: doc.MediaType, Digest: doc.Digest.String(), Size: int64(len(doc.Raw))}
	if doc.Index != nil {
		m.Manifests = doc.Index.Manifests
	} else {
		m.Config, m.Layers = &doc.Manifest.Config, doc.Manifest.Layers
	}
	t, err := template.New("format").Funcs(template.FuncMap{"json": func(v any) (string, error) {
		raw, err := json.MarshalIndent(v, "", "  ")
		return string(raw), err
	}, "lower": strings.ToLower, "upper": strings.ToUpper, "join": strings.Join}).Parse(format)
	if err != nil {
		return invalid("--format: %w", err)
	}
	if err := t.Execute(a.Out, struct {
		Name     string
		Manifest toolsManifest
	}{ref.String(), m}); err != nil {
		return err
	}
	fmt.Fprintln(a.Out)
	return nil
}
