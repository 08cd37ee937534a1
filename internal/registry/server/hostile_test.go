package server_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/registry/server"
)

// raw sends bytes as they are and returns the status of the answer, 0 if the connection is cut without one.
func raw(t *testing.T, ts *httptest.Server, text string) int {
	t.Helper()
	conn, err := net.Dial("tcp", hostOf(t, ts.URL))
	ok(t, err)
	defer conn.Close()
	ok(t, conn.SetDeadline(time.Now().Add(time.Minute)))
	_, _ = io.WriteString(conn, text) // the registry may hang up before the end
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		return 0
	}
	ok(t, resp.Body.Close())
	return resp.StatusCode
}

func TestPathTricks(t *testing.T) {
	outside := t.TempDir()
	root := filepath.Join(outside, "registry")
	_, ts := registryOn(t, root, nil)
	secret := filepath.Join(outside, "secret")
	ok(t, os.WriteFile(secret, []byte("secret"), 0o600))
	for _, path := range []string{
		"/v2/../../secret", "/v2/a/manifests/../../../../../secret", "/v2/a/manifests/..%2f..%2f..%2f..%2fsecret", "/v2/a/blobs/sha256:..%2f..%2fsecret",
		"/v2/..%2f..%2fx/manifests/v1", "/v2/%2e%2e/%2e%2e/manifests/v1", "/v2/a/../b/manifests/v1", "/v2//manifests/v1", "/v2/a/manifests/", "/v2/a/manifests/.",
		"/v2/a/manifests/..", "/v2/a/tags/list/..", "/v2/_catalog/..", "/v2/a/_tags/manifests/x", "/v2/a%00b/manifests/x", "/v2/a/blobs/uploads/..",
		"/v2/a/blobs/uploads/%2e%2e%2f%2e%2e%2fsecret", "/v2/a/blobs/sha256:" + strings.Repeat("a", 100000), "/v2/" + strings.Repeat("a/", 4000) + "manifests/x", "*", "/",
		"/v2/a/referrers/sha256:..", `/v2/a\..\b/manifests/x`, "/v2/a/manifests/x%2f..%2fy", "http://other/v2/../x",
	} {
		for _, method := range []string{"GET", "PUT", "DELETE", "PATCH", "POST", "HEAD", "OPTIONS", "TRACE", "X"} {
			status := raw(t, ts, method+" "+path+" HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}")
			if status/100 != 4 && status/100 != 3 && !(path == "*" && method == "OPTIONS") {
				t.Errorf("%s %.60s: %d", method, path, status)
			}
		}
	}
	if n := files(t, root, "values") + files(t, root, "blobs") + files(t, root, "uploads"); n != 0 {
		t.Errorf("%d files were made", n)
	}
	entries, err := os.ReadDir(outside)
	ok(t, err)
	if len(entries) != 2 {
		t.Errorf("outside of the folder there is %v", entries)
	}
}

// endless gives bytes until somebody stops it, and counts them.
type endless struct{ n int64 }

func (e *endless) Read(p []byte) (int, error) {
	e.n += int64(len(p))
	return len(p), nil
}

func TestEndlessBodies(t *testing.T) {
	root := t.TempDir()
	_, ts := registryOn(t, root, func(o *server.Options) { o.Limits.Blob = 1 << 20 })
	c := newClient(t, ts.URL)
	send := func(method, path, contentType string) (int, int64) {
		body := &endless{}
		req, err := http.NewRequest(method, ts.URL+path, io.NopCloser(body))
		ok(t, err)
		req.Header.Set("Content-Type", contentType)
		resp, err := c.http.Do(req)
		if err != nil {
			return 0, body.n // hung up on while sending
		}
		ok(t, resp.Body.Close())
		return resp.StatusCode, body.n
	}
	_, h, _, err := c.do("POST", "/v2/a/blobs/uploads/", "", nil)
	ok(t, err)
	for what, path := range map[string][2]string{
		"manifest":   {"PUT", "/v2/a/manifests/v1"},
		"chunk":      {"PATCH", h.Get("Location")},
		"whole blob": {"POST", "/v2/a/blobs/uploads/?digest=" + string(digest.FromString("x"))},
	} {
		if status, n := send(path[0], path[1], ocispec.MediaTypeImageManifest); status != 413 && status != 0 || n > 32<<20 {
			t.Errorf("%s: %d after %d bytes", what, status, n)
		}
	}
	if status, _, _, err := c.do("PUT", h.Get("Location")+"?digest="+string(digest.FromString("x")), "", make([]byte, 2<<20)); err == nil && status != 413 {
		t.Errorf("a blob over the limit: %d", status)
	}
	if s := c.status("DELETE", h.Get("Location")); s != 204 {
		t.Error(s)
	}
	if n := files(t, root, "uploads") + files(t, root, "blobs"); n != 0 {
		t.Errorf("%d files are left", n)
	}
}

// A client that sends nothing more, or reads nothing more, is cut off; others are served meanwhile.
func TestSlowClients(t *testing.T) {
	t.Parallel()                 // most of it is waiting
	const idle = 2 * time.Second // those who do send or read must not stand still for so long on a busy machine
	r, _ := newRegistry(t, func(o *server.Options) { o.Limits.IdleBody = idle })
	ts := httptest.NewUnstartedServer(r)
	ts.Config = server.NewHTTPServer(r)
	ts.Config.ReadHeaderTimeout = idle
	ts.Start()
	t.Cleanup(ts.Close)
	c := newClient(t, ts.URL)
	_, h, _, err := c.do("POST", "/v2/a/blobs/uploads/", "", nil)
	ok(t, err)
	for name, text := range map[string]string{
		"headers":  "GET /v2/ HTTP/1.1\r\nHost: x\r\nX-Slow: ",
		"body":     "PATCH " + h.Get("Location") + " HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nabc",
		"manifest": "PUT /v2/a/manifests/v1 HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{",
	} {
		began := time.Now()
		status := raw(t, ts, text)
		if took := time.Since(began); took > 45*time.Second || status != 0 && status != 408 {
			t.Errorf("%s: %d after %s", name, status, took)
		}
	}
	_, h2, _, err := c.do("GET", h.Get("Location"), "", nil)
	ok(t, err)
	if got := h2.Get("Range"); got != "0-2" {
		t.Errorf("what came before is not kept: %s", got)
	}
	// A reader that stops: the handler must end.
	data := make([]byte, 32<<20)
	desc := must[ocispec.Descriptor](t)(c.push("a", data))
	conn, err := net.Dial("tcp", hostOf(t, ts.URL))
	ok(t, err)
	defer conn.Close()
	_, err = fmt.Fprintf(conn, "GET /v2/a/blobs/%s HTTP/1.1\r\nHost: x\r\n\r\n", desc.Digest)
	ok(t, err)
	time.Sleep(time.Second)
	ctx, cancel := context.WithTimeout(t.Context(), 45*time.Second)
	defer cancel()
	if err := ts.Config.Shutdown(ctx); err != nil {
		t.Errorf("a reader that stopped holds the registry: %v", err)
	}
}

// After a slow answer, the same connection serves on: no deadline of the one stays for the other.
func TestDeadlinesDoNotStay(t *testing.T) {
	t.Parallel() // most of it is waiting
	_, ts := newRegistry(t, func(o *server.Options) { o.Limits.IdleBody = 2 * time.Second })
	c := newClient(t, ts.URL)
	desc := must[ocispec.Descriptor](t)(c.push("a", make([]byte, 4<<20)))
	conn, err := net.Dial("tcp", hostOf(t, ts.URL))
	ok(t, err)
	defer conn.Close()
	br := bufio.NewReader(conn)
	for i := range 3 {
		if i > 0 {
			time.Sleep(2100 * time.Millisecond)
		}
		_, err = fmt.Fprintf(conn, "GET /v2/a/blobs/%s HTTP/1.1\r\nHost: x\r\n\r\n", desc.Digest)
		ok(t, err)
		resp, err := http.ReadResponse(br, nil)
		ok(t, err)
		n, err := io.Copy(io.Discard, resp.Body)
		if err != nil || n != 4<<20 {
			t.Fatalf("%d bytes: %v", n, err)
		}
	}
}

func TestTooManyUploads(t *testing.T) {
	root := t.TempDir()
	_, ts := registryOn(t, root, func(o *server.Options) { o.Limits.Uploads = 20 })
	c := newClient(t, ts.URL)
	var last string
	for i := range 25 {
		status, h, body, err := c.do("POST", "/v2/a/blobs/uploads/", "", nil)
		ok(t, err)
		switch {
		case i < 20 && status != 202, i >= 20 && status != 429:
			t.Fatalf("upload %d: %d %s", i, status, body)
		case i < 20:
			last = h.Get("Location")
		case h.Get("Retry-After") == "" || !bytes.Contains(body, []byte("TOOMANYREQUESTS")):
			t.Errorf("refusal has %v, %s", h, body)
		}
	}
	if n := files(t, root, "uploads"); n != 20 {
		t.Errorf("there are %d files", n)
	}
	if s := c.status("DELETE", last); s != 204 {
		t.Fatal(s)
	}
	ok(t, c.upload("a", digest.FromString("x"), []byte("x")))
	ok(t, c.upload("a", digest.FromString("y"), []byte("y")))
}

func TestManyReferences(t *testing.T) {
	_, ts := newRegistry(t, nil)
	c := newClient(t, ts.URL)
	desc := must[ocispec.Descriptor](t)(c.push("a", []byte("{}")))
	m := ocispec.Manifest{MediaType: ocispec.MediaTypeImageManifest, Config: desc}
	m.SchemaVersion = 2
	for i := range 20000 {
		m.Layers = append(m.Layers, ocispec.Descriptor{Digest: digest.FromString(fmt.Sprint(i)), Size: 1})
	}
	if _, err := c.manifest("a", "v1", m, m.MediaType); err == nil || !strings.Contains(err.Error(), "MANIFEST_INVALID") {
		t.Errorf("20000 layers: %v", err)
	}
	m.Layers = m.Layers[:3000]
	if _, err := c.manifest("a", "v1", m, m.MediaType); err == nil || !strings.Contains(err.Error(), "MANIFEST_BLOB_UNKNOWN") {
		t.Errorf("3000 layers that are nowhere: %v", err)
	}
}

// A client loses its connection without anybody noticing, and comes back: the new request wins over the one that hangs.
func TestNewRequestTakesUploadOver(t *testing.T) {
	_, ts := newRegistry(t, nil)
	c := newClient(t, ts.URL)
	_, h, _, err := c.do("POST", "/v2/a/blobs/uploads/", "", nil)
	ok(t, err)
	conn, err := net.Dial("tcp", hostOf(t, ts.URL))
	ok(t, err)
	defer conn.Close()
	_, err = fmt.Fprintf(conn, "PATCH %s HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nhello ", h.Get("Location"))
	ok(t, err)
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(10 * time.Millisecond) { // until what it sent has arrived
		_, h2, _, err := c.do("GET", h.Get("Location"), "", nil)
		ok(t, err)
		got := h2.Get("Range")
		if got == "0-5" {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("range is %s", got)
		}
	}
	status, _, body, err := c.do("PATCH", h.Get("Location"), "", []byte("world"))
	ok(t, err)
	if status != 202 {
		t.Fatalf("%d %s", status, body)
	}
	if s := c.status("PUT", h.Get("Location")+"?digest="+string(digest.FromString("hello world"))); s != 201 {
		t.Error(s)
	}
}

// guard lets "writer" do everything, "reader" pull, and nobody look into private.
type guard struct{}

func (guard) Allow(_ context.Context, authorization, repo string, actions ...server.Action) error {
	switch {
	case authorization == "writer" && repo != "private":
		return nil
	case authorization == "":
		return errs.New(errs.Unauthorized, "who are you?")
	}
	for _, a := range actions {
		if a != server.Pull || repo == "private" {
			return errs.New(errs.Forbidden, "%s may not %s %s", authorization, a, repo)
		}
	}
	return nil
}
func (guard) Challenge(host, repo string, actions ...server.Action) string {
	return fmt.Sprintf("Basic realm=%q", repo)
}
func (guard) User(authorization string) string { return authorization }

func TestGuard(t *testing.T) {
	r, open := newRegistry(t, nil)
	c := newClient(t, open.URL)
	secret := must[ocispec.Descriptor](t)(c.push("private", []byte("secret")))
	must[ocispec.Descriptor](t)(c.push("public", []byte("public")))
	_ = r
	// The same bytes behind a guard: another registry on the same folder.
	_, ts := newRegistry(t, func(o *server.Options) { o.Guard = guard{} })
	ask := func(user, method, path string) (int, http.Header) {
		req, err := http.NewRequest(method, ts.URL+path, nil)
		ok(t, err)
		req.Header.Set("Authorization", user)
		resp, err := http.DefaultClient.Do(req)
		ok(t, err)
		ok(t, resp.Body.Close())
		return resp.StatusCode, resp.Header
	}
	for _, q := range []struct {
		user, method, path string
		want               int
	}{
		{"", "GET", "/v2/", 401}, {"reader", "GET", "/v2/", 200}, {"", "GET", "/v2/public/tags/list", 401}, {"reader", "GET", "/v2/public/tags/list", 404},
		{"reader", "GET", "/v2/private/tags/list", 403}, {"reader", "POST", "/v2/public/blobs/uploads/", 403}, {"writer", "POST", "/v2/public/blobs/uploads/", 202},
		{"reader", "DELETE", "/v2/public/manifests/x", 403}, {"writer", "DELETE", "/v2/public/manifests/x", 404}, {"reader", "GET", "/v2/_catalog", 403},
		{"writer", "GET", "/v2/_catalog", 200}, {"reader", "PUT", "/v2/public/manifests/x", 403},
		// Nobody gets a blob by knowing its digest.
		{"writer", "POST", "/v2/public/blobs/uploads/?mount=" + string(secret.Digest) + "&from=private", 202},
		{"writer", "POST", "/v2/public/blobs/uploads/?mount=" + string(secret.Digest), 202},
	} {
		status, h := ask(q.user, q.method, q.path)
		if status != q.want {
			t.Errorf("%q %s %s: %d, want %d", q.user, q.method, q.path, status, q.want)
		}
		if status == 401 && h.Get("WWW-Authenticate") == "" {
			t.Error("401 without a challenge")
		}
	}
}

func TestReadOnlyAndNoDelete(t *testing.T) {
	d := digest.FromString("x")
	_, ro := newRegistry(t, func(o *server.Options) { o.ReadOnly = true })
	_, nd := newRegistry(t, func(o *server.Options) { o.NoDelete = true })
	for _, url := range []string{ro.URL, nd.URL} {
		c := newClient(t, url)
		for _, path := range []string{"/v2/a/manifests/v1", "/v2/a/blobs/" + string(d)} {
			if s := c.status("DELETE", path); s != 405 {
				t.Errorf("delete: %d", s)
			}
		}
	}
	if s := newClient(t, ro.URL).status("POST", "/v2/a/blobs/uploads/"); s != 405 {
		t.Errorf("push to read-only: %d", s)
	}
	if s := newClient(t, nd.URL).status("POST", "/v2/a/blobs/uploads/"); s != 202 {
		t.Errorf("push: %d", s)
	}
}

// TestDiskFull fills a small file system in each phase. The client hears what is wrong, reading goes on, nothing half done stays, and with room again
// everything works.
func TestDiskFull(t *testing.T) {
	root := t.TempDir()
	if err := syscall.Mount("tmpfs", root, "tmpfs", 0, "size=3m,nr_inodes=200"); err != nil {
		if os.Geteuid() == 0 && !errors.Is(err, syscall.EPERM) {
			t.Fatal(err)
		}
		t.Skip("needs root to mount a small file system: ", err)
	}
	t.Cleanup(func() { // after the registry is closed
		if err := syscall.Unmount(root, 0); err != nil {
			t.Error(err)
		}
	})
	_, ts := registryOn(t, root, func(o *server.Options) { o.Logger = slog.New(slog.DiscardHandler) })
	c := newClient(t, ts.URL)
	must[digest.Digest](t)(c.image("a", "v1", []byte("{}"), []byte("layer")))
	full := func(method, path string, body []byte) {
		t.Helper()
		status, _, answer, err := c.do(method, path, ocispec.MediaTypeImageManifest, body)
		if err != nil || status != 507 || !bytes.Contains(answer, []byte("full")) {
			t.Errorf("%s on a full disk: %d %s, %v", method, status, answer, err)
		}
	}
	big := make([]byte, 4<<20)
	_, _ = rand.Read(big)
	full("POST", "/v2/a/blobs/uploads/?digest="+string(digest.FromBytes(big)), big)
	if n := files(t, root, "uploads"); n != 0 {
		t.Errorf("%d uploads are left of a POST", n)
	}
	_, h, _, err := c.do("POST", "/v2/a/blobs/uploads/", "", nil)
	ok(t, err)
	full("PATCH", h.Get("Location"), big)
	// Now it is really full. What needs room is refused, what does not is served.
	ok(t, c.whole("a", "v1"))
	if s := c.status("HEAD", "/v2/a/blobs/"+string(digest.FromString("layer"))); s != 200 {
		t.Errorf("HEAD: %d", s)
	}
	_, _, raw, err := c.do("GET", "/v2/a/manifests/v1", "", nil)
	ok(t, err)
	full("PUT", "/v2/a/manifests/v2", append(raw, bytes.Repeat([]byte(" "), 8192)...))
	if s := c.status("GET", "/v2/a/manifests/v2"); s != 404 {
		t.Errorf("a manifest that was refused: %d", s)
	}
	if n := files(t, root, "tmp"); n != 0 {
		t.Errorf("%d files are left in tmp", n)
	}
	if s := c.status("DELETE", h.Get("Location")); s != 204 {
		t.Errorf("cancel: %d", s)
	}
	must[digest.Digest](t)(c.image("a", "v2", []byte("{}"), []byte("other layer")))
	ok(t, c.whole("a", "v2"))

	// No files can be made any more.
	var fillers []string
	for i := 0; ; i++ {
		name := filepath.Join(root, fmt.Sprint("filler", i))
		if err := os.WriteFile(name, nil, 0o600); err != nil {
			break
		}
		fillers = append(fillers, name)
	}
	full("POST", "/v2/a/blobs/uploads/", nil)
	full("PUT", "/v2/a/manifests/v3", raw)
	if s := c.status("DELETE", "/v2/a/manifests/v2"); s != 202 {
		t.Errorf("delete on a full disk: %d", s)
	}
	for _, name := range fillers {
		ok(t, os.Remove(name))
	}
	must[digest.Digest](t)(c.image("a", "v3", []byte("{}"), []byte("other layer")))
}
