package serve

import (
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"corten.dev/corten/internal/enginetest"
)

func TestRequestLimit(t *testing.T) {
	r := start(t, map[string]any{"limits": map[string]any{"requests-per-second": 0.01, "requests-burst": 3}}, "--metrics-addr", enginetest.Addr(t))
	refused := 0
	for range 6 {
		status, h, body := r.get("/v2/", "")
		if status == http.StatusTooManyRequests {
			refused++
			if h.Get("Retry-After") == "" || !strings.Contains(body, "TOOMANYREQUESTS") {
				t.Errorf("refusal: %v %s", h, body)
			}
		}
	}
	if refused != 3 {
		t.Errorf("%d of 6 were refused, want 3", refused)
	}
	if status, _, _ := r.get("/healthz", ""); status != 200 {
		t.Error("health is limited")
	}
}

func TestBandwidth(t *testing.T) {
	r := start(t, map[string]any{"limits": map[string]any{"bytes-per-second": "200k"}})
	img, err := random.Image(400_000, 1)
	if err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	if err := remote.Write(r.tag("app:1"), img); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(began); took < 700*time.Millisecond {
		t.Errorf("400 kB at 200 kB a second, the first second free, took %v", took)
	}
}

func TestSizeLimits(t *testing.T) {
	r := start(t, map[string]any{"limits": map[string]any{"blob-size": "30k", "repository-size": "50k"}})
	big, err := random.Image(40_000, 1)
	if err != nil {
		t.Fatal(err)
	}
	wantError(t, "a large blob", remote.Write(r.tag("big:1"), big), "larger than the 30720 bytes")
	_, err = r.push("full:1", "")
	wantError(t, "first image", err, "")
	_, err = r.push("full:2", "")
	if err == nil {
		_, err = r.push("full:3", "")
	}
	wantError(t, "too many images", err, "repository full is full")
	_, err = r.push("other:1", "")
	wantError(t, "another repository", err, "")
	wantError(t, "pull from the full one", r.pull("full:1", ""), "")
}

func TestMetrics(t *testing.T) {
	addr := enginetest.Addr(t)
	r := start(t, nil, "--metrics-addr", addr)
	if _, err := r.push("app:1", ""); err != nil {
		t.Fatal(err)
	}
	if err := r.pull("app:1", ""); err != nil {
		t.Fatal(err)
	}
	resp, err := http.Get("http://" + addr + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(resp.Body)
	if err := errors.Join(err, resp.Body.Close()); err != nil {
		t.Fatal(err)
	}
	text := string(body)
	for _, want := range []string{
		"# TYPE corten_registry_requests counter\n", `corten_registry_requests_total{route="manifest",method="PUT",code="201"} 1`, "corten_registry_blobs 3\n", "corten_registry_open_uploads 0\n",
		`corten_registry_request_duration_seconds_bucket{route="blob",le="+Inf"}`, `corten_registry_transferred_bytes_total{direction="in"} `, "\n# EOF\n",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("%q is missing in\n%s", want, text)
		}
	}
	checkOpenMetrics(t, text)
}

// checkOpenMetrics looks at the form: each family is announced before its samples, which bear its name, and there are no blank lines.
func checkOpenMetrics(t *testing.T, text string) {
	t.Helper()
	family, kind := "", ""
	seen := map[string]bool{}
	for line := range strings.Lines(text) {
		line = strings.TrimSuffix(line, "\n")
		words := strings.SplitN(line, " ", 4)
		switch {
		case line == "# EOF":
			return
		case strings.HasPrefix(line, "# TYPE "):
			family, kind = words[2], words[3]
			if seen[family] {
				t.Errorf("%s is announced twice", family)
			}
			seen[family] = true
		case strings.HasPrefix(line, "# "):
			if words[2] != family {
				t.Errorf("%q stands in %s", line, family)
			}
		default:
			sample, _, _ := strings.Cut(line, " ")
			sample, _, _ = strings.Cut(sample, "{")
			suffix, ok := strings.CutPrefix(sample, family)
			good := map[string]string{"counter": "_total", "gauge": "", "histogram": "_bucket _count _sum"}[kind]
			if !ok || suffix == "" && kind != "gauge" || suffix != "" && !strings.Contains(good, suffix) {
				t.Errorf("sample %q in %s, a %s", line, family, kind)
			}
		}
	}
	t.Error("there is no end")
}
