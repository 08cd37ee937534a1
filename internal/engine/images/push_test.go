package images

import (
	"bytes"
	"context"
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
func (o *sending) Manifest() (manifest.Document, error) { return o.doc, nil }
func (o *sending) Close() error                         { return nil }

func (l *sendingLayer) DiffID() digest.Digest { return diffOf([]byte(l.data)) }
func (l *sendingLayer) Known() (ocispec.Descriptor, bool) {
	if !l.s.known {
		return ocispec.Descriptor{}, false
	}
	return ocispec.Descriptor{Digest: digest.FromString(l.data), Size: int64(len(l.data))}, true
}
func (l *sendingLayer) Size() int64 { return int64(len(l.data)) }
func (l *sendingLayer) Open(_ context.Context, off int64) (io.ReadCloser, error) {
	return io.NopCloser(bytes.NewReader([]byte(l.data)[off:])), nil
}
func (l *sendingLayer) Sent(d ocispec.Descriptor) error {
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
