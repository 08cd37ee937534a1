package tarfs

import (
	"bufio"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"corten.dev/corten/internal/errs"
)

// What Assemble needs beside the tree is a row of frames (compression is the caller's business):
//
//	'r' len bytes          bytes of the stream that are no file content: headers, paddings, sparse files, deletions with content
//	'f' len path size      the content of the file at path
//	'k' len path           from here on the stream replaced path: what the frames before named is in kept/<number of this frame>
//	'e'                    the end; without it the row is cut off
//
// Numbers are unsigned varints. The order is the stream's.
const (
	frameRaw  = 'r'
	frameFile = 'f'
	frameKept = 'k'
	frameEnd  = 'e'
)

// rawChunk bounds the memory for raw bytes.
const rawChunk = 64 << 10

// recorder reads the archive for the tar reader and writes the frames. While content is true the bytes go to a file and are not recorded.
type recorder struct {
	r       io.Reader
	w       *bufio.Writer // nil: record nothing
	raw     []byte
	content bool
	read    int64
	max     int64 // that may be read; 0 is no bound
	kept    int
	err     error
}

func newRecorder(r io.Reader, meta io.Writer, max int64) *recorder {
	rec := &recorder{r: r, max: max}
	if meta != nil {
		rec.w = bufio.NewWriterSize(meta, rawChunk)
	}
	return rec
}

func (rec *recorder) Read(p []byte) (int, error) {
	n, err := rec.r.Read(p)
	if rec.read += int64(n); rec.max > 0 && rec.read > rec.max {
		return 0, rec.tooLarge()
	}
	rec.pass(p[:n])
	return n, err
}

func (rec *recorder) tooLarge() error {
	return errs.New(errs.Invalid, "unpacks to more than %d bytes, which is its bound", rec.max)
}

// pass takes bytes of the stream.
func (rec *recorder) pass(p []byte) {
	if rec.w == nil || rec.content || len(p) == 0 {
		return
	}
	rec.raw = append(rec.raw, p...)
	if len(rec.raw) >= rawChunk {
		rec.flushRaw()
	}
}

// recordingWriter records an archive that is being written.
type recordingWriter struct {
	w   io.Writer
	rec *recorder
}

func (w *recordingWriter) Write(p []byte) (int, error) {
	n, err := w.w.Write(p)
	w.rec.pass(p[:n])
	return n, err
}

func (rec *recorder) flushRaw() {
	if len(rec.raw) == 0 {
		return
	}
	rec.frame(frameRaw, rec.raw)
	rec.raw = rec.raw[:0]
}

func (rec *recorder) frame(kind byte, data []byte) {
	var head [1 + binary.MaxVarintLen64]byte
	head[0] = kind
	n := 1 + binary.PutUvarint(head[1:], uint64(len(data)))
	rec.write(head[:n])
	rec.write(data)
}

func (rec *recorder) write(b []byte) {
	if rec.err == nil {
		_, rec.err = rec.w.Write(b)
	}
}

// file says that the next size bytes of the stream are the content of the file at path.
func (rec *recorder) file(path string, size int64) {
	if rec.w == nil {
		return
	}
	rec.flushRaw()
	rec.frame(frameFile, []byte(path))
	var b [binary.MaxVarintLen64]byte
	rec.write(b[:binary.PutUvarint(b[:], uint64(size))])
	rec.content = true
}

// replaced says that path is about to be moved to the returned name in the kept folder.
func (rec *recorder) replaced(path string) string {
	rec.flushRaw()
	rec.frame(frameKept, []byte(path))
	rec.kept++
	return strconv.Itoa(rec.kept - 1)
}

func (rec *recorder) end() error {
	if rec.w == nil {
		return nil
	}
	rec.flushRaw()
	rec.write([]byte{frameEnd})
	if rec.err != nil {
		return rec.err
	}
	return rec.w.Flush()
}

// Assemble writes the archive again that was extracted into tree with Options.Meta. open returns the frames from their
// start; it is called twice. kept may be nil when the extraction left that folder empty. What changed in the tree meanwhile shows as an error or as other bytes:
// callers compare the digest.
func Assemble(ctx context.Context, tree, kept *os.File, open func() (io.ReadCloser, error), w io.Writer) error {
	moved, err := keptFrames(open)
	if err != nil {
		return err
	}
	frames, err := open()
	if err != nil {
		return err
	}
	defer frames.Close()
	buf := make([]byte, 256<<10)
	return readFrames(frames, func(f frame) error {
		if f.kind == frameRaw {
			_, err := w.Write(f.data)
			return err
		}
		if f.kind != frameFile {
			return nil
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		return f.copyFile(tree, kept, moved, w, buf)
	})
}

type movedPath struct {
	at   int // frame number
	path string
}

func keptFrames(open func() (io.ReadCloser, error)) ([]movedPath, error) {
	frames, err := open()
	if err != nil {
		return nil, err
	}
	defer frames.Close()
	var moved []movedPath
	err = readFrames(frames, func(f frame) error {
		if f.kind == frameKept {
			moved = append(moved, movedPath{f.at, string(f.data)})
		}
		return nil
	})
	return moved, err
}

type frame struct {
	kind byte
	at   int
	data []byte // raw bytes or path; only valid in the call
	size int64
}

func (f frame) copyFile(tree, kept *os.File, moved []movedPath, w io.Writer, buf []byte) error {
	path, root := string(f.data), tree
	for n, m := range moved {
		if m.at < f.at {
			continue
		}
		if rest, ok := strings.CutPrefix(path, m.path); ok && (rest == "" || rest[0] == '/') {
			path, root = strconv.Itoa(n)+rest, kept
			break
		}
	}
	if root == nil {
		return fmt.Errorf("archive: replaced file %s was not kept", path)
	}
	fd, err := openIn(int(root.Fd()), path, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, resolveStrict)
	if err != nil {
		return &os.PathError{Op: "open", Path: path, Err: err}
	}
	file := os.NewFile(uintptr(fd), path)
	defer file.Close()
	n, err := io.CopyBuffer(struct{ io.Writer }{w}, struct{ io.Reader }{io.LimitReader(file, f.size)}, buf)
	if err != nil {
		return err
	}
	if n != f.size {
		return fmt.Errorf("%s: has %d bytes of %d", path, n, f.size)
	}
	return nil
}

// readFrames calls fn for each frame. The frames are our own, but they lie on disk: nothing in them is believed.
func readFrames(r io.Reader, fn func(frame) error) error {
	br := bufio.NewReaderSize(r, rawChunk)
	var buf []byte
	for at := 0; ; at++ {
		kind, err := br.ReadByte()
		if err != nil {
			return cutOff(err)
		}
		if kind == frameEnd {
			return nil
		}
		if kind != frameRaw && kind != frameFile && kind != frameKept {
			return errs.New(errs.Invalid, "archive frames: unknown kind %q", kind)
		}
		n, err := binary.ReadUvarint(br)
		if err != nil {
			return cutOff(err)
		}
		if n > 4<<20 {
			return errs.New(errs.Invalid, "archive frames: frame of %d bytes", n)
		}
		if uint64(cap(buf)) < n {
			buf = make([]byte, n)
		}
		f := frame{kind: kind, at: at, data: buf[:n]}
		if _, err := io.ReadFull(br, f.data); err != nil {
			return cutOff(err)
		}
		if kind == frameFile {
			size, err := binary.ReadUvarint(br)
			if err != nil {
				return cutOff(err)
			}
			if size > 1<<62 {
				return errs.New(errs.Invalid, "archive frames: file of %d bytes", size)
			}
			f.size = int64(size)
		}
		if err := fn(f); err != nil {
			return err
		}
	}
}

func cutOff(err error) error {
	return fmt.Errorf("archive frames are cut off: %w", err)
}
