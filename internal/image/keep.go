package image

import (
	"context"
	"sync"

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

// keepBlob takes a blob into the layer's care, or deletes it.
func (s *Images) keepBlob(ctx context.Context, diff digest.Digest, blob ocispec.Descriptor) error {
	if s.keep == KeepNever {
		return s.blobs.Delete(ctx, blob.Digest)
	}
	if err := s.forms.edit(diff, blob, true, func(f *form) { f.Kept = true }); err != nil {
		return err
	}
	s.keeper.look()
	return nil
}

// keeper looks, one blob at a time and while nothing else is to do, for those that can be made again.
type keeper struct {
	s    *Images
	stop context.CancelFunc
	mu   sync.Mutex
}

func newKeeper(s *Images) *keeper { return &keeper{s: s} }
func (k *keeper) look()           {}
func (k *keeper) close()          {}
