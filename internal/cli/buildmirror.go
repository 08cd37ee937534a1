package cli

import (
	"context"

	"corten.dev/corten/internal/buildwire"
	"corten.dev/corten/internal/errs"
)

// mirror gives a directory to an engine on another host: names first, then what it lacks.
func (s *buildSession) mirror(context.Context, *buildwire.Stream, string, buildwire.Ask) error {
	return errs.New(errs.NotImplemented, "directories travel to engines on this host only")
}
