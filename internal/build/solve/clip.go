package solve

import (
	"fmt"
	"iter"
)

// Output of a step is told up to logLimit for each stream, and from then on only its last logTail bytes, at the end.
const (
	logLimit = 2 << 20
	logTail  = 256 << 10
)

// clips bound the output of a step. The zero value is ready.
type clips struct{ streams map[int]*clip }

type clip struct {
	told int
	tail []byte // a ring, from at on, once it is full
	at   int
	full bool
}

// take gives what is to be told of data now.
func (c *clips) take(stream int, data []byte) []byte {
	s := c.streams[stream]
	if s == nil {
		if c.streams == nil {
			c.streams = map[int]*clip{}
		}
		s = &clip{}
		c.streams[stream] = s
	}
	if s.tail != nil {
		s.keep(data)
		return nil
	}
	room := logLimit - s.told
	if len(data) <= room {
		s.told += len(data)
		return data
	}
	s.tail = make([]byte, 0, logTail)
	s.keep(data[room:])
	return fmt.Appendf(append([]byte(nil), data[:room]...), "\n[output clipped, log limit %dMiB reached]\n", logLimit>>20)
}

// keep remembers the last bytes.
func (s *clip) keep(data []byte) {
	if over := len(data) - logTail; over >= 0 {
		s.full = s.full || over > 0 || len(s.tail) > 0
		s.tail, s.at = append(s.tail[:0], data[over:]...), 0
		return
	}
	if n := min(logTail-len(s.tail), len(data)); n > 0 {
		s.tail, data = append(s.tail, data[:n]...), data[n:]
	}
	for len(data) > 0 {
		n := copy(s.tail[s.at:], data)
		data, s.at, s.full = data[n:], (s.at+n)%logTail, true
	}
}

// rest gives what was held back, by stream, and forgets it.
func (c *clips) rest() iter.Seq2[int, []byte] {
	return func(yield func(int, []byte) bool) {
		for stream, s := range c.streams {
			if len(s.tail) == 0 {
				continue
			}
			data := append(append([]byte(nil), s.tail[s.at:]...), s.tail[:s.at]...)
			if s.full {
				data = append([]byte("[…]\n"), data...)
			}
			s.tail, s.at, s.full, s.told = nil, 0, false, 0
			if !yield(stream, data) {
				return
			}
		}
	}
}
