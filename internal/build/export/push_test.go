package export_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/validate"
	gatewaypb "github.com/moby/buildkit/frontend/gateway/pb"
	"github.com/moby/buildkit/solver/pb"
	"github.com/moby/buildkit/solver/result"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"corten.dev/corten/internal/build"
	"corten.dev/corten/internal/build/export"
	"corten.dev/corten/internal/build/solve"
	"corten.dev/corten/internal/engine/images"
	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/events"
	"corten.dev/corten/internal/manifest"
	"corten.dev/corten/internal/registry/client"
	"corten.dev/corten/internal/registry/server"
	"corten.dev/corten/internal/registry/server/disk"
	"corten.dev/corten/internal/snapshot"
	"corten.dev/corten/internal/snapshot/snapshottest"
)

// withRegistry joins the exporter with a real registry by the engine's machinery of pushes; it gives the registry's name.
func (h *house) withRegistry(t testing.TB) string {
	t.Helper()
	driver, err := disk.New(disk.Options{Root: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	registry, err := server.New(server.Options{Driver: driver})
	if err != nil {
		t.Fatal(err)
	}
	ts := httptest.NewServer(registry)
	t.Cleanup(func() { ts.Close(); registry.Close() })
	c := client.New(client.Options{})
	t.Cleanup(c.CloseIdle)
	s := images.New(images.Options{Store: h.images, Transfers: h.images, Registry: c, Events: &events.Bus{}, Blobs: h.blobs})
	h.Registry = images.NewBuilt(s)
	return strings.TrimPrefix(ts.URL, "http://")
}

// pulled is what a strict client finds under a name, everything verified.
func pulled(t testing.TB, at string) *remote.Descriptor {
	t.Helper()
	ref, err := name.ParseReference(at)
	if err != nil {
		t.Fatal(err)
	}
	d, err := remote.Get(ref)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func TestPush(t *testing.T) {
	h := open(t)
	host := h.withRegistry(t)
	chain := twoLayers(t, h)
	said := h.export(t, single(chain), "registry", "name="+host+"/app:1,"+host+"/app:2,"+host+"/other", "annotation.a=b")
	for _, at := range []string{"/app:1", "/app:2", "/other:latest"} {
		d := pulled(t, host+at)
		if d.Digest.String() != said["containerimage.digest"] {
			t.Errorf("%s is %s, told %v", at, d.Digest, said)
		}
		img, err := d.Image()
		if err != nil {
			t.Fatal(err)
		}
		if err := validate.Image(img); err != nil {
			t.Error(err)
		}
		if m, err := img.Manifest(); err != nil || m.Annotations["a"] != "b" || m.MediaType != manifest.OCIManifest {
			t.Errorf("%+v %v", m, err)
		}
	}
	// The store knows it by the names and digests.
	img, err := h.images.Get(ctx, host+"/app:1")
	if err != nil || img.ID.String() != said["containerimage.config.digest"] || !slices.Contains(img.Digests, host+"/app@"+said["containerimage.digest"]) {
		t.Errorf("%+v %v", img, err)
	}
	// Without the store, by digest.
	said = h.export(t, single(h.layer(t, chain, snapshottest.File("more", "x"))), "image", "name="+host+"/app", "push=true", "push-by-digest=true", "store=false")
	pulled(t, host+"/app@"+said["containerimage.digest"])
	if all, err := h.images.List(ctx); err != nil || len(all) != 1 {
		t.Errorf("%d images in the store, %v", len(all), err)
	}
	if _, err := h.Export(ctx, spec("registry", "name=127.0.0.1:1/none"), h.job(single(chain))); err == nil || !strings.Contains(err.Error(), "127.0.0.1:1/none") {
		t.Errorf("%v", err)
	}
	if _, err := h.Export(ctx, spec("registry", "name="+host+"/x", "registry.insecure=true"), h.job(single(chain))); !errors.Is(err, errs.Forbidden) {
		t.Errorf("%v", err)
	}
}

// Two steps that change nothing give two layers of the same bytes: the second one was never told what the first one was sent as.
func TestPushOfEqualLayers(t *testing.T) {
	h := open(t)
	host := h.withRegistry(t)
	chain := h.layer(t, h.layer(t, h.layer(t, "", snapshottest.File("f", "x"))))
	said := h.export(t, single(chain), "registry", "name="+host+"/app")
	img, err := pulled(t, host+"/app").Image()
	if err != nil {
		t.Fatal(err)
	}
	if err := validate.Image(img); err != nil {
		t.Error(err)
	}
	h.export(t, single(chain), "docker", "name=app")
	if got, err := open(t).images.Load(ctx, bytes.NewReader(h.asker.file.Bytes()), nil); err != nil || len(got) != 1 {
		t.Error(got, err, said)
	}
}

// attested is a result with a scanner's bundle.
func attested(t *testing.T, h *house, res *export.Result, id string) {
	t.Helper()
	stmt := `{"_type":"https://in-toto.io/Statement/v0.1","predicateType":"https://spdx.dev/Document","subject":[],"predicate":{"spdxVersion":"SPDX-2.3"}}`
	scan := h.layer(t, "", snapshottest.Dir("sbom", 0o755), snapshottest.File("sbom/sbom.spdx.json", stmt))
	res.AddAttestation(id, result.Attestation[*build.Output]{
		Kind: gatewaypb.AttestationKind_Bundle, Path: "/sbom", Ref: &build.Output{Chain: scan}, InToto: result.InTotoAttestation{PredicateType: "https://spdx.dev/Document"},
	})
}

// traced lets a job tell where its result came from, as the asker wants it.
func traced(job export.Job, attest string) export.Job {
	src := &build.Vertex{Digest: "sha256:1111111111111111111111111111111111111111111111111111111111111111", Op: &pb.Op{Platform: &pb.Platform{OS: "linux", Architecture: "amd64"},
		Op: &pb.Op_Source{Source: &pb.SourceOp{Identifier: "docker-image://docker.io/library/alpine:3.17@sha256:8914eb54f968791faf6a8638949e480fef81e697984fba772b3976835194c6d4"}}}}
	git := &build.Vertex{Digest: "sha256:2222222222222222222222222222222222222222222222222222222222222222", Op: &pb.Op{Op: &pb.Op_Source{Source: &pb.SourceOp{Identifier: "git://github.com/moby/buildkit.git#v1"}}}}
	run := &build.Vertex{Digest: "sha256:3333333333333333333333333333333333333333333333333333333333333333", Inputs: []build.Edge{{Vertex: src}},
		Op: &pb.Op{Op: &pb.Op_Exec{Exec: &pb.ExecOp{Meta: &pb.Meta{Args: []string{"make"}}, Mounts: []*pb.Mount{{MountType: pb.MountType_SECRET, SecretOpt: &pb.SecretOpt{ID: "token"}}}}}}}
	job.Trace = &export.Trace{
		ID: "build1", Started: layerTime, Frontend: "dockerfile.v0", Builder: ocispec.Platform{OS: "linux", Architecture: "amd64"},
		Attrs: map[string]string{"build-arg:SECRETIVE": "x", "target": "t", "attest:provenance": attest, "vcs:revision": "abc", "vcs:source": "https://user:pw@example.com/x.git", "platform": "linux/amd64"},
		Source: func(string) *pb.Source {
			return &pb.Source{Infos: []*pb.SourceInfo{{Filename: "Dockerfile", Data: []byte("FROM alpine")}}, Locations: map[string]*pb.Locations{string(run.Digest): {Locations: []*pb.Location{{SourceIndex: 0}}}}}
		},
	}
	job.Walk = func(_ string, fn func(solve.Step) error) error {
		steps := []solve.Step{{Vertex: src, Source: true}, {Vertex: git, Source: true, Outputs: []build.Output{{Pin: "4b220de5058abfd01ff619c9d2ff6b09a049bea0"}}}, {Vertex: run}}
		for _, s := range steps {
			if err := fn(s); err != nil {
				return err
			}
		}
		return nil
	}
	return job
}

func TestAttestationsInARegistry(t *testing.T) {
	h := open(t)
	host := h.withRegistry(t)
	res := several(t, map[string]snapshot.ChainID{"linux/amd64": twoLayers(t, h), "linux/arm64": h.layer(t, "", snapshottest.File("f", "arm"))})
	attested(t, h, res, "linux/amd64")
	job := traced(h.job(res), "mode=min")
	said, err := h.Export(ctx, spec("registry", "name="+host+"/app:1"), job)
	if err != nil {
		t.Fatal(err)
	}
	d := pulled(t, host+"/app:1")
	idx, err := d.ImageIndex()
	if err != nil {
		t.Fatal(err)
	}
	m, err := idx.IndexManifest()
	if err != nil || d.Digest.String() != said["containerimage.digest"] || len(m.Manifests) != 4 {
		t.Fatalf("%+v %v", m, err)
	}
	for i, about := range m.Manifests[2:] {
		if about.Annotations["vnd.docker.reference.type"] != "attestation-manifest" || about.Annotations["vnd.docker.reference.digest"] != m.Manifests[i].Digest.String() || about.Platform.String() != "unknown/unknown" {
			t.Errorf("%+v", about)
		}
	}
	types, stmts := statements(t, idx, m.Manifests[2].Digest)
	if !slices.Equal(types, []string{"https://spdx.dev/Document", "https://slsa.dev/provenance/v1"}) {
		t.Errorf("%q", types)
	}
	want := export.Subject{Name: "pkg:docker/" + strings.Replace(host, ":", "%3A", 1) + "/app@1?platform=linux%2Famd64", Digest: map[string]string{"sha256": m.Manifests[0].Digest.Hex}}
	for _, s := range stmts {
		if s.PredicateType == "https://slsa.dev/provenance/v1" && (len(s.Subject) != 1 || s.Subject[0].Name != want.Name || s.Subject[0].Digest["sha256"] != want.Digest["sha256"]) {
			t.Errorf("subject %+v, want %+v", s.Subject, want)
		}
	}
	// The index in the store is that of the registry: another push sends the same, and an engine that pulls it has the same digest.
	img, err := h.images.Get(ctx, host+"/app:1")
	if err != nil || !slices.Contains(img.Digests, host+"/app@"+d.Digest.String()) {
		t.Errorf("%+v %v", img.Digests, err)
	}
	outs, index, err := h.images.Send(ctx, host+"/app:1", sendAll)
	if err != nil || index == nil || index.Digest.String() != d.Digest.String() || len(outs) != 4 {
		t.Errorf("%v %v %v", outs, index, err)
	}
	for _, out := range outs {
		out.Close()
	}
}

// statements reads an attestation manifest of an index.
func statements(t testing.TB, idx v1.ImageIndex, at v1.Hash) (types []string, all []export.Statement) {
	t.Helper()
	img, err := idx.Image(at)
	if err != nil {
		t.Fatal(err)
	}
	m, err := img.Manifest()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range m.Layers {
		layer, err := img.LayerByDigest(l.Digest)
		if err != nil {
			t.Fatal(err)
		}
		r, err := layer.Compressed()
		if err != nil {
			t.Fatal(err)
		}
		var s export.Statement
		if err := errors.Join(json.NewDecoder(r).Decode(&s), r.Close()); err != nil {
			t.Fatal(err)
		}
		if string(l.MediaType) != "application/vnd.in-toto+json" || l.Annotations["in-toto.io/predicate-type"] != s.PredicateType {
			t.Errorf("%+v", l)
		}
		types, all = append(types, s.PredicateType), append(all, s)
	}
	return types, all
}

func TestAttestationsBesideFiles(t *testing.T) {
	h := open(t)
	res := several(t, map[string]snapshot.ChainID{"linux/amd64": h.layer(t, "", snapshottest.File("f", "amd")), "linux/arm64": h.layer(t, "", snapshottest.File("g", "arm"))})
	attested(t, h, res, "linux/amd64")
	job := traced(h.job(res), "mode=max,version=v0.2,filename=where.json")
	if _, err := h.Export(ctx, spec("tar", "attestation-prefix=my."), job); err != nil {
		t.Fatal(err)
	}
	raw := h.asker.file.Bytes()
	var s export.Statement
	if err := json.Unmarshal(member(t, raw, "linux_amd64/my.sbom.spdx.json"), &s); err != nil || s.PredicateType != "https://spdx.dev/Document" {
		t.Errorf("%+v %v", s, err)
	}
	if err := json.Unmarshal(member(t, raw, "linux_arm64/my.where.json"), &s); err != nil || s.PredicateType != "https://slsa.dev/provenance/v0.2" {
		t.Errorf("%+v %v", s, err)
	}
	if len(s.Subject) != 1 || s.Subject[0].Name != "g" || s.Subject[0].Digest["sha256"] != digest.FromString("arm").Encoded() {
		t.Errorf("%+v", s.Subject)
	}
	if _, err := h.Export(ctx, spec("tar", "platform-split=false"), job); err != nil {
		t.Fatal(err)
	}
	member(t, h.asker.file.Bytes(), "where.linux_arm64.json")
	// Only for what has room for it.
	job = traced(job, "inline-only=true")
	if _, err := h.Export(ctx, spec("local"), job); err != nil {
		t.Fatal(err)
	}
	if got := listing(t, h.asker.tree); len(got) != 5 {
		t.Errorf("%q", got)
	}
}
