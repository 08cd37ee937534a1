package logs

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"time"

	"corten.dev/corten/internal/logs/logfile"
)

// maxLine bounds what a reader joins to one line.
const maxLine = 1 << 20

// Log is an open log, a [Reader]. Use Next or Copy, not both.
type Log struct {
	opts  ReadOptions
	set   uint8
	cur   cursor
	done  <-chan struct{}
	watch *watcher
	skip  int64 // lines to skip yet
	since int64
	until int64

	data    []byte // rest of the current record
	stream  int
	time    int64
	parts   [4]part // unfinished lines
	orphan  uint8   // streams whose first line has lost its beginning
	ended   bool
	flushed bool
}

// part is the beginning of a line.
type part struct {
	time int64
	data []byte
}

// Open opens the log in dir. A folder that is not there is an empty log: with Follow, one that is still to come. done tells a follower that the writer is finished; nil never does.
func Open(_ context.Context, dir string, opts ReadOptions, done <-chan struct{}) (*Log, error) {
	l := &Log{opts: opts, set: opts.streams(), cur: cursor{dir: dir}, done: done, until: 1<<63 - 1}
	if !opts.Since.IsZero() {
		l.since = opts.Since.UnixNano()
	}
	if !opts.Until.IsZero() {
		l.until = opts.Until.UnixNano()
	}
	if opts.Follow {
		l.watch = newWatcher(dir) // before the first look, so that nothing is missed between
	}
	var err error
	if l.skip, err = l.place(); err != nil {
		l.Close()
		return nil, fmt.Errorf("log %s: %w", dir, err)
	}
	if l.cur.f != nil && l.cur.at() == logfile.HeaderSize {
		l.orphan = l.cur.head.Mid & l.set
	}
	return l, nil
}

// Close closes the log.
func (l *Log) Close() error {
	l.cur.close()
	l.watch.close()
	return nil
}

// record moves to the next record that is asked for. It waits for one when following; io.EOF is the end.
func (l *Log) record(ctx context.Context) error {
	var r logfile.Record
	finished := false
	for !l.ended {
		ok, err := l.cur.next(&r)
		if err != nil {
			return fmt.Errorf("log %s: %w", l.cur.dir, err)
		}
		if l.cur.gap {
			l.cur.gap, l.parts, l.orphan = false, [4]part{}, l.cur.head.Mid&l.set
		}
		switch {
		case ok && r.Time > l.until:
			l.ended = true
		case ok && l.set&(1<<r.Stream) != 0:
			l.data, l.stream, l.time = r.Data, r.Stream, r.Time
			return nil
		case ok:
		case !l.opts.Follow || finished:
			l.ended = true
		default:
			if finished, err = l.wait(ctx); err != nil {
				return err
			}
		}
	}
	return io.EOF
}

// wait waits until there may be more; true means that there will not be after what is there now.
func (l *Log) wait(ctx context.Context) (finished bool, err error) {
	select {
	case <-l.done:
		return true, nil
	default:
	}
	t := time.NewTimer(l.watch.interval())
	defer t.Stop()
	var until <-chan time.Time
	if l.until != 1<<63-1 {
		u := time.NewTimer(time.Until(l.opts.Until))
		defer u.Stop()
		until = u.C
	}
	select {
	case <-ctx.Done():
		return false, ctx.Err()
	case <-l.done:
		return true, nil
	case <-until:
		return true, nil
	case <-l.watch.wake():
	case <-t.C:
	}
	return false, nil
}

// line gives the next line without its filters.
func (l *Log) line(ctx context.Context) (Line, error) {
	for {
		for len(l.data) > 0 {
			if line, ok := l.cut(); ok {
				return line, nil
			}
		}
		if l.flushed {
			return Line{}, io.EOF
		}
		err := l.record(ctx)
		if err == io.EOF {
			if line, ok := l.rest(); ok {
				return line, nil
			}
			l.flushed = true
			return Line{}, io.EOF
		}
		if err != nil {
			return Line{}, err
		}
	}
}

// cut takes a line off the current record, joining it with its beginning; false when the line is not finished.
func (l *Log) cut() (Line, bool) {
	p := &l.parts[l.stream]
	i := bytes.IndexByte(l.data, '\n')
	room := maxLine - len(p.data)
	if i < 0 && len(l.data) < room {
		if len(p.data) == 0 {
			p.time = l.time
		}
		p.data = append(p.data, l.data...)
		l.data = nil
		return Line{}, false
	}
	n := min(i+1, room)
	if i < 0 {
		n = room
	}
	piece := l.data[:n]
	l.data = l.data[n:]
	line := Line{Stream: l.stream, Time: time.Unix(0, l.time), Data: piece}
	if len(p.data) > 0 {
		line.Time = time.Unix(0, p.time)
		line.Data = append(p.data, piece...)
		if cap(p.data) > maxLine/4 { // do not keep the memory of a long line
			p.data = nil
		} else {
			p.data = line.Data[:0]
		}
	}
	if l.orphan&(1<<l.stream) != 0 { // the rest of a line whose beginning is gone
		l.orphan &^= 1 << l.stream
		return Line{}, false
	}
	return line, true
}

// rest gives what stands unfinished at the end, the oldest first.
func (l *Log) rest() (Line, bool) {
	first := 0
	for s := range l.parts {
		if len(l.parts[s].data) > 0 && l.orphan&(1<<s) == 0 && (first == 0 || l.parts[s].time < l.parts[first].time) {
			first = s
		}
	}
	if first == 0 {
		return Line{}, false
	}
	p := &l.parts[first]
	line := Line{Stream: first, Time: time.Unix(0, p.time), Data: p.data}
	p.data = nil
	return line, true
}

// Next implements [Reader].
func (l *Log) Next(ctx context.Context) (Line, error) {
	for {
		line, err := l.line(ctx)
		if err != nil {
			return Line{}, err
		}
		if l.skip > 0 {
			l.skip--
			continue
		}
		if ns := line.Time.UnixNano(); ns < l.since || ns > l.until {
			continue
		}
		if line.Stream == logfile.Notice {
			line.Stream = Stderr
		}
		return line, nil
	}
}
