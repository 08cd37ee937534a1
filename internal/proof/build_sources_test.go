package proof

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/cgi"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"corten.dev/corten/internal/enginetest"
)

// put writes files of a build context.
func put(t *testing.T, dir string, files map[string]string) string {
	t.Helper()
	for name, content := range files {
		p := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// webFiles is a web server with files that can be changed, and what it was asked for.
type webFiles struct {
	mu    sync.Mutex
	files map[string]string
	sent  []string // bodies
}

func (w *webFiles) ServeHTTP(out http.ResponseWriter, r *http.Request) {
	w.mu.Lock()
	defer w.mu.Unlock()
	body, ok := w.files[r.URL.Path]
	if !ok {
		out.WriteHeader(http.StatusNotFound)
		return
	}
	etag := fmt.Sprintf("%q", body)
	out.Header().Set("ETag", etag)
	if r.Header.Get("If-None-Match") == etag {
		out.WriteHeader(http.StatusNotModified)
		return
	}
	w.sent = append(w.sent, r.URL.Path)
	_, _ = io.WriteString(out, body)
}

func (w *webFiles) set(path, body string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.files[path] = body
}

func (w *webFiles) count() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.sent)
}

// ADD takes files of web servers: as they are, not unpacked when a name says so, asked again and not sent again; a change is seen, a wrong checksum refused.
func TestBuildAddsFromTheWeb(t *testing.T) {
	web := &webFiles{files: map[string]string{"/dir/a.txt": "one", "/x": "two"}}
	srv := httptest.NewServer(web)
	defer srv.Close()
	e := enginetest.Start(t)
	dir := put(t, t.TempDir(), map[string]string{"Dockerfile": "FROM busybox\nADD " + srv.URL + "/dir/a.txt /got/\nADD --chmod=755 --chown=7:8 " + srv.URL + "/x /x\nRUN cat /got/a.txt /x > /both"})
	e.Corten("build", "-t", "one", dir)
	if got := e.Corten("run", "--rm", "--network", "none", "one", "sh", "-c", "cat /both; stat -c ' %a %u:%g' /x; stat -c '%a' /got/a.txt"); got != "onetwo 755 7:8\n600" {
		t.Errorf("%q", got)
	}
	before := web.count()
	id := e.Corten("inspect", "-f", "{{.Id}}", "one")
	e.Corten("build", "-t", "two", dir)
	if again := e.Corten("inspect", "-f", "{{.Id}}", "two"); again != id || web.count() != before {
		t.Errorf("a rebuild made %s of %s and fetched %d files", again, id, web.count()-before)
	}
	e.Kill9()
	e.Up()
	e.Corten("build", "-t", "two", dir)
	if web.count() != before {
		t.Error("a killed engine forgot what it had fetched")
	}
	web.set("/dir/a.txt", "changed")
	e.Corten("build", "-t", "three", dir)
	if got := e.Corten("run", "--rm", "--network", "none", "three", "cat", "/both"); got != "changedtwo" {
		t.Errorf("%q", got)
	}
	sum := put(t, t.TempDir(), map[string]string{"Dockerfile": "FROM scratch\nADD --checksum=sha256:" + strings.Repeat("0", 64) + " " + srv.URL + "/x /x"})
	if out, err := e.Try("build", sum); err == nil || !strings.Contains(err.Error(), "digest mismatch") {
		t.Error(out, err)
	}
	gone := put(t, t.TempDir(), map[string]string{"Dockerfile": "FROM scratch\nADD " + srv.URL + "/none /x"})
	if out, err := e.Try("build", gone); err == nil || !strings.Contains(err.Error(), "404") {
		t.Error(out, err)
	}
	// A Dockerfile, and a whole context, may come from there.
	web.set("/Dockerfile", "FROM busybox\nRUN echo far > /far")
	e.Corten("build", "-t", "far", srv.URL+"/Dockerfile")
	if got := e.Corten("run", "--rm", "--network", "none", "far", "cat", "/far"); got != "far" {
		t.Errorf("%q", got)
	}
}

// gitServer serves a folder of repositories by git's own program.
func gitServer(t *testing.T) (dir, url string) {
	t.Helper()
	out, err := exec.Command("git", "--exec-path").Output()
	if err != nil {
		t.Skip("git is not installed")
	}
	dir = t.TempDir()
	srv := httptest.NewServer(&cgi.Handler{Path: filepath.Join(strings.TrimSpace(string(out)), "git-http-backend"), Env: []string{"GIT_PROJECT_ROOT=" + dir, "GIT_HTTP_EXPORT_ALL=1"}})
	t.Cleanup(srv.Close)
	return dir, srv.URL
}

// commit puts files into a repository, and gives the commit.
func commit(t *testing.T, repo string, files map[string]string) string {
	t.Helper()
	put(t, repo, files)
	var last string
	for _, args := range [][]string{{"init", "-q", "-b", "main"}, {"add", "-A"}, {"commit", "-q", "-m", "x"}, {"rev-parse", "HEAD"}} {
		cmd := exec.Command("git", append([]string{"-C", repo, "-c", "user.name=a", "-c", "user.email=a@b"}, args...)...)
		cmd.Env = append(os.Environ(), "GIT_CONFIG_NOSYSTEM=1", "GIT_CONFIG_GLOBAL=/dev/null")
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("git %v: %v: %s", args, err, out)
		}
		last = strings.TrimSpace(string(out))
	}
	return last
}

// A context and files may come from git: by branch, commit, subdirectory; what moved is built again, what did not is not.
func TestBuildFromGit(t *testing.T) {
	repos, url := gitServer(t)
	repo := filepath.Join(repos, "app.git")
	first := commit(t, repo, map[string]string{"Dockerfile": "FROM busybox\nCOPY f /f\nRUN cat /f > /g", "f": "one", "sub/Dockerfile": "FROM busybox\nCOPY . /all", "sub/s": "deep"})
	e := enginetest.Start(t)
	e.Corten("build", "-t", "app", url+"/app.git")
	if got := e.Corten("run", "--rm", "--network", "none", "app", "cat", "/g"); got != "one" {
		t.Errorf("%q", got)
	}
	e.Corten("build", "-t", "sub", url+"/app.git#main:sub")
	if got := e.Corten("run", "--rm", "--network", "none", "sub", "ls", "/all"); got != "Dockerfile\ns" {
		t.Errorf("%q", got)
	}
	commit(t, repo, map[string]string{"f": "two"})
	e.Corten("build", "-t", "app2", url+"/app.git#main")
	if got := e.Corten("run", "--rm", "--network", "none", "app2", "cat", "/g"); got != "two" {
		t.Errorf("%q", got)
	}
	e.Corten("build", "-t", "old", url+"/app.git#"+first)
	if a, b := e.Corten("inspect", "-f", "{{.RootFS.Layers}}", "old"), e.Corten("inspect", "-f", "{{.RootFS.Layers}}", "app"); a != b {
		t.Errorf("the same commit gives other layers: %s %s", a, b)
	}
	add := put(t, t.TempDir(), map[string]string{"Dockerfile": "FROM busybox\nADD " + url + "/app.git#" + first + " /src\nADD --keep-git-dir=true " + url + "/app.git#main /kept"})
	e.Corten("build", "-t", "added", add)
	if got := e.Corten("run", "--rm", "--network", "none", "added", "sh", "-c", "cat /src/f; ls -A /src; test -d /kept/.git && cat /kept/f"); got != "oneDockerfile\nf\nsub\ntwo" {
		t.Errorf("%q", got)
	}
	bad := put(t, t.TempDir(), map[string]string{"Dockerfile": "FROM scratch\nADD " + url + "/app.git#nowhere /src"})
	if out, err := e.Try("build", bad); err == nil || !strings.Contains(err.Error(), "does not contain ref nowhere") {
		t.Error(out, err)
	}
}

// Named contexts take the place of images and stages: a directory, an image, an OCI layout, a repository.
func TestBuildWithNamedContexts(t *testing.T) {
	repos, url := gitServer(t)
	commit(t, filepath.Join(repos, "lib.git"), map[string]string{"lib": "from git"})
	e := enginetest.Start(t)
	dir := put(t, t.TempDir(), map[string]string{"Dockerfile": "FROM base\nCOPY --from=files x /x\nCOPY --from=lib lib /lib\nRUN cat /x /lib > /all"})
	files := put(t, t.TempDir(), map[string]string{"x": "from a directory, ", "y": "unused"})
	e.Corten("build", "-t", "one", "--build-context", "base=docker-image://busybox", "--build-context", "files="+files, "--build-context", "lib="+url+"/lib.git", dir)
	if got := e.Corten("run", "--rm", "--network", "none", "one", "cat", "/all"); got != "from a directory, from git" {
		t.Errorf("%q", got)
	}
	// What one build wrote as an OCI layout is what the next stands on.
	layout := filepath.Join(t.TempDir(), "layout")
	base := put(t, t.TempDir(), map[string]string{"Dockerfile": "FROM busybox\nRUN echo laid out > /x"})
	e.Corten("build", "-o", "type=oci,dest="+layout+".tar", base)
	if err := os.Mkdir(layout, 0o755); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("tar", "-C", layout, "-xf", layout+".tar").CombinedOutput(); err != nil {
		t.Fatal(err, string(out))
	}
	raw, err := os.ReadFile(filepath.Join(layout, "index.json"))
	if err != nil {
		t.Fatal(err)
	}
	var index struct{ Manifests []struct{ Digest string } }
	if err := json.Unmarshal(raw, &index); err != nil || len(index.Manifests) == 0 {
		t.Fatal(err, string(raw))
	}
	over := put(t, t.TempDir(), map[string]string{"Dockerfile": "FROM laid\nRUN cat /x > /y"})
	e.Corten("build", "-t", "two", "--build-context", "laid=oci-layout://"+layout+"@"+index.Manifests[0].Digest, over)
	if got := e.Corten("run", "--rm", "--network", "none", "two", "cat", "/y"); got != "laid out" {
		t.Errorf("%q", got)
	}
}

// A base that only a registry has is pulled for the build, gets no name, is used again without a download, and goes out again with the blobs that it came with; pruning takes it away.
func TestBuildOnRemoteBase(t *testing.T) {
	reg := enginetest.NewRegistry(t)
	e := enginetest.Start(t)
	ref := reg.Addr + "/team/base:1"
	e.Corten("tag", "busybox", ref)
	e.Corten("push", ref)
	e.Corten("rmi", "busybox", ref)
	dir := put(t, t.TempDir(), map[string]string{"Dockerfile": "FROM " + ref + "\nRUN echo hi > /hi"})
	e.Corten("build", "-t", reg.Addr+"/team/app:1", dir)
	if got := e.Corten("images", "-q", ref); got != "" {
		t.Errorf("the base got a name: %s", got)
	}
	e.Corten("build", "-t", "again", dir)
	e.Corten("push", reg.Addr+"/team/app:1")
	layers := func(name string) []string {
		var m struct{ Layers []struct{ Digest string } }
		resp, err := http.NewRequest(http.MethodGet, "http://"+reg.Addr+"/v2/team/"+name+"/manifests/1", nil)
		if err != nil {
			t.Fatal(err)
		}
		resp.Header.Set("Accept", "application/vnd.oci.image.manifest.v1+json, application/vnd.docker.distribution.manifest.v2+json")
		got, err := http.DefaultClient.Do(resp)
		if err != nil {
			t.Fatal(err)
		}
		defer got.Body.Close()
		if err := json.NewDecoder(got.Body).Decode(&m); err != nil {
			t.Fatal(err)
		}
		var all []string
		for _, l := range m.Layers {
			all = append(all, l.Digest)
		}
		return all
	}
	base, app := layers("base"), layers("app")
	if len(base) == 0 || len(app) != len(base)+1 || strings.Join(app[:len(base)], " ") != strings.Join(base, " ") {
		t.Errorf("the base went out as %v, it came as %v", app, base)
	}
	// Its layers outlive a killed engine, and go with the cache.
	e.Kill9()
	e.Up()
	e.Corten("build", "-t", "again", dir)
	e.Corten("rmi", "again", reg.Addr+"/team/app:1")
	e.Corten("builder", "prune", "-a", "-f")
	left, err := os.ReadDir(filepath.Join(e.Dir, "d", "snapshots"))
	if err != nil {
		t.Fatal(err)
	}
	t.Log("left in the store of layers:", len(left))
}

// A client that reaches the engine over the network cannot hand its directory over: its files travel, those that changed only, and look like those that are read in place.
func TestBuildOverTheNetwork(t *testing.T) {
	addr := "tcp://" + enginetest.Addr(t)
	e := enginetest.Start(t, "-H", addr)
	dir := put(t, t.TempDir(), map[string]string{"Dockerfile": "FROM busybox\nCOPY . /ctx\nRUN cd /ctx && find . | sort > /list", ".dockerignore": "*.o\n", "a": "1", "d/b": "2", "skip.o": "x", "big": strings.Repeat("z", 4<<20)})
	if err := os.Symlink("/etc/passwd", filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(filepath.Join(dir, "a"), 0o751); err != nil {
		t.Fatal(err)
	}
	far := func(tag string) string {
		t.Helper()
		cmd := exec.Command(filepath.Join(e.Bin, "corten"), "-H", addr, "build", "--progress", "plain", "-t", tag, dir)
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		return string(out)
	}
	far("far")
	e.Corten("build", "-t", "near", dir)
	if a, b := e.Corten("inspect", "-f", "{{.RootFS.Layers}}", "far"), e.Corten("inspect", "-f", "{{.RootFS.Layers}}", "near"); a != b {
		t.Errorf("what travelled gives other layers than what is read in place: %s %s", a, b)
	}
	if got := e.Corten("run", "--rm", "--network", "none", "far", "sh", "-c", "cat /list; stat -c '%a %u' /ctx/a; readlink /ctx/link"); got != ".\n./.dockerignore\n./Dockerfile\n./a\n./big\n./d\n./d/b\n./link\n751 0\n/etc/passwd" {
		t.Errorf("%q", got)
	}
	if out := far("again"); !strings.Contains(out, "CACHED") {
		t.Error(out)
	}
	put(t, dir, map[string]string{"d/b": "22"})
	out := far("changed")
	if strings.Contains(out, "MB") {
		t.Errorf("more travelled than what changed: %s", out)
	}
	if got := e.Corten("run", "--rm", "--network", "none", "changed", "cat", "/ctx/d/b"); got != "22" {
		t.Errorf("%q", got)
	}
}
