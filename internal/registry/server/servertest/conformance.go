package servertest

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Target is a registry under test.
type Target struct {
	URL    string       // "http://127.0.0.1:5000"
	Client *http.Client // nil: a plain one
	// Prepare is called for each request, to add an Authorization header; may be nil.
	Prepare func(*http.Request)
	// Namespace is where the suite makes its repositories; "conformance" if empty.
	Namespace string
	// NoCatalog skips what asks for the list of all repositories, which not everybody may see.
	NoCatalog bool
}

// Conformance runs the tests of the specification's four workflows.
func Conformance(t *testing.T, target Target) {
	if target.Namespace == "" {
		target.Namespace = "conformance"
	}
	if target.Client == nil {
		transport := &http.Transport{}
		target.Client = &http.Client{Transport: transport}
		t.Cleanup(transport.CloseIdleConnections)
	}
	workflows := []struct {
		name  string
		tests []conformanceTest
	}{
		{"Pull", pullTests},
		{"Push", pushTests},
		{"Discovery", discoveryTests},
		{"Management", managementTests},
	}
	for _, w := range workflows {
		t.Run(w.name, func(t *testing.T) {
			for i, test := range w.tests {
				t.Run(test.name, func(t *testing.T) {
					repo := fmt.Sprintf("%s/%s/t%d", target.Namespace, strings.ToLower(w.name), i)
					test.run(&suite{T: t, target: target, repo: repo})
				})
			}
		})
	}
}

type conformanceTest struct {
	name string
	run  func(s *suite)
}

// suite is one test: its repository is its own.
type suite struct {
	*testing.T
	target Target
	repo   string
}

// reply is an answer with its body read.
type reply struct {
	*http.Response
	body []byte
}

// header is a list of name, value pairs.
type header []string

// do sends a request. A path that is not a URL is relative to the registry.
func (s *suite) do(method, path string, body []byte, h header) reply {
	s.Helper()
	var r io.Reader
	if body != nil {
		r = bytes.NewReader(body)
	}
	return s.send(method, path, r, h)
}

func (s *suite) send(method, path string, body io.Reader, h header) reply {
	s.Helper()
	target := path
	if strings.HasPrefix(path, "/") {
		target = s.target.URL + path
	}
	req, err := http.NewRequestWithContext(context.Background(), method, target, body)
	if err != nil {
		s.Fatal(err)
	}
	for i := 0; i+1 < len(h); i += 2 {
		req.Header.Set(h[i], h[i+1])
	}
	if s.target.Prepare != nil {
		s.target.Prepare(req)
	}
	resp, err := s.target.Client.Do(req)
	if err != nil {
		s.Fatal(err)
	}
	data, err := io.ReadAll(resp.Body)
	if cerr := resp.Body.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		s.Fatalf("%s %s: body: %v", method, path, err)
	}
	re := reply{Response: resp, body: data}
	s.checkErrors(re)
	return re
}

// broken sends a request whose body breaks off, and returns the error that it ends with.
func (s *suite) broken(method, url string, body io.Reader, h header) error {
	s.Helper()
	req, err := http.NewRequestWithContext(context.Background(), method, url, body)
	if err != nil {
		s.Fatal(err)
	}
	for i := 0; i+1 < len(h); i += 2 {
		req.Header.Set(h[i], h[i+1])
	}
	if s.target.Prepare != nil {
		s.target.Prepare(req)
	}
	resp, err := s.target.Client.Do(req)
	if err == nil {
		return resp.Body.Close()
	}
	return err
}

// checkErrors holds for every answer: a JSON body of a refusal has the one format, with the codes of the list.
func (s *suite) checkErrors(re reply) {
	s.Helper()
	if re.StatusCode < 400 || re.StatusCode >= 500 || re.Request.Method == http.MethodHead || len(re.body) == 0 {
		return
	}
	if !strings.HasPrefix(re.Header.Get("Content-Type"), "application/json") {
		return
	}
	var doc struct {
		Errors []struct {
			Code    string `json:"code"`
			Message any    `json:"message"`
		} `json:"errors"`
	}
	if err := json.Unmarshal(re.body, &doc); err != nil || len(doc.Errors) == 0 {
		s.Errorf("refusal is not the JSON it must be: %s", re.body)
	}
	for _, e := range doc.Errors {
		if !strings.Contains(codes, " "+e.Code+" ") {
			s.Errorf("error code %q is not of the list", e.Code)
		}
		if _, ok := e.Message.(string); !ok && e.Message != nil {
			s.Errorf("message is %v, no string", e.Message)
		}
	}
}

const codes = " BLOB_UNKNOWN BLOB_UPLOAD_INVALID BLOB_UPLOAD_UNKNOWN DIGEST_INVALID MANIFEST_BLOB_UNKNOWN MANIFEST_INVALID MANIFEST_UNKNOWN " +
	"NAME_INVALID NAME_UNKNOWN SIZE_INVALID UNAUTHORIZED DENIED UNSUPPORTED TOOMANYREQUESTS "

// want checks the status of an answer.
func (s *suite) want(re reply, status ...int) {
	s.Helper()
	for _, st := range status {
		if re.StatusCode == st {
			return
		}
	}
	s.Fatalf("%s %s: %d %.300s, want %v", re.Request.Method, re.Request.URL.Path, re.StatusCode, re.body, status)
}

func (s *suite) wantHeader(re reply, name, value string) {
	s.Helper()
	if got := re.Header.Get(name); got != value {
		s.Errorf("%s %s: %s is %q, want %q", re.Request.Method, re.Request.URL.Path, name, got, value)
	}
}

func (s *suite) wantCode(re reply, code string) {
	s.Helper()
	if !bytes.Contains(re.body, []byte(`"`+code+`"`)) {
		s.Errorf("%s %s: %.300s, want code %s", re.Request.Method, re.Request.URL.Path, re.body, code)
	}
}

// path is a path below the repository.
func (s *suite) path(format string, args ...any) string {
	return "/v2/" + s.repo + "/" + fmt.Sprintf(format, args...)
}

// where is the Location of an answer, made absolute, with more query parameters.
func (s *suite) where(re reply, query string) string {
	s.Helper()
	loc, err := re.Location()
	if err != nil {
		s.Fatalf("%s %s: no usable Location: %v", re.Request.Method, re.Request.URL.Path, err)
	}
	if query != "" {
		if loc.RawQuery != "" {
			loc.RawQuery += "&"
		}
		loc.RawQuery += query
	}
	return loc.String()
}

func digestQuery(d digest.Digest) string { return "digest=" + url.QueryEscape(string(d)) }

// start opens an upload session.
func (s *suite) start() reply {
	s.Helper()
	re := s.do("POST", s.path("blobs/uploads/"), nil, header{"Content-Length", "0"})
	s.want(re, 202)
	return re
}

// push uploads a blob by POST and PUT.
func (s *suite) push(data []byte) ocispec.Descriptor { return s.pushTo(s.repo, data) }

func (s *suite) pushTo(repo string, data []byte) ocispec.Descriptor {
	s.Helper()
	d := digest.FromBytes(data)
	re := s.do("POST", "/v2/"+repo+"/blobs/uploads/", nil, nil)
	s.want(re, 202)
	re = s.do("PUT", s.where(re, digestQuery(d)), data, header{"Content-Type", "application/octet-stream"})
	s.want(re, 201)
	return ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: d, Size: int64(len(data))}
}

// image is a manifest as bytes.
type image struct {
	raw       []byte
	mediaType string
	digest    digest.Digest
}

func (im image) descriptor() ocispec.Descriptor {
	return ocispec.Descriptor{MediaType: im.mediaType, Digest: im.digest, Size: int64(len(im.raw))}
}

func (s *suite) encode(v any, mediaType string) image {
	s.Helper()
	raw, err := json.MarshalIndent(v, "", "   ") // in a way that no registry would write it itself
	if err != nil {
		s.Fatal(err)
	}
	return image{raw: raw, mediaType: mediaType, digest: digest.FromBytes(raw)}
}

// newImage pushes a config and layers with random content and returns a manifest of them, which change may change; it is not pushed.
func (s *suite) newImage(layers int, change func(*ocispec.Manifest)) image {
	s.Helper()
	config := s.push(fmt.Appendf(nil, `{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[]},"x":"%x"}`, random(s, 8)))
	config.MediaType = ocispec.MediaTypeImageConfig
	m := ocispec.Manifest{MediaType: ocispec.MediaTypeImageManifest, Config: config, Layers: []ocispec.Descriptor{}}
	m.SchemaVersion = 2
	for range layers {
		m.Layers = append(m.Layers, s.push(random(s, 700)))
	}
	if change != nil {
		change(&m)
	}
	return s.encode(m, m.MediaType)
}

func (s *suite) newIndex(change func(*ocispec.Index), entries ...image) image {
	s.Helper()
	x := ocispec.Index{MediaType: ocispec.MediaTypeImageIndex, Manifests: []ocispec.Descriptor{}}
	x.SchemaVersion = 2
	for _, e := range entries {
		x.Manifests = append(x.Manifests, e.descriptor())
	}
	if change != nil {
		change(&x)
	}
	return s.encode(x, x.MediaType)
}

// put pushes a manifest by tag or digest.
func (s *suite) put(ref string, im image) reply {
	s.Helper()
	return s.do("PUT", s.path("manifests/%s", ref), im.raw, header{"Content-Type", im.mediaType})
}

func (s *suite) mustPut(ref string, im image) {
	s.Helper()
	s.want(s.put(ref, im), 201)
}

func (s *suite) wantLength(re reply, n int) {
	s.Helper()
	s.wantHeader(re, "Content-Length", strconv.Itoa(n))
}

func (s *suite) index(re reply) ocispec.Index {
	s.Helper()
	var x ocispec.Index
	if err := json.Unmarshal(re.body, &x); err != nil {
		s.Fatalf("no index: %v: %.300s", err, re.body)
	}
	return x
}

func (s *suite) tags(query string) []string {
	s.Helper()
	re := s.do("GET", s.path("tags/list%s", query), nil, nil)
	s.want(re, 200)
	return s.tagsOf(re)
}

func (s *suite) tagsOf(re reply) []string {
	s.Helper()
	var list struct {
		Name string   `json:"name"`
		Tags []string `json:"tags"`
	}
	if err := json.Unmarshal(re.body, &list); err != nil || list.Name != s.repo || list.Tags == nil {
		s.Fatalf("no list of tags: %v: %.300s", err, re.body)
	}
	return list.Tags
}

// nextLink is the URL of the following page, or empty.
func (s *suite) nextLink(re reply) string {
	s.Helper()
	link := re.Header.Get("Link")
	if link == "" {
		return ""
	}
	target, params, ok := strings.Cut(link, ">")
	if !ok || !strings.HasPrefix(target, "<") || !strings.Contains(params, `rel="next"`) {
		s.Fatalf("Link is %q", link)
	}
	u, err := re.Request.URL.Parse(target[1:])
	if err != nil {
		s.Fatal(err)
	}
	return u.String()
}

func withQuery(loc, query string) string {
	if strings.Contains(loc, "?") {
		return loc + "&" + query
	}
	return loc + "?" + query
}
