package fluentd

import (
	"encoding/binary"
	"errors"
	"io"
)

// The parts of MessagePack that the forward protocol needs: strings and maps out, and one answer in.

func append32(b []byte, v uint32) []byte { return binary.BigEndian.AppendUint32(b, v) }

func appendStringHead(b []byte, n int) []byte {
	switch {
	case n < 32:
		return append(b, 0xa0|byte(n))
	case n < 1<<8:
		return append(b, 0xd9, byte(n))
	case n < 1<<16:
		return append(b, 0xda, byte(n>>8), byte(n))
	}
	return append32(append(b, 0xdb), uint32(n))
}

func appendString(b []byte, s string) []byte { return append(appendStringHead(b, len(s)), s...) }
func appendBytes(b, s []byte) []byte         { return append(appendStringHead(b, len(s)), s...) }

func appendMap(b []byte, n int) []byte {
	if n < 16 {
		return append(b, 0x80|byte(n))
	}
	if n < 1<<16 {
		return append(b, 0xde, byte(n>>8), byte(n))
	}
	return append32(append(b, 0xdf), uint32(n))
}

// errAnswer is what a receiver says that does not speak the protocol.
var errAnswer = errors.New("the answer is no acknowledgement")

// maxAnswer bounds a string of an answer.
const maxAnswer = 4 << 10

// decoder reads answers, maps of strings to strings.
type decoder struct {
	r   io.Reader
	buf []byte // read, not used yet
}

// ack reads one answer and returns its chunk id.
func (d *decoder) ack() (string, error) {
	n, err := d.mapHead()
	if err != nil {
		return "", err
	}
	chunk := ""
	for range n {
		key, err := d.str()
		if err != nil {
			return "", err
		}
		value, err := d.str()
		if err != nil {
			return "", err
		}
		if key == "ack" {
			chunk = value
		}
	}
	return chunk, nil
}

func (d *decoder) take(n int) ([]byte, error) {
	for len(d.buf) < n {
		more := make([]byte, 4096)
		got, err := d.r.Read(more)
		d.buf = append(d.buf, more[:got]...)
		if err != nil && len(d.buf) < n {
			return nil, err
		}
	}
	b := d.buf[:n]
	d.buf = d.buf[n:]
	return b, nil
}

func (d *decoder) number(size int) (int, error) {
	b, err := d.take(size)
	n := 0
	for _, c := range b {
		n = n<<8 | int(c)
	}
	return n, err
}

func (d *decoder) mapHead() (int, error) {
	b, err := d.take(1)
	if err != nil {
		return 0, err
	}
	switch c := b[0]; {
	case c&0xf0 == 0x80:
		return int(c & 0x0f), nil
	case c == 0xde:
		return d.number(2)
	}
	return 0, errAnswer
}

func (d *decoder) str() (string, error) {
	b, err := d.take(1)
	if err != nil {
		return "", err
	}
	n := 0
	switch c := b[0]; {
	case c&0xe0 == 0xa0:
		n = int(c & 0x1f)
	case c == 0xd9, c == 0xc4:
		n, err = d.number(1)
	case c == 0xda, c == 0xc5:
		n, err = d.number(2)
	default:
		return "", errAnswer
	}
	if err != nil {
		return "", err
	}
	if n > maxAnswer {
		return "", errAnswer
	}
	b, err = d.take(n)
	return string(b), err
}
