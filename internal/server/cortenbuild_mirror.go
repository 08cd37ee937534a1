package server

import (
	"context"

	"corten.dev/corten/internal/build"
	"corten.dev/corten/internal/errs"
)

// BuildMirrors keeps copies of the directories of clients that cannot hand theirs over.
type BuildMirrors interface{}

// mirrored gives the copy of a client's directory, after what changed has travelled.
func (b *buildSession) mirrored(_ context.Context, name string, _ build.ContextOptions) (*build.Files, func(), error) {
	return nil, nil, errs.New(errs.NotImplemented, "context %s: this engine takes directories from clients on its own host only", name)
}
