package images

import (
	"context"
	"errors"
	"fmt"

	"github.com/opencontainers/go-digest"

	"corten.dev/corten/internal/build"
	"corten.dev/corten/internal/build/export"
	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/events"
	"corten.dev/corten/internal/image"
	"corten.dev/corten/internal/manifest"
	"corten.dev/corten/internal/reference"
)

// Built takes what was built to registries: the machinery of pushes, in the parts that builds need, because documents about layers are made when the layers have gone.
type Built struct{ s *Service }

// NewBuilt makes it over the service.
func NewBuilt(s *Service) *Built { return &Built{s: s} }

var _ export.Registry = (*Built)(nil)

// Repository implements export.Registry. Registries without TLS are the operator's to allow, not the asker's.
func (b *Built) Repository(ctx context.Context, name reference.Ref, session *build.Session, insecure bool) (export.Repository, error) {
	if insecure {
		return nil, errs.New(errs.Forbidden, "registry.insecure is not for a build to decide: name %s in insecure-registries of the engine's settings", name.Domain)
	}
	var asker build.Credentials
	if session != nil {
		asker = session.Credentials
	}
	creds, err := credentialsOf(ctx, asker, name.Domain)
	if err != nil {
		return nil, err
	}
	repo, err := b.s.Registry.Repository(name, creds)
	if err != nil {
		return nil, err
	}
	return &builtRepository{pushing{Service: b.s, repo: repo}, name}, nil
}

// credentialsOf asks the asker of a build what it is known by.
func credentialsOf(ctx context.Context, asker build.Credentials, domain string) (creds Credentials, err error) {
	if asker == nil {
		return creds, nil
	}
	user, secret, err := asker.Credentials(ctx, domain)
	if err != nil && !errors.Is(err, errs.NotFound) {
		return creds, fmt.Errorf("credentials of %s: %w", domain, err)
	}
	if user == "" {
		creds.IdentityToken = secret
	} else {
		creds.Username, creds.Password = user, secret
	}
	return creds, nil
}

type builtRepository struct {
	pushing
	ref reference.Ref
}

// PushLayers implements export.Repository.
func (r *builtRepository) PushLayers(ctx context.Context, out image.Outgoing, progress build.Progress) error {
	p := r.pushing // a call of its own has reports of its own
	p.reports = newReports()
	return p.during(ctx, r.Log, "push "+r.ref.Familiar(), tellPushes(out, progress), func(ctx context.Context) error { return p.layers(ctx, r.ref, out) })
}

// tellPushes translates the reports of a push to parts of a step.
func tellPushes(out image.Outgoing, progress build.Progress) Reporter {
	names := map[string]string{}
	for _, l := range out.Layers() {
		names[short(l.DiffID())] = "pushing layer " + l.DiffID().String()
	}
	return func(rep Report) {
		part, ok := names[rep.ID]
		if !ok || progress == nil {
			return
		}
		switch rep.Status {
		case "Preparing":
		case "Waiting", "Pushing":
			progress.Status(part, rep.Current, rep.Total, false)
		default: // Pushed, Layer already exists, Mounted from …
			progress.Status(part, rep.Total, rep.Total, true)
		}
	}
}

// PushBlob implements export.Repository.
func (r *builtRepository) PushBlob(ctx context.Context, raw []byte) error {
	return r.blob(ctx, digest.FromBytes(raw), raw)
}

// PushManifest implements export.Repository.
func (r *builtRepository) PushManifest(ctx context.Context, tagOrDigest string, doc manifest.Document) error {
	if err := r.repo.PushManifest(ctx, tagOrDigest, doc); err != nil {
		return err
	}
	if tagOrDigest == doc.Digest.String() {
		return nil
	}
	ref := r.ref
	ref.Tag = tagOrDigest
	r.Events.Publish(events.Event{Type: "image", Action: "push", ID: ref.Familiar(), Attributes: r.attributes(ctx, ref)})
	return nil
}
