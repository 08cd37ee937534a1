package server

import (
	"context"
	"net/http"

	"corten.dev/corten/internal/errs"
)

// Registry is the http.Handler of the distribution API below /v2/.
type Registry struct {
	opts Options
}

// New makes a registry over a driver, which Close closes as well.
func New(opts Options) (*Registry, error) {
	if opts.Driver == nil {
		return nil, errs.New(errs.Invalid, "a registry needs a driver")
	}
	return &Registry{opts: opts}, nil
}

// ServeHTTP answers one request.
func (r *Registry) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	http.NotFound(w, req)
}

// Collect removes what nothing refers to, and what the rules say, while the registry serves.
func (r *Registry) Collect(ctx context.Context, opts CollectOptions) (Report, error) {
	return Report{}, ctx.Err()
}

func (r *Registry) repositories(ctx context.Context, after string, fn func(name string) error) error {
	return ctx.Err()
}

// Tags calls fn with each tag of a repository in the order of the bytes, from the one after `after`; errs.NotFound.
func (r *Registry) Tags(ctx context.Context, repository, after string, fn func(tag string) error) error {
	return ctx.Err()
}

// Close waits for what the registry does in the background and closes the driver. Requests must have ended before.
func (r *Registry) Close() error { return r.opts.Driver.Close() }
