package source

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"

	"corten.dev/corten/internal/build"
	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/snapshot"
	"corten.dev/corten/internal/task"
)

// file is the record of a download: <root>/http.
type file struct {
	URL          string           `json:"url"` // for people
	ETag         string           `json:"etag,omitempty"`
	LastModified string           `json:"lastModified,omitempty"`
	Filename     string           `json:"filename"`
	Digest       digest.Digest    `json:"digest"`
	Size         int64            `json:"size"`
	Chain        snapshot.ChainID `json:"chain"`
	Key          digest.Digest    `json:"key"` // of the cache's record, which holds the layer
}

// modified is the file's time: what the server said, else 1970.
func (f file) modified() time.Time {
	if t, err := http.ParseTime(f.LastModified); err == nil {
		return t
	}
	return time.Unix(0, 0)
}

// maxRedirects is how often a server may send a request elsewhere.
const maxRedirects = 10

func webClient(transport http.RoundTripper) *http.Client {
	if transport == nil {
		transport = &http.Transport{
			Proxy:       http.ProxyFromEnvironment,
			DialContext: (&net.Dialer{Timeout: 30 * time.Second}).DialContext, ForceAttemptHTTP2: true,
			TLSHandshakeTimeout: 30 * time.Second, ResponseHeaderTimeout: time.Minute, IdleConnTimeout: time.Minute,
			MaxResponseHeaderBytes: 1 << 20,
			// The file is what the server has, byte for byte: nothing is unpacked on the way.
			DisableCompression: true,
		}
	}
	return &http.Client{Transport: transport, CheckRedirect: func(req *http.Request, via []*http.Request) error {
		if len(via) > maxRedirects {
			return errs.New(errs.Invalid, "more than %d redirects", maxRedirects)
		}
		if via[0].URL.Scheme == "https" && req.URL.Scheme != "https" {
			return errs.New(errs.Invalid, "redirect from https to %s refused", req.URL.Scheme)
		}
		return nil
	}}
}

// httpOp is an http or https source.
type httpOp struct {
	sourceTraits
	s  *Sources
	id httpID
	looked
	fresh bool // under looked.mu: it was downloaded
}

func (op *httpOp) find(ctx context.Context, env build.Env) (build.Output, digest.Digest, error) {
	return op.look(func() (build.Output, digest.Digest, error) {
		f, fresh, err := op.s.download(ctx, env, op.id)
		if err != nil {
			return build.Output{}, "", fmt.Errorf("%s: %w", op.id.name(), err)
		}
		op.mu.Lock()
		op.fresh = fresh
		op.mu.Unlock()
		return build.Output{Chain: f.Chain, Pin: f.Digest.String()}, f.Key, nil
	})
}

// Key implements build.Op. It downloads, since the content is the identity.
func (op *httpOp) Key(ctx context.Context, env build.Env, _ []build.Output) (digest.Digest, error) {
	_, key, err := op.find(ctx, env)
	return key, err
}

// Run implements build.Op.
func (op *httpOp) Run(ctx context.Context, env build.Env, _ []build.Output) (build.Made, error) {
	out, _, err := op.find(ctx, env)
	if err != nil {
		return build.Made{}, err
	}
	op.mu.Lock()
	defer op.mu.Unlock()
	return build.Made{Outputs: []build.Output{out}, Cached: !op.fresh}, nil
}

// authorization finds the header that the asker gives for this host; empty is none.
func (s *Sources) authorization(ctx context.Context, env build.Env, id httpID) (string, error) {
	ses, err := session(ctx, env, "")
	if err != nil || ses.Secrets == nil {
		return "", err
	}
	tries := []struct{ id, prefix string }{{"HTTP_AUTH_HEADER_" + id.url.Host, ""}, {"HTTP_AUTH_TOKEN_" + id.url.Host, "Bearer "}}
	if id.secret != "" {
		tries = []struct{ id, prefix string }{{id.secret, ""}}
	}
	for _, try := range tries {
		value, err := ses.Secrets.Secret(ctx, try.id)
		if err == nil {
			return try.prefix + string(value), nil
		}
		if !errors.Is(err, errs.NotFound) || id.secret != "" {
			return "", fmt.Errorf("secret %s: %w", try.id, err)
		}
	}
	return "", nil
}

// request names what is asked for, so that what one may see is not shown to another: who asks with another authorization asks for another thing.
func (id httpID) request(auth string) string {
	raw, _ := json.Marshal(struct { // strings and numbers only
		URL, Filename, Checksum, Auth string
		Perm                          int64
		UID, GID                      int
		Header                        http.Header
	}{id.url.String(), id.filename, id.checksum.String(), auth, id.perm, id.uid, id.gid, id.header})
	sum := sha256.Sum256(raw)
	return hex.EncodeToString(sum[:])
}

// download gives the file of an address as a layer: the one that is here if the server says that it is still right, or if its checksum was given.
func (s *Sources) download(ctx context.Context, env build.Env, id httpID) (f file, fresh bool, err error) {
	auth, err := s.authorization(ctx, env, id)
	if err != nil {
		return f, false, err
	}
	name := id.request(auth)
	give, err := s.busy.take(ctx, "http "+name)
	if err != nil {
		return f, false, err
	}
	defer give()
	old, err := s.files.Get(name)
	have := false
	switch {
	case err == nil:
		// The cache says whether it still holds the layer; who uses a record holds it from here on.
		defer s.opts.Cache.Use(ctx, old.Key)()
		if _, have, err = s.kept(ctx, old.Key); err != nil {
			return f, false, err
		}
	case !errors.Is(err, errs.NotFound):
		return f, false, err
	}
	if have && (id.checksum != "" || id.url.Host == sessionHost) { // what a session sends, it sends once
		return old, false, nil
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, id.url.String(), nil)
	if err != nil {
		return f, false, bare(err)
	}
	req.Header = id.header.Clone()
	if auth != "" {
		req.Header.Set("Authorization", auth)
	}
	if req.Header.Get("User-Agent") == "" {
		req.Header.Set("User-Agent", "corten")
	}
	if have && old.ETag != "" {
		req.Header.Set("If-None-Match", old.ETag)
	} else if have && old.LastModified != "" {
		req.Header.Set("If-Modified-Since", old.LastModified)
	}
	resp, err := s.ask(ctx, env, req)
	if err != nil {
		return f, false, bare(err)
	}
	defer resp.Body.Close()
	switch {
	case resp.StatusCode == http.StatusNotModified && have:
		return old, false, nil
	case resp.StatusCode < 200 || resp.StatusCode > 299:
		return f, false, errs.New(statusKind(resp.StatusCode), "invalid response status %d", resp.StatusCode)
	}
	f, err = s.take(ctx, env, id, resp)
	if err != nil {
		return f, false, err
	}
	return f, true, s.files.Put(name, f, false)
}

// sessionHost stands for the asker of a build in addresses: docker buildx build - < context.tar has its context there.
const sessionHost = "buildkit-session"

// ask sends a request to a server, or to the asker.
func (s *Sources) ask(ctx context.Context, env build.Env, req *http.Request) (*http.Response, error) {
	if req.URL.Host != sessionHost {
		return s.web.Do(req)
	}
	ses, err := session(ctx, env, "")
	if err != nil {
		return nil, err
	}
	if ses.Uploads == nil {
		return nil, errs.New(errs.NotFound, "the session of the build sends no files")
	}
	body, err := ses.Uploads.Upload(ctx, req.URL.Path)
	if err != nil {
		return nil, err
	}
	return &http.Response{StatusCode: http.StatusOK, Header: http.Header{}, ContentLength: -1, Body: body}, nil
}

func statusKind(code int) error {
	switch code {
	case http.StatusNotFound, http.StatusGone:
		return errs.NotFound
	case http.StatusUnauthorized:
		return errs.Unauthorized
	case http.StatusForbidden:
		return errs.Forbidden
	}
	return errs.Unavailable
}

// bare takes the address off an error of net/http: it may have a password, and the caller names it.
func bare(err error) error {
	var u *url.Error
	if errors.As(err, &u) {
		if u.Timeout() {
			return errs.As(errs.Unavailable, u.Err)
		}
		return u.Err
	}
	return err
}

// take reads an answer and makes the layer.
func (s *Sources) take(ctx context.Context, env build.Env, id httpID, resp *http.Response) (f file, err error) {
	if resp.ContentLength > s.opts.MaxBytes {
		return f, errs.New(errs.Invalid, "the file has %d bytes, more than %d", resp.ContentLength, s.opts.MaxBytes)
	}
	tmp, err := os.CreateTemp(s.tmp(), "http-")
	if err != nil {
		return f, err
	}
	defer tmp.Close()
	if err := os.Remove(tmp.Name()); err != nil { // it goes with its last descriptor, however this ends
		return f, err
	}
	sum := sha256.New()
	algo := digest.SHA256
	if id.checksum != "" {
		algo = id.checksum.Algorithm()
	}
	check := algo.Hash()
	body := newPaced(resp.Body, s.opts.Pace)
	defer body.Close()
	count := &counted{p: env.Progress, total: max(resp.ContentLength, 0)}
	n, err := io.Copy(io.MultiWriter(tmp, sum, check, count), io.LimitReader(body, s.opts.MaxBytes+1))
	if err != nil {
		return f, fmt.Errorf("after %d bytes: %w", n, err)
	}
	if n > s.opts.MaxBytes {
		return f, errs.New(errs.Invalid, "the file has more than %d bytes", s.opts.MaxBytes)
	}
	count.end()
	if got := digest.NewDigest(algo, check); id.checksum != "" && got != id.checksum {
		return f, errs.New(errs.Invalid, "digest mismatch %s: expected %s", got, id.checksum)
	}
	f = file{
		URL: id.name(), ETag: resp.Header.Get("ETag"), LastModified: resp.Header.Get("Last-Modified"), Filename: id.nameOf(resp.Header),
		Digest: digest.NewDigest(digest.SHA256, sum), Size: n,
	}
	if _, err := http.ParseTime(f.LastModified); err != nil {
		f.LastModified = ""
	}
	if _, err := tmp.Seek(0, io.SeekStart); err != nil {
		return f, err
	}
	layer, err := s.single(ctx, tar.Header{
		Typeflag: tar.TypeReg, Name: f.Filename, Size: n, Mode: id.mode(), Uid: id.uid, Gid: id.gid, ModTime: f.modified(), Format: tar.FormatPAX,
	}, tmp)
	if err != nil {
		return f, err
	}
	f.Chain = layer.Chain
	f.Key = keyOf("http", f.Chain.String())
	defer s.opts.Cache.Use(ctx, f.Key)()
	return f, s.keep(ctx, f.Key, f.Chain, "source.http", f.URL)
}

func (id httpID) mode() int64 {
	if id.perm == 0 {
		return 0o600
	}
	return id.perm
}

// single makes a layer of one file.
func (s *Sources) single(ctx context.Context, h tar.Header, content io.Reader) (snapshot.Layer, error) {
	return s.layer(ctx, func(w io.Writer) error {
		tw := tar.NewWriter(w)
		if err := tw.WriteHeader(&h); err != nil {
			return err
		}
		if _, err := io.Copy(tw, content); err != nil {
			return err
		}
		return tw.Close()
	})
}

// layer makes a layer of a tar that is written while it is unpacked.
func (s *Sources) layer(ctx context.Context, write func(w io.Writer) error) (snapshot.Layer, error) {
	r, w := io.Pipe()
	wrote := make(chan error, 1)
	go func() {
		var err error
		defer func() { wrote <- errors.Join(err, w.CloseWithError(err)) }()
		defer task.Contain(s.opts.Log, "write a layer", &err)
		err = write(w)
	}()
	layer, err := s.opts.Layers.Apply(ctx, "", "", r)
	_ = r.CloseWithError(io.ErrClosedPipe) // never fails; ends the writer when Apply did not read all
	werr := <-wrote
	if err == nil && werr != nil && !errors.Is(werr, io.ErrClosedPipe) {
		err = werr
	}
	return layer, err
}

// counted tells how far a download is.
type counted struct {
	p        build.Progress
	n, total int64
	last     time.Time
}

func (c *counted) Write(b []byte) (int, error) {
	c.n += int64(len(b))
	if now := time.Now(); now.Sub(c.last) > 100*time.Millisecond {
		c.last = now
		c.p.Status("downloading", c.n, c.total, false)
	}
	return len(b), nil
}

func (c *counted) end() { c.p.Status("downloading", c.n, c.n, true) }

// paced is a body that must not be slower than a pace: the connection is closed then.
type paced struct {
	body  io.ReadCloser
	pace  Pace
	moved atomic.Int64
	slow  atomic.Bool
	stop  chan struct{}
}

func newPaced(body io.ReadCloser, pace Pace) *paced {
	p := &paced{body: body, pace: pace, stop: make(chan struct{})}
	go p.watch()
	return p
}

func (p *paced) watch() {
	tick := time.NewTicker(p.pace.Within)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			if p.moved.Swap(0) < p.pace.Bytes {
				p.slow.Store(true)
				_ = p.body.Close() // ends the Read, which says why
				return
			}
		case <-p.stop:
			return
		}
	}
}

func (p *paced) Read(b []byte) (int, error) {
	n, err := p.body.Read(b)
	p.moved.Add(int64(n))
	if err != nil && err != io.EOF && p.slow.Load() {
		err = errs.New(errs.Unavailable, "the server sent fewer than %d bytes in %s: given up", p.pace.Bytes, p.pace.Within)
	}
	return n, err
}

// Close ends the watch; the body is the caller's.
func (p *paced) Close() { close(p.stop) }
