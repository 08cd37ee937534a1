package recipe

import (
	"bytes"
	"context"
	"errors"
	"io"

	"github.com/klauspost/compress/zstd"
)

// Head is how much of a blob Find looks at.
const Head = 1 << 20

// plainHead bounds how much is compressed for a guess: what gives a megabyte of blob, and at least two of pgzip's blocks.
const plainHead = 6 << 20

// Find guesses how the blob that begins with head was made of the plain bytes. whole tells that head is all of the blob. The likeliest recipe is first; none means that
// nothing here compresses like that.
func Find(ctx context.Context, head []byte, whole bool, plain io.Reader) ([]Recipe, error) {
	var tries []*try
	for _, rec := range candidates(head) {
		t := &try{rec: rec, head: head, whole: whole}
		w, err := rec.NewWriter(t, 1)
		if err != nil {
			return nil, err
		}
		t.w = w
		tries = append(tries, t)
	}
	left, ended, err := race(ctx, tries, plain)
	if err != nil {
		return nil, err
	}
	var found []Recipe
	for _, t := range left {
		if ended {
			err := t.w.Close()
			if err == nil && whole && t.at != len(head) {
				err = errDiffers
			}
			if err != nil {
				continue
			}
		}
		if t.at > 0 {
			found = append(found, t.rec)
		}
	}
	return found, nil
}

// race compresses piece by piece and drops who gives other bytes. Nearly all are out after the first piece.
func race(ctx context.Context, tries []*try, plain io.Reader) (left []*try, ended bool, err error) {
	buf := make([]byte, 64<<10)
	for n := 0; n < plainHead && len(tries) > 0 && !ended; {
		if err := ctx.Err(); err != nil {
			return nil, false, err
		}
		got, err := io.ReadFull(plain, buf)
		ended = err == io.EOF || err == io.ErrUnexpectedEOF
		if err != nil && !ended {
			return nil, false, err
		}
		n += got
		left = tries[:0]
		for _, t := range tries {
			if _, err := t.w.Write(buf[:got]); err == nil {
				left = append(left, t)
			} else if !errors.Is(err, errDiffers) {
				return nil, false, err
			}
		}
		tries = left
	}
	return tries, ended, nil
}

var errDiffers = errors.New("other bytes")

// try compares what a compressor writes with the blob.
type try struct {
	rec   Recipe
	w     io.WriteCloser
	head  []byte
	whole bool
	at    int
}

func (t *try) Write(p []byte) (int, error) {
	rest := t.head[min(t.at, len(t.head)):]
	n := min(len(p), len(rest))
	if !bytes.Equal(p[:n], rest[:n]) || t.whole && n < len(p) {
		return 0, errDiffers
	}
	t.at += len(p)
	return len(p), nil
}

// candidates lists what to try, the likeliest first.
func candidates(head []byte) (list []Recipe) {
	if bytes.HasPrefix(head, []byte{0x28, 0xb5, 0x2f, 0xfd}) {
		if len(head) < 5 {
			return nil
		}
		noCheck := head[4]&4 == 0
		for level := zstd.SpeedFastest; level <= zstd.SpeedBestCompression; level++ {
			list = append(list, Recipe{Algo: Zstd, Level: int(level), NoCheck: noCheck})
		}
		return list
	}
	header := gzipHeader(head)
	if header == nil {
		return nil
	}
	header = bytes.Clone(header)
	// The default level first, then the fastest and the best, then the rest.
	for _, level := range []int{6, 1, 9, 5, 4, 3, 2, 7, 8} {
		list = append(list, Recipe{Algo: Go, Level: level, Header: header})
	}
	for _, level := range []int{6, 5, 1, 9, 4, 3, 2, 7, 8} {
		list = append(list, Recipe{Algo: Blocks, Level: level, Block: blockSize, Header: header},
			Recipe{Algo: Klauspost, Level: level, Header: header})
	}
	for _, level := range []int{-2, 0} { // Huffman only, stored
		list = append(list, Recipe{Algo: Go, Level: level, Header: header}, Recipe{Algo: Blocks, Level: level, Block: blockSize, Header: header},
			Recipe{Algo: Klauspost, Level: level, Header: header})
	}
	return list
}
