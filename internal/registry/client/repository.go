package client

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/manifest"
	"corten.dev/corten/internal/reference"
)

// repository is one repository at all its endpoints.
type repository struct {
	c     *Client
	ref   reference.Ref
	sites []*site

	mu   sync.Mutex              // guards gave
	gave map[digest.Digest]*site // the endpoint that gave all of a blob
}

// each asks the endpoints one after the other, until one has it. What a mirror refuses is only logged: the registry has the last word.
func (r *repository) each(ctx context.Context, sites []*site, what string, ask func(*site) error) error {
	var err error
	for i, s := range sites {
		last := i == len(sites)-1
		if !last && s.c.away(s.base.Host) {
			continue
		}
		if err = ask(s); err == nil || ctx.Err() != nil || errors.Is(err, errSink) {
			return err
		}
		if _, answered := asError(err); !last && !answered && !s.reached.Load() {
			s.c.goneAway(s.base.Host)
		}
		if !last {
			level := slog.LevelWarn
			if errors.Is(err, errs.NotFound) {
				level = slog.LevelDebug // nobody promised that it has everything
			}
			r.c.log.Log(ctx, level, "registry mirror passed over", "mirror", s.base.Host, "repository", r.ref.Name(), "for", what, "error", err)
		}
	}
	return err
}

// awayFor is how long a mirror is left alone that did not answer at all: a dead one must not cost its time limit for each layer.
const awayFor = time.Minute

func (c *Client) away(host string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return time.Since(c.gone[host]) < awayFor
}

func (c *Client) goneAway(host string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.gone[host] = time.Now()
}

func (s *site) pull() []string { return []string{"repository:" + s.path + ":pull"} }
func (s *site) push() []string { return []string{"repository:" + s.path + ":pull,push"} }

// named refuses a path that a rewriting made and that is no name.
func (s *site) named() error {
	if s.path == "" {
		return errs.New(errs.Invalid, "registry %s: the rewriting for %s gives no repository name", s.domain, s.base.Host)
	}
	return nil
}

func (s *site) manifests(tagOrDigest string) string {
	return "/v2/" + s.path + "/manifests/" + tagOrDigest
}

// checkRef keeps what is no tag and no digest out of a path.
func checkRef(tagOrDigest string) (byDigest bool, err error) {
	if strings.Contains(tagOrDigest, ":") {
		d := digest.Digest(tagOrDigest)
		if err := d.Validate(); err != nil || d.Algorithm() != digest.SHA256 {
			return false, errs.New(errs.Invalid, "%q is not a sha256 digest", tagOrDigest)
		}
		return true, nil
	}
	if !reference.ValidTag(tagOrDigest) {
		return false, errs.New(errs.Invalid, "%q is no tag", tagOrDigest)
	}
	return false, nil
}

// familiar is the name that people know, for errors.
func (r *repository) familiar(tagOrDigest string) string {
	name := r.ref.FamiliarName()
	if strings.Contains(tagOrDigest, ":") {
		return name + "@" + tagOrDigest
	}
	return name + ":" + tagOrDigest
}

func acceptDocuments() http.Header {
	return http.Header{"Accept": {strings.Join([]string{manifest.OCIIndex, manifest.DockerList, manifest.OCIManifest, manifest.DockerManifest, "*/*;q=0.1"}, ", ")}}
}

// Resolve fetches a document.
func (r *repository) Resolve(ctx context.Context, tagOrDigest string) (manifest.Document, error) {
	var doc manifest.Document
	if _, err := checkRef(tagOrDigest); err != nil {
		return doc, err
	}
	err := r.each(ctx, r.sites, tagOrDigest, func(s *site) (err error) {
		doc, err = s.resolve(ctx, tagOrDigest)
		return err
	})
	return doc, pullError(err, r.familiar(tagOrDigest), r.ref.FamiliarName())
}

func (s *site) resolve(ctx context.Context, tagOrDigest string) (manifest.Document, error) {
	var doc manifest.Document
	if err := s.named(); err != nil {
		return doc, err
	}
	byDigest := strings.Contains(tagOrDigest, ":")
	c := &call{method: http.MethodGet, path: s.manifests(tagOrDigest), header: acceptDocuments(), scopes: s.pull(), sealed: byDigest}
	for try := 0; ; try++ {
		raw, header, err := s.document(ctx, c)
		if err == nil {
			return s.check(tagOrDigest, byDigest, raw, header)
		}
		if !s.pause(ctx, try, err) {
			return doc, err
		}
	}
}

// document reads the bytes of a manifest. A server that compresses them unasked is understood, within the same bounds.
func (s *site) document(ctx context.Context, c *call) ([]byte, http.Header, error) {
	c.once = true
	resp, err := s.do(ctx, c)
	if err != nil {
		return nil, nil, err
	}
	if resp.ContentLength > manifest.MaxSize {
		drop(resp)
		return nil, nil, refuse(errs.Invalid, "%s: manifest has %d bytes, more than %d", where(c.method, resp.Request.URL), resp.ContentLength, manifest.MaxSize)
	}
	raw, err := page(resp, manifest.MaxSize)
	if err != nil {
		return nil, nil, err
	}
	if resp.Header.Get("Content-Encoding") == "gzip" {
		plain, err := gunzip(raw)
		if err != nil {
			return nil, nil, refuse(errs.Invalid, "%s: manifest: %w", where(c.method, resp.Request.URL), err)
		}
		raw = plain
	}
	return raw, resp.Header, nil
}

func gunzip(raw []byte) ([]byte, error) {
	zr, err := gzip.NewReader(bytes.NewReader(raw))
	if err != nil {
		return nil, err
	}
	plain, err := io.ReadAll(io.LimitReader(zr, manifest.MaxSize+1))
	if err == nil && len(plain) > manifest.MaxSize {
		err = errs.New(errs.Invalid, "unpacks to more than %d bytes", manifest.MaxSize)
	}
	return plain, err
}

// check compares a document with what was asked for, and with what the server says it is.
func (s *site) check(tagOrDigest string, byDigest bool, raw []byte, header http.Header) (manifest.Document, error) {
	actual := digest.FromBytes(raw)
	if byDigest && string(actual) != tagOrDigest {
		return manifest.Document{}, refuse(errs.Invalid, "manifest verification failed for digest %s: registry %s sent %s", tagOrDigest, s.base.Host, actual)
	}
	if said := header.Get("Docker-Content-Digest"); strings.HasPrefix(said, "sha256:") && said != string(actual) {
		return manifest.Document{}, refuse(errs.Invalid, "registry %s says that the manifest %s is %s, but sent %s", s.base.Host, tagOrDigest, oneLine(said), actual)
	}
	doc, err := manifest.Parse(header.Get("Content-Type"), raw)
	if err != nil {
		return doc, refuse(errs.Invalid, "registry %s: %s: %w", s.base.Host, tagOrDigest, err)
	}
	return doc, nil
}

// Head asks for a descriptor. Servers that leave half of it out are asked for the whole document.
func (r *repository) Head(ctx context.Context, tagOrDigest string) (ocispec.Descriptor, error) {
	var d ocispec.Descriptor
	if _, err := checkRef(tagOrDigest); err != nil {
		return d, err
	}
	err := r.each(ctx, r.sites, tagOrDigest, func(s *site) (err error) {
		d, err = s.head(ctx, tagOrDigest)
		return err
	})
	return d, pullError(err, r.familiar(tagOrDigest), r.ref.FamiliarName())
}

func (s *site) head(ctx context.Context, tagOrDigest string) (ocispec.Descriptor, error) {
	if err := s.named(); err != nil {
		return ocispec.Descriptor{}, err
	}
	resp, err := s.do(ctx, &call{method: http.MethodHead, path: s.manifests(tagOrDigest), header: acceptDocuments(), scopes: s.pull()})
	if err != nil {
		e, ok := asError(err)
		if !ok || e.Status != http.StatusMethodNotAllowed {
			return ocispec.Descriptor{}, err
		}
		return s.headByGet(ctx, tagOrDigest)
	}
	drop(resp)
	mediaType, _, _ := strings.Cut(resp.Header.Get("Content-Type"), ";")
	d := ocispec.Descriptor{MediaType: strings.TrimSpace(mediaType), Digest: digest.Digest(resp.Header.Get("Docker-Content-Digest")), Size: resp.ContentLength}
	if manifest.Check(d) != nil || !manifest.IsDocument(d.MediaType) || d.Size > manifest.MaxSize {
		return s.headByGet(ctx, tagOrDigest)
	}
	if strings.Contains(tagOrDigest, ":") && string(d.Digest) != tagOrDigest {
		return ocispec.Descriptor{}, refuse(errs.Invalid, "registry %s says that the manifest %s is %s", s.base.Host, tagOrDigest, d.Digest)
	}
	return d, nil
}

func (s *site) headByGet(ctx context.Context, tagOrDigest string) (ocispec.Descriptor, error) {
	doc, err := s.resolve(ctx, tagOrDigest)
	return ocispec.Descriptor{MediaType: doc.MediaType, Digest: doc.Digest, Size: int64(len(doc.Raw))}, err
}

// PushManifest stores a document.
func (r *repository) PushManifest(ctx context.Context, tagOrDigest string, doc manifest.Document) error {
	byDigest, err := checkRef(tagOrDigest)
	if err != nil {
		return err
	}
	if byDigest && tagOrDigest != string(doc.Digest) {
		return errs.New(errs.Invalid, "manifest %s cannot be pushed as %s", doc.Digest, tagOrDigest)
	}
	s, err := home(r.sites)
	if err != nil {
		return err
	}
	if err := s.named(); err != nil {
		return err
	}
	resp, err := s.do(ctx, &call{
		method: http.MethodPut, path: s.manifests(tagOrDigest), header: http.Header{"Content-Type": {doc.MediaType}}, scopes: s.push(), size: int64(len(doc.Raw)),
		body: func(context.Context) (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(doc.Raw)), nil },
	})
	if err != nil {
		return err
	}
	drop(resp)
	if resp.StatusCode != http.StatusCreated && resp.StatusCode != http.StatusOK && resp.StatusCode != http.StatusAccepted {
		return errs.New(errs.Unavailable, "%s: received unexpected HTTP status: %d %s", where(http.MethodPut, resp.Request.URL), resp.StatusCode, http.StatusText(resp.StatusCode))
	}
	if said := resp.Header.Get("Docker-Content-Digest"); strings.HasPrefix(said, "sha256:") && said != string(doc.Digest) {
		return errs.New(errs.Invalid, "registry %s stored the manifest as %s, but it is %s", s.base.Host, oneLine(said), doc.Digest)
	}
	return nil
}

// Delete removes a tag or a manifest.
func (r *repository) Delete(ctx context.Context, tagOrDigest string) error {
	if _, err := checkRef(tagOrDigest); err != nil {
		return err
	}
	s, err := home(r.sites)
	if err != nil {
		return err
	}
	if err := s.named(); err != nil {
		return err
	}
	resp, err := s.do(ctx, &call{method: http.MethodDelete, path: s.manifests(tagOrDigest), scopes: []string{"repository:" + s.path + ":delete,pull,push"}})
	if err != nil {
		return err
	}
	drop(resp)
	return nil
}

// Has asks whether a blob is there.
func (r *repository) Has(ctx context.Context, d digest.Digest) (bool, error) {
	if err := manifest.Check(ocispec.Descriptor{Digest: d}); err != nil {
		return false, err
	}
	s, err := home(r.sites)
	if err != nil {
		return false, err
	}
	if err := s.named(); err != nil {
		return false, err
	}
	resp, err := s.do(ctx, &call{method: http.MethodHead, path: s.blob(d), scopes: s.push(), sealed: true})
	if e, ok := asError(err); ok && e.Status == http.StatusNotFound {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	drop(resp)
	return true, nil
}

func (s *site) blob(d digest.Digest) string { return "/v2/" + s.path + "/blobs/" + string(d) }
