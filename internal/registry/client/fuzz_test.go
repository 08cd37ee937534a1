package client

import (
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"unicode"

	"corten.dev/corten/internal/registry/client/rules"
)

func FuzzChallenges(f *testing.F) {
	for _, s := range []string{`Bearer realm="https://a/b",service="x",scope="repository:a:pull,push"`, `Negotiate abc==, Basic realm=here`, `Basic realm="a \"b`, `a=b, c`, "Bearer,,,=\x00"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		list := challenges(http.Header{"Www-Authenticate": {s, s}})
		if len(list) > maxChallenges {
			t.Errorf("%d challenges", len(list))
		}
		for _, ch := range list {
			if ch.scheme == "" || ch.scheme != strings.ToLower(ch.scheme) || len(ch.params) > maxParams {
				t.Errorf("%q: %+v", s, ch)
			}
			if u, err := (&site{base: &url.URL{Scheme: "https", Host: "x"}}).realm(ch); err == nil && (u.Scheme != "https" || u.Host == "" || u.User != nil) {
				t.Errorf("%q: realm %v", s, u)
			}
		}
	})
}

func FuzzLinks(f *testing.F) {
	for _, s := range []string{`</v2/a/tags/list?n=1&last=b>; rel="next"`, `<a>; rel=prev, <b>; title="x;,"; rel="last next"`, `<`, `<a>;;;rel`, `<a>;rel="next`} {
		f.Add(s)
	}
	s := &site{base: &url.URL{Scheme: "https", Host: "reg.example"}, domain: "reg.example"}
	at := &url.URL{Scheme: "https", Host: "reg.example", Path: "/v2/a/tags/list"}
	f.Fuzz(func(t *testing.T, link string) {
		next, err := s.nextPage(at, http.Header{"Link": {link}}, map[string]bool{})
		if err == nil && next != nil && (!sameOrigin(next, at) || next.RequestURI() == at.RequestURI()) {
			t.Errorf("%q leads to %v", link, next)
		}
	})
}

func FuzzLocation(f *testing.F) {
	for _, s := range []string{"/v2/a/blobs/uploads/1?_state=x", "http://reg.example/x", "https://other.example:5/x", "//other", "http://other/", "file:///x", "\x00", "https://me:pw@x/"} {
		f.Add(s)
	}
	s := &site{base: &url.URL{Scheme: "https", Host: "reg.example"}, domain: "reg.example"}
	f.Fuzz(func(t *testing.T, location string) {
		at := &url.URL{Scheme: "https", Host: "reg.example", Path: "/v2/a/blobs/uploads/"}
		u := &upload{s: s}
		resp := &http.Response{Header: http.Header{"Location": {location}}, Request: &http.Request{Method: "POST", URL: at}}
		if u.moved(resp, true) != nil || s.allowed(&call{}, u.place, u.place) != nil {
			return
		}
		if u.place.Scheme != "https" || u.place.Host == "" || u.place.User != nil {
			t.Errorf("%q leads to %v", location, u.place)
		}
	})
}

func FuzzRefusals(f *testing.F) {
	f.Add([]byte(`{"errors":[{"code":"DENIED","message":"no","detail":{}}]}`), "application/json", 403)
	f.Add([]byte(`{"details":"no hidden-word"}`), "", 401)
	f.Add([]byte("<html>"), "text/html", 500)
	f.Add([]byte(`{"errors":[{"code":7}]}`), "text/plain", 404)
	f.Fuzz(func(t *testing.T, body []byte, kind string, status int) {
		resp := &http.Response{StatusCode: status, Header: http.Header{"Content-Type": {kind}}, Body: io.NopCloser(strings.NewReader(string(body))), Request: &http.Request{Method: "GET", URL: &url.URL{Scheme: "https", Host: "x"}}}
		text := refusal(resp, []string{"hidden-word"}).Error()
		if len(text) > 5*maxWords || strings.Contains(text, "hidden-word") || strings.ContainsFunc(text, func(r rune) bool { return !unicode.IsPrint(r) }) || text == "" {
			t.Errorf("%.300q", text)
		}
	})
}

func FuzzNumbers(f *testing.F) {
	f.Add("bytes 0-9/10", "0-9")
	f.Add("bytes 0-9223372036854775807/*", "0-9223372036854775807")
	f.Fuzz(func(t *testing.T, contentRange, offset string) {
		if r, ok := parseContentRange(contentRange); ok && (r.from < 0 || r.to <= r.from || r.size >= 0 && r.to > r.size) {
			t.Errorf("%q: %+v", contentRange, r)
		}
		if n, ok := parseOffset(offset); ok && n < 0 {
			t.Errorf("%q: %d", offset, n)
		}
	})
}

func FuzzNoProxy(f *testing.F) {
	f.Add("a.example,.b,*,10.0.0.0/8,[::1]:5,x:1", "https://a.example:5/")
	f.Fuzz(func(t *testing.T, list, place string) {
		if u, err := url.Parse(place); err == nil {
			excepted(strings.Split(list, ","), u)
		}
	})
}

func FuzzRules(f *testing.F) {
	f.Add("*.example.com/team/*", "{1}/{2}/{rest}", "x.example.com:5000", "team/app/web")
	f.Add("*", "{host}/{path}", "docker.io", "library/busybox")
	f.Fuzz(func(t *testing.T, match, rewrite, domain, path string) {
		r := rules.Rule{Match: match, Location: "https://x.example", Rewrite: rewrite}
		if r.Check() != nil {
			return
		}
		m, ok := r.Fit(domain, path)
		if !ok {
			return
		}
		if out, err := m.Rewrite(rewrite); err == nil && out != path && (strings.Contains(out, "..") || strings.HasPrefix(out, "/") || strings.ContainsAny(out, "?#%\\ \n")) {
			t.Errorf("%s %s: %q", domain, path, out)
		}
	})
}
