package server

import (
	"context"
	"time"

	"github.com/opencontainers/go-digest"
)

// How a blob that somebody counts on stays, without read-only time. The grace G is the same for all registries of a place.
//
//	client                      registry                                        collection that began at S
//	HEAD blob, mount, PUT       link seen within G/2? then it is enough:        deletes links whose time is before S-G and that no
//	manifest, upload            else touch the blob, write the link anew        manifest names, if still the same value (compared);
//	◀── 200/201                                                                  then blobs without link, if Stored is before S-G still
//
// So what was answered is good for at least G/2. A link that is deleted between being read and being written anew is simply there again, and its blob was
// touched before that: the driver's conditional deletes leave both.

// putLink says that a repository holds a blob, from now on.
func (r *Registry) putLink(ctx context.Context, repo string, d digest.Digest, size int64) error {
	return r.d.Put(ctx, linkKey(repo, d), link{seen: time.Now(), size: size}.encode())
}

// getLink reads whether a repository holds a blob; errs.NotFound.
func (r *Registry) getLink(ctx context.Context, repo string, d digest.Digest) (link, error) {
	raw, err := r.d.Get(ctx, linkKey(repo, d))
	if err != nil {
		return link{}, err
	}
	return decodeLink(raw)
}

// leaseBlob makes sure that a blob of a repository stays for a while, and returns its size; errs.NotFound.
func (r *Registry) leaseBlob(ctx context.Context, repo string, d digest.Digest) (int64, error) {
	l, err := r.getLink(ctx, repo, d)
	if err != nil {
		return 0, err
	}
	if r.fresh(l.seen) {
		return l.size, nil
	}
	info, err := r.d.Touch(ctx, d)
	if err != nil {
		return 0, err
	}
	return info.Size, r.putLink(ctx, repo, d, info.Size)
}

// leaseManifest is the same for a manifest that an index names, or that a client has just seen.
func (r *Registry) leaseManifest(ctx context.Context, repo string, d digest.Digest) (manifestRecord, error) {
	m, _, err := r.getManifest(ctx, repo, d)
	if err != nil || r.fresh(m.Seen) {
		return m, err
	}
	return m, r.renewManifest(ctx, repo, d, m)
}

func (r *Registry) renewManifest(ctx context.Context, repo string, d digest.Digest, m manifestRecord) error {
	m.Seen = time.Now().UTC()
	value, err := m.encode()
	if err != nil {
		return err
	}
	return r.d.Put(ctx, manifestKey(repo, d), value)
}

func (r *Registry) fresh(seen time.Time) bool { return time.Since(seen) < r.limits.Grace/2 }

// mount links a blob of another repository, if it can; errs.NotFound when it cannot, and the client has to upload.
func (r *Registry) mount(ctx context.Context, repo, from string, d digest.Digest) error {
	if from != "" {
		if _, err := r.leaseBlob(ctx, from, d); err != nil {
			return err
		}
	}
	info, err := r.d.Touch(ctx, d)
	if err != nil {
		return err
	}
	return r.putLink(ctx, repo, d, info.Size)
}

// dropLink takes a blob out of a repository; errs.NotFound. The bytes go with the next collection, if nobody else has them.
func (r *Registry) dropLink(ctx context.Context, repo string, d digest.Digest) error {
	if _, err := r.getLink(ctx, repo, d); err != nil {
		return err
	}
	return r.d.Delete(ctx, linkKey(repo, d), nil)
}
