package images

import (
	"context"
	"io"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"corten.dev/corten/internal/content"
	"corten.dev/corten/internal/registry/client"
)

// Credentials are what a caller knows about a registry.
type Credentials = client.Credentials

// SearchResult is one line of `search`.
type SearchResult = client.SearchResult

// Report is one thing that happens in a pull or push, with the words of Docker's stream. Of a layer (ID is then a short digest, and Current of Total says how far it is), or
// of the whole.
type Report struct {
	ID, Status     string
	Layer          bool
	Current, Total int64
	Pushed         *PushedTag // with nothing else
}

// PushedTag tells what a registry has now.
type PushedTag struct {
	Tag    string
	Digest string
	Size   int
}

// Reporter takes reports, one at a time. It may wait: what is reported goes on meanwhile.
type Reporter func(Report)

// PullOptions say what to pull.
type PullOptions struct {
	Ref          string
	AllTags      bool
	Platform     string // "os/arch[/variant]"; empty is the engine's
	AllPlatforms bool
	Credentials  Credentials
}

// PushOptions say what to push.
type PushOptions struct {
	Ref         string
	AllTags     bool
	Platform    string // of an image with several; empty pushes all that came with its index
	Compression string // "gzip" (default) or "zstd", for layers that were never compressed
	Credentials Credentials
}

// Remote is what a registry has under a name.
type Remote struct {
	Descriptor ocispec.Descriptor
	Platforms  []ocispec.Platform
}

// Registries is everything that doors may ask of registries through this service.
type Registries interface {
	// Pull brings an image in. What was transferred before an error, or before the caller left, is kept for the next time.
	Pull(ctx context.Context, opts PullOptions, report Reporter) error
	Push(ctx context.Context, opts PushOptions, report Reporter) error
	// Login proves credentials; it gives an identity token when the registry handed one out.
	Login(ctx context.Context, server string, creds Credentials) (identityToken string, err error)
	Search(ctx context.Context, term string, opts SearchOptions) ([]SearchResult, error)
	Distribution(ctx context.Context, ref string, creds Credentials) (Remote, error)
	// Tags lists what a registry has of a repository.
	Tags(ctx context.Context, repo string, creds Credentials) ([]string, error)
}

// Blobs is what pulls need of the content room.
type Blobs interface {
	// Begin opens what is there of a blob, or a new one; errs.Conflict when somebody else has it open.
	Begin(name string) (Ingest, error)
	Open(ctx context.Context, d digest.Digest) (io.ReadCloser, error)
	Stat(ctx context.Context, d digest.Digest) (content.Info, error)
	Delete(ctx context.Context, d digest.Digest) error
}

// Ingest is a blob that is coming in.
type Ingest interface {
	client.Sink
	// Follow reads from the beginning, waits where nothing is yet, and ends after Commit.
	Follow(ctx context.Context) io.ReadCloser
	Commit(want digest.Digest, size int64) (content.Info, error)
	Abort() error
	Close() error
}

// reportEvery is how often the progress of a layer is told.
const reportEvery = 100 * time.Millisecond
