package proof

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"corten.dev/corten/internal/enginetest"
)

// peers runs foreign programs, with a home, stores and credentials that nobody else uses.
type peers struct {
	t   *testing.T
	dir string
	env []string

	deadline context.Context
}

// newPeers skips the test where a program is missing.
func newPeers(t *testing.T, programs ...string) *peers {
	t.Helper()
	enginetest.Bin(t)
	for _, name := range programs {
		if _, err := exec.LookPath(name); err != nil {
			t.Skipf("needs the program %s", name)
		}
	}
	dir, err := os.MkdirTemp("", "ctp") // unix sockets need a short path
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Errorf("something of a foreign program is left: %v", err)
		}
	})
	if err := os.WriteFile(filepath.Join(dir, "auth.json"), []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, sub := range []string{"tmp", "run"} {
		if err := os.Mkdir(filepath.Join(dir, sub), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	deadline, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	t.Cleanup(cancel)
	return &peers{t: t, dir: dir, deadline: deadline, env: append(os.Environ(), "HOME="+dir, "TMPDIR="+dir+"/tmp", "XDG_RUNTIME_DIR="+dir+"/run", "DOCKER_CONFIG="+dir+"/docker")}
}

// command adds what keeps a program to the folder of the test.
func (p *peers) command(name string, args ...string) *exec.Cmd {
	switch name {
	case "podman":
		args = append([]string{"--root", p.dir + "/store", "--runroot", p.dir + "/run/store", "--tmpdir", p.dir + "/run/libpod", "--storage-driver", "vfs", "--cgroup-manager", "cgroupfs", "--events-backend", "file"}, args...)
	case "buildah":
		args = append([]string{"--root", p.dir + "/store", "--runroot", p.dir + "/run/store", "--storage-driver", "vfs"}, args...)
	case "docker":
		args = append([]string{"-H", "unix://" + p.dir + "/docker.sock"}, args...)
	}
	// The deadline is for programs that ask for a password, though nobody is there.
	cmd := exec.CommandContext(p.deadline, name, args...)
	cmd.Env, cmd.Dir = append(p.env, "REGISTRY_AUTH_FILE="+p.dir+"/auth.json"), p.dir // docker-registry takes it for a setting
	return cmd
}

func (p *peers) try(name string, args ...string) (string, error) {
	cmd := p.command(name, args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	if err != nil {
		err = fmt.Errorf("%s %s: %w: %s%s", name, strings.Join(args, " "), err, stdout.String(), stderr.String())
	}
	return strings.TrimSpace(stdout.String()), err
}

func (p *peers) run(name string, args ...string) string {
	p.t.Helper()
	out, err := p.try(name, args...)
	if err != nil {
		p.t.Fatal(err)
	}
	return out
}

// daemon starts a server, which ends with the test; it is up when it takes a connection.
func (p *peers) daemon(network, addr string, cmd *exec.Cmd) error {
	p.t.Helper()
	log, err := os.Create(filepath.Join(p.dir, filepath.Base(cmd.Path)+".log"))
	if err != nil {
		return err
	}
	defer log.Close()
	cmd.Env, cmd.Stdout, cmd.Stderr = append(p.env, cmd.Env...), log, log
	if err := cmd.Start(); err != nil {
		return err
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	p.t.Cleanup(func() {
		_ = cmd.Process.Signal(os.Interrupt) // it may have ended
		<-ended
	})
	for {
		if conn, err := net.Dial(network, addr); err == nil {
			return conn.Close()
		}
		select {
		case err := <-ended:
			ended <- err
			text, _ := os.ReadFile(log.Name())
			return fmt.Errorf("%s ended: %w:\n%s", cmd.Path, err, text)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// doc is what indexes and manifests have in common.
type doc struct {
	MediaType string `json:"mediaType"`
	Manifests []desc `json:"manifests"`
	Config    *desc  `json:"config"`
	Layers    []desc `json:"layers"`
}

type desc struct {
	MediaType string            `json:"mediaType"`
	Digest    string            `json:"digest"`
	Size      int64             `json:"size"`
	Platform  map[string]string `json:"platform,omitempty"`
}

// inRegistry lists the digests of everything below a name, the top one first; each byte of it was read.
func inRegistry(t *testing.T, addr, repo, ref string) []string {
	t.Helper()
	read := func(kind, name string) []byte {
		req, err := http.NewRequest(http.MethodGet, "http://"+addr+"/v2/"+repo+"/"+kind+"/"+name, nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header["Accept"] = []string{"application/vnd.oci.image.index.v1+json", "application/vnd.oci.image.manifest.v1+json",
			"application/vnd.docker.distribution.manifest.list.v2+json", "application/vnd.docker.distribution.manifest.v2+json"}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		if err != nil || resp.StatusCode != http.StatusOK {
			t.Fatalf("%s %s of %s: %s %v %s", kind, name, repo, resp.Status, err, body)
		}
		if strings.HasPrefix(name, "sha256:") && name != "sha256:"+hexSum(body) {
			t.Fatalf("%s %s of %s is corrupt", kind, name, repo)
		}
		return body
	}
	var all []string
	var walk func(raw []byte)
	walk = func(raw []byte) {
		all = append(all, "sha256:"+hexSum(raw))
		var d doc
		if err := json.Unmarshal(raw, &d); err != nil {
			t.Fatal(err)
		}
		for _, m := range d.Manifests {
			walk(read("manifests", m.Digest))
		}
		if d.Config != nil {
			all = append(all, "sha256:"+hexSum(read("blobs", d.Config.Digest)))
		}
		for _, l := range d.Layers {
			all = append(all, "sha256:"+hexSum(read("blobs", l.Digest)))
		}
	}
	walk(read("manifests", ref))
	return append(all[:1], slices.Compact(slices.Sorted(slices.Values(all[1:])))...)
}

// inLayout lists the digests of an OCI layout with one name, the top one first.
func inLayout(t *testing.T, dir string) []string {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join(dir, "index.json"))
	var d doc
	if err != nil || json.Unmarshal(raw, &d) != nil || len(d.Manifests) != 1 {
		t.Fatalf("the layout %s: %v %s", dir, err, raw)
	}
	names, err := filepath.Glob(filepath.Join(dir, "blobs/sha256/*"))
	if err != nil {
		t.Fatal(err)
	}
	all := []string{d.Manifests[0].Digest}
	for _, name := range names {
		if one := "sha256:" + filepath.Base(name); one != all[0] {
			all = append(all, one)
		}
	}
	return all
}

// makeLayout writes an OCI layout with one name, v1: an index of one image for each platform. The images have their first layer in common.
func makeLayout(t *testing.T, dir string, archs ...string) []string {
	t.Helper()
	put := func(kind string, data []byte) desc {
		sum := hexSum(data)
		if err := os.MkdirAll(filepath.Join(dir, "blobs/sha256"), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "blobs/sha256", sum), data, 0o644); err != nil {
			t.Fatal(err)
		}
		return desc{MediaType: "application/vnd.oci.image." + kind, Digest: "sha256:" + sum, Size: int64(len(data))}
	}
	asJSON := func(v any) []byte {
		raw, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		return raw
	}
	layer := func(level int, name, text string) (desc, string) {
		var plain, packed bytes.Buffer
		tw := tar.NewWriter(&plain)
		if err := tw.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(text))}); err != nil {
			t.Fatal(err)
		}
		_, _ = io.WriteString(tw, text) // into memory
		_ = tw.Close()
		zw, err := gzip.NewWriterLevel(&packed, level)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = zw.Write(plain.Bytes())
		_ = zw.Close()
		return put("layer.v1.tar+gzip", packed.Bytes()), "sha256:" + hexSum(plain.Bytes())
	}
	var images []desc
	for i, arch := range archs {
		common, commonDiff := layer(9, "common", strings.Repeat("of all platforms ", 3000))
		own, ownDiff := layer(1+i, arch, strings.Repeat(arch+" ", 5000))
		config := put("config.v1+json", asJSON(map[string]any{"os": "linux", "architecture": arch, "config": map[string]any{"Cmd": []string{"/" + arch}},
			"rootfs": map[string]any{"type": "layers", "diff_ids": []string{commonDiff, ownDiff}}}))
		img := put("manifest.v1+json", asJSON(map[string]any{"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json", "config": config, "layers": []desc{common, own}}))
		img.Platform = map[string]string{"os": "linux", "architecture": arch}
		images = append(images, img)
	}
	top := images[0]
	if len(archs) > 1 {
		top = put("index.v1+json", asJSON(map[string]any{"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": images}))
	}
	named := map[string]any{"mediaType": top.MediaType, "digest": top.Digest, "size": top.Size, "annotations": map[string]string{"org.opencontainers.image.ref.name": "v1"}}
	for name, data := range map[string][]byte{"oci-layout": []byte(`{"imageLayoutVersion":"1.0.0"}`), "index.json": asJSON(map[string]any{"schemaVersion": 2, "manifests": []any{named}})} {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return inLayout(t, dir)
}

func same(t *testing.T, what string, want, got []string) {
	t.Helper()
	if !slices.Equal(want, got) {
		t.Errorf("%s:\n had %s\n has %s", what, strings.Join(want, "\n     "), strings.Join(got, "\n     "))
	}
}

// An index of two platforms goes the round by skopeo, our registry and our engine, and nothing of it changes, not even what was packed.
func TestInteropSkopeo(t *testing.T) {
	p := newPeers(t, "skopeo")
	e := enginetest.New(t)
	e.Up()
	reg := enginetest.NewRegistry(t)
	want := makeLayout(t, p.dir+"/in", "amd64", "arm64")
	at := "docker://" + reg.Addr + "/sko"

	p.run("skopeo", "copy", "--all", "--dest-tls-verify=false", "oci:"+p.dir+"/in:v1", at+"/one:v1")
	same(t, "layout to registry", want, inRegistry(t, reg.Addr, "sko/one", "v1"))
	p.run("skopeo", "copy", "--all", "--src-tls-verify=false", at+"/one:v1", "oci:"+p.dir+"/out:v1")
	same(t, "layout to registry to layout", want, inLayout(t, p.dir+"/out"))
	p.run("skopeo", "copy", "--all", "--src-tls-verify=false", "--dest-tls-verify=false", at+"/one:v1", at+"/two:v1")
	same(t, "registry to registry", want, inRegistry(t, reg.Addr, "sko/two", "v1"))

	e.Corten("pull", "-q", "--all-platforms", reg.Addr+"/sko/one:v1")
	e.Corten("tag", reg.Addr+"/sko/one:v1", reg.Addr+"/sko/three:v1")
	e.Corten("push", "-q", reg.Addr+"/sko/three:v1")
	same(t, "through our engine", want, inRegistry(t, reg.Addr, "sko/three", "v1"))

	if out := p.run("skopeo", "list-tags", "--tls-verify=false", at+"/one"); !strings.Contains(out, `"v1"`) {
		t.Errorf("list-tags: %s", out)
	}
	p.run("skopeo", "delete", "--tls-verify=false", at+"/two:v1")
	if out, err := p.try("skopeo", "inspect", "--raw", "--tls-verify=false", at+"/two:v1"); err == nil {
		t.Errorf("the deleted image is there: %s", out)
	}
	same(t, "after a delete elsewhere", want, inRegistry(t, reg.Addr, "sko/one", "v1"))
}

// docker-daemon: is the engine's socket as skopeo sees it; archives have no manifest of their own, so what must not change there is the config, with it the contents of the layers.
func TestInteropSkopeoDaemon(t *testing.T) {
	p := newPeers(t, "skopeo")
	e := enginetest.New(t)
	e.Up()
	reg := enginetest.NewRegistry(t)
	want := makeLayout(t, p.dir+"/in", "amd64")
	config := layoutConfig(t, p.dir+"/in")

	p.run("skopeo", "copy", "--dest-daemon-host", e.Socket(), "oci:"+p.dir+"/in:v1", "docker-daemon:"+reg.Addr+"/sko/d:v1")
	if id := e.Corten("image", "inspect", "-f", "{{.Id}}", reg.Addr+"/sko/d:v1"); id != config {
		t.Errorf("the layout's image is %s, and %s in our engine", config, id)
	}
	p.run("skopeo", "copy", "--src-daemon-host", e.Socket(), "docker-daemon:"+reg.Addr+"/sko/d:v1", "dir:"+p.dir+"/out") // to a layout skopeo writes the config anew
	if _, err := os.Stat(filepath.Join(p.dir, "out", strings.TrimPrefix(config, "sha256:"))); err != nil {
		t.Errorf("the config came out of our engine as another: %v", err)
	}
	p.run("skopeo", "copy", "--src-daemon-host", e.Socket(), "--dest-tls-verify=false", "docker-daemon:"+reg.Addr+"/sko/d:v1", "docker://"+reg.Addr+"/sko/d:v2")
	e.Corten("rmi", reg.Addr+"/sko/d:v1")
	e.Corten("pull", "-q", reg.Addr+"/sko/d:v2")
	if id := e.Corten("image", "inspect", "-f", "{{.Id}}", reg.Addr+"/sko/d:v2"); id != config {
		t.Errorf("the layout's image is %s, and %s when it was pulled", config, id)
	}
	e.Corten("rmi", reg.Addr+"/sko/d:v2")

	// An archive of the layout keeps all digests on its way through load and push.
	p.run("skopeo", "copy", "oci:"+p.dir+"/in:v1", "oci-archive:"+p.dir+"/in.tar:"+reg.Addr+"/sko/a:v1")
	e.Corten("load", "-q", "-i", p.dir+"/in.tar")
	e.Corten("push", "-q", reg.Addr+"/sko/a:v1")
	same(t, "oci-archive, load, push", want, inRegistry(t, reg.Addr, "sko/a", "v1"))
	// What save writes is an archive in both senses.
	e.Corten("save", "-o", p.dir+"/saved.tar", reg.Addr+"/sko/a:v1")
	p.run("skopeo", "copy", "docker-archive:"+p.dir+"/saved.tar", "dir:"+p.dir+"/saved")
	if _, err := os.Stat(filepath.Join(p.dir, "saved", strings.TrimPrefix(config, "sha256:"))); err != nil {
		t.Errorf("the config was saved as another: %v", err)
	}
	p.run("skopeo", "copy", "oci-archive:"+p.dir+"/saved.tar", "oci:"+p.dir+"/kept:v1")
	same(t, "oci-archive, load, save, oci-archive", want, inLayout(t, p.dir+"/kept"))
}

// layoutConfig is the digest of the config of the one image of a layout.
func layoutConfig(t *testing.T, dir string) string {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join(dir, "blobs/sha256", strings.TrimPrefix(inLayout(t, dir)[0], "sha256:")))
	var d doc
	if err != nil || json.Unmarshal(raw, &d) != nil || d.Config == nil {
		t.Fatalf("the layout %s has no image: %v %s", dir, err, raw)
	}
	return d.Config.Digest
}
