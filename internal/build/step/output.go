package step

import (
	"fmt"
	"io"
	"sync"

	"corten.dev/corten/internal/build"
)

const (
	// maxOutput is how much of a step's output is passed on: all of it would stay in memory and history, here and in every client, and a step can write without end.
	maxOutput = 2 << 20
	// tailSize is how much of the end is kept beyond that, to be told when the step fails.
	tailSize = 64 << 10
)

// output is what a step writes.
type output struct {
	to build.Progress

	mu   sync.Mutex
	sent int
	ring []byte // the last of what was not passed on, as a ring
	at   int    // where the ring's next byte goes
	full bool
	last int // stream of the last write
}

func newOutput(to build.Progress) *output { return &output{to: to} }

// stream is one of the two streams.
func (o *output) stream(n int) io.Writer { return stream{o, n} }

type stream struct {
	o *output
	n int
}

// Write passes output on. It never fails: a step does not end because nobody listens.
func (s stream) Write(p []byte) (int, error) {
	o := s.o
	o.mu.Lock()
	pass := p[:min(len(p), maxOutput-o.sent)]
	o.sent += len(pass)
	rest := p[len(pass):]
	clipped := len(rest) > 0 && o.ring == nil
	if len(rest) > 0 {
		o.remember(rest)
		o.last = s.n
	}
	o.mu.Unlock()
	if o.to == nil {
		return len(p), nil
	}
	if len(pass) > 0 {
		o.to.Log(s.n, append([]byte(nil), pass...))
	}
	if clipped {
		o.to.Log(s.n, fmt.Appendf(nil, "\n[output clipped, log limit %dMiB reached]\n", maxOutput>>20))
	}
	return len(p), nil
}

// remember puts p into the ring. mu is held.
func (o *output) remember(p []byte) {
	if o.ring == nil {
		o.ring = make([]byte, tailSize)
	}
	if len(p) > tailSize {
		p = p[len(p)-tailSize:]
		o.full = true
	}
	for len(p) > 0 {
		n := copy(o.ring[o.at:], p)
		p = p[n:]
		if o.at += n; o.at == tailSize {
			o.at, o.full = 0, true
		}
	}
}

// tail passes on the end of what was clipped.
func (o *output) tail() {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.ring == nil || o.to == nil {
		return
	}
	var last []byte
	if o.full {
		last = append(last, o.ring[o.at:]...)
	}
	last = append(last, o.ring[:o.at]...)
	o.to.Log(o.last, append([]byte("[the last of the output:]\n"), last...))
}
