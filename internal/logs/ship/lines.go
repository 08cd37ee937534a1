package ship

import (
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"time"

	"corten.dev/corten/internal/logs"
	"corten.dev/corten/internal/logs/logfile"
)

// place is where a follower goes on after everything it handed over:
//
//	Base         a place between two records: everything before it was handed over
//	Skip         bytes of each stream behind Base that were handed over too: lines of two streams lie among each other
//	Partial      the line of each stream that was handed over in pieces, so far
type place struct {
	Base    logs.Place
	Skip    [4]int64
	Partial [4]Partial
	Number  int64 // of the last message
}

// cutter makes messages of the records of a log.
type cutter struct {
	tape   *logs.Tape
	skip   [4]int64   // bytes to pass over yet
	read   [4]int64   // bytes of each stream read since the tape was opened
	used   [4]int64   // of these, how many are in messages
	open   [4]unended // lines whose end is not there yet
	part   [4]Partial // of a line that was cut
	orphan [4]bool    // the first line of a stream has lost its beginning
	piece  logs.Piece // the current record
	rest   []byte     // of it
	before [4]int64   // read, before the current record
	number int64      // of the last message
	missed int64      // lines that are gone and were not told yet
	ended  bool       // what stands unended goes out as it is
}

// unended is a line whose end is still to come.
type unended struct {
	data []byte
	time int64
	at   logs.Place // of the record that it begins in
	base [4]int64   // bytes of each stream before that record
}

func newCutter(dir string, from place) *cutter {
	return &cutter{tape: logs.OpenTape(dir, from.Base), skip: from.Skip, part: from.Partial, number: from.Number}
}

// next gives the next message, and the place behind it; false at what is the end for now.
func (c *cutter) next(m *Message, after *place) (bool, error) {
	for {
		for len(c.rest) > 0 {
			if c.cut(m) {
				c.number++
				m.Number = c.number
				*after = c.place()
				return true, nil
			}
		}
		ok, err := c.record()
		if err != nil {
			return false, err
		}
		if !ok {
			if c.ended && c.flush(m) {
				c.number++
				m.Number = c.number
				*after = c.place()
				return true, nil
			}
			return false, nil
		}
	}
}

// record reads one record.
func (c *cutter) record() (bool, error) {
	ok, err := c.tape.Next(&c.piece)
	if !ok || err != nil {
		return false, err
	}
	if c.piece.Gap {
		c.fall()
	}
	c.before = c.read
	s := c.piece.Stream
	c.rest = c.piece.Data
	c.read[s] += int64(len(c.rest))
	if n := min(c.skip[s], int64(len(c.rest))); n > 0 {
		c.skip[s] -= n
		c.used[s] += n
		c.rest = c.rest[n:]
	}
	return true, nil
}

// fall is told of a hole in the log: what was begun before it has lost its end, what ends behind it its beginning.
func (c *cutter) fall() {
	c.missed += c.piece.Missed
	c.skip = [4]int64{}
	for s := range c.open {
		c.open[s], c.part[s] = unended{}, Partial{}
		c.used[s] = c.read[s]
		c.orphan[s] = c.piece.Mid&(1<<s) != 0
	}
}

// cut takes one message off the current record; false when its end is not there.
func (c *cutter) cut(m *Message) bool {
	s := c.piece.Stream
	open := &c.open[s]
	i := bytes.IndexByte(c.rest, '\n')
	if c.orphan[s] {
		if i < 0 {
			c.used[s] += int64(len(c.rest))
			c.rest = nil
			return false
		}
		c.missed++
		c.used[s] += int64(i + 1)
		c.rest = c.rest[i+1:]
		c.orphan[s] = false
		return false
	}
	room := MaxLine - len(open.data)
	if i < 0 && len(c.rest) < room { // the end is still to come
		c.begin(s)
		open.data = append(open.data, c.rest...)
		c.rest = nil
		return false
	}
	n, eaten := i, i+1
	if i < 0 || i > room {
		n, eaten = room, room
	}
	when := c.piece.Time
	line := c.rest[:n]
	if len(open.data) > 0 {
		when = open.time
		open.data = append(open.data, line...)
		line = open.data
	}
	c.rest = c.rest[eaten:]
	c.used[s] += int64(len(line) + eaten - n)
	c.fill(m, s, when, line)
	m.Ends = eaten > n
	c.pieces(m, s)
	open.data = open.data[:0]
	if cap(open.data) > 4<<10 { // long lines are rare
		open.data = nil
	}
	return true
}

// begin notes where a line begins, if it begins here.
func (c *cutter) begin(s int) {
	open := &c.open[s]
	if len(open.data) == 0 {
		open.time, open.at, open.base = c.piece.Time, c.piece.At, c.before
	}
}

func (c *cutter) fill(m *Message, s int, when int64, line []byte) {
	*m = Message{Stream: s, Time: time.Unix(0, when), Line: line}
	if s == logfile.Notice {
		m.Stream = logs.Stderr
	}
}

// pieces says which piece of its line a message is.
func (c *cutter) pieces(m *Message, s int) {
	p := &c.part[s]
	if p.Ordinal == 0 && m.Ends {
		return
	}
	if p.Ordinal == 0 {
		var id [32]byte
		rand.Read(id[:]) // never fails
		p.ID = hex.EncodeToString(id[:])
	}
	p.Ordinal++
	m.Partial = *p
	m.Partial.Last = m.Ends
	if m.Ends {
		*p = Partial{}
	}
}

// flush gives a line that was left without an end, the oldest first.
func (c *cutter) flush(m *Message) bool {
	first := 0
	for s := range c.open {
		if len(c.open[s].data) > 0 && (first == 0 || c.open[s].time < c.open[first].time) {
			first = s
		}
	}
	if first == 0 {
		c.part = [4]Partial{} // what the next run says is no piece of what this one left
		return false
	}
	open := &c.open[first]
	c.used[first] += int64(len(open.data))
	c.fill(m, first, open.time, open.data)
	c.pieces(m, first)
	c.part[first] = Partial{}
	open.data = nil
	return true
}

// place is the place behind everything that is in messages.
func (c *cutter) place() place {
	p := place{Base: c.piece.After, Partial: c.part, Number: c.number}
	base := c.read
	if len(c.rest) > 0 {
		p.Base, base = c.piece.At, c.before
	}
	for s := range c.open {
		if open := &c.open[s]; len(open.data) > 0 && earlier(open.at, p.Base) {
			p.Base, base = open.at, open.base
		}
	}
	for s := range p.Skip {
		p.Skip[s] = c.used[s] - base[s] + c.skip[s]
	}
	return p
}

func earlier(a, b logs.Place) bool { return a.File < b.File || a.File == b.File && a.Offset < b.Offset }
