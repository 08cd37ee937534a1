package servertest

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"testing"
	"testing/iotest"
	"time"

	"github.com/opencontainers/go-digest"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/registry/server"
)

func testUploadPieces(t *testing.T, _ DriverTest, d server.Driver) {
	ctx := t.Context()
	data := random(t, 6<<20)
	u, err := d.Upload(ctx, "u", server.UploadOptions{Create: true})
	if err != nil {
		t.Fatal(err)
	}
	for start, i := 0, 0; start < len(data); i++ {
		end := min(start+1+i*123457, len(data))
		if err := u.Append(ctx, iotest.HalfReader(bytes.NewReader(data[start:end]))); err != nil {
			t.Fatal(err)
		}
		if u.Size() != int64(end) {
			t.Fatalf("size is %d after %d", u.Size(), end)
		}
		start = end
	}
	dgst := digest.FromBytes(data)
	if _, err := u.Commit(ctx, dgst); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(read(t, d, dgst, 0, -1), data) {
		t.Error("pieces came back different")
	}
}

// testUploadReopened is a registry that is killed between chunks: another driver on the same place goes on.
func testUploadReopened(t *testing.T, dt DriverTest, d server.Driver) {
	ctx := t.Context()
	data := random(t, 12<<20)
	dgst := digest.SHA512.FromBytes(data)
	opts := server.UploadOptions{Algorithm: digest.SHA512}
	for start, i := 0, 0; start < len(data); i++ {
		o := opts
		o.Create = i == 0
		u, err := d.Upload(ctx, "u", o)
		if err != nil {
			t.Fatal(err)
		}
		if u.Size() != int64(start) {
			t.Fatalf("reopened at %d, want %d", u.Size(), start)
		}
		end := min(start+5<<20+3, len(data))
		if err := u.Append(ctx, bytes.NewReader(data[start:end])); err != nil {
			t.Fatal(err)
		}
		if err := u.Close(); err != nil {
			t.Fatal(err)
		}
		start = end
		if i%2 == 0 {
			next := dt.Open(t)
			t.Cleanup(func() {
				if err := next.Close(); err != nil {
					t.Error(err)
				}
			})
			d = next
		}
	}
	var seen []server.UploadInfo
	if err := d.WalkUploads(ctx, func(u server.UploadInfo) error { seen = append(seen, u); return nil }); err != nil {
		t.Fatal(err)
	}
	if len(seen) != 1 || seen[0].ID != "u" || seen[0].Size != int64(len(data)) || time.Since(seen[0].Changed) > time.Minute+dt.Clock {
		t.Errorf("uploads under way are %+v", seen)
	}
	u, err := d.Upload(ctx, "u", opts)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := u.Commit(ctx, dgst); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(read(t, d, dgst, 0, -1), data) {
		t.Error("it came back different")
	}
}

func testUploadKeepsWhatCame(t *testing.T, _ DriverTest, d server.Driver) {
	ctx := t.Context()
	data := random(t, 7<<20)
	u, err := d.Upload(ctx, "u", server.UploadOptions{Create: true})
	if err != nil {
		t.Fatal(err)
	}
	broken := errors.New("line is cut")
	err = u.Append(ctx, io.MultiReader(bytes.NewReader(data[:6<<20]), iotest.ErrReader(broken)))
	if !errors.Is(err, broken) {
		t.Errorf("append gave %v", err)
	}
	have := u.Size()
	if have < 0 || have > 6<<20 {
		t.Fatalf("size is %d after 6 MiB came", have)
	}
	if err := u.Append(ctx, bytes.NewReader(data[have:])); err != nil {
		t.Fatal(err)
	}
	if _, err := u.Commit(ctx, digest.FromBytes(data)); err != nil {
		t.Fatal(err)
	}
}

func testUploadExclusive(t *testing.T, dt DriverTest, d server.Driver) {
	ctx := t.Context()
	_, err := d.Upload(ctx, "u", server.UploadOptions{})
	wantKind(t, err, errs.NotFound)
	u, err := d.Upload(ctx, "u", server.UploadOptions{Create: true})
	if err != nil {
		t.Fatal(err)
	}
	_, err = d.Upload(ctx, "u", server.UploadOptions{})
	wantKind(t, err, errs.Conflict)
	if err := u.Close(); err != nil {
		t.Fatal(err)
	}
	_, err = d.Upload(ctx, "u", server.UploadOptions{Create: true})
	wantKind(t, err, errs.Conflict)
	u, err = d.Upload(ctx, "u", server.UploadOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if err := u.Abort(ctx); err != nil {
		t.Fatal(err)
	}
}

func testUploadAbort(t *testing.T, _ DriverTest, d server.Driver) {
	ctx := t.Context()
	u, err := d.Upload(ctx, "u", server.UploadOptions{Create: true})
	if err != nil {
		t.Fatal(err)
	}
	if err := u.Append(ctx, bytes.NewReader(random(t, 6<<20))); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(u.Abort(ctx), u.Close()); err != nil {
		t.Fatal(err)
	}
	_, err = d.Upload(ctx, "u", server.UploadOptions{})
	wantKind(t, err, errs.NotFound)
	if err := d.WalkUploads(ctx, func(u server.UploadInfo) error { return fmt.Errorf("there is %+v", u) }); err != nil {
		t.Error(err)
	}
}
