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
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"corten.dev/corten/internal/enginetest"
)

// road stands between the engine and the registry: it counts the bytes of blobs that come this way, and lets them come slowly, so that there is a middle to be killed in.
type road struct {
	*httptest.Server
	blobs atomic.Int64
	pace  atomic.Int64 // bytes a millisecond of each download or upload; 0 is no limit
}

func newRoad(t *testing.T, reg *enginetest.Registry) *road {
	r := &road{}
	proxy := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: reg.Addr})
	proxy.FlushInterval = -1
	proxy.ErrorHandler = func(w http.ResponseWriter, _ *http.Request, _ error) { w.WriteHeader(http.StatusBadGateway) } // a registry that was killed
	proxy.ModifyResponse = func(resp *http.Response) error {
		if resp.Request.Method == http.MethodGet && strings.Contains(resp.Request.URL.Path, "/blobs/") {
			resp.Body = &paced{ReadCloser: resp.Body, r: r, count: true}
		}
		return nil
	}
	r.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if req.Method == http.MethodPut || req.Method == http.MethodPatch {
			req.Body = &paced{ReadCloser: req.Body, r: r}
		}
		proxy.ServeHTTP(w, req)
	}))
	r.Config.ErrorLog = nil
	t.Cleanup(r.Close)
	return r
}

func (r *road) addr() string { return strings.TrimPrefix(r.URL, "http://") }

type paced struct {
	io.ReadCloser
	r     *road
	count bool
}

func (p *paced) Read(b []byte) (int, error) {
	pace := p.r.pace.Load()
	if pace > 0 {
		b = b[:min(int64(len(b)), 16<<10)]
	}
	n, err := p.ReadCloser.Read(b)
	if pace > 0 {
		time.Sleep(time.Duration(n) * time.Millisecond / time.Duration(pace))
	}
	if p.count {
		p.r.blobs.Add(int64(n))
	}
	return n, err
}

// zeros makes a layer of so many zeros, which is a small blob.
type zeros int

// shipImage puts an image of random layers into a registry by plain HTTP; it returns the bytes of its layers and the digest of each file.
func shipImage(t *testing.T, addr, repo, tag string, sizes ...any) (total int64, files map[string]string) {
	t.Helper()
	put := func(data []byte) map[string]any {
		d := "sha256:" + hexSum(data)
		resp, err := http.Post("http://"+addr+"/v2/"+repo+"/blobs/uploads/", "", nil)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		at, err := resp.Location()
		if err != nil {
			t.Fatal(err)
		}
		q := at.Query()
		q.Set("digest", d)
		at.RawQuery = q.Encode()
		send(t, at.String(), "application/octet-stream", data)
		return map[string]any{"digest": d, "size": len(data)}
	}
	files = map[string]string{}
	var layers []map[string]any
	var diffs []string
	for i, size := range sizes {
		var body []byte
		switch n := size.(type) {
		case int:
			body = make([]byte, n)
			for j := range body {
				body[j] = byte(rand.Uint32())
			}
		case zeros:
			body = make([]byte, n)
		}
		name := fmt.Sprintf("data/%s-%d", tag, i)
		files[name] = hexSum(body)
		var plain, packed bytes.Buffer
		tw := tar.NewWriter(&plain)
		if err := tw.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(body))}); err != nil {
			t.Fatal(err)
		}
		_, _ = tw.Write(body) // into memory
		_ = tw.Close()
		zw := gzip.NewWriter(&packed)
		_, _ = zw.Write(plain.Bytes())
		_ = zw.Close()
		diffs = append(diffs, "sha256:"+hexSum(plain.Bytes()))
		l := put(packed.Bytes())
		l["mediaType"] = "application/vnd.oci.image.layer.v1.tar+gzip"
		layers = append(layers, l)
		total += int64(packed.Len())
	}
	cfg, err := json.Marshal(map[string]any{"architecture": "amd64", "os": "linux", "config": map[string]any{"Cmd": []string{"/x"}}, "rootfs": map[string]any{"type": "layers", "diff_ids": diffs}})
	if err != nil {
		t.Fatal(err)
	}
	c := put(cfg)
	c["mediaType"] = "application/vnd.oci.image.config.v1+json"
	raw, err := json.Marshal(map[string]any{"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json", "config": c, "layers": layers})
	if err != nil {
		t.Fatal(err)
	}
	send(t, "http://"+addr+"/v2/"+repo+"/manifests/"+tag, "application/vnd.oci.image.manifest.v1+json", raw)
	return total, files
}

func send(t *testing.T, to, kind string, data []byte) {
	t.Helper()
	req, err := http.NewRequest(http.MethodPut, to, bytes.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", kind)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusCreated {
		text, _ := io.ReadAll(resp.Body)
		t.Fatalf("PUT %s: %s %s", to, resp.Status, text)
	}
}

func hexSum(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

// checkImage reads every file of an image through a container's tree.
func checkImage(t *testing.T, e *enginetest.Engine, ref string, files map[string]string) {
	t.Helper()
	id := e.Corten("create", "--pull", "never", ref)
	defer e.Corten("rm", id)
	cmd := e.Client("export", id)
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("export: %v\n%s", err, e.Log())
	}
	found := 0
	tr := tar.NewReader(bytes.NewReader(out))
	for {
		h, err := tr.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		want, ok := files[h.Name]
		if !ok {
			continue
		}
		data, err := io.ReadAll(tr)
		if err != nil || hexSum(data) != want {
			t.Errorf("%s of %s is corrupt: %v", h.Name, ref, err)
		}
		found++
	}
	if found != len(files) {
		t.Errorf("%s has %d of %d files", ref, found, len(files))
	}
}

// arrived is how many bytes of blobs the engine has on disk.
func arrived(e *enginetest.Engine) (n int64) {
	for _, dir := range []string{"ingest", "blobs"} {
		_ = filepath.Walk(filepath.Join(e.Dir, "d", "content", dir), func(_ string, info os.FileInfo, err error) error {
			if err == nil && info.Mode().IsRegular() {
				n += info.Size()
			}
			return nil
		})
	}
	return n
}

// Client, engine and registry are killed at random moments of a pull. Whatever happened: an image that has its name is whole, what came before the kill is not asked for
// again, and in the end nothing is left but the image.
func TestKillPull(t *testing.T) {
	e := enginetest.New(t)
	e.Up()
	reg := enginetest.NewRegistry(t) // ends before the engine, and with it the connections that wait for more
	way := newRoad(t, reg)
	for round := range rounds(t) {
		settle(t, "blobs and downloads", func() bool { return arrived(e) == 0 })
		way.pace.Store(0)
		tag := fmt.Sprintf("r%d", round)
		total, files := shipImage(t, reg.Addr, "ship/kill", tag, 3<<20, 1<<20, 2<<20, 100)
		ref := way.addr() + "/ship/kill:" + tag
		way.pace.Store(8 << 10)
		way.blobs.Store(0)
		pull := e.Client("pull", ref)
		if err := pull.Start(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Duration(rand.IntN(400)) * time.Millisecond)
		victim := []string{"client", "engine", "registry"}[round%3]
		switch victim {
		case "client":
			_ = pull.Process.Kill()
			_ = pull.Wait()
			time.Sleep(100 * time.Millisecond) // the engine sees it, and lets go
		case "engine":
			e.Kill9()
			_ = pull.Wait()
		case "registry":
			reg.Kill9()
			time.Sleep(200 * time.Millisecond)
			reg.Up()
			way.pace.Store(0)
			if err := pull.Wait(); err != nil {
				t.Errorf("round %d: the pull did not outlive the registry's restart: %v\n%s", round, err, e.Log())
			}
		}
		have := arrived(e)
		if victim == "engine" {
			e.Up()
		}
		if _, err := e.Try("image", "inspect", ref); err == nil {
			checkImage(t, e, ref, files) // it was done just before
		} else {
			way.pace.Store(0)
			way.blobs.Store(0)
			e.Corten("pull", "-q", ref)
			checkImage(t, e, ref, files)
			// 64 KiB for what was on its way for the blobs that the kill met.
			if again := way.blobs.Load(); again > total-have+64<<10 {
				t.Errorf("round %d (%s): %d of %d bytes were there, and %d were asked for\n%s", round, victim, have, total, again, e.Log())
			}
		}
		e.Corten("rmi", ref)
	}
	settle(t, "blobs and downloads", func() bool { return arrived(e) == 0 })
}

// settle waits for what is done in the background.
func settle(t *testing.T, what string, done func() bool) {
	t.Helper()
	for range 1200 {
		if done() {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Errorf("%s are left", what)
}

// The same for a push: what the registry lists can be pulled whole, and a push that is begun again comes to its end.
func TestKillPush(t *testing.T) {
	e := enginetest.New(t)
	e.Up()
	reg := enginetest.NewRegistry(t) // ends before the engine, and with it the connections that wait for more
	way := newRoad(t, reg)
	for round := range rounds(t) {
		way.pace.Store(0)
		tag := fmt.Sprintf("r%d", round)
		_, files := shipImage(t, reg.Addr, "ship/from", tag, 3<<20, 1<<20, 100)
		from, ref := way.addr()+"/ship/from:"+tag, way.addr()+fmt.Sprintf("/ship/to%d:1", round)
		e.Corten("pull", "-q", from)
		// Not to be had by a mount: the registry must get the bytes.
		other := strings.Replace(ref, "127.0.0.1", "localhost", 1)
		e.Corten("tag", from, other)
		way.pace.Store(8 << 10)
		push := e.Client("push", other)
		if err := push.Start(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Duration(rand.IntN(300)) * time.Millisecond)
		switch round % 3 {
		case 0:
			_ = push.Process.Kill()
			_ = push.Wait()
		case 1:
			e.Kill9()
			_ = push.Wait()
			e.Up()
		case 2:
			reg.Kill9()
			time.Sleep(100 * time.Millisecond)
			reg.Up()
			way.pace.Store(0)
			if err := push.Wait(); err != nil {
				t.Errorf("round %d: the push did not outlive the registry's restart: %v\n%s", round, err, e.Log())
			}
		}
		way.pace.Store(0)
		check := func() {
			e.Corten("pull", "-q", ref)
			checkImage(t, e, ref, files)
		}
		if out, err := e.Try("image", "tags", strings.TrimSuffix(ref, ":1")); err == nil && out == "1" {
			check() // it was done just before
		}
		e.Corten("push", "-q", other)
		e.Corten("rmi", from, other)
		_, _ = e.Try("rmi", ref)
		check()
		e.Corten("rmi", ref)
	}
}

// A tag moves again and again, the disk is always too full, so that the image that was left behind is collected; the engine is killed meanwhile. The tagged image is always
// whole, and the others are gone in the end.
func TestKillCollection(t *testing.T) {
	e := enginetest.New(t, "--image-gc", "high=1,low=0,keep=1ns")
	e.Up()
	found, err := filepath.Glob(filepath.Join(e.Dir, "d", "content", "blobs", "sha256", "*"))
	if err != nil {
		t.Fatal(err)
	}
	blobs := len(found)
	reg := enginetest.NewRegistry(t)
	ref := reg.Addr + "/ship/moving:latest"
	var files map[string]string
	for round := range rounds(t) {
		_, files = shipImage(t, reg.Addr, "ship/moving", "latest", 1<<20, 500<<10)
		pull := e.Client("pull", "-q", ref)
		if err := pull.Start(); err != nil {
			t.Fatal(err)
		}
		if round%2 == 0 {
			_ = pull.Wait() // then the kill meets the collection
			time.Sleep(time.Duration(rand.IntN(30)) * time.Millisecond)
			e.Kill9()
		} else {
			time.Sleep(time.Duration(rand.IntN(150)) * time.Millisecond)
			e.Kill9()
			_ = pull.Wait()
		}
		e.Up()
		e.Corten("pull", "-q", ref)
		checkImage(t, e, ref, files)
	}
	e.Corten("pull", "-q", reg.Addr+"/ship/moving")
	settle(t, "images that nothing leads to", func() bool {
		return strings.Count(e.Corten("images", "-aq", "--no-trunc"), "sha256:") == 1
	})
	checkImage(t, e, ref, files)
	e.Corten("rmi", ref)
	// What a killed engine was about to remove, the next one removes, in the background.
	e.Kill9()
	e.Up()
	settle(t, "blobs of collected images", func() bool {
		found, err := filepath.Glob(filepath.Join(e.Dir, "d", "content", "blobs", "sha256", "*"))
		return err == nil && len(found) <= blobs
	})
}

// The disk fills up in each phase of a pull: before it, while blobs come, while they are unpacked. One clear line each, nothing is left, and with room again the same pull
// works without a restart.
func TestFullDiskPull(t *testing.T) {
	enginetest.Bin(t)
	disk := t.TempDir()
	if err := syscall.Mount("proof", disk, "tmpfs", 0, "size=24m"); err != nil {
		t.Skip("needs a tmpfs of its own: ", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(disk, 0); err != nil {
			t.Error("something still holds the disk: ", err)
		}
	})
	e := enginetest.New(t, "--image-gc", "off")
	if err := os.Symlink(disk, filepath.Join(e.Dir, "d")); err != nil {
		t.Fatal(err)
	}
	e.Up()
	reg := enginetest.NewRegistry(t)
	way := newRoad(t, reg)
	refused := func(phase, ref string, during func()) {
		t.Helper()
		pull := e.Client("pull", "-q", ref)
		var said bytes.Buffer
		pull.Stderr = &said
		if err := pull.Start(); err != nil {
			t.Fatal(err)
		}
		during()
		err := pull.Wait()
		if text := strings.TrimSpace(said.String()); err == nil || !strings.Contains(text, "no space left on device") || strings.Contains(text, "\n") {
			t.Errorf("%s: %v %q\n%s", phase, err, text, e.Log())
		}
		settle(t, phase+": bytes", func() bool { return arrived(e) == 0 })
	}
	shipImage(t, reg.Addr, "ship/full", "before", 30<<20)
	refused("before", way.addr()+"/ship/full:before", func() {})
	shipImage(t, reg.Addr, "ship/full", "unpack", 1<<20, zeros(60<<20))
	refused("unpacking", way.addr()+"/ship/full:unpack", func() {})
	_, files := shipImage(t, reg.Addr, "ship/full", "coming", 4<<20, 1<<20)
	way.pace.Store(4 << 10)
	var filler string
	refused("while it comes", way.addr()+"/ship/full:coming", func() {
		time.Sleep(150 * time.Millisecond)
		filler = fill(t, disk)
	})
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	way.pace.Store(0)
	ref := way.addr() + "/ship/full:coming"
	e.Corten("pull", "-q", ref)
	checkImage(t, e, ref, files)
	e.Corten("rmi", ref)
}

// A registry that means harm, through the whole product: one clear line each, and nothing is left of it.
func TestHostileRegistry(t *testing.T) {
	e := enginetest.New(t)
	e.Up()
	const kind = "application/vnd.oci.image.manifest.v1+json"
	blob := func(s string) map[string]any {
		return map[string]any{"digest": "sha256:" + hexSum([]byte(s)), "size": len(s)}
	}
	doc := func(v any) string {
		raw, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		return string(raw)
	}
	const layerType = "application/vnd.oci.image.layer.v1.tar"
	config := doc(map[string]any{"architecture": "amd64", "os": "linux", "rootfs": map[string]any{"type": "layers", "diff_ids": []string{"sha256:" + hexSum([]byte("layer"))}}})
	man := func(layer map[string]any) map[string]any {
		c := blob(config)
		c["mediaType"] = "application/vnd.oci.image.config.v1+json"
		layer["mediaType"] = layerType
		return map[string]any{"schemaVersion": 2, "mediaType": kind, "config": c, "layers": []any{layer}}
	}
	longer := blob("layer")
	longer["size"] = 1 << 20
	huge := blob("layer")
	huge["size"] = int64(1) << 60
	blobs := map[string]func(w http.ResponseWriter){
		hexSum([]byte(config)):  func(w http.ResponseWriter) { fmt.Fprint(w, config) },
		hexSum([]byte("layer")): func(w http.ResponseWriter) { fmt.Fprint(w, "layer") },
		hexSum([]byte("other")): func(w http.ResponseWriter) { fmt.Fprint(w, "evil!") },
		hexSum([]byte("endless")): func(w http.ResponseWriter) {
			for range 64 << 10 {
				if _, err := w.Write(make([]byte, 64<<10)); err != nil {
					return
				}
			}
		},
	}
	docs := map[string]string{
		"digest": doc(man(blob("other"))), "endless": doc(man(blob("endless"))), "short": doc(man(longer)), "huge": doc(man(huge)), "notar": doc(man(blob("layer"))),
		"json": "{", "schema1": `{"schemaVersion":1,"fsLayers":[]}`, "empty": `{}`, "negative": strings.Replace(doc(man(blob("layer"))), `"size":5`, `"size":-5`, 1),
		"big": `{"schemaVersion":2,"x":"` + strings.Repeat("a", 5<<20) + `"}`, "control": "",
	}
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		_, last, _ := strings.Cut(req.URL.Path, "/v2/evil/")
		if tag, ok := strings.CutPrefix(last, "manifests/"); ok {
			if tag == "control" {
				w.WriteHeader(http.StatusBadRequest)
				fmt.Fprint(w, `{"errors":[{"code":"DENIED","message":"\u001b[2J\nyour disk was erased"}]}`)
				return
			}
			w.Header().Set("Content-Type", kind)
			fmt.Fprint(w, docs[tag])
			return
		}
		if write := blobs[strings.TrimPrefix(last, "blobs/sha256:")]; write != nil {
			write(w)
			return
		}
		w.WriteHeader(http.StatusNotFound)
	}))
	defer srv.Close()
	for tag := range docs {
		began := time.Now()
		out, err := e.Try("pull", "-q", strings.TrimPrefix(srv.URL, "http://")+"/evil:"+tag)
		if err == nil {
			t.Errorf("%s: pulled %s", tag, out)
			continue
		}
		text := strings.TrimPrefix(err.Error(), "exit status 1: ")
		if strings.Contains(text, "\n") || strings.Contains(text, "\x1b") || !strings.HasPrefix(text, "Error response from daemon: ") && !strings.Contains(text, " ") {
			t.Errorf("%s: %q", tag, text)
		}
		t.Logf("%s (%s): %s", tag, time.Since(began).Round(time.Millisecond), text)
	}
	settle(t, "blobs", func() bool { return arrived(e) == 0 })
}
