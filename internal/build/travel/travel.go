// Package travel takes the cache of builds to registries, folders and images, and gets it from there.
//
// It owns nothing on disk. Places are reached by small interfaces, layers come and go by the image room. It promises: what comes from elsewhere is bounded and verified before it is
// used (the shape of the document, the digest of every blob, the diff id of every layer, the chain by them), and a cache that is not right is left out with a warning; a place has a
// whole cache or what it had before.
//
// # The format
//
// It is BuildKit's (cache/remotecache/v1/types, "application/vnd.buildkit.cacheconfig.v0"): a manifest, or an index, whose config is the document and whose layers are the blobs. Our
// keys are other ones than BuildKit's, so neither finds anything in the other's cache; both can keep theirs in the same registries. What BuildKit's document has no words for stands in
// a field of our own, which BuildKit passes over:
//
//	layers, records      BuildKit's: blobs with their parents; keys, linked
//	corten.dev/cache     chains: tree of diff ids ◀── records: key, outputs (chains), inputs (keys), when and how long
//	                     mounts: what cache mounts hold (chains)
//
// So what a step gave is known from a record even where its layers were not exported (mode=min): a later step is found by it, and only if the layers are needed the step is run.
package travel

import (
	"context"
	"log/slog"
	"strings"

	"github.com/moby/buildkit/solver/pb"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"corten.dev/corten/internal/build"
	"corten.dev/corten/internal/build/solve"
	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/image"
	"corten.dev/corten/internal/manifest"
	"corten.dev/corten/internal/reference"
	"corten.dev/corten/internal/snapshot"
)

// Option is a place that a cache comes from or goes to: Type "registry", "local" or "inline", attributes as BuildKit names them.
type Option struct {
	Type  string
	Attrs map[string]string
}

// Source is a place that can be read.
type Source interface {
	// Resolve reads the manifest or index that a tag or digest leads to; errs.NotFound.
	Resolve(ctx context.Context, tagOrDigest string) (manifest.Document, error)
	// Blob reads a small blob, verified.
	Blob(ctx context.Context, d ocispec.Descriptor, limit int64) ([]byte, error)
	// Fetch brings the layers of an image here, verified by the diff ids of its config, and calls keep while nothing can take them away.
	Fetch(ctx context.Context, doc manifest.Document, config []byte, progress build.Progress, keep func(context.Context) error) error
}

// Target is a place that can be written.
type Target interface {
	Has(ctx context.Context, d digest.Digest) (bool, error)
	PushLayers(ctx context.Context, out image.Outgoing, progress build.Progress) error
	PushBlob(ctx context.Context, raw []byte) error
	PushManifest(ctx context.Context, tagOrDigest string, doc manifest.Document) error
}

// Places reaches sources and targets.
type Places interface {
	Registry(ctx context.Context, ref reference.Ref, session *build.Session) (Source, Target, error)
	// Layout reads an OCI layout of the asker.
	Layout(blobs build.Blobs, store string) Source
}

// Images is what exports need of the image room (image.Maker).
type Images interface {
	SendBuilt(ctx context.Context, opts image.CreateOptions, how image.Compression) (image.Outgoing, error)
	DropLayers(chains ...snapshot.ChainID)
}

// Trees is what this package needs of the snapshot room.
type Trees interface {
	Stat(ctx context.Context, chain snapshot.ChainID) (snapshot.Layer, error)
	Mount(ctx context.Context, key string) (*snapshot.Mounted, error)
	View(ctx context.Context, chain snapshot.ChainID) (*snapshot.Mounted, error)
	Commit(ctx context.Context, key string, without ...string) (snapshot.Layer, error)
	Changes(ctx context.Context, key string) ([]snapshot.Change, error)
}

// Mounts gives the trees of cache mounts (build/cache.Cache).
type Mounts interface {
	Acquire(ctx context.Context, id string, base snapshot.ChainID, sharing pb.CacheSharingOpt) (key string, release func(), err error)
}

// Result is what a build made (solve.Result).
type Result interface {
	// Walk gives each vertex that was evaluated, inputs first.
	Walk(fn func(solve.Step) error) error
	// Bring gives the output, its layers here.
	Bring(ctx context.Context) (build.Output, error)
}

// Job is the build that a cache is imported or exported for.
type Job struct {
	Session  *build.Session
	Progress build.Progress // is told of an export; may be nil
	// Begin tells that an import is read now, which is when it is first asked; done is called with the end of that. What happens meanwhile is told to p. Nil: nobody is told.
	Begin func(name string) (p build.Progress, done func(error))
}

// Options are what this package stands on.
type Options struct {
	Places Places
	Images Images
	Trees  Trees
	Cache  build.Cache
	Mounts Mounts // nil: cache mounts stay where they are
	Log    *slog.Logger
}

// Caches imports and exports. Its methods may be called concurrently.
type Caches struct{ opts Options }

// New makes it.
func New(opts Options) *Caches {
	if opts.Log == nil {
		opts.Log = slog.New(slog.DiscardHandler)
	}
	return &Caches{opts}
}

// Check refuses a place or attributes that are not known.
func (c *Caches) Check(o Option, export bool) error {
	_, err := parse(o, export)
	return err
}

// place is an Option, read.
type place struct {
	kind        string
	ref         reference.Ref
	store       string // of the asker, for a layout
	tag, digest string

	max, ignoreErrors bool
	asIndex           bool // image-manifest=false
	docker            bool // oci-mediatypes=false
	how               image.Compression
	mounts            mountChoice
}

// String names the place for people.
func (p *place) String() string {
	switch p.kind {
	case "registry":
		return p.ref.Familiar()
	case "local":
		return strings.TrimPrefix(p.store, "local:")
	}
	return p.kind
}

// tagOrDigest is what the place is asked for.
func (p *place) tagOrDigest() string {
	switch {
	case p.digest != "":
		return p.digest
	case p.kind == "registry" && p.ref.Digest != "":
		return p.ref.Digest
	case p.kind == "registry":
		return p.ref.Tag
	}
	return p.tag
}

// reach opens a place.
func (c *Caches) reach(ctx context.Context, p *place, session *build.Session) (Source, Target, error) {
	if p.kind == "registry" {
		return c.opts.Places.Registry(ctx, p.ref, session)
	}
	if session == nil || session.Blobs == nil {
		return nil, nil, errs.New(errs.Invalid, "the client offers no folder %s", p)
	}
	return c.opts.Places.Layout(session.Blobs, p.store), &folder{session.Blobs, p.store}, nil
}
