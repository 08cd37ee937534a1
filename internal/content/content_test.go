package content

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"corten.dev/corten/internal/errs"
)

var ctx = context.Background()

func open(t *testing.T, root string) *Store {
	t.Helper()
	s, err := New(Options{Root: root})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func empty(t *testing.T, s *Store) {
	t.Helper()
	for _, dir := range []string{s.blobs(), s.ingests()} {
		if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
			t.Errorf("%s: %v %v", dir, left, err)
		}
	}
}

func TestPut(t *testing.T) {
	s := open(t, t.TempDir())
	dgst := digest.FromString("hello")
	for _, c := range []struct {
		want digest.Digest
		size int64
		body string
	}{{digest.FromString("other"), -1, "hello"}, {dgst, 4, "hello"}, {dgst, 6, "hello"}, {"sha256:../../etc/passwd", -1, "hello"}, {"md5:5d41402abc4b2a76b9719d911017c592", -1, "hello"}} {
		if _, err := s.Put(ctx, c.want, c.size, strings.NewReader(c.body)); !errors.Is(err, errs.Invalid) {
			t.Errorf("%+v: %v", c, err)
		}
	}
	if _, err := s.Put(ctx, dgst, -1, io.MultiReader(strings.NewReader("hel"), errReader{})); !errors.Is(err, errBroken) {
		t.Error(err)
	}
	empty(t, s)
	for range 2 {
		if info, err := s.Put(ctx, dgst, 5, strings.NewReader("hello")); err != nil || info.Digest != dgst || info.Size != 5 {
			t.Fatal(info, err)
		}
	}
	if data, err := s.Read(ctx, dgst, 5); err != nil || string(data) != "hello" {
		t.Error(data, err)
	}
	if _, err := s.Read(ctx, dgst, 4); !errors.Is(err, errs.Invalid) {
		t.Error(err)
	}
	n := 0
	if err := s.List(ctx, func(info Info) error { n++; return nil }); err != nil || n != 1 {
		t.Error(n, err)
	}
	if gone, err := s.Collect(ctx, time.Now().Add(-time.Hour), func(digest.Digest) bool { return false }); err != nil || len(gone) != 0 {
		t.Error(gone, err)
	}
	if gone, err := s.Collect(ctx, time.Now().Add(time.Hour), func(d digest.Digest) bool { return d != dgst }); err != nil || len(gone) != 1 {
		t.Error(gone, err)
	}
	if _, err := s.Stat(ctx, dgst); !errors.Is(err, errs.NotFound) {
		t.Error(err)
	}
	empty(t, s)
}

var errBroken = errors.New("broken")

type errReader struct{}

func (errReader) Read([]byte) (int, error) { return 0, errBroken }

func TestResume(t *testing.T) {
	root := t.TempDir()
	s := open(t, root)
	in, err := s.Begin("https://reg.io/blob")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Begin("https://reg.io/blob"); !errors.Is(err, errs.Conflict) {
		t.Error(err)
	}
	if _, err := in.Write([]byte("hel")); err != nil {
		t.Fatal(err)
	}
	// The process dies here: nothing is closed.
	s = open(t, root)
	in, err = s.Begin("https://reg.io/blob")
	if err != nil || in.Size() != 3 {
		t.Fatal(in, err)
	}
	if _, err := in.Write([]byte("lo")); err != nil {
		t.Fatal(err)
	}
	if _, err := in.Commit(digest.FromString("other"), -1); !errors.Is(err, errs.Invalid) {
		t.Error(err)
	}
	if _, err := in.Commit(digest.FromString("hello"), 5); err != nil {
		t.Fatal(err)
	}
	f, info, err := s.Open(ctx, digest.FromString("hello"))
	if err != nil || info.Size != 5 {
		t.Fatal(info, err)
	}
	defer f.Close()
	var buf bytes.Buffer
	if _, err := io.Copy(&buf, f); err != nil || buf.String() != "hello" {
		t.Error(buf.String(), err)
	}
	in, err = s.Begin("x")
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(in.Abort(), in.Close(), s.Delete(ctx, digest.FromString("hello")), s.Delete(ctx, digest.FromString("hello"))); err != nil {
		t.Error(err)
	}
	empty(t, s)
}

// A blob that changed on disk is told, not handed out.
func TestDamaged(t *testing.T) {
	s := open(t, t.TempDir())
	info, err := s.Put(ctx, "", -1, strings.NewReader("hello"))
	if err != nil {
		t.Fatal(err)
	}
	path, err := s.path(info.Digest)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte("hellO"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Read(ctx, info.Digest, 10); err == nil {
		t.Error("read")
	}
}

// An engine that was killed while it stored a small blob left half of it for a week, although nobody can go on with such a one.
func TestKilledPut(t *testing.T) {
	root := t.TempDir()
	s := open(t, root)
	if err := os.WriteFile(s.ingests()+"/put-123", []byte("ha"), 0o600); err != nil {
		t.Fatal(err)
	}
	empty(t, open(t, root))
}
