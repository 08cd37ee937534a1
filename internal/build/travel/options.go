package travel

import (
	"slices"
	"strconv"
	"strings"

	"github.com/opencontainers/go-digest"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/reference"
)

// mountChoice says which cache mounts travel.
type mountChoice struct {
	all bool
	ids []string
}

func (m mountChoice) any() bool { return m.all || len(m.ids) > 0 }

func (m mountChoice) has(id string) bool { return m.all || slices.Contains(m.ids, id) }

// parse reads an option; export tells the direction.
func parse(o Option, export bool) (*place, error) {
	p := &place{kind: o.Type, tag: reference.DefaultTag}
	if !slices.Contains([]string{"registry", "local", "inline"}, o.Type) || o.Type == "inline" && !export {
		return nil, errs.New(errs.Invalid, "cache type %q could not be found: choose registry, local or, for export, inline", o.Type)
	}
	oci, asImage := true, ""
	for name, value := range o.Attrs {
		err := p.read(name, value, export)
		switch name {
		case "oci-mediatypes":
			oci, err = strconv.ParseBool(value)
		case "image-manifest":
			asImage = value
			_, err = strconv.ParseBool(value)
		}
		if err != nil {
			return nil, errs.New(errs.Invalid, "cache %s: attribute %s=%q: %w", o.Type, name, value, err)
		}
	}
	p.docker = !oci
	p.asIndex = !oci
	if asImage != "" {
		p.asIndex = asImage == "false" || asImage == "0" || asImage == "f"
	}
	switch {
	case p.docker && !p.asIndex:
		return nil, errs.New(errs.Invalid, "cache %s: image-manifest=true needs oci-mediatypes=true", o.Type)
	case p.docker && p.how.Type == "zstd":
		return nil, errs.New(errs.Invalid, "cache %s: compression=zstd needs oci-mediatypes=true", o.Type)
	case p.kind == "registry" && p.ref.Path == "":
		return nil, errs.New(errs.Invalid, "cache registry: ref is missing")
	case p.kind == "local" && p.store == "":
		return nil, errs.New(errs.Invalid, "cache local: %s is missing", map[bool]string{true: "dest", false: "src"}[export])
	case p.kind == "inline" && (p.max || p.mounts.any()):
		return nil, errs.New(errs.Invalid, "cache inline: an image carries the records of its own layers only: choose mode=min, or type registry or local")
	}
	return p, nil
}

var notKnown = errs.New(errs.Invalid, "not known")

// read takes one attribute.
func (p *place) read(name, value string, export bool) (err error) {
	only := func(ok bool) error {
		if !ok {
			return notKnown
		}
		return nil
	}
	switch name {
	case "ref":
		if err = only(p.kind == "registry"); err == nil {
			if p.ref, err = reference.Parse(value); err == nil && export && p.ref.Digest != "" {
				err = errs.New(errs.Invalid, "a place to export to cannot have a digest")
			}
			p.ref = p.ref.WithDefaultTag()
		}
	case "dest", "src":
		// BuildKit's clients offer folders under these names.
		if err = only(p.kind == "local" && export == (name == "dest")); err == nil && value != "" {
			p.store = "local:" + value
		}
	case "tag":
		p.tag = value
		err = only(p.kind == "local" && reference.ValidTag(value))
	case "digest":
		p.digest = value
		if err = only(p.kind == "local" && !export); err == nil {
			err = digest.Digest(value).Validate()
		}
	case "mode":
		p.max = value == "max"
		err = only(export)
		if err == nil && value != "min" && value != "max" {
			err = errs.New(errs.Invalid, "choose min or max")
		}
	case "ignore-error":
		p.ignoreErrors, err = strconv.ParseBool(value)
	case "oci-mediatypes", "image-manifest":
		err = only(export && p.kind != "inline")
	case "compression", "compression-level", "force-compression":
		if err = only(export && p.kind != "inline"); err == nil {
			err = p.readCompression(name, value)
		}
	case "mounts":
		err = p.readMounts(value)
	default:
		err = notKnown
	}
	return err
}

func (p *place) readCompression(name, value string) (err error) {
	switch name {
	case "force-compression":
		p.how.Force, err = strconv.ParseBool(value)
	case "compression-level":
		var n int
		n, err = strconv.Atoi(value)
		if p.how.Level = &n; err == nil && (n < 0 || n > 22) {
			err = errs.New(errs.Invalid, "levels are 0 to 22")
		}
	default:
		switch value {
		case "gzip", "zstd", "uncompressed":
			p.how.Type = value
		case "estargz":
			err = errs.New(errs.NotImplemented, "estargz is not made here: choose gzip, zstd or uncompressed")
		default:
			err = errs.New(errs.Invalid, "choose gzip, zstd or uncompressed")
		}
	}
	return err
}

// readMounts takes true, false, or ids with semicolons between them.
func (p *place) readMounts(value string) error {
	if on, err := strconv.ParseBool(value); err == nil {
		p.mounts.all = on
		return nil
	}
	for id := range strings.SplitSeq(value, ";") {
		if id == "" {
			return errs.New(errs.Invalid, "true, or ids of cache mounts with semicolons between them")
		}
		p.mounts.ids = append(p.mounts.ids, id)
	}
	return nil
}
