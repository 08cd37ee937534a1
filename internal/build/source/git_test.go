package source

import (
	"context"
	"io"
	"net"
	"net/http"
	"net/http/cgi"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/moby/buildkit/client/llb/sourceresolver"
	"github.com/moby/buildkit/solver/pb"

	"corten.dev/corten/internal/errs"
)

// gitHost serves repositories by git's own http-backend.
type gitHost struct {
	dir, url string
	auth     string // asked for, if set
	requests []string
}

func newGitHost(t *testing.T) *gitHost {
	t.Helper()
	git, err := exec.LookPath("git")
	if err != nil {
		t.Skip("git is not installed")
	}
	out, err := exec.Command(git, "--exec-path").Output()
	if err != nil {
		t.Fatal(err)
	}
	h := &gitHost{dir: t.TempDir()}
	backend := &cgi.Handler{Path: filepath.Join(strings.TrimSpace(string(out)), "git-http-backend"), Env: []string{"GIT_PROJECT_ROOT=" + h.dir, "GIT_HTTP_EXPORT_ALL=1"}, InheritEnv: []string{"PATH"}}
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h.requests = append(h.requests, r.URL.Path)
		if h.auth != "" && r.Header.Get("Authorization") != h.auth {
			w.Header().Set("WWW-Authenticate", "Basic")
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		backend.ServeHTTP(w, r)
	}))
	t.Cleanup(srv.Close)
	h.url = srv.URL
	return h
}

// git runs git in a repository of the host.
func (h *gitHost) git(t *testing.T, repo string, args ...string) string {
	t.Helper()
	cmd := exec.Command("git", append([]string{"-C", filepath.Join(h.dir, repo), "-c", "protocol.file.allow=always"}, args...)...)
	cmd.Env = append(os.Environ(), "GIT_CONFIG_NOSYSTEM=1", "GIT_CONFIG_GLOBAL=/dev/null", "GIT_AUTHOR_NAME=a", "GIT_AUTHOR_EMAIL=a@b", "GIT_COMMITTER_NAME=a", "GIT_COMMITTER_EMAIL=a@b",
		"GIT_AUTHOR_DATE=2021-01-02T03:04:05Z", "GIT_COMMITTER_DATE=2021-01-02T03:04:05Z")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("git %v: %v\n%s", args, err, out)
	}
	return strings.TrimSpace(string(out))
}

// commit writes files and commits them.
func (h *gitHost) commit(t *testing.T, repo string, files map[string]string) string {
	t.Helper()
	dir := filepath.Join(h.dir, repo)
	if _, err := os.Stat(dir); err != nil {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		h.git(t, repo, "init", "-q", "-b", "main")
	}
	for name, content := range files {
		p := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		mode := os.FileMode(0o600)
		if strings.HasPrefix(content, "#!") {
			mode = 0o700
		}
		if target, ok := strings.CutPrefix(content, "-> "); ok {
			if err := os.Symlink(target, p); err != nil {
				t.Fatal(err)
			}
			continue
		}
		if err := os.WriteFile(p, []byte(content), mode); err != nil {
			t.Fatal(err)
		}
	}
	h.git(t, repo, "add", "-A")
	h.git(t, repo, "commit", "-q", "-m", "x")
	return h.git(t, repo, "rev-parse", "HEAD")
}

// source runs a git source of the host's repository.
func (h *gitHost) source(repo, fragment string, attrs map[string]string) (string, map[string]string) {
	all := map[string]string{pb.AttrFullRemoteURL: h.url + "/" + repo}
	for k, v := range attrs {
		all[k] = v
	}
	return "git://" + strings.TrimPrefix(h.url, "http://") + "/" + repo + fragment, all
}

func TestGit(t *testing.T) {
	b, h := newBench(t, nil), newGitHost(t)
	first := h.commit(t, "app", map[string]string{"a": "1", "run.sh": "#!/bin/sh", "sub/dir/f": "deep", "link": "-> a"})
	h.git(t, "app", "tag", "-a", "-m", "tag", "v1")
	second := h.commit(t, "app", map[string]string{"a": "2"})
	h.git(t, "app", "branch", "old", first)
	h.git(t, "app", "update-ref", "refs/pull/7/head", first)

	id, attrs := h.source("app", "", nil)
	made, key := b.ok(t, id, attrs)
	tree := b.tree(t, made.Outputs[0].Chain)
	if tree["a"].content != "2" || tree["a"].mode != 0o644 || tree["run.sh"].mode != 0o755 || tree["link"].content != "a" || tree["sub/dir"].mode.Perm() != 0o755 || made.Cached {
		t.Errorf("%+v", tree)
	}
	if _, ok := tree[".git"]; ok {
		t.Error(".git is there")
	}
	// Again, by the commit's name: nobody is asked.
	h.requests = nil
	id, attrs = h.source("app", "#"+second, nil)
	again, same := b.ok(t, id, attrs)
	if !again.Cached || same != key || len(h.requests) > 0 {
		t.Error(again.Cached, same == key, h.requests)
	}
	for _, ref := range []string{"v1", "old", "refs/heads/old", "pull/7/head", "refs/pull/7/head", first, "refs/tags/v1"} {
		id, attrs := h.source("app", "#"+ref+":sub", map[string]string{pb.AttrGitChecksum: first[:12], pb.AttrGitMTime: "commit"})
		made, _ := b.ok(t, id, attrs)
		tree := b.tree(t, made.Outputs[0].Chain)
		if n := tree["dir/f"]; n.content != "deep" || !n.mtime.Equal(time.Date(2021, 1, 2, 3, 4, 5, 0, time.UTC)) || len(tree) != 2 {
			t.Errorf("%s: %+v", ref, tree)
		}
	}
	op, oattrs := h.source("app", "#v1", nil)
	meta, err := b.Resolve(t.Context(), &pb.SourceOp{Identifier: op, Attrs: oattrs}, sourceresolver.Opt{}, b.env())
	if err != nil || meta.Git.Ref != "refs/tags/v1" || meta.Git.CommitChecksum != first || meta.Git.Checksum == first {
		t.Error(meta, err)
	}
	for fragment, want := range map[string]string{"#none": "does not contain ref none", ":nowhere": "", "#main:nowhere": "subdir nowhere: no such directory", "#" + strings.Repeat("a", 40): "", "#main:a": "no such directory", "#-x": "no part of an address", "#a..b": "no valid name"} {
		id, attrs := h.source("app", fragment, nil)
		if _, _, err := b.run(t, id, attrs); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", fragment, err)
		}
	}
	id, attrs = h.source("app", "#main", map[string]string{pb.AttrGitChecksum: first})
	if _, _, err := b.run(t, id, attrs); err == nil || !strings.Contains(err.Error(), "expected checksum to match "+first) {
		t.Error(err)
	}
	// A policy looks at the identifier, git at the address: they must be the same repository.
	if _, _, err := b.run(t, "git://github.com/app", attrs); err == nil || !strings.Contains(err.Error(), "another repository") {
		t.Error(err)
	}
}

func TestGitKeepDir(t *testing.T) {
	b, h := newBench(t, nil), newGitHost(t)
	commit := h.commit(t, "app", map[string]string{"a": "1"})
	h.git(t, "app", "tag", "v1")
	id, attrs := h.source("app", "#v1", map[string]string{pb.AttrKeepGitDir: "true"})
	made, _ := b.ok(t, id, attrs)
	tree := b.tree(t, made.Outputs[0].Chain)
	if !strings.Contains(tree[".git/config"].content, "url = "+h.url+"/app") || strings.TrimSpace(tree[".git/HEAD"].content) != commit || strings.TrimSpace(tree[".git/refs/tags/v1"].content) != commit {
		t.Errorf("%+v", tree)
	}
	for name := range tree {
		if strings.Contains(name, "corten") {
			t.Error(name)
		}
	}
}

func TestGitSubmodules(t *testing.T) {
	b, h := newBench(t, nil), newGitHost(t)
	h.commit(t, "lib", map[string]string{"lib.c": "int"})
	h.commit(t, "app", map[string]string{"a": "1"})
	h.git(t, "app", "submodule", "add", "-q", "../lib", "vendored")
	h.git(t, "app", "config", "-f", ".gitmodules", "submodule.vendored.url", "../lib")
	h.commit(t, "app", nil)
	id, attrs := h.source("app", "", nil)
	made, _ := b.ok(t, id, attrs)
	tree := b.tree(t, made.Outputs[0].Chain)
	if tree["vendored/lib.c"].content != "int" {
		t.Errorf("%+v", tree)
	}
	if _, ok := tree["vendored/.git"]; ok {
		t.Error("a submodule's .git is there")
	}
	id, attrs = h.source("app", "", map[string]string{pb.AttrGitSkipSubmodules: "true"})
	made, _ = b.ok(t, id, attrs)
	if _, ok := b.tree(t, made.Outputs[0].Chain)["vendored/lib.c"]; ok {
		t.Error("submodules are there")
	}
	// A submodule that is a folder of this host is not fetched.
	h.git(t, "app", "config", "-f", ".gitmodules", "submodule.vendored.url", h.dir+"/lib")
	h.commit(t, "app", nil)
	id, attrs = h.source("app", "", nil)
	if _, _, err := b.run(t, id, attrs); err == nil || !strings.Contains(err.Error(), "transport 'file' not allowed") {
		t.Error(err)
	}
}

func TestGitSecrets(t *testing.T) {
	b, h := newBench(t, nil), newGitHost(t)
	h.commit(t, "app", map[string]string{"a": "1"})
	h.auth = basic("x-access-token", "geheim")
	id, attrs := h.source("app", "", map[string]string{pb.AttrAuthTokenSecret: "GIT_AUTH_TOKEN", pb.AttrAuthHeaderSecret: "GIT_AUTH_HEADER"})
	if _, _, err := b.run(t, id, attrs); err == nil {
		t.Fatal("without a token")
	}
	b.ses.Secrets = secrets{"GIT_AUTH_TOKEN": "geheim"}
	made, _ := b.ok(t, id, attrs)
	if b.tree(t, made.Outputs[0].Chain)["a"].content != "1" {
		t.Error("wrong tree")
	}
	b.ses.Secrets = secrets{"GIT_AUTH_HEADER." + strings.TrimPrefix(h.url, "http://"): h.auth, "GIT_AUTH_HEADER": "wrong"}
	b.ok(t, id, attrs)
	h.auth = "basic other"
	b.cache.Forget()
	_, _, err := b.run(t, id, attrs)
	if err == nil || strings.Contains(err.Error()+b.p.log.String(), "geheim") || strings.Contains(err.Error(), "Authorization") {
		t.Error(err)
	}
	// What is on disk has no secret.
	filepath.WalkDir(b.opts.Root, func(p string, d os.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			if raw, _ := os.ReadFile(p); strings.Contains(string(raw), "geheim") || strings.Contains(string(raw), strings.TrimPrefix(basic("x-access-token", "geheim"), "basic ")) {
				t.Error(p, "has the secret")
			}
		}
		return nil
	})
}

// A repository that wants more than its files: links out of it as subdirectory, a hook, a filter, a name that is .git to some file system, an attribute that runs a program.
func TestGitHostile(t *testing.T) {
	b, h := newBench(t, nil), newGitHost(t)
	outside := t.TempDir()
	if err := os.WriteFile(filepath.Join(outside, "secret"), []byte("s"), 0o600); err != nil {
		t.Fatal(err)
	}
	h.commit(t, "app", map[string]string{"out": "-> " + outside, "up": "-> ../../../../../..", "in": "-> real", "real/f": "1", ".gitattributes": "* filter=evil diff=evil", "hooks/post-checkout": "#!/bin/sh\ntouch " + outside + "/ran"})
	for _, dir := range []string{"out", "up/etc", "../../etc", "in/../../../../etc"} {
		id, attrs := h.source("app", "#main:"+dir, nil)
		made, _, err := b.run(t, id, attrs)
		if err == nil {
			for name := range b.tree(t, made.Outputs[0].Chain) {
				if name == "secret" || name == "passwd" {
					t.Errorf("%s: %s", dir, name)
				}
			}
		}
	}
	id, attrs := h.source("app", "#main:in", nil)
	if made, _ := b.ok(t, id, attrs); b.tree(t, made.Outputs[0].Chain)["f"].content != "1" {
		t.Error("a link inside is followed")
	}
	if _, err := os.Stat(filepath.Join(outside, "ran")); err == nil {
		t.Error("a hook was run")
	}
	b.opts.Git = "no-such-git"
	if _, _, err := b.run(t, id, attrs); err == nil || !strings.Contains(err.Error(), "the program git is not installed") {
		t.Error(err)
	}
}

// agent is a session's ssh agent that answers each line with itself.
type agent struct{ dials []string }

func (a *agent) Offers(_ context.Context, id string) error {
	if id != "default" {
		return errs.New(errs.NotFound, "no agent %s", id)
	}
	return nil
}

func (a *agent) Dial(_ context.Context, id string) (io.ReadWriteCloser, error) {
	a.dials = append(a.dials, id)
	here, there := net.Pipe()
	go io.Copy(there, there)
	return here, nil
}

// Over ssh, git's ssh finds the asker's agent at a socket, and trusts the host keys that were given, no others. The ssh of this test asks the agent, and is the host.
func TestGitSSH(t *testing.T) {
	b, h := newBench(t, nil), newGitHost(t)
	h.commit(t, "app", map[string]string{"a": "1"})
	bin := t.TempDir()
	script := `#!/bin/sh
for a; do
	case "$a" in
	UserKnownHostsFile=*) cat "${a#*=}" >` + bin + `/seen ;;
	StrictHostKeyChecking=*) echo "$a" >` + bin + `/strict ;;
	esac
done
test -S "$SSH_AUTH_SOCK" || exit 7
exec git-upload-pack ` + h.dir + `/app
`
	if err := os.WriteFile(bin+"/ssh", []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
	id := "git://host.example/app"
	attrs := map[string]string{pb.AttrFullRemoteURL: "git@host.example:app", pb.AttrMountSSHSock: "default", pb.AttrKnownSSHHosts: "host.example ssh-ed25519 AAAA\n"}
	if _, _, err := b.run(t, id, attrs); err == nil || !strings.Contains(err.Error(), "unset ssh forward key default") {
		t.Error(err)
	}
	a := &agent{}
	b.ses.SSH = a
	made, _ := b.ok(t, id, attrs)
	if b.tree(t, made.Outputs[0].Chain)["a"].content != "1" {
		t.Error("wrong tree")
	}
	if seen, err := os.ReadFile(bin + "/seen"); err != nil || string(seen) != "host.example ssh-ed25519 AAAA\n" {
		t.Errorf("%q %v", seen, err)
	}
	if strict, err := os.ReadFile(bin + "/strict"); err != nil || string(strict) != "StrictHostKeyChecking=yes\n" {
		t.Errorf("%q %v", strict, err)
	}
	delete(attrs, pb.AttrKnownSSHHosts)
	if _, _, err := b.run(t, id, attrs); err == nil || !strings.Contains(err.Error(), "the host's key is not known") {
		t.Error(err)
	}
	attrs[pb.AttrMountSSHSock] = "other"
	attrs[pb.AttrKnownSSHHosts] = "x"
	if _, _, err := b.run(t, id, attrs); err == nil || !strings.Contains(err.Error(), "no agent other") {
		t.Error(err)
	}
}

// The socket of the agent joins each connection with a new one of the asker, and ends with the source.
func TestAgentSocket(t *testing.T) {
	b := newBench(t, nil)
	a := &agent{}
	b.ses.SSH = a
	id, err := parseGit(&pb.SourceOp{Identifier: "git://h/p", Attrs: map[string]string{pb.AttrFullRemoteURL: "ssh://git@h/p", pb.AttrMountSSHSock: "default", pb.AttrKnownSSHHosts: "h x"}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := exec.LookPath("git"); err != nil {
		t.Skip("git is not installed")
	}
	g, release, err := b.gitRun(t.Context(), b.env(), id)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		conn, err := net.Dial("unix", filepath.Join(g.tmp, "agent"))
		if err != nil {
			t.Fatal(err)
		}
		got := make([]byte, 5)
		if _, err := conn.Write([]byte("hello")); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(conn, got); err != nil || string(got) != "hello" {
			t.Errorf("%q %v", got, err)
		}
		defer conn.Close()
	}
	release()
	if len(a.dials) != 2 {
		t.Error(a.dials)
	}
}

// A git that was killed in the middle leaves locks, a host that went down leaves objects without content: once, such a repository made each build of that commit fail.
func TestGitSpoilt(t *testing.T) {
	b, h := newBench(t, nil), newGitHost(t)
	first := h.commit(t, "app", map[string]string{"a": "1"})
	id, attrs := h.source("app", "", nil)
	b.ok(t, id, attrs)
	all, err := b.Repositories(t.Context())
	if err != nil || len(all) != 1 {
		t.Fatal(all, err)
	}
	repo := filepath.Join(b.opts.Root, "git", all[0].ID)
	second := h.commit(t, "app", map[string]string{"a": "2"})
	for _, lock := range []string{"shallow.lock", "refs/corten/" + second + ".lock"} {
		if err := os.WriteFile(filepath.Join(repo, lock), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if made, _ := b.ok(t, id, attrs); b.tree(t, made.Outputs[0].Chain)["a"].content != "2" {
		t.Error("wrong tree")
	}
	err = filepath.WalkDir(filepath.Join(repo, "objects"), func(p string, d os.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			err = os.Chmod(p, 0o600)
			if err == nil {
				err = os.Truncate(p, 0)
			}
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	b.cache.Forget()
	for fragment, want := range map[string]string{"": "2", "#" + first: "1"} {
		id, attrs := h.source("app", fragment, nil)
		if made, _ := b.ok(t, id, attrs); b.tree(t, made.Outputs[0].Chain)["a"].content != want {
			t.Error("wrong tree")
		}
	}
}
