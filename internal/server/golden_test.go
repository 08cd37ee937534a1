package server_test

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"corten.dev/corten/internal/server"
)

var update = flag.Bool("update", false, "write the golden files anew")

// do sends one request to a server with fakes.
func do(t testing.TB, e *engine, method, target, body string) *httptest.ResponseRecorder {
	t.Helper()
	r := httptest.NewRequest(method, target, strings.NewReader(body))
	if body != "" {
		r.Header.Set("Content-Type", "application/json")
	}
	w := httptest.NewRecorder()
	server.New(options(e)).ServeHTTP(w, r)
	return w
}

// moving are the parts of answers that change from run to run.
var moving = []struct {
	re   *regexp.Regexp
	with string
}{
	{regexp.MustCompile(`"SystemTime": "[^"]*"`), `"SystemTime": "NOW"`},
	{regexp.MustCompile(`("Status": "(?:Up|Exited \(1\))) [^"]*"`), `$1 SOME TIME"`},
	{regexp.MustCompile(`"GoVersion": "[^"]*"`), `"GoVersion": "GO"`},
	{regexp.MustCompile(`"Arch": "[^"]*"`), `"Arch": "ARCH"`},
}

// TestGolden compares answers with testdata/golden, one file for each question and version. `go test -update` writes them anew: read the difference.
func TestGolden(t *testing.T) {
	for _, c := range []struct {
		name, target string
		versions     []int
	}{
		{"version", "/version", []int{56}},
		{"info", "/info", []int{24, 41, 49, 56}},
		{"ps", "/containers/json?all=1&size=1", []int{24, 44, 46, 56}},
		{"inspect", "/containers/web/json?size=1", []int{24, 41, 44, 51, 56}},
		{"inspect-exited", "/containers/job/json", []int{56}},
		{"images", "/images/json?shared-size=1", []int{24, 42, 43, 51, 56}},
		{"images-manifests", "/images/json?manifests=1", []int{46, 47, 56}},
		{"image-manifests", "/images/busybox/json?manifests=1", []int{47, 48}},
		{"image-inspect", "/images/busybox/json", []int{24, 43, 44, 45, 49, 51, 56}},
		{"history", "/images/lib/busybox:latest/history", []int{56}},
		{"networks", "/networks", []int{24, 56}},
		{"network", "/networks/blue", []int{51, 56}},
		{"volumes", "/volumes", []int{56}},
		{"volume", "/volumes/data", []int{56}},
		{"df", "/system/df", []int{24, 51, 52, 56}},
		{"df-verbose", "/system/df?verbose=1", []int{52, 56}},
		{"events", "/events?until=1", []int{51, 52}},
		{"stats", "/containers/web/stats?stream=0&one-shot=1", []int{40, 56}},
		{"top", "/containers/web/top", []int{56}},
		{"changes", "/containers/web/changes", []int{56}},
		{"exec", "/exec/" + execID + "/json", []int{56}},
		{"plugins", "/plugins", []int{56}},
	} {
		for _, v := range c.versions {
			t.Run(fmt.Sprintf("%s.v1.%d", c.name, v), func(t *testing.T) {
				w := do(t, &engine{}, "GET", fmt.Sprintf("/v1.%d%s", v, c.target), "")
				if w.Code != http.StatusOK {
					t.Fatalf("status %d: %s", w.Code, w.Body)
				}
				if ct := w.Header().Get("Content-Type"); ct != "application/json" {
					t.Errorf("content type %q", ct)
				}
				var buf bytes.Buffer
				if err := json.Indent(&buf, w.Body.Bytes(), "", "  "); err != nil {
					t.Fatalf("%v: %s", err, w.Body)
				}
				got := buf.String()
				for _, m := range moving {
					got = m.re.ReplaceAllString(got, m.with)
				}
				file := filepath.Join("testdata", "golden", fmt.Sprintf("%s.v1.%d.json", c.name, v))
				if *update {
					if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
						t.Fatal(err)
					}
					return
				}
				want, err := os.ReadFile(file)
				if err != nil {
					t.Fatal(err)
				}
				if got != string(want) {
					t.Errorf("%s differs; got:\n%s", file, got)
				}
			})
		}
	}
}
