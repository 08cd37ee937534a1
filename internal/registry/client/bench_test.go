package client

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// counter is a sink that costs nothing.
type counter struct{ n int64 }

func (c *counter) Write(p []byte) (int, error) { c.n += int64(len(p)); return len(p), nil }
func (c *counter) Size() int64                 { return c.n }
func (c *counter) Restart() error              { c.n = 0; return nil }

// The server is as cheap as one can be, so that what is measured is the client: a file by sendfile, over loopback.
func fileServer(b *testing.B) (host string, size int64) {
	b.Helper()
	name := b.TempDir() + "/blob"
	if err := os.WriteFile(name, make([]byte, 256<<20), 0o600); err != nil {
		b.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.Method {
		case "POST":
			w.Header().Set("Location", "/upload")
			w.WriteHeader(202)
		case "PUT":
			if _, err := io.CopyBuffer(onlyWriter{io.Discard}, r.Body, make([]byte, 1<<20)); err != nil {
				b.Error(err)
			}
			w.WriteHeader(201)
		default:
			http.ServeFile(w, r, name)
		}
	})}
	go srv.Serve(l)
	b.Cleanup(func() { srv.Close() })
	return l.Addr().String(), 256 << 20
}

func BenchmarkFetch(b *testing.B) {
	host, size := fileServer(b)
	d := ocispec.Descriptor{Digest: digest.FromString("x"), Size: size}
	b.Run("net-http", func(b *testing.B) {
		b.SetBytes(size)
		buf := make([]byte, 256<<10)
		for b.Loop() {
			resp, err := http.Get(fmt.Sprintf("http://%s/v2/a/blobs/x", host))
			if err != nil {
				b.Fatal(err)
			}
			if n, err := io.CopyBuffer(onlyWriter{io.Discard}, struct{ io.Reader }{resp.Body}, buf); err != nil || n != size {
				b.Fatal(n, err)
			}
			resp.Body.Close()
		}
	})
	for name, tune := range map[string]func(*Client){
		"fetch":        func(*Client) {},
		"fetch-ranges": func(c *Client) { c.tuning.fast = 1 << 50 },
	} {
		b.Run(name, func(b *testing.B) {
			c := New(Options{})
			tune(c)
			r := repo(b, c, host+"/a", Credentials{})
			b.SetBytes(size)
			for b.Loop() {
				if err := r.Fetch(b.Context(), d, &counter{}); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkPush(b *testing.B) {
	host, size := fileServer(b)
	raw := make([]byte, size)
	b.Run("net-http", func(b *testing.B) {
		b.SetBytes(size)
		for b.Loop() {
			req, err := http.NewRequest("PUT", "http://"+host+"/x", bytes.NewReader(raw))
			if err != nil {
				b.Fatal(err)
			}
			resp, err := http.DefaultClient.Do(req)
			if err != nil {
				b.Fatal(err)
			}
			resp.Body.Close()
		}
	})
	b.Run("push", func(b *testing.B) {
		r := repo(b, New(Options{}), host+"/a", Credentials{})
		up := toSend(raw, digest.FromString("x"), size)
		b.SetBytes(size)
		for b.Loop() {
			if _, err := r.Push(b.Context(), up); err != nil {
				b.Fatal(err)
			}
		}
	})
}

func BenchmarkChallenges(b *testing.B) {
	h := http.Header{"Www-Authenticate": {`Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:library/busybox:pull"`}}
	for b.Loop() {
		if len(challenges(h)) != 1 {
			b.Fatal("not read")
		}
	}
	_ = strings.ToLower
}
