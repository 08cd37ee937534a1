package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/reference"
)

// manifest answers for a manifest by tag or digest.
func (c *call) manifest() error {
	ref := c.route.ref
	d, isDigest := parseDigest(ref)
	if !isDigest && strings.Contains(ref, ":") {
		return refuse(http.StatusBadRequest, codeDigestInvalid, "invalid or unsupported digest %.150q", ref)
	}
	if !isDigest && !reference.ValidTag(ref) {
		if c.req.Method == http.MethodPut || c.req.Method == http.MethodDelete {
			return refuse(http.StatusBadRequest, codeManifestInvalid, "invalid tag %.150q", ref)
		}
		return manifestUnknown(ref)
	}
	switch c.req.Method {
	case http.MethodPut:
		return c.putManifest(d)
	case http.MethodDelete:
		if isDigest {
			return c.deleteManifest(d)
		}
		return c.deleteTag()
	}
	return c.getManifest(d)
}

func manifestUnknown(ref string) *problem {
	p := refuse(http.StatusNotFound, codeManifestUnknown, "manifest unknown to registry")
	p.details = []any{map[string]string{"reference": fmt.Sprintf("%.150s", ref)}}
	return p
}

// getManifest answers GET and HEAD; d is empty for a tag.
func (c *call) getManifest(d digest.Digest) error {
	ctx, repo := c.req.Context(), c.route.name
	d, m, err := c.findManifest(ctx, d)
	if err != nil {
		return err
	}
	// Who asks for a digest without reading it wants to know whether he has to push it.
	if c.req.Method == http.MethodHead && c.route.ref == string(d) && !c.r.fresh(m.Seen) && !c.r.opts.ReadOnly {
		if err := c.r.renewManifest(ctx, repo, d, m); err != nil {
			c.r.log.Warn("manifest is not kept for a push", "repository", repo, "digest", d, "error", err)
		}
	}
	h := c.w.Header()
	h.Set("Docker-Content-Digest", string(d))
	h.Set("ETag", `"`+string(d)+`"`)
	if done, err := c.notModified(`"` + string(d) + `"`); done || err != nil {
		return err
	}
	c.writeBody(http.StatusOK, m.MediaType, m.raw)
	return nil
}

// findManifest looks here, and asks the upstreams as far as there are any.
func (c *call) findManifest(ctx context.Context, d digest.Digest) (digest.Digest, manifestRecord, error) {
	repo := c.route.name
	m, err := manifestRecord{}, error(nil)
	byTag := d == ""
	if byTag {
		d, m, err = c.r.resolveTag(ctx, repo, c.route.ref)
	} else {
		m, _, err = c.r.getManifest(ctx, repo, d)
	}
	if err != nil && !isNotFound(err) {
		return d, m, err
	}
	if c.r.opts.Upstreams != nil && (byTag || err != nil) {
		return c.r.pullManifest(ctx, repo, c.route.ref, d, m, err == nil)
	}
	if err != nil {
		return d, m, manifestUnknown(c.route.ref)
	}
	return d, m, nil
}

// resolveTag finds the manifest of a tag; errs.NotFound.
func (r *Registry) resolveTag(ctx context.Context, repo, tag string) (digest.Digest, manifestRecord, error) {
	t, _, err := r.getTag(ctx, repo, tag)
	if err != nil {
		return "", manifestRecord{}, err
	}
	m, _, err := r.getManifest(ctx, repo, t.Digest)
	if err != nil {
		return "", manifestRecord{}, err
	}
	return t.Digest, m, nil
}

// putManifest takes a manifest in; want is empty when it is pushed by tag.
func (c *call) putManifest(want digest.Digest) error {
	raw, err := c.readManifest()
	if err != nil {
		return err
	}
	alg, tags := digest.SHA256, []string{c.route.ref}
	if want != "" {
		alg = want.Algorithm()
		if tags, err = queryTags(c.req.URL.Query()["tag"]); err != nil {
			return err
		}
	}
	d := alg.FromBytes(raw)
	if want != "" && d != want {
		return refuse(http.StatusBadRequest, codeDigestInvalid, "manifest is %s, not %s", d, want)
	}
	doc, err := parseDocument(c.req.Header.Get("Content-Type"), raw)
	if err != nil {
		return refuse(http.StatusBadRequest, codeManifestInvalid, "%w", err)
	}
	ctx := context.WithoutCancel(c.req.Context()) // a client that goes away leaves nothing half done
	if err := c.r.checkReferences(ctx, c.route.name, doc); err != nil {
		return err
	}
	if err := c.storeTagged(ctx, d, doc, raw, tags); err != nil {
		return err
	}
	h := c.w.Header()
	h.Set("Location", c.location("/v2/"+c.route.name+"/manifests/"+string(d)))
	h.Set("Docker-Content-Digest", string(d))
	if doc.subject != nil {
		h.Set("OCI-Subject", string(doc.subject.Digest))
	}
	if want != "" {
		for _, tag := range tags {
			h.Add("OCI-Tag", tag)
		}
	}
	c.writeEmpty(http.StatusCreated)
	return nil
}

// maxQueryTags bounds the tags of one push; the specification wants at least 10.
const maxQueryTags = 100

func queryTags(tags []string) ([]string, error) {
	if len(tags) > maxQueryTags {
		return nil, refuse(http.StatusRequestURITooLong, codeManifestInvalid, "%d tags in one request, more than %d", len(tags), maxQueryTags)
	}
	for _, tag := range tags {
		if !reference.ValidTag(tag) {
			return nil, refuse(http.StatusBadRequest, codeManifestInvalid, "invalid tag %.150q", tag)
		}
	}
	tags = slices.Clone(tags)
	slices.Sort(tags)
	return slices.Compact(tags), nil
}

func (c *call) readManifest() ([]byte, error) {
	limit := c.r.limits.Manifest
	if limit > 0 {
		c.body.left = limit
		if c.req.ContentLength > limit {
			return nil, refuse(http.StatusRequestEntityTooLarge, codeManifestInvalid, "manifest has %d bytes, more than %d", c.req.ContentLength, limit)
		}
	}
	raw, err := io.ReadAll(c.body)
	if err == nil {
		return raw, nil
	}
	p := c.body.problem()
	if p.status == http.StatusRequestEntityTooLarge {
		p = refuse(p.status, codeManifestInvalid, "manifest has more than %d bytes", limit)
	}
	return nil, p
}

// storeTagged keeps a manifest and moves tags to it, one push of a tag at a time if the client set a condition for it.
func (c *call) storeTagged(ctx context.Context, d digest.Digest, doc document, raw []byte, tags []string) error {
	repo := c.route.name
	for _, tag := range tags {
		unlock, err := c.r.tags.Lock(c.req.Context(), tagKey(repo, tag))
		if err != nil {
			return err
		}
		defer unlock()
		if err := c.precondition(ctx, tag); err != nil {
			return err
		}
	}
	if err := c.r.storeManifest(ctx, repo, d, doc, raw); err != nil {
		return err
	}
	for _, tag := range tags {
		if err := c.r.putTag(ctx, repo, tag, d); err != nil {
			return err
		}
	}
	return nil
}

// precondition is If-Match and If-None-Match of a push by tag: clients that keep lists in tags use it against each other.
func (c *call) precondition(ctx context.Context, tag string) error {
	match, none := c.req.Header.Get("If-Match"), c.req.Header.Get("If-None-Match")
	if match == "" && none == "" {
		return nil
	}
	d, _, err := c.r.resolveTag(ctx, c.route.name, tag)
	if err != nil && !isNotFound(err) {
		return err
	}
	there := err == nil
	if match != "" && (!there || !hasETag(match, string(d))) || none != "" && there && hasETag(none, string(d)) {
		return refuse(http.StatusPreconditionFailed, codeManifestInvalid, "tag %s is not what the request expects", tag)
	}
	return nil
}

// storeManifest keeps a manifest, and lists it among the referrers of its subject.
func (r *Registry) storeManifest(ctx context.Context, repo string, d digest.Digest, doc document, raw []byte) error {
	now := time.Now().UTC()
	m := manifestRecord{recordHead: recordHead{MediaType: doc.mediaType, Pushed: now, Seen: now}, raw: raw}
	if doc.subject != nil {
		m.Subject = doc.subject.Digest
	}
	value, err := m.encode()
	if err != nil {
		return err
	}
	if err := r.d.Put(ctx, manifestKey(repo, d), value); err != nil {
		return err
	}
	if doc.subject == nil {
		return nil
	}
	desc, err := json.Marshal(doc.descriptor(d, int64(len(raw))))
	if err != nil {
		return fmt.Errorf("list referrer %s: %w", d, err)
	}
	return r.d.Put(ctx, referrersKey(repo, doc.subject.Digest)+"/"+referrerName(d), desc)
}

func (r *Registry) putTag(ctx context.Context, repo, tag string, d digest.Digest) error {
	value, err := json.Marshal(tagValue{Digest: d, Pushed: time.Now().UTC()})
	if err != nil {
		return fmt.Errorf("tag %s: %w", tag, err)
	}
	return r.d.Put(ctx, tagKey(repo, tag), value)
}

// checkReferences makes sure that everything a manifest names is here and stays, and is as large as it says.
func (r *Registry) checkReferences(ctx context.Context, repo string, doc document) error {
	type want struct {
		digest digest.Digest
		isBlob bool
	}
	sizes := map[want]int64{}
	for _, desc := range doc.blobs {
		if err := sameSize(sizes, want{desc.Digest, true}, desc.Size); err != nil {
			return err
		}
	}
	for _, desc := range doc.manifests {
		if err := sameSize(sizes, want{desc.Digest, false}, desc.Size); err != nil {
			return err
		}
	}
	free := map[digest.Digest]bool{}
	for _, desc := range doc.blobs {
		free[desc.Digest] = optional(desc)
	}
	found := newGather(8, r.log)
	for w, size := range sizes {
		found.run(func() (any, error) {
			have, err := r.leaseReference(ctx, repo, w.digest, w.isBlob)
			switch {
			case isNotFound(err) && w.isBlob && free[w.digest]:
				return nil, nil
			case isNotFound(err):
				return map[string]string{"digest": string(w.digest)}, nil
			case err == nil && have != size:
				err = refuse(http.StatusBadRequest, codeManifestInvalid, "manifest says that %s has %d bytes, but it has %d", w.digest, size, have)
			}
			return nil, err
		})
	}
	missing, err := found.wait()
	if err != nil {
		return err
	}
	if len(missing) > 0 {
		p := refuse(http.StatusBadRequest, codeManifestBlobUnknown, "manifest references a manifest or blob unknown to registry")
		p.details = missing
		return p
	}
	return nil
}

func sameSize[K comparable](sizes map[K]int64, key K, size int64) error {
	if before, ok := sizes[key]; ok && before != size {
		return refuse(http.StatusBadRequest, codeManifestInvalid, "manifest names one digest with the sizes %d and %d", before, size)
	}
	sizes[key] = size
	return nil
}

// leaseReference finds what a manifest names. An index may also name something that is kept as a blob.
func (r *Registry) leaseReference(ctx context.Context, repo string, d digest.Digest, isBlob bool) (int64, error) {
	if !isBlob {
		m, err := r.leaseManifest(ctx, repo, d)
		if !isNotFound(err) {
			return int64(len(m.raw)), err
		}
	}
	return r.leaseBlob(ctx, repo, d)
}

func (c *call) deleteTag() error {
	ctx, key := c.req.Context(), tagKey(c.route.name, c.route.ref)
	unlock, err := c.r.tags.Lock(ctx, key)
	if err != nil {
		return err
	}
	defer unlock()
	_, err = c.r.d.Get(ctx, key)
	if isNotFound(err) {
		return manifestUnknown(c.route.ref)
	}
	if err != nil {
		return err
	}
	if err := c.precondition(ctx, c.route.ref); err != nil {
		return err
	}
	if err := c.r.d.Delete(ctx, key, nil); err != nil {
		return err
	}
	c.writeEmpty(http.StatusAccepted)
	return nil
}

func (c *call) deleteManifest(d digest.Digest) error {
	ctx := context.WithoutCancel(c.req.Context())
	m, _, err := c.r.getManifest(ctx, c.route.name, d)
	if isNotFound(err) {
		return manifestUnknown(string(d))
	}
	if err != nil {
		return err
	}
	if err := c.r.removeManifest(ctx, c.route.name, d, m, nil); err != nil {
		return err
	}
	c.writeEmpty(http.StatusAccepted)
	return nil
}

// removeManifest takes a manifest away, and before it the tags that lead to it. With old, only as long as it is as it was read: errs.Conflict.
func (r *Registry) removeManifest(ctx context.Context, repo string, d digest.Digest, m manifestRecord, old []byte) error {
	if old == nil {
		if err := r.removeTagsOf(ctx, repo, d); err != nil {
			return err
		}
	}
	if err := r.d.Delete(ctx, manifestKey(repo, d), old); err != nil {
		return err
	}
	if m.Subject == "" {
		return nil
	}
	return r.d.Delete(ctx, referrersKey(repo, m.Subject)+"/"+referrerName(d), nil)
}

// removeTagsOf deletes the tags of a manifest; one that is moved meanwhile stays.
func (r *Registry) removeTagsOf(ctx context.Context, repo string, d digest.Digest) error {
	work := newGather(8, r.log)
	err := r.d.List(ctx, repositoryKey(repo)+"/"+tagsPart, "", func(tag string, dir bool) error {
		if dir {
			return nil
		}
		work.run(func() (any, error) {
			t, value, err := r.getTag(ctx, repo, tag)
			if isNotFound(err) || err == nil && t.Digest != d {
				return nil, nil
			}
			if err != nil {
				return nil, err
			}
			err = r.d.Delete(ctx, tagKey(repo, tag), value)
			if errors.Is(err, errs.Conflict) {
				return nil, nil
			}
			return nil, err
		})
		return nil
	})
	_, werr := work.wait()
	return errors.Join(err, werr)
}
