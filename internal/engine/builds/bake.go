package builds

import (
	"context"

	"github.com/containerd/platforms"

	"corten.dev/corten/internal/engine/builds/bake"
	"corten.dev/corten/internal/errs"
)

// Bake implements [API].
func (s *Service) Bake(_ context.Context, req BakeRequest) ([]byte, error) {
	switch {
	case req.Context != "" && len(req.Files) == 0:
		return nil, errs.New(errs.NotImplemented, "bake files of %s: this engine reads bake files that the client has", req.Context)
	case len(req.Files) == 0:
		return nil, errs.New(errs.Invalid, "no bake file is given")
	}
	r := bake.Request{Targets: req.Targets, Overrides: req.Overrides, Env: req.Env, Platform: platforms.Format(s.Platforms()[0])}
	for _, f := range req.Files {
		r.Files = append(r.Files, bake.File(f))
	}
	plan, err := bake.Make(r)
	if err != nil {
		return nil, err
	}
	return plan.JSON()
}
