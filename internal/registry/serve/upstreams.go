package serve

import (
	"log/slog"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/registry/server"
	"corten.dev/corten/internal/registry/server/config"
)

func openUpstreams(conf *config.Config, log *slog.Logger) (server.Upstreams, error) {
	if len(conf.Cache) > 0 {
		return nil, errs.New(errs.NotImplemented, "cache is not part of this version")
	}
	return nil, nil
}
