package plugin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"corten.dev/corten/internal/errs"
)

const iface = "VolumeDriver"

// folder is a short path: a socket's may have 107 bytes.
func folder(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "plg")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// fake is a plugin in this process.
type fake struct {
	greeted atomic.Int32
	calls   atomic.Int32
	server  *http.Server
}

// listen serves a plugin on a socket; answer answers everything but the greeting.
func listen(t *testing.T, path string, answer http.HandlerFunc) *fake {
	t.Helper()
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	f := &fake{}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /Plugin.Activate", func(w http.ResponseWriter, r *http.Request) {
		f.greeted.Add(1)
		if r.Header.Get("Accept") != MediaType {
			t.Errorf("greeted with Accept %q", r.Header.Get("Accept"))
		}
		io.WriteString(w, `{"Implements": ["VolumeDriver", "Other"]}`)
	})
	mux.HandleFunc("POST /", func(w http.ResponseWriter, r *http.Request) {
		f.calls.Add(1)
		answer(w, r)
	})
	f.server = &http.Server{Handler: mux}
	go f.server.Serve(l)
	t.Cleanup(func() { f.server.Close() })
	return f
}

func echo(w http.ResponseWriter, r *http.Request) { io.Copy(w, r.Body) }

type words struct{ Word string }

func TestCall(t *testing.T) {
	dir := folder(t)
	f := listen(t, filepath.Join(dir, "kind.sock"), func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/VolumeDriver.Echo":
			echo(w, r)
		case "/VolumeDriver.Sorry":
			io.WriteString(w, `{"Err": "no room\nleft"}`)
		case "/VolumeDriver.Pool":
			io.WriteString(w, `{"Error": "no pool"}`)
		case "/VolumeDriver.Wrong":
			w.WriteHeader(500)
			io.WriteString(w, `{"Err": "all is lost"}`)
		case "/VolumeDriver.Plain":
			http.Error(w, "plain words", 400)
		case "/VolumeDriver.HTML":
			io.WriteString(w, `<html>`)
		default:
			http.NotFound(w, r)
		}
	})
	s := New(Options{Folders: []string{filepath.Join(dir, "missing"), dir}})
	c, err := s.Get(t.Context(), "kind", iface)
	if err != nil {
		t.Fatal(err)
	}
	var out words
	if err := c.Call(t.Context(), "Echo", words{"hello"}, &out); err != nil || out.Word != "hello" {
		t.Errorf("%q, %v", out.Word, err)
	}
	for method, want := range map[string]string{
		"Sorry": "no room left", "Pool": "no pool", "Wrong": "VolumeDriver.Wrong: all is lost", "Plain": "VolumeDriver.Plain: plain words",
		"Nothing": "VolumeDriver.Nothing: 404 page not found",
	} {
		err := c.Call(t.Context(), method, nil, nil)
		var said *Error
		if !errors.As(err, &said) || err.Error() != want || Uncertain(err) || Unknown(err) != (method == "Nothing") {
			t.Errorf("%s: %v, want %q", method, err, want)
		}
	}
	if err := c.Call(t.Context(), "HTML", nil, &out); err == nil || !Uncertain(err) || !strings.Contains(err.Error(), "plugin kind: VolumeDriver.HTML: an answer that makes no sense") {
		t.Errorf("HTML: %v", err)
	}
	if n := f.greeted.Load(); n != 1 {
		t.Errorf("greeted %d times", n)
	}
	if got := s.Active(iface); !slices.Equal(got, []string{"kind"}) {
		t.Errorf("active: %v", got)
	}
	if _, err := s.Get(t.Context(), "kind", "NetworkDriver"); !errors.Is(err, errs.Invalid) || !strings.Contains(err.Error(), `plugin "kind" does not implement the requested driver NetworkDriver`) {
		t.Errorf("another interface: %v", err)
	}
}

func TestOrderOfPlaces(t *testing.T) {
	first, second := folder(t), folder(t)
	s := New(Options{Folders: []string{first, second}})
	where := func(want string) {
		t.Helper()
		at, err := s.find("p")
		if err != nil || at.addr != want {
			t.Errorf("found %q, %v; want %q", at.addr, err, want)
		}
	}
	write := func(path, text string) {
		t.Helper()
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := s.find("p"); !errors.Is(err, errs.NotFound) || err.Error() != `plugin "p" not found` {
		t.Error(err)
	}
	write(filepath.Join(first, "p.sock"), "not a socket")
	write(filepath.Join(second, "p", "p.json"), `{"Addr": "https://host"}`)
	where("host:443")
	write(filepath.Join(second, "p.spec"), " tcp://host:1\n")
	where("host:1")
	write(filepath.Join(first, "p", "p.spec"), "unix:///run//x")
	where("/run/x")
	if err := os.Mkdir(filepath.Join(second, "q"), 0o755); err != nil {
		t.Fatal(err)
	}
	if names, err := s.Names(); err != nil || !slices.Equal(names, []string{"p"}) {
		t.Errorf("names %v, %v", names, err)
	}
	listen(t, filepath.Join(second, "p.sock"), echo)
	where(filepath.Join(second, "p.sock"))
}

func TestNames(t *testing.T) {
	s := New(Options{Folders: []string{folder(t)}, Look: time.Minute})
	for name, kind := range map[string]error{
		"../etc/passwd": errs.Invalid, "": errs.Invalid, ".hidden": errs.Invalid, "a\x00b": errs.Invalid, strings.Repeat("x", 300): errs.Invalid, "a b": errs.Invalid,
		"vieux/sshfs:latest": errs.NotFound, "a/../b": errs.Invalid,
	} {
		began := time.Now()
		if _, err := s.Get(t.Context(), name, iface); !errors.Is(err, kind) || time.Since(began) > 30*time.Second {
			t.Errorf("%q: %v after %v", name, err, time.Since(began))
		}
	}
}

// A plugin that is started after the engine, or again, is waited for and greeted; its new socket need not look like the old one.
func TestComesUp(t *testing.T) {
	dir := folder(t)
	var warned atomic.Int32
	s := New(Options{Folders: []string{dir}, Look: time.Minute, Wait: time.Minute, Warn: func(string, error) { warned.Add(1) }})
	path := filepath.Join(dir, "late.sock")
	c, err := s.Client("late", iface)
	if err != nil {
		t.Fatal(err)
	}
	var out words
	done := make(chan error, 1)
	go func() { done <- c.Call(t.Context(), "Echo", words{"first"}, &out) }()
	for warned.Load() == 0 { // it looks for it
		time.Sleep(time.Millisecond)
	}
	f := listen(t, path, echo)
	if err := <-done; err != nil || out.Word != "first" {
		t.Fatal(out, err)
	}
	if err := f.server.Close(); err != nil {
		t.Fatal(err)
	}
	go func() { done <- c.Call(t.Context(), "Echo", words{"second"}, &out) }()
	for warned.Load() == 1 {
		time.Sleep(time.Millisecond)
	}
	os.Remove(path)
	f = listen(t, path, echo)
	if err := <-done; err != nil || out.Word != "second" || f.greeted.Load() != 1 {
		t.Fatal(out, err, f.greeted.Load())
	}
}

func TestNobodyThere(t *testing.T) {
	dir := folder(t)
	l, err := net.Listen("unix", filepath.Join(dir, "stale.sock"))
	if err != nil {
		t.Fatal(err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	l.Close()
	s := New(Options{Folders: []string{dir}, Look: -1, Wait: 50 * time.Millisecond})
	if _, err := s.Get(t.Context(), "stale", iface); !errors.Is(err, errs.Unavailable) || !strings.Contains(err.Error(), "connection refused") || Uncertain(err) {
		t.Error(err)
	}
	if _, err := s.Get(t.Context(), "none", iface); !errors.Is(err, errs.NotFound) {
		t.Error(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	s = New(Options{Folders: []string{dir}, Wait: time.Hour})
	if _, err := s.Get(ctx, "stale", iface); err == nil {
		t.Error("a cancelled call went through")
	}
}

// Only what may be done twice is sent twice when the connection breaks.
func TestBrokenConnections(t *testing.T) {
	dir := folder(t)
	f := listen(t, filepath.Join(dir, "p.sock"), func(w http.ResponseWriter, r *http.Request) {
		nc, _, err := w.(http.Hijacker).Hijack()
		if err == nil {
			nc.Close()
		}
	})
	s := New(Options{Folders: []string{dir}})
	c, err := s.Get(t.Context(), "p", iface)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Call(t.Context(), "Mount", nil, nil); !Uncertain(err) || !errors.Is(err, errs.Unavailable) || f.calls.Load() != 1 {
		t.Error(err, f.calls.Load())
	}
	if err := c.Do(t.Context(), Call{Method: "List", Again: true, NoWait: true}); !Uncertain(err) || f.calls.Load() != 1+tries {
		t.Error(err, f.calls.Load())
	}
}

// A plugin that never answers costs its callers their limit, and those who ask all plugins one limit in RestTime. The calls of other plugins go on.
func TestNeverAnswers(t *testing.T) {
	dir := folder(t)
	free := make(chan struct{})
	listen(t, filepath.Join(dir, "deaf.sock"), func(http.ResponseWriter, *http.Request) { <-free })
	t.Cleanup(func() { close(free) })
	listen(t, filepath.Join(dir, "good.sock"), echo)
	s := New(Options{Folders: []string{dir}})
	deaf, err := s.Get(t.Context(), "deaf", iface)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for range 3 * laneWidth {
		wg.Go(func() {
			if err := deaf.Do(t.Context(), Call{Method: "Mount", Limit: 200 * time.Millisecond, NoWait: true}); !errors.Is(err, errs.Unavailable) {
				t.Error(err)
			}
		})
	}
	good, err := s.Get(t.Context(), "good", iface)
	if err != nil {
		t.Fatal(err)
	}
	if err := good.Call(t.Context(), "Echo", words{}, nil); err != nil {
		t.Error(err)
	}
	wg.Wait()
	if n := len(deaf.p.lane); n != 0 {
		t.Errorf("%d calls are still under way", n)
	}
	if err := deaf.Ready(t.Context()); !errors.Is(err, errs.Unavailable) || !strings.Contains(err.Error(), "left alone for a while: plugin deaf: VolumeDriver.Mount: no answer within 200ms") {
		t.Error(err)
	}
	if err := good.Ready(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestHugeAnswer(t *testing.T) {
	dir := folder(t)
	listen(t, filepath.Join(dir, "p.sock"), func(w http.ResponseWriter, r *http.Request) {
		block := []byte(strings.Repeat(" ", 1<<20))
		for {
			if _, err := w.Write(block); err != nil {
				return
			}
		}
	})
	c, err := New(Options{Folders: []string{dir}}).Get(t.Context(), "p", iface)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Call(t.Context(), "List", nil, nil); err == nil || !strings.Contains(err.Error(), "an answer of more than") || !Uncertain(err) {
		t.Error(err)
	}
}

func ExampleSet_Get() {
	plugins := New(Options{Folders: Folders("/run/corten"), Look: -1})
	_, err := plugins.Get(context.Background(), "no-such-plugin", "VolumeDriver")
	fmt.Println(err)
	// Output: plugin "no-such-plugin" not found
}

// What a plugin answers is either taken or an error that names plugin and method, in one line.
func FuzzAnswer(f *testing.F) {
	for _, seed := range []string{`{"Err":"x"}`, `{"Word":"y"}`, `null`, `[]`, `{"Err":1}`, `{"Error":"\u0000"}`, "plain\nwords", ""} {
		f.Add(200, []byte(seed))
		f.Add(500, []byte(seed))
	}
	f.Fuzz(func(t *testing.T, status int, answer []byte) {
		p := &plugin{name: "p"}
		var out words
		err := p.read(exchange{method: "VolumeDriver.Get", out: &out}, status, answer)
		if err == nil && (status != 200 || !json.Valid(answer)) {
			t.Errorf("status %d, %q: taken", status, answer)
		}
		if err != nil && strings.ContainsAny(err.Error(), "\r\n\x00") {
			t.Errorf("more than a line: %q", err)
		}
	})
}

// Files that say where a plugin is are either refused or lead to an absolute path or a host with a port.
func FuzzFiles(f *testing.F) {
	for _, seed := range []string{
		"unix:///run/x.sock", "tcp://h:1", "http://h", "https://[::1]:8", "tcp://h", "ftp://h:1", "unix://rel", "unix:///../../x", "\n tcp://u:p@h:1 \n", "://", "tcp://:80",
		`{"Name":"p","Addr":"https://h:1","TLSConfig":{"InsecureSkipVerify":true,"CAFile":"/ca"}}`, `{"Addr":"tcp://h:1","TLSConfig":{"CertFile":"/c"}}`, `{"Addr":`, `{}`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		for _, parse := range []func([]byte) (place, error){parseSpec, parseJSON} {
			at, err := parse(text)
			if err != nil {
				if !errors.Is(err, errs.Invalid) {
					t.Errorf("%q: %v is of no kind", text, err)
				}
				continue
			}
			if at.network == "unix" {
				if !filepath.IsAbs(at.addr) || filepath.Clean(at.addr) != at.addr {
					t.Errorf("%q: socket %q", text, at.addr)
				}
			} else if host, port, err := net.SplitHostPort(at.addr); at.network != "tcp" || err != nil || host == "" || port == "" {
				t.Errorf("%q: %s %q: %v", text, at.network, at.addr, err)
			}
		}
	})
}
