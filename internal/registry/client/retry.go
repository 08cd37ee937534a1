package client

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"sync/atomic"
	"time"

	"corten.dev/corten/internal/errs"
)

// maxPause bounds one wait between attempts, also when the server asks for a longer one: then it is refused at once.
const maxPause = 2 * time.Minute

// repeat makes a request until there is an answer below 400, as often as the options say, unless once.
func (s *site) repeat(ctx context.Context, send func() (*http.Response, error), once ...bool) (*http.Response, error) {
	for try := 0; ; try++ {
		resp, err := send()
		if err == nil && resp.StatusCode < 400 {
			return resp, nil
		}
		if err == nil {
			err = s.refusal(resp)
		}
		if len(once) > 0 && once[0] || !s.pause(ctx, try, err) {
			return nil, err
		}
	}
}

// pause waits before the next attempt; false is that there is none to be made.
func (s *site) pause(ctx context.Context, try int, err error) bool {
	limit := s.c.opts.Retries
	if s.ep.Mirror {
		limit = min(limit, 1) // the next endpoint is the better second attempt
	}
	if try >= limit || ctx.Err() != nil || !s.transient(err) {
		return false
	}
	wait := s.c.opts.Backoff << min(try, 16)
	wait = min(wait, 30*time.Second)
	wait = wait/2 + rand.N(wait/2+1)
	var refused *Error
	if errors.As(err, &refused) && refused.RetryAfter > 0 {
		if refused.RetryAfter > maxPause {
			return false
		}
		wait = max(wait, refused.RetryAfter)
	}
	s.c.log.Debug("registry: trying again", "host", s.base.Host, "after", wait, "error", err)
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// transient tells whether the same request may do better later.
func (s *site) transient(err error) bool {
	var refused *Error
	if errors.As(err, &refused) {
		switch refused.Status {
		case http.StatusRequestTimeout, http.StatusTooManyRequests, http.StatusInternalServerError, http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
			return true
		}
		return false
	}
	var (
		op     *net.OpError
		name   *net.DNSError
		header tls.RecordHeaderError
		cert   *tls.CertificateVerificationError
		alert  tls.AlertError
	)
	switch {
	case errors.As(err, new(final)), errors.Is(err, errSource), errors.Is(err, errSink):
		return false
	case errors.As(err, &header), errors.As(err, &cert), errors.As(err, &alert), errors.Is(err, http.ErrSchemeMismatch):
		return false
	case errors.As(err, &name):
		return s.reached.Load() && !name.IsNotFound
	case errors.As(err, &op) && op.Op == "dial":
		return s.reached.Load() // at first contact it is a wrong name or a server that is not there
	}
	return true
}

// final marks an error that no repetition mends: the server was understood, and refused.
type final struct{ error }

func (f final) Unwrap() error { return f.error }

func refuse(kind error, format string, args ...any) error {
	return errs.As(kind, final{fmt.Errorf(format, args...)})
}

var (
	errSlow   = errors.New("the server is too slow")
	errSink   = errors.New("store")
	errSource = errors.New("read what is to be sent")
)

// watch ends an exchange in which nothing moves. It counts the time spent waiting for the network only: a slow disk behind us is no fault of
// the server.
type watch struct {
	cancel   context.CancelCauseFunc
	why      func(error) error // the reason of an error, where the transport only knows that it was cancelled
	timer    *time.Timer
	limits   tuning
	answered atomic.Bool // the answer has begun: what is still being sent is no longer watched

	spent time.Duration // of the window that runs now, and what came in it
	got   int64
}

func (c *Client) watch(ctx context.Context, method string) (context.Context, *watch) {
	own, cancel := context.WithCancelCause(ctx)
	w := &watch{cancel: cancel, limits: c.tuning}
	w.why = func(err error) error {
		if cause := context.Cause(own); ctx.Err() == nil && errors.Is(cause, errSlow) {
			return cause
		}
		return err
	}
	first := c.tuning.answer
	if method == http.MethodGet || method == http.MethodHead {
		first = c.tuning.head
	}
	w.timer = time.AfterFunc(first, func() { cancel(errSlow) })
	return own, w
}

func (w *watch) stop() { w.timer.Stop() }

func (w *watch) end() {
	w.stop()
	w.cancel(context.Canceled)
}

// body is an answer's body under watch.
type body struct {
	io.ReadCloser
	w      *watch
	waited time.Duration // for the network, in all
}

func (b *body) Read(p []byte) (int, error) {
	w := b.w
	w.timer.Reset(max(w.limits.window-w.spent, time.Millisecond))
	began := time.Now()
	n, err := b.ReadCloser.Read(p)
	w.stop()
	took := time.Since(began)
	b.waited += took
	w.spent += took
	w.got += int64(n)
	if w.spent >= w.limits.window {
		if w.got < w.limits.floor && err == nil {
			err = errSlow
		}
		w.spent, w.got = 0, 0
	}
	if err != nil && err != io.EOF {
		err = w.why(err)
	}
	return n, err
}

func (b *body) Close() error {
	err := b.ReadCloser.Close()
	b.w.end()
	return err
}

// sentBody is a request's body under watch: between two reads of it the network has to take something.
type sentBody struct {
	body io.ReadCloser
	w    *watch
}

func (b *sentBody) Read(p []byte) (int, error) {
	b.w.stop()
	n, err := b.body.Read(p)
	switch {
	case b.w.answered.Load():
	case err == nil:
		b.w.timer.Reset(b.w.limits.window)
	default:
		b.w.timer.Reset(b.w.limits.answer)
	}
	if err != nil && err != io.EOF {
		err = fmt.Errorf("%w: %w", errSource, err)
	}
	return n, err
}

func (b *sentBody) Close() error { return b.body.Close() }
