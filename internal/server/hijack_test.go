package server_test

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/server"
)

// taken is an answer whose connection can be taken, once, and is broken by then: the client has gone.
type taken struct {
	*httptest.ResponseRecorder
	conn     net.Conn
	hijacked bool
	later    int // what was answered after that
}

func (w *taken) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	w.hijacked = true
	return w.conn, bufio.NewReadWriter(bufio.NewReader(w.conn), bufio.NewWriter(w.conn)), nil
}

func (w *taken) WriteHeader(code int) {
	if w.hijacked {
		w.later++
	}
	w.ResponseRecorder.WriteHeader(code)
}

func (w *taken) Write(p []byte) (int, error) {
	if w.hijacked {
		w.later++
	}
	return w.ResponseRecorder.Write(p)
}

// A client that went away while its connection was taken made the server answer on what it did not have any more: "response.WriteHeader on hijacked connection" in the log,
// and an error of the request, for what is no error at all.
func TestClientLeavesWhileItsConnectionIsTaken(t *testing.T) {
	for _, c := range []struct{ path, body, upgrade string }{
		{"/v1.50/containers/web/attach?stream=1", "", "tcp"},
		{"/v1.50/exec/" + execID + "/start", `{}`, "tcp"},
		{"/v1.50/containers/create", `{"Image":"busybox"}`, "corten-run"},
	} {
		var log bytes.Buffer
		opts := options(&engine{})
		opts.Logger = slog.New(slog.NewTextHandler(&log, nil))
		srv := server.New(opts)
		us, them := net.Pipe()
		them.Close()
		w := &taken{ResponseRecorder: httptest.NewRecorder(), conn: us}
		r := httptest.NewRequest(http.MethodPost, c.path, strings.NewReader(c.body))
		r.Header.Set("Content-Type", "application/json")
		r.Header.Set("Connection", "Upgrade")
		r.Header.Set("Upgrade", c.upgrade)
		srv.ServeHTTP(w, r)
		if !w.hijacked {
			t.Errorf("%s: the connection was not taken: %d %s", c.path, w.Code, w.Body)
		}
		if w.later > 0 || log.Len() > 0 {
			t.Errorf("%s: answered %d times afterwards, and logged %q", c.path, w.later, log.String())
		}
	}
}

// `corten run` in one request: what was made, the output, how it ended; and a start that is refused, on the same connection.
func TestRunInOneRequest(t *testing.T) {
	const body = `{"Image":"busybox","AttachStdout":true}`
	ask := func(e *engine, upgrade string) string {
		conn, err := net.Dial("unix", serve(t, e))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		fmt.Fprintf(conn, "POST /v1.50/containers/create?stdout=1&stderr=1 HTTP/1.1\r\nHost: docker\r\nContent-Type: application/json\r\nContent-Length: %d\r\n%s\r\n%s", len(body), upgrade, body)
		conn.(*net.UnixConn).CloseWrite()
		b, err := io.ReadAll(conn)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	const up = "Connection: Upgrade\r\nUpgrade: corten-run\r\n"
	frame := func(word string) string { return "\x04\x00\x00\x00\x00\x00\x00" + string(rune(len(word))) + word }
	head := "HTTP/1.1 101 UPGRADED\r\nContent-Type: application/vnd.docker.multiplexed-stream\r\nConnection: Upgrade\r\nUpgrade: corten-run\r\n\r\n"
	made := frame(`{"Id":"` + webID + `","Warnings":[]}`)
	out := "\x01\x00\x00\x00\x00\x00\x00\x04out\n"
	if got, want := ask(&engine{}, up), head+made+out+frame(`{"Code":3}`); got != want {
		t.Errorf("got  %q\nwant %q", got, want)
	}
	if got, want := ask(&engine{refused: errs.New(errs.Conflict, "no")}, up), head+made+out+frame(`{"Code":0,"Refused":409,"Message":"no"}`); got != want {
		t.Errorf("got  %q\nwant %q", got, want)
	}
	if got := ask(&engine{}, "Connection: close\r\n"); !strings.HasPrefix(got, "HTTP/1.1 201 ") || !strings.Contains(got, webID) {
		t.Errorf("an ordinary create: %q", got)
	}
}
