package cli_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"corten.dev/corten/internal/build"
	"corten.dev/corten/internal/engine/builds"
)

// To an engine on another host only what has changed travels, and of the directory only what the patterns choose.
func TestBuildMirrors(t *testing.T) {
	opts := build.ContextOptions{}
	var got, bytes string
	f := &fakeBuilds{do: func(ctx context.Context, req builds.Request) (builds.Response, error) {
		o := opts
		o.Progress = transferred(func(n int64) { bytes = fmt.Sprint(n) })
		files, release, err := req.Session.Contexts.Open(ctx, "context", o)
		if err != nil {
			return builds.Response{}, err
		}
		defer release()
		got = ""
		root := fmt.Sprintf("/proc/self/fd/%d/.", files.Root.Fd())
		err = filepath.WalkDir(root, func(path string, d os.DirEntry, err error) error {
			if err != nil || path == root {
				return err
			}
			got += strings.TrimPrefix(path, strings.TrimSuffix(root, ".")) + " "
			return nil
		})
		return builds.Response{}, err
	}}
	c := newClientOn(t, f, "tcp://127.0.0.1:0")
	dir := t.TempDir()
	for _, name := range []string{"Dockerfile", "a/b/c", "a/d", "e", "node_modules/x", "z"} {
		write(t, dir+"/"+name, strings.Repeat(name, 1000))
	}
	if err := os.Symlink("a/d", dir+"/link"); err != nil {
		t.Fatal(err)
	}
	for _, step := range []struct {
		opts  build.ContextOptions
		files string
		bytes string // "" is not looked at
	}{
		{build.ContextOptions{}, "Dockerfile a a/b a/b/c a/d e link node_modules node_modules/x z ", "34000"},
		{build.ContextOptions{}, "Dockerfile a a/b a/b/c a/d e link node_modules node_modules/x z ", "0"},
		{build.ContextOptions{Exclude: []string{"node_modules", "a", "!a/b"}, SharedKey: "2"}, "Dockerfile a a/b a/b/c e link z ", ""},
		{build.ContextOptions{Include: []string{"a/b"}, SharedKey: "3"}, "a a/b a/b/c ", "5000"},
		{build.ContextOptions{Include: []string{"**/c", "?"}, SharedKey: "4"}, "a a/b a/b/c a/d e z ", ""},
		{build.ContextOptions{Follow: []string{"link", "nowhere"}, SharedKey: "5"}, "a a/d link ", "3000"},
	} {
		opts, bytes = step.opts, "0"
		if code := c.run("build", dir); code != 0 {
			t.Fatal(c.err.String())
		}
		if got != step.files || step.bytes != "" && bytes != step.bytes {
			t.Errorf("%+v: %q with %s bytes, want %q with %s", step.opts, got, bytes, step.files, step.bytes)
		}
	}
	opts = build.ContextOptions{}
	write(t, dir+"/e", "new")
	if c.run("build", dir); bytes != "3" {
		t.Errorf("%s bytes travelled", bytes)
	}
}

type transferred func(int64)

func (transferred) Log(int, []byte)                                {}
func (transferred) Warn(build.Warning)                             {}
func (f transferred) Status(_ string, current, _ int64, done bool) { f(current) }

// An agent's connections pass through, several at once: our keys stay with the agent, which is asked by its socket; keys that are named get an agent of their own.
func TestBuildForwardsAgents(t *testing.T) {
	ask := func(ctx context.Context, req builds.Request, id, text string) (string, error) {
		if err := req.Session.SSH.Offers(ctx, id); err != nil {
			return "", err
		}
		conn, err := req.Session.SSH.Dial(ctx, id)
		if err != nil {
			return "", err
		}
		defer conn.Close()
		if _, err := io.WriteString(conn, text); err != nil {
			return "", err
		}
		buf := make([]byte, 64)
		n, err := conn.Read(buf)
		return string(buf[:n]), err
	}
	keys := false
	f := &fakeBuilds{do: func(ctx context.Context, req builds.Request) (builds.Response, error) {
		if keys { // SSH_AGENTC_REQUEST_IDENTITIES, answered by their number
			got, err := ask(ctx, req, "mine", "\x00\x00\x00\x01\x0b")
			if err != nil || len(got) < 9 || got[4] != 12 || got[8] != 1 {
				return builds.Response{}, fmt.Errorf("%q %v", got, err)
			}
			return builds.Response{}, nil
		}
		var wg sync.WaitGroup
		for i := range 8 {
			wg.Go(func() {
				text := fmt.Sprint("hello ", i)
				if got, err := ask(ctx, req, "default", text); got != text || err != nil {
					t.Errorf("%q %v", got, err)
				}
			})
		}
		wg.Wait()
		return builds.Response{}, nil
	}}
	c := newClient(t, f)
	dir := t.TempDir()
	write(t, dir+"/Dockerfile", "FROM busybox\n")
	socket := os.Getenv("HOME") + "/agent"
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() { io.Copy(conn, conn); conn.Close() }()
		}
	}()
	t.Setenv("SSH_AUTH_SOCK", socket)
	if code := c.run("build", "--ssh", "default", dir); code != 0 {
		t.Error(c.err.String())
	}
	if out, err := exec.Command("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", dir+"/key").CombinedOutput(); err != nil {
		t.Skip("no ssh-keygen to make a key with:", err, string(out))
	}
	keys = true
	if code := c.run("build", "--ssh", "mine="+dir+"/key", dir); code != 0 {
		t.Error(c.err.String())
	}
}

// A socket that something forwards (ssh -L, a proxy) passes bytes only: the descriptors are lost, and the files travel.
func TestBuildThroughProxy(t *testing.T) {
	f := &fakeBuilds{do: func(ctx context.Context, req builds.Request) (builds.Response, error) {
		text, err := readIn(ctx, req.Session, "dockerfile", "Dockerfile")
		if err == nil && text != "FROM busybox\n" {
			err = fmt.Errorf("got %q", text)
		}
		return builds.Response{}, err
	}}
	c := newClient(t, f)
	engine := strings.TrimPrefix(c.socket, "unix://")
	l, err := net.Listen("unix", engine+".p")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			near, err := l.Accept()
			if err != nil {
				return
			}
			far, err := net.Dial("unix", engine)
			if err != nil {
				t.Error(err)
				return
			}
			// Reading without room for descriptors, as others do; splicing would do the same.
			go func() { io.Copy(struct{ io.Writer }{far}, struct{ io.Reader }{near}); far.Close() }()
			go func() { io.Copy(struct{ io.Writer }{near}, struct{ io.Reader }{far}); near.Close() }()
		}
	}()
	c.socket += ".p"
	dir := t.TempDir()
	write(t, dir+"/Dockerfile", "FROM busybox\n")
	if code := c.run("build", dir); code != 0 {
		t.Error(c.err.String())
	}
}

// An engine that dies in the middle is told from a build that fails.
func TestBuildOfDyingEngine(t *testing.T) {
	l, err := net.Listen("unix", filepath.Join(shortDir(t), "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			io.ReadAtLeast(conn, make([]byte, 4096), 100)
			io.WriteString(conn, "HTTP/1.1 101 UPGRADED\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n")
			conn.Close()
		}
	}()
	c := &client{t: t, socket: "unix://" + l.Addr().String(), in: strings.NewReader("")}
	dir := t.TempDir()
	write(t, dir+"/Dockerfile", "FROM busybox\n")
	if code := c.run("build", dir); code != 1 || c.err.String() != "the engine ended in the middle of the build\n" {
		t.Error(code, c.err.String())
	}
}

func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "bld") // a socket's path has 108 bytes at most
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}
