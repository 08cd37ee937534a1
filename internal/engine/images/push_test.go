package images

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/image"
	"corten.dev/corten/internal/manifest"
)

// sending is an image of the store in memory on its way out.
type sending struct {
	s   *memStore
	img image.Image
	doc manifest.Document
}

type sendingLayer struct {
	s    *memStore
	data string
}

// store keeps an image with its blobs, as if it had been pulled.
func (b *bench) keep(t *testing.T, tag string, p manifest.Platform, layers ...string) manifest.Document {
	t.Helper()
	tmp := newRegistry()
	doc := tmp.add(t, tag, p, layers...)
	inc, err := b.store.Receive(t.Context(), doc, tmp.blobs[doc.Manifest.Config.Digest])
	if err != nil {
		t.Fatal(err)
	}
	for i, l := range layers {
		if err := inc.Unpack(t.Context(), i, strings.NewReader(l)); err != nil {
			t.Fatal(err)
		}
		b.store.data[diffOf([]byte(l))] = l
	}
	names := parseAll(t, "reg.example/x@"+doc.Digest.String())
	if tag != "" {
		names = append(names, parseAll(t, "reg.example/x:"+tag)...)
	}
	if _, err := inc.Commit(t.Context(), names); err != nil {
		t.Fatal(err)
	}
	b.store.docs[doc.Manifest.Config.Digest] = doc
	return doc
}

func (s *memStore) Send(ctx context.Context, ref string, o image.SendOptions) ([]image.Outgoing, *manifest.Document, error) {
	img, err := s.Get(ctx, ref)
	if err != nil {
		return nil, nil, err
	}
	if ix, ok := s.indexes[ref]; ok && o.AllPlatforms {
		var all []image.Outgoing
		for _, d := range ix.Index.Manifests {
			for id, doc := range s.docs {
				if doc.Digest == d.Digest {
					all = append(all, &sending{s: s, img: s.images[id], doc: doc})
				}
			}
		}
		return all, &ix, nil
	}
	return []image.Outgoing{&sending{s: s, img: img, doc: s.docs[img.ID]}}, nil, nil
}

func (o *sending) ID() digest.Digest { return o.img.ID }
func (o *sending) Config() (ocispec.Descriptor, []byte) {
	return o.doc.Manifest.Config, o.img.Raw
}
func (o *sending) Layers() (all []image.OutgoingLayer) {
	for _, d := range o.img.Config.RootFS.DiffIDs {
		all = append(all, &sendingLayer{o.s, o.s.data[d]})
	}
	return all
}
func (o *sending) Manifest() (manifest.Document, error) {
	m, changed := *o.doc.Manifest, false
	m.Layers = slices.Clone(m.Layers)
	for i, d := range o.img.Config.RootFS.DiffIDs {
		if data := o.s.data[d]; o.s.went[data] {
			m.Layers[i].Digest, m.Layers[i].Size, changed = digest.FromString(o.s.anew[data]), int64(len(o.s.anew[data])), true
		}
	}
	if !changed {
		return o.doc, nil
	}
	raw, err := json.Marshal(m)
	if err != nil {
		return manifest.Document{}, err
	}
	return manifest.Parse("", raw)
}
func (o *sending) Close() error { return nil }

func (l *sendingLayer) DiffID() digest.Digest { return diffOf([]byte(l.data)) }
func (l *sendingLayer) Known() (ocispec.Descriptor, bool) {
	if !l.s.known {
		return ocispec.Descriptor{}, false
	}
	return ocispec.Descriptor{Digest: digest.FromString(l.data), Size: int64(len(l.data))}, true
}
func (l *sendingLayer) Size() int64 { return int64(len(l.data)) }
func (l *sendingLayer) Open(_ context.Context, off int64) (io.ReadCloser, error) {
	data := l.data
	if l.s.anew[data] != "" {
		data = l.s.anew[data]
	}
	return io.NopCloser(strings.NewReader(data[off:])), nil
}
func (l *sendingLayer) Sent(d ocispec.Descriptor) error {
	if anew := l.s.anew[l.data]; anew != "" && d.Digest == digest.FromString(anew) {
		l.s.mu.Lock()
		defer l.s.mu.Unlock()
		l.s.went[l.data] = true
		return nil
	}
	if d.Digest != digest.FromString(l.data) {
		return errors.New("sent something else")
	}
	return nil
}
func (l *sendingLayer) Origins() []string { return l.s.origins }

func TestPush(t *testing.T) {
	b := newBench(t)
	b.store.origins = []string{"docker.io/library/x", "reg.example/x", "reg.example/team/base"}
	doc := b.keep(t, "1", here, "base", "mid", "top")
	b.reg.blobs[digest.FromString("base")] = nil
	b.reg.elsewhere["team/base"] = map[digest.Digest]bool{digest.FromString("mid"): true}
	var l lines
	if err := b.Push(t.Context(), PushOptions{Ref: "reg.example/x:1"}, l.report); err != nil {
		t.Fatal(err)
	}
	id := func(s string) string { return short(diffOf([]byte(s))) + ": " }
	for _, want := range []string{"The push refers to repository [reg.example/x]", id("top") + "Preparing", id("base") + "Layer already exists", id("mid") + "Mounted from team/base", id("top") + "Pushed",
		"1: digest: " + doc.Digest.String() + " size: ", "aux 1 "} {
		if !strings.Contains(strings.Join(l.got, "\n"), want) {
			t.Errorf("no %q in\n%s", want, strings.Join(l.got, "\n"))
		}
	}
	if !slices.Equal(b.reg.asked, []string{"mount team/base", "mount team/base"}) || b.reg.tags["1"] != doc.Digest || !slices.Equal(b.store.pushed, []string{"reg.example/x@" + doc.Digest.String()}) {
		t.Error(b.reg.asked, b.reg.tags, b.store.pushed)
	}
	// What was never compressed is digested on its way.
	b.store.known = false
	b.keep(t, "2", here, "new")
	if err := b.Push(t.Context(), PushOptions{Ref: "reg.example/x", AllTags: true, Compression: "zstd"}, l.report); err != nil || len(b.reg.tags) != 2 {
		t.Error(err, b.reg.tags)
	}
	for ref, want := range map[string]string{"reg.example/y:1": "An image does not exist locally with the tag: reg.example/y", "reg.example/x@" + doc.Digest.String(): "cannot push a digest reference"} {
		if err := b.Push(t.Context(), PushOptions{Ref: ref}, l.report); err == nil || err.Error() != want {
			t.Error(ref, err)
		}
	}
	for _, o := range []PushOptions{{Ref: "x:1", AllTags: true}, {Ref: "x", Compression: "lzma"}} {
		if err := b.Push(t.Context(), o, l.report); !errors.Is(err, errs.Invalid) {
			t.Error(err)
		}
	}
}

func TestPushPlatforms(t *testing.T) {
	b := newBench(t)
	arm := manifest.Platform{OS: "linux", Arch: "arm64"}
	one, two := b.keep(t, "latest", here, "base", "amd"), b.keep(t, "", arm, "base", "arm")
	index := newRegistry().index(t, "", descOf(one, here), descOf(two, arm))
	b.store.indexes["reg.example/x:latest"] = index
	var l lines
	if err := b.Push(t.Context(), PushOptions{Ref: "reg.example/x"}, l.report); err != nil {
		t.Fatal(err)
	}
	if b.reg.tags["latest"] != index.Digest || len(b.reg.docs) != 3 || len(b.reg.tags) != 1 {
		t.Error(b.reg.tags, len(b.reg.docs))
	}
	if err := b.Push(t.Context(), PushOptions{Ref: "reg.example/x", Platform: "linux/amd64"}, l.report); err != nil || b.reg.tags["latest"] != one.Digest {
		t.Error(err, b.reg.tags)
	}
}

// A layer whose compressed form is neither kept nor can be made again goes out in another one. The image's manifest was a new one then, but its index still listed the old one, which the
// registry did not have: the push broke off with everything sent but the tag.
func TestPushAnew(t *testing.T) {
	b := newBench(t)
	arm := manifest.Platform{OS: "linux", Arch: "arm64"}
	one, two := b.keep(t, "latest", here, "base", "amd"), b.keep(t, "", arm, "base", "arm")
	unknown := manifest.Platform{OS: "unknown", Arch: "unknown"}
	about := b.keep(t, "", unknown, "statement") // the store in memory makes no difference
	other := b.keep(t, "", unknown, "another statement")
	entry := func(doc, of manifest.Document) ocispec.Descriptor {
		d := descOf(doc, unknown)
		d.Annotations = map[string]string{manifest.AnnotationReference: "attestation-manifest", manifest.AnnotationAbout: of.Digest.String()}
		return d
	}
	index := newRegistry().index(t, "", descOf(one, here), descOf(two, arm), entry(about, one), entry(other, two))
	b.store.indexes["reg.example/x:latest"] = index
	b.store.anew["amd"] = "the same in other bytes"
	var l lines
	if err := b.Push(t.Context(), PushOptions{Ref: "reg.example/x"}, l.report); err != nil {
		t.Fatal(err)
	}
	now := b.reg.docs[b.reg.tags["latest"]]
	if now.Index == nil || len(now.Index.Manifests) != 3 || now.Index.Manifests[1].Digest != two.Digest || now.Index.Manifests[2].Digest != other.Digest || now.Index.Manifests[0].Platform.Architecture != "amd64" {
		t.Fatalf("%s", now.Raw)
	}
	if got := b.reg.docs[now.Index.Manifests[0].Digest]; got.Manifest == nil || got.Manifest.Layers[1].Digest != digest.FromString("the same in other bytes") {
		t.Errorf("%s", got.Raw)
	}
	if !strings.Contains(strings.Join(l.got, "\n"), "was compressed anew, as "+digest.FromString("the same in other bytes").String()) {
		t.Error("nobody said so:", l.got)
	}
	if !slices.Equal(b.store.pushed, []string{"reg.example/x@" + now.Index.Manifests[0].Digest.String(), "reg.example/x@" + now.Digest.String()}) {
		t.Error(b.store.pushed)
	}
}
