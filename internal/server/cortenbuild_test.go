package server_test

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"corten.dev/corten/internal/build"
	"corten.dev/corten/internal/buildwire"
	"corten.dev/corten/internal/engine/builds"
	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/server"
)

// doorBuilds is a service with one verb.
type doorBuilds struct {
	builds.API
	do func(ctx context.Context, req builds.Request) (builds.Response, error)
}

func (d *doorBuilds) Build(ctx context.Context, req builds.Request) (builds.Response, error) {
	return d.do(ctx, req)
}

// handing is a client's side that hands descriptors over.
type handing struct{ *net.UnixConn }

func (h handing) WriteWith(p []byte, fd uintptr) error {
	_, _, err := h.WriteMsgUnix(p, syscall.UnixRights(int(fd)), nil)
	return err
}

func (h handing) Take() (uintptr, bool) { return 0, false }

// knock asks for a build and gives the connection after its upgrade.
func knock(t *testing.T, d *doorBuilds, req buildwire.Request) *net.UnixConn {
	t.Helper()
	dir, err := os.MkdirTemp("", "door")
	if err != nil {
		t.Fatal(err)
	}
	l, err := server.Listen("unix://"+dir+"/s", "", nil)
	if err != nil {
		t.Fatal(err)
	}
	s := server.New(server.Options{Builds: d})
	done := make(chan error, 1)
	go func() { done <- s.Serve(l) }()
	nc, err := net.Dial("unix", dir+"/s")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		nc.Close()
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := s.Shutdown(ctx); err != nil {
			t.Error(err)
		}
		<-done
		os.RemoveAll(dir)
	})
	body, err := json.Marshal(req)
	if err != nil {
		t.Fatal(err)
	}
	hr, err := http.NewRequest("POST", "http://x/v1.56"+buildwire.Path, strings.NewReader(string(body)))
	if err != nil {
		t.Fatal(err)
	}
	hr.Header.Set("Content-Type", "application/json")
	hr.Header.Set("Upgrade", "tcp")
	hr.Header.Set("Connection", "Upgrade")
	if err := hr.Write(nc); err != nil {
		t.Fatal(err)
	}
	var head []byte
	one := make([]byte, 1)
	for !strings.HasSuffix(string(head), "\r\n\r\n") {
		if _, err := nc.Read(one); err != nil {
			t.Fatal(err)
		}
		head = append(head, one...)
	}
	if !strings.HasPrefix(string(head), "HTTP/1.1 101 ") {
		t.Fatalf("%s", head)
	}
	return nc.(*net.UnixConn)
}

// A descriptor proves that the one who hands it over may read the directory: one that was opened without reading (O_PATH), which anybody can have of any directory that they can reach, is
// refused, as is what is no directory. None of them stays open in the engine.
func TestHandedDirectories(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name  string
		path  string
		flags int
		want  string
	}{
		{"a directory", dir, syscall.O_RDONLY, ""},
		{"only a path", dir, 0x200000, "not opened for reading"},
		{"a file", file, syscall.O_RDONLY, "no directory"},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := &doorBuilds{do: func(ctx context.Context, req builds.Request) (builds.Response, error) {
				for range 2 { // the second time it is not asked for again
					files, release, err := req.Session.Contexts.Open(ctx, "context", build.ContextOptions{Exclude: []string{"a"}})
					if err != nil {
						return builds.Response{}, err
					}
					if files.Owner == nil || *files.Owner != [2]uint32{} || len(files.Exclude) != 1 || files.Key == "" {
						t.Errorf("%+v", files)
					}
					release()
				}
				return builds.Response{}, nil
			}}
			before := openFiles(t)
			nc := knock(t, d, buildwire.Request{Frontend: "x", Contexts: []string{"context"}, Descriptors: true})
			asked := 0
			var last *buildwire.Error
			conn := buildwire.NewClient(handing{nc}, func(s *buildwire.Stream, ask buildwire.Ask) {
				defer s.Close()
				asked++
				fd, err := syscall.Open(c.path, c.flags|syscall.O_CLOEXEC, 0)
				if err != nil {
					t.Error(err)
					return
				}
				defer syscall.Close(fd)
				s.Answer(buildwire.Tree{Descriptor: true})
				if err := s.Hand(uintptr(fd)); err != nil {
					t.Error(err)
				}
				s.End()
			}, func(k buildwire.Kind, p []byte) error {
				if k == buildwire.Failure {
					last = &buildwire.Error{}
					json.Unmarshal(p, last)
				}
				return io.EOF
			})
			conn.Run()
			conn.Close()
			conn.Wait()
			switch {
			case c.want == "" && last != nil, c.want != "" && (last == nil || !strings.Contains(last.Message, c.want)):
				t.Errorf("the build ended with %v", last)
			case asked != 1:
				t.Errorf("asked %d times", asked)
			}
			for end := time.Now().Add(30 * time.Second); openFiles(t) > before+4; time.Sleep(5 * time.Millisecond) { // the listener and the connection
				if time.Now().After(end) {
					t.Fatalf("%d descriptors, before %d", openFiles(t), before)
				}
			}
		})
	}
}

func openFiles(t *testing.T) int {
	t.Helper()
	list, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(list)
}

// Errors come with their kind and what a client can show; requests that cannot be are refused before the upgrade.
func TestBuildDoorErrors(t *testing.T) {
	d := &doorBuilds{do: func(ctx context.Context, req builds.Request) (builds.Response, error) {
		if _, err := req.Session.Secrets.Secret(ctx, "none"); !errors.Is(err, errs.NotFound) {
			t.Error(err)
		}
		if err := req.Session.SSH.Offers(ctx, "none"); !errors.Is(err, errs.NotFound) {
			t.Error(err)
		}
		if _, _, err := req.Session.Contexts.Open(ctx, "none", build.ContextOptions{}); !errors.Is(err, errs.NotFound) {
			t.Error(err)
		}
		return builds.Response{}, errs.New(errs.Unavailable, "step: %w", &build.StepError{ExitCode: 7, Err: errors.New("exit code: 7")})
	}}
	nc := knock(t, d, buildwire.Request{Frontend: "x"})
	var last buildwire.Error
	conn := buildwire.NewClient(nc, func(s *buildwire.Stream, _ buildwire.Ask) { t.Error("asked"); s.Close() }, func(k buildwire.Kind, p []byte) error {
		if k != buildwire.Failure {
			t.Errorf("frame %q", k)
		}
		json.Unmarshal(p, &last)
		return io.EOF
	})
	conn.Run()
	conn.Close()
	if last.Kind != "unavailable" || last.Message != "step: exit code: 7" || last.ExitCode != 7 {
		t.Errorf("%+v", last)
	}
}

// A client that sends what cannot be loses its connection, and its build ends.
func TestBuildDoorGarbage(t *testing.T) {
	ended := make(chan struct{})
	d := &doorBuilds{do: func(ctx context.Context, _ builds.Request) (builds.Response, error) {
		<-ctx.Done()
		close(ended)
		return builds.Response{}, ctx.Err()
	}}
	nc := knock(t, d, buildwire.Request{Frontend: "x"})
	if _, err := nc.Write([]byte("d\x01\x01\x01 this is no frame")); err != nil {
		t.Fatal(err)
	}
	select {
	case <-ended:
	case <-time.After(time.Minute):
		t.Error("the build goes on")
	}
}
