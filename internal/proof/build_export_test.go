package proof

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/validate"

	"corten.dev/corten/internal/enginetest"
)

// project is a build of two stages, of which the second one copies what the first one made.
func project(t *testing.T) string {
	t.Helper()
	return put(t, t.TempDir(), map[string]string{
		"Dockerfile": "FROM busybox AS make\nRUN echo made > /thing && echo more > /more\nFROM busybox\nCOPY --from=make /thing /thing\nCOPY words /words\nRUN cat /thing /words > /both\nCMD [\"cat\", \"/both\"]\n",
		"words":      "of mine\n",
	})
}

// built builds and gives what --metadata-file says.
func built(t *testing.T, e *enginetest.Engine, args ...string) map[string]any {
	t.Helper()
	file := filepath.Join(t.TempDir(), "meta.json")
	e.Corten(append([]string{"build", "--progress", "plain", "--metadata-file", file}, args...)...)
	raw, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	said := map[string]any{}
	if err := json.Unmarshal(raw, &said); err != nil {
		t.Fatalf("%s: %v", raw, err)
	}
	return said
}

// One result, as all that an export can make of it; each of them runs, or holds the same files.
func TestBuildOutputs(t *testing.T) {
	e := enginetest.Start(t)
	src, out := project(t), t.TempDir()
	first := built(t, e, "-t", "app", src)
	if got := e.Corten("run", "--rm", "--network", "none", "app"); got != "made\nof mine" {
		t.Errorf("%q", got)
	}
	if again := built(t, e, "-t", "app", src); again["containerimage.config.digest"] != first["containerimage.config.digest"] {
		t.Errorf("a rebuild of which all is cached is another image: %v, %v", again, first)
	}
	e.Corten("build", "-o", out+"/tree", src)
	if got, err := os.ReadFile(out + "/tree/both"); err != nil || string(got) != "made\nof mine\n" {
		t.Errorf("local: %q %v", got, err)
	}
	e.Corten("build", "-o", "type=tar,dest="+out+"/t.tar", "-o", "type=docker,name=loaded,dest="+out+"/d.tar", "-o", "type=oci,name=loaded:oci,dest="+out+"/o.tar", "-o", "type=oci,tar=false,name=x:y,dest="+out+"/layout", src)
	if got := memberOf(t, out+"/t.tar", "both"); got != "made\nof mine\n" {
		t.Errorf("tar: %q", got)
	}
	idx, err := layout.ImageIndexFromPath(out + "/layout")
	if err != nil {
		t.Fatal(err)
	}
	if err := validate.Index(idx); err != nil {
		t.Error(err)
	}
	other := enginetest.Start(t)
	for file, img := range map[string]string{"/d.tar": "loaded", "/o.tar": "loaded:oci"} {
		other.Corten("load", "-i", out+file)
		if got := other.Corten("run", "--rm", "--network", "none", img); got != "made\nof mine" {
			t.Errorf("%s: %q", file, got)
		}
	}
}

func memberOf(t *testing.T, file, name string) string {
	t.Helper()
	raw, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	tr := tar.NewReader(bytes.NewReader(raw))
	for {
		hdr, err := tr.Next()
		if err != nil {
			t.Fatalf("%s of %s: %v", name, file, err)
		}
		if hdr.Name == name {
			body, err := io.ReadAll(tr)
			if err != nil {
				t.Fatal(err)
			}
			return string(body)
		}
	}
}

// What is pushed is what the engine says it is, with an attestation about it; another engine runs it.
func TestBuildPushed(t *testing.T) {
	e, other := enginetest.Start(t), enginetest.Start(t)
	reg := enginetest.NewRegistry(t) // ends before the engines, whose connections to it would be counted
	at := reg.Addr + "/team/app:1"
	said := built(t, e, "-t", at, "--push", "--provenance=mode=max", project(t))
	ref, err := name.ParseReference(at)
	if err != nil {
		t.Fatal(err)
	}
	d, err := remote.Get(ref)
	if err != nil {
		t.Fatal(err)
	}
	if d.Digest.String() != said["containerimage.digest"] {
		t.Errorf("%s, told %v", d.Digest, said["containerimage.digest"])
	}
	idx, err := d.ImageIndex()
	if err != nil {
		t.Fatal(err)
	}
	m, err := idx.IndexManifest()
	if err != nil || len(m.Manifests) != 2 || m.Manifests[1].Annotations["vnd.docker.reference.type"] != "attestation-manifest" {
		t.Fatalf("%+v %v", m, err)
	}
	img, err := idx.Image(m.Manifests[0].Digest)
	if err != nil {
		t.Fatal(err)
	}
	if err := validate.Image(img); err != nil {
		t.Error(err)
	}
	about, err := idx.Image(m.Manifests[1].Digest)
	if err != nil {
		t.Fatal(err)
	}
	am, err := about.Manifest()
	if err != nil {
		t.Fatal(err)
	}
	l, err := about.LayerByDigest(am.Layers[0].Digest)
	if err != nil {
		t.Fatal(err)
	}
	r, err := l.Compressed()
	if err != nil {
		t.Fatal(err)
	}
	raw, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{`"predicateType":"https://slsa.dev/provenance/v1"`, `"frontend":"dockerfile.v0"`, `"filename":"Dockerfile"`, `pkg:docker/busybox@latest`} {
		if !strings.Contains(string(raw), want) {
			t.Errorf("provenance has no %s: %s", want, raw)
		}
	}
	if got := other.Corten("run", "--rm", "--network", "none", at); got != "made\nof mine" {
		t.Errorf("%q", got)
	}
}

// The cache of one engine makes another one's build a cached one, by a registry, a folder and the image itself; cache mounts go with it.
func TestBuildCacheTravels(t *testing.T) {
	var engines []*enginetest.Engine
	for range 5 {
		engines = append(engines, enginetest.Start(t))
	}
	reg := enginetest.NewRegistry(t) // ends before the engines, whose connections to it would be counted
	src, dir := project(t), t.TempDir()
	base := map[string]string{"Dockerfile": "FROM busybox\nRUN --mount=type=cache,id=kept,target=/c echo kept > /c/file\nRUN --mount=type=cache,id=kept,target=/c cat /c/file > /seen\n"}
	mounts := put(t, t.TempDir(), base)
	a := engines[4]
	a.Corten("build", "-t", "app", "--cache-to", "type=registry,mode=max,ref="+reg.Addr+"/cache", "--cache-to", "type=local,dest="+dir+"/cache", src)
	a.Corten("build", "-t", reg.Addr+"/inline", "--push", "--cache-to", "type=inline", src)
	a.Corten("build", "--cache-to", "type=registry,mounts=true,ref="+reg.Addr+"/mounts", mounts)
	for i, from := range []string{"type=registry,ref=" + reg.Addr + "/cache", "type=local,src=" + dir + "/cache", reg.Addr + "/inline"} {
		b := engines[i]
		raw, err := b.Client("build", "--progress", "plain", "-t", "app", "--cache-from", from, src).CombinedOutput()
		out := string(raw)
		if err != nil {
			t.Errorf("%s: %v\n%s", from, err, out)
			continue
		}
		if n := strings.Count(out, "CACHED"); n < 3 {
			t.Errorf("%s: %d steps were cached\n%s", from, n, out)
		}
		// The layers have the times of the first run. (The base images differ in when they were imported, and so do the ids.)
		if got, want := b.Corten("inspect", "-f", "{{json .RootFS.Layers}}", "app"), a.Corten("inspect", "-f", "{{json .RootFS.Layers}}", "app"); got != want {
			t.Errorf("%s: other layers: %s, %s", from, got, want)
		}
		if got := b.Corten("run", "--rm", "--network", "none", "app"); got != "made\nof mine" {
			t.Errorf("%s: %q", from, got)
		}
	}
	b := engines[3]
	put(t, mounts, map[string]string{"Dockerfile": "FROM busybox\nRUN --mount=type=cache,id=kept,target=/c cp /c/file /seen\n"})
	b.Corten("build", "-o", dir+"/out", "--cache-from", "type=registry,mounts=true,ref="+reg.Addr+"/mounts", mounts)
	if got, err := os.ReadFile(dir + "/out/seen"); err != nil || string(got) != "kept\n" {
		t.Errorf("%q %v", got, err)
	}
}

// Equal sources and a SOURCE_DATE_EPOCH give equal digests, on another engine and on another day.
func TestBuildReproducible(t *testing.T) {
	src := project(t)
	var digests []any
	for range 2 {
		e := enginetest.Start(t)
		said := built(t, e, "--build-arg", "SOURCE_DATE_EPOCH=1700000000", "--provenance=false", "-o", "type=oci,rewrite-timestamp=true,name=a,dest="+t.TempDir()+"/x.tar", src)
		digests = append(digests, said["containerimage.digest"])
	}
	if digests[0] != digests[1] || digests[0] == nil {
		t.Errorf("%v", digests)
	}
}
