package server

import (
	"errors"
	"io"
	"net/http"
	"os"
	"sync"
	"time"
)

// answer counts what goes out, and lets the kernel send files in pieces, each of which must make progress in time.
type answer struct {
	http.ResponseWriter
	ctl    *http.ResponseController
	idle   time.Duration
	status int
	out    int64
	timed  bool // a deadline is set
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
	n, err := a.ResponseWriter.Write(p)
	a.out += int64(n)
	return n, err
}

// ReadFrom is what io.Copy uses: net/http goes on to sendfile, if what is below r is a file.
func (a *answer) ReadFrom(r io.Reader) (int64, error) {
	rf, ok := a.ResponseWriter.(io.ReaderFrom)
	if !ok {
		rf = plainWriter{a.ResponseWriter}
	}
	if a.status == 0 {
		a.status = http.StatusOK
	}
	left := int64(-1)
	whole, limited := r.(*io.LimitedReader)
	if limited {
		r, left = whole.R, whole.N
	}
	var total int64
	for left != 0 {
		part := &io.LimitedReader{R: r, N: piece}
		if limited {
			part.N = min(piece, left)
		}
		want := part.N
		a.extend()
		n, err := rf.ReadFrom(part)
		total += n
		a.out += n
		if limited {
			left -= n
			whole.N = left
		}
		if err != nil || n < want {
			return total, err
		}
	}
	return total, nil
}

func (a *answer) extend() {
	if a.idle > 0 && a.ctl.SetWriteDeadline(time.Now().Add(a.idle)) == nil {
		a.timed = true
	}
}

// end takes the deadline away again, which would else hold for the connection's next request.
func (a *answer) end() {
	if a.timed {
		_ = a.ctl.SetWriteDeadline(time.Time{}) // the connection is broken, if anything
	}
}

type plainWriter struct{ w io.Writer }

func (p plainWriter) ReadFrom(r io.Reader) (int64, error) { return io.Copy(p.w, r) }

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
	err  error // why it ended, if not by its end

	mu  sync.Mutex // guards cut, and that no deadline is moved after it
	cut bool
}

func (b *body) Read(p []byte) (int, error) {
	if b.err != nil {
		return 0, b.err
	}
	if err := b.extend(); err != nil {
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
	if err == io.EOF {
		b.settle()
	} else if err != nil {
		// The deadline stays: before it answers, net/http reads what else the client sends.
		if b.interrupted() {
			err = errInterrupted
		}
		b.err = err
	}
	return n, err
}

func (b *body) extend() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.cut {
		return errInterrupted
	}
	if b.idle > 0 {
		_ = b.ctl.SetReadDeadline(time.Now().Add(b.idle)) // not every connection can; then the read just waits
	}
	return nil
}

// settle takes the deadline away: net/http reads on in the background, to see whether the client goes.
func (b *body) settle() {
	if b.idle > 0 {
		_ = b.ctl.SetReadDeadline(time.Time{})
	}
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
