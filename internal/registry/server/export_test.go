package server

import "context"

// Tags calls fn with each tag of a repository in the order of the bytes.
func (r *Registry) Tags(ctx context.Context, repository string, fn func(tag string) error) error {
	return r.tagNames(ctx, repository, "", fn)
}
