package export_test

import (
	"encoding/json"
	"slices"
	"testing"

	gatewaypb "github.com/moby/buildkit/frontend/gateway/pb"
	"github.com/moby/buildkit/solver/result"

	"corten.dev/corten/internal/build"
	"corten.dev/corten/internal/snapshot"
	"corten.dev/corten/internal/snapshot/snapshottest"
)

// What scanners said came out as they had said it; with Docker, the files of a bill of materials know their layers.
func TestFilesOfABillOfMaterialsKnowTheirLayers(t *testing.T) {
	h := open(t)
	host := h.withRegistry(t)
	res := several(t, map[string]snapshot.ChainID{"linux/amd64": twoLayers(t, h)})
	stmt := func(rest string) string {
		return `{"_type":"https://in-toto.io/Statement/v0.1","predicateType":"https://spdx.dev/Document","subject":[],"predicate":{` + rest +
			`"files":[{"fileName":"./etc/x","count":9007199254740993},{"fileName":"/bin/app"},{"fileName":"bin/app","comment":"mine"},{"fileName":"/none"}]}}`
	}
	scan := h.layer(t, "", snapshottest.Dir("sbom", 0o755), snapshottest.File("sbom/sbom.spdx.json", stmt(`"spdxVersion":"SPDX-2.3","creationInfo":{"creators":["Tool: scan"]},`)),
		snapshottest.File("sbom/sbom-build.spdx.json", stmt(`"spdxVersion":"SPDX-2.3","name":"build",`)))
	res.AddAttestation("linux/amd64", result.Attestation[*build.Output]{
		Kind: gatewaypb.AttestationKind_Bundle, Path: "/sbom", Ref: &build.Output{Chain: scan}, InToto: result.InTotoAttestation{PredicateType: "https://spdx.dev/Document"},
		Metadata: map[string][]byte{result.AttestationSBOMCore: []byte("sbom")},
	})
	if _, err := h.Export(ctx, spec("registry", "name="+host+"/app:1"), h.job(res)); err != nil {
		t.Fatal(err)
	}
	idx, err := pulled(t, host+"/app:1").ImageIndex()
	if err != nil {
		t.Fatal(err)
	}
	m, err := idx.IndexManifest()
	if err != nil {
		t.Fatal(err)
	}
	img, err := idx.Image(m.Manifests[0].Digest)
	if err != nil {
		t.Fatal(err)
	}
	layers, err := img.Manifest()
	if err != nil || len(layers.Layers) != 2 {
		t.Fatal(layers, err)
	}
	type document struct {
		Name         string
		CreationInfo struct{ Creators []string }
		Files        []struct {
			Comment string
			Count   json.Number
		}
	}
	_, stmts := statements(t, idx, m.Manifests[1].Digest)
	var core, extra document
	if err := json.Unmarshal(stmts[0].Predicate, &core); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(stmts[1].Predicate, &extra); err != nil || extra.Name != "build" {
		t.Fatal(extra, err)
	}
	want := []string{"layerID: " + layers.Layers[1].Digest.String(), "layerID: " + layers.Layers[0].Digest.String(), "mine", ""}
	for i, f := range core.Files {
		if f.Comment != want[i] || extra.Files[i].Comment != map[bool]string{true: "mine"}[i == 2] {
			t.Errorf("file %d: %q and %q, want %q", i, f.Comment, extra.Files[i].Comment, want[i])
		}
	}
	if core.Files[0].Count != "9007199254740993" || len(core.CreationInfo.Creators) != 2 || !slices.Contains(core.CreationInfo.Creators, "Tool: scan") {
		t.Errorf("%+v", core)
	}
}
