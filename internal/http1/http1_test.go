package http1

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"time"
)

// serve answers every request on one end of a pipe with raw bytes.
func serve(t *testing.T, answers ...string) *Conn {
	t.Helper()
	us, them := net.Pipe()
	t.Cleanup(func() { us.Close(); them.Close() })
	go func() {
		br := bufio.NewReader(them)
		for _, a := range answers {
			for {
				line, err := br.ReadString('\n')
				if err != nil {
					return
				}
				if line == "\r\n" {
					break
				}
			}
			if _, err := io.WriteString(them, a); err != nil {
				return
			}
		}
		them.Close()
	}()
	return NewConn(us)
}

func get() *Request { return &Request{Method: "GET", Target: "/x", Host: "h"} }

func TestBodies(t *testing.T) {
	for name, c := range map[string]struct{ answer, want, wantErr string }{
		"length":              {"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc", "abc", ""},
		"chunks":              {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2;x=y\r\nde\r\n0\r\nT: v\r\n\r\n", "abcde", ""},
		"until the end":       {"HTTP/1.1 200 OK\r\n\r\nabc", "abc", ""},
		"interim":             {"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx", "x", ""},
		"no content":          {"HTTP/1.1 204 No Content\r\n\r\n", "", ""},
		"short":               {"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc", "abc", "ended early"},
		"short chunk":         {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\nabc", "abc", "ended early"},
		"two lengths":         {"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabc", "", "two lengths"},
		"length and chunks":   {"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "", "yet with a length"},
		"negative length":     {"HTTP/1.1 200 OK\r\nContent-Length: -3\r\n\r\nabc", "", "length"},
		"bad chunk":           {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\nabc", "", "chunk"},
		"huge chunk":          {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\nabc", "", "chunk"},
		"chunk without end":   {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabcX\r\n0\r\n\r\n", "abc", "without an end"},
		"no status":           {"hello\r\n\r\n", "", "status line"},
		"space in a header":   {"HTTP/1.1 200 OK\r\nA b: c\r\n\r\n", "", "header"},
		"endless header":      {"HTTP/1.1 200 OK\r\nA: " + strings.Repeat("x", maxHeadBytes) + "\r\n\r\n", "", "too long"},
		"too many headers":    {"HTTP/1.1 200 OK\r\n" + strings.Repeat("A: b\r\n", maxHeads+1) + "\r\n", "", "too many headers"},
		"nothing but silence": {"", "", "ended early"},
	} {
		t.Run(name, func(t *testing.T) {
			resp, err := serve(t, c.answer).Do(context.Background(), get())
			var got []byte
			if err == nil {
				got, err = io.ReadAll(resp.Body)
				resp.Body.Close()
			}
			if string(got) != c.want {
				t.Errorf("body %q, want %q", got, c.want)
			}
			if (err == nil) != (c.wantErr == "") || err != nil && !strings.Contains(err.Error(), c.wantErr) {
				t.Errorf("error %v, want one with %q", err, c.wantErr)
			}
		})
	}
}

func TestConnectionServesAgainOnlyWhenItMay(t *testing.T) {
	const ok = "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc"
	c := serve(t, ok, strings.Replace(ok, "Content", "Connection: close\r\nContent", 1))
	for _, again := range []bool{true, false} {
		resp, err := c.Do(context.Background(), get())
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close() // unread: the rest is thrown away
		if c.Reusable() != again {
			t.Errorf("reusable: %t, want %t", c.Reusable(), again)
		}
	}
}

func TestCancelEndsAWaitingBody(t *testing.T) {
	us, them := net.Pipe()
	defer them.Close()
	go func() {
		br := bufio.NewReader(them)
		for {
			if line, err := br.ReadString('\n'); err != nil || line == "\r\n" {
				break
			}
		}
		io.WriteString(them, "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n")
	}()
	ctx, cancel := context.WithCancel(context.Background())
	resp, err := NewConn(us).Do(ctx, get())
	if err != nil {
		t.Fatal(err)
	}
	time.AfterFunc(10*time.Millisecond, cancel)
	if _, err := io.ReadAll(resp.Body); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

func TestUpgradeHandsOverBufferedBytes(t *testing.T) {
	c := serve(t, "HTTP/1.1 101 UPGRADED\r\nContent-Type: x\r\nUpgrade: tcp\r\n\r\nfirst")
	up, resp, err := c.Upgrade(context.Background(), get(), "tcp")
	if err != nil || up == nil {
		t.Fatal(up, resp, err)
	}
	if data, _ := io.ReadAll(up); string(data) != "first" || up.MediaType != "x" {
		t.Errorf("%q, %q", data, up.MediaType)
	}
	c = serve(t, "HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\nno")
	up, resp, err = c.Upgrade(context.Background(), get(), "tcp")
	if err != nil || up != nil || resp.Status != 404 {
		t.Fatal(up, resp, err)
	}
	resp.Body.Close()
	if !c.Reusable() {
		t.Error("a refused upgrade spoils the connection")
	}
}

// A server that refuses a large body answers and closes while it is still being sent. The answer has to be seen, not
// the broken pipe.
func TestEarlyAnswerWins(t *testing.T) {
	us, them := net.Pipe()
	go func() {
		br := bufio.NewReader(them)
		for {
			if line, err := br.ReadString('\n'); err != nil || line == "\r\n" {
				break
			}
		}
		io.WriteString(them, "HTTP/1.1 400 Bad Request\r\nContent-Length: 2\r\n\r\nno")
		them.Close()
	}()
	c := NewConn(us)
	resp, err := c.Do(context.Background(), &Request{Method: "POST", Target: "/x", Host: "h", Body: endless{}, Length: -1})
	if err != nil {
		t.Fatal(err)
	}
	if data, _ := io.ReadAll(resp.Body); string(data) != "no" || resp.Status != 400 {
		t.Errorf("%d %q", resp.Status, data)
	}
	resp.Body.Close()
	if c.Reusable() {
		t.Error("a connection with half a body serves again")
	}
}

// A body that cannot be read (a folder given as a file, a file that was cut) closes the connection, so that the peer does not take it for whole. The reader's error has to be told then, not
// "use of closed network connection", which is all that the connection knows.
func TestBrokenBodyIsWhatFailed(t *testing.T) {
	broken := errors.New("read /srv: is a directory")
	body := func() io.Reader { return io.MultiReader(strings.NewReader("half"), failing{broken}) }
	us, them := net.Pipe()
	go io.Copy(io.Discard, them)
	_, err := NewConn(us).Do(context.Background(), &Request{Method: "POST", Target: "/x", Host: "h", Body: body(), Length: -1})
	if !errors.Is(err, broken) || err.Error() != broken.Error() {
		t.Errorf("no answer yet: %v", err)
	}

	us, them = net.Pipe() // the answer has begun: a report about what was read so far
	answered := make(chan struct{})
	go func() {
		br := bufio.NewReader(them)
		for line := ""; line != "\r\n"; {
			var err error
			if line, err = br.ReadString('\n'); err != nil {
				return
			}
		}
		io.WriteString(them, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n")
		close(answered)
		io.Copy(io.Discard, br)
	}()
	resp, err := NewConn(us).Do(context.Background(), &Request{Method: "POST", Target: "/x", Host: "h", Body: io.MultiReader(waiting{answered}, body()), Length: -1})
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if data, err := io.ReadAll(resp.Body); string(data) != "x" || !errors.Is(err, broken) {
		t.Errorf("after %q: %v", data, err)
	}
}

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }

// waiting is empty, once it may be read.
type waiting struct{ until <-chan struct{} }

func (w waiting) Read([]byte) (int, error) { <-w.until; return 0, io.EOF }

type endless struct{}

func (endless) Read(p []byte) (int, error) { return len(p), nil }

func TestRequestsCannotBeSplit(t *testing.T) {
	for _, r := range []*Request{{Method: "GET", Target: "/a b"}, {Method: "GET", Target: "/a\r\nX: y"}, {Method: "GET", Target: "a"},
		{Method: "GET", Target: "/", Header: []Field{{"A", "b\r\nC: d"}}}} {
		if err := checkRequest(r); err == nil {
			t.Errorf("%+v went through", r)
		}
	}
}

func FuzzResponse(f *testing.F) {
	f.Add([]byte("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc"))
	f.Add([]byte("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"))
	f.Add([]byte("HTTP/1.0 404\r\n\r\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		c := &Conn{br: bufio.NewReader(bytes.NewReader(data)), reusable: true}
		resp, err := c.readHead()
		if err != nil {
			return
		}
		body, err := c.bodyOf("GET", resp)
		if err != nil {
			return
		}
		n, _ := io.Copy(io.Discard, body)
		if n > int64(len(data)) {
			t.Errorf("%d bytes of body out of %d", n, len(data))
		}
		body.Close()
	})
}
