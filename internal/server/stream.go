package server

import (
	"context"
	"io"
	"net/http"
	"sync"
)

// streamBlock is how much of a fast answer is gathered before it is sent; slower ones are sent as they come.
const streamBlock = 128 << 10

// stream sends an answer of unknown length. Writers fill one buffer while the other is on its way to the client, so that a fast source costs few system
// calls and a slow one still arrives at once.
//
//	Write ─▶ [filling] ──swap──▶ [sending] ─▶ client
type stream struct {
	w    http.ResponseWriter
	rc   *http.ResponseController
	done chan struct{} // closed when the sender ended

	mu      sync.Mutex // guards all below
	changed sync.Cond
	filling []byte
	spare   []byte
	closed  bool
	err     error // of the client's side; every later Write returns it
}

// startStream sends the headers and starts the sender.
func startStream(w http.ResponseWriter, contentType string) *stream {
	st := &stream{w: w, rc: http.NewResponseController(w), done: make(chan struct{}), filling: make([]byte, 0, 4096)}
	st.changed.L = &st.mu
	if contentType != "" {
		w.Header()["Content-Type"] = []string{contentType}
	}
	w.WriteHeader(http.StatusOK)
	// Write returns the error if the client is gone.
	_ = st.rc.Flush()
	go st.send()
	return st
}

// Write takes p; it waits only while a whole block is still on its way.
func (st *stream) Write(p []byte) (int, error) {
	st.mu.Lock()
	defer st.mu.Unlock()
	for len(st.filling) >= streamBlock && st.err == nil {
		st.changed.Wait()
	}
	if st.err != nil {
		return 0, st.err
	}
	if st.closed {
		return 0, io.ErrClosedPipe
	}
	st.filling = append(st.filling, p...)
	st.changed.Broadcast()
	return len(p), nil
}

func (st *stream) send() {
	defer close(st.done)
	st.mu.Lock()
	defer st.mu.Unlock()
	for {
		for len(st.filling) == 0 && !st.closed {
			st.changed.Wait()
		}
		if len(st.filling) == 0 || st.err != nil {
			return
		}
		sending := st.filling
		st.filling = st.spare[:0]
		st.changed.Broadcast()
		st.mu.Unlock()
		_, err := st.w.Write(sending)
		if err == nil {
			err = st.rc.Flush()
		}
		st.mu.Lock()
		st.spare = sending
		if err != nil {
			st.err = err
			st.changed.Broadcast()
			return
		}
	}
}

// Close sends what is left and ends the sender. It must be called before the handler returns.
func (st *stream) Close() error {
	st.mu.Lock()
	st.closed = true
	st.changed.Broadcast()
	st.mu.Unlock()
	<-st.done
	st.mu.Lock()
	defer st.mu.Unlock()
	return st.err
}

// cut ends an answer that cannot be completed so that the client notices: without the final chunk, by closing the connection.
func cut(w http.ResponseWriter) {
	if conn, _, err := http.NewResponseController(w).Hijack(); err == nil {
		_ = conn.Close()
	}
}

// lazyStream begins the answer with the first byte, so that an error before it can still be an HTTP error.
type lazyStream struct {
	w           http.ResponseWriter
	contentType string
	st          *stream
}

func (l *lazyStream) Write(p []byte) (int, error) {
	if l.st == nil {
		l.st = startStream(l.w, l.contentType)
	}
	return l.st.Write(p)
}

// finish ends the answer. When something was sent already, an error cuts the answer, and is only logged then.
func (l *lazyStream) finish(err error) error {
	if l.st == nil {
		if err == nil {
			l.w.Header()["Content-Type"] = []string{l.contentType}
			l.w.WriteHeader(http.StatusOK)
		}
		return err
	}
	if cerr := l.st.Close(); cerr == nil && err != nil {
		cut(l.w)
		return &cutError{err}
	}
	return nil
}

// cutError is why an answer was cut off: the client can only be told that it was, and to look into the log.
type cutError struct{ err error }

func (e *cutError) Error() string { return e.err.Error() }
func (e *cutError) Unwrap() error { return e.err }

// endless is the context of an answer without an end: it ends with the client or with the server.
func (s *Server) endless(r *request) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(r.Context())
	stop := context.AfterFunc(s.streams, cancel)
	return ctx, func() { stop(); cancel() }
}
