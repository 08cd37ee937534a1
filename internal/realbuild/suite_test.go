package realbuild

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"corten.dev/corten/internal/enginetest"
)

// suite is the one engine on which all is built, as on the machine of a developer: what one build left in the cache, another one finds.
type suite struct {
	host *host
	e    *enginetest.Engine

	mu     sync.Mutex
	images map[string]func() error // bases that are built when the first test wants them
	times  []string
}

// start skips unless the slow tests are asked for. Once they are, whatever is missing fails them.
func start(t *testing.T) *suite {
	t.Helper()
	if os.Getenv("CORTEN_REAL") != "1" {
		t.Skip("slow, and installs packages through the network: make test-real")
	}
	if os.Geteuid() != 0 {
		t.Fatal("needs root: namespaces and bridges")
	}
	s := &suite{host: theHost(t), images: map[string]func() error{}}
	s.e = enginetest.New(t)
	s.e.Up()
	t.Cleanup(func() { s.empty(t) })
	args := []string{"import"}
	for _, env := range s.host.env {
		args = append(args, "-c", "ENV "+env)
	}
	s.e.Corten(append(args, s.host.archive, "debian:bookworm")...)
	for _, name := range []string{"debian:bookworm-slim", "ubuntu:14.04"} {
		s.e.Corten("tag", "debian:bookworm", name)
	}
	return s
}

// empty removes all that was built, and waits until the engine took it away in the background: a hundred thousand files and more take longer than what looks for leftovers has patience for.
func (s *suite) empty(t *testing.T) {
	s.e.Clear()
	began := time.Now()
	for {
		left, err := filepath.Glob(filepath.Join(s.e.Dir, "d", "snapshots", "*", "trash", "*"))
		if err != nil {
			t.Fatal(err)
		}
		if len(left) == 0 {
			t.Logf("all is taken away after %.1f s", time.Since(began).Seconds())
			return
		}
		if time.Since(began) > 2*time.Minute {
			t.Fatalf("after two minutes the trash still holds %q", left)
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// bases are images that tests stand on.
func (s *suite) bases() map[string]project {
	return map[string]project{
		"node:latest":     {name: "node"},
		"node:onbuild":    {name: "onbuild", needs: []string{"node:latest"}},
		"golang:latest":   {name: "golang", args: []string{"--build-context", "toolchain=" + s.host.goroot, "--build-arg", "GOPROXY=" + s.host.goproxy}},
		"postgres:latest": {name: "postgres"},
	}
}

// need builds images that others stand on, each of them once, whoever asks first.
func (s *suite) need(names ...string) error {
	for _, name := range names {
		s.mu.Lock()
		build, ok := s.images[name]
		if !ok {
			build = sync.OnceValue(func() error {
				p, ok := s.bases()[name]
				if !ok {
					return fmt.Errorf("nobody knows how to build %s", name)
				}
				if err := s.need(p.needs...); err != nil {
					return err
				}
				_, err := s.twice("testdata/"+p.name, name, p.args...)
				return err
			})
			s.images[name] = build
		}
		s.mu.Unlock()
		if err := build(); err != nil {
			return fmt.Errorf("%s, which is needed: %w", name, err)
		}
	}
	return nil
}

// twice builds an image and tells what was said; and builds it again, when all of it must be cached and the image must be the same one.
func (s *suite) twice(dir, name string, args ...string) (string, error) {
	began := time.Now()
	log, first, err := s.build(dir, name, args...)
	if err != nil {
		return log, err
	}
	took := time.Since(began)
	began = time.Now()
	again, second, err := s.build(dir, name, args...)
	if err != nil {
		return log, fmt.Errorf("again: %w", err)
	}
	s.mu.Lock()
	s.times = append(s.times, fmt.Sprintf("%-24s %6.1f s   again %4d ms", name, took.Seconds(), time.Since(began).Milliseconds()))
	s.mu.Unlock()
	if first != second {
		return log, fmt.Errorf("%s: built again it is another image: %s, %s", name, first, second)
	}
	if left := notCached(again); left != "" {
		return log, fmt.Errorf("%s: built again, these steps are not cached:\n%s\nall of it:\n%s", name, left, again)
	}
	return log, nil
}

// build runs `corten build` and tells what it said and the ID of the image.
func (s *suite) build(dir, name string, args ...string) (log, id string, err error) {
	ids, err := os.CreateTemp("", "realbuild")
	if err != nil {
		return "", "", err
	}
	defer os.Remove(ids.Name())
	defer ids.Close()
	all := append([]string{"build", "--progress", "plain", "--iidfile", ids.Name(), "-t", name}, s.host.args...)
	cmd := s.e.Client(append(append(all, args...), dir)...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil {
		return out.String(), "", fmt.Errorf("build of %s: %w\n%s", name, err, ended(out.String()))
	}
	raw, err := os.ReadFile(ids.Name())
	return out.String(), string(raw), err
}

// ended is the end of what a build said: a package manager says much.
func ended(log string) string {
	lines := strings.SplitAfter(log, "\n")
	return strings.Join(lines[max(0, len(lines)-60):], "")
}

var vertex = regexp.MustCompile(`^#(\d+) (\[.*|CACHED)$`)

// notCached lists the steps of a build that were run: those of the Dockerfile, not what the builder does for itself.
func notCached(log string) string {
	steps, order := map[string]string{}, []string{}
	for line := range strings.Lines(log) {
		m := vertex.FindStringSubmatch(strings.TrimSpace(line))
		switch {
		case m == nil || strings.HasPrefix(m[2], "[internal]") || strings.HasPrefix(m[2], "[context "):
		case m[2] == "CACHED":
			delete(steps, m[1])
		default:
			steps[m[1]] = m[2]
			order = append(order, m[1])
		}
	}
	if len(order) == 0 {
		return "no step was seen at all"
	}
	var left []string
	for _, n := range order {
		if step, ok := steps[n]; ok {
			left = append(left, "  #"+n+" "+step)
		}
	}
	return strings.Join(left, "\n")
}

// ctr is a container of an image that was built.
type ctr struct {
	t  *testing.T
	s  *suite
	id string
}

// corten runs a client's verb; the test fails if it fails.
func (s *suite) corten(t *testing.T, args ...string) string {
	t.Helper()
	out, err := s.e.Try(args...)
	if err != nil {
		t.Fatalf("corten %s: %v", strings.Join(args, " "), err)
	}
	return out
}

// run starts a container that is gone at the end of the test.
func (s *suite) run(t *testing.T, args ...string) *ctr {
	t.Helper()
	c := &ctr{t: t, s: s, id: s.corten(t, append([]string{"run", "-d"}, args...)...)}
	t.Cleanup(func() { s.corten(t, "rm", "-f", "-v", c.id) })
	return c
}

// until asks until it gets what it wants, for a time that suits a busy machine.
func (c *ctr) until(what string, ask func() (string, error), want string) {
	c.t.Helper()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(50 * time.Millisecond) {
		got, err := ask()
		if err == nil && strings.Contains(got, want) {
			return
		}
		if time.Now().After(deadline) {
			logs, lerr := c.logs()
			c.t.Fatalf("%s: %q, %v; want %q\nits log, %v:\n%s", what, got, err, want, lerr, ended(logs))
		}
	}
}

// logs is all that the container said, to either stream.
func (c *ctr) logs() (string, error) {
	out, err := c.s.e.Client("logs", c.id).CombinedOutput()
	return string(out), err
}

// address is where the host reaches a port of the container.
func (c *ctr) address(port string) string {
	c.t.Helper()
	return c.s.corten(c.t, "port", c.id, port+"/tcp")
}

// fetch wants some words on the page that a port serves, and gives the headers.
func (c *ctr) fetch(port, want string) (header http.Header) {
	c.t.Helper()
	address := c.address(port)
	c.until("the page of port "+port, func() (string, error) {
		resp, err := http.Get("http://" + address + "/")
		if err != nil {
			return "", err
		}
		defer resp.Body.Close()
		header = resp.Header
		body, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
		return string(body), err
	}, want)
	return header
}

// speak sends words to a port and wants some in the answer.
func (c *ctr) speak(port, words, want string) {
	c.t.Helper()
	address := c.address(port)
	c.until("port "+port+" when told "+words, func() (string, error) {
		conn, err := net.DialTimeout("tcp", address, time.Second)
		if err != nil {
			return "", err
		}
		defer conn.Close()
		if err := conn.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
			return "", err
		}
		if _, err := io.WriteString(conn, words); err != nil {
			return "", err
		}
		answer := make([]byte, 4096)
		n, err := conn.Read(answer)
		return string(answer[:n]), err
	}, want)
}

// exec runs a command in the container and wants some words, at last.
func (c *ctr) exec(want string, args ...string) {
	c.t.Helper()
	c.until(strings.Join(args, " "), func() (string, error) { return c.s.e.Try(append([]string{"exec", c.id}, args...)...) }, want)
}

// stop stops the container in its image's own way: it must heed that signal, and end with this code.
func (c *ctr) stop(code string) {
	c.t.Helper()
	began := time.Now()
	c.s.corten(c.t, "stop", "-t", "60", c.id)
	if took := time.Since(began); took > 50*time.Second {
		c.t.Errorf("stopped after %s only", took)
	}
	if got := c.s.corten(c.t, "inspect", "-f", "{{.State.ExitCode}}", c.id); got != code {
		c.t.Errorf("ended with %s, not %s", got, code)
	}
}

// config wants a field of the image's configuration.
func (s *suite) config(t *testing.T, image, template, want string) {
	t.Helper()
	if got := s.corten(t, "image", "inspect", "-f", template, image); got != want {
		t.Errorf("%s of %s: %q, want %q", template, image, got, want)
	}
}

// writable is a copy of a context that a test may change.
func writable(t *testing.T, name string) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), name)
	if err := os.CopyFS(dir, os.DirFS("testdata/"+name)); err != nil {
		t.Fatal(err)
	}
	return dir
}
