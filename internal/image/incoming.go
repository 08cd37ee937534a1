package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"corten.dev/corten/internal/compressed"
	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/manifest"
	"corten.dev/corten/internal/reference"
	"corten.dev/corten/internal/snapshot"
	"corten.dev/corten/internal/task"
)

// Limits bound what an image may be. The zero value means the defaults.
type Limits struct {
	// LayerBytes is what one layer may unpack to at most (default 128 GiB).
	LayerBytes int64
	// Ratio is how many times its compressed size a layer may unpack to once it is larger than RatioFrom (defaults 200, 4 GiB): a bomb is stopped there, while
	// an ordinary file of zeros passes.
	Ratio, RatioFrom int64
	// Entries is how many files one layer may have (default 4 million).
	Entries int64
}

func (l Limits) withDefaults() Limits {
	for _, d := range []struct {
		field *int64
		value int64
	}{{&l.LayerBytes, 128 << 30}, {&l.Ratio, 200}, {&l.RatioFrom, 4 << 30}, {&l.Entries, 4_000_000}} {
		if *d.field <= 0 {
			*d.field = d.value
		}
	}
	return l
}

// layer is the bound for one layer of that many compressed bytes.
func (l Limits) layer(compressed int64) int64 {
	byRatio := l.RatioFrom
	if compressed < l.LayerBytes/l.Ratio {
		byRatio = max(byRatio, compressed*l.Ratio)
	} else {
		byRatio = l.LayerBytes
	}
	return min(l.LayerBytes, byRatio)
}

// incoming implements [Incoming]. Its chains are held against removal until Close; each layer that is there or failed is told by its flight.
type incoming struct {
	s      *Images
	ctx    context.Context // ends with Close
	cancel context.CancelCauseFunc
	doc    manifest.Document
	cfg    Config
	raw    []byte
	id     digest.Digest
	layers []*incomingLayer
	held   []loose
	work   sync.WaitGroup
	once   sync.Once

	mu        sync.Mutex // guards what follows
	keeps     map[int]ocispec.Descriptor
	committed bool
	closed    bool
}

var errClosed = errs.New(errs.Unavailable, "the pull has ended")

// begin counts work that Close waits for.
func (in *incoming) begin() bool {
	in.mu.Lock()
	defer in.mu.Unlock()
	if !in.closed {
		in.work.Add(1)
	}
	return !in.closed
}

type incomingLayer struct {
	blob  ocispec.Descriptor
	diff  digest.Digest
	chain snapshot.ChainID
	have  bool

	mu   sync.Mutex // guards what follows
	busy bool       // an Unpack is at it
	end  bool       // done is closed
	err  error      // why it will not come; set before done is closed
	done chan struct{}
}

var _ Transfers = (*Images)(nil)

// Receive is Transfers' Receive.
func (s *Images) Receive(ctx context.Context, doc manifest.Document, config []byte) (Incoming, error) {
	in, err := s.receive(ctx, doc, config)
	if err != nil {
		return nil, fmt.Errorf("receive image: %w", err)
	}
	return in, nil
}

func (s *Images) receive(ctx context.Context, doc manifest.Document, config []byte) (*incoming, error) {
	if doc.Manifest == nil {
		return nil, errs.New(errs.Invalid, "%s is an index, not an image", doc.Digest)
	}
	id := digest.FromBytes(config)
	if want := doc.Manifest.Config.Digest; id != want {
		return nil, errs.New(errs.Invalid, "config has digest %s, its manifest says %s", id, want)
	}
	cfg, err := ParseConfig(config)
	if err != nil {
		return nil, err
	}
	if a, b := len(doc.Manifest.Layers), len(cfg.RootFS.DiffIDs); a != b {
		return nil, errs.New(errs.Invalid, "manifest lists %d layers, the image config %d", a, b)
	}
	in := &incoming{s: s, doc: doc, cfg: cfg, raw: config, id: id}
	var chain snapshot.ChainID
	for i, blob := range doc.Manifest.Layers {
		if manifest.IsForeign(blob.MediaType) {
			return nil, errs.New(errs.Invalid, "layer %d (%s) is a foreign layer, which its registry does not have", i+1, blob.Digest)
		}
		diff := cfg.RootFS.DiffIDs[i]
		chain = snapshot.ChainOf(chain, diff)
		in.layers = append(in.layers, &incomingLayer{blob: blob, diff: diff, chain: chain, done: make(chan struct{})})
		in.held = append(in.held, loose{name: chain}, loose{form: true, name: diff}, loose{blob: true, name: blob.Digest})
	}
	in.held = append(in.held, loose{config: true, name: id}, loose{config: true, name: doc.Digest})
	// Not of the caller's context: what was begun goes on until Close.
	in.ctx, in.cancel = context.WithCancelCause(context.WithoutCancel(ctx))
	s.gate.hold(in.held)
	s.busy.Add(1)
	in.look()
	if err := in.roomLeft(); err != nil {
		return nil, errs.Also(err, in.Close())
	}
	return in, nil
}

// look finds out which layers are there. Those whose files are known from other images are made of them at once, in the background.
func (in *incoming) look() {
	for i, l := range in.layers {
		if _, err := in.s.snaps.Stat(in.ctx, l.chain); err == nil {
			l.have = true
			l.finish(nil)
			continue
		}
		from, err := in.s.snaps.ByDiff(in.ctx, l.diff)
		if err != nil {
			continue
		}
		source := loose{name: from.Chain}
		in.s.gate.hold([]loose{source})
		in.held = append(in.held, source)
		if _, err := in.s.snaps.Stat(in.ctx, from.Chain); err != nil {
			continue // removed a moment ago
		}
		l.have, l.busy = true, true
		in.work.Go(func() {
			err := in.stack(in.ctx, i, nil)
			if err != nil {
				err = fmt.Errorf("layer %d (%s), which another image has: %w", i+1, l.diff, err)
			}
			l.finish(err)
		})
	}
}

// roomLeft compares what the missing layers need at least, which is their compressed size, with what the disk has.
func (in *incoming) roomLeft() error {
	var need int64
	for _, l := range in.layers {
		if !l.have {
			need += l.blob.Size
		}
	}
	if need == 0 {
		return nil
	}
	var st unix.Statfs_t
	if err := unix.Statfs(in.s.root, &st); err != nil {
		return nil // the writes will tell
	}
	if free := int64(st.Bavail) * int64(st.Bsize); free < need {
		return errs.New(errs.Unavailable, "no space left on device: the image needs more than %d MB, and there are %d MB free below %s", need>>20, free>>20, in.s.root)
	}
	return nil
}

func (l *incomingLayer) finish(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.end {
		l.end, l.err = true, err
		close(l.done)
	}
}

// wait returns when the layer is there, or why it never will be.
func (l *incomingLayer) wait(ctx context.Context) error {
	select {
	case <-l.done:
		return l.err
	default:
	}
	select {
	case <-l.done:
		return l.err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// Layers is Incoming's Layers.
func (in *incoming) Layers() []IncomingLayer {
	all := make([]IncomingLayer, len(in.layers))
	for i, l := range in.layers {
		all[i] = IncomingLayer{Blob: l.blob, DiffID: l.diff, Have: l.have}
	}
	return all
}

// Unpack is Incoming's Unpack. After an error it may be called again, with a reader that begins anew.
func (in *incoming) Unpack(ctx context.Context, i int, r io.Reader) error {
	if i < 0 || i >= len(in.layers) {
		return errs.New(errs.Invalid, "the image has no layer %d", i)
	}
	l := in.layers[i]
	l.mu.Lock()
	busy := l.busy || l.end
	l.busy = true
	l.mu.Unlock()
	if busy {
		return l.wait(ctx)
	}
	if !in.begin() {
		return errClosed
	}
	defer in.work.Done()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	unhook := context.AfterFunc(in.ctx, func() { cancel(context.Cause(in.ctx)) })
	defer unhook()
	err := in.stack(ctx, i, r)
	if err != nil {
		if cause := context.Cause(ctx); cause != nil && errors.Is(err, ctx.Err()) {
			err = cause
		}
		l.mu.Lock()
		l.busy = false // the next call may try again; layers above go on waiting
		l.mu.Unlock()
		return fmt.Errorf("layer %d (%s): %w", i+1, l.blob.Digest, err)
	}
	l.finish(nil)
	return nil
}

// stack puts layer i on the one below, which may still be on its way.
func (in *incoming) stack(ctx context.Context, i int, r io.Reader) (err error) {
	l := in.layers[i]
	defer task.Contain(in.s.log, "unpack layer "+l.diff.String(), &err)
	opts := snapshot.Stacking{MaxBytes: in.s.limits.layer(l.blob.Size), MaxEntries: in.s.limits.Entries}
	var parent snapshot.ChainID
	if i > 0 {
		below := in.layers[i-1]
		parent = below.chain
		opts.Ready = func(ctx context.Context) error {
			if err := below.wait(ctx); err != nil {
				return fmt.Errorf("the layer below is not to be had: %w", err)
			}
			return nil
		}
	}
	if r == nil {
		_, err := in.s.snaps.Stack(ctx, parent, l.diff, nil, opts)
		return err
	}
	plain := newPlain(ctx, r, in.s.log)
	_, err = in.s.snaps.Stack(ctx, parent, l.diff, plain, opts)
	if err != nil {
		plain.abort()
	}
	return errs.Also(err, plain.Close())
}

// plain gives the uncompressed bytes of a layer. It does not touch the source before it is read, and decompresses in a goroutine of its own.
type plain struct {
	ctx   context.Context
	src   io.Reader
	log   *slog.Logger
	ahead *ahead
	zr    io.ReadCloser
	err   error
}

func newPlain(ctx context.Context, src io.Reader, log *slog.Logger) *plain {
	return &plain{ctx: ctx, src: src, log: log}
}

func (p *plain) Read(b []byte) (int, error) {
	if p.ahead == nil && p.err == nil {
		p.zr, p.err = compressed.Reader(p.ctx, &ctxReader{p.ctx, p.src})
		if p.err == nil {
			p.ahead = readAhead(p.zr, p.log)
		}
	}
	if p.err != nil {
		return 0, p.err
	}
	return p.ahead.Read(p.ctx, b)
}

// abort ends a Read of the source that may be waiting for bytes which nobody wants any more.
func (p *plain) abort() {
	if c, ok := p.src.(io.Closer); ok {
		_ = c.Close() // the error that led here is the one to tell
	}
}

func (p *plain) Close() error {
	if p.ahead == nil {
		return nil
	}
	p.ahead.stop()
	return p.zr.Close()
}

// Commit is Incoming's Commit.
func (in *incoming) Commit(ctx context.Context, names []reference.Ref) (Image, error) {
	img, err := in.commit(ctx, names)
	if err != nil {
		return Image{}, fmt.Errorf("commit image: %w", err)
	}
	return img, nil
}

func (in *incoming) commit(ctx context.Context, names []reference.Ref) (Image, error) {
	for i, l := range in.layers {
		l.mu.Lock()
		coming := l.busy || l.end
		l.mu.Unlock()
		if !coming {
			return Image{}, errs.New(errs.Invalid, "layer %d (%s) was not unpacked", i+1, l.blob.Digest)
		}
		if err := l.wait(ctx); err != nil {
			return Image{}, err
		}
	}
	if _, err := in.s.blobs.Put(ctx, in.doc.Digest, int64(len(in.doc.Raw)), readerOf(in.doc.Raw)); err != nil {
		return Image{}, err
	}
	origin := ""
	if len(names) > 0 {
		origin = names[0].Name()
	}
	for _, l := range in.layers {
		if err := in.s.forms.edit(l.diff, l.blob, false, func(f *form) { f.origin(origin) }); err != nil {
			return Image{}, err
		}
	}
	tagged := make([]reference.Ref, len(names))
	for i, r := range names {
		tagged[i] = r.WithDefaultTag()
	}
	e, err := in.s.add(ctx, in.raw, tagged, in.doc.Digest)
	if err != nil {
		return Image{}, err
	}
	in.mu.Lock()
	keeps := in.keeps
	in.keeps, in.committed = nil, true
	in.mu.Unlock()
	for i, blob := range keeps {
		if err := in.s.keepBlob(ctx, in.layers[i].diff, blob); err != nil {
			return Image{}, err
		}
	}
	in.s.mu.RLock()
	defer in.s.mu.RUnlock()
	return in.s.describe(e), nil
}

// Keep is Incoming's Keep.
func (in *incoming) Keep(ctx context.Context, i int, blob ocispec.Descriptor) error {
	if i < 0 || i >= len(in.layers) {
		return errs.New(errs.Invalid, "the image has no layer %d", i)
	}
	if _, err := in.s.blobs.Stat(ctx, blob.Digest); err != nil {
		// Another pull of the same layer handed it over, and it is known how to make it again.
		if f, ok := in.s.forms.find(in.layers[i].diff, blob.Digest); ok && errors.Is(err, errs.NotFound) && (f.Recipe != nil || in.s.keep == KeepNever) {
			return nil
		}
		return fmt.Errorf("keep layer %d: %w", i+1, err)
	}
	in.mu.Lock()
	committed := in.committed
	if !committed {
		// Until the image is there, the blob stays as it is: when the pull is broken off, the next one need not fetch it again.
		if in.keeps == nil {
			in.keeps = map[int]ocispec.Descriptor{}
		}
		in.keeps[i] = blob
	}
	in.mu.Unlock()
	if committed {
		if err := in.s.keepBlob(ctx, in.layers[i].diff, blob); err != nil {
			return fmt.Errorf("keep layer %d: %w", i+1, err)
		}
	}
	return nil
}

// Close is Incoming's Close. What was not committed goes away, unless another image or another pull has it too.
func (in *incoming) Close() error {
	in.once.Do(func() {
		in.mu.Lock()
		in.closed = true
		in.mu.Unlock()
		in.cancel(errClosed)
		for _, l := range in.layers {
			l.finish(errClosed)
		}
		in.work.Wait()
		in.s.busy.Add(-1)
		in.s.gate.release(in.held)
		in.s.Sweep()
		in.s.keeper.look() // it may have been waiting for this one
	})
	return nil
}
