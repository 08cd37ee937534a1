package servertest

import (
	"bytes"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// "Upon a successful upload, the registry MUST return response code 201 Created, and MUST have Location", "a pullable manifest URL"
func pushManifest(s *suite) {
	im := s.newImage(3, nil)
	re := s.put("v1", im)
	s.want(re, 201)
	s.wantHeader(re, "Docker-Content-Digest", string(im.digest))
	got := s.do("GET", s.where(re, ""), nil, nil)
	s.want(got, 200)
	if !bytes.Equal(got.body, im.raw) { // "MUST store the manifest in the exact byte representation"
		s.Error("it came back different")
	}
	s.want(s.put("v1", im), 201) // once more
	empty := s.newImage(0, nil)  // "the list of blobs MAY be empty"
	s.want(s.put("empty", empty), 201)
	s.want(s.put("emptyindex", s.newIndex(nil)), 201)
}

// "The Docker-Content-Digest header … MUST be equal to the client provided digest."
func pushManifestByDigest(s *suite) {
	im := s.newImage(1, nil)
	re := s.put(string(im.digest), im)
	s.want(re, 201)
	s.wantHeader(re, "Docker-Content-Digest", string(im.digest))
	re = s.put(string(digest.FromString("other")), im)
	s.want(re, 400)
	s.wantCode(re, "DIGEST_INVALID")
	for _, bad := range []string{"-x", "a:b", "sha256:zz", "x%20y", strings.Repeat("x", 129)} {
		s.want(s.put(bad, im), 400, 404)
	}
}

// "SHOULD support pushing at least 10 tags per request", "MUST include an OCI-Tag response header for each accepted tag"
func pushQueryTags(s *suite) {
	im := s.newImage(0, nil)
	var want []string
	query := ""
	for i := range 12 {
		want = append(want, fmt.Sprintf("q%02d", i))
		query += "&tag=" + want[i]
	}
	re := s.put(string(im.digest)+"?"+query[1:], im)
	s.want(re, 201)
	got := strings.Split(strings.ReplaceAll(strings.Join(re.Header.Values("OCI-Tag"), ","), " ", ""), ",")
	slices.Sort(got)
	if !slices.Equal(got, want) {
		s.Errorf("OCI-Tag is %q", got)
	}
	if tags := s.tags(""); !slices.Equal(tags, want) {
		s.Errorf("tags are %q", tags)
	}
	s.want(s.put(string(im.digest)+"?tag=-bad", im), 400)
}

// "When a manifest is rejected for this reason, it MUST result in one or more MANIFEST_BLOB_UNKNOWN errors."
func pushUnknownBlobs(s *suite) {
	nowhere := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: digest.FromString("nowhere"), Size: 7}
	im := s.newImage(1, func(m *ocispec.Manifest) { m.Layers = append(m.Layers, nowhere) })
	re := s.put("v1", im)
	s.want(re, 400, 404)
	s.wantCode(re, "MANIFEST_BLOB_UNKNOWN")
	if !bytes.Contains(re.body, []byte(nowhere.Digest)) {
		s.Errorf("the refusal does not say which: %s", re.body)
	}
	im = s.newImage(0, func(m *ocispec.Manifest) { m.Config.Digest = nowhere.Digest })
	s.wantCode(s.put("v1", im), "MANIFEST_BLOB_UNKNOWN")
	missing := s.newImage(0, nil)
	s.wantCode(s.put("v1", s.newIndex(nil, missing)), "MANIFEST_BLOB_UNKNOWN")
	s.want(s.do("GET", s.path("manifests/v1"), nil, nil), 404)
	other := s.pushTo(s.repo+"/other", random(s, 10)) // there, but not here
	im = s.newImage(0, func(m *ocispec.Manifest) { m.Layers = append(m.Layers, other) })
	s.wantCode(s.put("v1", im), "MANIFEST_BLOB_UNKNOWN")
}

func pushWrongSize(s *suite) {
	im := s.newImage(1, func(m *ocispec.Manifest) { m.Layers[0].Size++ })
	re := s.put("v1", im)
	s.want(re, 400)
	s.wantCode(re, "MANIFEST_INVALID")
	im = s.newImage(1, func(m *ocispec.Manifest) { m.Config.Size = -1 })
	s.want(s.put("v1", im), 400)
}

// Layers that nobody else may distribute need not be there.
func pushForeign(s *suite) {
	im := s.newImage(1, func(m *ocispec.Manifest) {
		m.Layers = append(m.Layers, ocispec.Descriptor{
			MediaType: "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip", Digest: digest.FromString("theirs"), Size: 123456,
			URLs: []string{"https://example.com/layer"},
		})
	})
	s.want(s.put("v1", im), 201)
}

func pushInvalid(s *suite) {
	good := s.newImage(1, nil)
	index := s.newIndex(nil)
	for name, im := range map[string]image{
		"empty":          {raw: []byte{}, mediaType: good.mediaType},
		"no JSON":        {raw: []byte("hello"), mediaType: good.mediaType},
		"cut":            {raw: good.raw[:len(good.raw)-3], mediaType: good.mediaType},
		"more behind":    {raw: append(slices.Clone(good.raw), "{}"...), mediaType: good.mediaType},
		"an array":       {raw: []byte("[]"), mediaType: good.mediaType},
		"no schema":      {raw: []byte(`{"config":{},"layers":[]}`), mediaType: good.mediaType},
		"other type":     {raw: good.raw, mediaType: index.mediaType},
		"index as image": {raw: index.raw, mediaType: good.mediaType},
		"both kinds": {
			raw:       []byte(strings.Replace(string(good.raw), `"layers"`, `"manifests": [], "layers"`, 1)),
			mediaType: good.mediaType,
		},
		"bad digest":     s.newImage(1, func(m *ocispec.Manifest) { m.Layers[0].Digest = "sha256:../../../etc/passwd" }),
		"bad subject":    s.newImage(1, func(m *ocispec.Manifest) { m.Subject = &ocispec.Descriptor{Digest: "x"} }),
		"nested deeply":  {raw: []byte(`{"schemaVersion":2,"x":` + strings.Repeat("[", 100000) + strings.Repeat("]", 100000) + "}"), mediaType: good.mediaType},
		"Docker schema1": {raw: []byte(`{"schemaVersion":1,"name":"x","fsLayers":[]}`), mediaType: "application/vnd.docker.distribution.manifest.v1+prettyjws"},
	} {
		re := s.put("v1", im)
		if re.StatusCode != 400 {
			s.Errorf("%s: %d", name, re.StatusCode)
		}
		s.wantCode(re, "MANIFEST_INVALID")
	}
	s.want(s.do("GET", s.path("manifests/v1"), nil, nil), 404)
}

// "Client and registry implementations SHOULD expect to be able to support manifest pushes of at least 4 megabytes."
func pushLarge(s *suite) {
	im := s.newImage(1, func(m *ocispec.Manifest) { m.Annotations = map[string]string{"big": strings.Repeat("b", 4000000-2000)} })
	s.want(s.put("big", im), 201)
	re := s.do("GET", s.path("manifests/big"), nil, nil)
	s.want(re, 200)
	if !bytes.Equal(re.body, im.raw) {
		s.Error("it came back different")
	}
}

// "A registry that enforces this limit SHOULD respond … with a response code 413 Payload Too Large."
func pushTooLarge(s *suite) {
	im := s.newImage(0, func(m *ocispec.Manifest) { m.Annotations = map[string]string{"big": strings.Repeat("b", 5<<20)} })
	s.want(s.put("big", im), 413)
	re := s.send("PUT", s.path("manifests/big"), io.MultiReader(bytes.NewReader(im.raw)), header{"Content-Type", im.mediaType})
	s.want(re, 413)
}

// "The registry SHOULD ignore parameters on the Content-Type header."
func pushParameters(s *suite) {
	im := s.newImage(0, nil)
	re := s.do("PUT", s.path("manifests/v1"), im.raw, header{"Content-Type", im.mediaType + "; charset=utf-8"})
	s.want(re, 201)
	s.wantHeader(s.do("GET", s.path("manifests/v1"), nil, nil), "Content-Type", im.mediaType)
	re = s.do("PUT", s.path("manifests/v2"), im.raw, nil) // "SHOULD set": its own word counts without
	s.want(re, 201)
	s.wantHeader(s.do("GET", s.path("manifests/v2"), nil, nil), "Content-Type", im.mediaType)
}

func pushArtifact(s *suite) {
	empty := s.push([]byte("{}"))
	empty.MediaType = ocispec.MediaTypeEmptyJSON
	im := s.newImage(1, func(m *ocispec.Manifest) {
		m.ArtifactType, m.Config, m.Layers[0].MediaType = "application/vnd.example.thing", empty, "text/plain"
	})
	s.want(s.put("v1", im), 201)
}

// "The specification is designed to be agnostic of content types."
func pushUnknownType(s *suite) {
	blob := s.push(random(s, 10))
	im := s.encode(map[string]any{"mediaType": "application/vnd.example.manifest.v7+json", "blobs": []any{blob}, "anything": 1}, "application/vnd.example.manifest.v7+json")
	re := s.put("v1", im)
	s.want(re, 201, 400, 415)
	if re.StatusCode == 201 {
		s.wantHeader(s.do("GET", s.path("manifests/v1"), nil, nil), "Content-Type", im.mediaType)
	}
}

func pushTagMoves(s *suite) {
	one, two := s.newImage(0, nil), s.newImage(1, nil)
	s.mustPut("v", one)
	s.mustPut("v", two)
	s.wantHeader(s.do("HEAD", s.path("manifests/v"), nil, nil), "Docker-Content-Digest", string(two.digest))
	s.want(s.do("HEAD", s.path("manifests/%s", one.digest), nil, nil), 200)
}

// "Clients MAY use a conditional HTTP push for registries that support ETag conditions to avoid conflicts with other clients."
func pushConditional(s *suite) {
	one, two := s.newImage(0, nil), s.newImage(1, nil)
	put := func(im image, h ...string) reply {
		return s.do("PUT", s.path("manifests/v"), im.raw, append(header{"Content-Type", im.mediaType}, h...))
	}
	s.want(put(one, "If-Match", `"`+string(two.digest)+`"`), 412)
	s.want(put(one, "If-None-Match", "*"), 201)
	s.want(put(two, "If-None-Match", "*"), 412)
	s.want(put(two, "If-Match", `"`+string(two.digest)+`"`), 412)
	etag := s.do("GET", s.path("manifests/v"), nil, nil).Header.Get("ETag")
	s.want(put(two, "If-Match", etag), 201)
	s.want(put(one, "If-Match", etag), 412)
	s.wantHeader(s.do("HEAD", s.path("manifests/v"), nil, nil), "Docker-Content-Digest", string(two.digest))
}
