package image

import (
	"context"
	"io"
	"log/slog"

	"corten.dev/corten/internal/task"
)

// ahead reads in a goroutine of its own, some large pieces ahead of who reads from it: decompression and writing files run side by side.
type ahead struct {
	full  chan piece
	empty chan []byte
	quit  chan struct{}
	gone  chan struct{}
	cur   piece
	rest  []byte
	log   *slog.Logger
}

type piece struct {
	buf []byte
	n   int
	err error
}

const (
	aheadPieces = 4
	aheadPiece  = 256 << 10
)

func readAhead(r io.Reader, log *slog.Logger) *ahead {
	a := &ahead{log: log, full: make(chan piece, aheadPieces), empty: make(chan []byte, aheadPieces), quit: make(chan struct{}), gone: make(chan struct{})}
	go a.fill(r)
	return a
}

func (a *ahead) fill(r io.Reader) {
	defer close(a.gone)
	defer close(a.full)
	for made := 0; ; {
		var buf []byte
		select {
		case buf = <-a.empty:
		case <-a.quit:
			return
		default:
			if made == aheadPieces {
				select {
				case buf = <-a.empty:
				case <-a.quit:
					return
				}
			} else {
				buf = make([]byte, aheadPiece)
				made++
			}
		}
		n, err := a.piece(r, buf)
		select {
		case a.full <- piece{buf, n, err}:
		case <-a.quit:
			return
		}
		if err != nil {
			return
		}
	}
}

// piece reads until buf is full. The source is foreign bytes, which are decompressed on the way: here is the wall.
func (a *ahead) piece(r io.Reader, buf []byte) (n int, err error) {
	defer task.Contain(a.log, "decompress", &err)
	for n < len(buf) && err == nil {
		var m int
		m, err = r.Read(buf[n:])
		n += m
	}
	return n, err
}

// next waits for the next piece, but not for a source that hangs longer than ctx allows.
func (a *ahead) next(ctx context.Context) piece {
	select {
	case p, ok := <-a.full:
		if !ok {
			return piece{err: io.ErrClosedPipe}
		}
		return p
	case <-ctx.Done():
		return piece{err: context.Cause(ctx)}
	}
}

// Read gives what was read ahead.
func (a *ahead) Read(ctx context.Context, p []byte) (int, error) {
	for len(a.rest) == 0 {
		if a.cur.err != nil {
			return 0, a.cur.err
		}
		if a.cur.buf != nil {
			a.empty <- a.cur.buf
		}
		a.cur = a.next(ctx)
		a.rest = a.cur.buf[:a.cur.n]
	}
	n := copy(p, a.rest)
	a.rest = a.rest[n:]
	return n, nil
}

// stop ends the goroutine and waits for it: the source is free afterwards. A source that blocks must be ended before.
func (a *ahead) stop() {
	close(a.quit)
	<-a.gone
}
