package export_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/v1/layout"
	provenance "github.com/moby/buildkit/solver/llbsolver/provenance/types"

	"corten.dev/corten/internal/build/export"
	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/image"
)

var sendAll = image.SendOptions{AllPlatforms: true}

// predicate exports with a provenance and gives it back.
func predicate(t *testing.T, h *house, attest string, attrs ...string) json.RawMessage {
	t.Helper()
	job := traced(h.job(single(twoLayers(t, h))), attest)
	if _, err := h.Export(ctx, spec("oci", attrs...), job); err != nil {
		t.Fatal(err)
	}
	idx, err := layout.ImageIndexFromPath(unpacked(t, bytes.Clone(h.asker.file.Bytes())))
	if err != nil {
		t.Fatal(err)
	}
	m, err := idx.IndexManifest()
	if err != nil {
		t.Fatal(err)
	}
	if idx, err = idx.ImageIndex(m.Manifests[0].Digest); err != nil {
		t.Fatal(err)
	}
	if m, err = idx.IndexManifest(); err != nil {
		t.Fatal(err)
	}
	_, all := statements(t, idx, m.Manifests[1].Digest)
	return all[0].Predicate
}

func TestProvenance(t *testing.T) {
	h := open(t)
	var p provenance.ProvenancePredicateSLSA1
	raw := predicate(t, h, "mode=max,builder-id=https://ci.example/1,reproducible=true")
	if err := json.Unmarshal(raw, &p); err != nil {
		t.Fatal(err)
	}
	def, meta := p.BuildDefinition, p.RunDetails.Metadata
	req := def.ExternalParameters.Request
	if req.Frontend != "dockerfile.v0" || len(req.Args) != 2 || req.Args["build-arg:SECRETIVE"] != "x" || len(req.Secrets) != 1 || req.Secrets[0].ID != "token" {
		t.Errorf("%+v", req)
	}
	if def.BuildType != provenance.BuildKitBuildType1 || def.ExternalParameters.ConfigSource.Path != "Dockerfile" || def.InternalParameters.BuilderPlatform != "linux/amd64" {
		t.Errorf("%+v", def)
	}
	deps := def.ResolvedDependencies
	if len(deps) != 2 || deps[0].URI != "pkg:docker/alpine@3.17?platform=linux%2Famd64" || deps[0].Digest["sha256"] != "8914eb54f968791faf6a8638949e480fef81e697984fba772b3976835194c6d4" ||
		deps[1].URI != "https://github.com/moby/buildkit.git#v1" || deps[1].Digest["sha1"] != "4b220de5058abfd01ff619c9d2ff6b09a049bea0" {
		t.Errorf("%+v", deps)
	}
	if meta.InvocationID != "build1" || meta.Hermetic || !meta.Reproducible || !meta.Completeness.Request || !meta.Completeness.ResolvedDependencies || p.RunDetails.Builder.ID != "https://ci.example/1" {
		t.Errorf("%+v", meta)
	}
	if vcs := meta.BuildKitMetadata.VCS; vcs["revision"] != "abc" || strings.Contains(vcs["source"], "pw") {
		t.Errorf("%v", vcs)
	}
	steps := def.InternalParameters.BuildConfig.Definition
	if len(steps) != 3 || steps[2].ID != "step2" || !slices.Equal(steps[2].Inputs, []string{"step0:0"}) || steps[2].Op.GetExec().Meta.Args[0] != "make" {
		t.Errorf("%+v", steps)
	}
	src := meta.BuildKitMetadata.Source
	if src == nil || string(src.Infos[0].Data) != "FROM alpine" || src.Locations["step2"] == nil || len(meta.BuildKitMetadata.Layers["step2:0"][0]) != 2 {
		t.Errorf("%+v", meta.BuildKitMetadata)
	}
}

// mode=min tells nothing that could be a secret.
func TestProvenanceOfLittle(t *testing.T) {
	h := open(t)
	raw := predicate(t, h, "mode=min,version=v0.2", "oci-artifact=false")
	for _, secret := range []string{"SECRETIVE", "token", "make", "FROM alpine", "pw"} {
		if strings.Contains(string(raw), secret) {
			t.Errorf("%s is told: %s", secret, raw)
		}
	}
	var p provenance.ProvenancePredicateSLSA02
	if err := json.Unmarshal(raw, &p); err != nil {
		t.Fatal(err)
	}
	if p.BuildType != provenance.BuildKitBuildType02 || len(p.Materials) != 2 || p.Invocation.ConfigSource.EntryPoint != "Dockerfile" || p.Metadata.Completeness.Parameters {
		t.Errorf("%s", raw)
	}
}

func TestProvenanceOptions(t *testing.T) {
	for attest, good := range map[string]bool{
		"": true, "mode=min,inline-only=true": true, "type=provenance,mode=max": true, "type=sbom": false, // buildx --provenance=mode=max was refused for its type
		"disabled=true": true, "version=v0.2": true, "mode=most": false, "version=v9": false, "filename=../x": false, "reproducible=perhaps": false, "colour=red": false,
	} {
		if err := export.CheckAttestations(map[string]string{"attest:provenance": attest}); (err == nil) != good || err != nil && !errors.Is(err, errs.Invalid) {
			t.Errorf("%s: %v", attest, err)
		}
	}
	h := open(t)
	if _, err := h.Export(ctx, spec("oci"), traced(h.job(single(twoLayers(t, h))), "disabled=true")); err != nil {
		t.Fatal(err)
	}
	if idx := listing(t, h.asker.file.Bytes()); len(idx) != 8 { // two folders, two layers, config, manifest and two files
		t.Errorf("%q", idx)
	}
}

// Two builds of one source, with SOURCE_DATE_EPOCH, gave two images as soon as the provenance went with them: ids of the session, of the build, and times were in it.
func TestProvenanceIsReproducible(t *testing.T) {
	h := open(t)
	one := string(predicate(t, h, "mode=max", "source-date-epoch=1700000000"))
	two := string(predicate(t, h, "mode=max", "source-date-epoch=1700000000"))
	if one != two || strings.Contains(one, "invocationId") || !strings.Contains(one, `"startedOn":"2023-11-14T22:13:20Z"`) {
		t.Errorf("%s\n%s", one, two)
	}
}
