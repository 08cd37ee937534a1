package export

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/moby/buildkit/exporter/containerimage/exptypes"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/image"
	"corten.dev/corten/internal/manifest"
	"corten.dev/corten/internal/reference"
)

// image puts the result into the store, and into registries.
//
// A single image that goes nowhere needs no manifest: its layers are there, and its config is all that is written. Documents (a push, several platforms, attestations, annotations)
// name compressed layers by their digests; those are found out by sending them, or by compressing them once without keeping the bytes.
func (x *exporting) image(ctx context.Context) (map[string]string, error) {
	if err := x.finishAll(ctx); err != nil {
		return nil, err
	}
	names := x.storeNames()
	if !x.documented() {
		return x.plainImage(ctx, x.targets[0], names)
	}
	outs, done, err := x.outgoings(ctx)
	defer done()
	if err != nil {
		return nil, err
	}
	repos, err := x.sendLayers(ctx, outs)
	if err != nil {
		return nil, err
	}
	p, err := x.pack(ctx, outs)
	if err != nil {
		return nil, err
	}
	said, err := x.response(p)
	if err != nil {
		return nil, err
	}
	if x.opts.store {
		if err := x.keep(ctx, p, names); err != nil {
			return nil, err
		}
	}
	if err := x.sendDocuments(ctx, repos, p); err != nil {
		return nil, err
	}
	return said, nil
}

// documented tells whether the result needs manifests. Attestations that are for where there is room for them (inline-only, which clients ask for by themselves) do not make documents
// of an image that needs none otherwise: it would cost the compression of its layers.
func (x *exporting) documented() bool {
	if x.opts.push || len(x.targets) > 1 || len(x.opts.annotations) > 0 || len(x.extraNames()) > 0 {
		return true
	}
	return slices.ContainsFunc(x.targets[0].attests, func(a attestation) bool { return !a.inlineOnly })
}

// storeNames are the names that the result gets in the store.
func (x *exporting) storeNames() (names []reference.Ref) {
	for _, r := range x.opts.names {
		if !x.opts.byDigest {
			names = append(names, r.WithDefaultTag())
		}
	}
	return names
}

// plainImage is the case that most builds are: a config is written, if it is not there, and names move to it.
func (x *exporting) plainImage(ctx context.Context, t *target, names []reference.Ref) (map[string]string, error) {
	id := digest.FromBytes(t.config)
	x.say("exporting layers", 0, 0, true)
	if _, err := x.Images.Create(ctx, image.CreateOptions{Config: t.config, Chain: t.chain, Names: names}); err != nil {
		return nil, err
	}
	x.say("writing image "+id.String(), 0, 0, true)
	for _, r := range names {
		x.say("naming to "+r.String(), 0, 0, true)
	}
	said := map[string]string{exptypes.ExporterImageConfigDigestKey: id.String(), exptypes.ExporterImageDigestKey: id.String()}
	if len(names) > 0 {
		said[exptypes.ExporterImageNameKey] = joinNames(names)
	}
	return said, nil
}

func joinNames(names []reference.Ref) string {
	var all []string
	for _, r := range names {
		all = append(all, r.String())
	}
	return strings.Join(all, ",")
}

// outgoings prepares all platforms.
func (x *exporting) outgoings(ctx context.Context) (outs []image.Outgoing, done func(), err error) {
	done = func() {
		for _, out := range outs {
			_ = out.Close() // it only lets go
		}
	}
	for _, t := range x.targets {
		out, err := x.outgoing(ctx, t)
		if err != nil {
			return nil, done, err
		}
		outs = append(outs, out)
	}
	return outs, done, nil
}

// destination is a repository that takes the result.
type destination struct {
	ref  reference.Ref
	repo Repository
}

// sendLayers sends the layers to all repositories, or only finds out what they are.
func (x *exporting) sendLayers(ctx context.Context, outs []image.Outgoing) (all []destination, err error) {
	if !x.opts.push {
		for _, out := range outs {
			if _, err := image.Settle(ctx, out); err != nil {
				return nil, err
			}
		}
		x.say("exporting layers", 0, 0, true)
		return nil, nil
	}
	if x.Registry == nil {
		return nil, errs.New(errs.NotImplemented, "this engine pushes nothing")
	}
	byName := map[string]Repository{}
	for _, r := range x.opts.names {
		repo := byName[r.Name()]
		if repo == nil {
			if repo, err = x.Registry.Repository(ctx, r, x.job.Session, x.opts.insecure); err != nil {
				return nil, fmt.Errorf("push %s: %w", r.Familiar(), err)
			}
			byName[r.Name()] = repo
			x.say("pushing layers", 0, 0, false)
			for _, out := range outs {
				_, config := out.Config()
				err := repo.PushLayers(ctx, out, x.job.Progress)
				if err == nil {
					err = repo.PushBlob(ctx, config)
				}
				if err != nil {
					return nil, fmt.Errorf("push %s: %w", r.Familiar(), err)
				}
			}
			x.say("pushing layers", 0, 0, true)
		}
		all = append(all, destination{r, repo})
	}
	return all, nil
}

// sendDocuments sends what names the layers, the root last.
func (x *exporting) sendDocuments(ctx context.Context, all []destination, p *parcel) error {
	sent := map[string]bool{}
	for _, d := range all {
		if err := x.sendTo(ctx, d, p, !sent[d.ref.Name()]); err != nil {
			return fmt.Errorf("push %s: %w", d.ref.Familiar(), err)
		}
		sent[d.ref.Name()] = true
	}
	return nil
}

func (x *exporting) sendTo(ctx context.Context, d destination, p *parcel, parts bool) error {
	root := p.root()
	if parts && p.index != nil {
		for _, img := range p.images {
			if err := d.repo.PushManifest(ctx, img.doc.Digest.String(), img.doc); err != nil {
				return err
			}
		}
		for _, a := range p.about {
			for _, raw := range a.blobs {
				if err := d.repo.PushBlob(ctx, raw); err != nil {
					return err
				}
			}
			if err := d.repo.PushManifest(ctx, a.doc.Digest.String(), a.doc); err != nil {
				return err
			}
		}
	}
	ref, tag := d.ref, root.Digest.String()
	if !x.opts.byDigest {
		ref = ref.WithDefaultTag()
		tag = ref.Tag
	}
	said := "pushing manifest for " + ref.String() + "@" + root.Digest.String()
	x.say(said, 0, 0, false)
	if err := d.repo.PushManifest(ctx, tag, root); err != nil {
		return err
	}
	x.say(said, 0, 0, true)
	if !x.opts.store {
		return nil
	}
	for _, img := range p.images { // that the registry has them: a later push mounts and skips
		if err := x.Images.Pushed(context.WithoutCancel(ctx), ref, img.out.ID(), img.doc); err != nil {
			return err
		}
	}
	if p.index == nil {
		return nil
	}
	return x.Images.Pushed(context.WithoutCancel(ctx), ref, p.images[0].out.ID(), *p.index)
}

// keep puts images, attestations and the index into the store. The names move last.
func (x *exporting) keep(ctx context.Context, p *parcel, names []reference.Ref) error {
	x.say("exporting layers", 0, 0, true)
	for _, a := range p.about {
		release, err := x.Images.ReceiveArtifact(ctx, a.doc, a.fetch)
		if err != nil {
			return err
		}
		defer release()
		x.say("exporting attestation manifest "+a.doc.Digest.String(), 0, 0, true)
	}
	var all []image.CreateOptions
	for _, img := range p.images {
		all = append(all, image.CreateOptions{Config: img.t.config, Chain: img.t.chain, Manifest: &img.doc})
		x.say("exporting manifest "+img.doc.Digest.String(), 0, 0, true)
		x.say("exporting config "+img.out.ID().String(), 0, 0, true)
	}
	var img image.Image
	var err error
	if p.index == nil {
		all[0].Names = names
		img, err = x.Images.Create(ctx, all[0])
	} else {
		x.say("exporting manifest list "+p.index.Digest.String(), 0, 0, true)
		img, err = x.Images.CreateIndex(ctx, image.IndexOptions{Names: names, Index: *p.index, Images: all})
	}
	if err != nil {
		return err
	}
	for _, r := range x.extraNames() {
		if err := x.Images.Pushed(ctx, r, img.ID, p.root()); err != nil {
			return err
		}
	}
	for _, r := range names {
		x.say("naming to "+r.String(), 0, 0, true)
	}
	return nil
}

// leading is the image that a name leads to when no platform is asked for: this host's, else the first.
func (x *exporting) leading(p *parcel) int {
	best, score := 0, 0
	for i, img := range p.images {
		have := manifest.Platform{OS: img.t.platform.OS, Arch: img.t.platform.Architecture, Variant: img.t.platform.Variant}
		if n := x.Platform.Match(have); n > score {
			best, score = i, n
		}
	}
	return best
}

// extraNames are those that get the digest of the result.
func (x *exporting) extraNames() (all []reference.Ref) {
	if x.opts.canonical {
		all = append(all, x.opts.names...)
	}
	if x.opts.dangling != nil && (len(x.opts.names) == 0 || !x.opts.danglingOnly) {
		all = append(all, *x.opts.dangling)
	}
	return all
}

// response tells the asker what was made.
func (x *exporting) response(p *parcel) (map[string]string, error) {
	root := p.root()
	d := descriptor(root)
	d.Annotations = map[string]string{ocispec.AnnotationCreated: p.created.Format(time.RFC3339)}
	said := map[string]string{exptypes.ExporterImageDigestKey: root.Digest.String()}
	if p.index == nil {
		id := p.images[0].doc.Manifest.Config.Digest.String()
		said[exptypes.ExporterImageConfigDigestKey] = id
		d.Annotations[exptypes.ExporterConfigDigestKey] = id
		d.Platform = plain(p.images[0].t.platform)
	} else if len(p.images) == 1 {
		said[exptypes.ExporterImageConfigDigestKey] = p.images[0].doc.Manifest.Config.Digest.String()
	}
	raw, err := json.Marshal(d)
	if err != nil {
		return nil, err
	}
	said[exptypes.ExporterImageDescriptorKey] = base64.StdEncoding.EncodeToString(raw)
	if names := x.storeNames(); len(names) > 0 {
		said[exptypes.ExporterImageNameKey] = joinNames(names)
	} else if len(x.opts.names) > 0 {
		said[exptypes.ExporterImageNameKey] = joinNames(x.opts.names)
	}
	return said, nil
}
