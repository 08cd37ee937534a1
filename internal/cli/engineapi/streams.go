package engineapi

import (
	"encoding/binary"
	"fmt"
	"io"

	"corten.dev/corten/internal/runwire"
)

// OutputError says that what came could not be written here. The stream was whole so far, and the engine knows nothing of it.
type OutputError struct{ Err error }

func (e *OutputError) Error() string { return e.Err.Error() }

// Unwrap gives the writer's error.
func (e *OutputError) Unwrap() error { return e.Err }

// Demux splits docker's multiplexed stream to out and errw; what they refuse is an [OutputError]. Each frame is
//
//	[1 byte: 0 stdin, 1 stdout, 2 stderr, 3 error of the engine][3 bytes: 0][4 bytes: length, big endian][data]
//
// Frames that lie in one read and go to the same writer are joined into one write: programs that print a line per
// write would else cost a system call per line here, too. Large frames go to a pipe without being copied here, if r has a Direct() net.Conn that is a
// unix socket's. A stream that ends inside a frame is an error.
func Demux(out, errw io.Writer, r io.Reader) error {
	d := demuxer{out: out, err: errw, last: 3}
	return d.run(r)
}

// DemuxRun is Demux for a run in one request (see runwire): it gives the last frame that the engine added to the output, nil when the stream ended without.
func DemuxRun(out, errw io.Writer, r io.Reader) ([]byte, error) {
	d := demuxer{out: out, err: errw, last: runwire.Stream}
	err := d.run(r)
	return d.word, err
}

func (d *demuxer) run(r io.Reader) error {
	d.in, d.pack = make([]byte, 256<<10), make([]byte, 0, 256<<10)
	d.direct[1], d.direct[2] = newSplicer(d.out, r), newSplicer(d.err, r)
	for {
		if d.end == len(d.in) {
			copy(d.in, d.in[d.start:d.end])
			d.end -= d.start
			d.start = 0
		}
		n, err := r.Read(d.in[d.end:d.want()])
		d.end += n
		if derr := d.drain(); derr != nil {
			return derr
		}
		if err == io.EOF {
			if d.left > 0 || d.end > d.start {
				return fmt.Errorf("stream ended inside a frame: %w", io.ErrUnexpectedEOF)
			}
			return nil
		}
		if err != nil {
			return err
		}
	}
}

type demuxer struct {
	out, err   io.Writer
	in         []byte
	start, end int // the unread part of in
	left       int // bytes missing of the current frame
	stream     byte
	pack       []byte // data for one writer, gathered from several frames
	packFor    byte
	last       byte // the highest number of a stream that is known here
	fault      []byte
	word       []byte      // the last frame of runwire.Stream
	direct     [5]*splicer // by stream
	large      bool        // the last frame was spliced; the next will be
}

// joinMax is the length from which a piece is written by itself rather than joined with others.
const joinMax = 16 << 10

// spliceMin is the length of frames for which the three system calls of splicing are less than the copying.
const spliceMin = 64 << 10

// want is the end of what to read of in: only a header, if what follows is to be spliced.
func (d *demuxer) want() int {
	if d.large && d.left == 0 && d.end-d.start < 8 {
		return d.start + 8
	}
	return len(d.in)
}

// drain handles everything that is complete, and the known part of an open frame.
func (d *demuxer) drain() error {
	for {
		if d.left > 0 && d.end > d.start {
			n := min(d.left, d.end-d.start)
			if err := d.take(d.in[d.start : d.start+n]); err != nil {
				return err
			}
			d.start += n
			d.left -= n
		}
		if d.left == 0 && d.stream == 3 {
			return fmt.Errorf("error from daemon in stream: %s", d.fault)
		}
		if d.left > 0 || d.end-d.start < 8 {
			break
		}
		head := d.in[d.start : d.start+8]
		if head[0] > d.last {
			return fmt.Errorf("unrecognized stream: %d", head[0])
		}
		size := binary.BigEndian.Uint32(head[4:])
		if size > 1<<31-1 {
			return fmt.Errorf("frame of %d bytes in stream", size)
		}
		if d.stream, d.left = head[0], int(size); d.stream == runwire.Stream {
			if size > runwire.Limit {
				return fmt.Errorf("last frame of %d bytes in stream", size)
			}
			d.word = nil
		}
		d.start += 8
	}
	if d.start == d.end {
		d.start, d.end = 0, 0
	}
	if err := d.flush(); err != nil {
		return err
	}
	d.large = false
	if s := d.direct[d.stream]; s != nil && d.left >= spliceMin {
		n := s.move(d.left)
		d.large = n == d.left
		d.left -= n
		if !d.large {
			d.direct[d.stream] = nil
		}
	}
	return nil
}

func (d *demuxer) take(p []byte) error {
	if d.stream == 3 {
		if len(d.fault) < 64<<10 {
			d.fault = append(d.fault, p...)
		}
		return nil
	}
	if d.stream == runwire.Stream {
		d.word = append(d.word, p...)
		return nil
	}
	if d.packFor != d.stream || len(d.pack)+len(p) > cap(d.pack) || len(p) >= joinMax {
		if err := d.flush(); err != nil {
			return err
		}
	}
	if len(p) >= joinMax {
		return d.write(d.stream, p)
	}
	d.packFor = d.stream
	d.pack = append(d.pack, p...)
	return nil
}

func (d *demuxer) flush() error {
	if len(d.pack) == 0 {
		return nil
	}
	err := d.write(d.packFor, d.pack)
	d.pack = d.pack[:0]
	return err
}

func (d *demuxer) write(stream byte, p []byte) error {
	w := d.out
	if stream == 2 {
		w = d.err
	}
	if _, err := w.Write(p); err != nil {
		return &OutputError{err}
	}
	return nil
}
