package client

import (
	"bytes"
	"compress/gzip"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/manifest"
)

var ann = Credentials{Username: "ann", Password: "s3cr3t-word", IdentityToken: ""}

// wantBasic answers those who are not ann with a challenge.
func wantBasic(h http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if user, pass, _ := r.BasicAuth(); user != ann.Username || pass != ann.Password {
			w.Header().Set("WWW-Authenticate", `Basic realm="x"`)
			w.WriteHeader(401)
			return
		}
		h(w, r)
	}
}

func hasCredentials(r *http.Request) bool {
	return r.Header.Get("Authorization") != "" || r.Header.Get("Cookie") != "" || r.URL.User != nil
}

// "unauthorized: authentication required" for a blob that is elsewhere sent people to look for a mistake in their login, which had nothing to do with it.
func TestRefusedElsewhere(t *testing.T) {
	_, d := noise(100)
	for status, want := range map[int]string{
		http.StatusUnauthorized: `/blob": unauthorized: authentication required`, http.StatusForbidden: `/blob": denied: requested access to the resource is denied`,
		http.StatusTeapot: `/blob": received unexpected HTTP status: 418 I'm a teapot`,
	} {
		cdn := serve(t, true, func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(status) })
		reg := serve(t, true, func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, cdn.URL+"/blob?signature=secret-link", http.StatusTemporaryRedirect)
		})
		err := repo(t, quick(t, fixed{reg.hosts().list, cdn.Client().Transport}), "team/app", ann).Fetch(t.Context(), d, &sink{})
		if err == nil || !strings.Contains(err.Error(), `Get "`+cdn.URL+want) || strings.Count(err.Error(), cdn.URL) != 1 || strings.Contains(err.Error(), "secret-link") {
			t.Errorf("%d: %v", status, err)
		}
	}
}

// Blobs may be elsewhere (a CDN): the way there is followed, with Range, and without a word about the caller. One that leads back home is
// trusted again.
func TestRedirectsTakeNoCredentials(t *testing.T) {
	raw, d := noise(100_000)
	var reg *served
	cdn := serve(t, true, func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/home":
			http.Redirect(w, r, reg.URL+"/v2/team/app/blobs/final", http.StatusFound)
		default:
			w.Header().Set("WWW-Authenticate", `Basic realm="give me more"`)
			giveBlob(raw)(w, r)
		}
	})
	target := cdn.URL + "/blob?signature=secret-link"
	reg = serve(t, true, wantBasic(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasSuffix(r.URL.Path, "/final") {
			giveBlob(raw)(w, r)
			return
		}
		w.Header().Set("Set-Cookie", "session=secret")
		http.Redirect(w, r, target, http.StatusTemporaryRedirect)
	}))
	c := quick(t, fixed{reg.hosts().list, cdn.Client().Transport})
	for _, target = range []string{target, cdn.URL + "/home"} {
		dst := &sink{}
		dst.Buffer.Write(raw[:1000])
		if err := repo(t, c, "team/app", ann).Fetch(t.Context(), d, dst); err != nil || !bytes.Equal(dst.Bytes(), raw) {
			t.Fatalf("%d bytes: %v", dst.Len(), err)
		}
	}
	if n := cdn.count(hasCredentials); n != 0 {
		t.Error("credentials went to another host")
	}
	if n := cdn.count(func(r *http.Request) bool { return r.Header.Get("Range") == "bytes=1000-" }); n != 2 {
		t.Error("the range was lost on the way")
	}
	// Another host's 401 does not bring out the password either, and its refusal does not show the link.
	refusing := serve(t, true, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("WWW-Authenticate", `Basic realm="give me more", Bearer realm="`+reg.URL+`/token"`)
		w.WriteHeader(401)
	})
	target = refusing.URL + "/blob?signature=secret-link"
	err := repo(t, c, "team/app", ann).Fetch(t.Context(), d, &sink{})
	if err == nil || strings.Contains(err.Error(), "secret-link") || refusing.count(hasCredentials) != 0 {
		t.Errorf("got %v", err)
	}
}

func TestRedirectsThatAreRefused(t *testing.T) {
	plain := serve(t, false, wantBasic(func(w http.ResponseWriter, r *http.Request) { giveManifest(w, emptyManifest) }))
	other := serve(t, true, func(w http.ResponseWriter, r *http.Request) { giveManifest(w, emptyManifest) })
	target := ""
	var hops atomic.Int64
	reg := serve(t, true, wantBasic(func(w http.ResponseWriter, r *http.Request) {
		if target == "loop" {
			http.Redirect(w, r, fmt.Sprintf("/v2/x?%d", hops.Add(1)), http.StatusFound)
			return
		}
		w.Header().Set("Location", target)
		w.WriteHeader(302)
	}))
	c := quick(t, fixed{reg.hosts().list, other.Client().Transport})
	for _, tc := range []struct{ target, want string }{
		{"loop", "stopped after 10 redirects"},
		{plain.URL + "/x", "leads from https to http://"},
		{"http://" + strings.TrimPrefix(reg.URL, "https://") + "/x", "leads from https to http://"},
		{"file:///etc/passwd", "no place of the web"},
		{"https://169.254.169.254/latest/meta-data", "of this host or link only"},
		{"https://[fe80::1]/", "of this host or link only"},
		{"https://0.0.0.0/", "of this host or link only"},
		{"https://[::ffff:169.254.169.254]/", "of this host or link only"},
		{"https://ann:x@other.example/", "no place of the web"},
		{"", "redirect to nowhere"},
		{"https://%zz/", "redirect to nowhere"},
	} {
		target = tc.target
		_, err := repo(t, c, "team/app", ann).Resolve(t.Context(), "1")
		if err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: got %v, want %q", tc.target, err, tc.want)
		}
	}
	if n := plain.count(func(*http.Request) bool { return true }); n != 0 {
		t.Error("a redirect to http was followed for a manifest")
	}
	if hops.Load() != 11 {
		t.Errorf("%d hops", hops.Load())
	}
	// A blob is checked by its digest, so it may come that way; the password may not.
	target = plain.URL + "/x"
	_, d := noise(10)
	if err := repo(t, c, "team/app", ann).Fetch(t.Context(), d, &sink{}); err == nil {
		t.Error("a blob from a place that wants a password")
	}
	if n := plain.count(hasCredentials); n != 0 {
		t.Error("credentials went out in the clear")
	}
}

// A host name that turns out to be the metadata service of a cloud, or ourselves.
func TestPlacesAreCheckedWhenDialled(t *testing.T) {
	table, err := NewHosts(HostsOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		domain, host string
		refused      bool
	}{{"reg.example", "localhost", true}, {"localhost:5000", "localhost", false}} {
		u := mustURL(t, "https://"+tc.host+":1/")
		req, err := http.NewRequest("GET", u.String(), nil)
		if err != nil {
			t.Fatal(err)
		}
		_, err = table.Way(u, tc.domain).RoundTrip(req.WithContext(t.Context()))
		if err == nil || strings.Contains(err.Error(), "of this host or link only") != tc.refused {
			t.Errorf("%s leads to %s: %v", tc.domain, tc.host, err)
		}
	}
}

func TestRealmsThatAreRefused(t *testing.T) {
	realm := ""
	reg := serve(t, true, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("WWW-Authenticate", `Bearer realm="`+realm+`",service="s"`)
		w.WriteHeader(401)
	})
	plain := serve(t, false, func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, `{"token":"x"}`) })
	c := quick(t, reg.hosts())
	for _, tc := range []struct{ realm, want string }{
		{"file:///etc/passwd", "names no usable token service"},
		{"/relative", "names no usable token service"},
		{"https://me:pw@host/", "names no usable token service"},
		{"https://host:port/", "names no usable token service"},
		{plain.URL + "/token", "token service without TLS"},
		{"https://169.254.169.254/token", "of this host or link only"},
	} {
		realm = tc.realm
		_, err := repo(t, c, "team/app", ann).Resolve(t.Context(), "1")
		if err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v", realm, err)
		}
		if _, err := c.Login(t.Context(), "reg.example", ann); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("login, %s: %v", realm, err)
		}
	}
	if len(plain.seen) > 0 {
		t.Error("credentials went to a token service without TLS")
	}
}

// Token services that answer with something else than a token, or pass the caller on.
func TestBadTokenServices(t *testing.T) {
	body, status := "", 200
	thief := serve(t, true, func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, `{"token":"stolen"}`) })
	var reg *served
	reg = serve(t, true, func(w http.ResponseWriter, r *http.Request) {
		if isToken(r) {
			if status == 307 {
				http.Redirect(w, r, thief.URL, status)
				return
			}
			w.WriteHeader(status)
			fmt.Fprint(w, body)
			return
		}
		w.Header().Set("WWW-Authenticate", `Bearer realm="`+reg.URL+`/token",service="s"`)
		w.WriteHeader(401)
	})
	c := quick(t, fixed{reg.hosts().list, thief.Client().Transport})
	for _, tc := range []struct {
		status int
		body   string
		want   string
	}{
		{200, `{}`, "did not include a token"},
		{200, `{"token":"a\r\nX-Injected: 1"}`, "a token that cannot be sent"},
		{200, `{"token":"` + strings.Repeat("x", 300<<10) + `"}`, "a token that cannot be sent"},
		{200, strings.Repeat("[", 1<<20), "not valid JSON"},
		{200, `{"token":"s3cr3t-tok`, "not valid JSON"},
		{403, "<html>no", "denied"},
		{401, `{"error":"nope s3cr3t-word"}`, "unauthorized: nope ***"},
		{307, "", "unauthorized: authentication required"},
	} {
		status, body = tc.status, tc.body
		_, err := repo(t, c, "team/app", ann).Resolve(t.Context(), "1")
		if err == nil || !strings.Contains(err.Error(), tc.want) || strings.Contains(err.Error(), "s3cr3t") {
			t.Errorf("%d %.50s: %v", tc.status, tc.body, err)
		}
	}
	status = 307
	seen := len(thief.seen)
	_, err := repo(t, c, "team/app", Credentials{IdentityToken: "identity-s3cr3t"}).Resolve(t.Context(), "1")
	if err == nil || !strings.Contains(err.Error(), "is not for that place") || len(thief.seen) != seen {
		t.Errorf("a token service that leads an identity token elsewhere: %v", err)
	}
	if thief.count(hasCredentials) > 0 || len(thief.seen) == 0 {
		t.Error("the password went where the token service led")
	}
}

func TestHostileManifests(t *testing.T) {
	zipped := &bytes.Buffer{}
	zw := gzip.NewWriter(zipped)
	zw.Write([]byte(emptyManifest))
	zw.Close()
	bomb := &bytes.Buffer{}
	zw = gzip.NewWriter(bomb)
	zw.Write(bytes.Repeat([]byte(" "), manifest.MaxSize+1))
	zw.Close()
	entry := `{"mediaType":"` + manifest.OCIManifest + `","digest":"` + string(digest.FromString("x")) + `","size":1}`
	give := func(raw string, header ...string) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", manifest.OCIIndex)
			for i := 0; i < len(header); i += 2 {
				w.Header().Set(header[i], header[i+1])
			}
			fmt.Fprint(w, raw)
		}
	}
	answers := map[string]http.HandlerFunc{
		"good":        give(emptyManifest, "Content-Type", manifest.OCIIndex+"; charset=utf-8"),
		"zipped":      give(zipped.String(), "Content-Encoding", "gzip"),
		"bomb":        give(bomb.String(), "Content-Encoding", "gzip"),
		"nozip":       give(emptyManifest, "Content-Encoding", "gzip"),
		"otherdigest": give(emptyManifest, "Docker-Content-Digest", string(digest.FromString("other"))),
		"othertype":   give(emptyManifest, "Content-Type", manifest.OCIManifest),
		"big":         give(`{"schemaVersion":2,"manifests":[` + strings.Repeat(entry+",", 40_000) + entry + `]}`),
		"many":        give(`{"schemaVersion":2,"manifests":[` + strings.Repeat(entry+",", manifest.MaxEntries) + entry + `]}`),
		"nested":      give(strings.Repeat(`{"a":`, 1<<19)),
		"twice":       give(emptyManifest + emptyManifest),
		"html":        give("<html>", "Content-Type", "text/html"),
		"endless": func(w http.ResponseWriter, r *http.Request) {
			for {
				if _, err := w.Write(bytes.Repeat([]byte(" "), 1<<16)); err != nil {
					return
				}
			}
		},
		"promised": give("", "Content-Length", "99999999999"),
		"headers": func(w http.ResponseWriter, r *http.Request) {
			for i := range 4000 {
				w.Header().Set(fmt.Sprintf("X-Bomb-%d", i), strings.Repeat("x", 100))
			}
			giveManifest(w, emptyManifest)
		},
		"cut": func(w http.ResponseWriter, r *http.Request) { cutting(10, give(emptyManifest))(w, r) },
	}
	srv := serve(t, true, func(w http.ResponseWriter, r *http.Request) {
		answers[r.URL.Path[strings.LastIndexByte(r.URL.Path, '/')+1:]](w, r)
	})
	table, err := NewHosts(HostsOptions{Insecure: []string{strings.TrimPrefix(srv.URL, "https://")}})
	if err != nil {
		t.Fatal(err)
	}
	r := repo(t, quick(t, table), strings.TrimPrefix(srv.URL, "https://")+"/team/app", Credentials{})
	for name, want := range map[string]string{
		"good": "", "zipped": "", "bomb": "unpacks to more", "nozip": "gzip", "otherdigest": "but sent", "othertype": "but came as", "big": "more than 4194304",
		"many": "entries, more than", "nested": "not valid JSON", "twice": "not valid JSON", "html": "not valid JSON", "endless": "more than 4194304",
		"promised": "more than 4194304", "headers": "header", "cut": "unexpected EOF",
	} {
		doc, err := r.Resolve(t.Context(), name)
		if want == "" && (err != nil || doc.Digest != digest.FromString(emptyManifest)) || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%s: %v", name, err)
		}
	}
	answers[string(digest.FromString("other"))] = give(emptyManifest)
	if _, err := r.Resolve(t.Context(), string(digest.FromString("other"))); err == nil || !strings.Contains(err.Error(), "manifest verification failed") {
		t.Errorf("another manifest than the one asked for: %v", err)
	}
}

func TestLists(t *testing.T) {
	var reg *served
	reg = serve(t, true, func(w http.ResponseWriter, r *http.Request) {
		link := func(s string) { w.Header().Add("Link", s) }
		name := strings.Split(r.URL.Path, "/")[2]
		last := r.FormValue("last")
		switch name {
		case "pages":
			if last == "" {
				link(`</prev>; rel="prev", </v2/pages/tags/list?n=2&last=b>; title="a, b; c"; rel="next"`)
				fmt.Fprint(w, `{"tags":["b","a","b","../etc","x y"]}`)
				return
			}
			fmt.Fprint(w, `{"tags":["c"]}`)
		case "absolute":
			if last == "" {
				link(`<` + strings.Replace(reg.URL, "https", "http", 1) + `/v2/absolute/tags/list?last=b>;rel=next`)
			}
			fmt.Fprint(w, `{"tags":["c`+last+`"]}`)
		case "loop":
			link(`</v2/loop/tags/list?n=1&last=a>; rel="next"`)
			fmt.Fprint(w, `{"tags":["a"]}`)
		case "away":
			link(`<https://other.example/v2/away/tags/list>; rel="next"`)
			fmt.Fprint(w, `{"tags":["a"]}`)
		case "none":
			fmt.Fprint(w, `{"name":"none","tags":null}`)
		case "text":
			fmt.Fprint(w, `["a"]`)
		case "huge":
			fmt.Fprint(w, `{"tags":["`+strings.Repeat("x", maxPage)+`"]}`)
		case "endless":
			link(fmt.Sprintf(`</v2/endless/tags/list?last=a%d>; rel="next"`, time.Now().UnixNano()))
			fmt.Fprint(w, `{"tags":[`+strings.Repeat(`"a",`, 300_000)+`"b"]}`)
		case "missing":
			refuseJSON(w, 404, "NAME_UNKNOWN", "repository name not known to registry")
		}
	})
	c := quick(t, reg.hosts())
	for name, want := range map[string]string{
		"pages": "[a b c]", "absolute": "[c cb]", "loop": "pages go in a circle", "away": "next page is at another host", "none": "[]", "text": "not a list of tags",
		"huge": "more than 16777216 bytes", "endless": "more than 1048576 tags", "missing": "repository reg.example/missing not found: name unknown",
	} {
		tags, err := repo(t, c, "reg.example/"+name, Credentials{}).Tags(t.Context())
		if got := fmt.Sprint(tags, err); !strings.Contains(got, want) {
			t.Errorf("%s: %.200s, want %s", name, got, want)
		}
	}
}

func TestSearch(t *testing.T) {
	reg := serve(t, true, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/v1/search" || r.FormValue("q") != "web" || r.FormValue("n") != "2" {
			w.WriteHeader(404)
			return
		}
		fmt.Fprint(w, `{"num_results":3,"results":[{"name":"a/web","description":"serves\nthe \u001b[31mweb","star_count":7,"is_official":true,"is_automated":false},{"name":"b"},{"name":"c"}]}`)
	})
	c := quick(t, reg.hosts())
	got, err := c.Search(t.Context(), "reg.example/web", 2, Credentials{})
	if err != nil || len(got) != 2 || got[0] != (SearchResult{Name: "a/web", Description: "serves the [31mweb", Stars: 7, Official: true}) {
		t.Errorf("%+v %v", got, err)
	}
	for _, limit := range []int{-1, 101} {
		if _, err := c.Search(t.Context(), "web", limit, Credentials{}); !errors.Is(err, errs.Invalid) || !strings.Contains(err.Error(), "outside the range of [1, 100]") {
			t.Errorf("limit %d: %v", limit, err)
		}
	}
	for in, want := range map[string]string{"web": "docker.io web", "library/web": "docker.io web", "ann/web": "docker.io ann/web", "localhost:5000/a/b": "localhost:5000 a/b", "docker.io/library/x": "docker.io x"} {
		if d, w := splitTerm(in); d+" "+w != want {
			t.Errorf("%s: %s %s", in, d, w)
		}
	}
}

// Nothing that is secret is in any error or log line, whatever happens and whatever the server says.
func TestNoSecretIsEverShown(t *testing.T) {
	creds := Credentials{Username: "ann", Password: "pass-S3CR3T", IdentityToken: "identity-S3CR3T"}
	var mode atomic.Int64
	var reg *served
	reg = serve(t, true, func(w http.ResponseWriter, r *http.Request) {
		r.ParseForm()
		said := fmt.Sprint(r.Header, r.Form, r.URL)
		if isToken(r) && mode.Load()%3 != 0 {
			fmt.Fprint(w, `{"token":"token-S3CR3T","refresh_token":"refresh-S3CR3T"}`)
			return
		}
		if r.Header.Get("Authorization") == "" && !isToken(r) {
			ch := `Bearer realm="` + reg.URL + `/token",service="s"`
			if mode.Load()%2 == 0 {
				ch = `Basic realm="x"`
			}
			w.Header().Set("WWW-Authenticate", ch)
			w.WriteHeader(401)
			return
		}
		refuseJSON(w, []int{400, 401, 403, 404, 500, 503}[mode.Load()%6], "CODE "+said, said)
	})
	var logged bytes.Buffer
	var said []string
	for m := range 12 {
		mode.Store(int64(m))
		c := New(Options{Hosts: reg.hosts(), Retries: 1, Backoff: time.Microsecond, Logger: slog.New(slog.NewTextHandler(&logged, &slog.HandlerOptions{Level: slog.LevelDebug}))})
		for _, creds := range []Credentials{creds, {Username: "ann", Password: "pass-S3CR3T"}, {RegistryToken: "registry-S3CR3T"}} {
			r := repo(t, c, "team/app", creds)
			raw, d := noise(10)
			ctx := t.Context()
			_, err1 := r.Resolve(ctx, "1")
			_, err2 := r.Push(ctx, toSend(raw, d.Digest, 10))
			_, err3 := c.Login(ctx, "reg.example", creds)
			err4 := r.Fetch(ctx, ocispec.Descriptor{Digest: d.Digest, Size: 10}, &sink{})
			_, err5 := r.Tags(ctx)
			said = append(said, fmt.Sprint(err1, err2, err3, err4, err5))
		}
	}
	all := logged.String() + strings.Join(said, "\n")
	encoded := base64.StdEncoding.EncodeToString([]byte("ann:pass-S3CR3T"))
	if i := strings.Index(all, "S3CR3T"); i >= 0 || strings.Contains(all, encoded) {
		t.Errorf("a secret is shown: …%.300s", all[max(0, i-200):])
	}
	if len(all) < 1000 {
		t.Error("the test saw nothing")
	}
}
