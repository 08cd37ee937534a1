package servertest

import (
	"slices"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

var managementTests = []conformanceTest{
	{"DeleteTag", deleteTag},
	{"DeleteManifest", deleteManifest},
	{"DeleteBlob", deleteBlob},
	{"DeleteMissing", deleteMissing},
	{"DeleteAndPushAgain", deleteAndPush},
	{"DeleteLeavesOthers", deleteOthers},
	{"DeleteReferrer", deleteReferrer},
}

// "Upon success, the registry MUST respond with a 202 Accepted code." "Once deleted, a GET to /v2/<name>/manifests/<tag> will return a 404."
func deleteTag(s *suite) {
	im := s.newImage(1, nil)
	s.mustPut("one", im)
	s.mustPut("two", im)
	s.want(s.do("DELETE", s.path("manifests/one"), nil, nil), 202)
	s.want(s.do("GET", s.path("manifests/one"), nil, nil), 404)
	s.want(s.do("HEAD", s.path("manifests/one"), nil, nil), 404)
	s.want(s.do("GET", s.path("manifests/two"), nil, nil), 200)
	s.want(s.do("GET", s.path("manifests/%s", im.digest), nil, nil), 200)
	if tags := s.tags(""); !slices.Equal(tags, []string{"two"}) {
		s.Errorf("tags are %q", tags)
	}
}

// "Once deleted, a GET to /v2/<name>/manifests/<digest> and any tag pointing to that digest will return a 404."
func deleteManifest(s *suite) {
	im, other := s.newImage(1, nil), s.newImage(1, nil)
	for _, tag := range []string{"a", "b", "c"} {
		s.mustPut(tag, im)
	}
	s.mustPut("other", other)
	s.want(s.do("DELETE", s.path("manifests/%s", im.digest), nil, nil), 202)
	for _, ref := range []string{"a", "b", "c", string(im.digest)} {
		s.want(s.do("GET", s.path("manifests/%s", ref), nil, nil), 404)
	}
	if tags := s.tags(""); !slices.Equal(tags, []string{"other"}) {
		s.Errorf("tags are %q", tags)
	}
	s.want(s.do("DELETE", s.path("manifests/%s", im.digest), nil, nil), 404)
}

// "Upon success, the registry MUST respond with code 202 Accepted. If the blob is not found, a 404 Not Found code MUST be returned."
func deleteBlob(s *suite) {
	desc := s.push(random(s, 100))
	s.want(s.do("DELETE", s.path("blobs/%s", desc.Digest), nil, nil), 202)
	s.want(s.do("GET", s.path("blobs/%s", desc.Digest), nil, nil), 404)
	s.want(s.do("HEAD", s.path("blobs/%s", desc.Digest), nil, nil), 404)
	s.want(s.do("DELETE", s.path("blobs/%s", desc.Digest), nil, nil), 404)
}

// "If the repository does not exist, the response MUST return 404 Not Found."
func deleteMissing(s *suite) {
	d := digest.FromString("missing")
	for range 2 {
		s.want(s.do("DELETE", s.path("manifests/%s", d), nil, nil), 404)
		s.want(s.do("DELETE", s.path("manifests/nothing"), nil, nil), 404)
		s.want(s.do("DELETE", s.path("blobs/%s", d), nil, nil), 404)
		s.push([]byte("now the repository is there"))
	}
	s.want(s.do("DELETE", s.path("blobs/sha256:x"), nil, nil), 400, 404)
}

func deleteAndPush(s *suite) {
	data := random(s, 5000)
	for range 3 {
		desc := s.push(data)
		im := s.newImage(0, func(m *ocispec.Manifest) { m.Layers = append(m.Layers, desc) })
		s.mustPut("v1", im)
		s.want(s.do("DELETE", s.path("manifests/%s", im.digest), nil, nil), 202)
		s.want(s.do("DELETE", s.path("blobs/%s", desc.Digest), nil, nil), 202)
		re := s.put("v1", im)
		s.wantCode(re, "MANIFEST_BLOB_UNKNOWN")
	}
}

// What one repository deletes, another keeps.
func deleteOthers(s *suite) {
	data := random(s, 5000)
	desc := s.push(data)
	other := s.repo + "/other"
	s.pushTo(other, data)
	s.want(s.do("DELETE", s.path("blobs/%s", desc.Digest), nil, nil), 202)
	s.want(s.do("GET", "/v2/"+other+"/blobs/"+string(desc.Digest), nil, nil), 200)
}

func deleteReferrer(s *suite) {
	subject, set := s.referrerSet()
	for _, im := range set {
		s.want(s.do("DELETE", s.path("manifests/%s", im.digest), nil, nil), 202)
	}
	if x, _ := s.referrers(subject.digest, ""); len(x.Manifests) != 0 {
		s.Errorf("deleted referrers are listed: %v", x.Manifests)
	}
	subject, set = s.referrerSet()
	s.want(s.do("DELETE", s.path("manifests/%s", subject.digest), nil, nil), 202)
	if x, _ := s.referrers(subject.digest, ""); len(x.Manifests) != len(set) { // they stay, as they may come before their subject
		s.Errorf("without the subject there are %v", x.Manifests)
	}
}
