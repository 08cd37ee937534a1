package http1

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
)

var errTruncated = fmt.Errorf("response ended early: %w", io.ErrUnexpectedEOF)

// readHead reads a status line and headers, skipping interim (1xx) answers but 101.
func (c *Conn) readHead() (*Response, error) {
	for range maxInterim {
		resp, err := readHead(c.br)
		if err != nil {
			return nil, err
		}
		if resp.Status >= 200 || resp.Status == 101 {
			return resp, nil
		}
	}
	return nil, errors.New("malformed response: too many interim answers")
}

func readHead(br *bufio.Reader) (*Response, error) {
	left := maxHeadBytes
	line, err := readLine(br, &left)
	if err != nil {
		if err == io.EOF {
			return nil, errTruncated
		}
		return nil, err
	}
	proto, rest, _ := strings.Cut(line, " ")
	code, reason, _ := strings.Cut(rest, " ")
	if (proto != "HTTP/1.1" && proto != "HTTP/1.0") || len(code) != 3 {
		return nil, fmt.Errorf("malformed response: status line %.60q", line)
	}
	status, err := strconv.ParseUint(code, 10, 16)
	if err != nil || status < 100 || status > 599 {
		return nil, fmt.Errorf("malformed response: status line %.60q", line)
	}
	resp := &Response{Status: int(status), Reason: reason, Header: make(map[string]string, 8)}
	if proto == "HTTP/1.0" {
		resp.Header["connection"] = "close"
	}
	for n := 0; ; n++ {
		line, err := readLine(br, &left)
		if err != nil {
			if err == io.EOF {
				err = errTruncated
			}
			return nil, err
		}
		if line == "" {
			return resp, nil
		}
		if n >= maxHeads {
			return nil, errors.New("malformed response: too many headers")
		}
		if err := addHeader(resp.Header, line); err != nil {
			return nil, err
		}
	}
}

func addHeader(h map[string]string, line string) error {
	name, value, ok := strings.Cut(line, ":")
	if !ok || name == "" || strings.ContainsAny(name, " \t") {
		return fmt.Errorf("malformed response: header %.60q", line)
	}
	name = strings.ToLower(name)
	value = strings.Trim(value, " \t")
	if old, twice := h[name]; twice && name == "content-length" && old != value {
		return errors.New("malformed response: two lengths")
	}
	h[name] = value
	return nil
}

// readLine reads up to CRLF (or a bare LF, as every client accepts) without ever holding more than left bytes.
func readLine(br *bufio.Reader, left *int) (string, error) {
	var long []byte
	for {
		part, err := br.ReadSlice('\n')
		*left -= len(part)
		if *left < 0 {
			return "", errors.New("malformed response: header too long")
		}
		if err == bufio.ErrBufferFull {
			long = append(long, part...)
			continue
		}
		if err != nil {
			if err == io.EOF && len(part)+len(long) > 0 {
				err = errTruncated
			}
			return "", err
		}
		if long != nil {
			part = append(long, part...)
		}
		part = part[:len(part)-1]
		if n := len(part); n > 0 && part[n-1] == '\r' {
			part = part[:n-1]
		}
		return string(part), nil
	}
}

// bodyOf chooses how the end of the body is known.
func (c *Conn) bodyOf(method string, resp *Response) (io.ReadCloser, error) {
	if strings.EqualFold(resp.Header["connection"], "close") {
		c.spoil()
	}
	te, length := resp.Header["transfer-encoding"], resp.Header["content-length"]
	switch {
	case method == "HEAD" || resp.Status == 204 || resp.Status == 304 || resp.Status == 101:
		return &lengthBody{conn: c}, nil
	case te != "" && length != "":
		return nil, errors.New("malformed response: chunked, yet with a length")
	case strings.EqualFold(te, "chunked"):
		return &chunkedBody{conn: c, br: c.br}, nil
	case te != "" && !strings.EqualFold(te, "identity"):
		return nil, fmt.Errorf("malformed response: unknown transfer encoding %.40q", te)
	case length != "":
		if length[0] < '0' || length[0] > '9' {
			return nil, fmt.Errorf("malformed response: length %.40q", length)
		}
		n, err := strconv.ParseInt(length, 10, 64)
		if err != nil {
			return nil, fmt.Errorf("malformed response: length %.40q", length)
		}
		return &lengthBody{conn: c, left: n}, nil
	}
	c.spoil() // the end of the connection is the end of the body
	return io.NopCloser(c.br), nil
}

// lengthBody is a body whose length was announced.
type lengthBody struct {
	conn *Conn
	left int64
}

func (b *lengthBody) Read(p []byte) (int, error) {
	if b.left <= 0 {
		return 0, io.EOF
	}
	if int64(len(p)) > b.left {
		p = p[:b.left]
	}
	n, err := b.conn.br.Read(p)
	b.left -= int64(n)
	if err == io.EOF && b.left > 0 {
		err = errTruncated
	}
	if err == io.EOF {
		err = nil
	}
	return n, err
}

func (b *lengthBody) Close() error {
	if b.left > 64<<10 {
		b.conn.spoil()
		return nil
	}
	if b.left > 0 {
		if _, err := io.Copy(io.Discard, b); err != nil {
			b.conn.spoil()
		}
	}
	return nil
}

// chunkedBody is a body in chunks. A chunk's size line has at most 16 digits; extensions and trailers are skipped.
type chunkedBody struct {
	conn *Conn
	br   *bufio.Reader
	left uint64
	open bool // inside a chunk: its CRLF is still to come
	err  error
}

func (b *chunkedBody) Read(p []byte) (int, error) {
	if b.err != nil {
		return 0, b.err
	}
	if b.left == 0 {
		if b.err = b.nextChunk(); b.err != nil {
			return 0, b.err
		}
	}
	if uint64(len(p)) > b.left {
		p = p[:b.left]
	}
	n, err := b.br.Read(p)
	b.left -= uint64(n)
	if err == io.EOF {
		err = errTruncated
	}
	if err != nil {
		b.err = err
	}
	return n, err
}

func (b *chunkedBody) nextChunk() error {
	left := 4 << 10
	if b.open {
		line, err := readLine(b.br, &left)
		if err != nil || line != "" {
			return badChunk(err)
		}
		b.open = false
	}
	line, err := readLine(b.br, &left)
	if err != nil {
		return badChunk(err)
	}
	digits, _, _ := strings.Cut(line, ";")
	digits = strings.TrimRight(digits, " \t")
	if digits == "" || len(digits) > 16 || digits[0] == '+' || digits[0] == '-' {
		return fmt.Errorf("malformed response: chunk %.30q", line)
	}
	size, err := strconv.ParseUint(digits, 16, 63)
	if err != nil {
		return fmt.Errorf("malformed response: chunk %.30q", line)
	}
	if size > 0 {
		b.left, b.open = size, true
		return nil
	}
	for left = maxHeadBytes; ; { // trailers
		line, err := readLine(b.br, &left)
		if err != nil {
			return badChunk(err)
		}
		if line == "" {
			return io.EOF
		}
	}
}

func badChunk(err error) error {
	switch err {
	case nil:
		return errors.New("malformed response: chunk without an end")
	case io.EOF:
		return errTruncated
	}
	return err
}

// Close keeps the connection if the end is near, and gives it up otherwise.
func (b *chunkedBody) Close() error {
	if b.err == nil && b.br.Buffered() > 0 && b.left <= uint64(b.br.Buffered()) {
		var scrap [4096]byte
		for range 16 {
			if _, err := b.Read(scrap[:]); err != nil {
				break
			}
			if b.br.Buffered() == 0 {
				break
			}
		}
	}
	if b.err != io.EOF {
		b.conn.spoil()
	}
	return nil
}
