package cache

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/validate"

	"corten.dev/corten/internal/registry/client"
	"corten.dev/corten/internal/registry/server"
	"corten.dev/corten/internal/registry/server/disk"
)

// upstream is a real registry whose requests are counted, and which can be cut off or held up.
type upstream struct {
	*httptest.Server
	down  atomic.Bool
	blobs atomic.Int64 // GETs
	heads atomic.Int64 // of manifests
	hold  atomic.Pointer[chan struct{}]
}

func newRegistry(t *testing.T, ups func(d server.Driver) server.Upstreams) *server.Registry {
	t.Helper()
	d, err := disk.New(disk.Options{Root: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	opts := server.Options{Driver: d, Logger: slog.New(slog.NewTextHandler(t.Output(), nil))}
	if ups != nil {
		opts.Upstreams = ups(d)
	}
	reg, err := server.New(opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := reg.Close(); err != nil {
			t.Error(err)
		}
	})
	return reg
}

func newUpstream(t *testing.T) *upstream {
	t.Helper()
	reg := newRegistry(t, nil)
	u := &upstream{}
	u.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if u.down.Load() {
			panic(http.ErrAbortHandler)
		}
		if strings.Contains(req.URL.Path, "/blobs/sha256:") && req.Method == http.MethodGet {
			u.blobs.Add(1)
			if hold := u.hold.Load(); hold != nil {
				<-*hold
			}
		}
		if strings.Contains(req.URL.Path, "/manifests/") {
			u.heads.Add(1)
		}
		reg.ServeHTTP(w, req)
	}))
	t.Cleanup(u.Close)
	return u
}

type only client.Endpoint

func (o only) Endpoints(_, _ string) ([]client.Endpoint, error) {
	return []client.Endpoint{client.Endpoint(o)}, nil
}

func (u *upstream) as(prefix string, ttl time.Duration) Upstream {
	where, _ := url.Parse(u.URL)
	return Upstream{Prefix: prefix, Domain: where.Host, TTL: ttl, Remote: client.New(client.Options{
		Hosts: only{URL: u.URL, Transport: u.Client().Transport, PlainToo: true}, Retries: 1, Backoff: time.Millisecond,
	})}
}

// front is the registry that caches.
type front struct {
	*httptest.Server
	host  string
	clock atomic.Int64 // added to the time
}

func newFront(t *testing.T, ups ...Upstream) *front {
	t.Helper()
	f := &front{}
	reg := newRegistry(t, func(d server.Driver) server.Upstreams {
		c, err := New(Options{
			Upstreams: ups, Store: d, Staging: t.TempDir(), Logger: slog.New(slog.NewTextHandler(t.Output(), nil)),
			Now: func() time.Time { return time.Now().Add(time.Duration(f.clock.Load())) },
		})
		if err != nil {
			t.Fatal(err)
		}
		return c
	})
	f.Server = httptest.NewServer(reg)
	t.Cleanup(f.Close)
	f.host = strings.TrimPrefix(f.URL, "http://")
	return f
}

func push(t *testing.T, base, ref string) v1.Image {
	t.Helper()
	img, err := random.Image(300000, 3)
	if err != nil {
		t.Fatal(err)
	}
	pushImage(t, base, ref, img)
	return img
}

func pushImage(t *testing.T, base, ref string, img v1.Image) {
	t.Helper()
	tag, err := name.ParseReference(strings.TrimPrefix(base, "http://")+"/"+ref, name.Insecure)
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(tag, img); err != nil {
		t.Fatal(err)
	}
}

func pull(t *testing.T, base, ref string) (v1.Image, error) {
	t.Helper()
	tag, err := name.ParseReference(strings.TrimPrefix(base, "http://")+"/"+ref, name.Insecure)
	if err != nil {
		t.Fatal(err)
	}
	img, err := remote.Image(tag)
	if err != nil {
		return nil, err
	}
	return img, validate.Image(img)
}

func wantImage(t *testing.T, base, ref string, want v1.Image) {
	t.Helper()
	got, err := pull(t, base, ref)
	if err != nil {
		t.Fatalf("pull %s: %v", ref, err)
	}
	a, _ := got.Digest()
	b, _ := want.Digest()
	if a != b {
		t.Errorf("%s is %s, want %s", ref, a, b)
	}
}

func TestPullThrough(t *testing.T) {
	one, two := newUpstream(t), newUpstream(t)
	f := newFront(t, one.as("one.example", time.Hour), two.as("two.example/sub", 0))
	first, second := push(t, one.URL, "library/app:1"), push(t, two.URL, "app:1")
	wantImage(t, f.URL, "one.example/library/app:1", first)
	wantImage(t, f.URL, "two.example/sub/app:1", second)
	n := one.blobs.Load()
	if n == 0 {
		t.Fatal("nothing was fetched")
	}
	wantImage(t, f.URL, "one.example/library/app:1", first)
	if one.blobs.Load() != n {
		t.Error("a blob that is here was fetched again")
	}
	dgst, _ := first.Digest()
	wantImage(t, f.URL, "one.example/library/app@"+dgst.String(), first)
	if _, err := pull(t, f.URL, "one.example/library/missing:1"); err == nil || !strings.Contains(err.Error(), "MANIFEST_UNKNOWN") {
		t.Errorf("pull of what nobody has: %v", err)
	}
	if _, err := pull(t, f.URL, "three.example/app:1"); err == nil {
		t.Error("pull of what no upstream is for")
	}
	// The same host takes pushes, below a cached prefix as well as elsewhere; what was pushed is not replaced.
	own := push(t, f.URL, "team/app:1")
	wantImage(t, f.URL, "team/app:1", own)
	mine := push(t, f.URL, "two.example/sub/app:1")
	wantImage(t, f.URL, "two.example/sub/app:1", mine)
}

func TestTagsAge(t *testing.T) {
	up := newUpstream(t)
	f := newFront(t, up.as("up", time.Hour))
	old := push(t, up.URL, "app:latest")
	wantImage(t, f.URL, "up/app:latest", old)
	fresh := push(t, up.URL, "app:latest")
	asked := up.heads.Load()
	wantImage(t, f.URL, "up/app:latest", old)
	if up.heads.Load() != asked {
		t.Error("the upstream was asked within the tag's time")
	}
	f.clock.Store(int64(2 * time.Hour))
	wantImage(t, f.URL, "up/app:latest", fresh)
	// The upstream goes down: what is here is served, though its time is over.
	up.down.Store(true)
	f.clock.Store(int64(5 * time.Hour))
	wantImage(t, f.URL, "up/app:latest", fresh)
	if _, err := pull(t, f.URL, "up/other:1"); err == nil || strings.Contains(err.Error(), "127.0.0.1:") && strings.Contains(err.Error(), "EOF") {
		t.Errorf("pull of what is not here from an upstream that is down: %v", err)
	}
	up.down.Store(false)
	newest := push(t, up.URL, "app:latest")
	f.clock.Store(int64(9 * time.Hour))
	wantImage(t, f.URL, "up/app:latest", newest)
}

func TestAllowDeny(t *testing.T) {
	up := newUpstream(t)
	u := up.as("up", 0)
	u.Allow, u.Deny = []string{"team/**", "app"}, []string{"team/secret"}
	f := newFront(t, u)
	for ref, want := range map[string]bool{"app:1": true, "team/app:1": true, "team/secret:1": false, "other:1": false} {
		push(t, up.URL, ref)
		if _, err := pull(t, f.URL, "up/"+ref); (err == nil) != want {
			t.Errorf("pull of %s: %v", ref, err)
		}
	}
}

// Everything at once: each layer comes once, and whoever leaves in the middle takes nothing from the others.
func TestFetchedOnce(t *testing.T) {
	up := newUpstream(t)
	f := newFront(t, up.as("up", time.Hour))
	img := push(t, up.URL, "app:1")
	layers, err := img.Layers()
	if err != nil {
		t.Fatal(err)
	}
	dgst, _ := layers[0].Digest()
	size, _ := layers[0].Size()
	get := func(ctx context.Context, repo string) (int64, error) {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, f.URL+"/v2/up/"+repo+"/blobs/"+dgst.String(), nil)
		if err != nil {
			return 0, err
		}
		resp, err := f.Client().Do(req)
		if err != nil {
			return 0, err
		}
		defer resp.Body.Close()
		n, err := io.Copy(io.Discard, resp.Body)
		if resp.StatusCode != http.StatusOK {
			return n, fmt.Errorf("status %d", resp.StatusCode)
		}
		return n, err
	}
	// The manifest first, as clients do.
	tag, _ := name.ParseReference(f.host+"/up/app:1", name.Insecure)
	if _, err := remote.Get(tag); err != nil {
		t.Fatal(err)
	}
	hold := make(chan struct{})
	up.hold.Store(&hold)
	leaving, leave := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		if _, err := get(leaving, "app"); err == nil {
			t.Error("who left got everything")
		}
	})
	time.Sleep(50 * time.Millisecond) // the first one is the one that leaves
	for range 8 {
		wg.Go(func() {
			if n, err := get(t.Context(), "app"); err != nil || n != size {
				t.Errorf("got %d of %d bytes: %v", n, size, err)
			}
		})
	}
	time.Sleep(100 * time.Millisecond)
	leave()
	time.Sleep(50 * time.Millisecond)
	close(hold)
	wg.Wait()
	if n := up.blobs.Load(); n != 1 {
		t.Errorf("the blob was fetched %d times", n)
	}
}

func TestRoute(t *testing.T) {
	c := &Cache{opts: Options{Upstreams: []Upstream{{Prefix: "", Domain: "all"}, {Prefix: "docker.io", Domain: "docker.io"}, {Prefix: "docker.io/deep", Domain: "deep"}}}}
	for repo, want := range map[string]string{
		"docker.io/busybox": "docker.io library/busybox", "docker.io/a/b": "docker.io a/b", "docker.io/deep/x": "deep x", "docker.io": "all docker.io", "x": "all x",
		"docker.iox/y": "all docker.iox/y", "docker.io/deep": "docker.io library/deep",
	} {
		up, name, ok := c.route(repo)
		if got := up.Domain + " " + name; got != want || !ok {
			t.Errorf("%s leads to %s, want %s", repo, got, want)
		}
	}
}

// An upstream that sends something else than it names: nobody gets the whole of it, and nothing of it is kept.
func TestLyingUpstream(t *testing.T) {
	up := newUpstream(t)
	lies := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if strings.Contains(req.URL.Path, "/blobs/sha256:") && req.Method == http.MethodGet {
			rec := httptest.NewRecorder()
			req.Header.Del("Range")
			up.Config.Handler.ServeHTTP(rec, req)
			body := rec.Body.Bytes()
			body[len(body)/2] ^= 1
			w.Header().Set("Content-Length", fmt.Sprint(len(body)))
			_, _ = w.Write(body)
			return
		}
		up.Config.Handler.ServeHTTP(w, req)
	}))
	t.Cleanup(lies.Close)
	where := up.as("up", time.Hour)
	where.Remote = client.New(client.Options{Hosts: only{URL: lies.URL, Transport: lies.Client().Transport, PlainToo: true}, Retries: 1, Backoff: time.Millisecond})
	f := newFront(t, where)
	img := push(t, up.URL, "app:1")
	if _, err := pull(t, f.URL, "up/app:1"); err == nil {
		t.Error("a lie was handed on as the truth")
	}
	layers, err := img.Layers()
	if err != nil {
		t.Fatal(err)
	}
	tag, _ := name.NewRepository(f.host+"/up/app", name.Insecure)
	for _, l := range layers {
		dgst, _ := l.Digest()
		remoteLayer, err := remote.Layer(tag.Digest(dgst.String()))
		if err != nil {
			t.Fatal(err)
		}
		rc, err := remoteLayer.Compressed()
		if err != nil {
			continue
		}
		body, err := io.ReadAll(rc)
		rc.Close()
		size, _ := l.Size()
		if err == nil && int64(len(body)) == size {
			t.Errorf("all %d bytes of a lie came", size)
		}
	}
}
