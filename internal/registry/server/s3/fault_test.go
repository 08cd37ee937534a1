package s3

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/registry/server"
)

// proxy stands between the driver and the store, and breaks things.
type proxy struct {
	*httptest.Server
	fail   atomic.Int64 // so many requests get 503
	cut    atomic.Int64 // so many downloads break off in the middle
	down   atomic.Bool
	before atomic.Pointer[func(*http.Request)]
}

func newProxy(t *testing.T, endpoint string) *proxy {
	t.Helper()
	target, err := url.Parse(endpoint)
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{}
	rp := &httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) {
		r.SetURL(target)
		r.Out.Host = r.In.Host // it is signed
	}, ModifyResponse: func(resp *http.Response) error {
		if resp.Request.Method == http.MethodGet && resp.ContentLength > 1<<20 && p.cut.Add(-1) >= 0 {
			resp.Body = struct {
				io.Reader
				io.Closer
			}{io.MultiReader(io.LimitReader(resp.Body, 1<<19), broken{}), resp.Body}
		}
		return nil
	}, ErrorLog: log.New(io.Discard, "", 0)}
	p.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if hook := p.before.Load(); hook != nil {
			(*hook)(req)
		}
		if p.down.Load() {
			panic(http.ErrAbortHandler)
		}
		if p.fail.Add(-1) >= 0 {
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		rp.ServeHTTP(w, req)
	}))
	t.Cleanup(p.Close)
	return p
}

type broken struct{}

func (broken) Read([]byte) (int, error) { return 0, net.ErrClosed }

func send(t *testing.T, d *Driver, id string, data []byte) server.BlobInfo {
	t.Helper()
	u, err := d.Upload(t.Context(), id, server.UploadOptions{Create: true})
	if err != nil {
		t.Fatal(err)
	}
	if err := u.Append(t.Context(), bytes.NewReader(data)); err != nil {
		t.Fatal(err)
	}
	info, err := u.Commit(t.Context(), digest.FromBytes(data))
	if err != nil {
		t.Fatal(err)
	}
	return info
}

func testFaults(t *testing.T, endpoint string) {
	p := newProxy(t, endpoint)
	opts := bucket(t, endpoint, "faults")
	opts.Endpoint, opts.backoff = p.URL, 5*time.Millisecond
	d := openBucket(t, opts)
	data := make([]byte, 11<<20)
	if _, err := rand.Read(data); err != nil {
		t.Fatal(err)
	}
	// Refusals that pass are tried again.
	p.fail.Store(2)
	dgst := send(t, d, "one", data).Digest
	// A download that breaks off goes on where it broke.
	p.cut.Store(3)
	rc, err := d.Open(t.Context(), dgst, 5, -1)
	if err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(rc)
	if err := errors.Join(err, rc.Close()); err != nil || !bytes.Equal(got, data[5:]) {
		t.Errorf("%d bytes came: %v", len(got), err)
	}
	// The store goes away in the middle of an upload: what it had before counts, and the client goes on from there.
	u, err := d.Upload(t.Context(), "two", server.UploadOptions{Create: true})
	if err != nil {
		t.Fatal(err)
	}
	if err := u.Append(t.Context(), bytes.NewReader(data[:1<<20])); err != nil {
		t.Fatal(err)
	}
	p.fail.Store(1 << 30)
	err = u.Append(t.Context(), bytes.NewReader(data[1<<20:]))
	p.fail.Store(0)
	if !errors.Is(err, errs.Unavailable) || strings.Contains(fmt.Sprint(err), keySecret) {
		t.Errorf("without a store: %v", err)
	}
	if err := u.Close(); err != nil {
		t.Error(err)
	}
	if u, err = d.Upload(t.Context(), "two", server.UploadOptions{}); err != nil {
		t.Fatal(err)
	}
	if u.Size() > int64(len(data)) || u.Size() < 1<<20 {
		t.Fatalf("%d bytes are there", u.Size())
	}
	if err := u.Append(t.Context(), bytes.NewReader(data[u.Size():])); err != nil {
		t.Fatal(err)
	}
	if _, err := u.Commit(t.Context(), dgst); err != nil {
		t.Fatal(err)
	}
	if files, err := filepath.Glob(filepath.Join(opts.Staging, "*")); err != nil || len(files) > 0 {
		t.Errorf("staging holds %v", files)
	}
	if err := d.Close(); err != nil {
		t.Error(err)
	}
}

// Two registries, one bucket: while one is about to delete a blob, the other stores it again. It must not be lost, however they meet.
func testDeleteAndStoreMeet(t *testing.T, endpoint string) {
	p := newProxy(t, endpoint)
	opts := bucket(t, endpoint, "meet")
	other := openBucket(t, opts)
	opts.Endpoint, opts.Staging = p.URL, t.TempDir()
	d := openBucket(t, opts)
	data := []byte("a blob that is old")
	dgst := send(t, other, "first", data).Digest
	// The other one stores it just before ours deletes it: after the last look at its time, or before it.
	for _, moment := range []string{"PUT", "DELETE"} {
		time.Sleep(1100 * time.Millisecond) // the store counts seconds: until now it was too new
		done := make(chan error, 1)
		var once atomic.Bool
		hook := func(req *http.Request) {
			if req.Method != moment || once.Swap(true) {
				return
			}
			go func() {
				u, err := other.Upload(t.Context(), "again"+moment, server.UploadOptions{Create: true})
				if err == nil {
					err = errors.Join(u.Append(t.Context(), bytes.NewReader(data)))
				}
				if err == nil {
					_, err = u.Commit(t.Context(), dgst)
				}
				done <- err
			}()
			time.Sleep(300 * time.Millisecond) // it gets as far as it can
		}
		p.before.Store(&hook)
		err := d.DeleteBlob(t.Context(), dgst, time.Now().Add(-time.Millisecond))
		if err != nil && !errors.Is(err, errs.Conflict) {
			t.Error(err)
		}
		p.before.Store(nil)
		if !once.Load() {
			t.Fatalf("no %s came", moment)
		}
		if err := <-done; err != nil {
			t.Error(err)
		}
		if _, err := d.Stat(t.Context(), dgst); err != nil {
			t.Errorf("stored at %s, and lost: %v", moment, err)
		}
	}
	if err := errors.Join(d.Close(), other.Close()); err != nil {
		t.Error(err)
	}
}

func TestBadOptions(t *testing.T) {
	dir := t.TempDir()
	one := filepath.Join(dir, "one")
	if err := os.WriteFile(one, []byte("only-an-id"), 0o600); err != nil {
		t.Fatal(err)
	}
	good := keyFile(t)
	for what, c := range map[string]struct {
		opts Options
		want string
	}{
		"no key file":     {Options{Bucket: "b", KeyFile: dir + "/none", Staging: dir}, "credentials of the bucket"},
		"half a key":      {Options{Bucket: "b", KeyFile: one, Staging: dir}, "must have two lines"},
		"no staging":      {Options{Bucket: "b", KeyFile: good, Staging: "/dev/null/x"}, "staging folder"},
		"no certificates": {Options{Bucket: "b", KeyFile: good, Staging: dir, CA: one}, "holds no certificate"},
		"nobody there":    {Options{Bucket: "b", KeyFile: good, Staging: dir, Endpoint: "http://127.0.0.1:1", PathStyle: true, backoff: time.Millisecond}, "bucket b: store does not answer"},
	} {
		_, err := New(t.Context(), c.opts)
		if err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), keySecret) {
			t.Errorf("%s: %v", what, err)
		}
	}
}
