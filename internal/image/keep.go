package image

import (
	"context"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"corten.dev/corten/internal/errs"
)

// What becomes of the compressed blobs of pulled layers (Options.KeepBlobs).
const (
	KeepAuto   = "auto"
	KeepAlways = "always"
	KeepNever  = "never"
)

func parseKeep(s string) (string, error) {
	switch s {
	case "":
		return KeepAuto, nil
	case KeepAuto, KeepAlways, KeepNever:
		return s, nil
	}
	return "", errs.New(errs.Invalid, "keeping layer blobs: %q is none of auto, always and never", s)
}

// keepBlob takes a blob into the layer's care. Where none is to be kept, the keeper deletes it as soon as no other pull counts on it: at once, it would be taken from one that
// has found it here and goes without a download.
func (s *Images) keepBlob(ctx context.Context, diff digest.Digest, blob ocispec.Descriptor) error {
	if s.keep == KeepNever && !s.hasBlob(ctx, blob) {
		return nil // another pull handed it over
	}
	if err := s.forms.edit(diff, blob, s.keep != KeepNever, func(f *form) { f.Kept = true }); err != nil {
		return err
	}
	s.keeper.look()
	return nil
}

// Remade counts the compressed blobs of layers here: how many are kept, and how many are not needed because they can be made again.
type Remade struct {
	Kept, Remade           int
	KeptBytes, RemadeBytes int64
	Waiting                int // kept ones that are still to be looked at or deleted
}

// Remade tells how far the room has come with doing without compressed blobs.
func (s *Images) Remade() (r Remade) {
	s.forms.each(func(_ digest.Digest, f form) {
		if f.waits() {
			r.Waiting++
		}
		switch {
		case f.Kept && f.Recipe == nil:
			r.Kept++
			r.KeptBytes += f.Size
		case f.Recipe != nil:
			r.Remade++
			r.RemadeBytes += f.Size
		}
	})
	return r
}
