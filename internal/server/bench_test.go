package server_test

import (
	"context"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"

	"corten.dev/corten/internal/engine/containers"
	"corten.dev/corten/internal/server"
)

func overUnix(sock string) *http.Client {
	return &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", sock)
	}}}
}

// One request of a connection that is kept; the budget is 100 µs.
func BenchmarkRequests(b *testing.B) {
	sock := serve(b, &engine{})
	hc := overUnix(sock)
	defer hc.CloseIdleConnections()
	for _, c := range []struct{ name, method, path, body string }{
		{"ping", "GET", "/_ping", ""},
		{"ps", "GET", "/v1.50/containers/json?all=1", ""},
		{"inspect", "GET", "/v1.50/containers/web/json", ""},
		{"create", "POST", "/v1.50/containers/create", `{"Image":"busybox","Cmd":["true"],"HostConfig":{"AutoRemove":true,"NetworkMode":"default"}}`},
		{"start", "POST", "/v1.50/containers/job/start", ""},
	} {
		b.Run(c.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				req, err := http.NewRequest(c.method, "http://docker"+c.path, strings.NewReader(c.body))
				if err != nil {
					b.Fatal(err)
				}
				req.Header.Set("Content-Type", "application/json")
				resp, err := hc.Do(req)
				if err != nil {
					b.Fatal(err)
				}
				io.Copy(io.Discard, resp.Body)
				resp.Body.Close()
			}
		})
	}
}

// manyLines is a container that said 80 MB in a million lines.
type manyLines struct{ fakeContainers }

func (manyLines) Logs(_ context.Context, _ string, _ containers.LogOptions, begin func(bool) (io.Writer, error)) error {
	w, err := begin(false)
	if err != nil {
		return err
	}
	line := append([]byte{1, 0, 0, 0, 0, 0, 0, 80}, strings.Repeat("x", 79)+"\n"...)
	for range 1000000 {
		if _, err := w.Write(line); err != nil {
			return err
		}
	}
	return nil
}

// 80 MB of logs, written line by line by the service; the budget of the whole command is 200 ms.
func BenchmarkLogs(b *testing.B) {
	opts := options(&engine{})
	opts.Containers = manyLines{}
	dir := b.TempDir()
	l, err := server.Listen("unix://"+dir+"/s", "", nil)
	if err != nil {
		b.Fatal(err)
	}
	s := server.New(opts)
	go s.Serve(l)
	defer s.Shutdown(context.Background())
	hc := overUnix(dir + "/s")
	defer hc.CloseIdleConnections()
	b.SetBytes(88e6)
	for b.Loop() {
		resp, err := hc.Get("http://docker/v1.50/containers/web/logs?stdout=1")
		if err != nil {
			b.Fatal(err)
		}
		if n, err := io.Copy(io.Discard, resp.Body); err != nil || n != 88e6 {
			b.Fatal(n, err)
		}
		resp.Body.Close()
	}
}
