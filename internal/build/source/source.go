// Package source is where the trees of a build come from: images of registries, of the store and of OCI layouts, build contexts, files of web servers, git repositories.
//
// It owns <data-root>/builds/sources. It does not know how an image is pulled or a context is transferred: it asks by [base.Images] and [build.Session]. It promises: what a server, a
// repository or a context claims is verified or contained; a server that never ends costs bounded time and space, and says so; a secret goes to the host that it is for, and is in no
// record, error, argument or log line; what was downloaded and did not change is not downloaded again.
//
//	<data-root>/builds/sources/http/<sha256 of the request>.json   what a server said about a file: ETag, Last-Modified, digest, layer
//	<data-root>/builds/sources/git/<sha256 of the address>/        a bare repository, with what was fetched so far
//	<data-root>/builds/sources/tmp/                                checkouts and sockets under way; emptied at start
//
// # Identity
//
// A source's key is what was looked up, not what was asked for:
//
//	docker-image, oci-layout   the layers that the config names, and the manifest. Nothing is fetched for it: Output.Fetch does that when a step needs the files
//	http, https                the layer that was made of the file: digest, name, mode, owner, time
//	git                        commit, subdirectory and options, by which the checkout is recorded
//	local                      the session and the vertex. A context has no content of its own until somebody reads it: who reads it takes the checksum of what he reads. So its key only
//	                           keeps apart what must not be shared: two sessions never get each other's files, whatever their vertices are called, and one session opens a context once
//
// What is kept of http, git and pulled layers is a record of the build cache, under the source's key: it is shown, counted and pruned like any other.
package source

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/moby/buildkit/solver/pb"
	srctypes "github.com/moby/buildkit/source/types"
	"github.com/opencontainers/go-digest"

	"corten.dev/corten/internal/build"
	"corten.dev/corten/internal/build/source/base"
	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/record"
	"corten.dev/corten/internal/snapshot"
)

// Layers is what sources need of the store of layers; snapshot.Store has it.
type Layers interface {
	Apply(ctx context.Context, parent snapshot.ChainID, want digest.Digest, layer io.Reader) (snapshot.Layer, error)
	Stat(ctx context.Context, chain snapshot.ChainID) (snapshot.Layer, error)
}

// Options join the sources with what they stand on; all without a default are needed.
type Options struct {
	// Root is the folder of this package.
	Root   string
	Images base.Images
	Layers Layers
	Cache  build.Cache
	// Transport is for http and https; nil is one with the environment's proxies.
	Transport http.RoundTripper
	// MaxBytes bounds one file of a web server, and what a git repository may bring at a time; 0 is 32 GiB.
	MaxBytes int64
	// Git is the program; empty is "git", found on the PATH when it is needed.
	Git string
	// MaxAge is how long a git repository stays that no build asked for; 0 is a week. MaxKept is how many stay at most; 0 is 32.
	MaxAge  time.Duration
	MaxKept int
	// Pace is when a web server is too slow: fewer than Pace.Bytes in Pace.Within. Zero values: 16 KiB, 30 s.
	Pace Pace
	Log  *slog.Logger
}

// Pace is the least speed of a download.
type Pace struct {
	Bytes  int64
	Within time.Duration
}

// Sources make the work of source vertices.
type Sources struct {
	opts  Options
	files *record.Dir[file]
	web   *http.Client
	busy  keyed // one at a time for each file and repository
	sizes sizes // of repositories
}

// New opens the folder. What interrupted work left there is removed.
func New(opts Options) (*Sources, error) {
	if opts.Log == nil {
		opts.Log = slog.New(slog.DiscardHandler)
	}
	if opts.MaxBytes == 0 {
		opts.MaxBytes = 32 << 30
	}
	if opts.Pace == (Pace{}) {
		opts.Pace = Pace{Bytes: 16 << 10, Within: 30 * time.Second}
	}
	if opts.MaxAge == 0 {
		opts.MaxAge = 7 * 24 * time.Hour
	}
	if opts.MaxKept == 0 {
		opts.MaxKept = 32
	}
	if opts.Git == "" {
		opts.Git = "git"
	}
	s := &Sources{opts: opts, web: webClient(opts.Transport)}
	if err := os.RemoveAll(s.tmp()); err != nil {
		return nil, fmt.Errorf("sources of builds: %w", err)
	}
	for _, dir := range []string{s.tmp(), filepath.Join(opts.Root, "git")} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, fmt.Errorf("sources of builds: %w", err)
		}
	}
	var err error
	if s.files, err = record.Open[file](filepath.Join(opts.Root, "http"), opts.Log); err != nil {
		return nil, fmt.Errorf("sources of builds: %w", err)
	}
	if err := s.Collect(context.Background()); err != nil {
		return nil, errors.Join(fmt.Errorf("sources of builds: %w", err), s.files.Close())
	}
	return s, nil
}

// Close lets go of the folder.
func (s *Sources) Close() error {
	s.web.CloseIdleConnections()
	return s.files.Close()
}

func (s *Sources) tmp() string { return filepath.Join(s.opts.Root, "tmp") }

// Make is the build.Maker for sources.
func (s *Sources) Make(v *build.Vertex) (build.Op, error) {
	op := v.Op.GetSource()
	if op == nil {
		return nil, errs.New(errs.Invalid, "vertex %s is no source", v.Digest)
	}
	scheme, _, err := splitIdentifier(op.Identifier)
	if err != nil {
		return nil, err
	}
	switch scheme {
	case srctypes.DockerImageScheme:
		id, err := parseImage(op, v.Op.Platform)
		return &imageOp{s: s, give: func(ctx context.Context, env build.Env) (build.Output, digest.Digest, error) {
			return s.image(ctx, env, id)
		}}, err
	case srctypes.OCIScheme:
		id, err := parseLayout(op, v.Op.Platform)
		return &imageOp{s: s, give: func(ctx context.Context, env build.Env) (build.Output, digest.Digest, error) {
			return s.layout(ctx, env, id)
		}}, err
	case srctypes.LocalScheme:
		id, err := parseLocal(op)
		return &localOp{id: id, vertex: v.Digest}, err
	case srctypes.HTTPScheme, srctypes.HTTPSScheme:
		id, err := parseHTTP(op)
		return &httpOp{s: s, id: id}, err
	case srctypes.GitScheme:
		id, err := parseGit(op)
		return &gitOp{s: s, id: id}, err
	}
	return nil, errs.New(errs.NotImplemented, "source %s: the scheme %s is not supported", op.Identifier, scheme)
}

// splitIdentifier cuts "scheme://rest".
func splitIdentifier(id string) (scheme, rest string, err error) {
	scheme, rest, ok := strings.Cut(id, "://")
	if !ok || scheme == "" || rest == "" {
		return "", "", errs.New(errs.Invalid, "source %q is not of the form scheme://name", id)
	}
	return scheme, rest, nil
}

// keyOf names a source's result.
func keyOf(kind string, parts ...string) digest.Digest {
	var all strings.Builder
	all.WriteString("source." + kind)
	for _, p := range parts {
		fmt.Fprintf(&all, "\x00%d:%s", len(p), p)
	}
	return digest.FromString(all.String())
}

// kept finds the layer of a recorded source, if it is here.
func (s *Sources) kept(ctx context.Context, key digest.Digest) (snapshot.ChainID, bool, error) {
	rec, ok, err := s.opts.Cache.Lookup(ctx, key)
	if err != nil || !ok || len(rec.Outputs) != 1 {
		return "", false, err
	}
	_, err = s.opts.Layers.Stat(ctx, rec.Outputs[0])
	return rec.Outputs[0], err == nil, nil
}

// keep records a source's layer.
func (s *Sources) keep(ctx context.Context, key digest.Digest, chain snapshot.ChainID, kind, description string) error {
	return s.opts.Cache.Save(ctx, build.Record{Key: key, Outputs: []snapshot.ChainID{chain}, Kind: kind, Description: description, Created: time.Now()})
}

// sourceTraits are those of all sources.
type sourceTraits struct{}

func (sourceTraits) Traits() build.Traits { return build.Traits{Source: true} }

// session is the session of this id; "" is the build's own.
func session(ctx context.Context, env build.Env, id string) (*build.Session, error) {
	if env.Session == nil {
		return &build.Session{}, nil
	}
	return env.Session(ctx, id)
}

func platformOf(p *pb.Platform) string {
	if p == nil || p.OS == "" {
		return ""
	}
	name := p.OS + "/" + p.Architecture
	if p.Variant != "" {
		name += "/" + p.Variant
	}
	return name
}
