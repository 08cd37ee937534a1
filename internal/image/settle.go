package image

import (
	"context"
	"fmt"

	"corten.dev/corten/internal/errs"
)

// Settle takes the lowest n layers of an image that is coming in without making it one: they are what a build stands on, and belong to who holds them in the store of layers before
// Close. What is known of their compressed forms is written down, and the blobs handed over by Keep are taken into care, as Commit does, so that what is built on them goes out
// with the same layers. origin is the repository that they came from; "" when that was none.
func (in *incoming) Settle(ctx context.Context, n int, origin string) error {
	if n < 0 || n > len(in.layers) {
		return errs.New(errs.Invalid, "settle %d layers: the image has %d", n, len(in.layers))
	}
	for i, l := range in.layers[:n] {
		if err := l.wait(ctx); err != nil {
			return err
		}
		err := in.s.forms.edit(l.diff, l.blob, false, func(f *form) {
			if origin != "" {
				f.origin(origin)
			}
		})
		in.mu.Lock()
		blob, handed := in.keeps[i]
		delete(in.keeps, i)
		in.mu.Unlock()
		if err == nil && handed {
			err = in.s.keepBlob(ctx, l.diff, blob)
		}
		if err != nil {
			return fmt.Errorf("settle layer %d (%s): %w", i+1, l.diff, err)
		}
	}
	return nil
}
