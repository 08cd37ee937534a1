package recipe

import (
	"bytes"
	"io"

	"github.com/klauspost/compress/flate"
)

// blocks deflates blocks side by side. Each knows the last bytes of the one before as its dictionary, and ends with a flush, so that the
// outcomes can be put in a row.
type blocks struct {
	w        io.Writer
	level    int
	size     int
	parallel int
	cur      []byte
	tail     []byte
	pending  []*block // oldest first
	free     []*block
	err      error
}

type block struct {
	in, dict []byte
	out      bytes.Buffer
	last     bool
	fl       *flate.Writer
	err      error
	done     chan struct{}
}

func newBlocks(w io.Writer, level, size, parallel int) (*blocks, error) {
	fl, err := flate.NewWriterDict(io.Discard, level, nil)
	if err != nil {
		return nil, err
	}
	return &blocks{w: w, level: level, size: size, parallel: max(parallel, 1), free: []*block{{fl: fl}}}, nil
}

func (b *blocks) Write(p []byte) (int, error) {
	n := len(p)
	for len(p) > 0 && b.err == nil {
		part := min(len(p), b.size-len(b.cur))
		b.cur = append(b.cur, p[:part]...)
		p = p[part:]
		if len(b.cur) == b.size {
			b.cut(false)
		}
	}
	if b.err != nil {
		return 0, b.err
	}
	return n, nil
}

// cut sends the current block off and, when enough are under way, waits for the oldest.
func (b *blocks) cut(last bool) {
	if len(b.pending) >= b.parallel {
		b.collect()
	}
	if b.err != nil {
		return
	}
	var bl *block
	if n := len(b.free); n > 0 {
		bl, b.free = b.free[n-1], b.free[:n-1]
	} else {
		fl, err := flate.NewWriterDict(io.Discard, b.level, nil)
		if err != nil {
			b.err = err
			return
		}
		bl = &block{fl: fl}
	}
	bl.in, b.cur = b.cur, bl.in[:0]
	bl.dict = append(bl.dict[:0], b.tail...)
	bl.last, bl.done = last, make(chan struct{})
	b.tail = b.tail[:0]
	if len(bl.in) > blockTail {
		b.tail = append(b.tail, bl.in[len(bl.in)-blockTail:]...)
	}
	b.pending = append(b.pending, bl)
	if b.parallel == 1 {
		bl.deflate()
		return
	}
	go bl.deflate()
}

func (bl *block) deflate() {
	defer close(bl.done)
	bl.out.Reset()
	var dict []byte
	if len(bl.dict) > 0 {
		dict = bl.dict
	}
	bl.fl.ResetDict(&bl.out, dict)
	if _, bl.err = bl.fl.Write(bl.in); bl.err != nil {
		return
	}
	if bl.err = bl.fl.Flush(); bl.err == nil && bl.last {
		bl.err = bl.fl.Close()
	}
}

func (b *blocks) collect() {
	bl := b.pending[0]
	b.pending = b.pending[1:]
	<-bl.done
	if b.err == nil {
		b.err = bl.err
	}
	if b.err == nil {
		_, b.err = b.w.Write(bl.out.Bytes())
	}
	b.free = append(b.free, bl)
}

func (b *blocks) Close() error {
	if b.err == nil {
		b.cut(true)
	}
	for len(b.pending) > 0 {
		b.collect()
	}
	return b.err
}
