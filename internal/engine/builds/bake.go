package builds

import (
	"context"
	"errors"

	"github.com/containerd/platforms"

	"corten.dev/corten/internal/engine/builds/bake"
	"corten.dev/corten/internal/errs"
)

// Bake implements [Planner].
func (s *Service) Bake(_ context.Context, req BakeRequest) (raw []byte, missing []BakeMissing, err error) {
	if len(req.Files) == 0 {
		return nil, nil, errs.New(errs.Invalid, "no bake file is given")
	}
	r := bake.Request{Targets: req.Targets, Overrides: req.Overrides, Env: req.Env, Platform: platforms.Format(s.Platforms()[0])}
	for _, f := range req.Files {
		r.Files = append(r.Files, bake.File(f))
	}
	plan, err := bake.Make(r)
	var more *bake.Missing
	if errors.As(err, &more) {
		for _, name := range more.Names {
			missing = append(missing, BakeMissing{Name: name})
		}
		for _, name := range more.Optional {
			missing = append(missing, BakeMissing{Name: name, Optional: true})
		}
		return nil, missing, nil
	}
	if err != nil {
		return nil, nil, err
	}
	raw, err = plan.JSON()
	return raw, nil, err
}

// PlatformNames implements [API].
func (s *Service) PlatformNames() (names []string) {
	for _, p := range s.Platforms() {
		names = append(names, platforms.Format(p))
	}
	return names
}
