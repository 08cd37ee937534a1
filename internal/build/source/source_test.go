package source

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/moby/buildkit/solver/pb"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"corten.dev/corten/internal/build"
	"corten.dev/corten/internal/build/buildtest"
	"corten.dev/corten/internal/build/source/base"
	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/manifest"
	"corten.dev/corten/internal/reference"
	"corten.dev/corten/internal/snapshot"
	"corten.dev/corten/internal/snapshot/plain"
)

// progress remembers parts and output.
type progress struct {
	mu    sync.Mutex
	parts map[string]bool
	log   strings.Builder
}

func (p *progress) Log(_ int, data []byte) { p.mu.Lock(); defer p.mu.Unlock(); p.log.Write(data) }
func (p *progress) Warn(build.Warning)     {}
func (p *progress) Status(id string, _, _ int64, done bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.parts == nil {
		p.parts = map[string]bool{}
	}
	p.parts[id] = done
}

// bench is sources over a real store of layers.
type bench struct {
	*Sources
	store  snapshot.Store
	cache  *buildtest.Records
	images *memImages
	ses    *build.Session
	p      *progress
}

func newBench(t *testing.T, edit func(*Options)) *bench {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("layers keep owners: needs root")
	}
	dir := t.TempDir()
	store, err := plain.New(plain.Options{Root: filepath.Join(dir, "snapshots")})
	if err != nil {
		t.Fatal(err)
	}
	b := &bench{store: store, cache: new(buildtest.Records), images: &memImages{}, ses: &build.Session{ID: "one"}, p: &progress{}}
	opts := Options{Root: filepath.Join(dir, "sources"), Images: b.images, Layers: store, Cache: b.cache}
	if edit != nil {
		edit(&opts)
	}
	if b.Sources, err = New(opts); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		left, err := os.ReadDir(b.tmp())
		if err != nil || len(left) > 0 {
			t.Errorf("left in tmp: %v %v", left, err)
		}
		if err := b.Sources.Close(); err != nil {
			t.Error(err)
		}
	})
	return b
}

func (b *bench) env() build.Env {
	return build.Env{Progress: b.p, Session: func(_ context.Context, id string) (*build.Session, error) {
		if id != "" && id != b.ses.ID {
			return nil, errs.New(errs.NotFound, "no session %s", id)
		}
		return b.ses, nil
	}}
}

// run makes and runs a source as the solver does.
func (b *bench) run(t *testing.T, id string, attrs map[string]string) (build.Made, digest.Digest, error) {
	t.Helper()
	op, err := b.Make(&build.Vertex{Digest: digest.FromString(id), Op: &pb.Op{Op: &pb.Op_Source{Source: &pb.SourceOp{Identifier: id, Attrs: attrs}}}})
	if err != nil {
		return build.Made{}, "", err
	}
	if tr := op.Traits(); !tr.Source {
		t.Error("not a source")
	}
	key, err := op.Key(t.Context(), b.env(), nil)
	if err != nil {
		return build.Made{}, "", err
	}
	made, err := op.Run(t.Context(), b.env(), nil)
	return made, key, err
}

// ok is run without an error, and without what a retry of a test would hide.
func (b *bench) ok(t *testing.T, id string, attrs map[string]string) (build.Made, digest.Digest) {
	t.Helper()
	made, key, err := b.run(t, id, attrs)
	if err != nil {
		t.Fatal(err)
	}
	return made, key
}

// tree lists what a chain holds: "name mode uid:gid mtime content".
func (b *bench) tree(t *testing.T, chain snapshot.ChainID) map[string]node {
	t.Helper()
	m, err := b.store.View(t.Context(), chain)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	root := fmt.Sprintf("/proc/self/fd/%d/.", m.Root.Fd())
	got := map[string]node{}
	err = filepath.WalkDir(root, func(p string, d os.DirEntry, err error) error {
		if err != nil || p == root {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(p, &st); err != nil {
			return err
		}
		n := node{mode: info.Mode(), uid: st.Uid, gid: st.Gid, mtime: info.ModTime()}
		switch {
		case info.Mode().IsRegular():
			raw, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			n.content = string(raw)
		case info.Mode()&os.ModeSymlink != 0:
			if n.content, err = os.Readlink(p); err != nil {
				return err
			}
		}
		got[strings.TrimPrefix(p, strings.TrimSuffix(root, "."))] = n
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return got
}

type node struct {
	mode     os.FileMode
	uid, gid uint32
	mtime    time.Time
	content  string
}

// secrets are those of a session.
type secrets map[string]string

func (s secrets) Secret(_ context.Context, id string) ([]byte, error) {
	v, ok := s[id]
	if !ok {
		return nil, errs.New(errs.NotFound, "no secret %s", id)
	}
	return []byte(v), nil
}

// memImages are images in memory.
type memImages struct {
	local, remote map[string]base.Image
	asked         []string
}

func (m *memImages) find(from map[string]base.Image, kind, name string) (base.Image, error) {
	m.asked = append(m.asked, kind+" "+name)
	img, ok := from[name]
	if !ok {
		return img, errs.New(errs.NotFound, "no such image: %s", name)
	}
	return img, nil
}

func (m *memImages) Local(_ context.Context, ref reference.Ref, p manifest.Platform) (base.Image, error) {
	img, err := m.find(m.local, "local", ref.Familiar())
	if p.Arch != "" && strings.Contains(string(img.Config), "architecture") && !strings.Contains(string(img.Config), `"`+p.Arch+`"`) {
		return img, errs.New(errs.NotFound, "not for %s", p)
	}
	return img, err
}

func (m *memImages) Remote(_ context.Context, ref reference.Ref, _ manifest.Platform, _ build.Credentials) (base.Image, error) {
	return m.find(m.remote, "remote", ref.Familiar())
}

func (m *memImages) Layout(ctx context.Context, blobs build.Blobs, store, name string, _ manifest.Platform) (base.Image, error) {
	raw, err := blobs.Ref(ctx, store, name)
	if err != nil {
		return base.Image{}, err
	}
	return m.find(m.remote, "layout", string(raw))
}

func (m *memImages) Attestations(context.Context, reference.Ref, manifest.Platform, []string, build.Credentials) ([]digest.Digest, map[digest.Digest]base.Blob, error) {
	return nil, nil, errs.New(errs.NotFound, "none")
}

func TestImage(t *testing.T) {
	b := newBench(t, nil)
	diff, top := digest.FromString("a"), digest.FromString("b")
	fetched := 0
	far := base.Image{Digest: digest.FromString("index"), Manifest: digest.FromString("m"), Config: []byte("{}"), DiffIDs: []digest.Digest{diff, top}}
	far.Fetch = func(ctx context.Context, n int, _ build.Progress, keep func(context.Context, snapshot.ChainID) error) error {
		fetched += n
		return keep(ctx, far.Chain(n))
	}
	b.images.local = map[string]base.Image{"here:latest": {Config: []byte("{}"), DiffIDs: []digest.Digest{diff}}, "both:latest": {DiffIDs: []digest.Digest{diff}}}
	b.images.remote = map[string]base.Image{"far:latest": far, "both:latest": far}

	made, _ := b.ok(t, "docker-image://docker.io/library/here:latest", nil)
	if out := made.Outputs[0]; out.Chain != diff || out.Fetch != nil || !made.Cached {
		t.Errorf("%+v", made)
	}
	made, key := b.ok(t, "docker-image://docker.io/library/far", nil)
	out := made.Outputs[0]
	if out.Chain != snapshot.ChainOf(diff, top) || out.Image != far.Manifest || made.Cached || fetched != 0 {
		t.Errorf("%+v %d", made, fetched)
	}
	if err := out.Fetch(t.Context(), b.p); err != nil || fetched != 2 {
		t.Error(err, fetched)
	}
	// The layers have no name of an image: a record under the source's key holds them.
	if rec, _, _ := b.cache.Lookup(t.Context(), key); len(rec.Outputs) != 1 || rec.Outputs[0] != out.Chain || rec.Description != "pulled from docker.io/library/far:latest" {
		t.Errorf("%+v", rec)
	}
	if made, _ := b.ok(t, "docker-image://both", map[string]string{pb.AttrImageResolveMode: "pull", pb.AttrImageLayerLimit: "1"}); made.Outputs[0].Chain != diff || made.Outputs[0].Fetch == nil || made.Outputs[0].Image != "" {
		t.Errorf("%+v", made)
	}
	if made, _ := b.ok(t, "docker-image://both", map[string]string{pb.AttrImageChecksum: far.Digest.String()}); made.Outputs[0].Image != far.Manifest {
		t.Errorf("%+v", made)
	}
	if _, _, err := b.run(t, "docker-image://far", map[string]string{pb.AttrImageChecksum: digest.FromString("x").String()}); err == nil || !strings.Contains(err.Error(), "checksum") {
		t.Error(err)
	}
	for _, bad := range []struct{ id, k, v string }{{"docker-image://UP", "", ""}, {"docker-image://a", pb.AttrImageResolveMode, "often"}, {"docker-image://a", pb.AttrImageLayerLimit, "-1"}, {"docker-image://a", "image.colour", "red"}, {"ftp://a", "", ""}, {"x", "", ""}} {
		if _, _, err := b.run(t, bad.id, map[string]string{bad.k: bad.v}); err == nil {
			t.Errorf("%+v is taken", bad)
		}
	}
	ref, dgst, cfg, err := b.ResolveImage(t.Context(), "far", nil, "", b.env())
	if err != nil || ref != "docker.io/library/far:latest" || dgst != far.Digest || string(cfg) != "{}" {
		t.Error(ref, dgst, cfg, err)
	}
}

// An image that was loaded or built here, and a build for another platform: the registry was asked and knew nothing, and the error told only that.
func TestImageOfAnotherPlatform(t *testing.T) {
	b := newBench(t, nil)
	b.images.local = map[string]base.Image{"mine:latest": {Config: []byte(`{"os":"linux","architecture":"amd64"}`)}}
	_, _, _, err := b.ResolveImage(t.Context(), "mine", &ocispec.Platform{OS: "linux", Architecture: "arm64"}, "", b.env())
	if err == nil || !strings.Contains(err.Error(), "the image that is here is for linux/amd64, not for linux/arm64: no such image: mine:latest") {
		t.Error(err)
	}
	if _, _, _, err := b.ResolveImage(t.Context(), "mine", &ocispec.Platform{OS: "linux", Architecture: "amd64"}, "", b.env()); err != nil {
		t.Error(err)
	}
	if _, _, _, err := b.ResolveImage(t.Context(), "none", &ocispec.Platform{OS: "linux", Architecture: "arm64"}, "", b.env()); err == nil || strings.Contains(err.Error(), "that is here") {
		t.Error(err)
	}
}

// contexts are directories of a session.
type contexts struct {
	dir      string
	opened   []build.ContextOptions
	released int
}

func (c *contexts) Open(_ context.Context, name string, opts build.ContextOptions) (*build.Files, func(), error) {
	if name != "context" {
		return nil, nil, errs.New(errs.NotFound, "no local source %s", name)
	}
	c.opened = append(c.opened, opts)
	f, err := os.Open(c.dir)
	if err != nil {
		return nil, nil, err
	}
	return &build.Files{Root: f, Key: "k"}, func() { f.Close(); c.released++ }, nil
}

func TestLocal(t *testing.T) {
	b := newBench(t, nil)
	var ends []func()
	ctxs := &contexts{dir: t.TempDir()}
	b.ses.Contexts = ctxs
	b.ses.OnEnd = func(f func()) { ends = append(ends, f) }
	attrs := map[string]string{pb.AttrExcludePatterns: `["*.o"]`, pb.AttrIncludePatterns: `["src"]`, pb.AttrFollowPaths: `["l"]`, pb.AttrSharedKeyHint: "ctx", pb.AttrLocalUniqueID: "u", pb.AttrLocalDiffer: "none", pb.AttrMetadataTransfer: "true", pb.AttrMetadataTransferExclude: `["Dockerfile"]`}
	made, key := b.ok(t, "local://context", attrs)
	f := made.Outputs[0].Files
	if f == nil || f.Exclude[0] != "*.o" || f.Include[0] != "src" || f.Follow[0] != "l" || *f.Owner != [2]uint32{} || f.Key != "k" {
		t.Errorf("%+v", f)
	}
	if o := ctxs.opened[0]; o.SharedKey != "ctx" || o.Differ != "none" || !o.MetadataOnly || o.MetadataExceptions[0] != "Dockerfile" {
		t.Errorf("%+v", o)
	}
	if ctxs.released != 0 || len(ends) != 1 {
		t.Error("the context is let go before the session ends")
	}
	for _, end := range ends {
		end()
	}
	// Another session asks for the same vertex: it must not be given the first one's files.
	b.ses = &build.Session{ID: "two", Contexts: ctxs}
	if _, other := b.ok(t, "local://context", attrs); other == key {
		t.Error("two sessions share a context")
	}
	if _, _, err := b.run(t, "local://none", nil); err == nil || !strings.Contains(err.Error(), "no local source none") {
		t.Error(err)
	}
	if _, _, err := b.run(t, "local://context", map[string]string{pb.AttrLocalSessionID: "gone"}); err == nil {
		t.Error("a session that is not there")
	}
	b.ses.Contexts = nil
	if _, _, err := b.run(t, "local://context", nil); err == nil {
		t.Error("a session without contexts")
	}
}

func FuzzIdentifier(f *testing.F) {
	for _, s := range []string{"docker-image://docker.io/library/busybox:latest", "oci-layout://docker.io/x/y@sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
		"git://github.com/moby/buildkit.git#v1:sub/dir", "https://u:p@host/a.tar?x=1", "http://[::1]:80/", "local://context", "git://-x/y", "git://h/p#--upload-pack=x"} {
		f.Add(s, "git.fullurl", "git@github.com:moby/buildkit.git")
		f.Add(s, "http.filename", "../x")
	}
	f.Fuzz(func(t *testing.T, id, k, v string) {
		op := &pb.SourceOp{Identifier: id, Attrs: map[string]string{k: v}}
		if git, err := parseGit(op); err == nil {
			if strings.HasPrefix(git.ref, "-") || strings.HasPrefix(git.address(), "-") || strings.Contains(git.address(), "\n") || strings.HasPrefix(git.subdir, "../") || strings.HasPrefix(git.subdir, "/") {
				t.Errorf("%q: %+v", id, git)
			}
			if u := git.remote.User; u != nil {
				if pass, ok := u.Password(); ok && len(pass) > 8 && strings.Contains(git.full()+git.address(), pass) && !strings.Contains(git.remote.Host+git.remote.Path+git.ref+git.subdir, pass) {
					t.Errorf("%q shows its password: %s", id, git.full())
				}
			}
		}
		if web, err := parseHTTP(op); err == nil {
			name := web.nameOf(nil)
			if name == "" || name == "." || name == ".." || strings.ContainsAny(name, "/\x00") {
				t.Errorf("%q: %q", id, name)
			}
		}
		_, _ = parseImage(op, nil) // that they come back is all that is asked
		_, _ = parseLayout(op, nil)
		_, _ = parseLocal(op)
	})
}

var _ io.Reader = (*paced)(nil)
