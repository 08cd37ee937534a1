package images

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sort"
	"strings"
	"sync"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"corten.dev/corten/internal/content"
	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/events"
	"corten.dev/corten/internal/image"
	"corten.dev/corten/internal/manifest"
	"corten.dev/corten/internal/reference"
	"corten.dev/corten/internal/registry/client"
)

// memBlobs is a content room in memory.
type memBlobs struct {
	mu    sync.Mutex
	cond  *sync.Cond
	whole map[digest.Digest][]byte
	parts map[string][]byte
	open  map[string]bool
}

func newBlobs() *memBlobs {
	b := &memBlobs{whole: map[digest.Digest][]byte{}, parts: map[string][]byte{}, open: map[string]bool{}}
	b.cond = sync.NewCond(&b.mu)
	return b
}

type memIngest struct {
	b       *memBlobs
	name    string
	data    []byte
	ended   bool
	whole   bool
	restart int
}

func (b *memBlobs) Begin(name string) (Ingest, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.open[name] {
		return nil, errs.New(errs.Conflict, "busy")
	}
	b.open[name] = true
	return &memIngest{b: b, name: name, data: bytes.Clone(b.parts[name])}, nil
}

func (b *memBlobs) Open(_ context.Context, d digest.Digest) (io.ReadCloser, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	data, ok := b.whole[d]
	if !ok {
		return nil, errs.New(errs.NotFound, "blob %s: not found", d)
	}
	return io.NopCloser(bytes.NewReader(data)), nil
}

func (b *memBlobs) Stat(_ context.Context, d digest.Digest) (content.Info, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	data, ok := b.whole[d]
	if !ok {
		return content.Info{}, errs.New(errs.NotFound, "blob %s: not found", d)
	}
	return content.Info{Digest: d, Size: int64(len(data))}, nil
}

func (b *memBlobs) Delete(_ context.Context, d digest.Digest) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.whole, d)
	return nil
}

func (in *memIngest) Write(p []byte) (int, error) {
	in.b.mu.Lock()
	defer in.b.mu.Unlock()
	in.data = append(in.data, p...)
	in.b.cond.Broadcast()
	return len(p), nil
}

func (in *memIngest) Size() int64 { in.b.mu.Lock(); defer in.b.mu.Unlock(); return int64(len(in.data)) }

func (in *memIngest) Restart() error {
	in.b.mu.Lock()
	defer in.b.mu.Unlock()
	in.data = nil
	in.restart++
	in.b.cond.Broadcast()
	return nil
}

func (in *memIngest) Commit(want digest.Digest, size int64) (content.Info, error) {
	in.b.mu.Lock()
	defer in.b.mu.Unlock()
	if digest.FromBytes(in.data) != want || int64(len(in.data)) != size {
		return content.Info{}, errs.New(errs.Invalid, "blob digest is %s, expected %s", digest.FromBytes(in.data), want)
	}
	in.b.whole[want] = in.data
	delete(in.b.parts, in.name)
	in.finish()
	in.whole = true
	return content.Info{Digest: want, Size: size}, nil
}

func (in *memIngest) finish() {
	in.ended = true
	delete(in.b.open, in.name)
	in.b.cond.Broadcast()
}

func (in *memIngest) Abort() error {
	in.b.mu.Lock()
	defer in.b.mu.Unlock()
	delete(in.b.parts, in.name)
	in.finish()
	return nil
}

func (in *memIngest) Close() error {
	in.b.mu.Lock()
	defer in.b.mu.Unlock()
	if !in.ended {
		in.b.parts[in.name] = in.data
		in.finish()
	}
	return nil
}

type memFollow struct {
	in  *memIngest
	ctx context.Context
	off int
	gen int
}

func (in *memIngest) Follow(ctx context.Context) io.ReadCloser {
	in.b.mu.Lock()
	defer in.b.mu.Unlock()
	context.AfterFunc(ctx, func() { in.b.mu.Lock(); defer in.b.mu.Unlock(); in.b.cond.Broadcast() })
	return &memFollow{in: in, ctx: ctx, gen: in.restart}
}

func (f *memFollow) Close() error { return nil }

func (f *memFollow) Read(p []byte) (int, error) {
	b := f.in.b
	b.mu.Lock()
	defer b.mu.Unlock()
	for {
		switch {
		case f.ctx.Err() != nil:
			return 0, f.ctx.Err()
		case f.gen != f.in.restart:
			return 0, errors.New("began anew")
		case f.off < len(f.in.data):
			n := copy(p, f.in.data[f.off:])
			f.off += n
			return n, nil
		case f.in.whole:
			return 0, io.EOF
		case f.in.ended:
			return 0, errors.New("the download ended")
		}
		b.cond.Wait()
	}
}

// memStore is the image room in memory: layers are plain bytes, their diff id is the digest of "plain" + blob.
type memStore struct {
	image.Store     // nil: what is not here is not to be called
	image.Platforms // likewise
	blobs           *memBlobs
	mu              sync.Mutex
	images          map[digest.Digest]image.Image
	names           map[string]digest.Digest
	layers          map[digest.Digest]bool          // by diff id
	busy            map[digest.Digest]chan struct{} // diff ids that are being unpacked
	unpacks         int
	unpacking       func(i int, r io.Reader) // called with each unpacking
	indexes         map[string]manifest.Document
	artifacts       []digest.Digest
	pushed          []string
	origins         []string
	known           bool
	anew            map[string]string                   // layers that cannot be had as they came: what is sent instead
	went            map[string]bool                     // of these, the ones that were sent
	data            map[digest.Digest]string            // layers by diff id, for sending
	docs            map[digest.Digest]manifest.Document // by image
}

func newStore(b *memBlobs) *memStore {
	return &memStore{blobs: b, images: map[digest.Digest]image.Image{}, names: map[string]digest.Digest{}, layers: map[digest.Digest]bool{}, busy: map[digest.Digest]chan struct{}{}, indexes: map[string]manifest.Document{}, known: true, anew: map[string]string{}, went: map[string]bool{},
		data: map[digest.Digest]string{}, docs: map[digest.Digest]manifest.Document{}}
}

func (s *memStore) Get(_ context.Context, ref string) (image.Image, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	id := digest.Digest(ref)
	if r, err := reference.Parse(ref); err == nil && s.names[r.WithDefaultTag().String()] != "" {
		id = s.names[r.WithDefaultTag().String()]
	}
	img, ok := s.images[id]
	if !ok {
		return img, errs.New(errs.NotFound, "No such image: %s", ref)
	}
	for name, other := range s.names {
		r, _ := reference.Parse(name)
		if other == id && r.Digest != "" {
			img.Digests = append(img.Digests, r.Familiar())
		} else if other == id {
			img.Tags = append(img.Tags, r.Familiar())
		}
	}
	sort.Strings(img.Tags)
	return img, nil
}

// GetFor knows no other platforms.
func (s *memStore) GetFor(ctx context.Context, ref string, _ manifest.Platform) (image.Image, error) {
	return s.Get(ctx, ref)
}

func (s *memStore) List(ctx context.Context) (list []image.Image, err error) {
	for id := range s.images {
		img, err := s.Get(ctx, id.String())
		if err != nil {
			return nil, err
		}
		list = append(list, img)
	}
	return list, nil
}

type memIncoming struct {
	s      *memStore
	doc    manifest.Document
	raw    []byte
	cfg    image.Config
	layers []image.IncomingLayer
	got    []bool
	kept   []bool
}

func (s *memStore) Receive(_ context.Context, doc manifest.Document, raw []byte) (image.Incoming, error) {
	cfg, err := image.ParseConfig(raw)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	in := &memIncoming{s: s, doc: doc, raw: raw, cfg: cfg, got: make([]bool, len(cfg.RootFS.DiffIDs)), kept: make([]bool, len(cfg.RootFS.DiffIDs))}
	for i, d := range cfg.RootFS.DiffIDs {
		in.layers = append(in.layers, image.IncomingLayer{Blob: doc.Manifest.Layers[i], DiffID: d, Have: s.layers[d]})
		in.got[i] = s.layers[d]
	}
	return in, nil
}

func (in *memIncoming) Layers() []image.IncomingLayer { return in.layers }

func (in *memIncoming) Unpack(ctx context.Context, i int, r io.Reader) error {
	diff := in.layers[i].DiffID
	for {
		in.s.mu.Lock()
		if in.s.layers[diff] {
			in.got[i] = true
			in.s.mu.Unlock()
			return nil
		}
		wait := in.s.busy[diff]
		if wait == nil {
			in.s.busy[diff] = make(chan struct{})
			in.s.unpacks++
			in.s.mu.Unlock()
			break
		}
		in.s.mu.Unlock()
		select {
		case <-wait:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	whole := false
	defer func() {
		in.s.mu.Lock()
		defer in.s.mu.Unlock()
		close(in.s.busy[diff])
		delete(in.s.busy, diff)
		if whole {
			in.s.layers[diff], in.got[i] = true, true
		}
	}()
	if in.s.unpacking != nil {
		in.s.unpacking(i, r)
	}
	data, err := io.ReadAll(r)
	if err == nil && diffOf(data) != diff {
		err = errs.New(errs.Invalid, "layer %d is not what the config says", i)
	}
	whole = err == nil
	return err
}

func (in *memIncoming) Keep(_ context.Context, i int, blob ocispec.Descriptor) error {
	in.s.blobs.mu.Lock()
	defer in.s.blobs.mu.Unlock()
	if _, ok := in.s.blobs.whole[blob.Digest]; !ok {
		return errs.New(errs.NotFound, "blob %s: not found", blob.Digest)
	}
	delete(in.s.blobs.whole, blob.Digest)
	return nil
}

func (in *memIncoming) Commit(ctx context.Context, names []reference.Ref) (image.Image, error) {
	for i, ok := range in.got {
		if !ok {
			return image.Image{}, fmt.Errorf("layer %d is not unpacked", i)
		}
	}
	id := digest.FromBytes(in.raw)
	in.s.mu.Lock()
	in.s.images[id] = image.Image{ID: id, Config: in.cfg, Raw: in.raw}
	for _, n := range names {
		in.s.names[n.String()] = id
	}
	in.s.mu.Unlock()
	return in.s.Get(ctx, id.String())
}

func (in *memIncoming) Close() error { return nil }

func (s *memStore) ReceiveArtifact(ctx context.Context, doc manifest.Document, fetch func(context.Context, ocispec.Descriptor) ([]byte, error)) (func(), error) {
	for _, d := range append([]ocispec.Descriptor{doc.Manifest.Config}, doc.Manifest.Layers...) {
		if _, err := fetch(ctx, d); err != nil {
			return nil, err
		}
	}
	s.artifacts = append(s.artifacts, doc.Digest)
	return func() {}, nil
}

func (s *memStore) AddIndex(_ context.Context, name reference.Ref, index manifest.Document) error {
	s.indexes[name.String()] = index
	return nil
}

func (s *memStore) Pushed(_ context.Context, name reference.Ref, _ digest.Digest, doc manifest.Document) error {
	s.pushed = append(s.pushed, name.FamiliarName()+"@"+doc.Digest.String())
	return nil
}

func diffOf(blob []byte) digest.Digest { return digest.FromString("plain" + string(blob)) }

// memRegistry has one repository and counts what it is asked.
type memRegistry struct {
	client.Registry
	mu        sync.Mutex
	tags      map[string]digest.Digest
	docs      map[digest.Digest]manifest.Document
	blobs     map[digest.Digest][]byte
	elsewhere map[string]map[digest.Digest]bool // what other repositories have
	fetched   map[digest.Digest]int64           // bytes
	fetches   map[digest.Digest]int
	asked     []string
	gate      map[digest.Digest]chan struct{} // the second half of a blob waits for it
	fail      map[digest.Digest]error         // after the first half
	bug       digest.Digest                   // of this blob, and of any that is pushed
	atOnce    int
	most      int
}

func newRegistry() *memRegistry {
	return &memRegistry{tags: map[string]digest.Digest{}, docs: map[digest.Digest]manifest.Document{}, blobs: map[digest.Digest][]byte{}, elsewhere: map[string]map[digest.Digest]bool{},
		fetched: map[digest.Digest]int64{}, fetches: map[digest.Digest]int{}, gate: map[digest.Digest]chan struct{}{}, fail: map[digest.Digest]error{}}
}

func (r *memRegistry) Repository(ref reference.Ref, _ client.Credentials) (client.Repository, error) {
	return &memRepo{r: r}, nil
}

type memRepo struct {
	client.Repository
	r *memRegistry
}

func (p *memRepo) find(key string) (manifest.Document, error) {
	p.r.mu.Lock()
	defer p.r.mu.Unlock()
	d := digest.Digest(key)
	if !strings.Contains(key, ":") {
		d = p.r.tags[key]
	}
	doc, ok := p.r.docs[d]
	if !ok {
		return doc, errs.New(errs.NotFound, "manifest for %s not found: manifest unknown", key)
	}
	return doc, nil
}

func (p *memRepo) note(what string) {
	p.r.mu.Lock()
	p.r.asked = append(p.r.asked, what)
	p.r.mu.Unlock()
}

func (p *memRepo) Resolve(_ context.Context, key string) (manifest.Document, error) {
	p.note("GET " + key)
	return p.find(key)
}

func (p *memRepo) Head(_ context.Context, key string) (ocispec.Descriptor, error) {
	p.note("HEAD " + key)
	doc, err := p.find(key)
	return ocispec.Descriptor{MediaType: doc.MediaType, Digest: doc.Digest, Size: int64(len(doc.Raw))}, err
}

func (p *memRepo) Tags(context.Context) (tags []string, err error) {
	for t := range p.r.tags {
		tags = append(tags, t)
	}
	sort.Strings(tags)
	return tags, nil
}

func (p *memRepo) Blob(_ context.Context, d ocispec.Descriptor, _ int64) ([]byte, error) {
	p.note("config")
	if data, ok := p.r.blobs[d.Digest]; ok {
		return data, nil
	}
	return nil, errs.New(errs.NotFound, "blob unknown")
}

func (p *memRepo) Fetch(ctx context.Context, d ocispec.Descriptor, dst client.Sink) error {
	r := p.r
	r.mu.Lock()
	r.fetches[d.Digest]++
	r.atOnce++
	r.most = max(r.most, r.atOnce)
	data, gate, fail := r.blobs[d.Digest], r.gate[d.Digest], r.fail[d.Digest]
	r.mu.Unlock()
	defer func() { r.mu.Lock(); r.atOnce--; r.mu.Unlock() }()
	send := func(to int) error {
		part := data[dst.Size():to]
		r.mu.Lock()
		r.fetched[d.Digest] += int64(len(part))
		r.mu.Unlock()
		_, err := dst.Write(part)
		return err
	}
	if half := len(data) / 2; dst.Size() < int64(half) {
		if err := send(half); err != nil {
			return err
		}
	}
	if gate != nil {
		select {
		case <-gate:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if d.Digest == r.bug {
		panic("oh")
	}
	if fail != nil {
		return fail
	}
	return send(len(data))
}

func (p *memRepo) Has(_ context.Context, d digest.Digest) (bool, error) {
	p.r.mu.Lock()
	defer p.r.mu.Unlock()
	_, ok := p.r.blobs[d]
	return ok, nil
}

func (p *memRepo) Mount(_ context.Context, d digest.Digest, from string) (bool, error) {
	p.note("mount " + from)
	p.r.mu.Lock()
	defer p.r.mu.Unlock()
	if p.r.elsewhere[from][d] {
		p.r.blobs[d] = nil
		return true, nil
	}
	return false, nil
}

func (p *memRepo) Push(ctx context.Context, up client.Upload) (ocispec.Descriptor, error) {
	if p.r.bug != "" {
		panic("oh")
	}
	src, err := up.Open(ctx, 0)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	defer src.Close()
	data, err := io.ReadAll(src)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	if up.Progress != nil {
		up.Progress(int64(len(data)))
	}
	d := ocispec.Descriptor{Digest: digest.FromBytes(data), Size: int64(len(data))}
	if up.Digest != "" && up.Digest != d.Digest {
		return d, errs.New(errs.Invalid, "digest invalid")
	}
	p.r.mu.Lock()
	defer p.r.mu.Unlock()
	p.r.blobs[d.Digest] = data
	return d, nil
}

func (p *memRepo) PushManifest(_ context.Context, key string, doc manifest.Document) error {
	p.r.mu.Lock()
	defer p.r.mu.Unlock()
	if !strings.Contains(key, ":") {
		p.r.tags[key] = doc.Digest
	}
	if doc.Manifest != nil {
		for _, l := range append(doc.Manifest.Layers, doc.Manifest.Config) {
			if _, ok := p.r.blobs[l.Digest]; !ok {
				return errs.New(errs.Invalid, "blob unknown to registry")
			}
		}
	}
	if doc.Index != nil {
		for _, d := range doc.Index.Manifests {
			if _, ok := p.r.docs[d.Digest]; !ok {
				return errs.New(errs.Invalid, "manifest unknown to registry")
			}
		}
	}
	p.r.docs[doc.Digest] = doc
	return nil
}

// add puts an image of these layers into the registry.
func (r *memRegistry) add(t *testing.T, tag string, p manifest.Platform, layers ...string) manifest.Document {
	t.Helper()
	cfg := image.Config{Architecture: p.Arch, OS: p.OS, Variant: p.Variant, RootFS: image.RootFS{Type: "layers"}}
	cfg.Config.Labels = map[string]string{"tier": "front"}
	m := ocispec.Manifest{MediaType: manifest.OCIManifest, Layers: []ocispec.Descriptor{}}
	m.SchemaVersion = 2
	for _, l := range layers {
		d := ocispec.Descriptor{MediaType: manifest.OCILayerGzip, Digest: digest.FromString(l), Size: int64(len(l))}
		r.blobs[d.Digest] = []byte(l)
		m.Layers = append(m.Layers, d)
		cfg.RootFS.DiffIDs = append(cfg.RootFS.DiffIDs, diffOf([]byte(l)))
	}
	raw, err := json.Marshal(cfg)
	if err != nil {
		t.Fatal(err)
	}
	m.Config = ocispec.Descriptor{MediaType: manifest.OCIConfig, Digest: digest.FromBytes(raw), Size: int64(len(raw))}
	r.blobs[m.Config.Digest] = raw
	return r.put(t, tag, m)
}

func (r *memRegistry) put(t *testing.T, tag string, v any) manifest.Document {
	t.Helper()
	raw, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	doc, err := manifest.Parse("", raw)
	if err != nil {
		t.Fatal(err)
	}
	r.docs[doc.Digest] = doc
	if tag != "" {
		r.tags[tag] = doc.Digest
	}
	return doc
}

func (r *memRegistry) index(t *testing.T, tag string, entries ...ocispec.Descriptor) manifest.Document {
	t.Helper()
	ix := ocispec.Index{MediaType: manifest.OCIIndex, Manifests: entries}
	ix.SchemaVersion = 2
	return r.put(t, tag, ix)
}

func descOf(doc manifest.Document, p manifest.Platform) ocispec.Descriptor {
	return ocispec.Descriptor{MediaType: doc.MediaType, Digest: doc.Digest, Size: int64(len(doc.Raw)), Platform: &ocispec.Platform{OS: p.OS, Architecture: p.Arch, Variant: p.Variant}}
}

var here = manifest.Platform{OS: "linux", Arch: "amd64"}

// bench is a service over all that.
type bench struct {
	*Service
	reg   *memRegistry
	store *memStore
	blobs *memBlobs
}

func newBench(t *testing.T) *bench {
	b := &bench{reg: newRegistry(), blobs: newBlobs()}
	b.store = newStore(b.blobs)
	b.Service = New(Options{Store: b.store, Transfers: b.store, Blobs: b.blobs, Registry: b.reg, Events: &events.Bus{}, Platform: here})
	t.Cleanup(func() {
		if err := b.Close(); err != nil {
			t.Error(err)
		}
		if len(b.flights.all) > 0 {
			t.Errorf("%d downloads are left", len(b.flights.all))
		}
		b.blobs.mu.Lock()
		defer b.blobs.mu.Unlock()
		if len(b.blobs.open) > 0 {
			t.Errorf("ingests are left open: %v", b.blobs.open)
		}
	})
	return b
}

// lines collects reports as a pipe shows them.
type lines struct{ got []string }

func (l *lines) report(r Report) {
	s := r.Status
	if r.Pushed != nil {
		s = fmt.Sprintf("aux %s %d", r.Pushed.Tag, r.Pushed.Size)
	}
	if r.ID != "" {
		s = r.ID + ": " + s
	}
	if r.Total > 0 { // moving: each state once
		if len(l.got) > 0 && l.got[len(l.got)-1] == s+" …" {
			return
		}
		s += " …"
	}
	l.got = append(l.got, s)
}

func (l *lines) has(s string) bool { return strings.Contains(strings.Join(l.got, "\n")+"\n", s+"\n") }

func parseAll(t *testing.T, names ...string) (refs []reference.Ref) {
	t.Helper()
	for _, n := range names {
		r, err := reference.Parse(n)
		if err != nil {
			t.Fatal(err)
		}
		refs = append(refs, r)
	}
	return refs
}
