package server_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/registry/server"
)

// client is what a test pushes and pulls with; it returns errors, because registries are killed under it.
type client struct {
	url  string
	http *http.Client
}

func newClient(t testing.TB, url string) *client {
	transport := &http.Transport{MaxIdleConnsPerHost: 16}
	t.Cleanup(transport.CloseIdleConnections)
	return &client{url: url, http: &http.Client{Transport: transport, Timeout: time.Minute}}
}

func (c *client) do(method, path, contentType string, body []byte) (int, http.Header, []byte, error) {
	req, err := http.NewRequest(method, c.url+path, bytes.NewReader(body))
	if err != nil {
		return 0, nil, nil, err
	}
	if contentType != "" {
		req.Header.Set("Content-Type", contentType)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return 0, nil, nil, err
	}
	data, err := io.ReadAll(resp.Body)
	return resp.StatusCode, resp.Header, data, errors.Join(err, resp.Body.Close())
}

func (c *client) status(method, path string) int {
	status, _, _, err := c.do(method, path, "", nil)
	if err != nil {
		return -1
	}
	return status
}

// push uploads a blob unless it is there, as clients do.
func (c *client) push(repo string, data []byte) (ocispec.Descriptor, error) {
	d := digest.FromBytes(data)
	desc := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: d, Size: int64(len(data))}
	status, _, _, err := c.do("HEAD", "/v2/"+repo+"/blobs/"+string(d), "", nil)
	if err != nil || status == 200 {
		return desc, err
	}
	return desc, c.upload(repo, d, data)
}

func (c *client) upload(repo string, d digest.Digest, data []byte) error {
	status, h, body, err := c.do("POST", "/v2/"+repo+"/blobs/uploads/", "", nil)
	if err == nil && status != 202 {
		err = fmt.Errorf("post: %d %s", status, body)
	}
	if err != nil {
		return err
	}
	status, _, body, err = c.do("PUT", h.Get("Location")+"?digest="+string(d), "application/octet-stream", data)
	if err == nil && status != 201 {
		err = fmt.Errorf("put: %d %s", status, body)
	}
	return err
}

// image pushes blobs and a manifest of them; the first is the config.
func (c *client) image(repo, tag string, blobs ...[]byte) (digest.Digest, error) {
	m := ocispec.Manifest{MediaType: ocispec.MediaTypeImageManifest, Layers: []ocispec.Descriptor{}}
	m.SchemaVersion = 2
	for i, data := range blobs {
		desc, err := c.push(repo, data)
		if err != nil {
			return "", err
		}
		if i == 0 {
			desc.MediaType = ocispec.MediaTypeImageConfig
			m.Config = desc
		} else {
			m.Layers = append(m.Layers, desc)
		}
	}
	return c.manifest(repo, tag, m, m.MediaType)
}

func (c *client) manifest(repo, ref string, v any, mediaType string) (digest.Digest, error) {
	raw, err := json.Marshal(v)
	if err != nil {
		return "", err
	}
	d := digest.FromBytes(raw)
	if ref == "" {
		ref = string(d)
	}
	status, _, body, err := c.do("PUT", "/v2/"+repo+"/manifests/"+ref, mediaType, raw)
	if err == nil && status != 201 {
		err = fmt.Errorf("manifest: %d %s", status, body)
	}
	return d, err
}

// whole pulls everything of an image and compares the digests.
func (c *client) whole(repo, ref string) error {
	status, _, raw, err := c.do("GET", "/v2/"+repo+"/manifests/"+ref, "", nil)
	if err != nil || status != 200 {
		return fmt.Errorf("manifest %s of %s: %d %w", ref, repo, status, err)
	}
	var m struct {
		ocispec.Manifest
		Manifests []ocispec.Descriptor `json:"manifests"`
	}
	if err := json.Unmarshal(raw, &m); err != nil {
		return err
	}
	for _, desc := range m.Manifests {
		if err := c.whole(repo, string(desc.Digest)); err != nil {
			return err
		}
	}
	if m.Config.Digest == "" {
		return nil
	}
	for _, desc := range append(m.Layers, m.Config) {
		status, _, data, err := c.do("GET", "/v2/"+repo+"/blobs/"+string(desc.Digest), "", nil)
		if err != nil || status != 200 {
			return fmt.Errorf("blob %s of %s: %d %w", desc.Digest, repo, status, err)
		}
		if digest.FromBytes(data) != desc.Digest {
			return fmt.Errorf("blob %s of %s is corrupt", desc.Digest, repo)
		}
	}
	return nil
}

// files counts what a registry's folder holds below a name.
func files(t *testing.T, root, below string) int {
	t.Helper()
	n := 0
	err := filepath.WalkDir(filepath.Join(root, below), func(path string, e os.DirEntry, err error) error {
		if err == nil && !e.IsDir() {
			n++
		}
		if errors.Is(err, os.ErrNotExist) {
			return nil
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func withGrace(grace time.Duration) func(*server.Options) {
	return func(o *server.Options) { o.Limits.Grace = grace }
}

func collect(t *testing.T, r *server.Registry, opts server.CollectOptions) server.Report {
	t.Helper()
	report, err := r.Collect(t.Context(), opts)
	ok(t, err)
	return report
}

const shortGrace = 200 * time.Millisecond

func TestCollectRemovesWhatNothingNames(t *testing.T) {
	root := t.TempDir()
	r, ts := registryOn(t, root, withGrace(shortGrace))
	c := newClient(t, ts.URL)
	must[digest.Digest](t)(c.image("a/b", "v1", []byte("{}"), []byte("layer one")))
	must[digest.Digest](t)(c.image("a", "v1", []byte("{}"), []byte("layer one")))
	must[ocispec.Descriptor](t)(c.push("a/b", []byte("nobody names this")))
	must[ocispec.Descriptor](t)(c.push("gone", []byte("nobody names this either")))
	// Signatures are kept in repositories of their own, too: without a rule no tag goes.
	lonely := "sha256-" + digest.FromString("elsewhere").Encoded() + ".sig"
	must[digest.Digest](t)(c.image("a", lonely, []byte("{}")))
	if report := collect(t, r, server.CollectOptions{Grace: time.Hour}); report.Links != 0 || report.Blobs != 0 || report.Kept != 4 {
		t.Errorf("within the grace it removes %+v", report)
	}
	time.Sleep(shortGrace + 50*time.Millisecond)
	dry := collect(t, r, server.CollectOptions{DryRun: true})
	if files(t, root, "blobs") != 4 {
		t.Error("a dry run removes blobs")
	}
	report := collect(t, r, server.CollectOptions{})
	for _, rep := range []server.Report{dry, report} {
		if rep.Links != 2 || rep.Blobs != 2 || rep.Kept != 2 || rep.Bytes != int64(len("nobody names this")+len("nobody names this either")) {
			t.Errorf("it removes %+v", rep)
		}
	}
	if n := files(t, root, "blobs"); n != 2 {
		t.Errorf("%d blobs are left", n)
	}
	ok(t, c.whole("a/b", "v1"))
	ok(t, c.whole("a", "v1"))
	ok(t, c.whole("a", lonely))
	if s := c.status("GET", "/v2/gone/tags/list"); s != 404 {
		t.Errorf("an empty repository stays: %d", s)
	}
	if s := c.status("DELETE", "/v2/a/manifests/v1"); s != 202 {
		t.Fatal(s)
	}
	collect(t, r, server.CollectOptions{})
	ok(t, c.whole("a/b", "v1"))
}

// A client that was told "it is there" does not upload. So what it was told must hold, whatever is collected meanwhile.
func TestCollectKeepsWhatWasSeen(t *testing.T) {
	t.Parallel() // most of it is waiting
	grace := 2 * time.Second
	for !keepsWhatWasSeen(t, grace) && grace < time.Minute { // a busy machine needs longer for three questions: then nothing was found out
		grace *= 3
	}
}

// keepsWhatWasSeen answers false when the grace was over before the collection was.
func keepsWhatWasSeen(t *testing.T, grace time.Duration) bool {
	t.Helper()
	r, ts := newRegistry(t, withGrace(grace))
	c := newClient(t, ts.URL)
	seen, mounted, stale := []byte("seen"), []byte("mounted"), []byte("stale")
	for _, data := range [][]byte{seen, mounted, stale} {
		must[ocispec.Descriptor](t)(c.push("x", data))
	}
	child := must[digest.Digest](t)(c.image("x", "", []byte("{}")))
	time.Sleep(grace + 50*time.Millisecond)
	began := time.Now()
	if s := c.status("HEAD", "/v2/x/blobs/"+string(digest.FromBytes(seen))); s != 200 {
		t.Fatal(s)
	}
	if s := c.status("POST", "/v2/y/blobs/uploads/?from=x&mount="+string(digest.FromBytes(mounted))); s != 201 {
		t.Fatal(s)
	}
	if s := c.status("HEAD", "/v2/x/manifests/"+string(child)); s != 200 {
		t.Fatal(s)
	}
	report := collect(t, r, server.CollectOptions{Rules: []server.Rule{{Untagged: time.Millisecond}}})
	if time.Since(began) > grace/2 {
		return false
	}
	if report.Blobs != 1 || report.Manifests != 0 {
		t.Errorf("it removes %+v", report)
	}
	if s := c.status("HEAD", "/v2/x/blobs/"+string(digest.FromBytes(stale))); s != 404 {
		t.Errorf("what nobody asked for is still there: %d", s)
	}
	must[digest.Digest](t)(c.image("x", "v1", []byte("{}"), seen))
	must[digest.Digest](t)(c.image("y", "v1", []byte("{}"), mounted))
	x := ocispec.Index{MediaType: ocispec.MediaTypeImageIndex, Manifests: []ocispec.Descriptor{{MediaType: ocispec.MediaTypeImageManifest, Digest: child, Size: 246}}}
	x.SchemaVersion = 2
	_, h, _, err := c.do("HEAD", "/v2/x/manifests/"+string(child), "", nil)
	ok(t, err)
	_, err = fmt.Sscan(h.Get("Content-Length"), &x.Manifests[0].Size)
	ok(t, err)
	must[digest.Digest](t)(c.manifest("x", "index", x, x.MediaType))
	ok(t, c.whole("x", "index"))
	return true
}

func TestCollectByRules(t *testing.T) {
	r, ts := newRegistry(t, withGrace(shortGrace))
	c := newClient(t, ts.URL)
	var ds []digest.Digest
	for i := range 5 {
		ds = append(ds, must[digest.Digest](t)(c.image("team/app", fmt.Sprint("v", i), []byte("{}"), fmt.Appendf(nil, "layer %d", i))))
		must[digest.Digest](t)(c.image("other", fmt.Sprint("v", i), []byte("{}"), fmt.Appendf(nil, "layer %d", i)))
	}
	// A referrer of a manifest that goes, and one of a manifest that stays.
	for _, i := range []int{0, 4} {
		m := ocispec.Manifest{MediaType: ocispec.MediaTypeImageManifest, Layers: []ocispec.Descriptor{}, Subject: &ocispec.Descriptor{Digest: ds[i], Size: 1}}
		m.SchemaVersion = 2
		m.Config = must[ocispec.Descriptor](t)(c.push("team/app", []byte("{}")))
		must[digest.Digest](t)(c.manifest("team/app", "", m, m.MediaType))
	}
	sig := "sha256-" + ds[4].Encoded() + ".sig"
	must[digest.Digest](t)(c.image("team/app", sig, []byte("{}"), []byte("signature")))
	time.Sleep(shortGrace + 50*time.Millisecond)
	opts := server.CollectOptions{Rules: []server.Rule{
		{Repositories: []string{"team/*"}, KeepLast: 2, Keep: []string{"v1"}, Untagged: time.Millisecond},
	}}
	var whys []string
	opts.Log = func(g server.Gone) { whys = append(whys, g.Why) }
	report := collect(t, r, opts)
	// v3, v4 and v1 stay; v0 and v2 go, and with v0 its referrer.
	if report.Tags != 2 || report.Manifests != 3 || report.Links != 2 || report.Blobs != 0 {
		t.Errorf("it removes %+v: %q", report, whys)
	}
	for i, want := range []int{404, 200, 404, 200, 200} {
		if s := c.status("HEAD", fmt.Sprintf("/v2/team/app/manifests/v%d", i)); s != want {
			t.Errorf("v%d: %d", i, s)
		}
		ok(t, c.whole("other", fmt.Sprint("v", i)))
	}
	ok(t, c.whole("team/app", sig))
	_, _, body, err := c.do("GET", "/v2/team/app/referrers/"+string(ds[4]), "", nil)
	ok(t, err)
	if strings.Count(string(body), `"digest"`) != 1 {
		t.Errorf("referrers of what stays: %s", body)
	}
	if _, err := r.Collect(t.Context(), server.CollectOptions{Grace: time.Millisecond}); !errors.Is(err, errs.Invalid) {
		t.Errorf("a grace shorter than the registry's: %v", err)
	}
}

func TestCollectExpiresUploads(t *testing.T) {
	root := t.TempDir()
	r, ts := registryOn(t, root, func(o *server.Options) { o.Limits.UploadAge = time.Hour })
	c := newClient(t, ts.URL)
	_, h, _, err := c.do("POST", "/v2/x/blobs/uploads/", "", nil)
	ok(t, err)
	loc := h.Get("Location")
	if report := collect(t, r, server.CollectOptions{}); report.Uploads != 0 {
		t.Errorf("it removes %+v", report)
	}
	uploads, err := filepath.Glob(filepath.Join(root, "uploads", "*"))
	if err != nil || len(uploads) != 1 {
		t.Fatal(uploads, err)
	}
	old := time.Now().Add(-2 * time.Hour)
	ok(t, os.Chtimes(uploads[0], old, old))
	if report := collect(t, r, server.CollectOptions{DryRun: true}); report.Uploads != 1 || files(t, root, "uploads") != 1 {
		t.Errorf("a dry run removes %+v", report)
	}
	if report := collect(t, r, server.CollectOptions{}); report.Uploads != 1 || files(t, root, "uploads") != 0 {
		t.Errorf("it removes %+v", report)
	}
	if s := c.status("GET", loc); s != 404 {
		t.Errorf("an expired upload: %d", s)
	}
}

// Pushers share layers, which become garbage again and again, while garbage is collected all the time. Whoever got 201 for a manifest must be able to
// pull it until he deletes it; nothing may be refused on the way.
func TestCollectWhilePushing(t *testing.T) {
	const grace = time.Second
	root := t.TempDir()
	r, ts := registryOn(t, root, withGrace(grace))
	_, other := registryOn(t, root, withGrace(grace)) // shares the place, and knows nothing of the collections
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var wg sync.WaitGroup
	var collected, pushed atomic.Int64
	wg.Go(func() {
		for ctx.Err() == nil {
			report, err := r.Collect(context.Background(), server.CollectOptions{Rules: []server.Rule{{Untagged: grace}}})
			if err != nil {
				t.Error(err)
				return
			}
			collected.Add(int64(report.Blobs))
			time.Sleep(3 * time.Millisecond)
		}
	})
	for w := range 4 {
		wg.Go(func() {
			c := newClient(t, []string{ts.URL, other.URL}[w%2])
			for i := 0; ctx.Err() == nil; i++ {
				began := time.Now()
				err := pushPullDelete(c, fmt.Sprint("r", w/2), fmt.Sprintf("t%d-%d", w, i))
				if err != nil && time.Since(began) < grace/2 { // on a busy machine a push may take longer than it may
					t.Error(err)
					return
				}
				pushed.Add(1)
				time.Sleep(time.Duration(rand.IntN(40)) * time.Millisecond)
			}
		})
	}
	for began := time.Now(); time.Since(began) < 3*time.Second || collected.Load() == 0 && time.Since(began) < 2*time.Minute; {
		time.Sleep(20 * time.Millisecond)
	}
	stop()
	wg.Wait()
	t.Logf("%d images were pushed, %d blobs collected", pushed.Load(), collected.Load())
	if collected.Load() == 0 {
		t.Error("nothing was collected: the test proves nothing")
	}
	time.Sleep(grace + 50*time.Millisecond)
	everything := server.CollectOptions{Rules: []server.Rule{{KeepFor: time.Millisecond, Untagged: time.Millisecond}}} // also what a slow push left
	collect(t, r, everything)
	if b, v, u := files(t, root, "blobs"), files(t, root, "values"), files(t, root, "uploads"); b+v+u != 0 {
		t.Errorf("after all was deleted and collected, %d blobs, %d values and %d uploads are left", b, v, u)
	}
}

// pushPullDelete uses few layers, so that others' garbage is often what is needed again.
func pushPullDelete(c *client, repo, tag string) error {
	blobs := [][]byte{fmt.Appendf(nil, `{"tag":%q}`, tag)}
	for range 1 + rand.IntN(3) {
		blobs = append(blobs, fmt.Appendf(nil, "layer %d", rand.IntN(60)))
	}
	d, err := c.image(repo, tag, blobs...)
	if err != nil {
		return err
	}
	if err := c.whole(repo, tag); err != nil {
		return err
	}
	if s := c.status("DELETE", "/v2/"+repo+"/manifests/"+tag); s != 202 {
		return fmt.Errorf("delete %s: %d", tag, s)
	}
	if s := c.status("DELETE", "/v2/"+repo+"/manifests/"+string(d)); s != 202 {
		return fmt.Errorf("delete %s: %d", d, s)
	}
	return nil
}
