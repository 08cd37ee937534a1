// Package s3 x
package s3
import ("context";"log/slog";"corten.dev/corten/internal/registry/server";"corten.dev/corten/internal/errs")
type Options struct { Endpoint, Region, Bucket, Prefix, KeyFile, CA, Staging string; PathStyle bool; PartSize int64; Logger *slog.Logger }
func New(ctx context.Context, o Options) (server.Driver, error) { return nil, errs.New(errs.NotImplemented,"s3") }
