package server_test

import (
	"encoding/base64"
	"net/http/httptest"
	"reflect"
	"strings"
	"testing"

	"corten.dev/corten/internal/engine/images"
	"corten.dev/corten/internal/server"
)

// The stream of a pull, byte for byte as Docker sends it; after it has begun, an error is a message.
func TestPullStream(t *testing.T) {
	e := &engine{}
	w := do(t, e, "POST", "/images/create?fromImage=busybox&tag=latest&platform=linux/arm64", "")
	want := `{"status":"Pulling from library/busybox","id":"latest"}
{"status":"Pulling fs layer","progressDetail":{},"id":"0123456789ab"}
{"status":"Downloading","progressDetail":{"current":1048576,"total":2097152},"id":"0123456789ab","progress":"[=========================>                         ]  1.049MB/2.097MB"}
{"status":"Pull complete","progressDetail":{},"id":"0123456789ab"}
{"status":"Digest: ` + diffA.String() + `"}
{"status":"Status: Downloaded newer image for busybox:latest"}
`
	if w.Body.String() != want {
		t.Error(w.Body)
	}
	if got := e.got("pull").(images.PullOptions); got.Ref != "busybox:latest" || got.Platform != "linux/arm64" || got.AllTags {
		t.Errorf("%+v", got)
	}
	w = do(t, e, "POST", "/images/create?fromImage=broken&tag=latest", "")
	if w.Code != 200 || !strings.HasSuffix(w.Body.String(), `{"errorDetail":{"message":"the registry went away"},"error":"the registry went away"}`+"\n") {
		t.Error(w.Code, w.Body)
	}
	for query, want := range map[string]images.PullOptions{
		"fromImage=a":                             {Ref: "a", AllTags: true},
		"fromImage=a:1":                           {Ref: "a:1"},
		"fromImage=localhost:5000/a":              {Ref: "localhost:5000/a", AllTags: true},
		"fromImage=a&tag=" + diffA.String():       {Ref: "a@" + diffA.String()},
		"fromImage=a&tag=1&allplatforms=1":        {Ref: "a:1", AllPlatforms: true},
		"fromImage=localhost:5000/a&tag=1&repo=x": {Ref: "localhost:5000/a:1"},
	} {
		do(t, e, "POST", "/images/create?"+query, "")
		if got := e.got("pull").(images.PullOptions); !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %+v", query, got)
		}
	}
}

func TestPushStream(t *testing.T) {
	e := &engine{}
	w := do(t, e, "POST", "/images/reg.example:5000/team/a/push?tag=1&compression=zstd", "")
	want := `{"status":"The push refers to repository [docker.io/library/a]"}
{"progressDetail":{},"aux":{"Tag":"1","Digest":"` + diffA.String() + `","Size":527}}
`
	if w.Body.String() != want {
		t.Error(w.Body)
	}
	if got := e.got("push").(images.PushOptions); got.Ref != "reg.example:5000/team/a:1" || got.Compression != "zstd" || got.AllTags {
		t.Errorf("%+v", got)
	}
	do(t, e, "POST", "/images/a/push", "")
	if got := e.got("push").(images.PushOptions); got.Ref != "a" || !got.AllTags {
		t.Errorf("%+v", got)
	}
	do(t, e, "POST", `/images/a/push?tag=1&platform={"os":"linux","architecture":"arm64","variant":"v8"}`, "")
	if got := e.got("push").(images.PushOptions); got.Platform != "linux/arm64" { // which is the same
		t.Errorf("%+v", got)
	}
	if w := do(t, e, "POST", `/images/a/push?tag=1&platform={"os":"linux"}`, ""); w.Code != 400 {
		t.Error(w.Code, w.Body)
	}
}

// Credentials come as JSON in base64url; whatever is wrong with them is told without repeating them.
func TestCredentials(t *testing.T) {
	secret := `{"username":"u?","password":"s>cret"}`
	for _, header := range []string{base64.URLEncoding.EncodeToString([]byte(secret)), base64.RawURLEncoding.EncodeToString([]byte(secret)), base64.StdEncoding.EncodeToString([]byte(secret)),
		base64.URLEncoding.EncodeToString([]byte(`{"auth":"` + base64.StdEncoding.EncodeToString([]byte("u?:s>cret")) + `"}`))} {
		e := &engine{}
		r := httptest.NewRequest("GET", "/corten/tags/reg.example/team/a", nil)
		r.Header.Set("X-Registry-Auth", header)
		w := httptest.NewRecorder()
		server.New(options(e)).ServeHTTP(w, r)
		if w.Body.String() != `{"name":"reg.example/team/a","tags":["1","latest"]}`+"\n" || !reflect.DeepEqual(e.got("tags"), []any{"reg.example/team/a", images.Credentials{Username: "u?", Password: "s>cret"}}) {
			t.Error(w.Body, e.got("tags"))
		}
	}
	for _, header := range []string{"{s3cret}", base64.URLEncoding.EncodeToString([]byte("s3cret")), strings.Repeat("s3cret", 20<<10)} {
		r := httptest.NewRequest("POST", "/images/create?fromImage=a&tag=1", nil)
		r.Header.Set("X-Registry-Auth", header)
		w := httptest.NewRecorder()
		server.New(options(&engine{})).ServeHTTP(w, r)
		if w.Code != 400 || strings.Contains(w.Body.String(), "s3cret") || !strings.Contains(w.Body.String(), "invalid X-Registry-Auth header") {
			t.Error(w.Code, w.Body)
		}
	}
}

func TestRegistryAnswers(t *testing.T) {
	e := &engine{}
	for _, c := range []struct{ method, target, body, want string }{
		{"POST", "/auth", `{"username":"u","password":"secret","serveraddress":"reg.example"}`, `{"IdentityToken":"token","Status":"Login Succeeded"}`},
		{"GET", "/images/search?term=busy&limit=5", "", `[{"star_count":3,"is_official":true,"name":"busy","is_automated":false,"description":"tiny"}]`},
		{"GET", "/distribution/reg.example/a:1/json", "", `{"Descriptor":{"mediaType":"application/vnd.oci.image.index.v1+json","digest":"` + diffA.String() + `","size":7},"Platforms":[{"architecture":"arm64","os":"linux"}]}`},
	} {
		if w := do(t, e, c.method, c.target, c.body); w.Code != 200 || strings.TrimSpace(w.Body.String()) != c.want {
			t.Error(w.Code, w.Body)
		}
	}
	if w := do(t, e, "GET", "/images/search", ""); w.Code != 400 {
		t.Error(w.Code, w.Body)
	}
}

func FuzzCredentials(f *testing.F) {
	f.Add("e30=")
	f.Add(base64.URLEncoding.EncodeToString([]byte(`{"auth":"dTpw"}`)))
	f.Fuzz(func(t *testing.T, header string) {
		r := httptest.NewRequest("GET", "/corten/tags/a", nil)
		r.Header["X-Registry-Auth"] = []string{header}
		w := httptest.NewRecorder()
		server.New(options(&engine{})).ServeHTTP(w, r)
		if w.Code != 200 && w.Code != 400 {
			t.Error(w.Code, w.Body)
		}
	})
}
