package serve

import (
	"sync"

	"corten.dev/corten/internal/logs/logfile"
)

// logger is where a container's output is kept.
type logger interface {
	write(stream int, ns int64, data []byte)
	finish(durable bool) // everything written is in the log, and tells of losses
	close()
}

// direct writes at once: the container waits for the log as it would for any file it writes.
type direct logfile.Writer

func (d *direct) write(stream int, ns int64, data []byte) {
	(*logfile.Writer)(d).Write(stream, ns, data) // what could not be written is told in the log when it can be again
}

func (d *direct) finish(durable bool) {
	w := (*logfile.Writer)(d)
	w.Finish(realtime())
	if durable {
		w.Flush()
	}
}

func (d *direct) close() { (*logfile.Writer)(d).Close() }

const defaultBuffer = 1 << 20

// background never makes the container wait: a goroutine writes what the loop put into a bounded buffer, and what does not fit is dropped and counted.
type background struct {
	mu     sync.Mutex // guards what is below
	more   sync.Cond
	idle   sync.Cond
	fill   queue // records: stream u8 │ time 8 │ length 4 │ bytes
	lost   int64
	size   int
	active bool // the goroutine is writing
	closed bool
	w      *logfile.Writer // the goroutine's, until idle
}

const itemHead = 13

func newBackground(w *logfile.Writer, size int) *background {
	if size <= 0 {
		size = defaultBuffer
	}
	b := &background{w: w, size: size}
	b.more.L, b.idle.L = &b.mu, &b.mu
	go b.run()
	return b
}

func (b *background) write(stream int, ns int64, data []byte) {
	b.mu.Lock()
	if b.fill.len()+itemHead+len(data) > b.size {
		b.lost += int64(len(data))
		b.mu.Unlock()
		return
	}
	h := [itemHead]byte{byte(stream)}
	for i := 0; i < 8; i++ {
		h[1+i] = byte(ns >> (8 * i))
	}
	for i := 0; i < 4; i++ {
		h[9+i] = byte(len(data) >> (8 * i))
	}
	b.fill.add(h[:])
	b.fill.add(data)
	b.more.Signal()
	b.mu.Unlock()
}

func (b *background) run() {
	b.mu.Lock()
	defer b.mu.Unlock()
	for {
		for b.fill.len() == 0 && !b.closed {
			b.active = false
			b.idle.Broadcast()
			b.more.Wait()
		}
		if b.fill.len() == 0 {
			b.active = false
			b.idle.Broadcast()
			return
		}
		var take queue
		take, b.fill = b.fill, queue{}
		lost := b.lost
		b.lost, b.active = 0, true
		b.mu.Unlock()
		for p := take.bytes(); len(p) > 0; {
			var ns int64
			n := 0
			for i := 0; i < 8; i++ {
				ns |= int64(p[1+i]) << (8 * i)
			}
			for i := 0; i < 4; i++ {
				n |= int(p[9+i]) << (8 * i)
			}
			b.w.Write(int(p[0]), ns, p[itemHead:itemHead+n])
			p = p[itemHead+n:]
		}
		if lost > 0 { // they came after what was taken
			b.w.Lose(lost)
		}
		take.free()
		b.mu.Lock()
	}
}

func (b *background) finish(durable bool) {
	b.mu.Lock()
	for b.fill.len() > 0 || b.active {
		b.idle.Wait()
	}
	b.w.Lose(b.lost)
	b.lost = 0
	b.w.Finish(realtime())
	if durable {
		b.w.Flush()
	}
	b.mu.Unlock()
}

func (b *background) close() {
	b.mu.Lock()
	b.closed = true
	b.more.Signal()
	for b.fill.len() > 0 || b.active {
		b.idle.Wait()
	}
	b.w.Close()
	b.mu.Unlock()
}
