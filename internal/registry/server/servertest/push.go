package servertest

import (
	"bytes"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"
	"testing/iotest"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

var pushTests = []conformanceTest{
	{"PostThenPut", pushPostPut},
	{"SinglePost", pushSinglePost},
	{"SinglePostWrong", pushSinglePostWrong},
	{"Streamed", pushStreamed},
	{"Chunked", pushChunked},
	{"ChunkedLastInPut", pushChunkedLast},
	{"ChunkOutOfOrder", pushOutOfOrder},
	{"ChunkLies", pushChunkLies},
	{"ResumeAfterCut", pushResume},
	{"Status", pushStatus},
	{"Cancel", pushCancel},
	{"UnknownSession", pushUnknownSession},
	{"WrongDigest", pushWrongDigest},
	{"BadDigest", pushBadDigest},
	{"SHA512", pushSHA512},
	{"Mount", pushMount},
	{"MountFromNowhere", pushMountNowhere},
	{"MountWithoutFrom", pushMountAny},
	{"Manifest", pushManifest},
	{"ManifestByDigest", pushManifestByDigest},
	{"ManifestTagsInQuery", pushQueryTags},
	{"ManifestUnknownBlobs", pushUnknownBlobs},
	{"ManifestWrongSize", pushWrongSize},
	{"ManifestForeignLayers", pushForeign},
	{"ManifestInvalid", pushInvalid},
	{"ManifestLarge", pushLarge},
	{"ManifestTooLarge", pushTooLarge},
	{"ManifestContentTypeParameters", pushParameters},
	{"ManifestArtifact", pushArtifact},
	{"ManifestUnknownType", pushUnknownType},
	{"TagMoves", pushTagMoves},
	{"TagConditional", pushConditional},
	{"ExpectContinue", pushExpect},
}

var uuid = regexp.MustCompile(`[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}`)

// pullable checks a blob and the Location of the answer that made it.
func (s *suite) pullable(re reply, data []byte) {
	s.Helper()
	got := s.do("GET", s.where(re, ""), nil, nil) // "With <blob-location> being a pullable blob URL."
	s.want(got, 200)
	if !bytes.Equal(got.body, data) {
		s.Error("it came back different")
	}
}

// "the response MUST have a code of 202 Accepted, and MUST include Location", "MUST contain a UUID", then "MUST have code 201 Created"
func pushPostPut(s *suite) {
	data := random(s, 100000)
	d := digest.FromBytes(data)
	re := s.start()
	if !uuid.MatchString(re.Header.Get("Location")) {
		s.Errorf("Location %q has no UUID", re.Header.Get("Location"))
	}
	re = s.do("PUT", s.where(re, digestQuery(d)), data, header{"Content-Type", "application/octet-stream"})
	s.want(re, 201)
	s.wantHeader(re, "Docker-Content-Digest", string(d))
	s.pullable(re, data)
	re2 := s.do("POST", s.path("blobs/uploads"), nil, nil) // without the last slash, as some write it
	s.want(re2, 202, 404)
}

// "Successful completion of the request MUST return a 201 Created and MUST include Location"
func pushSinglePost(s *suite) {
	data := random(s, 5000)
	re := s.do("POST", s.path("blobs/uploads/?%s", digestQuery(digest.FromBytes(data))), data, header{"Content-Type", "application/octet-stream"})
	s.want(re, 201)
	s.pullable(re, data)
}

func pushSinglePostWrong(s *suite) {
	d := digest.FromString("something else")
	re := s.do("POST", s.path("blobs/uploads/?%s", digestQuery(d)), random(s, 5000), nil)
	s.want(re, 400)
	s.wantCode(re, "DIGEST_INVALID")
	s.want(s.do("HEAD", s.path("blobs/%s", d), nil, nil), 404)
}

// One PATCH of unknown length and an empty PUT: what docker does.
func pushStreamed(s *suite) {
	data := random(s, 3<<20)
	re := s.start()
	re = s.send("PATCH", s.where(re, ""), io.MultiReader(bytes.NewReader(data)), header{"Content-Type", "application/octet-stream"})
	s.want(re, 202)
	s.wantHeader(re, "Range", fmt.Sprintf("0-%d", len(data)-1))
	re = s.do("PUT", s.where(re, digestQuery(digest.FromBytes(data))), []byte{}, header{"Content-Length", "0"})
	s.want(re, 201)
	s.pullable(re, data)
}

func (s *suite) patch(re reply, data []byte, start int) reply {
	s.Helper()
	return s.do("PATCH", s.where(re, ""), data, header{
		"Content-Type", "application/octet-stream", "Content-Range", fmt.Sprintf("%d-%d", start, start+len(data)-1),
	})
}

// "The response for each successful chunk upload MUST be 202 Accepted, and MUST have Location and Range: 0-<end-of-range>"
func pushChunked(s *suite) {
	data := random(s, 300000)
	re := s.start()
	for start := 0; start < len(data); {
		end := min(start+70001, len(data))
		re = s.patch(re, data[start:end], start)
		s.want(re, 202)
		s.wantHeader(re, "Range", fmt.Sprintf("0-%d", end-1))
		start = end
	}
	re = s.do("PUT", s.where(re, digestQuery(digest.FromBytes(data))), nil, nil)
	s.want(re, 201)
	s.pullable(re, data)
}

// "The final chunk … MAY be uploaded in the closing PUT request."
func pushChunkedLast(s *suite) {
	data := random(s, 30000)
	re := s.patch(s.start(), data[:10000], 0)
	s.want(re, 202)
	bad := s.do("PUT", s.where(re, digestQuery(digest.FromBytes(data))), data[15000:], header{"Content-Range", "15000-29999"})
	s.want(bad, 416) // "If the final chunk is uploaded out of order, the registry MUST respond with a 416"
	re = s.do("PUT", s.where(re, digestQuery(digest.FromBytes(data))), data[10000:], header{
		"Content-Type", "application/octet-stream", "Content-Range", "10000-29999",
	})
	s.want(re, 201)
	s.pullable(re, data)
}

// "If a chunk is uploaded out of order, the registry MUST respond with a 416 Requested Range Not Satisfiable code."
func pushOutOfOrder(s *suite) {
	data := random(s, 3000)
	first := s.start()
	s.want(s.patch(first, data[1000:2000], 1000), 416) // "The first chunk's range MUST begin with 0."
	re := s.patch(first, data[:1000], 0)
	s.want(re, 202)
	for _, start := range []int{0, 500, 999, 1001, 2000} {
		s.want(s.patch(re, data[:1000], start), 416)
	}
	status := s.do("GET", s.where(re, ""), nil, nil)
	s.want(status, 204)
	s.wantHeader(status, "Range", "0-999") // nothing of the wrong ones came in
	s.want(s.patch(status, data[1000:], 1000), 202)
	re = s.do("PUT", s.where(status, digestQuery(digest.FromBytes(data))), nil, nil)
	s.want(re, 201)
	s.pullable(re, data)
}

// A Content-Range that does not fit its own chunk, or is none.
func pushChunkLies(s *suite) {
	re := s.start()
	for _, r := range []string{"0-5", "0-50", "5-0", "x-y", "0-", "-5", "+0-9", "0-99999999999999999999"} {
		got := s.do("PATCH", s.where(re, ""), make([]byte, 10), header{"Content-Range", r})
		s.want(got, 400, 416)
	}
	got := s.send("PATCH", s.where(re, ""), io.MultiReader(bytes.NewReader(make([]byte, 20))), header{"Content-Range", "0-9"})
	s.want(got, 400, 413, 416)
}

// A connection that breaks in the middle of a chunk: "The registry notifies the build server that the upload has already been partially attempted."
//
// The client asks for the status and goes on from there. What was still on its way from the old connection may come in between; then it is told so
// (416, or 409 when both were at work at once) and asks again.
func pushResume(s *suite) {
	data := random(s, 2<<20)
	loc := s.where(s.start(), "")
	pr := io.MultiReader(bytes.NewReader(data[:1<<20]), iotest.ErrReader(io.ErrClosedPipe))
	if err := s.broken("PATCH", loc, pr, header{"Content-Range", fmt.Sprintf("0-%d", len(data)-1)}); err == nil {
		s.Fatal("a broken request was answered")
	}
	for try := range 10 {
		status := s.do("GET", loc, nil, nil)
		s.want(status, 204)
		var end int
		if _, err := fmt.Sscanf(status.Header.Get("Range"), "0-%d", &end); err != nil || end >= 1<<20 {
			s.Fatalf("Range is %q", status.Header.Get("Range"))
		}
		start := end + 1
		if end == 0 {
			start = 0 // "0-0" is one byte, or none
		}
		re := s.patch(status, data[start:], start)
		s.want(re, 202, 416, 409)
		if re.StatusCode == 202 {
			loc = s.where(re, "")
			break
		}
		if try == 9 {
			s.Fatal("never resumed")
		}
	}
	re := s.do("PUT", withQuery(loc, digestQuery(digest.FromBytes(data))), nil, nil)
	s.want(re, 201)
	s.pullable(re, data)
}

// "The response to an active upload MUST be a 204 No Content response code, and MUST have Location and Range"
func pushStatus(s *suite) {
	re := s.start()
	status := s.do("GET", s.where(re, ""), nil, nil)
	s.want(status, 204)
	if status.Header.Get("Location") == "" || status.Header.Get("Range") == "" {
		s.Errorf("status has headers %v", status.Header)
	}
	re = s.patch(re, random(s, 77), 0)
	s.want(re, 202)
	status = s.do("GET", s.where(re, ""), nil, nil)
	s.want(status, 204)
	s.wantHeader(status, "Range", "0-76")
}

// "If successful, the response SHOULD be a 204 No Content response code."
func pushCancel(s *suite) {
	re := s.patch(s.start(), random(s, 100), 0)
	s.want(re, 202)
	loc := s.where(re, "")
	s.want(s.do("DELETE", loc, nil, header{"Content-Length", "0"}), 204)
	for _, method := range []string{"GET", "DELETE", "PATCH"} {
		got := s.do(method, loc, nil, nil)
		s.want(got, 404)
		s.wantCode(got, "BLOB_UPLOAD_UNKNOWN")
	}
	s.want(s.do("PUT", s.where(re, digestQuery(digest.FromString(""))), nil, nil), 404)
}

func pushUnknownSession(s *suite) {
	loc := s.where(s.start(), "")
	for _, bad := range []string{
		uuid.ReplaceAllString(loc, "00000000-0000-4000-8000-000000000000"),
		strings.Replace(loc, s.repo+"/", s.repo+"-other/", 1), // a session is of its repository
		uuid.ReplaceAllString(loc, "x"), uuid.ReplaceAllString(loc, ".."), uuid.ReplaceAllString(loc, "..%2f..%2fetc"),
	} {
		s.want(s.do("GET", bad, nil, nil), 404, 400)
		s.want(s.do("PATCH", bad, []byte("x"), nil), 404, 400, 405)
	}
	s.want(s.do("GET", loc, nil, nil), 204)
}

func pushWrongDigest(s *suite) {
	re := s.start()
	wrong := digest.FromString("something else")
	re = s.do("PUT", s.where(re, digestQuery(wrong)), random(s, 500), nil)
	s.want(re, 400)
	s.wantCode(re, "DIGEST_INVALID")
	s.want(s.do("GET", s.path("blobs/%s", wrong), nil, nil), 404)
}

// "if the client provided digest is invalid or uses an unsupported algorithm, the registry SHOULD respond with a response code 400 Bad Request."
func pushBadDigest(s *suite) {
	for _, bad := range []string{"", "sha256:x", "md5:d41d8cd98f00b204e9800998ecf8427e", "sha256:../../../x", "whirlpool:" + strings.Repeat("a", 128)} {
		re := s.do("PUT", s.where(s.start(), "digest="+bad), []byte("x"), nil)
		s.want(re, 400)
		re = s.do("POST", s.path("blobs/uploads/?digest=%s", bad), []byte("x"), nil)
		s.want(re, 400)
	}
	s.want(s.do("PUT", s.where(s.start(), ""), []byte("x"), nil), 400) // "MUST include the <digest>"
	s.want(s.do("POST", s.path("blobs/uploads/?digest-algorithm=md5"), nil, nil), 400)
}

func pushSHA512(s *suite) {
	data := random(s, 70000)
	d := digest.SHA512.FromBytes(data)
	re := s.do("POST", s.path("blobs/uploads/?digest-algorithm=sha512"), nil, nil)
	s.want(re, 202)
	re = s.patch(re, data[:1000], 0)
	s.want(re, 202)
	re = s.patch(re, data[1000:], 1000)
	s.want(re, 202)
	re = s.do("PUT", s.where(re, digestQuery(d)), nil, nil)
	s.want(re, 201)
	s.wantHeader(re, "Docker-Content-Digest", string(d))
	s.pullable(re, data)
	data = random(s, 1000) // without saying so beforehand
	re = s.do("PUT", s.where(s.start(), digestQuery(digest.SHA512.FromBytes(data))), data, nil)
	s.want(re, 201)
	s.pullable(re, data)
	im := s.newImage(1, func(m *ocispec.Manifest) { m.Layers[0].Digest, m.Layers[0].Size = d, 70000 })
	s.mustPut(string(digest.SHA512.FromBytes(im.raw)), im)
}

// "The response to a successful mount MUST be 201 Created, and MUST contain Location"
func pushMount(s *suite) {
	data := random(s, 900)
	other := s.repo + "/source"
	desc := s.pushTo(other, data)
	re := s.do("POST", s.path("blobs/uploads/?mount=%s&from=%s", desc.Digest, other), nil, nil)
	s.want(re, 201)
	s.pullable(re, data)
	s.want(s.do("HEAD", s.path("blobs/%s", desc.Digest), nil, nil), 200)
}

// "is unable to mount the requested blob, it SHOULD return a 202. This indicates that the upload session has begun"
func pushMountNowhere(s *suite) {
	data := random(s, 900)
	d := digest.FromBytes(data)
	for _, from := range []string{"&from=" + s.repo + "/nobody", "", "&from=BAD//name", "&from="} {
		re := s.do("POST", s.path("blobs/uploads/?mount=%s%s", d, from), nil, nil)
		s.want(re, 202)
		if from == "" {
			re = s.do("PUT", s.where(re, digestQuery(d)), data, nil)
			s.want(re, 201)
			s.pullable(re, data)
			break
		}
	}
}

// "The registry MAY treat the from parameter as optional, and it MAY cross-mount the blob if it can be found."
func pushMountAny(s *suite) {
	data := random(s, 900)
	desc := s.pushTo(s.repo+"/source", data)
	re := s.do("POST", s.path("blobs/uploads/?mount=%s", desc.Digest), nil, nil)
	s.want(re, 201, 202)
	if re.StatusCode == 201 {
		s.pullable(re, data)
	}
}

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

func pushExpect(s *suite) {
	data := random(s, 20000)
	re := s.do("PUT", s.where(s.start(), digestQuery(digest.FromBytes(data))), data, header{"Expect", "100-continue"})
	s.want(re, 201)
	s.pullable(re, data)
}
