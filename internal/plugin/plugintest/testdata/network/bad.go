package main

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

// badListener misbehaves on the wire, below the library: it looks at what each connection asks for and, where <root>/bad says so, does what no plugin should:
//
//	slow      answers after a while
//	never     reads, and never answers
//	close     closes the connection without an answer
//	crash     is killed after half of an answer, its work not done
//	done      is killed after its work, without an answer
//	json      answers what is no JSON
//	huge      answers without end
//	status    answers 503 with plain text
//	{…}       answers this
type badListener struct {
	net.Listener
	file string
}

func (l *badListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &badConn{Conn: c, file: l.file}, nil
}

type badConn struct {
	net.Conn
	file string
	seen bool
	mode string
}

func (c *badConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if c.seen || n == 0 {
		return n, err
	}
	c.seen = true
	c.mode = c.modeOf(p[:n])
	return c.misbehave(n, err)
}

func (c *badConn) modeOf(head []byte) string {
	text, err := os.ReadFile(c.file)
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(text)) {
		method, mode, _ := strings.Cut(strings.TrimSpace(line), " ")
		if bytes.HasPrefix(head, []byte("POST /"+method+" ")) {
			c.note(method)
			return mode
		}
	}
	return ""
}

// note keeps that it misbehaved.
func (c *badConn) note(method string) {
	f, err := os.OpenFile(filepath.Join(filepath.Dir(c.file), "misbehaved"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err == nil {
		fmt.Fprintln(f, method)
		err = f.Close()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
}

func (c *badConn) misbehave(n int, err error) (int, error) {
	say := func(head, body string) (int, error) {
		fmt.Fprintf(c.Conn, "HTTP/1.1 %s\r\nContent-Length: %d\r\n\r\n%s", head, len(body), body)
		c.Conn.Close()
		return 0, io.EOF
	}
	switch {
	case c.mode == "slow":
		time.Sleep(300 * time.Millisecond)
	case c.mode == "never":
		select {}
	case c.mode == "close":
		c.Conn.Close()
		return 0, io.EOF
	case c.mode == "crash":
		io.WriteString(c.Conn, "HTTP/1.1 200 OK\r\nContent-Length: 30\r\n\r\n{\"Interf")
		syscall.Kill(os.Getpid(), syscall.SIGKILL)
	case c.mode == "json":
		return say("200 OK", `{"InterfaceName": {"SrcName": "x`)
	case c.mode == "status":
		return say("503 Service Unavailable", "come back\nlater")
	case c.mode == "huge":
		io.WriteString(c.Conn, "HTTP/1.1 200 OK\r\n\r\n{\"Err\": \"")
		for block := bytes.Repeat([]byte("x"), 1<<20); ; {
			if _, err := c.Conn.Write(block); err != nil {
				return 0, io.EOF
			}
		}
	case strings.HasPrefix(c.mode, "{"):
		return say("200 OK", c.mode)
	}
	return n, err
}

func (c *badConn) Write(p []byte) (int, error) {
	if c.mode == "done" {
		syscall.Kill(os.Getpid(), syscall.SIGKILL)
	}
	return c.Conn.Write(p)
}
