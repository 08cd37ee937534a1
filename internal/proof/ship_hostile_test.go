package proof

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"corten.dev/corten/internal/enginetest"
)

// villain is a registry whose blobs are what a test says.
type villain struct {
	*httptest.Server
	blobs, docs map[string]func(http.ResponseWriter, *http.Request)
}

func newVillain(t *testing.T) *villain {
	v := &villain{blobs: map[string]func(http.ResponseWriter, *http.Request){}, docs: map[string]func(http.ResponseWriter, *http.Request){}}
	v.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		_, last, _ := strings.Cut(req.URL.Path, "/v2/evil/")
		answer := v.blobs[strings.TrimPrefix(last, "blobs/sha256:")]
		if tag, ok := strings.CutPrefix(last, "manifests/"); ok {
			answer = v.docs[tag]
		}
		if answer == nil {
			w.WriteHeader(http.StatusNotFound)
			return
		}
		answer(w, req)
	}))
	t.Cleanup(v.Close)
	return v
}

// image offers an image of one layer, whose blob has this content by its digest; serve sends it, or what the villain likes.
func (v *villain) image(t *testing.T, tag string, layer []byte, diff string, serve func(http.ResponseWriter, *http.Request)) {
	t.Helper()
	config, err := json.Marshal(map[string]any{"architecture": "amd64", "os": "linux", "rootfs": map[string]any{"type": "layers", "diff_ids": []string{"sha256:" + diff}}, "author": tag})
	if err != nil {
		t.Fatal(err)
	}
	const kind = "application/vnd.oci.image.manifest.v1+json"
	blob := func(raw []byte, kind string) map[string]any {
		return map[string]any{"digest": "sha256:" + hexSum(raw), "size": len(raw), "mediaType": kind}
	}
	doc, err := json.Marshal(map[string]any{"schemaVersion": 2, "mediaType": kind, "config": blob(config, "application/vnd.oci.image.config.v1+json"),
		"layers": []any{blob(layer, "application/vnd.oci.image.layer.v1.tar+gzip")}})
	if err != nil {
		t.Fatal(err)
	}
	v.docs[tag] = func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", kind)
		_, _ = w.Write(doc)
	}
	v.blobs[hexSum(config)] = func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(config) }
	v.blobs[hexSum(layer)] = serve
}

func (v *villain) ref(tag string) string {
	return strings.TrimPrefix(v.URL, "http://") + "/evil:" + tag
}

// zipped packs a tar of one empty file, and zeros behind it: each member of the gzip file is 64 MiB of them in 64 KB.
func zipped(t *testing.T, head tar.Header, members int) []byte {
	t.Helper()
	var out, plain bytes.Buffer
	tw := tar.NewWriter(&plain)
	if err := tw.WriteHeader(&head); err != nil {
		t.Fatal(err)
	}
	if err := tw.Close(); err != nil {
		t.Fatal(err)
	}
	pack := func(raw []byte) []byte {
		var b bytes.Buffer
		zw, err := gzip.NewWriterLevel(&b, gzip.BestCompression)
		if err != nil {
			t.Fatal(err)
		}
		_, err = zw.Write(raw)
		if cerr := zw.Close(); err != nil || cerr != nil {
			t.Fatal(err, cerr)
		}
		return b.Bytes()
	}
	out.Write(pack(plain.Bytes()))
	out.Write(bytes.Repeat(pack(make([]byte, 64<<20)), members))
	return out.Bytes()
}

func unzippedSum(t *testing.T, packed []byte) string {
	t.Helper()
	zr, err := gzip.NewReader(bytes.NewReader(packed))
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.New()
	if _, err := io.Copy(sum, zr); err != nil {
		t.Fatal(err)
	}
	return hex.EncodeToString(sum.Sum(nil))
}

// Registries that mean harm in ways that need more than one answer, through the whole product. Nothing of them stays, and no secret goes anywhere else.
func TestHostileAnswers(t *testing.T) {
	config := filepath.Join(t.TempDir(), "daemon.json")
	writeFile(t, config, `{"max-download-attempts": 1}`)
	e := enginetest.New(t, "--config-file", config)
	e.Up()
	v := newVillain(t)
	refused := func(tag, words string, within time.Duration) {
		t.Helper()
		began := time.Now()
		out, err := e.Try("pull", "-q", v.ref(tag))
		took := time.Since(began).Round(time.Millisecond)
		if err == nil {
			t.Errorf("%s: pulled %s", tag, out)
			return
		}
		if text := strings.TrimPrefix(err.Error(), "exit status 1: "); !strings.Contains(text, words) || strings.Contains(text, "\n") || took > within {
			t.Errorf("%s (%s): %q", tag, took, text)
		} else {
			t.Logf("%s (%s): %s", tag, took, text)
		}
	}

	// A bomb: 5 MB that unpack to 5 GiB of nothing behind the end of the archive, where no disk shows it.
	bomb := zipped(t, tar.Header{Name: "small", Mode: 0o644}, 80)
	v.image(t, "bomb", bomb, hexSum(nil), func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(bomb) })
	refused("bomb", "unpacks to more than 4294967296 bytes", 10*time.Minute)

	// Redirects: the blob is elsewhere, where nobody has any business with our password, ask as they may.
	layer := zipped(t, tar.Header{Name: "small", Mode: 0o644}, 0)
	plain := unzippedSum(t, layer)
	var secrets, visits atomic.Int64
	var greedy atomic.Bool
	elsewhere := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		visits.Add(1)
		if req.Header.Get("Authorization") != "" || req.Header.Get("Cookie") != "" {
			secrets.Add(1)
		}
		if greedy.Load() {
			w.Header().Set("WWW-Authenticate", `Basic realm="give me yours"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		_, _ = w.Write(layer)
	}))
	defer elsewhere.Close()
	v.image(t, "elsewhere", layer, plain, func(w http.ResponseWriter, req *http.Request) {
		if user, password, _ := req.BasicAuth(); user != "me" || password != "s3cret" {
			w.Header().Set("WWW-Authenticate", `Basic realm="here"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		w.Header().Set("Location", elsewhere.URL+"/blob")
		w.WriteHeader(http.StatusTemporaryRedirect)
	})
	writeFile(t, filepath.Join(e.Dir, ".docker", "config.json"), fmt.Sprintf(`{"auths":{%q:{"auth":"bWU6czNjcmV0"}}}`, strings.TrimPrefix(v.URL, "http://")))
	greedy.Store(true)
	refused("elsewhere", "", time.Minute)
	greedy.Store(false)
	e.Corten("pull", "-q", v.ref("elsewhere"))
	e.Corten("rmi", v.ref("elsewhere"))
	if secrets.Load() != 0 || visits.Load() < 2 {
		t.Errorf("%d of %d requests elsewhere had credentials", secrets.Load(), visits.Load())
	}
	if log, err := os.ReadFile(filepath.Join(e.Dir, "log")); err != nil || bytes.Contains(log, []byte("s3cret")) || bytes.Contains(log, []byte("bWU6czNjcmV0")) {
		t.Errorf("the engine's log has the password: %v", err)
	}
	settle(t, "blobs", func() bool { return arrived(e) == 0 })
}

// A registry that sends a byte now and then is left after half a minute, and whoever gives up before is let go at once. What came is not asked for again when it is well.
func TestSlowDrips(t *testing.T) {
	t.Parallel() // it only waits
	config := filepath.Join(t.TempDir(), "daemon.json")
	writeFile(t, config, `{"max-download-attempts": 1}`)
	e := enginetest.New(t, "--config-file", config)
	e.Up()
	v := newVillain(t)
	layer := zipped(t, tar.Header{Name: "small", Mode: 0o644}, 1)
	var well atomic.Bool
	var from atomic.Value
	v.image(t, "drip", layer, unzippedSum(t, layer), func(w http.ResponseWriter, req *http.Request) {
		if well.Load() {
			from.Store(req.Header.Get("Range"))
			http.ServeContent(w, req, "", time.Time{}, bytes.NewReader(layer))
			return
		}
		w.Header().Set("Content-Length", fmt.Sprint(len(layer)))
		for i := range layer {
			if _, err := w.Write(layer[i : i+1]); err != nil || req.Context().Err() != nil {
				return
			}
			w.(http.Flusher).Flush()
			time.Sleep(100 * time.Millisecond)
		}
	})
	given := e.Client("pull", "-q", v.ref("drip"))
	if err := given.Start(); err != nil {
		t.Fatal(err)
	}
	time.Sleep(time.Second)
	began := time.Now()
	if err := given.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	_ = given.Wait()
	if took := time.Since(began); took > 15*time.Second {
		t.Errorf("a pull that was given up went on for %s", took)
	}
	began = time.Now()
	_, err := e.Try("pull", "-q", v.ref("drip"))
	if took := time.Since(began); err == nil || !strings.Contains(err.Error(), "the server is too slow") || took > 5*time.Minute {
		t.Errorf("after %s: %v", took, err)
	}
	well.Store(true)
	e.Corten("pull", "-q", v.ref("drip"))
	if at, _ := from.Load().(string); !strings.HasPrefix(at, "bytes=") || strings.HasPrefix(at, "bytes=0-") {
		t.Errorf("went on at %q", at)
	}
	e.Corten("rmi", v.ref("drip"))
	settle(t, "blobs", func() bool { return arrived(e) == 0 })
}
