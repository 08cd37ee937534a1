package images

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"corten.dev/corten/internal/build"
	"corten.dev/corten/internal/build/source/base"
	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/image"
	"corten.dev/corten/internal/manifest"
	"corten.dev/corten/internal/reference"
	"corten.dev/corten/internal/registry/client"
	"corten.dev/corten/internal/snapshot"
)

// Bases gives builds the images that they stand on. What it brings in gets no name and is no image of the store: who asked holds its layers.
//
//	Local    the store
//	Remote   HEAD tag ─▶ documents seen before, else the registry ─▶ platform ─▶ config      Fetch ─▶ the machinery of pulls, without its last step
//	Layout   the same, with the blobs of the asker in place of a registry
type Bases struct {
	s    *Service
	docs documents
}

// NewBases makes it over the service.
func NewBases(s *Service) *Bases { return &Bases{s: s} }

var _ base.Images = (*Bases)(nil)

// Local implements base.Images.
func (b *Bases) Local(ctx context.Context, ref reference.Ref, p manifest.Platform) (base.Image, error) {
	ref = ref.WithDefaultTag()
	name := ref.Familiar()
	if ref.Digest != "" {
		byDigest := ref
		byDigest.Tag = ""
		name = byDigest.Familiar()
	}
	img, err := b.local(ctx, name, p)
	if id, ok := shortID(ref); ok && errors.Is(err, errs.NotFound) {
		img, err = b.local(ctx, id, p)
	}
	if err != nil {
		return base.Image{}, err
	}
	found := base.Image{Config: img.Raw, DiffIDs: img.Config.RootFS.DiffIDs, Digest: digest.Digest(ref.Digest)}
	for _, known := range img.Digests {
		if repo, dgst, ok := strings.Cut(known, "@"); ok && found.Digest == "" && repo == ref.FamiliarName() {
			found.Digest = digest.Digest(dgst)
		}
	}
	return found, nil
}

func (b *Bases) local(ctx context.Context, name string, p manifest.Platform) (image.Image, error) {
	return b.s.Store.GetFor(ctx, name, p)
}

// shortID tells whether a name may be what people copied from `images`: "FROM 3f57d9401f8d" comes as docker.io/library/3f57d9401f8d:latest.
func shortID(ref reference.Ref) (string, bool) {
	id, ok := strings.CutPrefix(ref.Path, "library/")
	if !ok || ref.Domain != reference.DefaultDomain || ref.Tag != reference.DefaultTag || ref.Digest != "" || len(id) < 12 || strings.Trim(id, "0123456789abcdef") != "" {
		return "", false
	}
	return id, true
}

// Remote implements base.Images.
func (b *Bases) Remote(ctx context.Context, ref reference.Ref, p manifest.Platform, creds build.Credentials) (base.Image, error) {
	pull, ref, err := b.pulling(ctx, ref, p, creds)
	if err != nil {
		return base.Image{}, err
	}
	return b.find(ctx, pull, ref)
}

// Layout implements base.Images.
func (b *Bases) Layout(ctx context.Context, blobs build.Blobs, store, name string, p manifest.Platform) (base.Image, error) {
	ref := reference.Ref{Path: "oci-layout", Tag: name}
	if digest.Digest(name).Validate() == nil {
		ref.Tag, ref.Digest = "", name
	}
	pull := &pulling{Service: b.s, name: layoutName + store, platform: b.platform(p), repo: &layout{blobs: blobs, store: store}}
	return b.find(ctx, pull, ref)
}

func (b *Bases) platform(p manifest.Platform) manifest.Platform {
	if p == (manifest.Platform{}) {
		return b.s.Platform
	}
	return p
}

// layoutName stands in front of what is no repository of a registry.
const layoutName = "oci-layout/"

// pulling is a pull of one name that has not begun.
func (b *Bases) pulling(ctx context.Context, ref reference.Ref, p manifest.Platform, asker build.Credentials) (*pulling, reference.Ref, error) {
	var creds Credentials
	if asker != nil {
		user, secret, err := asker.Credentials(ctx, ref.Domain)
		if err != nil && !errors.Is(err, errs.NotFound) {
			return nil, ref, fmt.Errorf("credentials of %s: %w", ref.Domain, err)
		}
		if user == "" {
			creds.IdentityToken = secret
		} else {
			creds.Username, creds.Password = user, secret
		}
	}
	repo, err := b.s.Registry.Repository(ref, creds)
	if err != nil {
		return nil, ref, err
	}
	return &pulling{Service: b.s, name: ref.Name(), platform: b.platform(p), repo: b.docs.over(repo)}, ref.WithDefaultTag(), nil
}

// find reads the documents of an image.
func (b *Bases) find(ctx context.Context, p *pulling, ref reference.Ref) (img base.Image, err error) {
	top, doc, err := p.documents(ctx, ref)
	if err != nil {
		return img, err
	}
	if err := checkImage(ref, doc); err != nil {
		return img, err
	}
	raw, err := p.config(ctx, doc)
	if err != nil {
		return img, err
	}
	cfg, err := image.ParseConfig(raw)
	if err != nil {
		return img, err
	}
	if a, c := len(doc.Manifest.Layers), len(cfg.RootFS.DiffIDs); a != c {
		return img, errs.New(errs.Invalid, "manifest lists %d layers, the image config %d", a, c)
	}
	img = base.Image{Digest: top, Manifest: doc.Digest, Config: raw, DiffIDs: cfg.RootFS.DiffIDs}
	img.Fetch = func(ctx context.Context, n int, progress build.Progress, keep func(context.Context, snapshot.ChainID) error) error {
		once := *p // a call of its own has reports of its own
		return once.fetch(ctx, doc, raw, n, progress, func(ctx context.Context) error { return keep(ctx, img.Chain(n)) })
	}
	return img, nil
}

// documents finds what a name leads to, and the manifest of the platform.
func (p *pulling) documents(ctx context.Context, ref reference.Ref) (top digest.Digest, doc manifest.Document, err error) {
	doc, err = p.repo.Resolve(ctx, key(ref))
	if err != nil {
		return "", doc, denied(err, ref)
	}
	if ref.Digest != "" && doc.Digest.String() != ref.Digest {
		return "", doc, errs.New(errs.Invalid, "the answer for %s has the digest %s", ref.Familiar(), doc.Digest)
	}
	top = doc.Digest
	doc, err = p.choose(ctx, doc)
	return top, doc, err
}

// lowest is an image of which only the lowest layers are wanted.
type lowest struct {
	image.Incoming
	n int
}

func (l lowest) Layers() []image.IncomingLayer { return l.Incoming.Layers()[:l.n] }

// fetch is a pull up to where the image would get its name: keep is called there.
func (p *pulling) fetch(ctx context.Context, doc manifest.Document, raw []byte, n int, progress build.Progress, keep func(context.Context) error) (err error) {
	whole, err := p.Transfers.Receive(ctx, doc, raw)
	if err != nil {
		return err
	}
	inc := lowest{whole, n}
	defer func() { err = errors.Join(err, whole.Close()) }()
	p.reports = newReports()
	defer p.Service.grow()
	var todo []*arriving
	err = p.during(ctx, p.Log, "bring layers of "+p.name, tellParts(inc.Layers(), progress), func(ctx context.Context) (err error) {
		todo, err = p.layers(ctx, inc)
		return err
	})
	defer func() { p.release(todo, err) }()
	if err != nil {
		return err
	}
	// Layers that are made of others' files are waited for by Unpack: it needs no bytes for them.
	for i, l := range inc.Layers() {
		if l.Have {
			if err := whole.Unpack(ctx, i, eof{}); err != nil {
				return err
			}
		}
	}
	ctx = context.WithoutCancel(ctx) // from here on it is a matter of names
	if s, ok := whole.(settler); ok {
		origin := p.name
		if strings.HasPrefix(origin, layoutName) {
			origin = ""
		}
		if err := s.Settle(ctx, n, origin); err != nil {
			return err
		}
	}
	return keep(ctx)
}

// settler is an image that can give its layers without becoming one: what they were as blobs is remembered then, so that they go out with the same digests.
type settler interface {
	Settle(ctx context.Context, n int, origin string) error
}

type eof struct{}

func (eof) Read([]byte) (int, error) { return 0, io.EOF }

// tellParts translates the reports of a pull to parts of a step: "sha256:…" is what comes, "extracting sha256:…" what is unpacked.
func tellParts(layers []image.IncomingLayer, progress build.Progress) Reporter {
	blobs := map[string]ocispec.Descriptor{}
	for _, l := range layers {
		blobs[short(l.Blob.Digest)] = l.Blob
	}
	begun := map[string]bool{}
	return func(r Report) {
		d, ok := blobs[r.ID]
		if !ok || !r.Layer {
			return
		}
		part := d.Digest.String()
		switch r.Status {
		case "Pulling fs layer", "Waiting", "Downloading":
			begun[part] = true
			progress.Status(part, r.Current, d.Size, false)
		case "Download complete":
			progress.Status(part, d.Size, d.Size, true)
			delete(begun, part)
		case "Extracting":
			begun["extracting "+part] = true
			progress.Status("extracting "+part, r.Current, d.Size, false)
		case "Pull complete", "Already exists":
			for _, name := range []string{part, "extracting " + part} {
				if begun[name] {
					progress.Status(name, d.Size, d.Size, true)
					delete(begun, name)
				}
			}
		}
	}
}

// documents remembers manifests, indexes and configs by their digests, so that a rebuild asks a registry once for each name.
type documents struct {
	mu    sync.Mutex // guards what follows
	docs  map[digest.Digest]manifest.Document
	blobs map[digest.Digest][]byte
	bytes int
}

// maxDocuments is how many bytes are remembered; beyond it all is forgotten.
const maxDocuments = 16 << 20

func (d *documents) over(repo client.Repository) client.Repository { return &remembering{repo, d} }

func (d *documents) put(size int, set func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.docs == nil || d.bytes+size > maxDocuments {
		d.docs, d.blobs, d.bytes = map[digest.Digest]manifest.Document{}, map[digest.Digest][]byte{}, 0
	}
	d.bytes += size
	set()
}

// remembering is a repository that is asked once for what cannot change.
type remembering struct {
	client.Repository
	seen *documents
}

func (r *remembering) Resolve(ctx context.Context, name string) (manifest.Document, error) {
	dgst := digest.Digest(name)
	if dgst.Validate() != nil {
		head, err := r.Head(ctx, name)
		if err != nil || head.Digest.Validate() != nil {
			return r.resolve(ctx, name) // some registries do not answer HEAD, or without a digest
		}
		dgst = head.Digest
	}
	r.seen.mu.Lock()
	doc, ok := r.seen.docs[dgst]
	r.seen.mu.Unlock()
	if ok {
		return doc, nil
	}
	return r.resolve(ctx, name)
}

func (r *remembering) resolve(ctx context.Context, name string) (manifest.Document, error) {
	doc, err := r.Repository.Resolve(ctx, name)
	if err == nil {
		r.seen.put(len(doc.Raw), func() { r.seen.docs[doc.Digest] = doc })
	}
	return doc, err
}

func (r *remembering) Blob(ctx context.Context, d ocispec.Descriptor, limit int64) ([]byte, error) {
	r.seen.mu.Lock()
	raw, ok := r.seen.blobs[d.Digest]
	r.seen.mu.Unlock()
	if ok && int64(len(raw)) == d.Size {
		return raw, nil
	}
	raw, err := r.Repository.Blob(ctx, d, limit)
	if err == nil {
		r.seen.put(len(raw), func() { r.seen.blobs[d.Digest] = raw })
	}
	return raw, err
}

// Attestations implements base.Images.
func (b *Bases) Attestations(ctx context.Context, ref reference.Ref, platform manifest.Platform, predicates []string, creds build.Credentials) ([]digest.Digest, map[digest.Digest]base.Blob, error) {
	p, ref, err := b.pulling(ctx, ref, platform, creds)
	if err != nil {
		return nil, nil, err
	}
	blobs := map[digest.Digest]base.Blob{}
	root, err := p.repo.Resolve(ctx, key(ref))
	if err != nil {
		return nil, nil, denied(err, ref)
	}
	chain := []digest.Digest{root.Digest}
	blobs[root.Digest] = base.Blob{MediaType: root.MediaType, Data: root.Raw}
	if root.Index == nil {
		return append(chain, root.Digest), blobs, nil
	}
	doc, err := p.choose(ctx, root)
	if err != nil {
		return nil, nil, err
	}
	chain = append(chain, doc.Digest)
	blobs[doc.Digest] = base.Blob{MediaType: doc.MediaType, Data: doc.Raw}
	for _, d := range root.Index.Manifests {
		if d.Annotations["vnd.docker.reference.type"] != "attestation-manifest" || d.Annotations["vnd.docker.reference.digest"] != doc.Digest.String() {
			continue
		}
		att, err := p.entry(ctx, d)
		if err != nil {
			return nil, nil, fmt.Errorf("attestation %s: %w", d.Digest, err)
		}
		if att.Manifest == nil {
			return nil, nil, errs.New(errs.Invalid, "attestation %s is an index", d.Digest)
		}
		blobs[att.Digest] = base.Blob{MediaType: att.MediaType, Data: att.Raw}
		return append(chain, att.Digest), blobs, p.statements(ctx, att, predicates, blobs)
	}
	return chain, blobs, nil
}

// statements reads the statements of an attestation that are wanted.
func (p *pulling) statements(ctx context.Context, att manifest.Document, predicates []string, blobs map[digest.Digest]base.Blob) error {
	for _, l := range att.Manifest.Layers {
		for _, want := range predicates {
			if l.Annotations["in-toto.io/predicate-type"] != want {
				continue
			}
			raw, err := p.repo.Blob(ctx, l, image.MaxArtifacts)
			if err != nil {
				return fmt.Errorf("attestation %s: %w", l.Digest, err)
			}
			blobs[l.Digest] = base.Blob{MediaType: l.MediaType, Data: raw}
		}
	}
	return nil
}

// layout is an OCI layout of the asker as a repository that can be read.
type layout struct {
	client.Repository // the rest of the contract is never asked for
	blobs             build.Blobs
	store             string
}

func (l *layout) Resolve(ctx context.Context, name string) (manifest.Document, error) {
	want := ocispec.Descriptor{Digest: digest.Digest(name)}
	if want.Digest.Validate() != nil {
		raw, err := l.blobs.Ref(ctx, l.store, name)
		if err != nil {
			return manifest.Document{}, fmt.Errorf("oci-layout %s: %s: %w", l.store, name, err)
		}
		if err := json.Unmarshal(raw, &want); err != nil {
			return manifest.Document{}, errs.New(errs.Invalid, "oci-layout %s: %s: index.json: %w", l.store, name, err)
		}
		if err := manifest.Check(want); err != nil {
			return manifest.Document{}, errs.New(errs.Invalid, "oci-layout %s: %s: %w", l.store, name, err)
		}
	}
	raw, err := l.read(ctx, want.Digest, manifest.MaxSize)
	if err != nil {
		return manifest.Document{}, err
	}
	return manifest.Parse(want.MediaType, raw)
}

func (l *layout) Blob(ctx context.Context, d ocispec.Descriptor, limit int64) ([]byte, error) {
	if d.Size > limit {
		return nil, errs.New(errs.Invalid, "oci-layout %s: %s has %d bytes, more than %d", l.store, d.Digest, d.Size, limit)
	}
	return l.read(ctx, d.Digest, d.Size)
}

// read reads a whole blob and verifies it.
func (l *layout) read(ctx context.Context, want digest.Digest, limit int64) ([]byte, error) {
	r, _, err := l.blobs.Reader(ctx, l.store, want)
	if err != nil {
		return nil, fmt.Errorf("oci-layout %s: blob %s: %w", l.store, want, err)
	}
	raw, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err = errors.Join(err, r.Close()); err != nil {
		return nil, fmt.Errorf("oci-layout %s: blob %s: %w", l.store, want, err)
	}
	if int64(len(raw)) > limit {
		return nil, errs.New(errs.Invalid, "oci-layout %s: blob %s has more than %d bytes", l.store, want, limit)
	}
	if digest.FromBytes(raw) != want {
		return nil, errs.New(errs.Invalid, "oci-layout %s: blob %s has other bytes than its digest says", l.store, want)
	}
	return raw, nil
}

// Fetch gives a layer to an ingest, which verifies it.
func (l *layout) Fetch(ctx context.Context, d ocispec.Descriptor, dst client.Sink) error {
	if dst.Size() > 0 { // what is there of an earlier try is read again: the asker is near
		if err := dst.Restart(); err != nil {
			return err
		}
	}
	r, _, err := l.blobs.Reader(ctx, l.store, d.Digest)
	if err != nil {
		return fmt.Errorf("oci-layout %s: blob %s: %w", l.store, d.Digest, err)
	}
	stop := context.AfterFunc(ctx, func() { _ = r.Close() }) // ends a Read that waits; ctx says why
	defer stop()
	n, err := io.Copy(dst, io.LimitReader(r, d.Size))
	if err = errors.Join(err, r.Close()); err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return fmt.Errorf("oci-layout %s: blob %s: %w", l.store, d.Digest, err)
	}
	if n != d.Size {
		return errs.New(errs.Invalid, "oci-layout %s: blob %s has %d bytes, its manifest says %d", l.store, d.Digest, n, d.Size)
	}
	return nil
}
