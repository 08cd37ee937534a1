package image

import (
	"context"
	"errors"
	"fmt"
	"hash"
	"io"
	"sync"

	"crypto/sha256"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/image/recipe"
	"corten.dev/corten/internal/manifest"
	"corten.dev/corten/internal/snapshot"
	"corten.dev/corten/internal/task"
)

// outgoingLayer implements [OutgoingLayer].
//
// Which form of the layer goes out: the one of the image's manifest; for an image without one, the first form that can be had here; else any that is known, for
// registries that have it already. A form that can neither be opened nor made again (its blob was not kept, by the operator's wish) goes out as another form of
// the same layer, or freshly compressed, and the manifest with it: Open then gives other bytes than Known names, and Sent must be told.
type outgoingLayer struct {
	s       *Images
	diff    digest.Digest
	chain   snapshot.ChainID
	tarSize int64
	given   *ocispec.Descriptor // by the image's manifest
	first   recipe.Recipe       // for a first compression
	force   bool                // no other form will do
	durable bool                // what Sent is told is relied on

	mu    sync.Mutex // guards what follows
	known *ocispec.Descriptor
	sent  *ocispec.Descriptor
	made  map[digest.Digest]int64 // what first compressions turned out to be
}

var _ OutgoingLayer = (*outgoingLayer)(nil)

// choose finds out which form goes out.
func (l *outgoingLayer) choose(ctx context.Context) {
	if l.given != nil {
		l.known = l.given
		return
	}
	for _, f := range l.s.forms.get(l.diff) {
		desc := f.descriptor()
		if l.force && (f.Recipe == nil || !f.Recipe.Same(l.first)) {
			continue
		}
		if l.s.canMake(ctx, f) {
			l.known = &desc
			return
		}
		if l.known == nil {
			l.known = &desc
		}
	}
}

// canMake tells whether a form's bytes can be had here.
func (s *Images) canMake(ctx context.Context, f form) bool {
	return s.hasBlob(ctx, f.descriptor()) || f.Recipe != nil
}

// canMakeNow is canMake for who is going to rely on it, in the middle of an archive: a recipe that these compressors were not compared with yet is compared first.
func (s *Images) canMakeNow(ctx context.Context, diff digest.Digest, chain snapshot.ChainID, f form) (bool, error) {
	if s.hasBlob(ctx, f.descriptor()) {
		return true, nil
	}
	return s.proven(ctx, diff, chain, f)
}

// proven tells whether the recipe of a form gives the blob with the compressors of this program. One that does not is forgotten.
func (s *Images) proven(ctx context.Context, diff digest.Digest, chain snapshot.ChainID, f form) (bool, error) {
	return s.prove(diff, f, func(rec recipe.Recipe, w io.Writer) error { return s.compress(ctx, chain, rec, w) })
}

func (s *Images) prove(diff digest.Digest, f form, compress func(recipe.Recipe, io.Writer) error) (bool, error) {
	if !f.stale(s.compressors) {
		return f.Recipe != nil, nil
	}
	sum := &summer{w: io.Discard, h: sha256.New()}
	if err := compress(*f.Recipe, sum); err != nil {
		if errors.Is(err, errs.Invalid) { // not known to this version
			return false, s.disproved(diff, f, err)
		}
		return false, err
	}
	if got := digest.NewDigest(digest.SHA256, sum.h); got != f.Digest {
		return false, s.disproved(diff, f, fmt.Errorf("it gives %s", got))
	}
	return true, s.forms.edit(diff, f.descriptor(), false, func(f *form) { f.By = s.compressors })
}

// disproved forgets a recipe that does not give its blob.
func (s *Images) disproved(diff digest.Digest, f form, why error) error {
	s.log.Warn("compressed layer cannot be made again by this version: it goes out compressed anew, with another digest, to registries that do not have it",
		"layer", diff, "digest", f.Digest, "recipe", f.Recipe.Algo, "origins", f.Origins, "error", why)
	return s.forms.edit(diff, f.descriptor(), true, func(f *form) { f.Recipe, f.By = nil, "" })
}

// DiffID is OutgoingLayer's DiffID.
func (l *outgoingLayer) DiffID() digest.Digest { return l.diff }

// Known is OutgoingLayer's Known.
func (l *outgoingLayer) Known() (ocispec.Descriptor, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.known == nil {
		return ocispec.Descriptor{}, false
	}
	return *l.known, true
}

// current is the form that went out.
func (l *outgoingLayer) current() (ocispec.Descriptor, bool) {
	l.mu.Lock()
	sent := l.sent
	l.mu.Unlock()
	if sent != nil {
		return *sent, true
	}
	return l.Known()
}

// Size is OutgoingLayer's Size.
func (l *outgoingLayer) Size() int64 {
	if d, ok := l.Known(); ok {
		return d.Size
	}
	return l.tarSize
}

// Origins is OutgoingLayer's Origins.
func (l *outgoingLayer) Origins() []string {
	d, ok := l.Known()
	if !ok {
		return nil
	}
	f, _ := l.s.forms.find(l.diff, d.Digest)
	return append([]string(nil), f.Origins...)
}

// Sent is OutgoingLayer's Sent.
func (l *outgoingLayer) Sent(desc ocispec.Descriptor) error {
	if err := manifest.Check(desc); err != nil {
		return err
	}
	l.mu.Lock()
	size, ours := l.made[desc.Digest]
	ours = ours && size == desc.Size
	if desc.MediaType == "" {
		desc.MediaType = manifest.OCILayerGzip
		switch l.first.Algo {
		case recipe.Zstd:
			desc.MediaType = manifest.OCILayerZstd
		case recipe.Plain:
			desc.MediaType = manifest.OCILayer
		}
		if f, ok := l.s.forms.find(l.diff, desc.Digest); ok {
			desc.MediaType = f.MediaType
		}
	}
	l.sent = &ocispec.Descriptor{MediaType: desc.MediaType, Digest: desc.Digest, Size: desc.Size}
	l.mu.Unlock()
	if !ours {
		return nil
	}
	rec := l.first
	if err := l.s.forms.edit(l.diff, *l.sent, l.durable, func(f *form) { f.Recipe, f.By = &rec, l.s.compressors }); err != nil {
		return fmt.Errorf("remember layer %s: %w", l.diff, err)
	}
	return nil
}

// Open is OutgoingLayer's Open.
func (l *outgoingLayer) Open(ctx context.Context, offset int64) (io.ReadCloser, error) {
	r, err := l.open(ctx, offset)
	if err != nil {
		return nil, fmt.Errorf("open layer %s: %w", l.diff, err)
	}
	return r, nil
}

func (l *outgoingLayer) open(ctx context.Context, offset int64) (io.ReadCloser, error) {
	if offset < 0 {
		return nil, errs.New(errs.Invalid, "offset %d", offset)
	}
	if d, ok := l.Known(); ok {
		if r, err := l.openForm(ctx, d.Digest, offset); r != nil || err != nil {
			return r, err
		}
		for _, f := range l.s.forms.get(l.diff) {
			if r, err := l.openForm(ctx, f.Digest, offset); r != nil || err != nil {
				return r, err
			}
		}
	}
	return l.make(ctx, l.first, offset, func(got digest.Digest, size int64) error {
		l.mu.Lock()
		defer l.mu.Unlock()
		if l.made == nil {
			l.made = map[digest.Digest]int64{}
		}
		l.made[got] = size
		return nil
	}), nil
}

// openForm opens the blob, or makes it again. nil: neither is possible.
func (l *outgoingLayer) openForm(ctx context.Context, blob digest.Digest, offset int64) (io.ReadCloser, error) {
	file, _, err := l.s.blobs.Open(ctx, blob)
	if err == nil {
		if _, err := file.Seek(offset, io.SeekStart); err != nil {
			return nil, errs.Also(err, file.Close())
		}
		return file, nil
	}
	if !errors.Is(err, errs.NotFound) {
		return nil, err
	}
	rec := recipe.Recipe{Algo: recipe.Plain}
	if blob != l.diff {
		f, _ := l.s.forms.find(l.diff, blob)
		if ok, err := l.s.proven(ctx, l.diff, l.chain, f); !ok {
			return nil, err
		}
		rec = *f.Recipe
	}
	return l.make(ctx, rec, offset, func(got digest.Digest, _ int64) error {
		if got == blob {
			return nil
		}
		// It was compared, and yet. Whoever tries again gets another form.
		err := errs.New(errs.Invalid, "layer %s compressed again by %s gives %s, not %s", l.diff, rec.Algo, got, blob)
		if f, ok := l.s.forms.find(l.diff, blob); ok && f.Recipe != nil {
			err = errs.Also(err, l.s.disproved(l.diff, f, err))
		}
		return err
	}), nil
}

// make compresses the layer's tar while it is read. end hears what it turned out to be.
func (l *outgoingLayer) make(ctx context.Context, rec recipe.Recipe, offset int64, end func(digest.Digest, int64) error) io.ReadCloser {
	ctx, cancel := context.WithCancel(ctx)
	pr, pw := io.Pipe()
	done := make(chan struct{})
	go func() {
		defer close(done)
		var err error
		defer func() { pw.CloseWithError(err) }()
		defer task.Contain(l.s.log, "compress layer "+l.diff.String(), &err)
		sum := &summer{w: pw, h: sha256.New(), skip: offset}
		err = l.s.compress(ctx, l.chain, rec, sum)
		if err == nil {
			err = end(digest.NewDigest(digest.SHA256, sum.h), sum.n)
		}
		if err == nil && sum.skip > 0 {
			err = errs.New(errs.Invalid, "layer %s has %d bytes, fewer than %d", l.diff, sum.n, offset)
		}
	}()
	return &made{pr: pr, cancel: cancel, done: done}
}

// compress writes a layer by its recipe, on all processors.
func (s *Images) compress(ctx context.Context, chain snapshot.ChainID, rec recipe.Recipe, w io.Writer) error {
	zw, err := rec.NewWriter(w, processors())
	if err != nil {
		return err
	}
	return errs.Also(s.snaps.LayerTar(ctx, chain, zw), zw.Close())
}

// summer digests all and passes on what comes after the first skip bytes.
type summer struct {
	w    io.Writer
	h    hash.Hash
	n    int64
	skip int64
}

func (s *summer) Write(p []byte) (int, error) {
	s.h.Write(p)
	s.n += int64(len(p))
	rest := p[min(int64(len(p)), s.skip):]
	s.skip -= int64(len(p) - len(rest))
	if len(rest) > 0 {
		if n, err := s.w.Write(rest); err != nil {
			return len(p) - len(rest) + n, err
		}
	}
	return len(p), nil
}

// made is a stream that is being made. Close ends the making and waits for it.
type made struct {
	pr     *io.PipeReader
	cancel context.CancelFunc
	done   chan struct{}
}

func (m *made) Read(p []byte) (int, error) { return m.pr.Read(p) }

func (m *made) Close() error {
	m.cancel()
	err := m.pr.CloseWithError(errors.New("closed by the reader"))
	<-m.done
	return err
}
