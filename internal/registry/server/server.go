// Package server is a registry: the distribution API (distribution-spec 1.1) over http.Handler, on a storage driver.
//
// It owns what the API means: names, tags, manifests, uploads, referrers, collection of garbage. The bytes are kept by a Driver (disk, s3 below this
// folder); who may do what is asked of a Guard (access below this folder). It does not know the engine. It promises: an upload is verified before it is
// named; a manifest that was accepted has everything it refers to (subject excepted) until it is deleted; a killed registry resumes its uploads;
// collecting garbage never takes what a push that is under way counts on, and needs no read-only time.
package server

import (
	"context"
	"io"
	"time"

	"github.com/opencontainers/go-digest"
)

// Driver keeps the registry's bytes: blobs by digest, shared by all repositories, and small named values (links, tags, manifests' metadata, upload
// states). All methods may be called concurrently; several registries may share one driver's place.
//
// Keys of values are slash-separated paths of plain names; what they mean is this package's affair, and drawn in keys.go.
type Driver interface {
	// Stat describes a blob; errs.NotFound.
	Stat(ctx context.Context, d digest.Digest) (BlobInfo, error)
	// Open reads a blob from an offset.
	Open(ctx context.Context, d digest.Digest, offset, length int64) (io.ReadCloser, error)
	DeleteBlob(ctx context.Context, d digest.Digest) error
	Blobs(ctx context.Context, fn func(BlobInfo) error) error
	// Upload opens the upload of that id, new or where it was left.
	Upload(ctx context.Context, id string) (Upload, error)

	// Get reads a small value; errs.NotFound. Put replaces it atomically and durably; Delete of one that is not there is no error.
	Get(ctx context.Context, key string) ([]byte, error)
	Put(ctx context.Context, key string, value []byte) error
	Delete(ctx context.Context, key string) error
	// List calls fn with the names directly below a key, sorted, from the one after `after`; dir tells that there is more below it.
	List(ctx context.Context, key, after string, fn func(name string, dir bool) error) error
	// Close ends background work.
	Close() error
}

// BlobInfo describes a blob of a driver.
type BlobInfo struct {
	Digest digest.Digest
	Size   int64
	Stored time.Time // moves to now when the same blob is uploaded again (what the collection goes by)
}

// Upload is a blob that is coming in; it outlives the process (only whole writes count after a crash).
type Upload interface {
	// Size is how much is there.
	Size() int64
	// Append adds all of r; what came before an error stays, as Size tells afterwards.
	Append(ctx context.Context, r io.Reader) error
	// Commit verifies the digest and names the blob. After errs.Invalid the upload is gone.
	Commit(ctx context.Context, want digest.Digest) (BlobInfo, error)
	// Close keeps it for later, Abort throws it away.
	Close() error
	Abort(ctx context.Context) error
}

// Action is what somebody wants to do in a repository (distribution "scope" actions).
type Action string

const (
	Pull   Action = "pull"
	Push   Action = "push"
	Delete Action = "delete"
)

// Guard decides about a request, before it is looked at any further. It is given the Authorization header. A refusal is errs.Unauthorized (then
// Challenge goes out) or errs.Forbidden.
type Guard interface {
	// Allow answers for one repository, and for "" with the name of a service ("catalog").
	Allow(ctx context.Context, authorization, repository string, actions ...Action) error
	// Challenge is the WWW-Authenticate header for a refused request.
	Challenge(host, repository string, actions ...Action) string
	// User names who is asking, for logs; "" is anonymous.
	User(authorization string) string
}
