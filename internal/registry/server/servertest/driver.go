// Package servertest judges registries: Driver for storage drivers, Conformance for anything that speaks the distribution API at a URL, Load for how
// fast it does.
//
// It owns the tests of the specification's text, one for each MUST and SHOULD, in the order of its four workflows (pull, push, content discovery,
// content management). It promises to need nothing but the contract: a driver from a function, a registry from its address.
package servertest

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/registry/server"
)

// DriverTest is a driver under test.
type DriverTest struct {
	// Open opens the same place each time it is called within one test.
	Open func(t *testing.T) server.Driver
	// Clock is how much the times of the driver may differ from ours.
	Clock time.Duration
}

// Driver runs the contract's suite, its tests side by side. fresh is called once for each test, one after the other.
func Driver(t *testing.T, fresh func(t *testing.T) DriverTest) {
	tests := []struct {
		name string
		run  func(t *testing.T, dt DriverTest, d server.Driver)
	}{
		{"Blob", testBlob},
		{"BlobRanges", testBlobRanges},
		{"BlobMissing", testBlobMissing},
		{"Algorithms", testAlgorithms},
		{"WrongDigest", testWrongDigest},
		{"SameBlobTwice", testSameBlobTwice},
		{"ConditionalDelete", testConditionalDelete},
		{"Walk", testWalk},
		{"UploadPieces", testUploadPieces},
		{"UploadReopened", testUploadReopened},
		{"UploadKeepsWhatCame", testUploadKeepsWhatCame},
		{"UploadExclusive", testUploadExclusive},
		{"UploadAbort", testUploadAbort},
		{"Values", testValues},
		{"ValueConditions", testValueConditions},
		{"List", testList},
		{"BadNames", testBadNames},
		{"Concurrent", testConcurrent},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			dt := fresh(t)
			t.Parallel()
			d := dt.Open(t)
			t.Cleanup(func() {
				if err := d.Close(); err != nil {
					t.Errorf("close: %v", err)
				}
			})
			test.run(t, dt, d)
		})
	}
}

func random(t testing.TB, n int) []byte {
	t.Helper()
	b := make([]byte, n)
	if _, err := rand.Read(b); err != nil {
		t.Fatal(err)
	}
	return b
}

func upload(t *testing.T, d server.Driver, id string, data []byte) (digest.Digest, server.BlobInfo) {
	t.Helper()
	ctx := t.Context()
	u, err := d.Upload(ctx, id, server.UploadOptions{Create: true})
	if err != nil {
		t.Fatal(err)
	}
	if err := u.Append(ctx, bytes.NewReader(data)); err != nil {
		t.Fatal(err)
	}
	dgst := digest.FromBytes(data)
	info, err := u.Commit(ctx, dgst)
	if err != nil {
		t.Fatal(err)
	}
	if err := u.Close(); err != nil {
		t.Fatal(err)
	}
	return dgst, info
}

func read(t *testing.T, d server.Driver, dgst digest.Digest, offset, length int64) []byte {
	t.Helper()
	rc, err := d.Open(t.Context(), dgst, offset, length)
	if err != nil {
		t.Fatal(err)
	}
	data, err := io.ReadAll(rc)
	if err := errors.Join(err, rc.Close()); err != nil {
		t.Fatal(err)
	}
	return data
}

func wantKind(t *testing.T, err, kind error) {
	t.Helper()
	if !errors.Is(err, kind) {
		t.Errorf("error is %v, want kind %q", err, kind)
	}
}

func testBlob(t *testing.T, dt DriverTest, d server.Driver) {
	for _, size := range []int{0, 1, 4096, 1 << 20, 9<<20 + 7} {
		data := random(t, size)
		before := time.Now().Add(-dt.Clock - time.Second)
		dgst, info := upload(t, d, fmt.Sprintf("up-%d", size), data)
		if info.Digest != dgst || info.Size != int64(size) || info.Stored.Before(before) {
			t.Errorf("commit of %d bytes says %+v", size, info)
		}
		if !bytes.Equal(read(t, d, dgst, 0, -1), data) {
			t.Errorf("%d bytes came back different", size)
		}
		st, err := d.Stat(t.Context(), dgst)
		if err != nil || st.Size != int64(size) || st.Digest != dgst || st.Stored.Before(before) {
			t.Errorf("stat says %+v, %v", st, err)
		}
		if _, err := d.Upload(t.Context(), fmt.Sprintf("up-%d", size), server.UploadOptions{}); !errors.Is(err, errs.NotFound) {
			t.Errorf("a committed upload can be opened: %v", err)
		}
	}
}

func testBlobRanges(t *testing.T, _ DriverTest, d server.Driver) {
	data := random(t, 300000)
	dgst, _ := upload(t, d, "u", data)
	for _, r := range [][2]int64{{0, 1}, {0, 300000}, {299999, 1}, {100, 200000}, {150000, -1}} {
		want := data[r[0]:]
		if r[1] >= 0 {
			want = want[:r[1]]
		}
		if !bytes.Equal(read(t, d, dgst, r[0], r[1]), want) {
			t.Errorf("range %v came back different", r)
		}
		rc, err := d.Open(t.Context(), dgst, r[0], r[1])
		if err != nil {
			t.Fatal(err)
		}
		var buf bytes.Buffer
		_, err = io.Copy(&buf, rc) // uses WriteTo, if there is one
		if err := errors.Join(err, rc.Close()); err != nil || !bytes.Equal(buf.Bytes(), want) {
			t.Errorf("range %v was copied different: %v", r, err)
		}
	}
}

func testBlobMissing(t *testing.T, _ DriverTest, d server.Driver) {
	ctx := t.Context()
	dgst := digest.FromString("nobody has this")
	_, err := d.Stat(ctx, dgst)
	wantKind(t, err, errs.NotFound)
	_, err = d.Open(ctx, dgst, 0, -1)
	wantKind(t, err, errs.NotFound)
	_, err = d.Touch(ctx, dgst)
	wantKind(t, err, errs.NotFound)
	if err := d.DeleteBlob(ctx, dgst, time.Now().Add(time.Hour)); err != nil {
		t.Errorf("deleting what is not there: %v", err)
	}
}

func testAlgorithms(t *testing.T, _ DriverTest, d server.Driver) {
	ctx := t.Context()
	data := random(t, 70000)
	for _, hint := range []digest.Algorithm{"", digest.SHA256, digest.SHA384, digest.SHA512} {
		for _, alg := range []digest.Algorithm{digest.SHA256, digest.SHA384, digest.SHA512} {
			u, err := d.Upload(ctx, "u", server.UploadOptions{Create: true, Algorithm: hint})
			if err != nil {
				t.Fatal(err)
			}
			if err := u.Append(ctx, bytes.NewReader(data)); err != nil {
				t.Fatal(err)
			}
			dgst := alg.FromBytes(data)
			if _, err := u.Commit(ctx, dgst); err != nil {
				t.Fatalf("hint %q, commit as %s: %v", hint, alg, err)
			}
			if !bytes.Equal(read(t, d, dgst, 0, -1), data) {
				t.Errorf("%s came back different", dgst)
			}
		}
	}
}

func testWrongDigest(t *testing.T, _ DriverTest, d server.Driver) {
	ctx := t.Context()
	for _, want := range []digest.Digest{digest.FromString("something else"), "sha256:zz", "md5:d41d8cd98f00b204e9800998ecf8427e", "../../x"} {
		u, err := d.Upload(ctx, "u", server.UploadOptions{Create: true})
		if err != nil {
			t.Fatal(err)
		}
		if err := u.Append(ctx, strings.NewReader("bytes")); err != nil {
			t.Fatal(err)
		}
		_, err = u.Commit(ctx, want)
		wantKind(t, err, errs.Invalid)
		if err := u.Close(); err != nil {
			t.Errorf("close after a failed commit: %v", err)
		}
		_, err = d.Upload(ctx, "u", server.UploadOptions{})
		wantKind(t, err, errs.NotFound)
	}
	if err := d.WalkBlobs(ctx, func(b server.BlobInfo) error { return fmt.Errorf("there is %s", b.Digest) }); err != nil {
		t.Error(err)
	}
}

func testSameBlobTwice(t *testing.T, _ DriverTest, d server.Driver) {
	ctx := t.Context()
	data := random(t, 5000)
	dgst, first := upload(t, d, "a", data)
	time.Sleep(1100 * time.Millisecond) // some stores count whole seconds
	_, second := upload(t, d, "b", data)
	if !second.Stored.After(first.Stored) {
		t.Errorf("storing the same again did not move its time: %s, %s", first.Stored, second.Stored)
	}
	st, err := d.Stat(ctx, dgst)
	if err != nil || !st.Stored.After(first.Stored) {
		t.Errorf("stat says %+v, %v", st, err)
	}
	time.Sleep(1100 * time.Millisecond)
	touched, err := d.Touch(ctx, dgst)
	if err != nil || !touched.Stored.After(second.Stored) || touched.Size != 5000 {
		t.Errorf("touch says %+v, %v", touched, err)
	}
	if !bytes.Equal(read(t, d, dgst, 0, -1), data) {
		t.Error("touching changed it")
	}
}

func testConditionalDelete(t *testing.T, dt DriverTest, d server.Driver) {
	ctx := t.Context()
	dgst, info := upload(t, d, "a", []byte("x"))
	err := d.DeleteBlob(ctx, dgst, info.Stored.Add(-time.Minute-dt.Clock))
	wantKind(t, err, errs.Conflict)
	if _, err := d.Stat(ctx, dgst); err != nil {
		t.Errorf("a blob that is too new went: %v", err)
	}
	if err := d.DeleteBlob(ctx, dgst, time.Now().Add(time.Minute+dt.Clock)); err != nil {
		t.Error(err)
	}
	_, err = d.Stat(ctx, dgst)
	wantKind(t, err, errs.NotFound)
}

func testWalk(t *testing.T, _ DriverTest, d server.Driver) {
	ctx := t.Context()
	want := map[digest.Digest]int64{}
	for i := range 20 {
		data := random(t, i+1)
		dgst, _ := upload(t, d, fmt.Sprint("u", i), data)
		want[dgst] = int64(len(data))
	}
	err := d.WalkBlobs(ctx, func(b server.BlobInfo) error {
		if want[b.Digest] != b.Size {
			t.Errorf("walk says %+v", b)
		}
		delete(want, b.Digest)
		return nil
	})
	if err != nil || len(want) > 0 {
		t.Errorf("walk missed %d blobs: %v", len(want), err)
	}
	stop := errors.New("stop")
	if err := d.WalkBlobs(ctx, func(server.BlobInfo) error { return stop }); !errors.Is(err, stop) {
		t.Errorf("walk gave %v for an error of the function", err)
	}
}
