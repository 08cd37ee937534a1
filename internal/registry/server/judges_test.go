package server_test

import (
	"bytes"
	"crypto/rand"
	"io"
	"log/slog"
	"net/url"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	ggcr "github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/google/go-containerregistry/pkg/v1/validate"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/regclient/regclient"
	"github.com/regclient/regclient/config"
	"github.com/regclient/regclient/scheme"
	"github.com/regclient/regclient/types/descriptor"
	"github.com/regclient/regclient/types/ref"
	"oras.land/oras-go/v2"
	"oras.land/oras-go/v2/content/memory"
	orasremote "oras.land/oras-go/v2/registry/remote"
)

// Clients that others wrote judge whether what we understood of the specification is what the world understood.

func hostOf(t *testing.T, addr string) string {
	t.Helper()
	u, err := url.Parse(addr)
	if err != nil {
		t.Fatal(err)
	}
	return u.Host
}

func must[T any](t *testing.T) func(v T, err error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func ok(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestGoContainerRegistry(t *testing.T) {
	_, ts := newRegistry(t, nil)
	host := hostOf(t, ts.URL)
	img := must[v1.Image](t)(ggcr.Image(100<<10, 5))
	tag := must[name.Tag](t)(name.NewTag(host + "/ggcr/image:v1"))
	ok(t, remote.Write(tag, img))
	back := must[v1.Image](t)(remote.Image(tag))
	ok(t, validate.Image(back))

	index := must[v1.ImageIndex](t)(ggcr.Index(10<<10, 2, 3))
	tag2 := must[name.Tag](t)(name.NewTag(host + "/ggcr/index:v1"))
	ok(t, remote.WriteIndex(tag2, index))
	ok(t, validate.Index(must[v1.ImageIndex](t)(remote.Index(tag2))))

	// The layers are there already: mounted from the other repository.
	tag3 := must[name.Tag](t)(name.NewTag(host + "/ggcr/mounted:v1"))
	ok(t, remote.Write(tag3, back))
	ok(t, validate.Image(must[v1.Image](t)(remote.Image(tag3))))

	// A referrer, found by API.
	desc := must[*remote.Descriptor](t)(remote.Get(tag))
	plain := mutate.MediaType(must[v1.Image](t)(ggcr.Image(10, 1)), types.OCIManifestSchema1)
	signed := mutate.Subject(mutate.ConfigMediaType(plain, "application/vnd.example.sig"), desc.Descriptor).(v1.Image) // last: others drop it
	sigDigest := must[v1.Hash](t)(signed.Digest())
	ok(t, remote.Write(tag.Context().Digest(sigDigest.String()), signed))
	found := must[v1.ImageIndex](t)(remote.Referrers(tag.Context().Digest(desc.Digest.String())))
	if m := must[*v1.IndexManifest](t)(found.IndexManifest()); len(m.Manifests) != 1 || m.Manifests[0].Digest != sigDigest {
		t.Errorf("referrers are %+v", m.Manifests)
	}

	ok(t, remote.Tag(tag.Context().Tag("v2"), desc))
	if tags := must[[]string](t)(remote.List(tag.Context())); !slices.Equal(tags, []string{"v1", "v2"}) {
		t.Errorf("tags are %q", tags)
	}
	reg := must[name.Registry](t)(name.NewRegistry(host))
	repos := must[[]string](t)(remote.Catalog(t.Context(), reg))
	if !slices.Equal(repos, []string{"ggcr/image", "ggcr/index", "ggcr/mounted"}) {
		t.Errorf("repositories are %q", repos)
	}
	ok(t, remote.Delete(tag.Context().Tag("v2")))
	ok(t, remote.Delete(tag.Context().Digest(desc.Digest.String())))
	if _, err := remote.Image(tag); err == nil {
		t.Error("a deleted image can be pulled")
	}
}

func TestRegclient(t *testing.T) {
	_, ts := newRegistry(t, nil)
	host := hostOf(t, ts.URL)
	// Seeded by another client; chunks are small, so that regclient uploads in pieces.
	img := must[v1.Image](t)(ggcr.Image(300<<10, 3))
	ok(t, remote.Write(must[name.Tag](t)(name.NewTag(host+"/reg/image:v1")), img))
	h := config.HostNewName(host)
	h.TLS = config.TLSDisabled
	h.BlobChunk, h.BlobMax = 100<<10, 50<<10
	rc := regclient.New(regclient.WithConfigHost(*h), regclient.WithSlog(slog.New(slog.DiscardHandler)))
	ctx := t.Context()
	src := must[ref.Ref](t)(ref.New(host + "/reg/image:v1"))
	dst := must[ref.Ref](t)(ref.New(host + "/reg/copy:v1"))
	ok(t, rc.ImageCopy(ctx, src, dst, regclient.ImageWithReferrers(), regclient.ImageWithDigestTags()))

	data := make([]byte, 350<<10)
	_, _ = rand.Read(data)
	desc := must[descriptor.Descriptor](t)(rc.BlobPut(ctx, dst, descriptor.Descriptor{}, struct{ io.Reader }{bytes.NewReader(data)}))
	if desc.Digest != digest.FromBytes(data) || desc.Size != int64(len(data)) {
		t.Errorf("put %+v", desc)
	}
	rd, err := rc.BlobGet(ctx, dst, desc)
	ok(t, err)
	back := must[[]byte](t)(io.ReadAll(rd))
	ok(t, rd.Close())
	if !bytes.Equal(back, data) {
		t.Error("the blob came back different")
	}
	third := must[ref.Ref](t)(ref.New(host + "/reg/third"))
	ok(t, rc.BlobMount(ctx, dst, third, desc))
	ok(t, rc.BlobDelete(ctx, dst, desc))
	if _, err := rc.BlobHead(ctx, dst, desc); err == nil {
		t.Error("a deleted blob is there")
	}

	tags, err := rc.TagList(ctx, dst, scheme.WithTagLimit(1))
	ok(t, err)
	if list := must[[]string](t)(tags.GetTags()); !slices.Equal(list, []string{"v1"}) {
		t.Errorf("tags are %q", list)
	}
	m, err := rc.ManifestHead(ctx, dst)
	ok(t, err)
	if want := must[v1.Hash](t)(img.Digest()); m.GetDescriptor().Digest.String() != want.String() {
		t.Errorf("the copy is %s, not %s", m.GetDescriptor().Digest, want)
	}
	if _, err := rc.ReferrerList(ctx, dst); err != nil {
		t.Error(err)
	}
	ok(t, rc.TagDelete(ctx, dst))
	if _, err := rc.ManifestHead(ctx, dst); err == nil {
		t.Error("a deleted tag is there")
	}
	ok(t, rc.ManifestDelete(ctx, dst.SetDigest(m.GetDescriptor().Digest.String())))
	repos, err := rc.RepoList(ctx, host)
	ok(t, err)
	if list := must[[]string](t)(repos.GetRepos()); !slices.Contains(list, "reg/image") {
		t.Errorf("repositories are %q", list)
	}
}

func TestORAS(t *testing.T) {
	_, ts := newRegistry(t, nil)
	host := hostOf(t, ts.URL)
	ctx := t.Context()
	repo := must[*orasremote.Repository](t)(orasremote.NewRepository(host + "/oras/thing"))
	repo.PlainHTTP = true
	ok(t, repo.SetReferrersCapability(true)) // an error if the registry has no referrers API

	local := memory.New()
	layer := must[ocispec.Descriptor](t)(oras.PushBytes(ctx, local, "text/plain", []byte("a thing")))
	thing := must[ocispec.Descriptor](t)(oras.PackManifest(ctx, local, oras.PackManifestVersion1_1, "application/vnd.example.thing",
		oras.PackManifestOptions{Layers: []ocispec.Descriptor{layer}}))
	ok(t, local.Tag(ctx, thing, "v1"))
	for _, kind := range []string{"application/vnd.example.sig", "application/vnd.example.sbom", "application/vnd.example.sig"} {
		note := map[string]string{"n": rand.Text()}
		must[ocispec.Descriptor](t)(oras.PackManifest(ctx, local, oras.PackManifestVersion1_1, kind,
			oras.PackManifestOptions{Subject: &thing, ManifestAnnotations: note}))
	}
	must[ocispec.Descriptor](t)(oras.ExtendedCopy(ctx, local, "v1", repo, "v1", oras.DefaultExtendedCopyOptions))

	count := func(kind string) (n int) {
		ok(t, repo.Referrers(ctx, thing, kind, func(list []ocispec.Descriptor) error { n += len(list); return nil }))
		return n
	}
	if all, sigs := count(""), count("application/vnd.example.sig"); all != 3 || sigs != 2 {
		t.Errorf("there are %d referrers, %d signatures", all, sigs)
	}
	back := memory.New()
	got := must[ocispec.Descriptor](t)(oras.Copy(ctx, repo, "v1", back, "v1", oras.DefaultCopyOptions))
	if got.Digest != thing.Digest {
		t.Errorf("pulled %s, pushed %s", got.Digest, thing.Digest)
	}

	other := must[*orasremote.Repository](t)(orasremote.NewRepository(host + "/oras/other"))
	other.PlainHTTP = true
	err := other.Mount(ctx, layer, "oras/thing", func() (io.ReadCloser, error) {
		t.Error("the mount fell back to an upload")
		return io.NopCloser(strings.NewReader("a thing")), nil
	})
	ok(t, err)
	var tags []string
	ok(t, repo.Tags(ctx, "", func(list []string) error { tags = append(tags, list...); return nil }))
	if !slices.Equal(tags, []string{"v1"}) {
		t.Errorf("tags are %q", tags)
	}
	ok(t, repo.Delete(ctx, thing))
	if _, err := repo.Resolve(ctx, "v1"); err == nil {
		t.Error("a deleted manifest resolves")
	}
	ok(t, other.Blobs().Delete(ctx, layer))
}
