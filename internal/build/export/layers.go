package export

import (
	"context"
	"errors"
	"io"
	"runtime"

	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/image"
	"corten.dev/corten/internal/image/recipe"
	"corten.dev/corten/internal/manifest"
	"corten.dev/corten/internal/snapshot"
)

// Which form of a layer goes out: the image room's own choice (as it came, or compressed for the first time) unless the exporter was asked for something that room does not choose:
// no compression, a level, or force.

// outgoing prepares the image of a target, whose config is finished, for going out.
func (x *exporting) outgoing(ctx context.Context, t *target) (image.Outgoing, error) {
	first := x.opts.compression
	if first == "uncompressed" {
		first = "gzip"
	}
	out, err := x.Images.SendConfig(ctx, t.config, image.SendOptions{Compression: first})
	if err != nil {
		return nil, err
	}
	chosen := &chosenForms{Outgoing: out}
	for i, l := range out.Layers() {
		l, err := x.choose(l, t.layers[i])
		if err != nil {
			return nil, errors.Join(err, out.Close())
		}
		chosen.layers = append(chosen.layers, l)
	}
	return chosen, nil
}

// chosenForms is an image some of whose layers go out in a form of our choice.
type chosenForms struct {
	image.Outgoing
	layers []image.OutgoingLayer
}

func (c *chosenForms) Layers() []image.OutgoingLayer { return c.layers }

// choose puts a layer of our own before the image room's, where the options ask for it.
func (x *exporting) choose(l image.OutgoingLayer, of snapshot.Layer) (image.OutgoingLayer, error) {
	o := x.opts
	known, ok := l.Known()
	switch {
	case o.compression == "" && o.level == nil, ok && !o.force, ok && o.level == nil && compressionOf(known.MediaType) == o.format():
		return l, nil
	case o.compression == "uncompressed":
		plain := ocispec.Descriptor{MediaType: manifest.OCILayer, Digest: of.DiffID, Size: of.TarSize}
		if err := l.Sent(plain); err != nil {
			return nil, err
		}
		return &freshLayer{OutgoingLayer: l, trees: x.Trees, of: of, rec: recipe.Recipe{Algo: recipe.Plain}, known: &plain}, nil
	case !ok && o.level == nil:
		return l, nil // the image room's first compression is the one asked for
	}
	rec, err := recipe.For(o.format())
	if err != nil {
		return nil, err
	}
	if o.level != nil {
		rec.Level = *o.level
		if rec.Algo == recipe.Zstd {
			rec.Level = int(zstd.EncoderLevelFromZstd(*o.level))
		}
	}
	return &freshLayer{OutgoingLayer: l, trees: x.Trees, of: of, rec: rec}, nil
}

// format is the compression for new layers.
func (o *options) format() string {
	if o.compression == "" {
		return "gzip"
	}
	return o.compression
}

func compressionOf(mediaType string) string {
	switch mediaType {
	case manifest.OCILayerZstd, manifest.DockerLayerTar + ".zstd":
		return "zstd"
	case manifest.OCILayer, manifest.DockerLayerTar:
		return "uncompressed"
	}
	return "gzip"
}

// freshLayer is a layer in a form that is made for this export. It tells the layer that it stands for, so that the manifest of the whole has it.
type freshLayer struct {
	image.OutgoingLayer
	trees Trees
	of    snapshot.Layer
	rec   recipe.Recipe
	known *ocispec.Descriptor
}

func (l *freshLayer) Known() (ocispec.Descriptor, bool) {
	if l.known == nil {
		return ocispec.Descriptor{}, false
	}
	return *l.known, true
}

func (l *freshLayer) Size() int64 { return l.of.TarSize }

func (l *freshLayer) Origins() []string { return nil }

func (l *freshLayer) Sent(desc ocispec.Descriptor) error {
	if desc.MediaType == "" {
		switch l.rec.Algo {
		case recipe.Plain:
			desc.MediaType = manifest.OCILayer
		case recipe.Zstd:
			desc.MediaType = manifest.OCILayerZstd
		default:
			desc.MediaType = manifest.OCILayerGzip
		}
	}
	return l.OutgoingLayer.Sent(desc)
}

func (l *freshLayer) Open(ctx context.Context, offset int64) (io.ReadCloser, error) {
	if offset < 0 {
		return nil, errs.New(errs.Invalid, "offset %d", offset)
	}
	return stream(ctx, func(ctx context.Context, w io.Writer) error {
		skip := &skipper{w: w, left: offset}
		zw, err := l.rec.NewWriter(skip, runtime.GOMAXPROCS(0))
		if err != nil {
			return err
		}
		err = errors.Join(l.trees.LayerTar(ctx, l.of.Chain, zw), zw.Close())
		if err == nil && skip.left > 0 {
			err = errs.New(errs.Invalid, "layer %s has fewer than %d bytes", l.of.DiffID, offset)
		}
		return err
	}), nil
}

// skipper passes on what comes after the first bytes.
type skipper struct {
	w    io.Writer
	left int64
}

func (s *skipper) Write(p []byte) (int, error) {
	rest := p[min(int64(len(p)), s.left):]
	skipped := len(p) - len(rest)
	s.left -= int64(skipped)
	if len(rest) == 0 {
		return len(p), nil
	}
	n, err := s.w.Write(rest)
	return skipped + n, err
}

// stream turns a writer into a reader. Close ends it and waits.
func stream(ctx context.Context, write func(ctx context.Context, w io.Writer) error) io.ReadCloser {
	ctx, cancel := context.WithCancel(ctx)
	pr, pw := io.Pipe()
	done := make(chan struct{})
	go func() {
		defer close(done)
		pw.CloseWithError(write(ctx, pw))
	}()
	return &streaming{pr, cancel, done}
}

type streaming struct {
	*io.PipeReader
	cancel context.CancelFunc
	done   chan struct{}
}

func (s *streaming) Close() error {
	s.cancel()
	err := s.CloseWithError(errors.New("closed by the reader"))
	<-s.done
	return err
}

// settle finds out what the layers turn out to be that nobody compressed yet, by compressing them. How is remembered: who sends them makes the same bytes again.
func settle(ctx context.Context, out image.Outgoing) error {
	for _, l := range out.Layers() {
		if _, ok := l.Known(); ok {
			continue
		}
		sum := digest.Canonical.Digester()
		n, err := pour(ctx, l, sum.Hash())
		if err != nil {
			return err
		}
		if err := l.Sent(ocispec.Descriptor{Digest: sum.Digest(), Size: n}); err != nil {
			return err
		}
	}
	return nil
}

// pour copies the bytes of a layer.
func pour(ctx context.Context, l image.OutgoingLayer, w io.Writer) (int64, error) {
	r, err := l.Open(ctx, 0)
	if err != nil {
		return 0, err
	}
	n, err := io.CopyBuffer(struct{ io.Writer }{w}, struct{ io.Reader }{r}, make([]byte, 256<<10))
	return n, errors.Join(err, r.Close())
}
