package server

import (
	"context"
	"io"

	"corten.dev/corten/internal/build"
	"corten.dev/corten/internal/build/source/mirror"
	"corten.dev/corten/internal/errs"
)

// BuildMirrors keeps copies of the directories of clients that cannot hand theirs over.
type BuildMirrors interface {
	// Update brings a copy up to date from a list of names; what changed is asked for.
	Update(ctx context.Context, src mirror.Source, req mirror.Request) (*build.Files, func(), error)
	// Unpack makes a context of a tar; it is gone after release.
	Unpack(ctx context.Context, r io.Reader, req mirror.Request) (files *build.Files, release func(), err error)
}

// mirrored gives the copy of a client's directory, after what changed has travelled.
func (b *buildSession) mirrored(_ context.Context, name string, _ build.ContextOptions) (*build.Files, func(), error) {
	return nil, nil, errs.New(errs.NotImplemented, "context %s: this engine takes directories from clients on its own host only", name)
}
