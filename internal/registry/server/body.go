package server

import (
	"errors"
	"io"
	"net/http"
	"os"
	"sync"
	"syscall"
	"time"
)

// Deadlines, which belong to a connection (HTTP/1) or a stream (HTTP/2), and there end it for good when they pass:
//
//	request begins   none for writing (one may be left of the request before); for reading the idle time, as net/http reads a body that nobody wanted
//	read, write      the idle time before, none after: what we do in between may take as long as it likes
//	request ends     the idle time for what net/http still has to send, and for what it reads of the body before that
//
// answer counts what goes out, and lets the kernel send files in pieces, each of which must make progress in time.
type answer struct {
	http.ResponseWriter
	ctl    *http.ResponseController
	idle   time.Duration
	status int
	out    int64
}

// piece is what must go out within the idle time: a client gets at least 17 KB/s with the default of a minute.
const piece = 1 << 20

func (a *answer) Unwrap() http.ResponseWriter { return a.ResponseWriter }

func (a *answer) WriteHeader(status int) {
	if a.status == 0 {
		a.status = status
	}
	a.ResponseWriter.WriteHeader(status)
}

func (a *answer) Write(p []byte) (int, error) {
	if a.status == 0 {
		a.status = http.StatusOK
	}
	total := 0
	for first := true; first || len(p) > 0; first = false {
		part := p[:min(len(p), piece)]
		a.deadline(a.idle)
		n, err := a.ResponseWriter.Write(part)
		a.deadline(0)
		total += n
		a.out += int64(n)
		if err != nil {
			return total, err
		}
		p = p[n:]
	}
	return total, nil
}

// ReadFrom is what io.Copy uses. What is a file goes on to net/http, which has the kernel send it (sendfile: no byte passes through this process).
//
// What blobs of 64 MB cost over the loopback, in milliseconds of processor time a megabyte, beside Debian's docker-registry:
//
//	        ours    docker-registry
//	pull    0.10    0.46
//	push    1.30    3.20
//
// Half of a pull was once timers: the host's congestion control (bbr) paced what stays on the host; see linux/tcp. User time of a push is sha256 as fast as the processor has it.
func (a *answer) ReadFrom(r io.Reader) (int64, error) {
	rf, ok := a.ResponseWriter.(io.ReaderFrom)
	left := int64(1<<63 - 1)
	under := r
	whole, limited := r.(*io.LimitedReader)
	if limited {
		under, left = whole.R, whole.N
	}
	if _, file := under.(syscall.Conn); !ok || !file {
		buf := copies.Get().(*[]byte)
		defer copies.Put(buf)
		return io.CopyBuffer(struct{ io.Writer }{a}, struct{ io.Reader }{r}, *buf)
	}
	if a.status == 0 {
		a.status = http.StatusOK
	}
	var total int64
	for left > 0 {
		part := &io.LimitedReader{R: under, N: min(piece, left)}
		want := part.N
		a.deadline(a.idle)
		n, err := rf.ReadFrom(part)
		a.deadline(0)
		total += n
		a.out += n
		left -= n
		if limited {
			whole.N = left
		}
		if err != nil || n < want {
			return total, err
		}
	}
	return total, nil
}

var copies = sync.Pool{New: func() any { b := make([]byte, 64<<10); return &b }}

// deadline is for writing; zero is none. A connection that cannot have any just waits.
func (a *answer) deadline(idle time.Duration) {
	if a.idle > 0 {
		_ = a.ctl.SetWriteDeadline(after(idle))
	}
}

func after(idle time.Duration) time.Time {
	if idle <= 0 {
		return time.Time{}
	}
	return time.Now().Add(idle)
}

// Reasons why a body ended early.
var (
	errTooLarge    = errors.New("body is larger than allowed")
	errInterrupted = errors.New("another request took the upload over")
)

// body is what a client sends: every read must bring something within the idle time, the whole must not exceed left, and another request can cut it.
type body struct {
	r    io.Reader
	ctl  *http.ResponseController
	idle time.Duration
	left int64 // that may come; negative: any number
	in   int64
	// ended: all of it came. err is why it ended before.
	ended bool
	err   error

	mu  sync.Mutex // guards cut, and that no deadline is moved after it
	cut bool
}

func (b *body) Read(p []byte) (int, error) {
	if b.err != nil {
		return 0, b.err
	}
	if err := b.deadline(b.idle); err != nil {
		b.err = err
		return 0, err
	}
	n, err := b.r.Read(p)
	b.in += int64(n)
	if b.left >= 0 && b.in > b.left {
		n -= int(b.in - b.left)
		b.in = b.left
		err = errTooLarge
	}
	if b.interrupted() {
		err = errInterrupted
	}
	if err != nil && err != io.EOF {
		b.err = err
		return n, err
	}
	b.ended = err == io.EOF
	_ = b.deadline(0)
	return n, err
}

// deadline is for reading; zero is none. After an interruption it stays where it is, in the past.
func (b *body) deadline(idle time.Duration) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.cut {
		return errInterrupted
	}
	if b.idle > 0 {
		_ = b.ctl.SetReadDeadline(after(idle)) // not every connection can; then the read just waits
	}
	return nil
}

func (b *body) interrupted() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.cut
}

// interrupt makes the body end now; called by another request.
func (b *body) interrupt() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.cut = true
	_ = b.ctl.SetReadDeadline(time.Now())
}

// problem tells why a body ended early, in the words of the API.
func (b *body) problem() *problem {
	switch {
	case b.err == nil:
		return nil
	case errors.Is(b.err, errTooLarge):
		return refuse(http.StatusRequestEntityTooLarge, codeSizeInvalid, "%w", b.err)
	case errors.Is(b.err, errInterrupted):
		return refuse(http.StatusConflict, codeUploadInvalid, "%w", b.err)
	case errors.Is(b.err, os.ErrDeadlineExceeded):
		return refuse(http.StatusRequestTimeout, codeUploadInvalid, "the body stood still for too long")
	case errors.Is(b.err, io.ErrUnexpectedEOF):
		return refuse(http.StatusBadRequest, codeSizeInvalid, "the body is shorter than announced")
	}
	return refuse(http.StatusBadRequest, codeUploadInvalid, "the body broke off: %w", b.err)
}
