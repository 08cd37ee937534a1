package buildwire

import (
	"bufio"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync"
)

// Carrier is the connection. A carrier that can take descriptors along has the methods of Hander, too.
type Carrier = io.ReadWriteCloser

// Hander is a carrier between two processes of one host.
type Hander interface {
	// WriteWith writes p with a descriptor beside it.
	WriteWith(p []byte, fd uintptr) error
	// Take gives the descriptor that came first of those not yet taken.
	Take() (fd uintptr, ok bool)
}

// maxStreams bounds what one build may have open at once.
const maxStreams = 1024

const headSize = 12

// Conn is one side of a connection. Its methods may be called concurrently.
type Conn struct {
	carrier Carrier
	accept  func(*Stream, Ask)
	report  func(Kind, []byte) error

	accepted sync.WaitGroup // questions that are being answered

	wmu  sync.Mutex // guards writes of whole frames, and wbuf
	wbuf []byte

	mu      sync.Mutex // guards all below
	streams map[uint32]*Stream
	last    uint32
	err     error // why it ended
	done    chan struct{}
}

// NewDoor makes the engine's side: it asks. Run must be called, to hear the answers.
func NewDoor(c Carrier) *Conn { return newConn(c) }

// NewClient makes the client's side. accept is called in a goroutine of its own for each question, and must close the stream; report gets the frames of the build itself, in their
// order, from within Run.
func NewClient(c Carrier, accept func(*Stream, Ask), report func(Kind, []byte) error) *Conn {
	conn := newConn(c)
	conn.accept, conn.report = accept, report
	return conn
}

func newConn(c Carrier) *Conn {
	return &Conn{carrier: c, streams: map[uint32]*Stream{}, done: make(chan struct{})}
}

// Close ends the connection and all its streams.
func (c *Conn) Close() error {
	c.finish(io.ErrClosedPipe)
	return c.carrier.Close()
}

// Done is closed when the connection has ended.
func (c *Conn) Done() <-chan struct{} { return c.done }

// Wait waits, after Run, until all questions have been dealt with. What had come of their data can still be read.
func (c *Conn) Wait() { c.accepted.Wait() }

// Run reads frames until the connection ends; the end of the peer's sending is io.EOF.
func (c *Conn) Run() error {
	err := c.read()
	c.finish(err)
	return err
}

func (c *Conn) finish(err error) {
	c.mu.Lock()
	if c.err != nil {
		c.mu.Unlock()
		return
	}
	c.err = err
	streams := c.streams
	c.streams = nil
	close(c.done)
	c.mu.Unlock()
	for _, s := range streams {
		s.abandon(fmt.Errorf("the connection of the build ended: %w", lost(err)))
	}
}

// lost makes the end of a connection an error also where an end is expected.
func lost(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

func (c *Conn) read() error {
	var head [headSize]byte
	in := bufio.NewReaderSize(c.carrier, 32<<10)
	buf := make([]byte, 4<<10)
	for {
		if _, err := io.ReadFull(in, head[:]); err != nil {
			return err
		}
		kind, id, size := Kind(head[0]), binary.BigEndian.Uint32(head[4:]), binary.BigEndian.Uint32(head[8:])
		if head[1]|head[2]|head[3] != 0 || size > MaxFrame {
			return errors.New("malformed frame on the connection of a build")
		}
		if int(size) > cap(buf) {
			buf = make([]byte, size)
		}
		buf = buf[:size]
		if _, err := io.ReadFull(in, buf); err != nil {
			return lost(err)
		}
		if err := c.take(kind, id, buf); err != nil {
			return err
		}
	}
}

func (c *Conn) take(kind Kind, id uint32, p []byte) error {
	switch kind {
	case Status, Result, Failure:
		if id != 0 || c.report == nil {
			return fmt.Errorf("unexpected frame %q on the connection of a build", kind)
		}
		return c.report(kind, p)
	case open:
		return c.opened(id, p)
	case answer, data, credit, end, fail, descriptor:
	default:
		return fmt.Errorf("unknown frame %q on the connection of a build", kind)
	}
	var fd uintptr
	var handed bool
	if kind == descriptor { // taken here, where the order of the frames is that of the descriptors
		if h, ok := c.carrier.(Hander); ok {
			fd, handed = h.Take()
		}
	}
	c.mu.Lock()
	s := c.streams[id]
	c.mu.Unlock()
	if s == nil {
		if handed {
			closeFD(fd)
		}
		return nil // of a stream that is over on this side
	}
	return s.take(kind, p, fd, handed)
}

func (c *Conn) opened(id uint32, p []byte) error {
	var ask Ask
	if c.accept == nil || id == 0 {
		return errors.New("unexpected question on the connection of a build")
	}
	if err := json.Unmarshal(p, &ask); err != nil {
		return fmt.Errorf("read a question of the engine: %w", err)
	}
	s, err := c.enter(id)
	if err != nil {
		return err
	}
	c.accepted.Go(func() { c.accept(s, ask) })
	return nil
}

// enter adds a stream; id 0 takes the next.
func (c *Conn) enter(id uint32) (*Stream, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.err != nil:
		return nil, fmt.Errorf("the connection of the build ended: %w", lost(c.err))
	case len(c.streams) >= maxStreams:
		return nil, fmt.Errorf("more than %d questions at once on the connection of a build", maxStreams)
	case id == 0:
		c.last++
		id = c.last
	case c.streams[id] != nil:
		return nil, fmt.Errorf("stream %d of a build was opened twice", id)
	}
	s := &Stream{conn: c, id: id, credit: Window}
	s.cond.L = &s.mu
	c.streams[id] = s
	return s, nil
}

// Ask opens a stream with a question.
func (c *Conn) Ask(ask Ask) (*Stream, error) {
	p, err := json.Marshal(ask)
	if err != nil {
		return nil, err
	}
	s, err := c.enter(0)
	if err != nil {
		return nil, err
	}
	if err := c.write(open, s.id, p); err != nil {
		s.forget()
		return nil, err
	}
	return s, nil
}

// Send writes a frame of the build itself.
func (c *Conn) Send(kind Kind, p []byte) error { return c.write(kind, 0, p) }

func (c *Conn) write(kind Kind, id uint32, p []byte) error {
	if len(p) > MaxFrame {
		return fmt.Errorf("a frame of %d bytes on the connection of a build", len(p))
	}
	c.wmu.Lock()
	defer c.wmu.Unlock()
	_, err := c.carrier.Write(c.frame(kind, id, p))
	return err
}

// frame lays a frame out in wbuf.
func (c *Conn) frame(kind Kind, id uint32, p []byte) []byte {
	if cap(c.wbuf) < headSize+len(p) {
		c.wbuf = make([]byte, 0, headSize+max(len(p), 4<<10))
	}
	b := append(c.wbuf[:0], byte(kind), 0, 0, 0)
	b = binary.BigEndian.AppendUint32(b, id)
	b = binary.BigEndian.AppendUint32(b, uint32(len(p)))
	return append(b, p...)
}

// writeWith writes a frame with a descriptor beside it.
func (c *Conn) writeWith(id uint32, fd uintptr) error {
	h, ok := c.carrier.(Hander)
	if !ok {
		return errors.New("this connection takes no descriptors along")
	}
	c.wmu.Lock()
	defer c.wmu.Unlock()
	return h.WriteWith(c.frame(descriptor, id, nil), fd)
}
