// Package client speaks the distribution protocol to registries: what `pull`, `push`, `login`, `search` and the mirrors need.
//
// It owns nothing on disk. It knows hosts, names and blobs; it does not know images in our store, nor the engine. It promises: nothing that
// came from a registry is believed (digests, sizes and counts are bounded and verified before a byte is handed on as whole); credentials go to the
// registry they were given for and to the token service it names, never to where a redirect leads; no secret is ever in an error, a log line or a URL;
// every wait ends with the context; what can be tried again is tried again, with back-off, from where it stopped.
package client

import (
	"context"
	"io"
	"log/slog"
	"net/http"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"corten.dev/corten/internal/manifest"
	"corten.dev/corten/internal/reference"
)

// Credentials are what somebody knows about one registry (Docker's AuthConfig). The zero value is anonymous.
type Credentials struct {
	Username, Password string
	IdentityToken      string // an OAuth2 refresh token, sent to the token service
	RegistryToken      string // a bearer token, sent as it is
}

// Options describe a client.
type Options struct {
	// Hosts says where the registry of a domain is reached; nil is Direct.
	Hosts     Hosts
	UserAgent string
	Logger    *slog.Logger
	// Retries bounds how often one request that may be repeated is repeated; 0 is 5, less is never. Backoff is the first wait, doubling; 0 is 500 ms.
	Retries int
	Backoff time.Duration
	// RangeSize is the least size of a blob that comes by several ranges at a time, Ranges how many; 0 is 64 MiB and 3.
	RangeSize int64
	Ranges    int
}

// Endpoint is one place that can answer for a domain.
type Endpoint struct {
	URL    string // "https://mirror.example:5000" with an optional path prefix
	Mirror bool   // asked first, for reading only; an error of a mirror leads to the next endpoint
	// Rewrite gives the repository path at this endpoint; nil leaves it alone.
	Rewrite func(path string) string
	// Transport holds TLS roots, client certificates and proxies of this host.
	Transport http.RoundTripper
	// PlainToo allows http:// when https:// does not answer (insecure registries, loopback addresses).
	PlainToo bool
	// NameSpace adds ?ns=<domain>, as pull-through caches of several upstreams expect.
	NameSpace bool
	// Credentials gives a mirror's own user, since those of the registry are not for it; nil is anonymous.
	Credentials func() (Credentials, error)
}

// Hosts finds the endpoints of a repository, the ones to be tried first at the front; the registry itself is the last.
type Hosts interface {
	Endpoints(domain, path string) ([]Endpoint, error)
}

// Sink is where a blob goes; what it holds already is the blob's beginning (content.Ingest is one).
type Sink interface {
	io.Writer
	Size() int64
	Restart() error // forget what is there: it is more than the blob, or (see Summer) not the blob
}

// Repository is one repository with the credentials of one caller. Its methods may be called concurrently.
type Repository interface {
	// Resolve fetches a manifest or index by tag or digest. An error keeps the registry's own words.
	Resolve(ctx context.Context, tagOrDigest string) (manifest.Document, error)
	// Head asks for a manifest's descriptor only.
	Head(ctx context.Context, tagOrDigest string) (ocispec.Descriptor, error)
	// Fetch appends the rest of a blob to dst, with retries, ranges and resumption, until all of d.Size is there. The digest is the caller's to
	// check where dst does it on commit; Fetch never writes more than d.Size bytes.
	Fetch(ctx context.Context, d ocispec.Descriptor, dst Sink) error
	// Blob reads a small blob (a config), verified.
	Blob(ctx context.Context, d ocispec.Descriptor, limit int64) ([]byte, error)

	// Has tells whether the registry has a blob.
	Has(ctx context.Context, d digest.Digest) (bool, error)
	// Mount asks for a blob of another repository of the same registry; false when it is not given, and then nothing is left open.
	Mount(ctx context.Context, d digest.Digest, from string) (bool, error)
	// Push sends a blob, in one go where it can, from where the registry's answer says after a break. It gives size and digest also when they
	// were not known before.
	Push(ctx context.Context, up Upload) (ocispec.Descriptor, error)
	// PushManifest stores a document under a tag or its digest. A registry that names another digest is an error.
	PushManifest(ctx context.Context, tagOrDigest string, doc manifest.Document) error
	// Tags lists the tags, all pages.
	Tags(ctx context.Context) ([]string, error)
	// Delete removes a tag or manifest.
	Delete(ctx context.Context, tagOrDigest string) error
}

// Upload is a blob to be sent.
type Upload struct {
	Digest digest.Digest // may be empty: then the stream is digested while it is sent
	Size   int64         // -1 when not known
	// Open reads the blob from an offset. It is called again after a broken connection, with the offset that the registry has, which may be 0; it
	// must give the same bytes each time. Its error ends the push.
	Open func(ctx context.Context, offset int64) (io.ReadCloser, error)
	// Progress hears how many bytes were sent so far (it may go back after a break). It must not wait, and is never called twice at a time.
	Progress func(sent int64)
}

// SearchResult is one line of `search` (the v1 search API).
type SearchResult struct {
	Name, Description string
	Stars             int
	Official          bool
	Automated         bool
}

// Registry is what the engine uses of this package.
type Registry interface {
	Repository(ref reference.Ref, creds Credentials) (Repository, error)
	// Login proves credentials against a registry ("" is Docker Hub). It gives an identity token when the token service handed one out.
	Login(ctx context.Context, server string, creds Credentials) (identityToken string, err error)
	Search(ctx context.Context, term string, limit int, creds Credentials) ([]SearchResult, error)
	Catalog(ctx context.Context, domain string, creds Credentials) ([]string, error)
}
