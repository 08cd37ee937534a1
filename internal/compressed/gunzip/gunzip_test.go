package gunzip

import (
	"bytes"
	"compress/flate"
	"compress/gzip"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"testing/iotest"

	kgzip "github.com/klauspost/compress/gzip"
)

// samples are kinds of data that make encoders do different things.
func samples() map[string][]byte {
	rnd := rand.New(rand.NewPCG(3, 4))
	noise := make([]byte, 300_000)
	for i := range noise {
		noise[i] = byte(rnd.Uint32())
	}
	var text, skewed bytes.Buffer
	for text.Len() < 700_000 {
		fmt.Fprintf(&text, "line %d of %x\n", rnd.IntN(1000), rnd.Uint64()>>uint(rnd.IntN(64)))
	}
	for skewed.Len() < 300_000 { // very unequal frequencies: long codes
		b := byte(0)
		for rnd.IntN(2) == 0 && b < 40 {
			b++
		}
		skewed.WriteByte(b * 5)
	}
	short := bytes.Repeat([]byte("abcdefg"), 50_000)
	exe, _ := os.ReadFile(os.Args[0])
	return map[string][]byte{
		"empty": nil, "one": {7}, "noise": noise, "text": text.Bytes(), "skewed": skewed.Bytes(), "zeros": make([]byte, 1<<20), "short": short,
		"mixed": bytes.Join([][]byte{text.Bytes(), noise, make([]byte, 70_000), noise, short}, nil), "program": exe[:min(len(exe), 1<<20)],
	}
}

func pack(t testing.TB, data []byte, level int) []byte {
	t.Helper()
	var buf bytes.Buffer
	w, err := gzip.NewWriterLevel(&buf, level)
	if err != nil {
		t.Fatal(err)
	}
	w.Name, w.Comment, w.Extra = "a name", "a comment", []byte("extra")
	if _, err := w.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func TestSamples(t *testing.T) {
	for name, data := range samples() {
		for _, level := range []int{-2, 0, 1, 6, 9} {
			blob := pack(t, data, level)
			for kind, src := range map[string]io.Reader{"whole": bytes.NewReader(blob), "halves": iotest.HalfReader(bytes.NewReader(blob)), "with the end": iotest.DataErrReader(bytes.NewReader(blob))} {
				got, err := io.ReadAll(NewReader(src))
				if err != nil || !bytes.Equal(got, data) {
					t.Errorf("%s, level %d, %s: %d bytes of %d, %v", name, level, kind, len(got), len(data), err)
				}
			}
			if len(blob) > 100_000 || level == 1 {
				continue
			}
			if got, err := io.ReadAll(NewReader(iotest.OneByteReader(bytes.NewReader(blob)))); err != nil || !bytes.Equal(got, data) {
				t.Errorf("%s, level %d, byte by byte: %v", name, level, err)
			}
		}
	}
}

// Members in a row are one stream; a match must not reach into the member before.
func TestMembers(t *testing.T) {
	s := samples()
	blob := bytes.Join([][]byte{pack(t, s["text"], 6), pack(t, nil, 6), pack(t, s["noise"], 6), pack(t, s["short"], 1)}, nil)
	want := bytes.Join([][]byte{s["text"], s["noise"], s["short"]}, nil)
	if got, err := io.ReadAll(NewReader(bytes.NewReader(blob))); err != nil || !bytes.Equal(got, want) {
		t.Error(len(got), err)
	}
	var raw bytes.Buffer
	fw, _ := flate.NewWriterDict(&raw, 9, []byte("a dictionary that nobody has"))
	if _, err := fw.Write([]byte("a dictionary that nobody has")); err != nil {
		t.Fatal(err)
	}
	fw.Close()
	text := []byte("a dictionary that nobody has")
	bad := append([]byte{0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255}, raw.Bytes()...)
	bad = binary.LittleEndian.AppendUint32(bad, crc32.ChecksumIEEE(text))
	bad = binary.LittleEndian.AppendUint32(bad, uint32(len(text)))
	if _, err := io.ReadAll(NewReader(bytes.NewReader(append(pack(t, text, 6), bad...)))); !errors.Is(err, ErrCorrupt) {
		t.Errorf("match into the member before: %v", err)
	}
}

func TestDamaged(t *testing.T) {
	data := samples()["text"][:9_000]
	blob := pack(t, data, 6)
	for n := 0; n < len(blob); n += 1 + n/30 {
		if got, err := io.ReadAll(NewReader(bytes.NewReader(blob[:n]))); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Fatalf("cut to %d: %d bytes, %v", n, len(got), err)
		}
	}
	broken := errors.New("broken")
	if _, err := io.ReadAll(NewReader(io.MultiReader(bytes.NewReader(blob[:1000]), iotest.ErrReader(broken)))); !errors.Is(err, broken) {
		t.Error(err)
	}
	for n := range blob {
		if n > 3 && n < 10 {
			continue // time and system
		}
		bad := bytes.Clone(blob)
		bad[n] ^= 0x41
		got, err := io.ReadAll(NewReader(bytes.NewReader(bad)))
		std, serr := stdlib(bad)
		if (err == nil) != (serr == nil) || err == nil && !bytes.Equal(got, std) {
			t.Fatalf("byte %d: %v, compress/gzip says %v", n, err, serr)
		}
	}
}

func stdlib(blob []byte) ([]byte, error) {
	r, err := gzip.NewReader(bytes.NewReader(blob))
	if err != nil {
		return nil, err
	}
	return io.ReadAll(io.LimitReader(r, 64<<20))
}

func FuzzLikeStdlib(f *testing.F) {
	for _, data := range samples() {
		for _, level := range []int{-2, 0, 1, 9} {
			f.Add(pack(f, data[:min(len(data), 3000)], level))
		}
	}
	f.Fuzz(func(t *testing.T, blob []byte) {
		check := func(blob []byte) {
			want, serr := stdlib(blob)
			got, err := io.ReadAll(io.LimitReader(NewReader(bytes.NewReader(blob)), 64<<20))
			if (err == nil) != (serr == nil) {
				t.Fatalf("%v, compress/gzip says %v", err, serr)
			}
			if err == nil && !bytes.Equal(got, want) {
				t.Fatal("other bytes")
			}
		}
		check(blob)
		// The checksum keeps most inputs from being interesting: give the deflate stream its own.
		head := []byte{0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255}
		plain, err := io.ReadAll(io.LimitReader(flate.NewReader(bytes.NewReader(blob)), 64<<20))
		if err != nil {
			check(append(head, blob...))
			return
		}
		end := binary.LittleEndian.AppendUint32(nil, crc32.ChecksumIEEE(plain))
		check(append(append(head, blob...), binary.LittleEndian.AppendUint32(end, uint32(len(plain)))...))
	})
}

func BenchmarkReaders(b *testing.B) {
	data := samples()["program"]
	if path := os.Getenv("CORTEN_BENCH_FILE"); path != "" {
		var err error
		if data, err = os.ReadFile(filepath.Clean(path)); err != nil {
			b.Fatal(err)
		}
	}
	blob := pack(b, data, 6)
	for name, open := range map[string]func() (io.Reader, error){
		"ours":      func() (io.Reader, error) { return NewReader(bytes.NewReader(blob)), nil },
		"klauspost": func() (io.Reader, error) { return kgzip.NewReader(bytes.NewReader(blob)) },
		"stdlib":    func() (io.Reader, error) { return gzip.NewReader(bytes.NewReader(blob)) },
	} {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(int64(len(data)))
			buf := make([]byte, 256<<10)
			for b.Loop() {
				r, err := open()
				if err != nil {
					b.Fatal(err)
				}
				for err == nil {
					_, err = r.Read(buf)
				}
				if err != io.EOF {
					b.Fatal(err)
				}
			}
		})
	}
}
