// Package jsonfile is the log driver json-file: one JSON object a line, as Docker writes them, for tools that read such files.
//
// It owns the file at the container's LogPath and what it is rotated to. It promises: each message is in the files once, also after the engine was killed (what was written
// after the place in the log was kept is cut off and written anew); a rotation moves whole files.
//
//	ID-json.log        {"log":"text\n","stream":"stdout","attrs":{…},"time":"2026-01-02T03:04:05.678901234Z"}      attrs only where options ask for some
//	ID-json.log.1[.gz] the one before, and so on up to max-file - 1
package jsonfile

import (
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unicode/utf8"

	"corten.dev/corten/internal/logs"
	"corten.dev/corten/internal/logs/ship"
)

// Defaults of the bounds: those of the container's own log, so that no log grows without a bound unless it is asked to.
const (
	defaultSize  = 20_000_000
	defaultFiles = 3
)

// Driver is json-file.
type Driver struct{}

// Name implements [ship.Driver].
func (Driver) Name() string { return "json-file" }

// Options implements [ship.Driver]: max-size, max-file and compress are read by package ship, as they bound the own log too.
func (Driver) Options() []string { return nil }

// Check implements [ship.Driver].
func (Driver) Check(map[string]string) error { return nil }

// Policy implements [ship.Driver]: a full disk is tried again soon.
func (Driver) Policy(map[string]string) ship.Policy { return ship.Policy{MaxWait: 5 * time.Second} }

// Open implements [ship.Driver].
func (Driver) Open(_ context.Context, info *ship.Info) (ship.Destination, error) {
	f := &file{path: info.LogPath, bound: info.Bound}
	if f.bound.MaxSize == 0 {
		f.bound.MaxSize = defaultSize
	}
	if f.bound.MaxFiles == 0 {
		f.bound.MaxFiles = defaultFiles
	}
	attrs, err := info.Attributes(nil)
	if err != nil {
		return nil, err
	}
	if info.Config["tag"] != "" { // only if asked for: there is no default here
		if attrs["tag"], err = info.Tag(""); err != nil {
			return nil, err
		}
	}
	if len(attrs) > 0 {
		b, err := json.Marshal(attrs)
		if err != nil {
			return nil, err
		}
		f.attrs = append([]byte(`,"attrs":`), b...)
	}
	return f, f.open()
}

type file struct {
	path  string
	bound ship.Bound
	attrs []byte
	f     *os.File
	size  int64
	inode uint64
	buf   []byte
}

func (f *file) open() error {
	out, err := os.OpenFile(f.path, os.O_WRONLY|os.O_CREATE|os.O_APPEND|syscall.O_NOFOLLOW, 0o640)
	if err != nil {
		return err
	}
	f.f = out
	return f.look()
}

func (f *file) look() error {
	st, err := f.f.Stat()
	if err != nil {
		return err
	}
	f.size = st.Size()
	if sys, ok := st.Sys().(*syscall.Stat_t); ok {
		f.inode = sys.Ino
	}
	return nil
}

// Close implements [ship.Destination].
func (f *file) Close() error { return f.f.Close() }

// Mark implements [ship.Marked]: which file, and how long it is.
func (f *file) Mark() string {
	return strconv.FormatUint(f.inode, 10) + ":" + strconv.FormatInt(f.size, 10)
}

// Resume implements [ship.Marked]: what was written behind the mark is cut off. Another file than the marked one was begun by a rotation after it, so that none of it counts.
func (f *file) Resume(mark string) error {
	inode, size, ok := strings.Cut(mark, ":")
	if !ok {
		return nil
	}
	keep := int64(0)
	if inode == strconv.FormatUint(f.inode, 10) {
		n, err := strconv.ParseInt(size, 10, 64)
		if err != nil {
			return fmt.Errorf("mark %q: %w", mark, err)
		}
		keep = min(n, f.size) // somebody may have emptied it
	}
	if err := f.f.Truncate(keep); err != nil {
		return err
	}
	return f.look()
}

// Send implements [ship.Destination]. It stops where a file is full, so that the place is kept before the next file is begun.
func (f *file) Send(_ context.Context, msgs []ship.Message) (int, error) {
	if f.bound.MaxSize > 0 && f.size >= f.bound.MaxSize {
		if err := f.rotate(); err != nil {
			return 0, fmt.Errorf("rotate %s: %w", f.path, err)
		}
	}
	f.buf = f.buf[:0]
	n := 0
	for n < len(msgs) && (f.bound.MaxSize <= 0 || f.size+int64(len(f.buf)) < f.bound.MaxSize) {
		f.buf = f.line(f.buf, &msgs[n])
		n++
	}
	wrote, err := f.f.Write(f.buf)
	if err != nil {
		if wrote > 0 { // a full disk: no half of a line stays
			err = errors.Join(err, f.f.Truncate(f.size))
		}
		return 0, err
	}
	if err := f.look(); err != nil {
		return 0, err
	}
	if cap(f.buf) > 1<<20 {
		f.buf = nil
	}
	return n, nil
}

// line appends a message.
func (f *file) line(b []byte, m *ship.Message) []byte {
	b = append(b, `{"log":"`...)
	b = appendText(b, m.Line)
	if m.Ends {
		b = append(b, `\n`...)
	}
	if m.Stream == logs.Stderr {
		b = append(b, `","stream":"stderr"`...)
	} else {
		b = append(b, `","stream":"stdout"`...)
	}
	b = append(b, f.attrs...)
	b = append(b, `,"time":"`...)
	b = m.Time.UTC().AppendFormat(b, time.RFC3339Nano)
	return append(b, '"', '}', '\n')
}

const hexDigits = "0123456789abcdef"

// appendText appends the inside of a JSON string, with what Docker escapes escaped the same way; bytes that are no UTF-8 become U+FFFD.
func appendText(b, text []byte) []byte {
	for len(text) > 0 {
		i := 0
		for i < len(text) && plain(text[i]) {
			i++
		}
		b = append(b, text[:i]...)
		if text = text[i:]; len(text) == 0 {
			break
		}
		c := text[0]
		if c >= utf8.RuneSelf {
			r, size := utf8.DecodeRune(text)
			switch {
			case r == utf8.RuneError && size == 1:
				b = append(b, `\ufffd`...)
			case r == '\u2028' || r == '\u2029': // line ends to JavaScript
				b = append(b, `\u202`...)
				b = append(b, hexDigits[r&0xf])
			default:
				b = append(b, text[:size]...)
			}
			text = text[size:]
			continue
		}
		switch c {
		case '"', '\\':
			b = append(b, '\\', c)
		case '\n':
			b = append(b, '\\', 'n')
		case '\r':
			b = append(b, '\\', 'r')
		default:
			b = append(b, '\\', 'u', '0', '0', hexDigits[c>>4], hexDigits[c&0xf])
		}
		text = text[1:]
	}
	return b
}

func plain(c byte) bool {
	return c >= ' ' && c < utf8.RuneSelf && c != '"' && c != '\\' && c != '<' && c != '>' && c != '&'
}

// rotate moves every file one number up, and begins a new one.
func (f *file) rotate() error {
	keep := f.bound.MaxFiles
	if keep > 1 {
		for _, ext := range []string{"", ".gz"} { // both: compress may have been asked for only later
			if err := os.Remove(f.name(keep-1) + ext); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
		for i := keep - 2; i >= 1; i-- {
			for _, ext := range []string{"", ".gz"} {
				if err := os.Rename(f.name(i)+ext, f.name(i+1)+ext); err != nil && !errors.Is(err, fs.ErrNotExist) {
					return err
				}
			}
		}
		if err := os.Rename(f.path, f.name(1)); err != nil {
			return err
		}
		if f.bound.Compress {
			if err := compress(f.name(1)); err != nil {
				return err
			}
		}
	} else if err := os.Remove(f.path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	old := f.f
	if err := f.open(); err != nil {
		f.f = old
		return err
	}
	return old.Close()
}

func (f *file) name(i int) string { return f.path + "." + strconv.Itoa(i) }

// compress replaces a file by its compressed form; killed in between it leaves the file as it was.
func compress(path string) (err error) {
	in, err := os.Open(path)
	if err != nil {
		return err
	}
	defer in.Close()
	aside := path + ".gz.tmp"
	out, err := os.OpenFile(aside, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o640)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(aside))
		}
	}()
	zip := gzip.NewWriter(out)
	_, err = io.Copy(zip, in)
	if err = errors.Join(err, zip.Close(), out.Close()); err != nil {
		return err
	}
	if err := os.Rename(aside, path+".gz"); err != nil {
		return err
	}
	return os.Remove(path)
}
