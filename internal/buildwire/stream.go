package buildwire

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
)

// maxAnswers bounds the answers of a stream that nobody has read.
const maxAnswers = 64

// errOver is for who uses a stream that it has closed.
var errOver = errors.New("the stream is closed")

// Stream is one question with its answer. Reading is for one goroutine, writing for one other.
type Stream struct {
	conn *Conn
	id   uint32

	mu      sync.Mutex // guards all below
	cond    sync.Cond
	in      []byte // data that came; in[at:] is unread
	at      int
	eaten   int // bytes read that no credit was given for yet
	answers [][]byte
	files   []*os.File // nil: a descriptor that was lost
	ended   bool       // the peer sends no more
	err     error      // the stream is over
	credit  int        // bytes that may be sent
	sent    bool       // our end was sent
	left    bool       // closed here after our end: only the peer's is waited for
}

func (s *Stream) take(kind Kind, p []byte, fd uintptr, handed bool) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	defer s.cond.Broadcast()
	if s.err != nil || s.left {
		if handed {
			closeFD(fd)
		}
		if s.left && kind != credit {
			go s.refuse(kind)
		}
		return nil
	}
	switch kind {
	case data:
		if s.ended || len(s.in)-s.at+s.eaten+len(p) > Window {
			return fmt.Errorf("more data on stream %d of a build than was asked for", s.id)
		}
		if s.at > 0 && len(s.in)+len(p) > cap(s.in) {
			s.in = s.in[:copy(s.in, s.in[s.at:])]
			s.at = 0
		}
		s.in = append(s.in, p...)
	case answer:
		if len(s.answers) >= maxAnswers {
			return fmt.Errorf("too many answers on stream %d of a build", s.id)
		}
		s.answers = append(s.answers, append([]byte(nil), p...))
	case credit:
		if len(p) != 4 {
			return errors.New("malformed credit on the connection of a build")
		}
		n := binary.BigEndian.Uint32(p)
		if int64(s.credit)+int64(n) > Window {
			return errors.New("more credit than was used on the connection of a build")
		}
		s.credit += int(n)
	case end:
		s.ended = true
	case fail:
		e := &Error{}
		if err := json.Unmarshal(p, e); err != nil || e.Message == "" {
			e.Message = "the other side of the build failed without a word"
		}
		s.err = e
	case descriptor:
		if len(s.files) >= maxAnswers {
			if handed {
				closeFD(fd)
			}
			return fmt.Errorf("too many descriptors on stream %d of a build", s.id)
		}
		var f *os.File
		if handed {
			f = os.NewFile(fd, "handed over")
		}
		s.files = append(s.files, f)
	}
	return nil
}

// Read gives data; io.EOF after the peer's end.
func (s *Stream) Read(p []byte) (int, error) {
	s.mu.Lock()
	for len(s.in) == s.at && !s.ended && s.err == nil {
		s.cond.Wait()
	}
	n := copy(p, s.in[s.at:])
	if n == 0 {
		err := s.err
		if err == nil && len(p) > 0 {
			err = io.EOF
		}
		s.mu.Unlock()
		return 0, err
	}
	s.at += n
	if s.at == len(s.in) {
		s.in, s.at = s.in[:0], 0
	}
	s.eaten += n
	give := 0
	if s.eaten >= Window/2 && !s.ended {
		give, s.eaten = s.eaten, 0
	}
	s.mu.Unlock()
	if give > 0 {
		if err := s.conn.write(credit, s.id, binary.BigEndian.AppendUint32(nil, uint32(give))); err != nil {
			return n, err
		}
	}
	return n, nil
}

// Write sends data; it waits while the peer does not read.
func (s *Stream) Write(p []byte) (int, error) {
	done := 0
	for done < len(p) {
		s.mu.Lock()
		for s.credit == 0 && s.err == nil && !s.sent {
			s.cond.Wait()
		}
		if s.err != nil || s.sent {
			err := s.err
			if err == nil {
				err = errOver
			}
			s.mu.Unlock()
			return done, err
		}
		n := min(s.credit, len(p)-done, piece)
		s.credit -= n
		s.mu.Unlock()
		if err := s.conn.write(data, s.id, p[done:done+n]); err != nil {
			return done, err
		}
		done += n
	}
	return done, nil
}

// Answer sends a value.
func (s *Stream) Answer(v any) error {
	p, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return s.conn.write(answer, s.id, p)
}

// Heard waits for the next answer; io.EOF when the peer ended without one.
func (s *Stream) Heard(v any) error {
	s.mu.Lock()
	for len(s.answers) == 0 && !s.ended && s.err == nil {
		s.cond.Wait()
	}
	if len(s.answers) == 0 {
		err := s.err
		s.mu.Unlock()
		if err == nil {
			err = io.EOF
		}
		return err
	}
	p := s.answers[0]
	s.answers = s.answers[1:]
	s.mu.Unlock()
	return json.Unmarshal(p, v)
}

// Hand sends a descriptor along; it stays ours, too.
func (s *Stream) Hand(fd uintptr) error { return s.conn.writeWith(s.id, fd) }

// Handed waits for a descriptor; nil without an error is one that was lost on the way.
func (s *Stream) Handed() (*os.File, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for len(s.files) == 0 && !s.ended && s.err == nil {
		s.cond.Wait()
	}
	if len(s.files) == 0 {
		if s.err != nil {
			return nil, s.err
		}
		return nil, io.EOF
	}
	f := s.files[0]
	s.files = s.files[1:]
	return f, nil
}

// End says that nothing more comes from here.
func (s *Stream) End() error {
	s.mu.Lock()
	over := s.sent || s.err != nil
	s.sent = true
	s.cond.Broadcast()
	s.mu.Unlock()
	if over {
		return nil
	}
	return s.conn.write(end, s.id, nil)
}

// Ended waits until the peer has said its end, and drops what it sent before.
func (s *Stream) Ended() error {
	_, err := io.Copy(io.Discard, s)
	return err
}

// Fail ends the stream with an error that the peer gets.
func (s *Stream) Fail(err error) error {
	p, merr := json.Marshal(ErrorOf(err))
	if merr != nil {
		return merr
	}
	s.mu.Lock()
	over := s.err != nil
	if !over {
		s.err = errOver
	}
	s.cond.Broadcast()
	s.mu.Unlock()
	if over {
		return nil
	}
	return s.conn.write(fail, s.id, p)
}

// Close is the end of the stream on this side. A peer that has not heard our end before gets a failure; one that has may end when it likes.
func (s *Stream) Close() error {
	s.mu.Lock()
	s.left = s.sent && !s.ended && s.err == nil
	whole := s.sent || s.err != nil
	left := s.left
	s.mu.Unlock()
	if left {
		return nil
	}
	var err error
	if !whole {
		err = s.Fail(errors.New("canceled"))
	}
	s.forget()
	return err
}

// refuse ends what the peer still does on a stream that is closed here.
func (s *Stream) refuse(kind Kind) {
	s.mu.Lock()
	s.left = false
	s.mu.Unlock()
	if kind == data {
		_ = s.Fail(errOver) // a connection that is gone is noticed by its reader
	}
	s.forget()
}

// forget takes the stream out of the connection; descriptors that nobody took are closed.
func (s *Stream) forget() {
	s.conn.mu.Lock()
	delete(s.conn.streams, s.id)
	s.conn.mu.Unlock()
	s.abandon(errOver)
}

func (s *Stream) abandon(err error) {
	s.mu.Lock()
	if s.err == nil {
		s.err = err
	}
	files := s.files
	s.files = nil
	s.cond.Broadcast()
	s.mu.Unlock()
	for _, f := range files {
		if f != nil {
			_ = f.Close() // nothing was written to it
		}
	}
}

func closeFD(fd uintptr) { _ = os.NewFile(fd, "").Close() }
