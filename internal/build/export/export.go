// Package export makes of a build's result what was asked for: an image in the store, in a registry or in an archive, a folder, an attestation about them.
//
// It owns nothing on disk beside unnamed files while an archive is written. It stands on the image and snapshot rooms; registries and the asker's outputs it knows by small interfaces.
// It promises: an image in the store is made of layers that are there, and nothing is copied for it; a name leads to the whole result or to what it led to before; equal inputs with
// a SOURCE_DATE_EPOCH give equal digests; an attribute that it does not know is refused before anything is built (Check).
//
// What becomes of a result:
//
//	              ┌─ type image ── config finished ─▶ Images.Create ─▶ [layers sent ─▶ manifests, attestations, index ─▶ sent, written down]
//	tree, config ─┼─ oci, docker ─ config finished ─▶ layers compressed ─▶ manifests, attestations, index ─▶ tar, or blobs of a layout
//	per platform  ├─ tar, local ── tree as tar, statements as files
//	              └─ cacheonly
package export

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"slices"
	"time"

	"github.com/moby/buildkit/exporter/containerimage/exptypes"
	"github.com/moby/buildkit/solver/result"
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

// Result is what a frontend gave, each reference solved to a tree; nil stands for the empty one. It is made of a gateway's result by result.ConvertResult.
type Result = result.Result[*build.Output]

// Spec is one thing to make of a result: the type and attributes of BuildKit's exporters, and the name of its stream in Session.Outputs.
type Spec struct {
	Type  string
	Attrs map[string]string
	ID    string
}

// Job is a build whose result is exported.
type Job struct {
	Result   *Result
	Session  *build.Session
	Progress build.Progress
	// Walk gives the steps of a platform's result, inputs first (solve.Result.Walk): how old layers are, and where they come from, is known by it. Nil: it is not known.
	Walk func(platform string, fn func(solve.Step) error) error
	// Trace is what the request asks to be told about where the result came from (provenance); nil: nothing.
	Trace *Trace
	// InlineCache gives what the config of a platform's image carries of the cache; nil: nothing. layers are those of the image.
	InlineCache func(ctx context.Context, platform string, layers []snapshot.Layer) ([]byte, error)
}

// Images is what exporters need of the image room: of image.Maker and image.Transfers, which are one store.
type Images interface {
	Create(ctx context.Context, opts image.CreateOptions) (image.Image, error)
	CreateIndex(ctx context.Context, opts image.IndexOptions) (image.Image, error)
	SendBuilt(ctx context.Context, opts image.CreateOptions, how image.Compression) (image.Outgoing, error)
	ReceiveArtifact(ctx context.Context, doc manifest.Document, fetch func(context.Context, ocispec.Descriptor) ([]byte, error)) (release func(), err error)
	// Pushed writes down that an image or index has a name with its digest.
	Pushed(ctx context.Context, name reference.Ref, img digest.Digest, doc manifest.Document) error
	DropLayers(chains ...snapshot.ChainID)
}

// Trees is what exporters need of the snapshot room.
type Trees interface {
	Stat(ctx context.Context, chain snapshot.ChainID) (snapshot.Layer, error)
	LayerTar(ctx context.Context, chain snapshot.ChainID, w io.Writer) error
	View(ctx context.Context, chain snapshot.ChainID) (*snapshot.Mounted, error)
	Apply(ctx context.Context, parent snapshot.ChainID, want digest.Digest, layer io.Reader) (snapshot.Layer, error)
}

// Registry opens repositories for pushing, with the credentials of the asker.
type Registry interface {
	Repository(ctx context.Context, name reference.Ref, session *build.Session, insecure bool) (Repository, error)
}

// Repository takes an image, part by part: what it is made of, then documents.
type Repository interface {
	// PushLayers brings the layers of an image to the registry: asked for, mounted from another repository, or sent. What was compressed on the way is told to the layers (Sent).
	PushLayers(ctx context.Context, out image.Outgoing, progress build.Progress) error
	// PushBlob brings a small blob: a config, a statement.
	PushBlob(ctx context.Context, raw []byte) error
	// PushManifest stores a document under a tag or its digest.
	PushManifest(ctx context.Context, tagOrDigest string, doc manifest.Document) error
}

// Records are the kept results of steps; build.Cache has it.
type Records interface {
	Lookup(ctx context.Context, key digest.Digest) (rec build.Record, ok bool, err error)
}

// Exporter makes things of results. Its methods may be called concurrently.
type Exporter struct {
	Images   Images
	Trees    Trees
	Registry Registry // nil: nothing can be pushed
	Records  Records  // nil: nothing is known of when steps were run
	// Platform is the host's: which image a name leads to when no platform is asked for.
	Platform manifest.Platform
	// Dir is where unnamed files go while an archive is made; empty is the system's.
	Dir string
	Now func() time.Time // nil is time.Now
	Log *slog.Logger     // nil: bugs are said to the asker only
}

// Check refuses a type or attributes that are not known, so that nothing is built in vain.
func Check(spec Spec) error {
	_, err := parse(spec)
	return err
}

// Export makes one thing of a result. It gives what the asker hears of it, by BuildKit's keys.
func (e *Exporter) Export(ctx context.Context, spec Spec, job Job) (map[string]string, error) {
	opts, err := parse(spec)
	if err != nil {
		return nil, err
	}
	if opts.kind == kindNone {
		return nil, nil
	}
	targets, err := e.targets(ctx, opts, job)
	if err != nil {
		return nil, fmt.Errorf("export to %s: %w", opts.kind, err)
	}
	made, err := e.origins(ctx, job)
	if err != nil {
		return nil, fmt.Errorf("export to %s: %w", opts.kind, err)
	}
	x := &exporting{Exporter: e, made: made, opts: opts, job: job, id: spec.ID, targets: targets}
	defer x.dropMade()
	var said map[string]string
	switch opts.kind {
	case kindImage:
		said, err = x.image(ctx)
	case kindOCI, kindDocker:
		said, err = x.archive(ctx)
	case kindTar, kindLocal:
		err = x.tree(ctx)
	}
	if err != nil {
		return nil, fmt.Errorf("export to %s: %w", opts.kind, err)
	}
	return said, nil
}

// exporting is one Export.
type exporting struct {
	*Exporter
	opts    *options
	job     Job
	id      string
	targets []*target
	// made tells when layers were made, and by which step. It does not change from one build to the next: a rebuild of which all is cached has the same image id by it.
	made map[snapshot.ChainID]layerOrigin
	// again: of layers that were made again, those that they were made of.
	again map[snapshot.ChainID]snapshot.ChainID
}

// dropMade lets go of layers that were made again.
func (x *exporting) dropMade() {
	if len(x.again) > 0 {
		x.Images.DropLayers(slices.Collect(maps.Keys(x.again))...)
	}
}

// many tells that the frontend named its platforms: the result is an index, or folders.
func (x *exporting) many() bool { return len(x.job.Result.Refs) > 0 }

func (e *Exporter) now() time.Time {
	if e.Now != nil {
		return e.Now()
	}
	return time.Now()
}

// target is the result for one platform.
type target struct {
	id       string
	platform ocispec.Platform
	chain    snapshot.ChainID
	layers   []snapshot.Layer // lowest first
	base     int              // how many of them came with the base image
	epoch    *time.Time
	given    []byte               // the config as the frontend has it; may be nil
	config   []byte               // finished
	blobs    []ocispec.Descriptor // the layers as they go out, once that is known
	attests  []attestation
}

// targets looks the trees of a result up, and brings their layers here.
func (e *Exporter) targets(ctx context.Context, opts *options, job Job) ([]*target, error) {
	res := job.Result
	if _, ok := res.Metadata[exptypes.ExporterPlatformsKey]; !ok && len(res.Refs) > 0 {
		return nil, errs.New(errs.Invalid, "the frontend gave several results without saying for which platforms")
	}
	list, err := exptypes.ParsePlatforms(res.Metadata)
	if err != nil {
		return nil, errs.New(errs.Invalid, "platforms of the result: %w", err)
	}
	if len(res.Refs) == 0 && len(list.Platforms) > 1 {
		return nil, errs.New(errs.Invalid, "the frontend gave one result for %d platforms", len(list.Platforms))
	}
	var all []*target
	for i := range list.Platforms {
		p := &list.Platforms[i]
		out, ok := res.FindRef(p.ID)
		if !ok {
			return nil, errs.New(errs.Invalid, "the frontend gave no result for platform %s", p.ID)
		}
		t := &target{id: p.ID, platform: p.Platform, given: exptypes.ParseKey(res.Metadata, exptypes.ExporterImageConfigKey, p)}
		if t.epoch, err = opts.epochOf(res.Metadata, p); err != nil {
			return nil, err
		}
		if err := e.bring(ctx, job, t, out); err != nil {
			return nil, err
		}
		t.base = baseLayers(exptypes.ParseKey(res.Metadata, exptypes.ExporterImageBaseConfigKey, p), t.layers)
		if t.attests, err = e.attestations(ctx, job, t); err != nil {
			return nil, err
		}
		all = append(all, t)
	}
	return all, nil
}

// bring gets the layers of an output here, and lists them.
func (e *Exporter) bring(ctx context.Context, job Job, t *target, out *build.Output) (err error) {
	if out == nil {
		return nil
	}
	t.chain = out.Chain
	t.layers, err = e.layersOf(ctx, job.Progress, *out)
	return err
}

func (e *Exporter) layersOf(ctx context.Context, p build.Progress, out build.Output) (layers []snapshot.Layer, err error) {
	if out.Files != nil {
		return nil, errs.New(errs.NotImplemented, "the result is a build context itself: copy it into a tree of its own")
	}
	if out.Fetch != nil {
		if err := out.Fetch(ctx, p); err != nil {
			return nil, err
		}
	}
	for chain := out.Chain; chain != ""; {
		l, err := e.Trees.Stat(ctx, chain)
		if err != nil {
			return nil, fmt.Errorf("layer of the result: %w", err)
		}
		layers = append([]snapshot.Layer{l}, layers...)
		chain = l.Parent
	}
	return layers, nil
}
