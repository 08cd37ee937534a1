package images

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/events"
	"corten.dev/corten/internal/image"
	"corten.dev/corten/internal/manifest"
	"corten.dev/corten/internal/reference"
	"corten.dev/corten/internal/registry/client"
)

// Pull implements [Registries].
//
//	HEAD tag ──same digest as here──▶ up to date
//	   └─▶ manifest or index ─▶ platform ─▶ config ─▶ layers side by side: download ─▶ verify
//	                                                          └─ while it comes ─▶ unpack ─▶ commit
func (s *Service) Pull(ctx context.Context, opts PullOptions, report Reporter) error {
	ref, err := reference.Parse(opts.Ref)
	if err != nil {
		return err
	}
	if opts.AllTags && (ref.Tag != "" || ref.Digest != "") {
		return errs.New(errs.Invalid, "tag can't be used with --all-tags/-a")
	}
	if opts.AllPlatforms && opts.Platform != "" {
		return errs.New(errs.Invalid, "a platform and all platforms cannot be asked for at once")
	}
	p := &pulling{Service: s, opts: opts, name: ref.Name(), platform: s.Platform}
	if opts.Platform != "" {
		if p.platform, err = manifest.ParsePlatform(opts.Platform); err != nil {
			return err
		}
	}
	if p.repo, err = s.Registry.Repository(ref, opts.Credentials); err != nil {
		return err
	}
	p.reports = newReports()
	err = p.during(ctx, s.Log, "pull "+ref.Familiar(), report, func(ctx context.Context) error { return p.all(ctx, ref) })
	s.grow()
	return err
}

// pulling is one call of Pull.
type pulling struct {
	*Service
	opts     PullOptions
	name     string // of the repository
	platform manifest.Platform
	repo     client.Repository
	reports
}

// all pulls one name, or all tags one after the other.
func (p *pulling) all(ctx context.Context, ref reference.Ref) error {
	refs := []reference.Ref{ref.WithDefaultTag()}
	if p.opts.AllTags {
		tags, err := p.repo.Tags(ctx)
		if err != nil {
			return denied(err, ref)
		}
		if len(tags) == 0 {
			return errs.New(errs.NotFound, "repository %s has no tags", ref.Familiar())
		}
		refs = nil
		for _, tag := range tags {
			one := ref
			one.Tag = tag
			refs = append(refs, one)
		}
	} else {
		ref = refs[0]
	}
	newer := false
	for _, one := range refs {
		changed, err := p.one(ctx, one)
		if err != nil {
			return err
		}
		newer = newer || changed
		p.Events.Publish(events.Event{Type: "image", Action: "pull", ID: one.Familiar(), Attributes: p.attributes(ctx, one)})
	}
	status := "Status: Image is up to date for " + ref.Familiar()
	if newer {
		status = "Status: Downloaded newer image for " + ref.Familiar()
	}
	p.say(ctx, Report{Status: status})
	return nil
}

// attributes are those of a pull or push event: the labels of the image and the repository's name.
func (s *Service) attributes(ctx context.Context, ref reference.Ref) map[string]string {
	attrs := map[string]string{}
	if img, err := s.Store.Get(ctx, ref.Familiar()); err == nil {
		for k, v := range img.Config.Config.Labels {
			attrs[k] = v
		}
	}
	attrs["name"] = ref.FamiliarName()
	return attrs
}

// one pulls one name, and tells whether that changed what the name means.
func (p *pulling) one(ctx context.Context, ref reference.Ref) (changed bool, err error) {
	id := ref.Tag
	if ref.Digest != "" {
		ref.Tag, id = "", ""
		id = ref.String()
	}
	old, had := p.local(ctx, ref)
	if had && !p.opts.AllPlatforms {
		if top, same := p.same(ctx, ref, old); same {
			p.say(ctx, Report{ID: id, Status: "Pulling from " + ref.Path})
			p.say(ctx, Report{Status: "Digest: " + top.String()})
			return false, nil
		}
	}
	top, err := p.repo.Resolve(ctx, key(ref))
	if err != nil {
		return false, denied(err, ref)
	}
	if ref.Digest != "" && top.Digest.String() != ref.Digest {
		return false, errs.New(errs.Invalid, "the registry's answer for %s has the digest %s", ref.Familiar(), top.Digest)
	}
	p.say(ctx, Report{ID: id, Status: "Pulling from " + ref.Path})
	names := []reference.Ref{ref}
	if ref.Digest == "" {
		byDigest := ref
		byDigest.Tag, byDigest.Digest = "", top.Digest.String()
		names = append(names, byDigest)
	}
	var img image.Image
	if p.opts.AllPlatforms && top.Index != nil {
		img, err = p.platforms(ctx, top, ref, names)
	} else {
		var doc manifest.Document
		if doc, err = p.choose(ctx, top); err == nil {
			img, err = p.image(ctx, ref, doc, names)
		}
	}
	if err != nil {
		return false, err
	}
	p.warn(ctx, ref, img)
	p.say(ctx, Report{Status: "Digest: " + top.Digest.String()})
	return !had || old.ID != img.ID, nil
}

// denied gives a missing login the words, and the kind, of a missing repository, as Docker does: at 401 docker's client would ask for a password on the spot, also where
// nobody is there to give one.
func denied(err error, ref reference.Ref) error {
	if !errors.Is(err, errs.Unauthorized) {
		return err
	}
	return errs.New(errs.NotFound, "pull access denied for %s, repository does not exist or may require 'docker login': %w", ref.FamiliarName(), err)
}

// key is what a registry is asked for within a repository.
func key(ref reference.Ref) string {
	if ref.Digest != "" {
		return ref.Digest
	}
	return ref.Tag
}

// local is the image that the name, exactly, leads to.
func (s *Service) local(ctx context.Context, ref reference.Ref) (image.Image, bool) {
	img, err := s.Store.Get(ctx, ref.Familiar())
	if err != nil {
		return img, false
	}
	for _, name := range append(img.Tags[:len(img.Tags):len(img.Tags)], img.Digests...) {
		if name == ref.Familiar() {
			return img, true
		}
	}
	return img, false
}

// same asks the registry, as cheaply as it can be asked, whether the name still means what it means here.
func (p *pulling) same(ctx context.Context, ref reference.Ref, img image.Image) (digest.Digest, bool) {
	have := manifest.Platform{OS: img.Config.OS, Arch: img.Config.Architecture, Variant: img.Config.Variant}
	if p.platform.Match(have) == 0 {
		return "", false
	}
	if ref.Digest != "" {
		return digest.Digest(ref.Digest), true // cannot mean anything else
	}
	head, err := p.repo.Head(ctx, ref.Tag)
	if err != nil {
		return "", false // the next request will tell
	}
	name := ref.FamiliarName() + "@" + head.Digest.String()
	for _, d := range img.Digests {
		if d == name {
			return head.Digest, true
		}
	}
	return "", false
}

// maxNesting is how deep an index may lie in another.
const maxNesting = 3

// choose finds the manifest for the platform.
func (p *pulling) choose(ctx context.Context, doc manifest.Document) (manifest.Document, error) {
	seen := map[digest.Digest]bool{doc.Digest: true}
	for range maxNesting {
		if doc.Manifest != nil {
			return doc, nil
		}
		d, err := manifest.Choose(doc.Index, p.platform)
		if err != nil {
			return doc, err
		}
		if seen[d.Digest] {
			return doc, errs.New(errs.Invalid, "index %s leads back to itself", d.Digest)
		}
		seen[d.Digest] = true
		if doc, err = p.entry(ctx, d); err != nil {
			return doc, err
		}
	}
	if doc.Manifest == nil {
		return doc, errs.New(errs.Invalid, "index %s lies in more than %d others", doc.Digest, maxNesting-1)
	}
	return doc, nil
}

// entry fetches what an index lists.
func (p *pulling) entry(ctx context.Context, d ocispec.Descriptor) (manifest.Document, error) {
	doc, err := p.repo.Resolve(ctx, d.Digest.String())
	if err != nil {
		return doc, err
	}
	if doc.Digest != d.Digest || int64(len(doc.Raw)) != d.Size {
		return doc, errs.New(errs.Invalid, "the index lists a manifest %s of %d bytes, the registry gave %s of %d", d.Digest, d.Size, doc.Digest, len(doc.Raw))
	}
	return doc, nil
}

// platforms pulls everything that an index lists, images and what is about them, and the index. The names go to the image of this platform.
func (p *pulling) platforms(ctx context.Context, top manifest.Document, ref reference.Ref, names []reference.Ref) (mine image.Image, err error) {
	choice, err := manifest.Choose(top.Index, p.platform)
	if err != nil && !errors.Is(err, errs.NotFound) {
		return mine, err
	}
	own := choice.Digest
	done := map[digest.Digest]bool{}
	room := int64(image.MaxArtifacts)
	for _, d := range top.Index.Manifests {
		if done[d.Digest] || d.MediaType != "" && !manifest.IsDocument(d.MediaType) {
			continue // a repetition, or no document
		}
		done[d.Digest] = true
		if d.Platform != nil && d.Platform.OS != "" && d.Platform.OS != "unknown" && d.Platform.OS != p.platform.OS {
			p.say(ctx, Report{ID: short(d.Digest), Status: fmt.Sprintf("Left out, an image for %s: it cannot be unpacked on %s", platformOf(d), p.platform.OS)})
			continue
		}
		doc, err := p.entry(ctx, d)
		if err == nil && manifest.IsArtifact(d, doc) || err != nil && d.Platform != nil && d.Platform.OS == "unknown" {
			release, err := p.artifact(ctx, d, doc, err, &room)
			if err != nil {
				return mine, err
			}
			defer release() // when the index is there, which holds them then
			continue
		}
		if err != nil {
			return mine, err
		}
		if doc.Manifest == nil {
			return mine, errs.New(errs.Invalid, "index %s lists an index, %s: pull one platform of it instead of all", top.Digest, d.Digest)
		}
		if own == "" {
			own = d.Digest // none of them is for here: the first one gets the name
		}
		one := ref
		one.Tag, one.Digest = "", d.Digest.String()
		give := []reference.Ref{one} // so that it is not without a name
		if d.Digest == own {
			give = append(give, names...)
		}
		img, err := p.image(ctx, ref, doc, give)
		if err != nil {
			return mine, fmt.Errorf("platform %s: %w", platformOf(d), err)
		}
		if d.Digest == own {
			mine = img
		}
	}
	if mine.ID == "" {
		return mine, errs.New(errs.NotFound, "index %s lists no image", top.Digest)
	}
	for _, name := range names {
		if err := p.Transfers.AddIndex(context.WithoutCancel(ctx), name, top); err != nil {
			return mine, err
		}
	}
	return mine, nil
}

// artifact fetches what an index lists beside images, as far as there is room. What cannot be had is told and left out: the images are good without it. lost is why its manifest was not to be had.
func (p *pulling) artifact(ctx context.Context, d ocispec.Descriptor, doc manifest.Document, lost error, room *int64) (release func(), err error) {
	size := int64(0)
	if err = lost; err == nil {
		size, err = image.ArtifactSize(doc)
	}
	if err == nil && size > *room {
		err = errs.New(errs.Invalid, "all of them together have more than %d MB", image.MaxArtifacts>>20)
	}
	if err == nil {
		release, err = p.Transfers.ReceiveArtifact(ctx, doc, func(ctx context.Context, blob ocispec.Descriptor) ([]byte, error) {
			return p.repo.Blob(ctx, blob, image.MaxArtifacts)
		})
	}
	switch {
	case err == nil:
		*room -= size
		return release, nil
	case ctx.Err() == nil && (errors.Is(err, errs.NotFound) || errors.Is(err, errs.Invalid)):
		p.say(ctx, Report{ID: short(d.Digest), Status: fmt.Sprintf("Left out, an attestation or other artifact beside the images: %v", err)})
		return func() {}, nil
	}
	return nil, fmt.Errorf("artifact %s: %w", d.Digest, err)
}

func platformOf(d ocispec.Descriptor) string {
	if d.Platform == nil {
		return "unknown"
	}
	return manifest.Platform{OS: d.Platform.OS, Arch: d.Platform.Architecture, Variant: d.Platform.Variant}.String()
}

// image brings one image in and gives it the names.
func (p *pulling) image(ctx context.Context, ref reference.Ref, doc manifest.Document, names []reference.Ref) (img image.Image, err error) {
	if err := checkImage(ref, doc); err != nil {
		return img, err
	}
	raw, err := p.config(ctx, doc)
	if err != nil {
		return img, err
	}
	inc, err := p.Transfers.Receive(ctx, doc, raw)
	if err != nil {
		return img, err
	}
	defer inc.Close()
	todo, err := p.layers(ctx, inc)
	defer func() { p.release(todo, err) }()
	if err != nil {
		return img, err
	}
	// From here on it is a matter of names: a caller that leaves now gets the image all the same.
	return inc.Commit(context.WithoutCancel(ctx), names)
}

// config gives the config blob: the one that is here, or the registry's.
func (p *pulling) config(ctx context.Context, doc manifest.Document) ([]byte, error) {
	want := doc.Manifest.Config
	if img, err := p.Store.Get(ctx, want.Digest.String()); err == nil && img.ID == want.Digest {
		return img.Raw, nil
	}
	raw, err := p.repo.Blob(ctx, want, manifest.MaxConfig)
	if err != nil {
		return nil, fmt.Errorf("config of the image: %w", err)
	}
	cfg, err := image.ParseConfig(raw)
	if err != nil {
		return nil, err
	}
	if cfg.OS != "" && cfg.OS != p.platform.OS {
		return nil, errs.New(errs.Invalid, "image operating system %q cannot be used on this platform: operating system is not supported", cfg.OS)
	}
	return raw, nil
}

// checkImage refuses what is in registries, too, but is no image that can be unpacked.
func checkImage(ref reference.Ref, doc manifest.Document) error {
	if kind := doc.Manifest.Config.MediaType; !manifest.IsImageConfig(kind) {
		return errs.New(errs.Invalid, "%s is no image: unsupported media type %s", ref.Familiar(), kind)
	}
	for i, l := range doc.Manifest.Layers {
		switch {
		case manifest.IsForeign(l.MediaType):
			return errs.New(errs.Invalid, "%s: layer %d (%s) is a foreign layer, kept at another place than the registry (media type %s): such images cannot be pulled", ref.Familiar(), i+1, l.Digest, l.MediaType)
		case strings.HasSuffix(l.MediaType, "+encrypted"):
			return errs.New(errs.Invalid, "%s: layer %d (%s) is encrypted (media type %s)", ref.Familiar(), i+1, l.Digest, l.MediaType)
		}
		switch l.MediaType {
		case "", manifest.DockerLayer, manifest.DockerLayerTar, manifest.OCILayer, manifest.OCILayerGzip, manifest.OCILayerZstd, manifest.DockerLayerTar + ".zstd", "application/octet-stream":
		default:
			return errs.New(errs.Invalid, "%s is no image: layer %d has the unsupported media type %s", ref.Familiar(), i+1, l.MediaType)
		}
	}
	return nil
}

// warn tells when the registry had only something for another platform than was asked for.
func (p *pulling) warn(ctx context.Context, ref reference.Ref, img image.Image) {
	have := manifest.Platform{OS: img.Config.OS, Arch: img.Config.Architecture, Variant: img.Config.Variant}
	if p.opts.Platform != "" && p.platform.Match(have) == 0 {
		p.say(ctx, Report{Status: fmt.Sprintf("WARNING: image with reference %s was found but its platform (%s) does not match the specified platform (%s)", ref.Familiar(), have, p.platform)})
	}
}
