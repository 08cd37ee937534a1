package image

import (
	"context"
	"fmt"

	"github.com/opencontainers/go-digest"

	"corten.dev/corten/internal/image/recipe"
)

// SendConfig is Send for a config whose layers are here and that need not be an image: what is built goes into an archive or a registry without being in the store. The layers
// are held until Close; those that nothing else has go then.
func (s *Images) SendConfig(ctx context.Context, config []byte, opts SendOptions) (Outgoing, error) {
	rec, err := recipe.For(opts.Compression)
	if err != nil {
		return nil, err
	}
	id := digest.FromBytes(config)
	e, err := s.newEntry(ctx, id, config, s.now())
	if err != nil {
		return nil, fmt.Errorf("send image %s: %w", id, err)
	}
	out, err := s.send(ctx, e, "", nil, rec)
	if err != nil {
		return nil, fmt.Errorf("send image %s: %w", id, err)
	}
	return out, nil
}
