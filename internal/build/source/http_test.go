package source

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/moby/buildkit/client/llb/sourceresolver"
	"github.com/moby/buildkit/solver/pb"
	"github.com/opencontainers/go-digest"

	"corten.dev/corten/internal/errs"
)

func TestHTTP(t *testing.T) {
	b := newBench(t, nil)
	body, etag, bodies := "hello", `"1"`, 0
	modified := time.Date(2020, 2, 3, 4, 5, 6, 0, time.UTC)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/moved/x" {
			http.Redirect(w, r, "/dir/file.txt", http.StatusFound)
			return
		}
		if r.URL.Path == "/named" {
			w.Header().Set("Content-Disposition", `attachment; filename="../../etc/shown.txt"`)
		}
		w.Header().Set("ETag", etag)
		w.Header().Set("Last-Modified", modified.Format(http.TimeFormat))
		if r.Header.Get("If-None-Match") == etag {
			w.WriteHeader(http.StatusNotModified)
			return
		}
		bodies++
		io.WriteString(w, body)
	}))
	defer srv.Close()
	made, key := b.ok(t, srv.URL+"/dir/file.txt", nil)
	n, ok := b.tree(t, made.Outputs[0].Chain)["file.txt"]
	if !ok || n.content != "hello" || n.mode != 0o600 || n.uid != 0 || !n.mtime.Equal(modified) || made.Cached {
		t.Errorf("%+v", n)
	}
	// Nothing changed: the server is asked, and sends nothing.
	again, same := b.ok(t, srv.URL+"/dir/file.txt", nil)
	if same != key || !again.Cached || bodies != 1 {
		t.Error(same, again.Cached, bodies)
	}
	body, etag = "other", `"2"`
	made, other := b.ok(t, srv.URL+"/dir/file.txt", nil)
	if other == key || b.tree(t, made.Outputs[0].Chain)["file.txt"].content != "other" {
		t.Error("the change is not seen")
	}
	// The layer was pruned: validators alone are of no use.
	b.cache.Forget()
	if made, _ := b.ok(t, srv.URL+"/dir/file.txt", nil); made.Cached || bodies != 3 {
		t.Error(made.Cached, bodies)
	}
	made, _ = b.ok(t, srv.URL+"/named", map[string]string{pb.AttrHTTPPerm: "0755", pb.AttrHTTPUID: "7", pb.AttrHTTPGID: "8"})
	if n := b.tree(t, made.Outputs[0].Chain)["shown.txt"]; n.mode != 0o755 || n.uid != 7 || n.gid != 8 {
		t.Errorf("%+v", n)
	}
	made, _ = b.ok(t, srv.URL+"/moved/x", map[string]string{pb.AttrHTTPFilename: "given"})
	if b.tree(t, made.Outputs[0].Chain)["given"].content != "other" {
		t.Error("redirected")
	}
	// A checksum that was met once needs no server any more.
	sum := map[string]string{pb.AttrHTTPChecksum: digest.FromString("other").String()}
	b.ok(t, srv.URL+"/sum", sum)
	if _, _, err := b.run(t, srv.URL+"/sum2", map[string]string{pb.AttrHTTPChecksum: digest.FromString("wrong").String()}); err == nil || !strings.Contains(err.Error(), "digest mismatch") {
		t.Error(err)
	}
	meta, err := b.Resolve(t.Context(), &pb.SourceOp{Identifier: srv.URL + "/dir/file.txt"}, sourceresolver.Opt{}, b.env())
	if err != nil || meta.HTTP.Digest != digest.FromString("other") || meta.HTTP.Filename != "file.txt" || !meta.HTTP.LastModified.Equal(modified) {
		t.Error(meta, err)
	}
	srv.Close()
	if made, _ := b.ok(t, srv.URL+"/sum", sum); !made.Cached {
		t.Error("asked again")
	}
}

func TestHTTPSecret(t *testing.T) {
	b := newBench(t, nil)
	var got []string
	far := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { got = append(got, "far "+r.Header.Get("Authorization")) }))
	defer far.Close()
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		got = append(got, r.Header.Get("Authorization")+" "+r.Header.Get("User-Agent")+r.Header.Get("Cookie"))
		if r.URL.Path == "/away" {
			http.Redirect(w, r, strings.Replace(far.URL, "127.0.0.1", "localhost", 1), http.StatusFound)
		}
		if r.URL.Path == "/none" {
			w.WriteHeader(http.StatusNotFound)
		}
	}))
	defer srv.Close()
	host := strings.TrimPrefix(srv.URL, "http://")
	b.ses.Secrets = secrets{"HTTP_AUTH_TOKEN_" + host: "tok", "mine": "Basic zzz"}
	b.ok(t, srv.URL+"/a", nil)
	b.ok(t, srv.URL+"/a", map[string]string{pb.AttrHTTPAuthHeaderSecret: "mine", pb.AttrHTTPHeaderPrefix + "user-agent": "me", pb.AttrHTTPHeaderPrefix + "cookie": "no"})
	b.ok(t, srv.URL+"/away", nil)
	if want := []string{"Bearer tok corten", "Basic zzz me", "Bearer tok corten", "far "}; fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("%q", got)
	}
	if _, _, err := b.run(t, srv.URL+"/a", map[string]string{pb.AttrHTTPAuthHeaderSecret: "not there"}); err == nil {
		t.Error("a secret that is missing")
	}
	_, _, err := b.run(t, strings.Replace(srv.URL, "//", "//user:geheim@", 1)+"/none", nil)
	if err == nil || strings.Contains(err.Error(), "geheim") || !errors.Is(err, errs.NotFound) || !strings.Contains(err.Error(), "invalid response status 404") {
		t.Error(err)
	}
}

// A hostile or broken server costs a bounded time and space, and the error says what it did.
type uploads func(path string) string

func (u uploads) Upload(_ context.Context, path string) (io.ReadCloser, error) {
	return io.NopCloser(strings.NewReader(u(path))), nil
}

// What the asker sends itself (docker buildx build - < context.tar), it sends once: the frontend looks at it, and the build takes it again.
func TestHTTPFromTheSession(t *testing.T) {
	b := newBench(t, nil)
	sent := 0
	b.ses.Uploads = uploads(func(path string) string { sent++; return "sent for " + path })
	for range 2 {
		made, _ := b.ok(t, "http://buildkit-session/abc", map[string]string{pb.AttrHTTPFilename: "context"})
		if n := b.tree(t, made.Outputs[0].Chain)["context"]; n.content != "sent for /abc" || sent != 1 {
			t.Errorf("%+v %d", n, sent)
		}
	}
}

func TestHTTPHostile(t *testing.T) {
	b := newBench(t, func(o *Options) {
		o.MaxBytes = 1 << 20
		o.Pace = Pace{Bytes: 1 << 10, Within: time.Second}
	})
	var asked atomic.Int32
	var bomb bytes.Buffer
	z := gzip.NewWriter(&bomb)
	z.Write(make([]byte, 16<<20))
	z.Close()
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		switch r.URL.Path {
		case "/drip":
			for r.Context().Err() == nil {
				io.WriteString(w, "x")
				w.(http.Flusher).Flush()
				time.Sleep(10 * time.Millisecond)
			}
		case "/endless":
			chunk := make([]byte, 64<<10)
			for r.Context().Err() == nil {
				if _, err := w.Write(chunk); err != nil {
					return
				}
			}
		case "/large":
			w.Header().Set("Content-Length", "99999999999")
		case "/cut":
			w.Header().Set("Content-Length", "100")
			io.WriteString(w, "short")
		case "/loop":
			http.Redirect(w, r, "/loop", http.StatusFound)
		case "/file":
			http.Redirect(w, r, "file:///etc/passwd", http.StatusFound)
		case "/gzip":
			w.Header().Set("Content-Encoding", "gzip")
			io.WriteString(w, "this is no gzip")
		case "/bomb":
			w.Header().Set("Content-Encoding", "gzip")
			w.Write(bomb.Bytes())
		}
	}))
	defer srv.Close()
	for path, want := range map[string]string{
		"/drip": "fewer than 1024 bytes", "/endless": "more than 1048576 bytes", "/large": "99999999999 bytes, more than 1048576", "/cut": "unexpected EOF", "/loop": "more than 10 redirects", "/file": "unsupported protocol scheme",
	} {
		_, _, err := b.run(t, srv.URL+path, nil)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", path, err)
		}
	}
	if n := asked.Load(); n > 30 {
		t.Error(n, "requests")
	}
	// What says that it is compressed is kept as it came.
	made, _ := b.ok(t, srv.URL+"/gzip", nil)
	if got := b.tree(t, made.Outputs[0].Chain)["gzip"].content; got != "this is no gzip" {
		t.Errorf("%q", got)
	}
	made, _ = b.ok(t, srv.URL+"/bomb", nil)
	if got := len(b.tree(t, made.Outputs[0].Chain)["bomb"].content); got > 1<<20 {
		t.Error(got)
	}
}
