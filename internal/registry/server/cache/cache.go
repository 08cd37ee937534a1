// Package cache is pull-through: registries behind this one, asked for what is not here.
//
// It owns no content (the registry keeps what comes, by its normal ingest); only notes among the driver's values:
//
//	upstreams/tags/<repository>/_tags/<tag>          JSON (note): which manifest came from the upstream under this tag, and when it was last asked
//	upstreams/sizes/<algorithm>/<hh>/<hex>           how many bytes a blob has, as the manifest says that named it
//
// and, while a blob comes, a file without a name in the staging folder, from which all who want it read. It promises: an upstream that does not answer
// never takes away what is here; a tag that was pushed here is not replaced by the upstream's; one blob is fetched once however many ask at a time, and
// for as long as one of them still waits; credentials go to their upstream only.
package cache

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/manifest"
	"corten.dev/corten/internal/reference"
	"corten.dev/corten/internal/registry/client"
	"corten.dev/corten/internal/registry/server"
	"corten.dev/corten/internal/task"
)

// Upstream is one registry behind this one.
type Upstream struct {
	// Prefix names the repositories that come from it: all below it; "" is all of them.
	Prefix string
	// Remote is the client that reaches it, as Domain.
	Remote      client.Registry
	Domain      string
	Credentials client.Credentials
	// TTL is how long a tag is believed before the upstream is asked again; 0 asks at each pull.
	TTL         time.Duration
	Allow, Deny []string // globs over the upstream's own names; no Allow is all
}

// Store keeps the notes; a server.Driver is one.
type Store interface {
	Get(ctx context.Context, key string) ([]byte, error)
	Put(ctx context.Context, key string, value []byte) error
}

// Options describe a cache.
type Options struct {
	Upstreams []Upstream
	Store     Store
	Staging   string // folder
	Logger    *slog.Logger
	Now       func() time.Time // nil is time.Now
}

const (
	askTime  = 10 * time.Second // for an upstream, where something is here anyway
	waitTime = 2 * time.Minute  // where nothing is
	downTime = 15 * time.Second // how long an upstream that did not answer is left alone, where something is here anyway
)

// Cache is a server.Upstreams.
type Cache struct {
	opts   Options
	log    *slog.Logger
	asking flights[answer]
	blobs  blobs
	mu     sync.Mutex              // guards what follows
	down   map[string]time.Time    // domains that did not answer
	sizes  map[digest.Digest]int64 // of blobs that were named a moment ago
}

var _ server.Upstreams = (*Cache)(nil)

// answer is what asking for a manifest led to; all who asked meanwhile get it.
type answer struct {
	manifest server.UpstreamManifest
	err      error
}

// New makes a cache.
func New(opts Options) (*Cache, error) {
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	if opts.Now == nil {
		opts.Now = time.Now
	}
	if err := checkStaging(opts.Staging); err != nil {
		return nil, err
	}
	return &Cache{opts: opts, log: opts.Logger, down: map[string]time.Time{}, sizes: map[digest.Digest]int64{}}, nil
}

// route finds the upstream of a repository, and its name there. The longest prefix counts.
func (c *Cache) route(repository string) (up *Upstream, name string, ok bool) {
	for i := range c.opts.Upstreams {
		u := &c.opts.Upstreams[i]
		rest, below := repository, u.Prefix == ""
		if !below {
			rest, below = strings.CutPrefix(repository, u.Prefix+"/")
		}
		if below && rest != "" && (up == nil || len(u.Prefix) > len(up.Prefix)) {
			up, name = u, rest
		}
	}
	if up == nil {
		return nil, "", false
	}
	if up.Domain == reference.DefaultDomain && !strings.Contains(name, "/") {
		name = "library/" + name
	}
	return up, name, up.allows(name)
}

func (u *Upstream) allows(name string) bool {
	any := func(globs []string) bool {
		for _, g := range globs {
			if server.Match(g, name) {
				return true
			}
		}
		return false
	}
	return (len(u.Allow) == 0 || any(u.Allow)) && !any(u.Deny)
}

func (u *Upstream) repository(name string) (client.Repository, error) {
	return u.Remote.Repository(reference.Ref{Domain: u.Domain, Path: name}, u.Credentials)
}

// note is what is known of a tag that came from an upstream.
type note struct {
	Digest  digest.Digest `json:"digest"`
	Checked time.Time     `json:"checked"`
}

func noteKey(repository, tag string) string { return "upstreams/tags/" + repository + "/_tags/" + tag }

func (c *Cache) note(ctx context.Context, repository, tag string) (n note, err error) {
	raw, err := c.opts.Store.Get(ctx, noteKey(repository, tag))
	if errors.Is(err, errs.NotFound) {
		return n, nil
	}
	if err != nil {
		return n, err
	}
	if err := json.Unmarshal(raw, &n); err != nil {
		c.log.Warn("the note of a tag is damaged; the upstream is asked", "repository", repository, "tag", tag, "err", err)
	}
	return n, nil
}

func (c *Cache) keepNote(ctx context.Context, repository, tag string, d digest.Digest) error {
	raw, err := json.Marshal(note{Digest: d, Checked: c.opts.Now().UTC()})
	if err != nil {
		return err
	}
	return c.opts.Store.Put(ctx, noteKey(repository, tag), raw)
}

// Manifest asks the upstream of a repository for a manifest.
//
//	have  note                                   answer
//	yes   none, or of another manifest           it was pushed here: good
//	yes   of this manifest, younger than TTL     good
//	yes   of this manifest, older                the upstream is asked for its digest: the same, or no answer: good; another: fetched
//	no                                           fetched
func (c *Cache) Manifest(ctx context.Context, repository, ref string, have digest.Digest) (server.UpstreamManifest, error) {
	up, name, ok := c.route(repository)
	if !ok {
		return server.UpstreamManifest{}, errs.New(errs.NotFound, "no upstream has %s", repository)
	}
	byDigest := strings.Contains(ref, ":")
	if have != "" {
		if byDigest {
			return server.UpstreamManifest{}, errs.New(errs.NotModified, "a digest does not change")
		}
		known, err := c.note(ctx, repository, ref)
		if err != nil {
			return server.UpstreamManifest{}, err
		}
		if known.Digest != have || c.opts.Now().Sub(known.Checked) < up.TTL || c.isDown(up.Domain) {
			return server.UpstreamManifest{}, errs.New(errs.NotModified, "what is here is good")
		}
	}
	key := repository + "\x00" + ref + "\x00" + string(have)
	a, err := c.asking.do(ctx, key, func(ctx context.Context) answer {
		limit := waitTime
		if have != "" {
			limit = askTime
		}
		ctx, cancel := context.WithTimeout(ctx, limit)
		defer cancel()
		m, err := c.ask(ctx, asked{up, name, repository, ref, have})
		return answer{m, err}
	})
	if err != nil {
		return server.UpstreamManifest{}, err
	}
	return a.manifest, a.err
}

// asked is one question to an upstream.
type asked struct {
	up         *Upstream
	name       string // there
	repository string // here
	ref        string
	have       digest.Digest
}

func (c *Cache) ask(ctx context.Context, q asked) (m server.UpstreamManifest, err error) {
	defer task.Contain(c.log, "ask an upstream for "+q.name, &err)
	repo, err := q.up.repository(q.name)
	if err != nil {
		return m, err
	}
	byDigest := strings.Contains(q.ref, ":")
	if q.have != "" {
		head, err := repo.Head(ctx, q.ref)
		if err != nil {
			return m, c.stale(q, err)
		}
		if head.Digest == q.have {
			if err := c.keepNote(ctx, q.repository, q.ref, q.have); err != nil {
				return m, err
			}
			return m, errs.New(errs.NotModified, "it is the same")
		}
	}
	doc, err := repo.Resolve(ctx, q.ref)
	if err != nil && q.have != "" {
		return m, c.stale(q, err)
	}
	if err != nil {
		return m, c.refused(q, err)
	}
	if byDigest && doc.Digest != digest.Digest(q.ref) && digest.Digest(q.ref).Algorithm() == digest.Canonical {
		return m, errs.New(errs.Unavailable, "upstream %s sent %s for %s", q.up.Domain, doc.Digest, q.ref)
	}
	if err := c.remember(ctx, doc); err != nil {
		return m, err
	}
	if !byDigest {
		if err := c.keepNote(ctx, q.repository, q.ref, doc.Digest); err != nil {
			return m, err
		}
	}
	return server.UpstreamManifest{MediaType: doc.MediaType, Raw: doc.Raw}, nil
}

// stale: something is here, so whatever the upstream says or does not say, it is good.
func (c *Cache) stale(q asked, err error) error {
	if !errors.Is(err, errs.NotFound) {
		c.mu.Lock()
		c.down[q.up.Domain] = c.opts.Now()
		c.mu.Unlock()
	}
	c.log.Warn("upstream gives no answer; what is here is served", "upstream", q.up.Domain, "repository", q.repository, "tag", q.ref, "digest", q.have, "err", err)
	return errs.New(errs.NotModified, "what is here is good enough")
}

// refused makes an upstream's refusal ours. That it lets us not in is no question of our own users' rights.
func (c *Cache) refused(q asked, err error) error {
	switch {
	case errors.Is(err, errs.NotFound):
		return errs.New(errs.NotFound, "upstream %s: %w", q.up.Domain, err)
	case errors.Is(err, errs.Unauthorized), errors.Is(err, errs.Forbidden):
		c.log.Warn("upstream refuses; does it need other credentials?", "upstream", q.up.Domain, "repository", q.repository, "err", err)
		return errs.New(errs.NotFound, "upstream %s has no %s for us", q.up.Domain, q.name)
	}
	c.log.Error("upstream does not answer, and nothing is here", "upstream", q.up.Domain, "repository", q.repository, "reference", q.ref, "err", err)
	return errs.New(errs.Unavailable, "upstream %s does not answer", q.up.Domain)
}

func (c *Cache) isDown(domain string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.opts.Now().Sub(c.down[domain]) < downTime
}

const maxSizes = 50000

// remember notes how large the blobs of an image are: who asks for one later does not say, and an upstream is not believed.
func (c *Cache) remember(ctx context.Context, doc manifest.Document) error {
	if doc.Manifest == nil {
		return nil
	}
	for _, d := range append(doc.Manifest.Layers[:len(doc.Manifest.Layers):len(doc.Manifest.Layers)], doc.Manifest.Config) {
		if size, err := c.size(ctx, d.Digest); err == nil && size == d.Size {
			continue
		}
		if err := c.opts.Store.Put(ctx, sizeKey(d.Digest), fmt.Append(nil, d.Size)); err != nil {
			return err
		}
		c.mu.Lock()
		if len(c.sizes) >= maxSizes {
			clear(c.sizes)
		}
		c.sizes[d.Digest] = d.Size
		c.mu.Unlock()
	}
	return nil
}

func sizeKey(d digest.Digest) string {
	hex := d.Encoded()
	return "upstreams/sizes/" + d.Algorithm().String() + "/" + hex[:2] + "/" + hex
}

// size of a blob that a manifest named; errs.NotFound.
func (c *Cache) size(ctx context.Context, d digest.Digest) (int64, error) {
	c.mu.Lock()
	size, ok := c.sizes[d]
	c.mu.Unlock()
	if ok {
		return size, nil
	}
	raw, err := c.opts.Store.Get(ctx, sizeKey(d))
	if err != nil {
		return 0, err
	}
	if _, err := fmt.Sscan(string(raw), &size); err != nil || size < 0 {
		return 0, errs.New(errs.NotFound, "the note of %s is damaged", d)
	}
	return size, nil
}
