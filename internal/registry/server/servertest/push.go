package servertest

import (
	"bytes"
	"fmt"
	"io"
	"regexp"
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

func pushExpect(s *suite) {
	data := random(s, 20000)
	re := s.do("PUT", s.where(s.start(), digestQuery(digest.FromBytes(data))), data, header{"Expect", "100-continue"})
	s.want(re, 201)
	s.pullable(re, data)
}
