package compressed

import (
	"bytes"
	"compress/gzip"
	"errors"
	"io"
	"os/exec"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"

	"corten.dev/corten/internal/errs"
)

var text = []byte(strings.Repeat("some text that is worth it. ", 10_000))

// forms are the text as everybody writes it; those whose program is not here are left out.
func forms(t testing.TB) map[string][]byte {
	t.Helper()
	var zipped, zstded bytes.Buffer
	z := gzip.NewWriter(&zipped)
	zs, err := zstd.NewWriter(&zstded)
	if err != nil {
		t.Fatal(err)
	}
	for _, w := range []io.WriteCloser{z, zs} {
		if _, err := w.Write(text); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
	}
	all := map[string][]byte{"gzip": zipped.Bytes(), "zstd": zstded.Bytes(), "zstd behind a frame to skip": append([]byte{0x50, 0x2a, 0x4d, 0x18, 1, 0, 0, 0, 'x'}, zstded.Bytes()...)}
	for _, program := range []string{"xz", "bzip2"} {
		path, err := exec.LookPath(program)
		if err != nil {
			t.Logf("%s is not here", program)
			continue
		}
		cmd := exec.Command(path, "-c")
		cmd.Stdin = bytes.NewReader(text)
		if all[program], err = cmd.Output(); err != nil {
			t.Fatal(err)
		}
	}
	return all
}

func read(t testing.TB, r io.Reader) ([]byte, error) {
	t.Helper()
	plain, err := Reader(t.Context(), r)
	if err != nil {
		return nil, err
	}
	got, err := io.ReadAll(plain)
	return got, errors.Join(err, plain.Close())
}

type broken struct{}

var errSource = errors.New("the source broke off")

func (broken) Read([]byte) (int, error) { return 0, errSource }

func TestReader(t *testing.T) {
	for _, plain := range [][]byte{nil, []byte("x"), text} {
		if got, err := read(t, bytes.NewReader(plain)); err != nil || !bytes.Equal(got, plain) {
			t.Errorf("%d bytes that are not compressed: %d, %v", len(plain), len(got), err)
		}
	}
	for name, data := range forms(t) {
		if got, err := read(t, bytes.NewReader(data)); err != nil || !bytes.Equal(got, text) {
			t.Errorf("%s: %d bytes, %v", name, len(got), err)
		}
		if _, err := read(t, bytes.NewReader(data[:len(data)-20])); !errors.Is(err, errs.Invalid) {
			t.Errorf("%s, cut: %v", name, err)
		}
		if _, err := read(t, io.MultiReader(bytes.NewReader(data[:len(data)-20]), broken{})); !errors.Is(err, errSource) {
			t.Errorf("%s, of a source that broke off: %v", name, err)
		}
	}
}

// Who closes early ends the program, too.
func TestCloseEarly(t *testing.T) {
	for name, data := range forms(t) {
		r, err := Reader(t.Context(), bytes.NewReader(data))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(r, make([]byte, 10)); err != nil {
			t.Error(name, err)
		}
		if err := r.Close(); err != nil {
			t.Error(name, err)
		}
	}
}

// Archives come from anybody: no bytes make the reader panic, or say what is not an error of the archive.
func FuzzReader(f *testing.F) {
	for _, data := range forms(f) {
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		if bytes.HasPrefix(data, []byte{0xfd, '7', 'z', 'X', 'Z', 0}) {
			t.Skip("that is xz's affair")
		}
		plain, err := Reader(t.Context(), bytes.NewReader(data))
		if err == nil {
			_, err = io.Copy(io.Discard, io.LimitReader(plain, 1<<20))
			err = errors.Join(err, plain.Close())
		}
		if err != nil && !errors.Is(err, errs.Invalid) {
			t.Errorf("%v has no kind", err)
		}
	})
}
