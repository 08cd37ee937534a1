package servertest

import (
	"bytes"
	"fmt"
	"strings"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

var pullTests = []conformanceTest{
	{"Base", pullBase},
	{"ManifestByDigestAndTag", pullManifest},
	{"ManifestTypesAreKept", pullManifestTypes},
	{"ManifestHead", pullManifestHead},
	{"ManifestMissing", pullManifestMissing},
	{"ManifestConditional", pullManifestConditional},
	{"Blob", pullBlob},
	{"BlobEmpty", pullBlobEmpty},
	{"BlobHead", pullBlobHead},
	{"BlobMissing", pullBlobMissing},
	{"BlobOfOtherRepository", pullBlobElsewhere},
	{"BlobRange", pullBlobRange},
	{"BlobRangeUnsatisfiable", pullBlobRangeBad},
	{"BlobConditional", pullBlobConditional},
	{"Names", pullNames},
	{"BadMethods", pullMethods},
}

// "If the response is 200 OK, then the registry implements this specification."
func pullBase(s *suite) {
	re := s.do("GET", "/v2/", nil, nil)
	s.want(re, 200)
	s.wantHeader(re, "Docker-Distribution-Api-Version", "registry/2.0")
	s.want(s.do("HEAD", "/v2/", nil, nil), 200)
}

// "MUST provide the expected manifest, with a response code that MUST be 200 OK. A successful response MUST contain the digest in Docker-Content-Digest."
func pullManifest(s *suite) {
	im := s.newImage(2, nil)
	s.mustPut("v1", im)
	for _, ref := range []string{"v1", string(im.digest)} {
		re := s.do("GET", s.path("manifests/%s", ref), nil, header{"Accept", im.mediaType})
		s.want(re, 200)
		if !bytes.Equal(re.body, im.raw) {
			s.Errorf("%s: manifest came back different", ref)
		}
		s.wantHeader(re, "Docker-Content-Digest", string(im.digest))
		s.wantHeader(re, "Content-Type", im.mediaType) // "SHOULD match", "SHOULD NOT include parameters"
		s.wantLength(re, len(im.raw))
	}
}

func pullManifestTypes(s *suite) {
	im := s.newImage(1, func(m *ocispec.Manifest) {
		m.MediaType = "application/vnd.docker.distribution.manifest.v2+json"
		m.Config.MediaType = "application/vnd.docker.container.image.v1+json"
		m.Layers[0].MediaType = "application/vnd.docker.image.rootfs.diff.tar.gzip"
	})
	s.mustPut("docker", im)
	list := s.newIndex(func(x *ocispec.Index) { x.MediaType = "application/vnd.docker.distribution.manifest.list.v2+json" }, im)
	s.mustPut("list", list)
	oci := s.newImage(1, nil)
	s.mustPut("oci", oci)
	index := s.newIndex(nil, oci, im)
	s.mustPut("index", index)
	nested := s.newIndex(nil, index, list)
	s.mustPut("nested", nested)
	bare := s.newImage(1, func(m *ocispec.Manifest) { m.MediaType = "" })
	bare.mediaType = ocispec.MediaTypeImageManifest
	s.mustPut("bare", bare)
	for ref, want := range map[string]image{"docker": im, "list": list, "oci": oci, "index": index, "nested": nested, "bare": bare} {
		re := s.do("GET", s.path("manifests/%s", ref), nil, nil)
		s.want(re, 200)
		s.wantHeader(re, "Content-Type", want.mediaType)
		if !bytes.Equal(re.body, want.raw) {
			s.Errorf("%s came back different", ref)
		}
	}
}

// "A HEAD request MUST return 200 OK … MUST contain the digest … MUST contain the size in bytes in Content-Length."
func pullManifestHead(s *suite) {
	im := s.newImage(1, nil)
	s.mustPut("v1", im)
	for _, ref := range []string{"v1", string(im.digest)} {
		re := s.do("HEAD", s.path("manifests/%s", ref), nil, nil)
		s.want(re, 200)
		s.wantHeader(re, "Docker-Content-Digest", string(im.digest))
		s.wantHeader(re, "Content-Type", im.mediaType)
		s.wantLength(re, len(im.raw))
		if len(re.body) > 0 {
			s.Error("HEAD has a body")
		}
	}
}

// "If the manifest is not found in the repository, the response code MUST be 404 Not Found." "MUST NOT be in any other format."
func pullManifestMissing(s *suite) {
	missing := digest.FromString("missing")
	for _, known := range []bool{false, true} {
		if known {
			s.mustPut("v1", s.newImage(0, nil))
		}
		for _, ref := range []string{"nothing", string(missing)} {
			re := s.do("GET", s.path("manifests/%s", ref), nil, nil)
			s.want(re, 404)
			s.wantCode(re, "MANIFEST_UNKNOWN")
			s.want(s.do("HEAD", s.path("manifests/%s", ref), nil, nil), 404)
		}
	}
	for _, ref := range []string{"sha256:zz", "-x", ".x", strings.Repeat("a", 129), "sha256:" + strings.Repeat("A", 64)} {
		s.want(s.do("GET", s.path("manifests/%s", ref), nil, nil), 400, 404)
	}
}

func pullManifestConditional(s *suite) {
	im := s.newImage(0, nil)
	s.mustPut("v1", im)
	etag := s.do("GET", s.path("manifests/v1"), nil, nil).Header.Get("ETag")
	if etag == "" {
		s.Fatal("no ETag")
	}
	for _, method := range []string{"GET", "HEAD"} {
		s.want(s.do(method, s.path("manifests/v1"), nil, header{"If-None-Match", etag}), 304)
		s.want(s.do(method, s.path("manifests/v1"), nil, header{"If-None-Match", `"other", ` + etag}), 304)
		s.want(s.do(method, s.path("manifests/v1"), nil, header{"If-None-Match", `"other"`}), 200)
	}
}

// "MUST provide the expected blob, with 200 OK … the value of this header MUST be a digest matching that of the response body."
func pullBlob(s *suite) {
	for _, size := range []int{1, 1000, 3 << 20} {
		data := random(s, size)
		desc := s.push(data)
		re := s.do("GET", s.path("blobs/%s", desc.Digest), nil, nil)
		s.want(re, 200)
		s.wantHeader(re, "Docker-Content-Digest", string(desc.Digest))
		s.wantLength(re, size)
		if !bytes.Equal(re.body, data) {
			s.Errorf("blob of %d bytes came back different", size)
		}
		s.want(s.do("GET", s.path("blobs/%s", strings.Replace(string(desc.Digest), ":", "%3A", 1)), nil, nil), 200)
	}
}

func pullBlobEmpty(s *suite) {
	desc := s.push([]byte{})
	re := s.do("GET", s.path("blobs/%s", desc.Digest), nil, nil)
	s.want(re, 200)
	s.wantLength(re, 0)
}

func pullBlobHead(s *suite) {
	desc := s.push(random(s, 12345))
	re := s.do("HEAD", s.path("blobs/%s", desc.Digest), nil, nil)
	s.want(re, 200)
	s.wantHeader(re, "Docker-Content-Digest", string(desc.Digest))
	s.wantLength(re, 12345)
}

// "If the blob is not found in the repository, the response code MUST be 404 Not Found."
func pullBlobMissing(s *suite) {
	for _, known := range []bool{false, true} {
		if known {
			s.push([]byte("known"))
		}
		re := s.do("GET", s.path("blobs/%s", digest.FromString("missing")), nil, nil)
		s.want(re, 404)
		s.wantCode(re, "BLOB_UNKNOWN")
		s.want(s.do("HEAD", s.path("blobs/%s", digest.FromString("missing")), nil, nil), 404)
	}
	for _, bad := range []string{"sha256:x", "nonsense", "sha256:" + strings.Repeat("g", 64), "md5:d41d8cd98f00b204e9800998ecf8427e"} {
		s.want(s.do("GET", s.path("blobs/%s", bad), nil, nil), 400, 404)
	}
}

// A repository is "a scope for API calls": what is in one cannot be read in another.
func pullBlobElsewhere(s *suite) {
	desc := s.push(random(s, 100))
	s.want(s.do("GET", "/v2/"+s.repo+"-other/blobs/"+string(desc.Digest), nil, nil), 404)
	s.want(s.do("HEAD", "/v2/"+s.repo+"-other/blobs/"+string(desc.Digest), nil, nil), 404)
}

// "A registry SHOULD support the Range request header in accordance with RFC 9110 (section 14)."
func pullBlobRange(s *suite) {
	data := random(s, 100000)
	desc := s.push(data)
	path := s.path("blobs/%s", desc.Digest)
	if got := s.do("HEAD", path, nil, nil).Header.Get("Accept-Ranges"); got != "bytes" {
		s.Errorf("Accept-Ranges is %q", got)
	}
	for _, c := range []struct {
		header     string
		start, end int
	}{
		{"bytes=0-0", 0, 0}, {"bytes=0-99999", 0, 99999}, {"bytes=5-10", 5, 10}, {"bytes=99999-", 99999, 99999},
		{"bytes=50000-", 50000, 99999}, {"bytes=-1", 99999, 99999}, {"bytes=-100", 99900, 99999}, {"bytes=-200000", 0, 99999}, {"bytes=10-999999999", 10, 99999},
	} {
		re := s.do("GET", path, nil, header{"Range", c.header})
		s.want(re, 206)
		s.wantHeader(re, "Content-Range", fmt.Sprintf("bytes %d-%d/100000", c.start, c.end))
		s.wantLength(re, c.end-c.start+1)
		s.wantHeader(re, "Docker-Content-Digest", string(desc.Digest))
		if !bytes.Equal(re.body, data[c.start:c.end+1]) {
			s.Errorf("%s: wrong bytes", c.header)
		}
	}
	// "An origin server MUST ignore a Range header field that contains a range unit it does not understand", and may one that is invalid.
	for _, bad := range []string{"lines=1-2", "bytes=x-y", "bytes 1-2", "bytes=-", "bytes=+1-2", "bytes=99999999999999999999-"} {
		re := s.do("GET", path, nil, header{"Range", bad})
		s.want(re, 200, 416)
	}
	re := s.do("GET", path, nil, header{"Range", "bytes=0-0", "If-Range", `"other"`})
	s.want(re, 200)
	re = s.do("GET", path, nil, header{"Range", "bytes=0-0", "If-Range", re.Header.Get("ETag")})
	s.want(re, 206)
}

func pullBlobRangeBad(s *suite) {
	desc := s.push(random(s, 1000))
	for _, bad := range []string{"bytes=1000-", "bytes=5000-6000", "bytes=-0", "bytes=500-0"} {
		re := s.do("GET", s.path("blobs/%s", desc.Digest), nil, header{"Range", bad})
		s.want(re, 416)
		s.wantHeader(re, "Content-Range", "bytes */1000")
	}
}

func pullBlobConditional(s *suite) {
	desc := s.push(random(s, 1000))
	path := s.path("blobs/%s", desc.Digest)
	etag := s.do("GET", path, nil, nil).Header.Get("ETag")
	if etag == "" {
		s.Fatal("no ETag")
	}
	for _, method := range []string{"GET", "HEAD"} {
		re := s.do(method, path, nil, header{"If-None-Match", etag})
		s.want(re, 304)
		s.want(s.do(method, path, nil, header{"If-None-Match", `"x"`}), 200)
		s.want(s.do(method, path, nil, header{"If-Match", `"x"`}), 412)
	}
}

// "<name> MUST match the following regular expression"
func pullNames(s *suite) {
	for _, bad := range []string{"UPPER/x", "a//b", "-a", "a-", "a/_b", "a___b", "a/../b", "a/./b", ".a", "a..b", strings.Repeat("a", 256), "a%2f..%2fb", "a%00b", "a%0ab", "ä"} {
		for _, path := range []string{"/tags/list", "/manifests/v1", "/blobs/" + string(digest.FromString("x"))} {
			// A client's own library may clean "..", so what arrives may be another path; it must be refused all the same.
			s.want(s.do("GET", "/v2/"+s.target.Namespace+"/"+bad+path, nil, nil), 400, 404)
		}
		s.want(s.do("POST", "/v2/"+s.target.Namespace+"/"+bad+"/blobs/uploads/", nil, nil), 400, 404)
	}
	repo := s.repo
	for _, good := range []string{"a.b", "a_b", "a__b", "a-b", "a---b", "0", "tags/list", "x/manifests/y", "blobs/uploads", "x/referrers"} {
		s.repo = repo + "/" + good
		im := s.newImage(0, nil)
		s.mustPut("v1", im)
		s.want(s.do("GET", s.path("manifests/v1"), nil, nil), 200)
		if tags := s.tags(""); len(tags) != 1 {
			s.Errorf("%s has tags %v", s.repo, tags)
		}
	}
}

func pullMethods(s *suite) {
	d := digest.FromString("x")
	for _, c := range [][2]string{
		{"POST", "manifests/v1"}, {"PATCH", "manifests/v1"}, {"PUT", "blobs/" + string(d)}, {"POST", "tags/list"}, {"DELETE", "tags/list"},
		{"PUT", "referrers/" + string(d)}, {"DELETE", "referrers/" + string(d)},
	} {
		re := s.do(c[0], s.path("%s", c[1]), []byte{}, nil)
		s.want(re, 405, 404)
	}
}
