package client

import (
	"context"
	"errors"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/manifest"
)

// An upload (distribution-spec, "Pushing blobs"):
//
//	POST ──▶ session ──▶ PUT ?digest with all bytes            size and digest known
//	            │   └──▶ PATCH with all bytes, PUT ?digest     one of them not known
//	            │                 │ a break, 5xx, 416
//	            │                 ▼
//	            │        GET session ──▶ what it has ──▶ PATCH with Content-Range from there, PUT ?digest
//	            │                 │ it has nothing, or does not know the session
//	            └──◀── DELETE ◀───┘
//
// A session that will not be finished is deleted, also when the caller has gone.
type upload struct {
	s     *site
	up    Upload
	bytes *source

	place    *url.URL // of the session; nil before there is one
	least    int64    // OCI-Chunk-Min-Length
	offset   int64    // what the session has, as far as it said
	pieces   bool     // bodies without a length are refused here
	finished bool
}

// Push sends a blob.
func (r *repository) Push(ctx context.Context, up Upload) (ocispec.Descriptor, error) {
	var d ocispec.Descriptor
	if up.Digest != "" {
		if err := manifest.Check(ocispec.Descriptor{Digest: up.Digest, Size: max(0, up.Size)}); err != nil {
			return d, err
		}
	}
	s, err := home(r.sites)
	if err != nil {
		return d, err
	}
	if err := s.named(); err != nil {
		return d, err
	}
	u := &upload{s: s, up: up, bytes: newSource(up)}
	err = u.run(ctx)
	if !u.finished {
		u.cancel(ctx)
	}
	if err != nil {
		return d, err
	}
	return ocispec.Descriptor{MediaType: "application/octet-stream", Digest: u.bytes.digest(), Size: u.bytes.total()}, nil
}

func (u *upload) run(ctx context.Context) error {
	mark := int64(0)
	for try := 0; ; try++ {
		err := u.attempt(ctx)
		if err == nil {
			u.finished = true
			return nil
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		again := u.recover(ctx, err)
		// What the registry says it keeps is progress; what was sent and lost is not.
		if u.offset-mark >= u.s.c.tuning.progress {
			try, mark = 0, u.offset
		}
		if again == sessionLost || again == lengthWanted {
			if try >= u.s.c.opts.Retries {
				return err
			}
			continue
		}
		if !u.s.pause(ctx, try, err) {
			return err
		}
	}
}

// What a failure means for the next attempt.
type outcome int

const (
	asItIs       outcome = iota // as the error says
	sessionLost                 // a new session may do
	lengthWanted                // the same in pieces may do
)

// recover finds out what the session has, and makes a new one necessary when that is nothing.
func (u *upload) recover(ctx context.Context, err error) outcome {
	if u.place == nil || errors.Is(err, errSource) {
		return asItIs
	}
	e, refused := asError(err)
	switch {
	case !refused && !u.s.transient(err):
		return asItIs
	case refused && !u.pieces && u.bytes.unknown() && (e.Status == http.StatusLengthRequired || e.Status == http.StatusNotImplemented || e.Status == http.StatusBadRequest && e.Code != "DIGEST_INVALID"):
		u.pieces = true
		u.forget(ctx)
		return lengthWanted
	case refused && e.Status == http.StatusNotFound:
		u.place, u.offset = nil, 0
		return sessionLost
	case refused && e.Status != http.StatusRequestedRangeNotSatisfiable && !u.s.transient(err):
		return asItIs
	}
	before := u.offset
	if err := u.status(ctx); err != nil {
		u.s.c.log.Debug("registry: upload begins anew", "host", u.s.base.Host, "error", err)
		u.forget(ctx)
	}
	if refused && e.Status == http.StatusRequestedRangeNotSatisfiable {
		if u.place != nil && u.offset == before {
			u.forget(ctx) // it refuses what it asks for
		}
		return sessionLost
	}
	return asItIs
}

func (u *upload) forget(ctx context.Context) {
	u.cancel(ctx)
	u.place, u.offset = nil, 0
}

// cancel deletes the session. It is a courtesy: registries forget sessions by themselves, so that a failure is no more than logged.
func (u *upload) cancel(ctx context.Context) {
	if u.place == nil {
		return
	}
	own, cancel := context.WithTimeout(context.WithoutCancel(ctx), u.s.c.tuning.farewell)
	defer cancel()
	resp, err := u.s.send(own, &call{method: http.MethodDelete, url: u.place, scopes: u.s.push()})
	if err != nil {
		u.s.c.log.Debug("registry: upload not cancelled", "host", u.s.base.Host, "error", err)
		return
	}
	drop(resp)
}

// attempt brings the upload to its end from where it is.
func (u *upload) attempt(ctx context.Context) error {
	if u.place == nil {
		if err := u.begin(ctx); err != nil || u.finished {
			return err
		}
		if !u.bytes.unknown() {
			return u.put(ctx, 0)
		}
	}
	if err := u.patch(ctx); err != nil {
		return err
	}
	return u.put(ctx, u.bytes.total())
}

// begin opens a session.
func (u *upload) begin(ctx context.Context) error {
	c := &call{method: http.MethodPost, path: "/v2/" + u.s.path + "/blobs/uploads/", scopes: u.s.push(), once: true}
	resp, err := u.s.do(ctx, c)
	if err != nil {
		return err
	}
	drop(resp)
	switch {
	case resp.StatusCode == http.StatusCreated && u.up.Digest != "" && resp.Header.Get("Docker-Content-Digest") == string(u.up.Digest):
		u.finished = true // it has the blob, and says which
		return nil
	case resp.StatusCode != http.StatusAccepted && resp.StatusCode != http.StatusCreated && resp.StatusCode != http.StatusOK:
		return unexpected(resp)
	}
	u.least = 0
	if n, err := strconv.ParseInt(resp.Header.Get("OCI-Chunk-Min-Length"), 10, 64); err == nil && n > 0 {
		u.least = n
	}
	u.offset = 0
	return u.moved(resp, true)
}

func unexpected(resp *http.Response) error {
	return errs.New(errs.Unavailable, "%s: received unexpected HTTP status: %d %s", where(resp.Request.Method, resp.Request.URL), resp.StatusCode, http.StatusText(resp.StatusCode))
}

// moved reads where the session is now.
func (u *upload) moved(resp *http.Response, must bool) error {
	link := resp.Header.Get("Location")
	if link == "" {
		if must {
			return refuse(errs.Unavailable, "%s: answer names no place for the upload", where(resp.Request.Method, resp.Request.URL))
		}
		return nil
	}
	place, err := parseURL(resp.Request.URL, link)
	if err != nil {
		return refuse(errs.Unavailable, "%s: place of the upload: %w", where(resp.Request.Method, resp.Request.URL), err)
	}
	root := u.s.root()
	if place.Scheme == "http" && root.Scheme == "https" {
		// A registry behind a proxy that ends TLS may not know that it has it.
		if !strings.EqualFold(place.Hostname(), root.Hostname()) || place.Port() != root.Port() && place.Port() != "" {
			return refuse(errs.Unavailable, "registry %s leads the upload from https to http://%s: refused", u.s.domain, place.Host)
		}
		place.Scheme, place.Host = "https", root.Host
	}
	u.place = place
	return nil
}

// put closes the session, with the bytes from an offset.
func (u *upload) put(ctx context.Context, from int64) error {
	place := *u.place
	if place.RawQuery != "" {
		place.RawQuery += "&"
	}
	place.RawQuery += "digest=" + url.QueryEscape(string(u.bytes.digest()))
	c := &call{method: http.MethodPut, url: &place, header: octets(), scopes: u.s.push(), once: true}
	if size := u.bytes.total() - from; size > 0 {
		c.size, c.body = size, u.bytes.open(from, u.bytes.total())
	}
	resp, err := u.s.do(ctx, c)
	if err != nil {
		return err
	}
	drop(resp)
	if resp.StatusCode != http.StatusCreated && resp.StatusCode != http.StatusOK && resp.StatusCode != http.StatusNoContent {
		return unexpected(resp)
	}
	if said := resp.Header.Get("Docker-Content-Digest"); strings.HasPrefix(said, "sha256:") && said != string(u.bytes.digest()) {
		return refuse(errs.Invalid, "registry %s stored the blob as %s, but it is %s", u.s.base.Host, oneLine(said), u.bytes.digest())
	}
	u.bytes.all()
	return nil
}

func octets() http.Header { return http.Header{"Content-Type": {"application/octet-stream"}} }

// patch sends all that the session does not have.
func (u *upload) patch(ctx context.Context) error {
	size := u.bytes.total()
	switch {
	case size >= 0 && u.offset == size:
		return nil
	case size >= 0:
		c := &call{method: http.MethodPatch, url: u.place, header: octets(), scopes: u.s.push(), once: true, size: size - u.offset, body: u.bytes.open(u.offset, size)}
		c.header.Set("Content-Range", contentRange(u.offset, size))
		return u.patched(ctx, c, size)
	case u.offset == 0 && !u.pieces:
		c := &call{method: http.MethodPatch, url: u.place, header: octets(), scopes: u.s.push(), once: true, size: -1, body: u.bytes.open(0, -1)}
		return u.patched(ctx, c, -1)
	}
	return u.inPieces(ctx)
}

func contentRange(from, to int64) string {
	return strconv.FormatInt(from, 10) + "-" + strconv.FormatInt(to-1, 10)
}

// patched makes one PATCH that brings the session to a size (-1: the stream's end).
func (u *upload) patched(ctx context.Context, c *call, to int64) error {
	resp, err := u.s.do(ctx, c)
	if err != nil {
		return err
	}
	drop(resp)
	if resp.StatusCode != http.StatusAccepted && resp.StatusCode != http.StatusNoContent && resp.StatusCode != http.StatusOK && resp.StatusCode != http.StatusCreated {
		return unexpected(resp)
	}
	if to < 0 {
		if to = u.bytes.total(); to < 0 {
			return errs.New(errs.Unavailable, "%s: answered before the end of the stream", where(c.method, resp.Request.URL))
		}
	}
	if err := u.moved(resp, false); err != nil {
		return err
	}
	if has, ok := parseOffset(resp.Header.Get("Range")); ok && has < to {
		return errs.New(errs.Unavailable, "%s: has %d bytes of %d", where(c.method, resp.Request.URL), has, to)
	}
	u.offset = to
	return nil
}

// status asks what the session has.
func (u *upload) status(ctx context.Context) error {
	resp, err := u.s.do(ctx, &call{method: http.MethodGet, url: u.place, scopes: u.s.push()})
	if err != nil {
		return err
	}
	drop(resp)
	has, ok := parseOffset(resp.Header.Get("Range"))
	if !ok {
		return errs.New(errs.Unavailable, "%s: does not say what it has", where(http.MethodGet, u.place))
	}
	if has > u.bytes.reached() {
		return errs.New(errs.Unavailable, "%s: has %d bytes, more than were sent", where(http.MethodGet, u.place), has)
	}
	if has == 0 {
		return errs.New(errs.Unavailable, "%s: has nothing", where(http.MethodGet, u.place))
	}
	u.offset = has
	return u.moved(resp, false)
}

// parseOffset reads the Range of a session, "0-99": the bytes it has. Servers write "0-0" for none, as for one.
func parseOffset(s string) (int64, bool) {
	first, last, ok := strings.Cut(strings.TrimPrefix(s, "bytes="), "-")
	if !ok || first != "0" {
		return 0, false
	}
	n, err := strconv.ParseUint(last, 10, 62)
	if err != nil {
		return 0, false
	}
	if n == 0 {
		return 0, true
	}
	return int64(n) + 1, true
}

// Mount asks for a blob of another repository.
func (r *repository) Mount(ctx context.Context, d digest.Digest, from string) (bool, error) {
	if err := manifest.Check(ocispec.Descriptor{Digest: d}); err != nil {
		return false, err
	}
	s, err := home(r.sites)
	if err != nil {
		return false, err
	}
	if s.ep.Rewrite != nil {
		from = s.ep.Rewrite(from)
	}
	if err := s.named(); err != nil || from == "" {
		return false, err
	}
	c := &call{
		method: http.MethodPost, path: "/v2/" + s.path + "/blobs/uploads/", query: url.Values{"mount": {string(d)}, "from": {from}},
		scopes: append(s.push(), "repository:"+from+":pull"),
	}
	resp, err := s.do(ctx, c)
	if e, ok := asError(err); ok && e.Status < 500 && e.Status != http.StatusTooManyRequests {
		// No right to the other repository, or no mounts at all: the upload that follows says so, if it matters.
		s.c.log.Debug("registry: no mount", "host", s.base.Host, "from", from, "error", err)
		return false, nil
	}
	if err != nil {
		return false, err
	}
	drop(resp)
	if resp.StatusCode == http.StatusCreated {
		return true, nil
	}
	u := &upload{s: s}
	if err := u.moved(resp, false); err != nil {
		return false, err
	}
	u.cancel(ctx)
	return false, nil
}
