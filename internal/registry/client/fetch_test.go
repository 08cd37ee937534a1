package client

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"corten.dev/corten/internal/enginetest"
	"corten.dev/corten/internal/errs"
)

// giveBlob gives one blob as a good server does.
func giveBlob(raw []byte) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(raw))
	}
}

func exactly(raw []byte) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", fmt.Sprint(len(raw)))
		w.Write(raw)
	}
}

// cutting gives at most n bytes of each answer, then cuts the connection.
func cutting(n int64, h http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) { h(&cutter{ResponseWriter: w, left: n}, r) }
}

type cutter struct {
	http.ResponseWriter
	left int64
}

func (c *cutter) Write(p []byte) (int, error) {
	if int64(len(p)) > c.left {
		c.ResponseWriter.Write(p[:c.left])
		c.ResponseWriter.(http.Flusher).Flush()
		panic(http.ErrAbortHandler)
	}
	c.left -= int64(len(p))
	return c.ResponseWriter.Write(p)
}

func fetchInto(t *testing.T, c *Client, d ocispec.Descriptor, dst Sink) error {
	t.Helper()
	return repo(t, c, "reg.example/team/app", Credentials{Username: "ann", Password: "right-word"}).Fetch(t.Context(), d, dst)
}

// What servers do to a download, and what becomes of it.
func TestFetch(t *testing.T) {
	raw, d := noise(3<<20 + 17)
	var fails atomic.Int64
	for name, tc := range map[string]struct {
		serve http.HandlerFunc
		have  int // bytes that are there already
		want  string
	}{
		"whole":               {giveBlob(raw), 0, ""},
		"the rest":            {giveBlob(raw), 1 << 20, ""},
		"more than there is":  {giveBlob(raw), len(raw) + 5, ""},
		"cut again and again": {cutting(300<<10, giveBlob(raw)), 0, ""},
		"ignores Range":       {func(w http.ResponseWriter, r *http.Request) { w.Write(raw) }, 1 << 20, ""},
		"chunked":             {func(w http.ResponseWriter, r *http.Request) { w.(http.Flusher).Flush(); w.Write(raw) }, 0, ""},
		"cuts, and ignores Range": {func(w http.ResponseWriter, r *http.Request) {
			if fails.Add(1) == 1 {
				cutting(1<<20, func(w http.ResponseWriter, r *http.Request) { w.Write(raw) })(w, r)
			}
			w.Write(raw)
		}, 0, ""},
		"another range": {func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("Range") == "" {
				w.Write(raw)
				return
			}
			w.Header().Set("Content-Range", fmt.Sprintf("bytes 0-%d/%d", len(raw)-1, len(raw)))
			w.WriteHeader(206)
			w.Write(raw)
		}, 1 << 20, ""},
		"no such range": {func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("Range") != "" {
				w.WriteHeader(416)
				return
			}
			w.Write(raw)
		}, 1 << 20, ""},
		"busy first": {func(w http.ResponseWriter, r *http.Request) {
			if fails.Add(1)%3 != 0 {
				w.WriteHeader([]int{503, 429, 500, 408, 502, 504}[fails.Load()%6])
				return
			}
			w.Write(raw)
		}, 0, ""},
		"always busy": {func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(503) }, 0, "received unexpected HTTP status: 503"},
		"not there": {func(w http.ResponseWriter, r *http.Request) {
			refuseJSON(w, 404, "BLOB_UNKNOWN", "blob unknown to registry")
		}, 0, "blob unknown: blob unknown to registry"},
		"larger":  {exactly(append(bytes.Clone(raw), 1)), 0, "promises 3145746 bytes, expected 3145745"},
		"smaller": {exactly(raw[1:]), 0, "promises 3145744 bytes, expected 3145745"},
		"larger in all": {func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Range", fmt.Sprintf("bytes 5-%d/%d", len(raw), len(raw)+1))
			w.WriteHeader(206)
		}, 5, "has 3145746 bytes, expected 3145745"},
		"endless": {func(w http.ResponseWriter, r *http.Request) {
			for {
				if _, err := w.Write(raw); err != nil {
					return
				}
			}
		}, 0, "sends more than the 3145745 bytes"},
		"a byte a connection": {func(w http.ResponseWriter, r *http.Request) {
			var from int
			fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-", &from)
			w.Header().Set("Content-Length", fmt.Sprint(len(raw)-from))
			w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, len(raw)-1, len(raw)))
			if from > 0 {
				w.WriteHeader(206)
			}
			w.Write(raw[from : from+1])
		}, 0, "unexpected EOF"},
	} {
		t.Run(name, func(t *testing.T) {
			fails.Store(0)
			srv := serve(t, true, tc.serve)
			c := quick(t, srv.hosts())
			c.tuning.progress = 200 << 10
			dst := &sink{}
			dst.Buffer.Write(append(bytes.Clone(raw), 1, 2, 3, 4, 5)[:tc.have])
			err := fetchInto(t, c, d, dst)
			if tc.want != "" {
				if err == nil || !strings.Contains(err.Error(), tc.want) {
					t.Fatalf("got %v, want %q", err, tc.want)
				}
			} else if err != nil || !bytes.Equal(dst.Bytes(), raw) {
				t.Fatalf("%d bytes of %d: %v", dst.Len(), len(raw), err)
			}
			if int64(dst.Len()) > d.Size {
				t.Errorf("wrote %d bytes of %d", dst.Len(), d.Size)
			}
			if n := srv.count(func(*http.Request) bool { return true }); n > 25 {
				t.Errorf("%d requests", n)
			}
		})
	}
}

// Big blobs come by several ranges from a server that is slow on one connection; whatever happens to one of them, the sink gets all in order.
func TestRanges(t *testing.T) {
	raw, d := noise(1<<20 + 333)
	var calls atomic.Int64
	good := giveBlob(raw)
	for name, h := range map[string]http.HandlerFunc{
		"good": good,
		"cut": func(w http.ResponseWriter, r *http.Request) {
			if calls.Add(1)%3 == 0 {
				cutting(10_000, good)(w, r)
				return
			}
			good(w, r)
		},
		"no ranges": func(w http.ResponseWriter, r *http.Request) { w.Write(raw) },
		"no ranges later": func(w http.ResponseWriter, r *http.Request) {
			if calls.Add(1) > 3 {
				w.Write(raw)
				return
			}
			good(w, r)
		},
		"busy": func(w http.ResponseWriter, r *http.Request) {
			if calls.Add(1)%2 == 0 {
				w.WriteHeader(503)
				return
			}
			good(w, r)
		},
	} {
		t.Run(name, func(t *testing.T) {
			calls.Store(0)
			srv := serve(t, true, h)
			c := quick(t, srv.hosts())
			c.opts.RangeSize, c.tuning.segment, c.tuning.fast = 1<<10, 64<<10, 1<<50
			dst := &sink{delay: time.Microsecond}
			if err := fetchInto(t, c, d, dst); err != nil || !bytes.Equal(dst.Bytes(), raw) {
				t.Fatalf("%d bytes of %d: %v", dst.Len(), len(raw), err)
			}
			if len(c.room) != 0 {
				t.Errorf("%d places of the room were not given back", len(c.room))
			}
		})
	}
}

// Links to a store of blobs run out while ranges come by them.
func TestRangesByLinksThatRunOut(t *testing.T) {
	raw, d := noise(1 << 20)
	var links, uses atomic.Int64
	cdn := serve(t, true, func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "" {
			t.Error("credentials went to the store of blobs")
		}
		if fmt.Sprint(links.Load()) != r.FormValue("link") || uses.Add(1)%4 == 0 {
			w.WriteHeader(403)
			return
		}
		giveBlob(raw)(w, r)
	})
	reg := serve(t, true, func(w http.ResponseWriter, r *http.Request) {
		if _, _, ok := r.BasicAuth(); !ok {
			w.Header().Set("WWW-Authenticate", `Basic realm="x"`)
			w.WriteHeader(401)
			return
		}
		http.Redirect(w, r, fmt.Sprintf("%s/blob?link=%d", cdn.URL, links.Add(1)), http.StatusTemporaryRedirect)
	})
	c := quick(t, fixed{reg.hosts().list, cdn.Client().Transport})
	c.opts.RangeSize, c.tuning.segment, c.tuning.fast, c.opts.Retries = 1<<10, 64<<10, 1<<50, 50
	dst := &sink{}
	err := fetchInto(t, c, d, dst)
	// A link that was refused twice in a row is the registry's word, so this may end early; what came is right.
	if err != nil && !errors.Is(err, errs.Forbidden) && !errors.Is(err, errs.NotFound) || !bytes.HasPrefix(raw, dst.Bytes()) {
		t.Fatalf("%d bytes: %v", dst.Len(), err)
	}
}

// A mirror that breaks, lies or is slow does not spoil a pull: the registry goes on from the same byte.
func TestMirrors(t *testing.T) {
	raw, d := noise(1 << 20)
	registry := serve(t, true, giveBlob(raw))
	for name, tc := range map[string]struct {
		mirror http.HandlerFunc
		from   string // where the registry was asked to go on
	}{
		"good":    {giveBlob(raw), ""},
		"missing": {func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(404) }, "-"},
		"breaks": {func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("Range") != "" {
				w.WriteHeader(500)
				return
			}
			cutting(1<<19, giveBlob(raw))(w, r)
		}, "bytes=524288-"},
		"lies": {giveBlob(make([]byte, 1<<20)), "-"},
	} {
		t.Run(name, func(t *testing.T) {
			registry.seen = nil
			mirror := serve(t, true, tc.mirror)
			c := quick(t, fixed{list: []Endpoint{{URL: mirror.URL, Mirror: true, NameSpace: true, Transport: mirror.Client().Transport}, registry.hosts().list[0]}})
			dst := &sumSink{}
			if err := fetchInto(t, c, d, dst); err != nil || !bytes.Equal(dst.Bytes(), raw) {
				t.Fatalf("%d bytes: %v", dst.Len(), err)
			}
			if n := mirror.count(func(r *http.Request) bool {
				return r.FormValue("ns") != "reg.example" || r.Header.Get("Authorization") != ""
			}); n > 0 {
				t.Error("the mirror was not told the registry, or was told the password")
			}
			asked := registry.count(func(*http.Request) bool { return true })
			if tc.from == "" && asked > 0 || tc.from != "" && registry.count(func(r *http.Request) bool {
				return r.Header.Get("Range") == strings.Trim(tc.from, "-") || r.Header.Get("Range") == tc.from
			}) != 1 {
				t.Errorf("the registry was asked %d times: %v", asked, registry.seen)
			}
		})
	}
}

// A full disk is our own fault: nobody else is asked.
func TestFullDisk(t *testing.T) {
	raw, d := noise(1 << 20)
	srv := serve(t, true, giveBlob(raw))
	err := fetchInto(t, quick(t, fixed{list: append(srv.hosts().list, srv.hosts().list...)}), d, &sink{limit: 1 << 19})
	if err == nil || !strings.Contains(err.Error(), "no space left on device") || srv.count(func(*http.Request) bool { return true }) != 1 {
		t.Errorf("got %v", err)
	}
}

// drip is a server without a network: it gives some bytes, then one a second.
type drip struct {
	raw   []byte
	first int
	hangs bool
	tries atomic.Int64
}

func (d *drip) RoundTrip(req *http.Request) (*http.Response, error) {
	d.tries.Add(1)
	resp := &http.Response{StatusCode: 200, Header: http.Header{}, Request: req, ContentLength: int64(len(d.raw))}
	var from int
	if n, _ := fmt.Sscanf(req.Header.Get("Range"), "bytes=%d-", &from); n == 1 {
		resp.StatusCode = 206
		resp.ContentLength -= int64(from)
		resp.Header.Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, len(d.raw)-1, len(d.raw)))
	}
	resp.Body = &dripBody{ctx: req.Context(), raw: d.raw[from:], first: d.first, hangs: d.hangs}
	return resp, nil
}

type dripBody struct {
	ctx   context.Context
	raw   []byte
	first int
	hangs bool
}

func (b *dripBody) Read(p []byte) (int, error) {
	n := min(b.first, len(p), len(b.raw))
	if b.first == 0 {
		wait := time.Second
		if b.hangs {
			wait = time.Hour
		}
		select {
		case <-time.After(wait):
		case <-b.ctx.Done():
			return 0, b.ctx.Err()
		}
		n = min(1, len(b.raw))
	}
	if len(b.raw) == 0 {
		return 0, io.EOF
	}
	copy(p, b.raw[:n])
	b.raw, b.first = b.raw[n:], b.first-min(n, b.first)
	return n, nil
}
func (b *dripBody) Close() error { return nil }

func TestSlowDripsAreLeft(t *testing.T) {
	for _, hangs := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			raw, d := noise(1 << 20)
			srv := &drip{raw: raw, first: 300 << 10, hangs: hangs}
			c := quick(t, fixed{list: []Endpoint{{URL: "https://reg.example", Transport: srv}}})
			c.tuning.progress = 1 << 10
			began := time.Now()
			dst := &sink{}
			if err := fetchInto(t, c, d, dst); err != nil || !bytes.Equal(dst.Bytes(), raw) {
				t.Fatalf("%d bytes: %v", dst.Len(), err)
			}
			if n, took := srv.tries.Load(), time.Since(began); n != 4 || took > 5*time.Minute {
				t.Errorf("%d connections in %v", n, took)
			}
		})
	}
}

func TestRetryAfter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var at []time.Time
		answer := func(wait string) http.RoundTripper {
			return roundTrip(func(req *http.Request) (*http.Response, error) {
				at = append(at, time.Now())
				resp := &http.Response{StatusCode: 429, Header: http.Header{"Retry-After": {wait}}, Request: req, Body: http.NoBody}
				if len(at) == 3 {
					resp.StatusCode = 200
					resp.Body = io.NopCloser(strings.NewReader(emptyManifest))
				}
				return resp, nil
			})
		}
		resolve := func(wait string) error {
			at = nil
			_, err := repo(t, quick(t, fixed{list: []Endpoint{{URL: "https://reg.example", Transport: answer(wait)}}}), "team/app", Credentials{}).Resolve(t.Context(), "1")
			return err
		}
		if err := resolve("7"); err != nil || at[2].Sub(at[0]) != 14*time.Second {
			t.Errorf("%v, attempts at %v", err, at)
		}
		if err := resolve("100000"); !errors.Is(err, errs.Unavailable) || len(at) != 1 {
			t.Errorf("a wait of a day: %v, attempts at %v", err, at)
		}
	})
}

type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(req *http.Request) (*http.Response, error) { return f(req) }

func TestCancelEndsEveryWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hang := roundTrip(func(req *http.Request) (*http.Response, error) {
			<-req.Context().Done()
			return nil, req.Context().Err()
		})
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()
		began := time.Now()
		r := repo(t, quick(t, fixed{list: []Endpoint{{URL: "https://reg.example", Transport: hang}}}), "team/app", Credentials{})
		if _, err := r.Resolve(ctx, "1"); !errors.Is(err, context.DeadlineExceeded) || time.Since(began) != 3*time.Second {
			t.Errorf("%v after %v", err, time.Since(began))
		}
		raw, d := noise(100)
		if _, err := r.Push(ctx, toSend(raw, d.Digest, 100)); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("push: %v", err)
		}
	})
}

func TestBlob(t *testing.T) {
	raw, d := noise(1000)
	srv := serve(t, true, giveBlob(make([]byte, 1000)))
	r := repo(t, quick(t, srv.hosts()), "team/app", Credentials{})
	if _, err := r.Blob(t.Context(), d, 1000); err == nil || !strings.Contains(err.Error(), "verification failed") {
		t.Errorf("another blob of the same size: %v", err)
	}
	if _, err := r.Blob(t.Context(), d, 999); err == nil || !strings.Contains(err.Error(), "more than 999") {
		t.Errorf("a blob over the limit: %v", err)
	}
	if _, err := r.Blob(t.Context(), ocispec.Descriptor{Digest: digest.FromBytes(raw)}, 999); err == nil {
		t.Error("an empty blob with the digest of another")
	}
}

func TestContentRange(t *testing.T) {
	for s, want := range map[string]string{
		"bytes 0-99/100": "{0 100 100} true", "bytes 5-5/*": "{5 6 -1} true", "bytes 5-4/10": "{5 5 10} false", "bytes */10": "{0 0 0} false",
		"bytes 0-10/10": "{0 0 0} false", "": "{0 0 0} false", "bytes -1-2/3": "{0 0 0} false", "bytes 0-99999999999999999999/*": "{0 0 0} false",
	} {
		r, ok := parseContentRange(s)
		if got := fmt.Sprint(r, ok); got != want && !(strings.HasSuffix(want, "false") && !ok) {
			t.Errorf("%q: %s, want %s", s, got, want)
		}
	}
}

// Without a Sum, only the caller can tell that a mirror lied; it fetches again, and gets the blob from elsewhere.
func TestMirrorThatLiedIsPassedOver(t *testing.T) {
	raw, d := noise(1000)
	registry, mirror := serve(t, true, giveBlob(raw)), serve(t, true, giveBlob(make([]byte, 1000)))
	r := repo(t, quick(t, fixed{list: []Endpoint{{URL: mirror.URL, Mirror: true, Transport: mirror.Client().Transport}, registry.hosts().list[0]}}), "team/app", Credentials{})
	dst := &sink{}
	for range 2 {
		if err := dst.Restart(); err != nil {
			t.Fatal(err)
		}
		if err := r.Fetch(t.Context(), d, dst); err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(dst.Bytes(), raw) {
		t.Error("the second time the mirror lied again")
	}
}

// A registry that is restarted in the middle of a download: refused connections are waited out, and the bytes that were there are not sent again.
func TestRegistryRestarts(t *testing.T) {
	raw, d := noise(4 << 20)
	addr := enginetest.Addr(t)
	l, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	var ranged atomic.Int64
	first := &http.Server{Handler: cutting(2<<20, func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Range") != "" {
			panic(http.ErrAbortHandler) // it is about to go
		}
		giveBlob(raw)(w, r)
	})}
	go first.Serve(l)
	dst := &sink{}
	c := quick(t, nil)
	c.opts.Backoff = 300 * time.Millisecond // doubling: ten seconds in all
	restarted := make(chan *http.Server, 1)
	go func() {
		for dst.len() < 2<<20 {
			time.Sleep(time.Millisecond)
		}
		first.Close()
		time.Sleep(150 * time.Millisecond)
		l, err := net.Listen("tcp", addr)
		if err != nil {
			t.Error(err)
		}
		second := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("Range") != "" {
				ranged.Add(1)
			}
			giveBlob(raw)(w, r)
		})}
		restarted <- second
		second.Serve(l)
	}()
	err = repo(t, c, addr+"/team/app", Credentials{}).Fetch(t.Context(), d, dst)
	defer (<-restarted).Close()
	if err != nil || !bytes.Equal(dst.Bytes(), raw) || ranged.Load() != 1 {
		t.Errorf("%d bytes, %d ranges: %v", dst.Len(), ranged.Load(), err)
	}
}

// A mirror that is not there is asked once, not for each layer.
func TestDeadMirrorRests(t *testing.T) {
	raw, d := noise(1000)
	registry := serve(t, true, giveBlob(raw))
	var asked atomic.Int64
	dead := roundTrip(func(req *http.Request) (*http.Response, error) {
		asked.Add(1)
		return nil, &net.OpError{Op: "dial", Err: errors.New("connection refused")}
	})
	c := quick(t, fixed{list: []Endpoint{{URL: "https://mirror.example", Mirror: true, Transport: dead}, registry.hosts().list[0]}})
	for range 5 {
		if err := fetchInto(t, c, d, &sink{}); err != nil {
			t.Fatal(err)
		}
	}
	if asked.Load() != 1 {
		t.Errorf("asked %d times", asked.Load())
	}
}

// Somebody who goes away in the middle of a download by ranges leaves no goroutine, no connection and no memory behind.
func TestNothingIsLeftBehind(t *testing.T) {
	raw, d := noise(1 << 20)
	srv := serve(t, true, func(w http.ResponseWriter, r *http.Request) {
		time.Sleep(time.Millisecond)
		giveBlob(raw)(w, r)
	})
	c := quick(t, table(t, HostsOptions{}))
	c.opts.RangeSize, c.tuning.segment, c.tuning.fast = 1<<10, 16<<10, 1<<50
	before := runtime.NumGoroutine()
	for i := range 5 {
		ctx, cancel := context.WithTimeout(t.Context(), time.Duration(5+10*i)*time.Millisecond)
		r := repo(t, c, strings.TrimPrefix(srv.URL, "https://")+"/team/app", Credentials{})
		if err := r.Fetch(ctx, d, &sink{delay: time.Millisecond}); err != nil && !errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
		cancel()
	}
	c.CloseIdle()
	srv.CloseClientConnections()
	for range 3000 {
		if runtime.NumGoroutine() <= before && len(c.room) == 0 {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Errorf("%d goroutines before, %d after; %d places of the room", before, runtime.NumGoroutine(), len(c.room))
}
