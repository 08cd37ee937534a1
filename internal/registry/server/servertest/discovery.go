package servertest

import (
	"encoding/json"
	"fmt"
	"net/url"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

var discoveryTests = []conformanceTest{
	{"TagsOrder", discoverTags},
	{"TagsPages", discoverTagsPages},
	{"TagsZero", discoverTagsZero},
	{"TagsUnknownRepository", discoverTagsUnknown},
	{"TagsOfRepositoryWithout", discoverTagsNone},
	{"Catalog", discoverCatalog},
	{"ReferrersEmpty", discoverReferrersEmpty},
	{"Referrers", discoverReferrers},
	{"ReferrersFilter", discoverReferrersFilter},
	{"ReferrersPages", discoverReferrersPages},
	{"ReferrersBeforeSubject", discoverReferrersEarly},
	{"ReferrersBadDigest", discoverReferrersBad},
	{"ReferrersOfOldClients", discoverReferrersFallback},
	{"ReferrersSHA512", discoverReferrers512},
}

// "the tags MUST be in lexical … or ASCIIbetical order", "the response MUST be a json body in the following format"
func discoverTags(s *suite) {
	im := s.newImage(0, nil)
	want := []string{"1", "10", "2", "B", "Latest", "_x", "a", "a-1", "a.1", "latest", "v1.0", strings.Repeat("t", 128)}
	slices.Sort(want)
	for _, i := range []int{5, 0, 11, 3, 7, 1, 9, 2, 4, 10, 8, 6} {
		s.mustPut(want[i], im)
	}
	if got := s.tags(""); !slices.Equal(got, want) {
		s.Errorf("tags are %q", got)
	}
	s.want(s.do("HEAD", s.path("tags/list"), nil, nil), 200)
}

// "MUST include <int> results", "will not be included in the results, but up to <int> tags after <tagname>"
func discoverTagsPages(s *suite) {
	im := s.newImage(0, nil)
	var want []string
	for i := range 11 {
		want = append(want, fmt.Sprintf("t%02d", i))
		s.mustPut(want[i], im)
	}
	if got := s.tags("?n=4"); !slices.Equal(got, want[:4]) {
		s.Errorf("n=4 gives %q", got)
	}
	if got := s.tags("?n=4&last=t03"); !slices.Equal(got, want[4:8]) {
		s.Errorf("n=4 after t03 gives %q", got)
	}
	if got := s.tags("?last=t08"); !slices.Equal(got, want[9:]) { // "the n parameter is OPTIONAL"
		s.Errorf("after t08 come %q", got)
	}
	if got := s.tags("?last=t035"); !slices.Equal(got, want[4:]) { // a tag that is not there
		s.Errorf("after t035 come %q", got)
	}
	if got := s.tags("?n=100&last=zzz"); len(got) != 0 {
		s.Errorf("after the end come %q", got)
	}
	var all []string
	for next := s.path("tags/list?n=3"); next != ""; {
		re := s.do("GET", next, nil, nil)
		s.want(re, 200)
		page := s.tagsOf(re)
		next = s.nextLink(re)
		if len(page) != 3 && next != "" {
			s.Errorf("a page in between has %d tags", len(page))
		}
		all = append(all, page...)
	}
	if !slices.Equal(all, want) {
		s.Errorf("all pages have %q", all)
	}
	re := s.do("GET", s.path("tags/list?n=11"), nil, nil)
	if link := re.Header.Get("Link"); link != "" {
		s.Errorf("the last page has a Link: %s", link)
	}
	s.want(s.do("GET", s.path("tags/list?n=x"), nil, nil), 400)
	s.want(s.do("GET", s.path("tags/list?n=-1"), nil, nil), 400)
}

// "When n is zero, this endpoint MUST return an empty list, and MUST NOT include a Link header."
func discoverTagsZero(s *suite) {
	s.mustPut("v1", s.newImage(0, nil))
	re := s.do("GET", s.path("tags/list?n=0"), nil, nil)
	s.want(re, 200)
	if tags := s.tagsOf(re); len(tags) != 0 || re.Header.Get("Link") != "" {
		s.Errorf("n=0 gives %q and Link %q", tags, re.Header.Get("Link"))
	}
}

// "An attempt to pull a nonexistent repository MUST return response code 404 Not Found."
func discoverTagsUnknown(s *suite) {
	re := s.do("GET", s.path("tags/list"), nil, nil)
	s.want(re, 404)
	s.wantCode(re, "NAME_UNKNOWN")
}

// "The list of tags MAY be empty if there are no tags on the repository."
func discoverTagsNone(s *suite) {
	im := s.newImage(0, nil)
	s.mustPut(string(im.digest), im)
	if tags := s.tags(""); len(tags) != 0 {
		s.Errorf("tags are %q", tags)
	}
}

// The catalogue is Docker's; tools rely on its order and pages.
func discoverCatalog(s *suite) {
	if s.target.NoCatalog {
		s.Skip("nobody may list all repositories here")
	}
	var want []string
	base := s.repo
	for _, name := range []string{"a", "a-b", "a.b", "a/b", "a/b-c", "a/b/c", "a0", "b/c/d", "z"} {
		s.repo = base + "/" + name
		s.mustPut("v1", s.newImage(0, nil))
		want = append(want, s.repo)
	}
	slices.Sort(want)
	var got []string
	for next := "/v2/_catalog?n=2"; next != ""; {
		re := s.do("GET", next, nil, nil)
		s.want(re, 200)
		var list struct {
			Repositories []string `json:"repositories"`
		}
		if err := json.Unmarshal(re.body, &list); err != nil {
			s.Fatal(err)
		}
		for _, name := range list.Repositories {
			if strings.HasPrefix(name, base+"/") {
				got = append(got, name)
			}
		}
		next = s.nextLink(re)
	}
	if !slices.Equal(got, want) {
		s.Errorf("catalogue has\n%q, want\n%q", got, want)
	}
	for i, name := range want[:len(want)-1] {
		re := s.do("GET", "/v2/_catalog?n=1&last="+url.QueryEscape(name), nil, nil)
		if !strings.Contains(string(re.body), `"`+want[i+1]+`"`) {
			s.Errorf("after %s comes %s, want %s", name, re.body, want[i+1])
		}
	}
}

func (s *suite) referrers(subject digest.Digest, query string) (ocispec.Index, reply) {
	s.Helper()
	re := s.do("GET", s.path("referrers/%s%s", subject, query), nil, nil)
	s.want(re, 200)
	s.wantHeader(re, "Content-Type", ocispec.MediaTypeImageIndex) // "MUST be set to"
	x := s.index(re)
	if x.SchemaVersion != 2 || x.Manifests == nil || x.MediaType != ocispec.MediaTypeImageIndex {
		s.Errorf("no proper index: %.300s", re.body)
	}
	return x, re
}

// "If a query results in no matching referrers, an empty manifest list MUST be returned." "MUST NOT return a 404"
func discoverReferrersEmpty(s *suite) {
	x, _ := s.referrers(digest.FromString("unknown repository"), "")
	if len(x.Manifests) != 0 {
		s.Errorf("there are %v", x.Manifests)
	}
	im := s.newImage(0, nil)
	s.mustPut("v1", im)
	x, _ = s.referrers(im.digest, "")
	if len(x.Manifests) != 0 {
		s.Errorf("there are %v", x.Manifests)
	}
}

// referrerSet pushes an image and all kinds of referrers of it.
func (s *suite) referrerSet() (subject image, byName map[string]image) {
	s.Helper()
	subject = s.newImage(1, nil)
	s.mustPut("subject", subject)
	desc := subject.descriptor()
	notes := map[string]string{"org.example.note": "one"}
	byName = map[string]image{
		"artifact": s.newImage(1, func(m *ocispec.Manifest) {
			m.Subject, m.ArtifactType, m.Annotations = &desc, "application/vnd.example.sbom", notes
			m.Config.MediaType = ocispec.MediaTypeEmptyJSON
		}),
		"config": s.newImage(1, func(m *ocispec.Manifest) {
			m.Subject = &desc
			m.Config.MediaType = "application/vnd.example.signature"
		}),
		"index": s.newIndex(func(x *ocispec.Index) {
			x.Subject, x.Annotations = &desc, map[string]string{"x": fmt.Sprintf("%x", random(s, 4))}
		}, subject),
		"typed index": s.newIndex(func(x *ocispec.Index) { x.Subject, x.ArtifactType = &desc, "application/vnd.example.sbom" }, subject),
	}
	for name, im := range byName {
		re := s.put(string(im.digest), im)
		s.want(re, 201)
		if got := re.Header.Get("OCI-Subject"); got != string(subject.digest) {
			s.Errorf("%s: OCI-Subject is %q", name, got) // "MUST respond with the response header OCI-Subject"
		}
	}
	return subject, byName
}

// "Each descriptor is of an image manifest or index … The descriptors MUST include an artifactType … MUST include annotations"
func discoverReferrers(s *suite) {
	subject, set := s.referrerSet()
	x, re := s.referrers(subject.digest, "")
	if re.Header.Get("OCI-Filters-Applied") != "" {
		s.Error("a filter was applied that nobody asked for")
	}
	if len(x.Manifests) != len(set) {
		s.Fatalf("there are %d referrers: %s", len(x.Manifests), re.body)
	}
	types := map[string]string{
		"artifact": "application/vnd.example.sbom", "config": "application/vnd.example.signature", "index": "", "typed index": "application/vnd.example.sbom",
	}
	for name, im := range set {
		i := slices.IndexFunc(x.Manifests, func(d ocispec.Descriptor) bool { return d.Digest == im.digest })
		if i < 0 {
			s.Errorf("%s is missing", name)
			continue
		}
		d := x.Manifests[i]
		if d.Size != int64(len(im.raw)) || d.MediaType != im.mediaType || d.ArtifactType != types[name] {
			s.Errorf("%s is listed as %+v", name, d)
		}
		if name == "artifact" && d.Annotations["org.example.note"] != "one" {
			s.Errorf("%s has annotations %v", name, d.Annotations)
		}
	}
	re = s.do("DELETE", s.path("manifests/%s", set["artifact"].digest), nil, nil)
	if re.StatusCode == 202 {
		if x, _ := s.referrers(subject.digest, ""); len(x.Manifests) != len(set)-1 {
			s.Errorf("a deleted referrer is still listed: %v", x.Manifests)
		}
	}
}

// "If filtering is requested and applied, the response MUST include a header OCI-Filters-Applied: artifactType"
func discoverReferrersFilter(s *suite) {
	subject, set := s.referrerSet()
	x, re := s.referrers(subject.digest, "?artifactType=application/vnd.example.sbom")
	s.wantHeader(re, "OCI-Filters-Applied", "artifactType")
	if len(x.Manifests) != 2 {
		s.Errorf("the filter gives %s", re.body)
	}
	x, _ = s.referrers(subject.digest, "?artifactType=application%2Fvnd.example.signature")
	if len(x.Manifests) != 1 || x.Manifests[0].Digest != set["config"].digest {
		s.Errorf("the filter gives %v", x.Manifests)
	}
	x, re = s.referrers(subject.digest, "?artifactType=nothing/like.it")
	s.wantHeader(re, "OCI-Filters-Applied", "artifactType")
	if len(x.Manifests) != 0 {
		s.Errorf("the filter gives %v", x.Manifests)
	}
}

// "A Link header MUST be included in the response when the descriptor list cannot be returned in a single manifest."
func discoverReferrersPages(s *suite) {
	subject := s.newImage(0, nil)
	s.mustPut("v1", subject)
	desc := subject.descriptor()
	big := strings.Repeat("x", 900<<10)
	want := map[digest.Digest]bool{}
	for i := range 9 {
		x := s.newIndex(func(x *ocispec.Index) {
			x.Subject, x.ArtifactType = &desc, "application/big"
			x.Annotations = map[string]string{"big": big, "i": fmt.Sprint(i)}
		})
		s.mustPut(string(x.digest), x)
		want[x.digest] = true
	}
	pages := 0
	for next := s.path("referrers/%s?artifactType=application/big", subject.digest); next != ""; pages++ {
		re := s.do("GET", next, nil, nil)
		s.want(re, 200)
		s.wantHeader(re, "OCI-Filters-Applied", "artifactType")
		if len(re.body) > 4<<20 {
			s.Errorf("a page has %d bytes", len(re.body))
		}
		for _, d := range s.index(re).Manifests {
			if !want[d.Digest] {
				s.Errorf("%s comes twice, or is none", d.Digest)
			}
			delete(want, d.Digest)
		}
		next = s.nextLink(re)
	}
	if pages < 2 || len(want) > 0 {
		s.Errorf("%d pages, %d missing", pages, len(want))
	}
}

// "MUST initially accept an otherwise valid manifest with a subject field that references a manifest that does not exist in the repository"
func discoverReferrersEarly(s *suite) {
	subject := s.newImage(0, nil)
	desc := subject.descriptor()
	im := s.newImage(0, func(m *ocispec.Manifest) { m.Subject, m.ArtifactType = &desc, "application/early" })
	re := s.put("early", im)
	s.want(re, 201)
	s.wantHeader(re, "OCI-Subject", string(subject.digest))
	if x, _ := s.referrers(subject.digest, ""); len(x.Manifests) != 1 {
		s.Errorf("there are %v", x.Manifests)
	}
	s.mustPut("late", subject)
	if x, _ := s.referrers(subject.digest, ""); len(x.Manifests) != 1 {
		s.Errorf("with the subject there are %v", x.Manifests)
	}
}

// "If the request is invalid, such as a <digest> with an invalid syntax, a 400 Bad Request MUST be returned."
func discoverReferrersBad(s *suite) {
	s.push([]byte("the repository is there"))
	for _, bad := range []string{"sha256:x", "latest", "sha256", "sha256:" + strings.Repeat("z", 64)} {
		s.want(s.do("GET", s.path("referrers/%s", bad), nil, nil), 400)
	}
}

// "Registries MUST include preexisting image manifests that are listed in an image index tagged with the referrers tag schema and have a valid subject"
//
// The manifests are pushed to a registry that knows referrers, so they are listed twice: once each is right. Entries that lie must not be listed.
func discoverReferrersFallback(s *suite) {
	subject := s.newImage(0, nil)
	s.mustPut("v1", subject)
	desc := subject.descriptor()
	im := s.newImage(0, func(m *ocispec.Manifest) { m.Subject, m.ArtifactType = &desc, "application/old" })
	s.mustPut(string(im.digest), im)
	liar := s.newImage(0, nil)
	s.mustPut(string(liar.digest), liar)
	list := s.newIndex(nil, im, liar)
	tag := strings.Replace(string(subject.digest), ":", "-", 1)
	s.mustPut(tag, list)
	x, _ := s.referrers(subject.digest, "")
	if len(x.Manifests) != 1 || x.Manifests[0].Digest != im.digest {
		s.Errorf("there are %v", x.Manifests)
	}
	re := s.do("GET", s.path("manifests/%s", tag), nil, nil) // old clients still read the tag
	s.want(re, 200)
}

func discoverReferrers512(s *suite) {
	subject := s.newImage(0, nil)
	d := digest.SHA512.FromBytes(subject.raw)
	re := s.put(string(d), subject)
	s.want(re, 201)
	s.wantHeader(re, "Docker-Content-Digest", string(d))
	desc := subject.descriptor()
	desc.Digest = d
	im := s.newImage(0, func(m *ocispec.Manifest) { m.Subject = &desc })
	s.mustPut("referrer", im)
	if x, _ := s.referrers(d, ""); len(x.Manifests) != 1 {
		s.Errorf("there are %v", x.Manifests)
	}
}
