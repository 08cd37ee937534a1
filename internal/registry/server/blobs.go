package server

import (
	"fmt"
	"io"
	"net/http"
	"strconv"

	"github.com/opencontainers/go-digest"
)

// blob answers for one blob of a repository.
func (c *call) blob() error {
	d, ok := parseDigest(c.route.ref)
	if !ok {
		return refuse(http.StatusBadRequest, codeDigestInvalid, "invalid or unsupported digest %.150q", c.route.ref)
	}
	switch c.req.Method {
	case http.MethodDelete:
		return c.deleteBlob(d)
	case http.MethodHead:
		return c.headBlob(d)
	}
	return c.getBlob(d)
}

func blobUnknown(d digest.Digest) *problem {
	p := refuse(http.StatusNotFound, codeBlobUnknown, "blob unknown to registry")
	p.details = []any{map[string]string{"digest": string(d)}}
	return p
}

func (c *call) blobHeaders(d digest.Digest, size int64) {
	h := c.w.Header()
	h.Set("Content-Type", "application/octet-stream")
	h.Set("Docker-Content-Digest", string(d))
	h.Set("ETag", `"`+string(d)+`"`)
	h.Set("Accept-Ranges", "bytes")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Content-Length", strconv.FormatInt(size, 10))
	if c.r.opts.Guard == nil {
		h.Set("Cache-Control", "max-age=31536000, immutable")
	} else {
		h.Set("Cache-Control", "private, max-age=31536000, immutable")
	}
}

// headBlob promises more than that the blob is there: a client that saw it does not upload it. So it is looked for, and stays for a while.
func (c *call) headBlob(d digest.Digest) error {
	ctx := c.req.Context()
	l, err := c.r.getLink(ctx, c.route.name, d)
	if err == nil {
		_, err = c.r.d.Stat(ctx, d)
	}
	if isNotFound(err) {
		return c.blobElsewhere(d)
	}
	if err != nil {
		return err
	}
	if !c.r.fresh(l.seen) && !c.r.opts.ReadOnly {
		_, err := c.r.leaseBlob(ctx, c.route.name, d)
		if isNotFound(err) { // collected just now
			return c.blobElsewhere(d)
		}
		if err != nil {
			// A full disk: the promise cannot be written down. Who only pulls needs none, and a manifest that counts on it asks again.
			c.r.log.Warn("blob is not kept for a push", "repository", c.route.name, "digest", d, "error", err)
		}
	}
	return c.sendBlob(d, l.size, nil)
}

func (c *call) getBlob(d digest.Digest) error {
	l, err := c.r.getLink(c.req.Context(), c.route.name, d)
	if isNotFound(err) {
		return c.blobElsewhere(d)
	}
	if err != nil {
		return err
	}
	return c.sendBlob(d, l.size, func(s span) (io.ReadCloser, error) {
		return c.r.d.Open(c.req.Context(), d, s.start, s.length)
	})
}

// sendBlob answers with a blob, a part of it or, without open, what there is to know about it.
func (c *call) sendBlob(d digest.Digest, size int64, open func(span) (io.ReadCloser, error)) error {
	etag := `"` + string(d) + `"`
	c.blobHeaders(d, size)
	if done, err := c.notModified(etag); done || err != nil {
		return err
	}
	part := span{length: size}
	if header := c.req.Header.Get("Range"); header != "" && open != nil {
		if given := c.req.Header.Get("If-Range"); given == "" || hasETag(given, etag) {
			var ok bool
			if part, ok = parseRange(header, size); !ok {
				c.w.Header().Set("Content-Range", fmt.Sprintf("bytes */%d", size))
				return refuse(http.StatusRequestedRangeNotSatisfiable, codeSizeInvalid, "range %.60q is not inside of %d bytes", header, size)
			}
		}
	}
	status := http.StatusOK
	if part.partial {
		status = http.StatusPartialContent
		c.w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", part.start, part.start+part.length-1, size))
		c.w.Header().Set("Content-Length", strconv.FormatInt(part.length, 10))
	}
	if open == nil || part.length == 0 {
		c.w.WriteHeader(status)
		return nil
	}
	rc, err := open(part)
	if isNotFound(err) {
		return blobUnknown(d)
	}
	if err != nil {
		return err
	}
	c.w.WriteHeader(status)
	return c.stream(rc, part.length)
}

// stream sends a body whose headers are out. What goes wrong now can only be seen by its length: net/http cuts the connection.
func (c *call) stream(rc io.ReadCloser, want int64) error {
	n, err := io.Copy(c.w, rc)
	if cerr := rc.Close(); err == nil {
		err = cerr
	}
	switch {
	case err != nil && c.req.Context().Err() == nil:
		c.r.log.Info("blob was not sent to its end", "path", c.req.URL.Path, "sent", n, "of", want, "error", err)
	case err == nil && want >= 0 && n != want:
		c.r.log.Error("blob is shorter than it should be", "path", c.req.URL.Path, "have", n, "want", want)
	}
	return nil
}

// blobElsewhere looks where else a digest may be from: a manifest of this repository, which some clients read as a blob, or an upstream.
func (c *call) blobElsewhere(d digest.Digest) error {
	ctx := c.req.Context()
	m, _, err := c.r.getManifest(ctx, c.route.name, d)
	if err == nil {
		c.blobHeaders(d, int64(len(m.raw)))
		if done, err := c.notModified(`"` + string(d) + `"`); done || err != nil {
			return err
		}
		c.writeBody(http.StatusOK, m.MediaType, m.raw)
		return nil
	}
	if !isNotFound(err) {
		return err
	}
	if c.r.opts.Upstreams != nil {
		return c.fetchBlob(d)
	}
	return blobUnknown(d)
}

// deleteBlob takes the blob out of this repository only.
func (c *call) deleteBlob(d digest.Digest) error {
	err := c.r.dropLink(c.req.Context(), c.route.name, d)
	if isNotFound(err) {
		return blobUnknown(d)
	}
	if err != nil {
		return err
	}
	c.writeEmpty(http.StatusAccepted)
	return nil
}
