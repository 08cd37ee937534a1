package ship

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/opencontainers/go-digest"
)

// load is one kind of work for a registry: width clients at a time, each on a connection of its own.
type load struct {
	addr  string // host:port, plain HTTP
	repo  string
	width int
	size  int             // bytes of a blob
	count int             // blobs to push, or pulls to make
	blobs []digest.Digest // to pull; what a push returned
}

// result is how it went.
type result struct {
	requests int64
	bytes    int64
	elapsed  time.Duration
	blobs    []digest.Digest // pushed
}

// push uploads count new blobs, as docker does: POST, PATCH, PUT. They differ in their first bytes only, and their digests are known before the clock starts: hashing costs
// this client as much as the registry, and would make any two registries look alike.
func (l load) push(ctx context.Context) (result, error) {
	res := result{blobs: make([]digest.Digest, l.count)}
	data := pattern(l.size)
	head := func(i int) []byte { return binary.LittleEndian.AppendUint64(nil, uint64(i)) }
	for i := range res.blobs {
		h := digest.SHA256.Hash()
		h.Write(head(i))
		h.Write(data[8:])
		res.blobs[i] = digest.NewDigest(digest.SHA256, h)
	}
	err := l.run(ctx, &res, func(c *loadConn, i int) error {
		return c.push(l.repo, res.blobs[i], head(i), data[8:])
	})
	return res, err
}

// pull reads count blobs.
func (l load) pull(ctx context.Context) (result, error) {
	var res result
	err := l.run(ctx, &res, func(c *loadConn, i int) error {
		status, n, err := c.do("GET", "/v2/"+l.repo+"/blobs/"+string(l.blobs[i%len(l.blobs)]), "")
		if err == nil && (status != 200 || n != int64(l.size)) {
			err = fmt.Errorf("pull: status %d, %d bytes", status, n)
		}
		return err
	})
	return res, err
}

func (l load) run(ctx context.Context, res *result, one func(c *loadConn, i int) error) error {
	var next atomic.Int64
	var requests atomic.Int64
	var wg sync.WaitGroup
	errs := make([]error, l.width)
	started := time.Now()
	for w := range l.width {
		wg.Go(func() {
			c := &loadConn{addr: l.addr}
			defer c.close()
			for ctx.Err() == nil {
				i := int(next.Add(1) - 1)
				if i >= l.count {
					break
				}
				if errs[w] = one(c, i); errs[w] != nil {
					break
				}
			}
			requests.Add(c.requests)
		})
	}
	wg.Wait()
	res.elapsed = time.Since(started)
	res.requests = requests.Load()
	res.bytes = int64(l.size) * int64(l.count)
	return errors.Join(append(errs, ctx.Err())...)
}

// pattern is cheap content that does not compress to nothing.
func pattern(size int) []byte {
	b := make([]byte, size+8)
	x := uint64(0x9E3779B97F4A7C15)
	for i := 0; i < size; i += 8 {
		x ^= x << 13
		x ^= x >> 7
		x ^= x << 17
		binary.LittleEndian.PutUint64(b[i:], x)
	}
	return b[:size]
}

// loadConn is an HTTP/1.1 client that costs less than what it measures.
type loadConn struct {
	addr     string
	conn     net.Conn
	r        *bufio.Reader
	location string
	trash    []byte
	requests int64
}

func (c *loadConn) close() {
	if c.conn != nil {
		c.conn.Close()
	}
}

func (c *loadConn) push(repo string, d digest.Digest, data ...[]byte) error {
	status, _, err := c.do("POST", "/v2/"+repo+"/blobs/uploads/", "")
	if err != nil || status != 202 {
		return fmt.Errorf("post: status %d: %w", status, err)
	}
	status, _, err = c.do("PATCH", c.location, "Content-Type: application/octet-stream\r\n", data...)
	if err != nil || status != 202 {
		return fmt.Errorf("patch: status %d: %w", status, err)
	}
	sep := "?"
	if strings.Contains(c.location, "?") {
		sep = "&"
	}
	status, _, err = c.do("PUT", c.location+sep+"digest="+url.QueryEscape(string(d)), "")
	if err != nil || status != 201 {
		return fmt.Errorf("put: status %d: %w", status, err)
	}
	return nil
}

// unpaced keeps the host's congestion control out of what is measured: bbr would send each piece when a timer says so.
func unpaced(_, _ string, conn syscall.RawConn) (err error) {
	cerr := conn.Control(func(fd uintptr) {
		err = syscall.SetsockoptString(int(fd), syscall.IPPROTO_TCP, syscall.TCP_CONGESTION, "reno")
	})
	return errors.Join(err, cerr)
}

// do sends one request and reads the answer, of which it keeps the Location and counts the body.
func (c *loadConn) do(method, path, headers string, body ...[]byte) (status int, n int64, err error) {
	if c.conn == nil {
		if c.conn, err = (&net.Dialer{Control: unpaced}).Dial("tcp", c.addr); err != nil {
			return 0, 0, err
		}
		c.r = bufio.NewReaderSize(c.conn, 64<<10)
	}
	c.requests++
	if strings.HasPrefix(path, "http") {
		u, err := url.Parse(path)
		if err != nil {
			return 0, 0, err
		}
		path = u.RequestURI()
	}
	head := fmt.Appendf(nil, "%s %s HTTP/1.1\r\nHost: %s\r\n%s", method, path, c.addr, headers)
	if method != "GET" {
		length := 0
		for _, b := range body {
			length += len(b)
		}
		head = fmt.Appendf(head, "Content-Length: %d\r\n", length)
	}
	buffers := net.Buffers(append([][]byte{append(head, "\r\n"...)}, body...))
	if _, err := buffers.WriteTo(c.conn); err != nil {
		return 0, 0, err
	}
	return c.answer()
}

func (c *loadConn) answer() (status int, n int64, err error) {
	line, err := c.r.ReadSlice('\n')
	if err != nil || len(line) < 12 {
		return 0, 0, fmt.Errorf("status line %q: %w", line, err)
	}
	if status, err = strconv.Atoi(string(line[9:12])); err != nil {
		return 0, 0, err
	}
	length := int64(0)
	for {
		line, err := c.r.ReadSlice('\n')
		if err != nil {
			return 0, 0, err
		}
		line = bytes.TrimRight(line, "\r\n")
		if len(line) == 0 {
			break
		}
		name, value, _ := bytes.Cut(line, []byte(": "))
		switch {
		case bytes.EqualFold(name, []byte("Content-Length")):
			if length, err = strconv.ParseInt(string(value), 10, 64); err != nil {
				return 0, 0, err
			}
		case bytes.EqualFold(name, []byte("Location")):
			c.location = string(value)
		}
	}
	n, err = c.discard(length)
	return status, n, err
}

// discard drops a body. What is not in the buffer already is dropped inside the kernel (tcp(7), MSG_TRUNC), so that the client's copying does not take the
// processor from the registry that is measured.
func (c *loadConn) discard(length int64) (int64, error) {
	n, err := io.CopyN(io.Discard, c.r, min(length, int64(c.r.Buffered())))
	tcp, ok := c.conn.(*net.TCPConn)
	if err != nil || !ok {
		return n, err
	}
	raw, err := tcp.SyscallConn()
	if err != nil {
		return n, err
	}
	if c.trash == nil {
		c.trash = make([]byte, 1<<20) // only its length counts
	}
	waits := 1
	for n < length && err == nil {
		// Woken for half a megabyte, not for each segment: else most of what both sides do is waking each other up.
		if want := int(min(length-n, 512<<10)); want != waits {
			waits = want
			rerr := raw.Control(func(fd uintptr) { err = syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_RCVLOWAT, want) })
			if err = errors.Join(err, rerr); err != nil {
				return n, err
			}
		}
		rerr := raw.Read(func(fd uintptr) bool {
			var got int
			got, _, err = syscall.Recvfrom(int(fd), c.trash[:min(length-n, int64(len(c.trash)))], syscall.MSG_TRUNC)
			if errors.Is(err, syscall.EAGAIN) {
				err = nil
				return false
			}
			if got == 0 && err == nil {
				err = io.ErrUnexpectedEOF
			}
			n += int64(max(got, 0))
			return true
		})
		err = errors.Join(err, rerr)
	}
	if waits != 1 && err == nil {
		rerr := raw.Control(func(fd uintptr) { err = syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_RCVLOWAT, 1) })
		err = errors.Join(err, rerr)
	}
	return n, err
}
