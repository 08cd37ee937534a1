package server

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/task"
)

// Pull-through: what is not here is asked of the upstreams, sent on while it arrives, and kept through the normal ingest.
//
//	client ◀── pipe ◀─┬── upstream
//	                  └──▶ Upload.Append … Commit, link
//
// A client that goes away does not stop the ingest. A second request for the same blob waits for the first one to end, for a while, then fetches for
// itself without keeping.

// fetches are the blobs that are being fetched; done is closed at the end, whatever it is.
type fetches struct {
	mu     sync.Mutex // guards active
	active map[string]chan struct{}
}

// followFor is how long a second request for a blob waits for the first.
const followFor = 30 * time.Second

func (f *fetches) begin(key string) (done chan struct{}, first bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if done = f.active[key]; done != nil {
		return done, false
	}
	if f.active == nil {
		f.active = map[string]chan struct{}{}
	}
	done = make(chan struct{})
	f.active[key] = done
	return done, true
}

func (f *fetches) end(key string, done chan struct{}) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.active, key)
	close(done)
}

// pullManifest asks the upstreams for a manifest. have tells that m, of the digest d, is here.
func (r *Registry) pullManifest(ctx context.Context, repo, ref string, d digest.Digest, m manifestRecord, have bool) (digest.Digest, manifestRecord, error) {
	known := d
	if !have {
		known = ""
	}
	um, err := r.opts.Upstreams.Manifest(ctx, repo, ref, known)
	if err != nil {
		if !have {
			if isNotFound(err) || errors.Is(err, errs.NotModified) {
				return d, m, manifestUnknown(ref)
			}
			return d, m, fmt.Errorf("pull %s:%s through: %w", repo, ref, err)
		}
		if !isNotFound(err) && !errors.Is(err, errs.NotModified) {
			r.log.Warn("upstream does not answer, what is here is good enough", "repository", repo, "reference", ref, "error", err)
		}
		return d, m, nil
	}
	alg := digest.SHA256
	want, byDigest := parseDigest(ref)
	if byDigest {
		alg = want.Algorithm()
	}
	got := alg.FromBytes(um.Raw)
	if byDigest && got != want {
		return d, m, errs.New(errs.Unavailable, "pull %s@%s through: upstream sent %s", repo, ref, got)
	}
	doc, err := parseDocument(um.MediaType, um.Raw)
	if err != nil {
		return d, m, errs.New(errs.Unavailable, "pull %s:%s through: %w", repo, ref, err)
	}
	// What it names comes when it is asked for.
	if err := r.storeManifest(ctx, repo, got, doc, um.Raw); err != nil {
		return d, m, err
	}
	if !byDigest {
		if err := r.putTag(ctx, repo, ref, got); err != nil {
			return d, m, err
		}
	}
	return got, manifestRecord{recordHead: recordHead{MediaType: doc.mediaType, Seen: time.Now()}, raw: um.Raw}, nil
}

// fetchBlob answers with a blob that is not here.
func (c *call) fetchBlob(d digest.Digest) error {
	if c.req.Method == http.MethodHead {
		return c.fetchUnkept(d)
	}
	ctx := c.req.Context()
	wait := time.NewTimer(followFor)
	defer wait.Stop()
	for {
		key := c.route.name + "@" + string(d)
		done, first := c.r.fetches.begin(key)
		if first {
			return c.fetchKept(d, func() { c.r.fetches.end(key, done) })
		}
		select {
		case <-done:
			l, err := c.r.getLink(ctx, c.route.name, d)
			if err == nil {
				return c.sendBlob(d, l.size, func(s span) (io.ReadCloser, error) { return c.r.d.Open(ctx, d, s.start, s.length) })
			}
			if !isNotFound(err) {
				return err
			}
		case <-wait.C:
			return c.fetchUnkept(d)
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// openUpstream opens a blob elsewhere and sets the headers for it.
func (c *call) openUpstream(ctx context.Context, d digest.Digest) (io.ReadCloser, int64, error) {
	rc, size, err := c.r.opts.Upstreams.Blob(ctx, c.route.name, d)
	if isNotFound(err) {
		return nil, 0, blobUnknown(d)
	}
	if err != nil {
		return nil, 0, fmt.Errorf("pull %s@%s through: %w", c.route.name, d, err)
	}
	c.blobHeaders(d, max(size, 0))
	if size < 0 {
		c.w.Header().Del("Content-Length")
	}
	c.w.Header().Del("Accept-Ranges") // not this time
	return rc, size, nil
}

// fetchUnkept only sends on, or for HEAD only tells.
func (c *call) fetchUnkept(d digest.Digest) error {
	rc, size, err := c.openUpstream(c.req.Context(), d)
	if err != nil {
		return err
	}
	c.w.WriteHeader(http.StatusOK)
	if c.req.Method == http.MethodHead {
		return rc.Close()
	}
	return c.stream(rc, size)
}

// fetchKept sends on and keeps. end is called when it is kept, or cannot be.
func (c *call) fetchKept(d digest.Digest, end func()) error {
	// The ingest goes on without the client, but not without the registry.
	ctx, cancel := context.WithCancel(context.WithoutCancel(c.req.Context()))
	forget := context.AfterFunc(c.r.running, cancel)
	finish := func() {
		forget()
		cancel()
		end()
	}
	rc, size, err := c.openUpstream(ctx, d)
	if err != nil {
		finish()
		return err
	}
	pr, pw := io.Pipe()
	c.r.background.Go(func() {
		defer finish()
		err := c.r.ingest(ctx, c.route.name, d, io.TeeReader(rc, &quiet{w: pw}))
		err = errors.Join(err, rc.Close())
		if err != nil {
			c.r.log.Warn("blob of an upstream is not kept", "repository", c.route.name, "digest", d, "error", err)
		}
		pw.CloseWithError(err) // nil is the end
	})
	c.w.WriteHeader(http.StatusOK)
	return c.stream(pr, size)
}

// quiet writes until that fails once, and pretends ever after.
type quiet struct {
	w      io.Writer
	failed bool
}

func (q *quiet) Write(p []byte) (int, error) {
	if !q.failed {
		_, err := q.w.Write(p)
		q.failed = err != nil
	}
	return len(p), nil
}

// ingest keeps a blob that comes from an upstream.
func (r *Registry) ingest(ctx context.Context, repo string, d digest.Digest, from io.Reader) (err error) {
	defer task.Contain(r.log, "keep blob "+d.String()+" of an upstream", &err)
	up, err := r.d.Upload(ctx, uploadID(repo, newUUID()), UploadOptions{Create: true, Algorithm: d.Algorithm()})
	if err != nil {
		return err
	}
	if err := up.Append(ctx, from); err != nil {
		return errors.Join(err, up.Abort(context.WithoutCancel(ctx)))
	}
	info, err := up.Commit(ctx, d)
	if err != nil {
		return errors.Join(err, up.Abort(context.WithoutCancel(ctx)))
	}
	return r.putLink(ctx, repo, d, info.Size)
}
