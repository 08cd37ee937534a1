package builds

import (
	"context"

	"corten.dev/corten/internal/errs"
)

// Bake implements [API].
func (s *Service) Bake(ctx context.Context, req BakeRequest) ([]byte, error) {
	return nil, errs.New(errs.NotImplemented, "bake files are not read by this engine yet")
}
