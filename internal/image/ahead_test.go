package image

import (
	"context"
	"io"
	"log/slog"
	"strings"
	"testing"
)

type buggy struct{ n int }

func (b *buggy) Read(p []byte) (int, error) {
	if b.n++; b.n > 3 {
		panic("oh")
	}
	return copy(p, "some"), nil
}

// A decompressor that meets its bug ends this layer with an error, in whichever goroutine it runs.
func TestAheadMeetsBug(t *testing.T) {
	a := readAhead(&buggy{}, slog.New(slog.DiscardHandler))
	defer a.stop()
	data, err := io.ReadAll(testReader(func(p []byte) (int, error) { return a.Read(context.Background(), p) }))
	if err == nil || !strings.Contains(err.Error(), "bug of the engine") || string(data) != "somesomesome" {
		t.Errorf("%q %v", data, err)
	}
}

type testReader func(p []byte) (int, error)

func (f testReader) Read(p []byte) (int, error) { return f(p) }
