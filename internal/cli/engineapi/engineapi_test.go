package engineapi

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/moby/moby/api/pkg/stdcopy"

	"corten.dev/corten/internal/errs"
)

func client(t *testing.T, h http.HandlerFunc) (*Client, *atomic.Int32) {
	t.Helper()
	srv := httptest.NewServer(h)
	t.Cleanup(srv.Close)
	dials := &atomic.Int32{}
	c := New(Config{Authority: "h", Dial: func(ctx context.Context) (net.Conn, error) {
		dials.Add(1)
		return net.Dial("tcp", srv.Listener.Addr().String())
	}})
	t.Cleanup(c.Close)
	return c, dials
}

func TestNewestVersionFirstThenStepDown(t *testing.T) {
	var paths []string
	c, dials := client(t, func(w http.ResponseWriter, r *http.Request) {
		paths = append(paths, r.URL.Path)
		w.Header().Set("Api-Version", "1.41")
		if !strings.HasPrefix(r.URL.Path, "/v1.41/") {
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(400)
			io.WriteString(w, `{"message":"client version `+Newest+` is too new. Maximum supported API version is 1.41"}`)
			return
		}
		io.WriteString(w, "{}")
	})
	for range 2 {
		if err := c.Get(context.Background(), "/info", nil, nil); err != nil {
			t.Fatal(err)
		}
	}
	if got := strings.Join(paths, " "); got != "/v"+Newest+"/info /v1.41/info /v1.41/info" {
		t.Error(got)
	}
	if dials.Load() != 1 {
		t.Errorf("%d connections for three requests", dials.Load())
	}
}

// An answer to HEAD has no text to tell that the version is too new: the first `cp` to an older engine failed.
func TestStepDownWithoutText(t *testing.T) {
	c, _ := client(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Api-Version", "1.41")
		if !strings.HasPrefix(r.URL.Path, "/v1.41/") {
			w.WriteHeader(400)
		}
	})
	resp, err := c.Do(context.Background(), Request{Method: "HEAD", Path: "/containers/x/archive"})
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
}

func TestErrorsKeepStatusAndText(t *testing.T) {
	c, _ := client(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(404)
		io.WriteString(w, `{"message":"No such container: x"}`)
	})
	err := c.Get(context.Background(), "/containers/x/json", nil, nil)
	if err == nil || err.Error() != "Error response from daemon: No such container: x" || !errors.Is(err, errs.NotFound) {
		t.Error(err)
	}
}

func frame(stream byte, text string) string {
	h := make([]byte, 8)
	h[0] = stream
	binary.BigEndian.PutUint32(h[4:], uint32(len(text)))
	return string(h) + text
}

func TestDemux(t *testing.T) {
	in := frame(1, "a\n") + frame(2, "e\n") + frame(1, "") + frame(1, strings.Repeat("x", 600<<10)) + frame(0, "in") + frame(2, "f")
	for _, r := range []io.Reader{strings.NewReader(in), oneByte{strings.NewReader(in)}} {
		var out, errw bytes.Buffer
		if err := Demux(&out, &errw, r); err != nil {
			t.Fatal(err)
		}
		if out.String() != "a\n"+strings.Repeat("x", 600<<10)+"in" || errw.String() != "e\nf" {
			t.Errorf("%d bytes of output, errors %q", out.Len(), errw.String())
		}
	}
	for in, want := range map[string]string{frame(3, "oops"): "oops", frame(7, "x"): "unrecognized stream", frame(1, "abc")[:9]: "inside a frame", "\x01\x00": "inside a frame"} {
		if err := Demux(io.Discard, io.Discard, strings.NewReader(in)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v", in, err)
		}
	}
}

type oneByte struct{ r io.Reader }

func (o oneByte) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	return o.r.Read(p[:min(len(p), 1+len(p)%7)])
}

// FuzzDemux compares with the field's own splitter on streams that both take.
func FuzzDemux(f *testing.F) {
	f.Add([]byte(frame(1, "a") + frame(2, "b")))
	f.Add([]byte(frame(3, "a")))
	f.Fuzz(func(t *testing.T, in []byte) {
		var out, errw, wantOut, wantErr bytes.Buffer
		if err := Demux(&out, &errw, bytes.NewReader(in)); err != nil {
			return
		}
		if _, err := stdcopy.StdCopy(&wantOut, &wantErr, bytes.NewReader(in)); err != nil {
			t.Fatalf("we took what stdcopy refuses: %v", err)
		}
		if out.String() != wantOut.String() || errw.String() != wantErr.String() {
			t.Error("different output")
		}
	})
}

// A million lines of 80 bytes: the budget for all of it, engine included, is 0.4 s.
func BenchmarkDemux(b *testing.B) {
	in := []byte(strings.Repeat(frame(1, strings.Repeat("x", 79)+"\n"), 10000))
	b.SetBytes(int64(len(in)))
	for b.Loop() {
		if err := Demux(io.Discard, io.Discard, bytes.NewReader(in)); err != nil {
			b.Fatal(err)
		}
	}
}
