package client

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"corten.dev/corten/internal/errs"
)

// uploads is a registry's half of an upload, with faults to be switched on.
type uploads struct {
	*served
	mu       sync.Mutex
	sessions map[string][]byte
	blobs    map[string][]byte
	next     int
	received int
	faults   int // of these:

	cutAt       int64 // a request's body is read so far, then the connection is cut
	forgets     bool  // what was cut is lost, with the session
	noStream    bool  // bodies without a length are refused
	minimum     int
	lostSession bool // 404 for the first session
	busy        bool // 503 after everything was read
	atOnce      bool // POST answers 201
	otherDigest bool
	absolute    string // of Location
}

func newUploads(t testing.TB) *uploads {
	u := &uploads{sessions: map[string][]byte{}, blobs: map[string][]byte{}}
	u.served = serve(t, true, u.handle)
	return u
}

func (u *uploads) location(w http.ResponseWriter, id string) {
	place := "/v2/team/app/blobs/uploads/" + id + "?_state=a%2Fb"
	w.Header().Set("Location", u.absolute+place)
	w.Header().Set("Range", fmt.Sprintf("0-%d", max(0, len(u.sessions[id])-1)))
}

func (u *uploads) handle(w http.ResponseWriter, r *http.Request) {
	id := r.URL.Path[strings.LastIndexByte(r.URL.Path, '/')+1:]
	if r.Method == "POST" {
		u.mu.Lock()
		defer u.mu.Unlock()
		if u.atOnce {
			w.Header().Set("Docker-Content-Digest", r.Header.Get("X-Want"))
			w.WriteHeader(201)
			return
		}
		u.next++
		id = fmt.Sprint(u.next)
		u.sessions[id] = nil
		if u.minimum > 0 {
			w.Header().Set("OCI-Chunk-Min-Length", fmt.Sprint(u.minimum))
		}
		u.location(w, id)
		w.WriteHeader(202)
		return
	}
	if r.FormValue("_state") != "a/b" {
		refuseJSON(w, 400, "BLOB_UPLOAD_INVALID", "the query was not kept")
		return
	}
	u.mu.Lock()
	_, ok := u.sessions[id]
	if u.lostSession && u.faults == 0 {
		u.faults++
		delete(u.sessions, id)
		ok = false
	}
	u.mu.Unlock()
	if !ok {
		refuseJSON(w, 404, "BLOB_UPLOAD_UNKNOWN", "blob upload unknown to registry")
		return
	}
	switch r.Method {
	case "GET":
		u.location(w, id)
		w.WriteHeader(204)
	case "DELETE":
		u.mu.Lock()
		defer u.mu.Unlock()
		delete(u.sessions, id)
		w.WriteHeader(204)
	case "PATCH", "PUT":
		u.take(w, r, id)
	}
}

func (u *uploads) take(w http.ResponseWriter, r *http.Request, id string) {
	if u.noStream && r.ContentLength < 0 {
		w.WriteHeader(411)
		return
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	if cr := r.Header.Get("Content-Range"); cr != "" {
		var from, to int
		if fmt.Sscanf(cr, "%d-%d", &from, &to); from != len(u.sessions[id]) || int64(to-from+1) != r.ContentLength {
			u.location(w, id)
			w.WriteHeader(416)
			return
		}
	}
	body := io.Reader(r.Body)
	cut := u.cutAt > 0 && u.faults == 0
	if cut {
		body = io.LimitReader(body, u.cutAt)
	}
	raw, err := io.ReadAll(body)
	u.sessions[id] = append(u.sessions[id], raw...)
	u.received += len(raw)
	if err != nil {
		return
	}
	if cut && int64(len(raw)) == u.cutAt {
		u.faults++
		if u.forgets {
			delete(u.sessions, id)
		}
		panic(http.ErrAbortHandler)
	}
	if u.busy && u.faults == 0 {
		u.faults++
		w.WriteHeader(503)
		return
	}
	if r.Method == "PATCH" {
		u.location(w, id)
		w.WriteHeader(202)
		return
	}
	got := string(digest.FromBytes(u.sessions[id]))
	if got != r.FormValue("digest") {
		refuseJSON(w, 400, "DIGEST_INVALID", "provided digest did not match uploaded content")
		return
	}
	if u.otherDigest {
		got = string(digest.FromString("other"))
	}
	w.Header().Set("Docker-Content-Digest", got)
	u.blobs[r.FormValue("digest")] = u.sessions[id]
	delete(u.sessions, id)
	w.WriteHeader(201)
}

// What registries do to an upload, with size and digest known and without.
func TestPush(t *testing.T) {
	raw, d := noise(9<<20 + 5)
	for name, tc := range map[string]struct {
		faults  func(*uploads)
		resumes bool // not all is sent twice
		want    string
	}{
		"plain":                        {func(u *uploads) {}, true, ""},
		"cut and kept":                 {func(u *uploads) { u.cutAt = 5 << 20 }, true, ""},
		"cut and forgotten":            {func(u *uploads) { u.cutAt, u.forgets = 5<<20, true }, false, ""},
		"takes no streams":             {func(u *uploads) { u.noStream = true }, true, ""},
		"no streams, cut":              {func(u *uploads) { u.noStream, u.cutAt = true, 5<<20 }, true, ""},
		"no streams, large":            {func(u *uploads) { u.noStream, u.minimum = true, 9<<20 }, true, ""},
		"no streams, absurd":           {func(u *uploads) { u.noStream, u.minimum = true, 1<<40 }, true, "wants pieces of at least"},
		"loses the session":            {func(u *uploads) { u.lostSession = true }, false, ""},
		"busy":                         {func(u *uploads) { u.busy = true }, true, ""},
		"says another":                 {func(u *uploads) { u.otherDigest = true }, true, "stored the blob as"},
		"absolute place":               {func(u *uploads) { u.absolute = u.URL }, true, ""},
		"place without TLS":            {func(u *uploads) { u.absolute = strings.Replace(u.URL, "https", "http", 1) }, true, ""},
		"place elsewhere, without TLS": {func(u *uploads) { u.absolute = "http://elsewhere.example" }, true, "from https to http://elsewhere.example: refused"},
	} {
		for _, known := range []bool{true, false} {
			t.Run(fmt.Sprint(name, ", known ", known), func(t *testing.T) {
				t.Parallel() // registries that refuse early wait half a second before they close
				u := newUploads(t)
				tc.faults(u)
				if known && strings.HasPrefix(name, "no streams, absurd") {
					return
				}
				r := repo(t, quick(t, u.hosts()), "team/app", Credentials{})
				var last int64
				up := Upload{Digest: d.Digest, Size: d.Size, Progress: func(n int64) { last = n }, Open: func(_ context.Context, off int64) (io.ReadCloser, error) {
					return io.NopCloser(bytes.NewReader(raw[off:])), nil
				}}
				if !known {
					up.Digest, up.Size = "", -1
				}
				got, err := r.Push(t.Context(), up)
				if tc.want != "" {
					if err == nil || !strings.Contains(err.Error(), tc.want) {
						t.Fatalf("got %v, want %q", err, tc.want)
					}
				} else if err != nil || got.Digest != d.Digest || got.Size != d.Size || !bytes.Equal(u.blobs[string(d.Digest)], raw) {
					t.Fatalf("%v %v", got, err)
				}
				if tc.resumes && u.received > len(raw) {
					t.Errorf("%d bytes arrived for %d", u.received, len(raw))
				}
				if err == nil && last != d.Size {
					t.Errorf("progress ends at %d of %d", last, d.Size)
				}
				if len(u.sessions) > 0 && name != "place elsewhere, without TLS" && !(known && u.otherDigest) {
					t.Errorf("%d sessions are left open", len(u.sessions))
				}
			})
		}
	}
}

// A registry that has the blob may say so at once; only when it says which.
func TestPushAnsweredAtOnce(t *testing.T) {
	raw, d := noise(100)
	says := string(d.Digest)
	srv := serve(t, true, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Docker-Content-Digest", says)
		w.WriteHeader(201)
	})
	r := repo(t, quick(t, srv.hosts()), "team/app", Credentials{})
	if _, err := r.Push(t.Context(), toSend(raw, d.Digest, 100)); err != nil {
		t.Error(err)
	}
	says = string(digest.FromString("other"))
	if _, err := r.Push(t.Context(), toSend(raw, d.Digest, 100)); err == nil || !strings.Contains(err.Error(), "names no place") {
		t.Errorf("a registry that stored something else at once: %v", err)
	}
}

// Somebody who goes away in the middle of an upload leaves no session.
func TestPushCancelled(t *testing.T) {
	u := newUploads(t)
	ctx, cancel := context.WithCancel(t.Context())
	r := repo(t, quick(t, u.hosts()), "team/app", Credentials{})
	pr, pw := io.Pipe()
	go func() {
		pw.Write(make([]byte, 1<<20))
		cancel()
		pw.CloseWithError(errors.New("gone"))
	}()
	_, err := r.Push(ctx, Upload{Size: -1, Open: func(context.Context, int64) (io.ReadCloser, error) { return pr, nil }})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	for range 3000 { // the handler of the broken request may still be in it
		u.mu.Lock()
		n := len(u.sessions)
		u.mu.Unlock()
		if n == 0 {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Error("the session is left open")
}

func TestPushOfWhatCannotBeRead(t *testing.T) {
	u := newUploads(t)
	r := repo(t, quick(t, u.hosts()), "team/app", Credentials{})
	raw, d := noise(1000)
	opens := 0
	for name, tc := range map[string]struct {
		open func(context.Context, int64) (io.ReadCloser, error)
		want string
	}{
		"gone": {func(context.Context, int64) (io.ReadCloser, error) { return nil, errors.New("no such layer") }, "no such layer"},
		"short": {func(context.Context, int64) (io.ReadCloser, error) {
			return io.NopCloser(bytes.NewReader(raw[:10])), nil
		}, "content ends after 10 of 1000 bytes"},
		"breaks": {func(context.Context, int64) (io.ReadCloser, error) {
			opens++
			return io.NopCloser(io.MultiReader(bytes.NewReader(raw[:10]), errReader{})), nil
		}, "bad sector"},
	} {
		_, err := r.Push(t.Context(), Upload{Digest: d.Digest, Size: d.Size, Open: tc.open})
		if err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if opens != 1 {
		t.Errorf("our own broken disk was read %d times", opens)
	}
	longer := toSend(append(bytes.Clone(raw), 1), d.Digest, d.Size)
	if _, err := r.Push(t.Context(), longer); err != nil || !bytes.Equal(u.blobs[string(d.Digest)], raw) {
		t.Errorf("content that goes on: %v", err)
	}
	if _, err := r.Push(t.Context(), toSend(nil, digest.FromString(""), 0)); err != nil {
		t.Errorf("an empty blob: %v", err)
	}
	if got, err := r.Push(t.Context(), toSend(nil, "", -1)); err != nil || got.Digest != digest.FromString("") || got.Size != 0 {
		t.Errorf("an empty stream: %v %v", got, err)
	}
}

type errReader struct{}

func (errReader) Read([]byte) (int, error) { return 0, errors.New("bad sector") }

// Mounts want two scopes; what a registry does not mount it must not keep open.
func TestMountScopesAndSessions(t *testing.T) {
	var scopes []string
	var deleted bool
	var srv *served
	srv = serve(t, true, func(w http.ResponseWriter, r *http.Request) {
		switch {
		case isToken(r):
			if scopes == nil {
				scopes = r.URL.Query()["scope"]
			}
			fmt.Fprint(w, `{"token":"t"}`)
		case r.Header.Get("Authorization") == "":
			w.Header().Set("WWW-Authenticate", `Bearer realm="`+srv.URL+`/token",service="s"`)
			w.WriteHeader(401)
		case r.Method == "DELETE":
			deleted = r.URL.Path == "/upload/7"
			w.WriteHeader(204)
		default:
			w.Header().Set("Location", "/upload/7")
			w.WriteHeader(202)
		}
	})
	_, d := noise(1)
	r := repo(t, quick(t, srv.hosts()), "team/app", Credentials{})
	if ok, err := r.Mount(t.Context(), d.Digest, "team/base"); err != nil || ok {
		t.Errorf("%v %v", ok, err)
	}
	if got := fmt.Sprint(scopes); got != "[repository:team/app:pull,push repository:team/base:pull]" {
		t.Errorf("scopes %v", got)
	}
	if !deleted {
		t.Error("the session that came instead of a mount was left open")
	}
}

func TestPushManifestAnswers(t *testing.T) {
	says := ""
	srv := serve(t, true, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Docker-Content-Digest", says)
		w.WriteHeader(201)
	})
	r := repo(t, quick(t, srv.hosts()), "team/app", Credentials{})
	doc, err := r.(*repository).sites[0].check("1", false, []byte(emptyManifest), http.Header{})
	if err != nil {
		t.Fatal(err)
	}
	if err := r.PushManifest(t.Context(), "1", doc); err != nil {
		t.Error(err)
	}
	if n := srv.count(func(r *http.Request) bool {
		return r.Method == "PUT" && r.Header.Get("Content-Type") == doc.MediaType && r.ContentLength == int64(len(doc.Raw))
	}); n != 1 {
		t.Errorf("%d good requests", n)
	}
	says = string(digest.FromString("other"))
	if err := r.PushManifest(t.Context(), "1", doc); err == nil || !strings.Contains(err.Error(), "stored the manifest as") {
		t.Errorf("got %v", err)
	}
	if err := r.PushManifest(t.Context(), says, doc); !errors.Is(err, errs.Invalid) {
		t.Errorf("under another digest: %v", err)
	}
	for _, bad := range []string{"", "../x", "a/b", "sha256:12", "x?y", "sha512:" + strings.Repeat("a", 128)} {
		if err := r.PushManifest(t.Context(), bad, doc); !errors.Is(err, errs.Invalid) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

func TestMirrorsTakeNoPushes(t *testing.T) {
	r := repo(t, quick(t, fixed{list: []Endpoint{{URL: "https://mirror.example", Mirror: true}}}), "team/app", Credentials{})
	raw, d := noise(1)
	_, err := r.Push(t.Context(), toSend(raw, d.Digest, 1))
	if !errors.Is(err, errs.Forbidden) {
		t.Errorf("got %v", err)
	}
}
