package buildwire

import (
	"bufio"
	"encoding/binary"
	"errors"
	"io"
	"io/fs"
)

// Entry is one name of a directory that is not handed over. The data of the stream is then
//
//	client ──▶ entries, each directory before what is in it, sorted by bytes within a directory; then an empty path
//	       ◀── numbers of the regular files that are wanted, 4 bytes each, counted from 0 in the list; end
//	       ──▶ a tar of these, in that order; end
//
// and an entry is
//
//	[length of path][path][mode][size][modification time in ns, zigzag][length of link][link]      lengths and numbers as varints
type Entry struct {
	Path    string
	Mode    fs.FileMode
	Size    int64
	ModTime int64
	Link    string
}

// maxPath bounds a path and a link.
const maxPath = 64 << 10

// AppendEntry writes an entry; the empty one ends the list.
func AppendEntry(b []byte, e Entry) []byte {
	b = binary.AppendUvarint(b, uint64(len(e.Path)))
	if e.Path == "" {
		return b
	}
	b = append(b, e.Path...)
	b = binary.AppendUvarint(b, uint64(e.Mode))
	b = binary.AppendUvarint(b, uint64(e.Size))
	b = binary.AppendVarint(b, e.ModTime)
	b = binary.AppendUvarint(b, uint64(len(e.Link)))
	return append(b, e.Link...)
}

// ReadEntry reads one; io.EOF at the end of the list.
func ReadEntry(r *bufio.Reader) (e Entry, err error) {
	if e.Path, err = readText(r); err != nil {
		return e, lost(err)
	}
	if e.Path == "" {
		return e, io.EOF
	}
	mode, err := binary.ReadUvarint(r)
	if err != nil {
		return e, lost(err)
	}
	size, err := binary.ReadUvarint(r)
	if err != nil {
		return e, lost(err)
	}
	if mode > 1<<32-1 || size > 1<<62 {
		return e, errors.New("malformed entry in the list of a directory")
	}
	e.Mode, e.Size = fs.FileMode(mode), int64(size)
	if e.ModTime, err = binary.ReadVarint(r); err != nil {
		return e, lost(err)
	}
	e.Link, err = readText(r)
	return e, lost(err)
}

func readText(r *bufio.Reader) (string, error) {
	n, err := binary.ReadUvarint(r)
	if err != nil {
		return "", err
	}
	if n > maxPath {
		return "", errors.New("a name in the list of a directory is too long")
	}
	text := make([]byte, n)
	_, err = io.ReadFull(r, text)
	return string(text), err
}
