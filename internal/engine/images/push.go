package images

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sort"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/events"
	"corten.dev/corten/internal/image"
	"corten.dev/corten/internal/manifest"
	"corten.dev/corten/internal/reference"
	"corten.dev/corten/internal/registry/client"
	"corten.dev/corten/internal/task"
)

// Push implements [Registries].
//
//	layers side by side: asked for (HEAD) ─▶ mounted from another repository ─▶ sent ─┐
//	config ──────────────────────────────────────────────────────────────────────────┴─▶ manifest ─▶ [index] ─▶ written down
func (s *Service) Push(ctx context.Context, opts PushOptions, report Reporter) error {
	ref, err := reference.Parse(opts.Ref)
	if err != nil {
		return err
	}
	switch {
	case ref.Digest != "":
		return errs.New(errs.Invalid, "cannot push a digest reference")
	case opts.AllTags && ref.Tag != "":
		return errs.New(errs.Invalid, "tag can't be used with --all-tags/-a")
	case opts.Compression != "" && opts.Compression != "gzip" && opts.Compression != "zstd":
		return errs.New(errs.Invalid, "compression %q: choose gzip or zstd", opts.Compression)
	}
	send := image.SendOptions{AllPlatforms: opts.Platform == "", Platform: s.Platform, Compression: opts.Compression}
	if opts.Platform != "" {
		if send.Platform, err = manifest.ParsePlatform(opts.Platform); err != nil {
			return err
		}
	}
	refs, err := s.pushed(ctx, ref, opts.AllTags)
	if err != nil {
		return err
	}
	repo, err := s.Registry.Repository(ref, opts.Credentials)
	if err != nil {
		return err
	}
	p := &pushing{Service: s, repo: repo, send: send, reports: newReports()}
	return p.during(ctx, s.Log, "push "+ref.Familiar(), report, func(ctx context.Context) error {
		p.say(ctx, Report{Status: "The push refers to repository [" + ref.Name() + "]"})
		for _, one := range refs {
			if err := p.one(ctx, one); err != nil {
				return err
			}
			s.Events.Publish(events.Event{Type: "image", Action: "push", ID: one.Familiar(), Attributes: s.attributes(ctx, one)})
		}
		return nil
	})
}

// pushed are the names that are to go out.
func (s *Service) pushed(ctx context.Context, ref reference.Ref, all bool) ([]reference.Ref, error) {
	if !all {
		ref = ref.WithDefaultTag()
		if _, ok := s.local(ctx, ref); !ok {
			return nil, errs.New(errs.NotFound, "An image does not exist locally with the tag: %s", ref.FamiliarName())
		}
		return []reference.Ref{ref}, nil
	}
	list, err := s.Store.List(ctx)
	if err != nil {
		return nil, err
	}
	var refs []reference.Ref
	for _, img := range list {
		for _, tag := range img.Tags {
			if one, err := reference.Parse(tag); err == nil && one.Name() == ref.Name() {
				refs = append(refs, one)
			}
		}
	}
	if len(refs) == 0 {
		return nil, errs.New(errs.NotFound, "An image does not exist locally with the tag: %s", ref.FamiliarName())
	}
	sort.Slice(refs, func(i, j int) bool { return refs[i].Tag < refs[j].Tag })
	return refs, nil
}

// pushing is one call of Push.
type pushing struct {
	*Service
	repo client.Repository
	send image.SendOptions
	reports
}

// one pushes what one name leads to.
func (p *pushing) one(ctx context.Context, ref reference.Ref) error {
	all, index, err := p.Transfers.Send(ctx, ref.Familiar(), p.send)
	if err != nil {
		return err
	}
	defer func() {
		for _, out := range all {
			_ = out.Close() // it only lets go
		}
	}()
	if len(all) == 0 {
		return errs.New(errs.NotFound, "nothing of %s is here for platform %s", ref.Familiar(), p.send.Platform)
	}
	last, err := p.images(ctx, ref, all, index)
	if err != nil {
		return err
	}
	if err := p.Transfers.Pushed(context.WithoutCancel(ctx), ref, all[0].ID(), last); err != nil {
		return err
	}
	p.say(ctx, Report{Status: fmt.Sprintf("%s: digest: %s size: %d", ref.Tag, last.Digest, len(last.Raw))})
	p.say(ctx, Report{Pushed: &PushedTag{Tag: ref.Tag, Digest: last.Digest.String(), Size: len(last.Raw)}})
	return nil
}

// images pushes all that Send gave, and gives what the tag leads to then.
func (p *pushing) images(ctx context.Context, ref reference.Ref, all []image.Outgoing, index *manifest.Document) (last manifest.Document, err error) {
	if index == nil {
		return p.image(ctx, ref, all[0], ref.Tag)
	}
	changed := map[digest.Digest]manifest.Document{}
	for _, out := range all {
		was, err := out.Manifest() // as long as nothing was sent, the one that the index lists
		if err != nil {
			return last, err
		}
		now, err := p.image(ctx, ref, out, "")
		if err != nil {
			return last, err
		}
		if now.Digest != was.Digest {
			changed[was.Digest] = now
			if err := p.Transfers.Pushed(context.WithoutCancel(ctx), ref, out.ID(), now); err != nil {
				return last, err
			}
		}
	}
	last = *index
	if len(changed) > 0 {
		if last, err = index.Replaced(changed); err != nil {
			return last, err
		}
	}
	return last, p.repo.PushManifest(ctx, ref.Tag, last)
}

// image pushes one image, under a tag or, without one, under its digest.
func (p *pushing) image(ctx context.Context, ref reference.Ref, out image.Outgoing, tag string) (doc manifest.Document, err error) {
	if err := p.layers(ctx, ref, out); err != nil {
		return doc, err
	}
	desc, raw := out.Config()
	if err := p.blob(ctx, desc.Digest, raw); err != nil {
		return doc, fmt.Errorf("config of the image: %w", err)
	}
	if doc, err = out.Manifest(); err != nil {
		return doc, err
	}
	if tag == "" {
		tag = doc.Digest.String()
	}
	return doc, p.repo.PushManifest(ctx, tag, doc)
}

// layers pushes the layers of one image, side by side. One that it has more than once goes once.
func (p *pushing) layers(ctx context.Context, ref reference.Ref, out image.Outgoing) error {
	var todo []*departing
	seen := map[digest.Digest]*departing{}
	layers := out.Layers()
	for i := len(layers) - 1; i >= 0; i-- { // from the top, as Docker lists them
		l := layers[i]
		if first := seen[l.DiffID()]; first != nil {
			first.twins = append(first.twins, l)
			continue
		}
		a := &departing{pushing: p, ref: ref, layer: l, id: short(l.DiffID())}
		seen[l.DiffID()] = a
		p.say(ctx, Report{ID: a.id, Status: "Preparing", Layer: true})
		todo = append(todo, a)
	}
	return task.SideBySide(ctx, p.Log, "push layers of "+ref.Familiar(), len(todo), func(ctx context.Context, n int) error { return todo[n].depart(ctx) })
}

// blob pushes a small blob.
func (p *pushing) blob(ctx context.Context, d digest.Digest, raw []byte) error {
	if has, err := p.repo.Has(ctx, d); err != nil || has {
		return err
	}
	_, err := p.repo.Push(ctx, client.Upload{Digest: d, Size: int64(len(raw)), Open: func(_ context.Context, offset int64) (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(raw[offset:])), nil
	}})
	return err
}

// departing is one layer on its way out.
type departing struct {
	*pushing
	ref   reference.Ref
	layer image.OutgoingLayer
	twins []image.OutgoingLayer // other layers of the image with the same files
	id    string
}

func (a *departing) tell(ctx context.Context, status string) {
	a.say(ctx, Report{ID: a.id, Status: status, Layer: true})
}

// depart gets the layer into the registry, with as little as possible.
func (a *departing) depart(ctx context.Context) error {
	if err := a.uploads.take(ctx, func() { a.tell(ctx, "Waiting") }); err != nil {
		return err
	}
	defer a.uploads.give()
	if desc, ok := a.layer.Known(); ok {
		has, err := a.repo.Has(ctx, desc.Digest)
		if err != nil {
			return err
		}
		if has {
			a.tell(ctx, "Layer already exists")
			return nil
		}
		from, err := a.mount(ctx, desc.Digest)
		if err != nil {
			return err
		}
		if from != "" {
			a.tell(ctx, "Mounted from "+from)
			return nil
		}
	}
	return a.upload(ctx)
}

// mount asks for the blob of another repository of the same registry; it gives the path of the one that had it.
func (a *departing) mount(ctx context.Context, d digest.Digest) (from string, err error) {
	const tries = 4 // as many repositories are asked for at most
	var origins []string
	for _, name := range a.layer.Origins() {
		origin, err := reference.Parse(name)
		if err == nil && origin.Domain == a.ref.Domain && origin.Path != a.ref.Path && !slices.Contains(origins, origin.Path) {
			origins = append(origins, origin.Path)
		}
	}
	for _, path := range origins[:min(len(origins), tries)] {
		ok, err := a.repo.Mount(ctx, d, path)
		switch {
		case ok:
			return path, nil
		case errors.Is(err, errs.Unauthorized), errors.Is(err, errs.Forbidden), errors.Is(err, errs.NotFound), err == nil:
			// not ours to read any more, or gone: the next one
		default:
			return "", err
		}
	}
	return "", nil
}

// upload sends the layer, and tells how far it is.
func (a *departing) upload(ctx context.Context) error {
	var sent atomic.Int64
	total := a.layer.Size()
	up := client.Upload{Size: -1, Open: a.layer.Open, Progress: sent.Store}
	var known digest.Digest
	if desc, ok := a.layer.Known(); ok {
		known, total = desc.Digest, desc.Size
		up.Digest, up.Size = desc.Digest, desc.Size
	}
	type result struct {
		desc ocispec.Descriptor
		err  error
	}
	done := make(chan result, 1)
	go func() {
		var r result
		defer func() { done <- r }()
		defer task.Contain(a.Log, "push layer "+a.id, &r.err)
		r.desc, r.err = a.repo.Push(ctx, up)
		if up.Digest != "" && errors.Is(r.err, errs.Invalid) && ctx.Err() == nil {
			// The form that is known cannot be had here any more: the layer goes out in another one, and the manifest with it.
			up.Digest, up.Size = "", -1
			r.desc, r.err = a.repo.Push(ctx, up)
		}
		r.desc.MediaType = "" // of the upload, not of the layer
	}()
	tick := time.NewTicker(reportEvery)
	defer tick.Stop()
	told := int64(-1)
	for {
		select {
		case <-tick.C:
			if now := sent.Load(); now != told {
				told = now
				a.say(ctx, Report{ID: a.id, Status: "Pushing", Layer: true, Current: now, Total: max(total, now)})
			}
		case r := <-done:
			if r.err != nil {
				return r.err
			}
			if r.desc.Digest != known {
				for _, l := range append([]image.OutgoingLayer{a.layer}, a.twins...) {
					if err := l.Sent(r.desc); err != nil {
						return err
					}
				}
			}
			if known != "" && r.desc.Digest != known {
				a.say(ctx, Report{Status: fmt.Sprintf("Layer %s was compressed anew, as %s: %s, as it came, is neither here nor in the registry, and cannot be made again. The digest of the image is another one now.", a.id, r.desc.Digest, known)})
			}
			a.tell(ctx, "Pushed")
			return nil
		}
	}
}
