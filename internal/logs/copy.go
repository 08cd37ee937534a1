package logs

import (
	"context"
	"io"
	"time"

	"corten.dev/corten/internal/logs/logfile"
)

// CopyOptions say how Copy writes.
type CopyOptions struct {
	Framed     bool // Docker's 8-byte stream headers; else the bytes alone (a terminal's log)
	Timestamps bool // each line begins with its time
	// Details are put in front of each line as they are.
	Details string
	// Idle, if set, is called before Copy waits for more, with everything so far written: a place to flush.
	Idle func() error
}

const (
	frameHead = 8
	maxFrame  = 1 << 20
)

// Copy writes everything that was asked for to w, in large pieces. It returns nil at the end, and ctx's error when that ends first.
func (l *Log) Copy(ctx context.Context, w io.Writer, o CopyOptions) error {
	c := &copier{log: l, w: w, o: o}
	if !o.Timestamps && o.Details == "" && l.since == 0 && l.opts.Until.IsZero() {
		if err := c.skip(ctx); err != nil {
			return eof(err)
		}
		return eof(c.records(ctx))
	}
	return eof(c.lines(ctx))
}

func eof(err error) error {
	if err == io.EOF {
		return nil
	}
	return err
}

// copier collects output in buf.
type copier struct {
	log    *Log
	w      io.Writer
	o      CopyOptions
	buf    []byte
	frame  int // where the last frame's header is in buf
	stream int // of the last frame; 0: none
}

func (c *copier) flush() error {
	if len(c.buf) == 0 {
		return nil
	}
	_, err := c.w.Write(c.buf)
	c.buf, c.stream = c.buf[:0], 0
	return err
}

func (c *copier) idle() error {
	if err := c.flush(); err != nil {
		return err
	}
	if c.o.Idle != nil {
		return c.o.Idle()
	}
	return nil
}

// open makes sure that what is appended next is in a frame of the stream.
func (c *copier) open(stream int) {
	if stream == logfile.Notice {
		stream = Stderr
	}
	if !c.o.Framed || (c.stream == stream && len(c.buf)-c.frame < maxFrame) {
		return
	}
	c.stream, c.frame = stream, len(c.buf)
	c.buf = append(c.buf, byte(stream), 0, 0, 0, 0, 0, 0, 0)
}

// closeFrame writes the length of the last frame.
func (c *copier) closeFrame() {
	if c.o.Framed && c.stream != 0 {
		setLength(c.buf[c.frame:], len(c.buf)-c.frame-frameHead)
	}
}

func setLength(head []byte, n int) {
	head[4], head[5], head[6], head[7] = byte(n>>24), byte(n>>16), byte(n>>8), byte(n)
}

func (c *copier) add(stream int, pieces ...[]byte) error {
	c.open(stream)
	for _, b := range pieces {
		c.buf = append(c.buf, b...)
	}
	c.closeFrame()
	if len(c.buf) >= bufferSize {
		return c.flush()
	}
	return nil
}

// skip passes over the lines that Tail leaves out, and what of unfinished lines remains goes out first.
func (c *copier) skip(ctx context.Context) error {
	l := c.log
	for l.skip > 0 || l.orphan != 0 {
		if len(l.data) == 0 {
			if l.opts.Follow && c.ready() {
				if err := c.idle(); err != nil {
					return err
				}
			}
			if err := l.record(ctx); err != nil {
				if err == io.EOF {
					return c.remains()
				}
				return err
			}
		}
		if l.skip == 0 && l.orphan&(1<<l.stream) == 0 { // an orphan of the other stream is still to come
			if err := c.add(l.stream, l.data); err != nil {
				return err
			}
			l.data = nil
			continue
		}
		if _, ok := l.cut(); ok && l.skip > 0 {
			l.skip--
		}
	}
	for s := range l.parts {
		if p := &l.parts[s]; len(p.data) > 0 {
			if err := c.add(s, p.data); err != nil {
				return err
			}
			p.data = nil
		}
	}
	if len(l.data) > 0 {
		if err := c.add(l.stream, l.data); err != nil {
			return err
		}
		l.data = nil
	}
	return nil
}

// remains is for a log that ends while lines are being skipped: unfinished lines count as lines.
func (c *copier) remains() error {
	for {
		line, ok := c.log.rest()
		if !ok {
			break
		}
		if c.log.skip > 0 {
			c.log.skip--
			continue
		}
		if err := c.add(line.Stream, line.Data); err != nil {
			return err
		}
	}
	if err := c.idle(); err != nil {
		return err
	}
	return io.EOF
}

// ready reports whether the next record has to be read from the file.
func (c *copier) ready() bool { return c.log.cur.r == c.log.cur.w }

// records copies whole records; they are put together in the reader's own buffer, where a record's head leaves more than the room that a frame's head needs.
func (c *copier) records(ctx context.Context) error {
	l := c.log
	for {
		if err := c.idle(); err != nil {
			return err
		}
		if err := l.record(ctx); err != nil {
			return err
		}
		cur := &l.cur
		begin := cur.r - len(l.data) // of the record's bytes in the buffer
		if c.o.Framed {
			begin -= frameHead
		}
		out, frame, stream := cur.r, begin, l.stream
		var r logfile.Record
		for {
			next := cur.r
			size := cur.buffered(&r)
			if size == 0 {
				break
			}
			if l.set&(1<<r.Stream) == 0 {
				continue
			}
			if c.o.Framed && (r.Stream != stream || out-frame > maxFrame) {
				c.head(frame, out, stream)
				frame, stream = out, r.Stream
				out += frameHead
			}
			out += copy(cur.buf[out:], cur.buf[next+logfile.RecordHead:next+size])
		}
		if c.o.Framed {
			c.head(frame, out, stream)
		}
		l.data = nil
		if _, err := c.w.Write(cur.buf[begin:out]); err != nil {
			return err
		}
	}
}

// head writes the header of the frame that lies between two places of the reader's buffer.
func (c *copier) head(frame, end, stream int) {
	if stream == logfile.Notice {
		stream = Stderr
	}
	h := c.log.cur.buf[frame:]
	h[0], h[1], h[2], h[3] = byte(stream), 0, 0, 0
	setLength(h, end-frame-frameHead)
}

// lines copies line by line.
func (c *copier) lines(ctx context.Context) error {
	l := c.log
	var stamp []byte
	var stamped time.Time
	details := []byte(c.o.Details)
	for {
		if l.opts.Follow && len(l.data) == 0 && c.ready() {
			if err := c.idle(); err != nil {
				return err
			}
		}
		line, err := l.Next(ctx)
		if err != nil {
			if ferr := c.idle(); ferr != nil {
				return ferr
			}
			return err
		}
		if c.o.Timestamps && (len(stamp) == 0 || !line.Time.Equal(stamped)) { // lines that came at once have the same time
			stamped = line.Time
			stamp = append(stamped.UTC().AppendFormat(stamp[:0], "2006-01-02T15:04:05.000000000Z07:00"), ' ')
		}
		// A frame for each line: clients that show timestamps cut at frames.
		c.stream = 0
		if err := c.add(line.Stream, stamp, details, line.Data); err != nil {
			return err
		}
	}
}
