package joined_test

import (
	"testing"

	"corten.dev/corten/internal/engine/builds"
)

// A scanner is an image that leaves statements in a folder; they become attestations of the image.
func TestSBOM(t *testing.T) {
	h := newHost(t)
	scanner := h.context(map[string]string{
		"Dockerfile": "FROM busybox\nCOPY --chmod=755 scan /scan\nENTRYPOINT [\"/scan\"]\n",
		"scan": `#!/bin/sh
test -e "$BUILDKIT_SCAN_SOURCE/said" || exit 5
echo '{"_type":"https://in-toto.io/Statement/v0.1","predicateType":"https://spdx.dev/Document","predicate":{"SPDXID":"x"}}' > "$BUILDKIT_SCAN_DESTINATION/sbom.spdx.json"
`,
	})
	if _, out, err := h.build(scanner, "scanner:1", nil); err != nil {
		t.Fatalf("%v\n%s", err, out.logs.String())
	}
	ses := h.context(map[string]string{"Dockerfile": "FROM busybox\nRUN echo x > /said\n"})
	resp, out, err := h.build(ses, "scanned:1", func(r *builds.Request) {
		r.FrontendAttrs["attest:sbom"] = "generator=scanner:1"
	})
	if err != nil {
		t.Fatalf("%v\n%s", err, out.logs.String())
	}
	if a, b := resp.Exporter["containerimage.digest"], resp.Exporter["containerimage.config.digest"]; a == "" || a == b {
		t.Errorf("no index with attestations came of it: %v", resp.Exporter)
	}
}
