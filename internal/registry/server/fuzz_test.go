package server

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
)

// names is the expression of the specification.
var names = regexp.MustCompile(`^[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*(\/[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*)*$`)

// A path is either no route, or one that gives the path again; and a name that is accepted is one that the specification accepts, so that it can
// neither leave its folder nor run into what is kept beside repositories.
func FuzzRoute(f *testing.F) {
	for _, path := range []string{
		"/v2/", "/v2", "/v2/_catalog", "/v2/a/tags/list", "/v2/a/b/manifests/v1", "/v2/a/blobs/sha256:00", "/v2/a/blobs/uploads/", "/v2/a/blobs/uploads",
		"/v2/a/blobs/uploads/x", "/v2/a/referrers/sha256:00", "/v2/tags/list/tags/list", "/v2/manifests/manifests/manifests", "/v2//blobs/uploads/",
		"/v2/blobs/uploads/", "/v2/a/../b/manifests/x", "/v2/_tags/manifests/x", "/v2/a__b/tags/list", "/v2/a___b/tags/list", "/v2/a\x00/tags/list",
	} {
		f.Add(path)
	}
	f.Fuzz(func(t *testing.T, path string) {
		rt := parseRoute(path)
		var again []string
		switch rt.kind {
		case routeTags:
			again = []string{"/v2/" + rt.name + "/tags/list"}
		case routeManifest:
			again = []string{"/v2/" + rt.name + "/manifests/" + rt.ref}
		case routeBlob:
			again = []string{"/v2/" + rt.name + "/blobs/" + rt.ref}
		case routeReferrers:
			again = []string{"/v2/" + rt.name + "/referrers/" + rt.ref}
		case routeUploads:
			again = []string{"/v2/" + rt.name + "/blobs/uploads/", "/v2/" + rt.name + "/blobs/uploads"}
		case routeUpload:
			again = []string{"/v2/" + rt.name + "/blobs/uploads/" + rt.ref}
		default:
			return
		}
		if path != again[0] && path != again[len(again)-1] {
			t.Errorf("%q is read as %+v", path, rt)
		}
		if strings.Contains(rt.ref, "/") {
			t.Errorf("%q has the reference %q", path, rt.ref)
		}
		if valid := validName(rt.name); valid != (names.MatchString(rt.name) && len(rt.name) <= 255) {
			t.Errorf("name %q: valid is %v", rt.name, valid)
		}
		if d, ok := parseDigest(rt.ref); ok && strings.ContainsAny(linkKey("x", d)[len("repositories/x/"):], `.\`) {
			t.Errorf("digest %q makes the key %q", rt.ref, linkKey("x", d))
		}
	})
}

// net/http judges: what we send as a part is what it would send.
func FuzzRange(f *testing.F) {
	for _, h := range []string{"bytes=0-0", "bytes=5-", "bytes=-5", "bytes=0-99999", "bytes=-0", "bytes=5-2", "bytes=a-b", "bytes=0-1,2-3", "lines=1-2", "bytes=--1", "bytes= 0-1", "bytes=\f-1"} {
		f.Add(h, uint16(10))
		f.Add(h, uint16(0))
	}
	f.Fuzz(func(t *testing.T, header string, size uint16) {
		s, ok := parseRange(header, int64(size))
		if !ok {
			return
		}
		if s.start < 0 || s.length < 0 || s.start+s.length > int64(size) || !s.partial && s.length != int64(size) {
			t.Fatalf("%q of %d gives %+v", header, size, s)
		}
		if !s.partial || strings.ContainsAny(header, "\r\n") {
			return
		}
		req := httptest.NewRequest("GET", "/", nil)
		req.Header.Set("Range", header)
		w := httptest.NewRecorder()
		http.ServeContent(w, req, "", time.Time{}, bytes.NewReader(make([]byte, size)))
		if want := fmt.Sprintf("bytes %d-%d/%d", s.start, s.start+s.length-1, size); w.Code != 206 || w.Header().Get("Content-Range") != want {
			t.Errorf("%q of %d: %s, but net/http says %d %s", header, size, want, w.Code, w.Header().Get("Content-Range"))
		}
	})
}

func FuzzContentRange(f *testing.F) {
	for _, h := range []string{"0-0", "0-9223372036854775807", "5-4", "1-", "-1", "bytes 0-5/6", "0-18446744073709551615", "+1-2", "0x1-2"} {
		f.Add(h)
	}
	strict := regexp.MustCompile(`^(bytes )?[0-9]+-[0-9]+(/.*)?$`)
	f.Fuzz(func(t *testing.T, header string) {
		start, length, ok := parseContentRange(header)
		if !ok {
			return
		}
		if start < 0 || length < 1 || start+(length-1) < start || !strict.MatchString(strings.ReplaceAll(header, "\n", " ")) {
			t.Errorf("%q is read as %d bytes from %d", header, length, start)
		}
	})
}

// What was accepted as a manifest names only digests that can be kept, and can be listed as a referrer.
func FuzzDocument(f *testing.F) {
	d := digest.FromString("x")
	f.Add("application/vnd.oci.image.manifest.v1+json", []byte(`{"schemaVersion":2,"config":{"digest":"`+string(d)+`","size":1},"layers":[]}`))
	f.Add("", []byte(`{"schemaVersion":2,"manifests":[{"digest":"`+string(d)+`","size":1}],"subject":{"digest":"`+string(d)+`"}}`))
	f.Add("x/y;z", []byte(`{"mediaType":"x/y","blobs":[{"digest":"sha512:00"}],"annotations":{"a":"b"}}`))
	f.Add("application/json", []byte(`[]`))
	f.Fuzz(func(t *testing.T, contentType string, raw []byte) {
		doc, err := parseDocument(contentType, raw)
		if err != nil {
			return
		}
		for _, s := range digests(doc) {
			if _, ok := parseDigest(s); !ok {
				t.Errorf("names %q", s)
			}
		}
		if strings.ContainsAny(doc.mediaType, "\r\n ") {
			t.Errorf("media type is %q", doc.mediaType)
		}
		if _, err := json.Marshal(doc.descriptor(d, 1)); err != nil {
			t.Error(err)
		}
		again, err := parseDocument(doc.mediaType, raw)
		if err != nil || again.mediaType != doc.mediaType {
			t.Errorf("read again it is %q, not %q: %v", again.mediaType, doc.mediaType, err)
		}
		m := manifestRecord{recordHead: recordHead{MediaType: doc.mediaType}, raw: raw}
		value, err := m.encode()
		if err != nil {
			t.Fatal(err)
		}
		back, err := decodeManifest(value)
		if err != nil || !bytes.Equal(back.raw, raw) || back.MediaType != m.MediaType {
			t.Errorf("kept and read it is different: %v", err)
		}
	})
}

func digests(doc document) (all []string) {
	for _, desc := range append(doc.blobs, doc.manifests...) {
		all = append(all, string(desc.Digest))
	}
	if doc.subject != nil {
		all = append(all, string(doc.subject.Digest))
	}
	return all
}
