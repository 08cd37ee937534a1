package source

import (
	"context"
	"net/http"

	"github.com/moby/buildkit/client/llb/sourceresolver"
	"github.com/moby/buildkit/solver/pb"
	srctypes "github.com/moby/buildkit/source/types"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"corten.dev/corten/internal/build"
	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/manifest"
	"corten.dev/corten/internal/reference"
)

// Resolver resolves what names stand for, for one asker.
type Resolver struct {
	s       *Sources
	session func(ctx context.Context, id string) (*build.Session, error)
}

// For gives the resolver of a build, with its sessions.
func (s *Sources) For(session func(ctx context.Context, id string) (*build.Session, error)) *Resolver {
	return &Resolver{s, session}
}

// Resolve is Sources.Resolve with the asker's sessions.
func (r *Resolver) Resolve(ctx context.Context, op *pb.SourceOp, opt sourceresolver.Opt, p build.Progress) (*sourceresolver.MetaResponse, error) {
	return r.s.Resolve(ctx, op, opt, build.Env{Session: r.session, Progress: p})
}

// ResolveImage finds out what an image's name means now: the name itself, the digest it leads to (empty for an image that was made here and never went out), and its config.
func (s *Sources) ResolveImage(ctx context.Context, ref string, platform *ocispec.Platform, mode string, env build.Env) (string, digest.Digest, []byte, error) {
	if mode == "" {
		mode = pb.AttrImageResolveModeDefault
	}
	id := imageID{mode: mode, limit: -1}
	var err error
	if err := checkMode(mode); err != nil {
		return "", "", nil, err
	}
	if id.ref, err = reference.Parse(ref); err != nil {
		return "", "", nil, err
	}
	id.ref = id.ref.WithDefaultTag()
	if id.platform, err = specPlatform(platform); err != nil {
		return "", "", nil, err
	}
	img, err := s.find(ctx, env, id)
	if err != nil {
		return "", "", nil, err
	}
	return id.ref.String(), img.Digest, img.Config, nil
}

func specPlatform(p *ocispec.Platform) (manifest.Platform, error) {
	if p == nil {
		return manifest.Platform{}, nil
	}
	return parsePlatform(&pb.Platform{OS: p.OS, Architecture: p.Architecture, Variant: p.Variant})
}

// Resolve answers what frontends ask of a source, in BuildKit's terms. What cannot be answered is refused.
func (s *Sources) Resolve(ctx context.Context, op *pb.SourceOp, opt sourceresolver.Opt, env build.Env) (*sourceresolver.MetaResponse, error) {
	scheme, _, err := splitIdentifier(op.Identifier)
	if err != nil {
		return nil, err
	}
	resp := &sourceresolver.MetaResponse{Op: op}
	switch scheme {
	case srctypes.DockerImageScheme:
		resp.Image, err = s.resolveImage(ctx, op, opt.ImageOpt, env)
	case srctypes.OCIScheme:
		resp.Image, err = s.resolveLayout(ctx, op, opt, env)
	case srctypes.HTTPScheme, srctypes.HTTPSScheme:
		resp.HTTP, err = s.resolveHTTP(ctx, op, opt.HTTPOpt, env)
	case srctypes.GitScheme:
		resp.Git, err = s.resolveGit(ctx, op, opt.GitOpt, env)
	case srctypes.LocalScheme: // it is what it is
	default:
		err = errs.New(errs.NotImplemented, "source %s: the scheme %s is not supported", op.Identifier, scheme)
	}
	if err != nil {
		return nil, err
	}
	return resp, nil
}

func (s *Sources) resolveImage(ctx context.Context, op *pb.SourceOp, opt *sourceresolver.ResolveImageOpt, env build.Env) (*sourceresolver.ResolveImageResponse, error) {
	id, err := parseImage(op, nil)
	if err != nil {
		return nil, err
	}
	if opt == nil {
		opt = &sourceresolver.ResolveImageOpt{}
	}
	if opt.ResolveMode != "" {
		id.mode = opt.ResolveMode
	}
	if err := checkMode(id.mode); err != nil {
		return nil, err
	}
	if id.platform, err = specPlatform(opt.Platform); err != nil {
		return nil, err
	}
	resp := &sourceresolver.ResolveImageResponse{}
	if opt.AttestationChain || len(opt.ResolveAttestations) > 0 {
		if resp.AttestationChain, err = s.attestations(ctx, id, opt.ResolveAttestations, env); err != nil {
			return nil, err
		}
		if resp.Digest = resp.AttestationChain.Root; opt.NoConfig {
			return resp, nil
		}
	}
	img, err := s.find(ctx, env, id)
	if err != nil {
		return nil, err
	}
	resp.Digest = img.Digest
	if !opt.NoConfig {
		resp.Config = img.Config
	}
	return resp, nil
}

// attestations asks the registry: the store keeps them only with an index that was pulled whole.
func (s *Sources) attestations(ctx context.Context, id imageID, predicates []string, env build.Env) (*sourceresolver.AttestationChain, error) {
	ses, err := session(ctx, env, "")
	if err != nil {
		return nil, err
	}
	chain, blobs, err := s.opts.Images.Attestations(ctx, id.ref, id.platform, predicates, ses.Credentials)
	if err != nil {
		return nil, err
	}
	a := &sourceresolver.AttestationChain{Blobs: map[digest.Digest]sourceresolver.Blob{}}
	for i, place := range []*digest.Digest{&a.Root, &a.ImageManifest, &a.AttestationManifest} {
		if i < len(chain) {
			*place = chain[i]
		}
	}
	for dgst, b := range blobs {
		a.Blobs[dgst] = sourceresolver.Blob{Descriptor: ocispec.Descriptor{MediaType: b.MediaType, Digest: dgst, Size: int64(len(b.Data))}, Data: b.Data}
	}
	return a, nil
}

func (s *Sources) resolveLayout(ctx context.Context, op *pb.SourceOp, opt sourceresolver.Opt, env build.Env) (*sourceresolver.ResolveImageResponse, error) {
	id, err := parseLayout(op, nil)
	if err != nil {
		return nil, err
	}
	noConfig := opt.ImageOpt != nil && opt.ImageOpt.NoConfig
	platform := (*ocispec.Platform)(nil)
	if opt.ImageOpt != nil {
		platform = opt.ImageOpt.Platform
	}
	if o := opt.OCILayoutOpt; o != nil {
		if o.Platform != nil {
			platform = o.Platform
		}
		if o.Store.SessionID != "" {
			id.session = o.Store.SessionID
		}
		if o.Store.StoreID != "" {
			id.store = o.Store.StoreID
		}
	}
	if id.platform, err = specPlatform(platform); err != nil {
		return nil, err
	}
	img, err := s.findLayout(ctx, env, id)
	if err != nil {
		return nil, err
	}
	resp := &sourceresolver.ResolveImageResponse{Digest: img.Digest}
	if !noConfig {
		resp.Config = img.Config
	}
	return resp, nil
}

func (s *Sources) resolveHTTP(ctx context.Context, op *pb.SourceOp, opt *sourceresolver.ResolveHTTPOpt, env build.Env) (*sourceresolver.ResolveHTTPResponse, error) {
	id, err := parseHTTP(op)
	if err != nil {
		return nil, err
	}
	if opt != nil && opt.ChecksumReq != nil {
		return nil, errs.New(errs.NotImplemented, "source %s: checksums of other kinds are not computed", id.name())
	}
	if id.checksum != "" { // it is what it must be
		return &sourceresolver.ResolveHTTPResponse{Digest: id.checksum, Filename: id.nameOf(http.Header{})}, nil
	}
	f, _, err := s.download(ctx, env, id)
	if err != nil {
		return nil, err
	}
	resp := &sourceresolver.ResolveHTTPResponse{Digest: f.Digest, Filename: f.Filename}
	if f.LastModified != "" {
		t := f.modified()
		resp.LastModified = &t
	}
	return resp, nil
}
