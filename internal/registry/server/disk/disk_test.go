package disk_test

import (
	"bytes"
	"errors"
	"testing"

	"github.com/opencontainers/go-digest"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/registry/server"
	"corten.dev/corten/internal/registry/server/disk"
	"corten.dev/corten/internal/registry/server/servertest"
)

func TestDriver(t *testing.T) {
	servertest.Driver(t, func(t *testing.T) servertest.DriverTest {
		root := t.TempDir()
		return servertest.DriverTest{Open: func(t *testing.T) server.Driver {
			d, err := disk.New(disk.Options{Root: root})
			if err != nil {
				t.Fatal(err)
			}
			return d
		}}
	})
}

// Two processes on one folder are two drivers that know nothing of each other. An upload that one has open is closed to the other; one that was committed
// in between must not be found again, because its file is a blob now.
func TestUploadIsOfOneProcess(t *testing.T) {
	root := t.TempDir()
	var ds [2]*disk.Driver
	for i := range ds {
		d, err := disk.New(disk.Options{Root: root})
		if err != nil {
			t.Fatal(err)
		}
		defer d.Close()
		ds[i] = d
	}
	ctx := t.Context()
	data := []byte("bytes")
	for range 50 {
		u, err := ds[0].Upload(ctx, "u", server.UploadOptions{Create: true})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := ds[1].Upload(ctx, "u", server.UploadOptions{}); !errors.Is(err, errs.Conflict) {
			t.Fatalf("the other process: %v", err)
		}
		if err := u.Append(ctx, bytes.NewReader(data)); err != nil {
			t.Fatal(err)
		}
		done := make(chan struct{})
		go func() { // tries until the first has let go
			defer close(done)
			for {
				other, err := ds[1].Upload(ctx, "u", server.UploadOptions{})
				if errors.Is(err, errs.Conflict) {
					continue
				}
				if err == nil {
					err = errors.Join(other.Append(ctx, bytes.NewReader([]byte("damage"))), other.Close())
				}
				if !errors.Is(err, errs.NotFound) {
					t.Errorf("the other process: %v", err)
				}
				return
			}
		}()
		info, err := u.Commit(ctx, digest.FromBytes(data))
		if err != nil {
			t.Fatal(err)
		}
		<-done
		if st, err := ds[0].Stat(ctx, info.Digest); err != nil || st.Size != int64(len(data)) {
			t.Fatalf("the blob is %+v, %v", st, err)
		}
	}
}
