// Package bad lets a plugin misbehave on the wire, below the library.
package bad

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// Listener looks at what each connection asks for and, where <root>/bad says so in a line "METHOD MODE" (Join, or NetworkDriver.Join), does what no plugin should:
//
//	slow      answers after a while
//	never     reads, and never answers
//	close     closes the connection without an answer
//	crash     is killed after half of an answer, its work not done
//	done      is killed after its work, without an answer
//	json      answers what is no JSON
//	html      answers a page, with status 200
//	huge      answers without end
//	type      answers what is right, as text/html
//	status    answers 503 with plain text
//	rel       answers a mount point that is no absolute path
//	{…}       answers this
//
// The methods that it misbehaved in it adds to <root>/misbehaved.
type Listener struct {
	net.Listener
	Root string
}

// Accept implements net.Listener.
func (l *Listener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &conn{Conn: c, root: l.Root}, nil
}

type conn struct {
	net.Conn
	root string
	seen bool
	mode string
}

func (c *conn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if c.seen || n == 0 {
		return n, err
	}
	c.seen = true
	c.mode = c.modeOf(p[:n])
	return c.misbehave(n, err)
}

func (c *conn) modeOf(head []byte) string {
	text, err := os.ReadFile(filepath.Join(c.root, "bad"))
	if err != nil {
		return ""
	}
	path, _, _ := strings.Cut(strings.TrimPrefix(string(head), "POST /"), " ") // NetworkDriver.Join
	_, short, _ := strings.Cut(path, ".")
	for line := range strings.Lines(string(text)) {
		method, mode, _ := strings.Cut(strings.TrimSpace(line), " ")
		if method == path || method == short {
			c.note(method)
			return mode
		}
	}
	return ""
}

// note keeps that it misbehaved.
func (c *conn) note(method string) {
	f, err := os.OpenFile(filepath.Join(c.root, "misbehaved"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err == nil {
		fmt.Fprintln(f, method)
		err = f.Close()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
}

func (c *conn) misbehave(n int, err error) (int, error) {
	say := func(head, body string) (int, error) {
		fmt.Fprintf(c.Conn, "HTTP/1.1 %s\r\nContent-Length: %d\r\n\r\n%s", head, len(body), body)
		c.Conn.Close()
		return 0, io.EOF
	}
	switch c.mode {
	case "slow":
		time.Sleep(300 * time.Millisecond)
	case "never":
		select {}
	case "close":
		c.Conn.Close()
		return 0, io.EOF
	case "crash":
		io.WriteString(c.Conn, "HTTP/1.1 200 OK\r\nContent-Length: 30\r\n\r\n{\"Mountpo")
		syscall.Kill(os.Getpid(), syscall.SIGKILL)
	case "json":
		return say("200 OK", `{"Mountpoint": "/tmp", "Err`)
	case "html":
		return say("200 OK\r\nContent-Type: text/html", `<html><h1>It works!</h1></html>`)
	case "status":
		return say("503 Service Unavailable", "come back\nlater")
	case "rel":
		return say("200 OK", `{"Mountpoint": "../../etc"}`)
	case "huge":
		io.WriteString(c.Conn, "HTTP/1.1 200 OK\r\n\r\n{\"Err\": \"")
		for block := bytes.Repeat([]byte("x"), 1<<20); ; {
			if _, err := c.Conn.Write(block); err != nil {
				return 0, io.EOF
			}
		}
	}
	if strings.HasPrefix(c.mode, "{") {
		return say("200 OK", c.mode)
	}
	return n, err
}

func (c *conn) Write(p []byte) (int, error) {
	switch c.mode {
	case "done":
		syscall.Kill(os.Getpid(), syscall.SIGKILL)
	case "type":
		n := len(p)
		p = bytes.Replace(p, []byte("Content-Type: application/vnd.docker.plugins.v1.1+json"), []byte("Content-Type: text/html"), 1)
		if _, err := c.Conn.Write(p); err != nil {
			return 0, err
		}
		return n, nil
	}
	return c.Conn.Write(p)
}
