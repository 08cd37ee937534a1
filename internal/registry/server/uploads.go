package server

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"

	"github.com/opencontainers/go-digest"

	"corten.dev/corten/internal/errs"
)

// startUpload answers POST: a mount, a whole blob at once, or the beginning of a session.
func (c *call) startUpload() error {
	query := c.req.URL.Query()
	if query.Has("mount") {
		if mounted, err := c.tryMount(query.Get("mount"), query.Get("from")); mounted || err != nil {
			return err
		}
	}
	alg := digest.SHA256
	if a := query.Get("digest-algorithm"); a != "" {
		if alg = digest.Algorithm(a); !knownAlgorithm(alg) {
			return refuse(http.StatusBadRequest, codeDigestInvalid, "digest algorithm %.40q is not supported", a)
		}
	}
	var want digest.Digest
	if query.Has("digest") {
		var ok bool
		if want, ok = parseDigest(query.Get("digest")); !ok {
			return refuse(http.StatusBadRequest, codeDigestInvalid, "invalid or unsupported digest %.150q", query.Get("digest"))
		}
		alg = want.Algorithm()
	}
	if err := c.r.addUpload(c.req.Context()); err != nil {
		return err
	}
	uuid := newUUID()
	made := false
	err := c.withUpload(uuid, UploadOptions{Create: true, Algorithm: alg}, func(up Upload) error {
		made = true
		if want != "" {
			return c.receiveWhole(up, want)
		}
		if c.r.limits.Chunk > 0 {
			c.w.Header().Set("OCI-Chunk-Min-Length", fmt.Sprint(c.r.limits.Chunk))
		}
		c.uploadHeaders(uuid, alg, 0)
		c.writeEmpty(http.StatusAccepted)
		return nil
	})
	if !made {
		c.r.sessions.gone(1)
	}
	return err
}

// receiveWhole is a blob in one request: if it does not come as announced, nothing stays, because the client has no session to go on with.
func (c *call) receiveWhole(up Upload, want digest.Digest) error {
	err := c.append(up, -1)
	if err == nil {
		err = c.commit(up, want)
		var p *problem
		if err == nil || errors.As(err, &p) { // what is not what it should be is gone
			return err
		}
	}
	c.r.sessions.gone(1)
	if aerr := up.Abort(context.WithoutCancel(c.req.Context())); aerr != nil {
		c.r.log.Warn("broken upload stays until it is collected", "error", aerr)
	}
	return err
}

// tryMount links a blob from elsewhere. false: the client has to upload it.
func (c *call) tryMount(mount, from string) (bool, error) {
	d, ok := parseDigest(mount)
	if !ok {
		return false, refuse(http.StatusBadRequest, codeDigestInvalid, "invalid or unsupported digest %.150q", mount)
	}
	ctx := c.req.Context()
	repo := c.route.name
	switch {
	case from == "" && c.r.opts.Guard != nil:
		from = repo // somebody who knows a digest must not get a blob from where he may not look
	case from != "" && !validName(from):
		return false, nil
	case from != "" && from != repo && c.r.opts.Guard != nil:
		err := c.r.opts.Guard.Allow(ctx, c.req.Header.Get("Authorization"), from, Pull)
		if errors.Is(err, errs.Unauthorized) || errors.Is(err, errs.Forbidden) {
			return false, nil
		}
		if err != nil {
			return false, err
		}
	}
	err := c.r.mount(ctx, repo, from, d)
	if isNotFound(err) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	c.created(d)
	return true, nil
}

// created says that a blob can be pulled.
func (c *call) created(d digest.Digest) {
	h := c.w.Header()
	h.Set("Location", c.location("/v2/"+c.route.name+"/blobs/"+string(d)))
	h.Set("Docker-Content-Digest", string(d))
	c.writeEmpty(http.StatusCreated)
}

// uploadHeaders say where to go on.
func (c *call) uploadHeaders(uuid string, alg digest.Algorithm, size int64) {
	path := "/v2/" + c.route.name + "/blobs/uploads/" + uuid
	if alg != digest.SHA256 {
		path += "?digest-algorithm=" + url.QueryEscape(string(alg))
	}
	h := c.w.Header()
	h.Set("Location", c.location(path))
	h.Set("Range", endOfRange(size))
	h.Set("Docker-Upload-UUID", uuid)
}

// upload answers for one session.
func (c *call) upload() error {
	uuid := c.route.ref
	if !validUUID(uuid) {
		return uploadUnknown(uuid)
	}
	query := c.req.URL.Query()
	alg := digest.SHA256
	if a := digest.Algorithm(query.Get("digest-algorithm")); knownAlgorithm(a) {
		alg = a
	}
	switch c.req.Method {
	case http.MethodGet, http.MethodHead:
		return c.uploadStatus(uuid, alg)
	case http.MethodPatch, http.MethodPut:
		if err := c.tooLate(uuid, alg); err != nil {
			return err
		}
	}
	switch c.req.Method {
	case http.MethodPatch:
		return c.withUpload(uuid, UploadOptions{Algorithm: alg}, func(up Upload) error { return c.patch(up, uuid, alg) })
	case http.MethodDelete:
		return c.withUpload(uuid, UploadOptions{}, func(up Upload) error {
			if err := up.Abort(c.req.Context()); err != nil {
				return err
			}
			c.r.sessions.gone(1)
			c.writeEmpty(http.StatusNoContent)
			return nil
		})
	}
	want, ok := parseDigest(query.Get("digest"))
	if !ok {
		return refuse(http.StatusBadRequest, codeDigestInvalid, "invalid or unsupported digest %.150q", query.Get("digest"))
	}
	return c.withUpload(uuid, UploadOptions{Algorithm: want.Algorithm()}, func(up Upload) error {
		if err := c.appendChunk(up, uuid, alg); err != nil {
			return err
		}
		return c.commit(up, want)
	})
}

func uploadUnknown(uuid string) *problem {
	p := refuse(http.StatusNotFound, codeUploadUnknown, "blob upload unknown to registry")
	p.details = []any{map[string]string{"upload": fmt.Sprintf("%.40s", uuid)}}
	return p
}

// withUpload opens a session for fn, alone. What fn leaves there stays for the next request.
func (c *call) withUpload(uuid string, opts UploadOptions, fn func(Upload) error) error {
	mine, err := c.r.sessions.claim(c.req.Context(), uploadID(c.route.name, uuid), c.body.interrupt)
	if err != nil {
		return err
	}
	return c.inSession(mine, uuid, opts, fn)
}

func (c *call) inSession(mine *session, uuid string, opts UploadOptions, fn func(Upload) error) error {
	id := uploadID(c.route.name, uuid)
	defer c.r.sessions.release(id, mine)
	up, err := c.r.d.Upload(c.req.Context(), id, opts)
	if isNotFound(err) {
		return uploadUnknown(uuid)
	}
	if err != nil {
		return err
	}
	c.r.sessions.opened(mine, up)
	err = fn(up)
	if cerr := up.Close(); cerr != nil {
		return errors.Join(err, fmt.Errorf("keep upload: %w", cerr))
	}
	return err
}

// uploadStatus tells how much is there, also while another request is bringing more, which it leaves alone.
func (c *call) uploadStatus(uuid string, alg digest.Algorithm) error {
	ctx := c.req.Context()
	id := uploadID(c.route.name, uuid)
	c.r.sessions.settle(ctx, id)
	size, busy := c.r.sessions.peek(ctx, id)
	for !busy {
		mine, err := c.r.sessions.claim(ctx, id, nil)
		if err != nil {
			return err
		}
		if mine == nil { // somebody was faster
			size, busy = c.r.sessions.peek(ctx, id)
			continue
		}
		err = c.inSession(mine, uuid, UploadOptions{Algorithm: alg}, func(up Upload) error {
			size = up.Size()
			return nil
		})
		if err != nil {
			return err
		}
		break
	}
	c.uploadHeaders(uuid, alg, size)
	c.writeEmpty(http.StatusNoContent)
	return nil
}

func (c *call) patch(up Upload, uuid string, alg digest.Algorithm) error {
	if err := c.appendChunk(up, uuid, alg); err != nil {
		return err
	}
	c.uploadHeaders(uuid, alg, up.Size())
	c.writeEmpty(http.StatusAccepted)
	return nil
}

// tooLate refuses a chunk that does not fit an upload which another request is bringing forward, without cutting that one off: it may be what is left of
// a connection that the client gave up long ago.
func (c *call) tooLate(uuid string, alg digest.Algorithm) error {
	start, _, ok := parseContentRange(c.req.Header.Get("Content-Range"))
	if !ok {
		return nil
	}
	size, busy := c.r.sessions.peek(c.req.Context(), uploadID(c.route.name, uuid))
	if !busy || size == start {
		return nil
	}
	return c.outOfOrder(uuid, alg, start, size)
}

func (c *call) outOfOrder(uuid string, alg digest.Algorithm, start, size int64) error {
	c.uploadHeaders(uuid, alg, size)
	return refuse(http.StatusRequestedRangeNotSatisfiable, codeUploadInvalid, "chunk begins at %d, but the next byte is %d", start, size)
}

// appendChunk adds the body of a PATCH or PUT, which must come next if it says where it belongs.
func (c *call) appendChunk(up Upload, uuid string, alg digest.Algorithm) error {
	header := c.req.Header.Get("Content-Range")
	if header == "" {
		return c.append(up, -1)
	}
	start, length, ok := parseContentRange(header)
	if !ok {
		return refuse(http.StatusBadRequest, codeUploadInvalid, "invalid Content-Range %.60q", header)
	}
	if size := up.Size(); start != size {
		return c.outOfOrder(uuid, alg, start, size)
	}
	if c.req.ContentLength >= 0 && c.req.ContentLength != length {
		return refuse(http.StatusBadRequest, codeSizeInvalid, "Content-Range %.60q does not fit Content-Length %d", header, c.req.ContentLength)
	}
	return c.append(up, length)
}

// append adds the body, of exactly that length unless it is negative.
func (c *call) append(up Upload, length int64) error {
	if c.req.ContentLength == 0 && length < 0 {
		return nil
	}
	if limit := c.r.limits.Blob; limit > 0 {
		c.body.left = max(limit-up.Size(), 0)
		if max(c.req.ContentLength, length) > c.body.left {
			return refuse(http.StatusRequestEntityTooLarge, codeSizeInvalid, "blob is larger than the %d bytes that are allowed", limit)
		}
	}
	if length >= 0 {
		c.body.left = length
	}
	before := up.Size()
	err := up.Append(c.req.Context(), c.body)
	if p := c.body.problem(); p != nil {
		return p
	}
	if err != nil {
		return err
	}
	if got := up.Size() - before; length >= 0 && got != length {
		return refuse(http.StatusBadRequest, codeSizeInvalid, "chunk has %d bytes, not %d as its Content-Range says", got, length)
	}
	return nil
}

// commit names the blob and gives it to the repository. A client that goes away now does not stop it.
func (c *call) commit(up Upload, want digest.Digest) error {
	ctx := context.WithoutCancel(c.req.Context())
	info, err := up.Commit(ctx, want)
	if errors.Is(err, errs.Invalid) {
		c.r.sessions.gone(1)
		return refuse(http.StatusBadRequest, codeDigestInvalid, "provided digest did not match uploaded content: %w", err)
	}
	if err != nil {
		return err
	}
	c.r.sessions.gone(1)
	if err := c.r.putLink(ctx, c.route.name, want, info.Size); err != nil {
		return err
	}
	c.created(want)
	return nil
}
