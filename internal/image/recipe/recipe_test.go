package recipe

import (
	"bytes"
	stdgzip "compress/gzip"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"math/rand/v2"
	"testing"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/klauspost/pgzip"
)

// text is something like a layer: partly repeated, partly random, always the same.
func text(n int) []byte {
	rnd := rand.New(rand.NewPCG(1, 2))
	var buf bytes.Buffer
	words := make([]string, 3000)
	for i := range words {
		words[i] = fmt.Sprintf("%x", rnd.Uint64()>>uint(rnd.IntN(60)))
	}
	for buf.Len() < n {
		if rnd.IntN(50) == 0 {
			for range 200 {
				buf.WriteByte(byte(rnd.Uint32()))
			}
		}
		buf.WriteString(words[rnd.IntN(len(words))])
	}
	return buf.Bytes()[:n]
}

type maker struct {
	name string
	make func(w io.Writer) (io.WriteCloser, error)
}

// makers are the compressors as other programs use them.
func makers() (all []maker) {
	for _, level := range []int{-1, 1, 9} {
		all = append(all,
			maker{fmt.Sprint("go ", level), func(w io.Writer) (io.WriteCloser, error) { return stdgzip.NewWriterLevel(w, level) }},
			maker{fmt.Sprint("klauspost ", level), func(w io.Writer) (io.WriteCloser, error) { return gzip.NewWriterLevel(w, level) }},
			maker{fmt.Sprint("pgzip ", level), func(w io.Writer) (io.WriteCloser, error) {
				z, err := pgzip.NewWriterLevel(w, level)
				if err == nil {
					z.Name, z.Comment, z.Extra = "layer.tar", "named", []byte("extra")
				}
				return z, err
			}})
	}
	for level := zstd.SpeedFastest; level <= zstd.SpeedBestCompression; level++ {
		all = append(all, maker{fmt.Sprint("zstd ", level), func(w io.Writer) (io.WriteCloser, error) {
			return zstd.NewWriter(w, zstd.WithEncoderLevel(level))
		}})
	}
	return append(all, maker{"zstd without check", func(w io.Writer) (io.WriteCloser, error) { return zstd.NewWriter(w, zstd.WithEncoderCRC(false)) }})
}

func compress(t testing.TB, m maker, data []byte, step int) []byte {
	t.Helper()
	var buf bytes.Buffer
	w, err := m.make(&buf)
	if err != nil {
		t.Fatal(err)
	}
	for rest := data; len(rest) > 0; rest = rest[min(step, len(rest)):] {
		if _, err := w.Write(rest[:min(step, len(rest))]); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func again(t testing.TB, rec Recipe, data []byte, parallel int) []byte {
	t.Helper()
	return compress(t, maker{rec.Algo, func(w io.Writer) (io.WriteCloser, error) { return rec.NewWriter(w, parallel) }}, data, 32<<10)
}

// What each compressor made is found out and made again, whatever the size of its writes, on one processor and on several.
func TestFindAndAgain(t *testing.T) {
	for _, size := range []int{1, blockSize, blockSize + 77777} {
		data := text(size)
		for _, m := range makers() {
			blob := compress(t, m, data, 100_003)
			head := blob[:min(len(blob), Head)]
			found, err := Find(context.Background(), head, len(head) == len(blob), bytes.NewReader(data))
			if err != nil || len(found) == 0 {
				t.Errorf("%s, %d bytes: %v %v", m.name, size, found, err)
				continue
			}
			good := false
			for _, rec := range found {
				for _, parallel := range []int{1, 4} {
					if bytes.Equal(again(t, rec, data, parallel), blob) {
						good = true
					} else if parallel == 4 && good {
						t.Errorf("%s, %d bytes: %s gives other bytes with several processors", m.name, size, rec.Algo)
					}
				}
				if good {
					break
				}
			}
			if !good {
				t.Errorf("%s, %d bytes: none of %v gives it again", m.name, size, found)
			}
		}
	}
}

// pinned are the bytes of each compressor, by their digest. When this test fails after an update of Go or of a library, blobs that were deleted because they could be made
// again no longer can: keep the old compressor under its name and add the new one under another.
var pinned = map[string]string{
	"go 1": "48825caf3a9527a2", "go 2": "0fb75432603f084a", "go 3": "24e423d77b11f0f6", "go 4": "da4b49e08d46ca4e", "go 5": "19df124c71703785", "go 6": "19df124c71703785", "go 7": "640cff36d8fdbba7", "go 8": "640cff36d8fdbba7", "go 9": "640cff36d8fdbba7",
	"klauspost 1": "76f081f8a087f52c", "klauspost 2": "b0e307e87903dc91", "klauspost 3": "b729cdf8e805a791", "klauspost 4": "7b3aa2558eff8b70", "klauspost 5": "e067eeb624419abe", "klauspost 6": "bbb57fce4e09bf99", "klauspost 7": "a489ffdac25e36da", "klauspost 8": "9efe0437a0c5cff4", "klauspost 9": "cbb60ac18fd74ea5",
	"blocks 1": "c24d0d3a8a6143b1", "blocks 2": "9bf36dbca9f17c6b", "blocks 3": "565aa27e8b1ea69e", "blocks 4": "9f6825cd7685dfb9", "blocks 5": "bd708080d62d8b18", "blocks 6": "699d008104dd95d6", "blocks 7": "46c143838aba8581", "blocks 8": "4dcfef7653606f6a", "blocks 9": "5ab5b8fa56747b05",
	"zstd 1": "6e38dfa180ca8408", "zstd 2": "af9fe7c5f5b152f2", "zstd 3": "ee95d5b84983fb23", "zstd 4": "39885e008cbca134",
}

func TestPinned(t *testing.T) {
	data := text(3*blockSize + 4321)
	for _, algo := range []string{Go, Klauspost, Blocks, Zstd} {
		for _, level := range []int{1, 2, 3, 4, 5, 6, 7, 8, 9} {
			if algo == Zstd && level > int(zstd.SpeedBestCompression) {
				continue
			}
			rec := Recipe{Algo: algo, Level: level, Header: plainHeader}
			if algo == Blocks {
				rec.Block = blockSize
			}
			name := fmt.Sprint(algo, " ", level)
			if got := fmt.Sprintf("%x", sha256.Sum256(again(t, rec, data, 2)))[:16]; got != pinned[name] {
				t.Errorf("%q: %q,", name, got)
			}
		}
	}
}

func FuzzFind(f *testing.F) {
	data := text(5000)
	for _, m := range makers() {
		f.Add(compress(f, m, data, 1000), data, true)
	}
	f.Add([]byte{0x1f, 0x8b, 8, 0x1f, 0, 0, 0, 0, 0, 0, 0xff, 0xff}, []byte{}, false)
	f.Fuzz(func(t *testing.T, head, plain []byte, whole bool) {
		found, err := Find(context.Background(), head, whole, bytes.NewReader(plain))
		if err != nil {
			t.Fatal(err)
		}
		for _, rec := range found {
			blob := again(t, rec, plain, 1)
			if whole && !bytes.Equal(blob, head) {
				t.Fatalf("%v does not give what it was found by", rec)
			}
			if n := min(len(blob), len(head)); !bytes.Equal(blob[:n], head[:n]) {
				t.Fatalf("%v does not begin as what it was found by", rec)
			}
		}
	})
}

func BenchmarkCompress(b *testing.B) {
	data := text(8 << 20)
	for _, name := range []string{"gzip", "zstd"} {
		rec, err := For(name)
		if err != nil {
			b.Fatal(err)
		}
		b.Run(name, func(b *testing.B) {
			b.SetBytes(int64(len(data)))
			for b.Loop() {
				again(b, rec, data, 2)
			}
		})
	}
}
