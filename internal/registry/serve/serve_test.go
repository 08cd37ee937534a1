package serve

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"golang.org/x/crypto/bcrypt"

	"corten.dev/corten/internal/registry/server/servertest"
)

// running is a registry started by its command line, inside the test's process.
type running struct {
	t       *testing.T
	addr    string
	url     string
	dir     string
	log     *lockedBuffer
	signals chan os.Signal
	code    chan int
}

type lockedBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

func writeFile(t *testing.T, path, text string) string {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func users(t *testing.T, list ...string) string {
	t.Helper()
	text := ""
	for _, u := range list {
		user, password, _ := strings.Cut(u, ":")
		hash, err := bcrypt.GenerateFromPassword([]byte(password), bcrypt.MinCost)
		if err != nil {
			t.Fatal(err)
		}
		text += user + ":" + string(hash) + "\n"
	}
	return writeFile(t, filepath.Join(t.TempDir(), "users"), text)
}

// start runs "serve" with a configuration file (a Go value) and flags, and waits until it answers.
func start(t *testing.T, conf map[string]any, flags ...string) *running {
	t.Helper()
	r := &running{t: t, dir: t.TempDir(), log: &lockedBuffer{}, signals: make(chan os.Signal, 2), code: make(chan int, 1)}
	r.configure(conf)
	ready := make(chan string, 1)
	args := append([]string{"serve", "--addr", "127.0.0.1:0", "--root", filepath.Join(r.dir, "root"), "--config", filepath.Join(r.dir, "conf.json")}, flags...)
	go func() {
		r.code <- Main(context.Background(), args, IO{In: strings.NewReader(""), Out: r.log, Err: r.log, Version: "test", Signals: r.signals, Ready: func(addr string) { ready <- addr }})
	}()
	select {
	case r.addr = <-ready:
	case code := <-r.code:
		t.Fatalf("the registry ended with %d:\n%s", code, r.log)
	case <-time.After(time.Minute):
		t.Fatalf("the registry does not answer:\n%s", r.log)
	}
	r.url = "http://" + r.addr
	t.Cleanup(r.stop)
	return r
}

func (r *running) configure(conf map[string]any) {
	r.t.Helper()
	if conf == nil {
		conf = map[string]any{}
	}
	text, err := json.Marshal(conf)
	if err != nil {
		r.t.Fatal(err)
	}
	writeFile(r.t, filepath.Join(r.dir, "conf.json"), string(text))
}

func (r *running) stop() {
	http.DefaultTransport.(*http.Transport).CloseIdleConnections()
	select {
	case code := <-r.code:
		r.code <- code
		return
	default:
	}
	r.signals <- syscall.SIGTERM
	select {
	case code := <-r.code:
		if code != 0 {
			r.t.Errorf("the registry ended with %d:\n%s", code, r.log)
		}
		r.code <- code
	case <-time.After(time.Minute):
		r.t.Errorf("the registry does not end:\n%s", r.log)
	}
}

func (r *running) waitLog(text string) {
	r.t.Helper()
	for end := time.Now().Add(time.Minute); !strings.Contains(r.log.String(), text); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			r.t.Fatalf("the log does not say %q:\n%s", text, r.log)
		}
	}
}

func (r *running) get(path, user string) (int, http.Header, string) {
	r.t.Helper()
	req, err := http.NewRequest(http.MethodGet, r.url+path, nil)
	if err != nil {
		r.t.Fatal(err)
	}
	if name, password, ok := strings.Cut(user, ":"); ok {
		req.SetBasicAuth(name, password)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		r.t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		r.t.Fatal(err)
	}
	return resp.StatusCode, resp.Header, string(body)
}

func (r *running) tag(ref string) name.Reference {
	r.t.Helper()
	tag, err := name.ParseReference(r.addr+"/"+ref, name.Insecure)
	if err != nil {
		r.t.Fatal(err)
	}
	return tag
}

func as(user string) remote.Option {
	name, password, ok := strings.Cut(user, ":")
	if !ok {
		return remote.WithAuth(authn.Anonymous)
	}
	return remote.WithAuth(&authn.Basic{Username: name, Password: password})
}

func (r *running) push(ref, user string) (v1.Image, error) {
	r.t.Helper()
	img, err := random.Image(20000, 2)
	if err != nil {
		r.t.Fatal(err)
	}
	return img, remote.Write(r.tag(ref), img, as(user))
}

func (r *running) pull(ref, user string) error {
	img, err := remote.Image(r.tag(ref), as(user))
	if err != nil {
		return err
	}
	layers, err := img.Layers()
	if err != nil {
		return err
	}
	for _, l := range layers {
		rc, err := l.Compressed()
		if err != nil {
			return err
		}
		_, err = io.Copy(io.Discard, rc)
		if err := errors.Join(err, rc.Close()); err != nil {
			return err
		}
	}
	return nil
}

func wantError(t *testing.T, what string, err error, text string) {
	t.Helper()
	if text == "" && err != nil || text != "" && (err == nil || !strings.Contains(err.Error(), text)) {
		t.Errorf("%s: got %v, want %q", what, err, text)
	}
}

var rightsConf = map[string]any{
	"groups": map[string]any{"dev": []string{"bob"}},
	"rules": []any{
		map[string]any{"users": []string{"ann"}, "repositories": []string{"**"}, "actions": []string{"*"}},
		map[string]any{"groups": []string{"dev"}, "repositories": []string{"team/**"}, "actions": []string{"pull", "push"}},
		map[string]any{"anyone": true, "repositories": []string{"public/**"}, "actions": []string{"pull"}},
	},
}

func with(conf map[string]any, more map[string]any) map[string]any {
	all := map[string]any{}
	for k, v := range conf {
		all[k] = v
	}
	for k, v := range more {
		all[k] = v
	}
	return all
}

func TestRights(t *testing.T) {
	for _, mode := range []string{"token", "basic"} {
		t.Run(mode, func(t *testing.T) {
			r := start(t, rightsConf, "--htpasswd", users(t, "ann:apple", "bob:berry"), "--auth", mode)
			for _, c := range []struct{ ref, user, want string }{
				{"secret/app:1", "ann:apple", ""}, {"team/app:1", "bob:berry", ""}, {"public/app:1", "ann:apple", ""},
				{"secret/app:2", "bob:berry", "403 Forbidden"}, {"public/app:2", "", "authentication required"}, {"team/app:2", "", "authentication required"},
				{"team/app:2", "bob:wrong", "UNAUTHORIZED"},
			} {
				_, err := r.push(c.ref, c.user)
				if err != nil && c.want == "UNAUTHORIZED" && strings.Contains(err.Error(), "401 Unauthorized") {
					continue // ggcr asks with HEAD, whose answers have no text
				}
				if err != nil && c.want != "" && strings.Contains(strings.ToLower(err.Error()), "unauthorized") && c.user == "" {
					continue
				}
				wantError(t, "push "+c.ref+" as "+c.user, err, c.want)
			}
			wantError(t, "pull as anybody", r.pull("public/app:1", ""), "")
			wantError(t, "pull as bob", r.pull("team/app:1", "bob:berry"), "")
			wantError(t, "pull of a secret", r.pull("secret/app:1", "bob:berry"), "denied")
			wantError(t, "delete by bob", remote.Delete(r.tag("team/app:1"), as("bob:berry")), "denied")
			wantError(t, "delete by ann", remote.Delete(r.tag("team/app:1"), as("ann:apple")), "")
			// Search shows what one may pull.
			for user, want := range map[string]string{"": "public/app", "bob:berry": "public/app team/app", "ann:apple": "public/app secret/app team/app"} {
				status, _, body := r.get("/v1/search?q=app", user)
				var a searchAnswer
				if err := json.Unmarshal([]byte(body), &a); err != nil || status != 200 {
					t.Fatalf("search: %d %s", status, body)
				}
				var names []string
				for _, res := range a.Results {
					names = append(names, res.Name)
				}
				// team/app has no tag any more, and may be gone from the list.
				if got := strings.Join(names, " "); got != want && got != strings.ReplaceAll(strings.ReplaceAll(want, "team/app", ""), "  ", " ") && !sameWords(got, want) {
					t.Errorf("search as %q gives %q, want %q", user, got, want)
				}
			}
			if status, h, _ := r.get("/v1/search?q=app", "bob:wrong"); status != 401 || h.Get("WWW-Authenticate") == "" {
				t.Errorf("search with a wrong password: %d", status)
			}
			if status, _, body := r.get("/v1/_ping", ""); status != 200 || body != "true" {
				t.Errorf("ping: %d %s", status, body)
			}
			if strings.Contains(r.log.String(), "apple") || strings.Contains(r.log.String(), "berry") || strings.Contains(r.log.String(), "wrong\"") {
				t.Error("a password is in the log")
			}
		})
	}
}

func sameWords(a, b string) bool {
	x, y := strings.Fields(a), strings.Fields(b)
	for _, w := range x {
		if !strings.Contains(b, w) {
			return false
		}
	}
	return len(x) == len(y)
}

// podman asks the search first, without a user; an empty list was all it then showed. Refused, it goes on with the catalogue.
func TestSearchWithoutRights(t *testing.T) {
	r := start(t, nil, "--htpasswd", users(t, "ann:apple"))
	if status, h, _ := r.get("/v1/search?q=app", ""); status != 401 || !strings.Contains(h.Get("WWW-Authenticate"), "registry:catalog") {
		t.Errorf("%d %s", status, h.Get("WWW-Authenticate"))
	}
	if status, _, _ := r.get("/v1/search?q=app", "ann:apple"); status != 200 {
		t.Errorf("with a user: %d", status)
	}
}

func TestSearchPages(t *testing.T) {
	r := start(t, nil)
	for _, ref := range []string{"zz/app:1", "app:1", "app-more:1", "other:1"} {
		if _, err := r.push(ref, ""); err != nil {
			t.Fatal(err)
		}
	}
	for query, want := range map[string]string{"q=app": "app zz/app app-more", "q=app&n=2": "app zz/app", "q=app&n=2&page=2": "app-more", "q=APP&n=1": "app", "q=nothing": "", "q=app&n=-5": "app", "q=app&page=99": ""} {
		_, _, body := r.get("/v1/search?"+query, "")
		var a searchAnswer
		if err := json.Unmarshal([]byte(body), &a); err != nil {
			t.Fatal(err)
		}
		var names []string
		for _, res := range a.Results {
			names = append(names, res.Name)
		}
		if got := strings.Join(names, " "); got != want {
			t.Errorf("%s: %q, want %q", query, got, want)
		}
	}
}

func TestReload(t *testing.T) {
	file := users(t, "bob:berry")
	r := start(t, rightsConf2("pull"), "--htpasswd", file)
	_, err := r.push("team/app:1", "bob:berry")
	wantError(t, "before", err, "denied")
	r.configure(rightsConf2("*"))
	r.signals <- syscall.SIGHUP
	r.waitLog("settings read again")
	_, err = r.push("team/app:1", "bob:berry")
	wantError(t, "after", err, "")
	writeFile(t, filepath.Join(r.dir, "conf.json"), "{\n\"rules\": [],\n\"oops\": 1\n}")
	r.signals <- syscall.SIGHUP
	r.waitLog(`line 3: unknown key \"oops\"`)
	_, err = r.push("team/app:2", "bob:berry")
	wantError(t, "after a broken file", err, "")
	r.configure(with(rightsConf2("*"), map[string]any{"read-only": true}))
	r.signals <- syscall.SIGHUP
	r.waitLog("apply at the next start")
}

func rightsConf2(action string) map[string]any {
	return map[string]any{"rules": []any{map[string]any{"users": []string{"bob"}, "repositories": []string{"team/**"}, "actions": []string{action}}}}
}

// A request that is under way ends in order when the registry is told to end.
func TestDrain(t *testing.T) {
	r := start(t, nil, "--access-log", "-l", "debug")
	resp, err := http.Post(r.url+"/v2/app/blobs/uploads/", "", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	pr, pw := io.Pipe()
	req, err := http.NewRequest(http.MethodPatch, r.url+resp.Header.Get("Location"), pr)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() {
		resp, err := http.DefaultClient.Do(req)
		if err == nil {
			resp.Body.Close()
			if resp.StatusCode != http.StatusAccepted {
				err = fmt.Errorf("status %d", resp.StatusCode)
			}
		}
		done <- err
	}()
	if _, err := pw.Write(make([]byte, 64<<10)); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(time.Minute); ; time.Sleep(5 * time.Millisecond) { // until the registry has some of it
		files, err := filepath.Glob(filepath.Join(r.dir, "root", "data", "uploads", "*"))
		if err != nil || time.Now().After(end) {
			t.Fatalf("the request does not arrive: %v", err)
		}
		if len(files) == 1 {
			if info, err := os.Stat(files[0]); err == nil && info.Size() > 0 {
				break
			}
		}
	}
	r.signals <- syscall.SIGTERM
	r.waitLog("requests that are under way end first")
	time.Sleep(50 * time.Millisecond)
	if _, err := pw.Write([]byte(" second half")); err != nil {
		t.Fatal(err)
	}
	pw.Close()
	if err := <-done; err != nil {
		t.Errorf("the request was cut off: %v\n%s", err, r.log)
	}
	if code := <-r.code; code != 0 {
		t.Errorf("exit code %d", code)
	} else {
		r.code <- code
	}
	if _, err := net.DialTimeout("tcp", r.addr, time.Second); err == nil {
		t.Error("the address still answers")
	}
}

func TestProxies(t *testing.T) {
	r := start(t, map[string]any{"trusted-proxies": []string{"127.0.0.0/8", "10.0.0.0/8"}, "limits": map[string]any{"requests-per-second": 0.01, "requests-burst": 1}})
	ask := func(forwarded string) int {
		req, err := http.NewRequest(http.MethodGet, r.url+"/v2/", nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("X-Forwarded-For", forwarded)
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		return resp.StatusCode
	}
	for _, c := range []struct {
		forwarded string
		want      int
	}{
		{"192.0.2.1", 200}, {"192.0.2.1", 429}, {"192.0.2.2", 200}, {"192.0.2.3, 10.1.1.1", 200}, {"192.0.2.3", 429},
		{"203.0.113.9, 192.0.2.1", 429}, // what the client says before its own address does not count
	} {
		if got := ask(c.forwarded); got != c.want {
			t.Errorf("from %s: %d, want %d", c.forwarded, got, c.want)
		}
	}
}

// The whole, with users, limits and all doors before it, is still what the specification says.
func TestConformance(t *testing.T) {
	r := start(t, with(rightsConf, map[string]any{"limits": map[string]any{"requests-per-second": 100000, "bytes-per-second": "10g", "repository-size": "10g"}}), "--htpasswd", users(t, "ann:apple"))
	servertest.Conformance(t, servertest.Target{URL: r.url, Prepare: func(req *http.Request) { req.SetBasicAuth("ann", "apple") }})
}
