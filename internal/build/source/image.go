package source

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"sync"

	"github.com/moby/buildkit/solver/pb"
	"github.com/opencontainers/go-digest"

	"corten.dev/corten/internal/build"
	"corten.dev/corten/internal/build/source/base"
	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/manifest"
	"corten.dev/corten/internal/reference"
	"corten.dev/corten/internal/snapshot"
)

// imageID is what a docker-image source asks for.
type imageID struct {
	ref      reference.Ref
	platform manifest.Platform
	mode     string // of pb.AttrImageResolveMode…
	limit    int    // of layers; -1 is none
	checksum digest.Digest
	kind     string // of the record
}

// parseImage reads "docker-image://busybox:latest@sha256:…".
func parseImage(op *pb.SourceOp, platform *pb.Platform) (imageID, error) {
	id := imageID{mode: pb.AttrImageResolveModeDefault, limit: -1, kind: "regular"}
	_, name, err := splitIdentifier(op.Identifier)
	if err != nil {
		return id, err
	}
	if id.ref, err = reference.Parse(name); err != nil {
		return id, err
	}
	id.ref = id.ref.WithDefaultTag()
	if id.platform, err = parsePlatform(platform); err != nil {
		return id, err
	}
	for k, v := range op.Attrs {
		switch k {
		case pb.AttrImageResolveMode:
			id.mode = v
		case pb.AttrImageRecordType:
			id.kind = v
		case pb.AttrImageLayerLimit:
			id.limit, err = parseLimit(v)
		case pb.AttrImageChecksum:
			id.checksum, err = digest.Parse(v)
		default:
			err = errs.New(errs.NotImplemented, "unknown attribute")
		}
		if err != nil {
			return id, errs.New(errs.Invalid, "source %s: attribute %s=%q: %w", op.Identifier, k, v, err)
		}
	}
	return id, checkMode(id.mode)
}

func parseLimit(v string) (int, error) {
	n, err := strconv.Atoi(v)
	if err == nil && n < 0 {
		err = errs.New(errs.Invalid, "a number of layers is not negative")
	}
	return n, err
}

func checkMode(mode string) error {
	switch mode {
	case pb.AttrImageResolveModeDefault, pb.AttrImageResolveModePreferLocal, pb.AttrImageResolveModeForcePull:
		return nil
	}
	return errs.New(errs.Invalid, "resolve mode %q is none of default, local, pull", mode)
}

func parsePlatform(p *pb.Platform) (manifest.Platform, error) {
	name := platformOf(p)
	if name == "" {
		return manifest.Platform{}, nil // the engine's
	}
	return manifest.ParsePlatform(name)
}

// layers is how many layers of the image are wanted.
func wanted(img base.Image, limit int) int {
	if limit < 0 || limit > len(img.DiffIDs) {
		return len(img.DiffIDs)
	}
	return limit
}

// elsewise adds to the error of a registry that the image is here, for another platform than the one that was asked for: who builds on images of his own has no use for the registry's.
func (s *Sources) elsewise(ctx context.Context, id imageID, err error) error {
	if id.platform == (manifest.Platform{}) {
		return err
	}
	img, lerr := s.opts.Images.Local(ctx, id.ref, manifest.Platform{})
	if lerr != nil {
		return err // there is none at all
	}
	var cfg struct{ OS, Architecture, Variant string }
	is := manifest.Platform{}
	if json.Unmarshal(img.Config, &cfg) == nil {
		is = manifest.Platform{OS: cfg.OS, Arch: cfg.Architecture, Variant: cfg.Variant}
	}
	if is.Arch == "" || id.platform.Match(is) > 0 {
		return err
	}
	return fmt.Errorf("the image that is here is for %s, not for %s: %w", is, id.platform, err)
}

// find looks an image up, for callers who name it in errors: in the store unless the mode is "pull", then at the registry.
func (s *Sources) find(ctx context.Context, env build.Env, id imageID) (img base.Image, err error) {
	name := id.ref.String()
	if id.mode != pb.AttrImageResolveModeForcePull {
		img, err = s.opts.Images.Local(ctx, id.ref, id.platform)
		if err == nil && (id.checksum == "" || img.Digest == id.checksum) {
			return img, nil
		}
		if err != nil && !errors.Is(err, errs.NotFound) {
			return img, err
		}
	}
	ses, err := session(ctx, env, "")
	if err != nil {
		return img, err
	}
	env.Progress.Status("resolve "+name, 0, 0, false)
	img, err = s.opts.Images.Remote(ctx, id.ref, id.platform, ses.Credentials)
	env.Progress.Status("resolve "+name, 0, 0, true)
	if err != nil {
		return img, s.elsewise(ctx, id, err)
	}
	if id.checksum != "" && img.Digest != id.checksum {
		return img, errs.New(errs.Invalid, "%s has digest %s, the checksum given is %s", name, img.Digest, id.checksum)
	}
	return img, nil
}

// output is the tree of an image that was looked up, and the key under which its layers are kept.
func (s *Sources) output(img base.Image, limit int, kind, name string) (build.Output, digest.Digest) {
	n := wanted(img, limit)
	chain := img.Chain(n)
	key := keyOf("image", chain.String(), img.Manifest.String(), kind)
	out := build.Output{Chain: chain, Image: img.Manifest}
	if limit >= 0 && n < len(img.DiffIDs) {
		out.Image = "" // it is not the whole image
	}
	if img.Fetch != nil && n > 0 {
		out.Fetch = func(ctx context.Context, p build.Progress) error {
			err := img.Fetch(ctx, n, p, func(ctx context.Context, chain snapshot.ChainID) error {
				return s.keep(ctx, key, chain, kind, "pulled from "+name)
			})
			if err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
			return nil
		}
	}
	return out, key
}

// made is what an image's Run gives.
func (s *Sources) made(ctx context.Context, out build.Output) build.Made {
	cached := out.Chain == "" || out.Fetch == nil
	if !cached {
		_, err := s.opts.Layers.Stat(ctx, out.Chain)
		cached = err == nil
	}
	return build.Made{Outputs: []build.Output{out}, Cached: cached}
}

// imageOp is a source of an image: of a registry or this host, or of a layout that a client has.
type imageOp struct {
	sourceTraits
	s    *Sources
	give func(ctx context.Context, env build.Env) (build.Output, digest.Digest, error)
	looked
}

// looked is what Key found, for Run.
type looked struct {
	mu   sync.Mutex // guards what follows
	done bool
	out  build.Output
	key  digest.Digest
}

// look calls find until it has succeeded once.
func (l *looked) look(find func() (build.Output, digest.Digest, error)) (build.Output, digest.Digest, error) {
	l.mu.Lock()
	done, out, key := l.done, l.out, l.key
	l.mu.Unlock()
	if done {
		return out, key, nil
	}
	out, key, err := find()
	if err == nil {
		l.mu.Lock()
		l.done, l.out, l.key = true, out, key
		l.mu.Unlock()
	}
	return out, key, err
}

// image is what a docker-image source gives.
func (s *Sources) image(ctx context.Context, env build.Env, id imageID) (build.Output, digest.Digest, error) {
	img, err := s.find(ctx, env, id)
	if err != nil {
		return build.Output{}, "", fmt.Errorf("%s: %w", id.ref, err)
	}
	out, key := s.output(img, id.limit, id.kind, id.ref.String())
	return out, key, nil
}

func (op *imageOp) find(ctx context.Context, env build.Env) (build.Output, digest.Digest, error) {
	return op.look(func() (build.Output, digest.Digest, error) { return op.give(ctx, env) })
}

// Key implements build.Op.
func (op *imageOp) Key(ctx context.Context, env build.Env, _ []build.Output) (digest.Digest, error) {
	_, key, err := op.find(ctx, env)
	return key, err
}

// Run implements build.Op.
func (op *imageOp) Run(ctx context.Context, env build.Env, _ []build.Output) (build.Made, error) {
	out, _, err := op.find(ctx, env)
	if err != nil {
		return build.Made{}, err
	}
	return op.s.made(ctx, out), nil
}

// layoutID is what an oci-layout source asks for.
type layoutID struct {
	store, session string
	name           string // tag or digest
	platform       manifest.Platform
	limit          int
}

// parseLayout reads "oci-layout://name@sha256:…".
func parseLayout(op *pb.SourceOp, platform *pb.Platform) (layoutID, error) {
	id := layoutID{limit: -1}
	_, name, err := splitIdentifier(op.Identifier)
	if err != nil {
		return id, err
	}
	ref, err := reference.Parse(name)
	if err != nil {
		return id, err
	}
	id.store = ref.Name()
	if id.name = ref.Digest; id.name == "" {
		id.name = ref.WithDefaultTag().Tag
	}
	if id.platform, err = parsePlatform(platform); err != nil {
		return id, err
	}
	for k, v := range op.Attrs {
		switch k {
		case pb.AttrOCILayoutSessionID:
			id.session = v
		case pb.AttrOCILayoutStoreID:
			id.store = v
		case pb.AttrOCILayoutLayerLimit:
			id.limit, err = parseLimit(v)
		default:
			err = errs.New(errs.NotImplemented, "unknown attribute")
		}
		if err != nil {
			return id, errs.New(errs.Invalid, "source %s: attribute %s=%q: %w", op.Identifier, k, v, err)
		}
	}
	return id, nil
}

func (s *Sources) findLayout(ctx context.Context, env build.Env, id layoutID) (img base.Image, err error) {
	ses, err := session(ctx, env, id.session)
	if err != nil {
		return img, err
	}
	if ses.Blobs == nil {
		return img, errs.New(errs.NotFound, "oci-layout %s: the session offers no OCI layouts", id.store)
	}
	part := "resolve oci-layout://" + id.store + "@" + id.name
	env.Progress.Status(part, 0, 0, false)
	defer env.Progress.Status(part, 0, 0, true)
	return s.opts.Images.Layout(ctx, ses.Blobs, id.store, id.name, id.platform)
}

// layout is what an oci-layout source gives.
func (s *Sources) layout(ctx context.Context, env build.Env, id layoutID) (build.Output, digest.Digest, error) {
	img, err := s.findLayout(ctx, env, id)
	if err != nil {
		return build.Output{}, "", err
	}
	out, key := s.output(img, id.limit, "regular", "oci-layout://"+id.store+"@"+id.name)
	return out, key, nil
}
