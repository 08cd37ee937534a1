package engineapi

import (
	"encoding/binary"
	"fmt"
	"io"
)

// Demux splits docker's multiplexed stream to out and errw. Each frame is
//
//	[1 byte: 0 stdin, 1 stdout, 2 stderr, 3 error of the engine][3 bytes: 0][4 bytes: length, big endian][data]
//
// Frames that lie in one read and go to the same writer are joined into one write: programs that print a line per
// write would else cost a system call per line here, too. A stream that ends inside a frame is an error.
func Demux(out, errw io.Writer, r io.Reader) error {
	d := demuxer{out: out, err: errw, in: make([]byte, 256<<10), pack: make([]byte, 0, 256<<10)}
	for {
		if d.end == len(d.in) {
			copy(d.in, d.in[d.start:d.end])
			d.end -= d.start
			d.start = 0
		}
		n, err := r.Read(d.in[d.end:])
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
	fault      []byte
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
		if head[0] > 3 {
			return fmt.Errorf("unrecognized stream: %d", head[0])
		}
		size := binary.BigEndian.Uint32(head[4:])
		if size > 1<<31-1 {
			return fmt.Errorf("frame of %d bytes in stream", size)
		}
		d.stream, d.left = head[0], int(size)
		d.start += 8
	}
	if d.start == d.end {
		d.start, d.end = 0, 0
	}
	return d.flush()
}

func (d *demuxer) take(p []byte) error {
	if d.stream == 3 {
		if len(d.fault) < 64<<10 {
			d.fault = append(d.fault, p...)
		}
		return nil
	}
	if d.packFor != d.stream || len(d.pack)+len(p) > cap(d.pack) {
		if err := d.flush(); err != nil {
			return err
		}
	}
	d.packFor = d.stream
	d.pack = append(d.pack, p...)
	return nil
}

func (d *demuxer) flush() error {
	if len(d.pack) == 0 {
		return nil
	}
	w := d.out
	if d.packFor == 2 {
		w = d.err
	}
	_, err := w.Write(d.pack)
	d.pack = d.pack[:0]
	return err
}
