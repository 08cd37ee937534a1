package server_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/registry/server"
)

// upstream is one image in memory, which can be slow, lie or be down.
type upstream struct {
	mu     sync.Mutex // guards raw
	raw    []byte
	blobs  map[digest.Digest][]byte
	gate   chan struct{} // if set, blobs stop in the middle until it is closed
	opened atomic.Int64
	asked  atomic.Int64
	down   atomic.Bool
}

func newUpstream(t *testing.T, layers ...[]byte) *upstream {
	t.Helper()
	u := &upstream{blobs: map[digest.Digest][]byte{}}
	u.set(t, layers...)
	return u
}

func (u *upstream) set(t *testing.T, layers ...[]byte) {
	t.Helper()
	m := ocispec.Manifest{MediaType: ocispec.MediaTypeImageManifest}
	m.SchemaVersion = 2
	for i, data := range append([][]byte{[]byte("{}")}, layers...) {
		d := digest.FromBytes(data)
		u.blobs[d] = data
		desc := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: d, Size: int64(len(data))}
		if i == 0 {
			m.Config = desc
		} else {
			m.Layers = append(m.Layers, desc)
		}
	}
	raw, err := json.Marshal(m)
	ok(t, err)
	u.mu.Lock()
	defer u.mu.Unlock()
	u.raw = raw
}

func (u *upstream) Manifest(_ context.Context, repo, ref string, have digest.Digest) (server.UpstreamManifest, error) {
	u.asked.Add(1)
	u.mu.Lock()
	defer u.mu.Unlock()
	d := digest.FromBytes(u.raw)
	switch {
	case u.down.Load():
		return server.UpstreamManifest{}, errs.New(errs.Unavailable, "upstream is down")
	case repo != "cached" || ref != "v1" && ref != string(d) && ref != "liar":
		return server.UpstreamManifest{}, errs.New(errs.NotFound, "not found")
	case have == d:
		return server.UpstreamManifest{}, errs.New(errs.NotModified, "the same")
	}
	return server.UpstreamManifest{MediaType: ocispec.MediaTypeImageManifest, Raw: u.raw}, nil
}

func (u *upstream) Blob(_ context.Context, repo string, d digest.Digest) (io.ReadCloser, int64, error) {
	data, found := u.blobs[d]
	if u.down.Load() || repo != "cached" || !found {
		return nil, 0, errs.New(errs.NotFound, "not found")
	}
	u.opened.Add(1)
	var r io.Reader = bytes.NewReader(data)
	if u.gate != nil {
		half := len(data) / 2
		r = io.MultiReader(bytes.NewReader(data[:half]), gated{u.gate}, bytes.NewReader(data[half:]))
	}
	return io.NopCloser(r), int64(len(data)), nil
}

type gated struct{ open chan struct{} }

func (g gated) Read([]byte) (int, error) {
	<-g.open
	return 0, io.EOF
}

func TestPullThrough(t *testing.T) {
	layer := make([]byte, 3<<20)
	_, _ = rand.Read(layer)
	u := newUpstream(t, layer)
	root := t.TempDir()
	_, ts := registryOn(t, root, func(o *server.Options) { o.Upstreams = u })
	c := newClient(t, ts.URL)
	d := digest.FromBytes(layer)
	for i := range 3 {
		if i == 2 {
			u.down.Store(true) // what is here is enough
		}
		ok(t, c.whole("cached", "v1"))
		status, h, body, err := c.do("GET", "/v2/cached/blobs/"+string(d), "", nil)
		if err != nil || status != 200 || !bytes.Equal(body, layer) || h.Get("Docker-Content-Digest") != string(d) {
			t.Fatalf("round %d: %d, %d bytes, %v", i, status, len(body), err)
		}
	}
	if n := u.opened.Load(); n != 2 {
		t.Errorf("the upstream was asked for %d blobs", n)
	}
	if files(t, root, "blobs") != 2 || files(t, root, "uploads") != 0 {
		t.Error("the cache does not hold what it should")
	}
	u.down.Store(false)
	// The tag moves; the old digest stays.
	old := digest.FromBytes(u.raw)
	u.set(t, []byte("new layer"))
	ok(t, c.whole("cached", "v1"))
	_, h, _, err := c.do("HEAD", "/v2/cached/manifests/v1", "", nil)
	ok(t, err)
	if h.Get("Docker-Content-Digest") == string(old) {
		t.Error("the tag did not move")
	}
	ok(t, c.whole("cached", string(old)))
	// Names that no upstream has, and pushes into the same registry.
	for _, path := range []string{"/v2/cached/manifests/nothing", "/v2/elsewhere/manifests/v1", "/v2/cached/blobs/" + string(digest.FromString("no"))} {
		if s := c.status("GET", path); s != 404 {
			t.Errorf("%s: %d", path, s)
		}
	}
	must[digest.Digest](t)(c.image("own", "v1", []byte("{}"), []byte("own")))
	ok(t, c.whole("own", "v1"))
}

func TestPullThroughRefusesLies(t *testing.T) {
	u := newUpstream(t, []byte("layer"))
	wrong := digest.FromString("something else")
	u.blobs[wrong] = []byte("not that")
	root := t.TempDir()
	_, ts := registryOn(t, root, func(o *server.Options) { o.Upstreams = u })
	c := newClient(t, ts.URL)
	c.status("GET", "/v2/cached/blobs/"+string(wrong)) // what was sent cannot be taken back; the client verifies
	kept := func() int { return files(t, root, "blobs") + files(t, root, "uploads") + files(t, root, "values") }
	for end := time.Now().Add(30 * time.Second); kept() != 0; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%d files are kept of a lie", kept())
		}
	}
}

// A client that goes away does not stop what was begun, and one that comes meanwhile does not ask the upstream again.
func TestPullThroughIsShared(t *testing.T) {
	layer := make([]byte, 4<<20)
	_, _ = rand.Read(layer)
	u := newUpstream(t, layer)
	u.gate = make(chan struct{})
	_, ts := newRegistry(t, func(o *server.Options) {
		o.Upstreams = u
		o.Limits.IdleBody = time.Second // is about clients, not about the upstream, which stands still for longer
	})
	d := digest.FromBytes(layer)
	conn, err := net.Dial("tcp", hostOf(t, ts.URL))
	ok(t, err)
	_, err = io.WriteString(conn, "GET /v2/cached/blobs/"+string(d)+" HTTP/1.1\r\nHost: x\r\n\r\n")
	ok(t, err)
	_, err = io.ReadFull(conn, make([]byte, 1<<20))
	ok(t, err)
	ok(t, conn.Close())
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(func() {
			resp, err := http.Get(ts.URL + "/v2/cached/blobs/" + string(d))
			if err != nil {
				t.Error(err)
				return
			}
			data, err := io.ReadAll(resp.Body)
			if err := errors.Join(err, resp.Body.Close()); err != nil || !bytes.Equal(data, layer) {
				t.Errorf("%d bytes: %v", len(data), err)
			}
		})
	}
	time.Sleep(1200 * time.Millisecond)
	close(u.gate)
	wg.Wait()
	if n := u.opened.Load(); n != 1 {
		t.Errorf("the upstream was asked %d times", n)
	}
}
