// Package server is a registry: the distribution API (distribution-spec 1.1) over http.Handler, on a storage driver.
//
// It owns what the API means: names, tags, manifests, uploads, referrers, collection of garbage. The bytes are kept by a Driver (disk, s3 below this
// folder); who may do what is asked of a Guard (access below this folder). It does not know the engine. It promises: an upload is verified before it is
// named; a manifest that was accepted has everything it refers to (subject excepted) until somebody deletes it; a killed registry resumes its uploads;
// collecting garbage never takes what a push that is under way counts on, and needs no read-only time.
package server

import (
	"context"
	"io"
	"time"

	"github.com/opencontainers/go-digest"
)

// Driver keeps the registry's bytes: blobs by digest, shared by all repositories, and small named values (links, tags, manifests). All methods may be
// called concurrently; several registries may share one driver's place, as far as the driver says so.
type Driver interface {
	Blobs
	Values
	// Close ends background work.
	Close() error
}

// Blobs is the half of a Driver that keeps bytes by digest.
type Blobs interface {
	// Stat describes a blob; errs.NotFound.
	Stat(ctx context.Context, d digest.Digest) (BlobInfo, error)
	// Open reads length bytes of a blob from an offset; a negative length is all the rest. If what it returns is an io.WriterTo, that is used
	// (sendfile).
	Open(ctx context.Context, d digest.Digest, offset, length int64) (io.ReadCloser, error)
	// Touch moves Stored to now, so that a collection that is under way leaves the blob; errs.NotFound.
	Touch(ctx context.Context, d digest.Digest) (BlobInfo, error)
	// DeleteBlob removes a blob that was stored before that time. One that was stored or touched later stays, also when that happens meanwhile:
	// errs.Conflict. One that is not there is no error.
	DeleteBlob(ctx context.Context, d digest.Digest, before time.Time) error
	// WalkBlobs calls fn for every blob, in any order. What comes or goes meanwhile may be missed.
	WalkBlobs(ctx context.Context, fn func(BlobInfo) error) error

	// Upload opens an upload: where it was left (errs.NotFound when there is none), or with Create a new one. Nobody has it open twice:
	// errs.Conflict. An id is one plain name of at most 160 letters, digits, '-', '_' and '.'.
	Upload(ctx context.Context, id string, opts UploadOptions) (Upload, error)
	// WalkUploads calls fn for every upload that is neither committed nor aborted.
	WalkUploads(ctx context.Context, fn func(UploadInfo) error) error
}

// Values is the half of a Driver that keeps small values (up to 4 MiB and a little, most under 1 KiB) by name.
//
// Keys are slash-separated paths of plain names ([a-zA-Z0-9._-], none is "." or ".."), each at most 255 bytes; what they mean is this package's affair,
// and drawn in keys.go. A key that has a value has none below it.
type Values interface {
	// Get reads a value; errs.NotFound.
	Get(ctx context.Context, key string) ([]byte, error)
	// Put makes or replaces a value, atomically and durably.
	Put(ctx context.Context, key string, value []byte) error
	// Delete removes a value. If old is not nil, only as long as the value is just that; else errs.Conflict and it stays (also when it is replaced
	// meanwhile). One that is not there is no error.
	Delete(ctx context.Context, key string, old []byte) error
	// List calls fn with the names directly below a key in the order of their bytes, from the one after `after`; dir tells that there is more below
	// it (then a collection may find it empty). An error of fn ends it and is returned.
	List(ctx context.Context, key, after string, fn func(name string, dir bool) error) error
}

// BlobInfo describes a blob of a driver.
type BlobInfo struct {
	Digest digest.Digest
	Size   int64
	Stored time.Time // moves to now when the same blob is uploaded again or touched (what the collection goes by)
}

// UploadInfo describes an upload that is not finished.
type UploadInfo struct {
	ID      string
	Size    int64
	Changed time.Time // of the last byte that came
}

// UploadOptions say how to open an upload.
type UploadOptions struct {
	Create    bool
	Algorithm digest.Algorithm // what Commit will most likely ask for, so that it can be computed on the way; "" is sha256
}

// Upload is a blob that is coming in; it outlives the process (only whole writes count after a crash).
type Upload interface {
	// Size is how much is there. It may be asked while Append runs.
	Size() int64
	// Append adds all of r; what came before an error stays, as Size tells afterwards.
	Append(ctx context.Context, r io.Reader) error
	// Commit verifies the digest and names the blob, durably. A difference is errs.Invalid, and then the upload is gone. A blob that is there
	// already is the same blob, stored now.
	Commit(ctx context.Context, want digest.Digest) (BlobInfo, error)
	// Close keeps it for later, Abort throws it away. After Commit or Abort, Close does nothing.
	Close() error
	Abort(ctx context.Context) error
}

// Action is what somebody wants to do in a repository (distribution "scope" actions).
type Action string

// The actions. Catalog is asked for with the repository "", for the list of repositories and the search.
const (
	Pull    Action = "pull"
	Push    Action = "push"
	Delete  Action = "delete"
	Catalog Action = "catalog"
)

// Guard decides about a request, before it is looked at any further. It is given the Authorization header. A refusal is errs.Unauthorized (then
// Challenge goes out) or errs.Forbidden.
type Guard interface {
	// Allow answers for one repository; for "" with Catalog; and for "" without actions, which is /v2/: who are you?
	Allow(ctx context.Context, authorization, repository string, actions ...Action) error
	// Challenge is the WWW-Authenticate header for a refused request.
	Challenge(host, repository string, actions ...Action) string
	// User names who is asking, for logs; "" is anonymous.
	User(authorization string) string
}

// Upstreams is where a pull-through cache gets what it lacks. What comes is stored by the registry itself, through its normal ingest.
type Upstreams interface {
	// Manifest asks an upstream for a manifest by tag or digest. It is called for every pull by tag, and for a digest that is not here. have is the
	// manifest that is here under that name, "" if none: errs.NotModified says that it is good (the same, or fresh enough, or the upstream does
	// not answer). errs.NotFound: no upstream is responsible for this repository, or it has none.
	Manifest(ctx context.Context, repository, ref string, have digest.Digest) (UpstreamManifest, error)
	// Blob opens a blob that is not here, and tells its size (negative if unknown). errs.NotFound.
	Blob(ctx context.Context, repository string, d digest.Digest) (io.ReadCloser, int64, error)
}

// UpstreamManifest is a manifest from elsewhere. The registry computes its digest itself and compares when it asked for one.
type UpstreamManifest struct {
	MediaType string
	Raw       []byte
}

// Observer is told of each request that was answered.
type Observer interface {
	Finished(RequestInfo)
}

// RequestInfo describes an answered request.
type RequestInfo struct {
	Route      string // one of a small set of names: "base", "catalog", "tags", "manifest", "blob", "uploads", "upload", "referrers", "other"
	Method     string
	Repository string
	User       string
	Status     int
	In, Out    int64 // bytes of bodies
	Duration   time.Duration
}
