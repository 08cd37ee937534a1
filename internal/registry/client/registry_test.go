package client

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"io"
	"log"
	"log/slog"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	ggcr "github.com/google/go-containerregistry/pkg/registry"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/manifest"
	"corten.dev/corten/internal/reference"
)

// sink is what content.Ingest is to the client.
type sink struct {
	bytes.Buffer
	written  atomic.Int64 // for those who watch
	restarts int
	limit    int64 // a disk that is full after so many bytes; 0 is never
	delay    time.Duration
}

func (s *sink) Write(p []byte) (int, error) {
	if s.limit > 0 && int64(s.Len()+len(p)) > s.limit {
		return 0, errors.New("no space left on device")
	}
	time.Sleep(s.delay)
	defer s.written.Add(int64(len(p)))
	return s.Buffer.Write(p)
}
func (s *sink) len() int64     { return s.written.Load() }
func (s *sink) Size() int64    { return int64(s.Len()) }
func (s *sink) Restart() error { s.Reset(); s.restarts++; return nil }

// sumSink hashes too.
type sumSink struct{ sink }

func (s *sumSink) Sum() digest.Digest { return digest.FromBytes(s.Bytes()) }

func quick(t testing.TB, hosts Hosts) *Client {
	t.Helper()
	c := New(Options{Hosts: hosts, UserAgent: "corten-test", Backoff: time.Millisecond, Retries: 4, Logger: slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))})
	return c
}

func parse(t testing.TB, s string) reference.Ref {
	t.Helper()
	ref, err := reference.Parse(s)
	if err != nil {
		t.Fatal(err)
	}
	return ref
}

func repo(t testing.TB, c *Client, name string, creds Credentials) Repository {
	t.Helper()
	r, err := c.Repository(parse(t, name), creds)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func noise(n int) ([]byte, ocispec.Descriptor) {
	raw := make([]byte, n)
	if _, err := rand.Read(raw); err != nil {
		panic(err)
	}
	return raw, ocispec.Descriptor{MediaType: "application/octet-stream", Digest: digest.FromBytes(raw), Size: int64(n)}
}

func toSend(raw []byte, d digest.Digest, size int64) Upload {
	return Upload{Digest: d, Size: size, Open: func(_ context.Context, off int64) (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(raw[off:])), nil
	}}
}

// The journey of an image, against a foreign registry.
func TestJourney(t *testing.T) {
	srv := httptest.NewServer(ggcr.New(ggcr.Logger(log.New(io.Discard, "", 0))))
	defer srv.Close()
	journey(t, strings.TrimPrefix(srv.URL, "http://"), Credentials{}, false)
}

func journey(t *testing.T, host string, creds Credentials, mounts bool) {
	ctx := t.Context()
	c := quick(t, nil)
	r := repo(t, c, host+"/team/app", creds)
	config := []byte(`{"architecture":"amd64","os":"linux"}`)
	layer, ld := noise(3 << 20)
	cd := ocispec.Descriptor{MediaType: manifest.OCIConfig, Digest: digest.FromBytes(config), Size: int64(len(config))}
	if has, err := r.Has(ctx, ld.Digest); err != nil || has {
		t.Fatalf("has a blob before it was pushed: %v %v", has, err)
	}
	if _, err := r.Push(ctx, toSend(config, cd.Digest, cd.Size)); err != nil {
		t.Fatal(err)
	}
	var sent int64
	up := toSend(layer, "", -1)
	up.Progress = func(n int64) { sent = n }
	got, err := r.Push(ctx, up)
	if err != nil {
		t.Fatal(err)
	}
	if got.Digest != ld.Digest || got.Size != ld.Size || sent != ld.Size {
		t.Fatalf("streamed %v, progress %d, want %v", got, sent, ld)
	}
	if has, err := r.Has(ctx, ld.Digest); err != nil || !has {
		t.Fatalf("the blob that was pushed is not there: %v", err)
	}
	ld.MediaType = manifest.OCILayer
	raw := []byte(`{"schemaVersion":2,"mediaType":"` + manifest.OCIManifest + `","config":{"mediaType":"` + cd.MediaType + `","digest":"` + string(cd.Digest) + `","size":` + strconv.FormatInt(cd.Size, 10) + `},"layers":[{"mediaType":"` + ld.MediaType + `","digest":"` + string(ld.Digest) + `","size":` + strconv.FormatInt(ld.Size, 10) + `}]}`)
	doc, err := manifest.Parse(manifest.OCIManifest, raw)
	if err != nil {
		t.Fatal(err)
	}
	for _, tag := range []string{"1", "2"} {
		if err := r.PushManifest(ctx, tag, doc); err != nil {
			t.Fatal(err)
		}
	}
	if err := r.PushManifest(ctx, string(doc.Digest), doc); err != nil {
		t.Fatal(err)
	}
	for _, ref := range []string{"1", string(doc.Digest)} {
		back, err := r.Resolve(ctx, ref)
		if err != nil || back.Digest != doc.Digest || !bytes.Equal(back.Raw, raw) {
			t.Fatalf("resolve %s: %v %v", ref, back.Digest, err)
		}
		d, err := r.Head(ctx, ref)
		if err != nil || d.Digest != doc.Digest || d.Size != int64(len(raw)) || d.MediaType != manifest.OCIManifest {
			t.Fatalf("head %s: %+v %v", ref, d, err)
		}
	}
	if tags, err := r.Tags(ctx); err != nil || !slices.Equal(tags, []string{"1", "2"}) {
		t.Fatalf("tags: %v %v", tags, err)
	}
	if names, err := c.Catalog(ctx, host, creds); err != nil || !slices.Contains(names, "team/app") {
		t.Fatalf("catalog: %v %v", names, err)
	}
	if b, err := r.Blob(ctx, cd, 1<<20); err != nil || !bytes.Equal(b, config) {
		t.Fatalf("blob: %q %v", b, err)
	}
	dst := &sink{}
	dst.Buffer.Write(layer[:12345])
	if err := r.Fetch(ctx, ld, dst); err != nil || !bytes.Equal(dst.Bytes(), layer) {
		t.Fatalf("fetch: %d bytes, %v", dst.Len(), err)
	}
	other := repo(t, c, host+"/team/other", creds)
	if ok, err := other.Mount(ctx, ld.Digest, "team/app"); err != nil || ok != mounts {
		t.Fatalf("mount: %v %v", ok, err)
	}
	_, missing := noise(10)
	if ok, err := other.Mount(ctx, missing.Digest, "team/app"); err != nil || ok {
		t.Fatalf("mount of a blob that is not there: %v %v", ok, err)
	}
	_, err = r.Resolve(ctx, "nope")
	if !errors.Is(err, errs.NotFound) || !strings.HasPrefix(err.Error(), "manifest for "+host+"/team/app:nope not found: manifest unknown: ") {
		t.Fatalf("a tag that is not there: %v", err)
	}
	if err := r.Delete(ctx, string(doc.Digest)); err != nil && !errors.Is(err, errs.NotImplemented) {
		t.Fatalf("delete: %v", err)
	}
}
