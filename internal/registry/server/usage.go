package server

import (
	"context"

	"github.com/opencontainers/go-digest"
)

// usageWidth is how many links are read at a time: a driver may be far away.
const usageWidth = 16

// Usage is what the blobs take that a repository holds, each counted once, also those that it shares with others. A repository that is not there holds nothing.
// It reads every link of the repository: it is for counting now and then, not for each request.
func (r *Registry) Usage(ctx context.Context, repo string) (bytes int64, err error) {
	links := newGather(usageWidth, r.log)
	err = r.eachDigest(ctx, repositoryKey(repo)+"/"+blobsPart, func(d digest.Digest) error {
		links.run(func() (any, error) {
			l, err := r.getLink(ctx, repo, d)
			if err != nil {
				return nil, ignoreNotFound(err) // deleted meanwhile
			}
			return l.size, nil
		})
		return ctx.Err()
	})
	sizes, failed := links.wait()
	if err == nil {
		err = failed
	}
	for _, size := range sizes {
		bytes += size.(int64)
	}
	return bytes, err
}
