package server_test

import (
	"fmt"
	"strings"
	"testing"

	"corten.dev/corten/internal/registry/server"
)

// What a repository takes is each blob that it holds, once, also one that it mounted from another; a repository that is not there takes nothing.
func TestUsage(t *testing.T) {
	r, ts := newRegistry(t, nil)
	c := newClient(t, ts.URL)
	for i := range 3 {
		_, err := c.image("team/app", fmt.Sprint(i), []byte(`{"n":1}`), []byte("one layer"), []byte("another layer"))
		ok(t, err)
	}
	const want = int64(len(`{"n":1}`) + len("one layer") + len("another layer"))
	for repo, want := range map[string]int64{"team/app": want, "team": 0, "nobody/knows": 0} {
		if got, err := r.Usage(t.Context(), repo); err != nil || got != want {
			t.Errorf("usage of %s: %d, %v; want %d", repo, got, err, want)
		}
	}
}

// Docker's engine reads an error with the usual words and no detail as a bare code, and tried a push without a login again and again for a minute, to say
// "unauthorized" and no more.
func TestRefusalSaysWhatItIsAbout(t *testing.T) {
	_, ts := newRegistry(t, func(o *server.Options) { o.Guard = guard{} })
	c := newClient(t, ts.URL)
	for path, want := range map[string]string{
		"/v2/team/app/blobs/uploads/": `"detail":[{"Type":"repository","Class":"","Name":"team/app","Action":"pull"},{"Type":"repository","Class":"","Name":"team/app","Action":"push"}]`,
		"/v2/":                        `"code":"UNAUTHORIZED"`,
	} {
		method := "POST"
		if path == "/v2/" {
			method = "GET"
		}
		status, _, body, err := c.do(method, path, "", nil)
		ok(t, err)
		if status != 401 || !strings.Contains(string(body), want) {
			t.Errorf("%s %s: %d %s", method, path, status, body)
		}
	}
}
