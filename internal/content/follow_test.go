package content

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"corten.dev/corten/internal/errs"
)

func noise(n int) []byte {
	b := make([]byte, n)
	rnd := rand.NewChaCha8([32]byte{1})
	_, _ = rnd.Read(b)
	return b
}

// Several read while one writes, whatever came before they began; they end with the writer.
func TestFollow(t *testing.T) {
	root := t.TempDir()
	s := open(t, root)
	data := noise(5 << 20)
	in, err := s.Begin("x")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := in.Write(data[:1<<20]); err != nil {
		t.Fatal(err)
	}
	// The process dies; the next one goes on. What was there is read at once.
	s = open(t, root)
	if in, err = s.Begin("x"); err != nil || in.Size() != 1<<20 {
		t.Fatal(in, err)
	}
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(func() {
			r := in.Follow(ctx)
			defer r.Close()
			got, err := io.ReadAll(r)
			if err != nil || !bytes.Equal(got, data) {
				t.Error(len(got), err)
			}
		})
	}
	for rest := data[1<<20:]; len(rest) > 0; {
		n := min(len(rest), 1+rand.IntN(100_000))
		if _, err := in.Write(rest[:n]); err != nil {
			t.Fatal(err)
		}
		rest = rest[n:]
	}
	if _, err := in.Commit(digest.FromString("other"), -1); !errors.Is(err, errs.Invalid) {
		t.Error(err)
	}
	if _, err := in.Commit(digest.FromBytes(data), int64(len(data))); err != nil {
		t.Fatal(err)
	}
	wg.Wait()
	if u, err := s.Usage(); err != nil || u.Blobs != 1 || u.BlobBytes != 5<<20 || u.Ingests != 0 {
		t.Error(u, err)
	}
	late := in.Follow(ctx)
	defer late.Close()
	if got, err := io.ReadAll(late); err != nil || !bytes.Equal(got, data) {
		t.Errorf("after the end: %d bytes, %v", len(got), err)
	}
}

// A writer that goes, fails or begins again takes its readers with it, and says why.
func TestFollowEnds(t *testing.T) {
	s := open(t, t.TempDir())
	broken := errors.New("broken")
	for name, c := range map[string]struct {
		end  func(in *Ingest) error
		want error
	}{
		"close":   {(*Ingest).Close, errs.Unavailable},
		"abort":   {(*Ingest).Abort, errs.Unavailable},
		"restart": {(*Ingest).Restart, errs.Unavailable},
		"fail":    {func(in *Ingest) error { in.Fail(broken); return nil }, broken},
		"finish":  {func(in *Ingest) error { in.Finish(); return nil }, nil},
	} {
		in, err := s.Begin(name)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := in.Write([]byte("some")); err != nil {
			t.Fatal(err)
		}
		r := in.Follow(ctx)
		got := make(chan error, 1)
		go func() {
			_, err := io.ReadAll(r)
			got <- err
		}()
		time.Sleep(5 * time.Millisecond)
		if err := c.end(in); err != nil {
			t.Fatal(err)
		}
		if err := <-got; !errors.Is(err, c.want) {
			t.Errorf("%s: %v", name, err)
		}
		if err := errors.Join(r.Close(), in.Abort()); err != nil {
			t.Error(err)
		}
	}
	in, err := s.Begin("slow")
	if err != nil {
		t.Fatal(err)
	}
	defer in.Abort()
	r := in.Follow(ctx)
	time.AfterFunc(5*time.Millisecond, func() { r.Close() })
	if _, err := io.ReadAll(r); !errors.Is(err, os.ErrClosed) {
		t.Error(err)
	}
	if err := r.Close(); err != nil {
		t.Error(err)
	}
	short, cancel := context.WithTimeout(ctx, 5*time.Millisecond)
	defer cancel()
	if _, err := io.ReadAll(in.Follow(short)); !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
}

// The machine went down: the file has its length, but not its bytes. That is found out, and the download begins again.
func TestLostBytes(t *testing.T) {
	s := open(t, t.TempDir())
	data := noise(3 << 20)
	in, err := s.Begin("x")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := in.Write(data[:2<<20]); err != nil {
		t.Fatal(err)
	}
	name := in.f.Name()
	if err := in.Close(); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.Truncate(name, 1<<20), os.Truncate(name, 2<<20)); err != nil {
		t.Fatal(err)
	}
	if in, err = s.Begin("x"); err != nil {
		t.Fatal(err)
	}
	if _, err := in.ReadFrom(bytes.NewReader(data[2<<20:])); err != nil {
		t.Fatal(err)
	}
	if _, err := in.Commit(digest.FromBytes(data), 3<<20); !errors.Is(err, errs.Invalid) {
		t.Fatal(err)
	}
	if err := in.Restart(); err != nil {
		t.Fatal(err)
	}
	if _, err := in.ReadFrom(bytes.NewReader(data)); err != nil {
		t.Fatal(err)
	}
	if _, err := in.Commit(digest.FromBytes(data), 3<<20); err != nil {
		t.Fatal(err)
	}
	empty := noise(0)
	if in, err = s.Begin("y"); err != nil {
		t.Fatal(err)
	}
	if _, err := in.Commit(digest.FromBytes(empty), 0); err != nil {
		t.Fatal(err)
	}
}
