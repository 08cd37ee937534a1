// Package servertest judges registries: Driver for storage drivers, Conformance for anything that speaks the distribution API at a URL, Load for how
// fast it does.
//
// It owns the tests of the specification's text, one for each MUST and SHOULD, in the order of its four workflows (pull, push, content discovery,
// content management). It promises to need nothing but the contract: a driver from a function, a registry from its address.
package servertest

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/iotest"
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

// Driver runs the contract's suite. fresh is called once for each test.
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

func testValues(t *testing.T, dt DriverTest, d server.Driver) {
	ctx := t.Context()
	_, err := d.Get(ctx, "a/b/c")
	wantKind(t, err, errs.NotFound)
	for _, value := range [][]byte{[]byte("one"), {}, []byte("two\n"), random(t, 4<<20)} {
		if err := d.Put(ctx, "a/b/c", value); err != nil {
			t.Fatal(err)
		}
		got, err := d.Get(ctx, "a/b/c")
		if err != nil || !bytes.Equal(got, value) {
			t.Errorf("got %d bytes, want %d: %v", len(got), len(value), err)
		}
	}
	other := dt.Open(t)
	defer other.Close()
	if got, err := other.Get(ctx, "a/b/c"); err != nil || len(got) != 4<<20 {
		t.Errorf("another driver of the place gets %d bytes, %v", len(got), err)
	}
	_, err = d.Get(ctx, "a/b")
	wantKind(t, err, errs.NotFound)
	_, err = d.Get(ctx, "a/b/c/d")
	wantKind(t, err, errs.NotFound)
	for range 2 {
		if err := d.Delete(ctx, "a/b/c", nil); err != nil {
			t.Error(err)
		}
	}
	_, err = d.Get(ctx, "a/b/c")
	wantKind(t, err, errs.NotFound)
	if err := d.List(ctx, "", "", func(name string, _ bool) error { return fmt.Errorf("there is %s", name) }); err != nil {
		t.Errorf("after deleting all: %v", err)
	}
}

func testValueConditions(t *testing.T, _ DriverTest, d server.Driver) {
	ctx := t.Context()
	if err := d.Put(ctx, "k", []byte("new")); err != nil {
		t.Fatal(err)
	}
	wantKind(t, d.Delete(ctx, "k", []byte("old")), errs.Conflict)
	wantKind(t, d.Delete(ctx, "k", []byte{}), errs.Conflict)
	if got, err := d.Get(ctx, "k"); err != nil || string(got) != "new" {
		t.Errorf("a value that changed was deleted: %q, %v", got, err)
	}
	if err := d.Delete(ctx, "k", []byte("new")); err != nil {
		t.Error(err)
	}
	if err := d.Delete(ctx, "k", []byte("new")); err != nil {
		t.Errorf("deleting what is not there: %v", err)
	}
}

func testList(t *testing.T, _ DriverTest, d server.Driver) {
	ctx := t.Context()
	for _, key := range []string{"l/b", "l/a", "l/Z", "l/a-b/x", "l/a-b/y", "l/a.b", "l/_z/q/r", "l/c0", "m/x"} {
		if err := d.Put(ctx, key, []byte(key)); err != nil {
			t.Fatal(err)
		}
	}
	list := func(key, after string) (all []string) {
		err := d.List(ctx, key, after, func(name string, dir bool) error {
			if dir {
				name += "/"
			}
			all = append(all, name)
			return nil
		})
		if err != nil {
			t.Error(err)
		}
		return all
	}
	for _, c := range []struct {
		key, after, want string
	}{
		{"l", "", "Z _z/ a a-b/ a.b b c0"},
		{"l", "a", "a-b/ a.b b c0"},
		{"l", "aa", "b c0"},
		{"l", "c0", ""},
		{"l/a-b", "", "x y"},
		{"l/_z", "", "q/"},
		{"", "", "l/ m/"},
		{"nothing", "", ""},
	} {
		if got := strings.Join(list(c.key, c.after), " "); got != c.want {
			t.Errorf("list of %q after %q is %q, want %q", c.key, c.after, got, c.want)
		}
	}
	var two []string
	stop := errors.New("stop")
	err := d.List(ctx, "l", "", func(name string, _ bool) error {
		if two = append(two, name); len(two) == 2 {
			return stop
		}
		return nil
	})
	if !errors.Is(err, stop) || len(two) != 2 {
		t.Errorf("a list that was stopped gave %v, %v", two, err)
	}
	for i := range 1500 { // more than one page of anything
		if err := d.Put(ctx, fmt.Sprintf("many/%04d", i), []byte("x")); err != nil {
			t.Fatal(err)
		}
	}
	if all := list("many", "0009"); len(all) != 1490 || !slices.IsSorted(all) || all[0] != "0010" {
		t.Errorf("a long list has %d entries", len(all))
	}
}

func testBadNames(t *testing.T, _ DriverTest, d server.Driver) {
	ctx := t.Context()
	for _, key := range []string{"", "/", "a//b", "../x", "a/../b", "a/./b", "a/", "/a", "a\x00b", "a b", strings.Repeat("x", 256), "a/~"} {
		if err := d.Put(ctx, key, []byte("x")); !errors.Is(err, errs.Invalid) {
			t.Errorf("put of %.40q: %v", key, err)
		}
		if _, err := d.Get(ctx, key); !errors.Is(err, errs.Invalid) {
			t.Errorf("get of %.40q: %v", key, err)
		}
		if err := d.Delete(ctx, key, nil); !errors.Is(err, errs.Invalid) {
			t.Errorf("delete of %.40q: %v", key, err)
		}
	}
	for _, id := range []string{"", ".", "..", "a/b", "a b", strings.Repeat("x", 161)} {
		if _, err := d.Upload(ctx, id, server.UploadOptions{Create: true}); !errors.Is(err, errs.Invalid) {
			t.Errorf("upload %.40q: %v", id, err)
		}
	}
	for _, dgst := range []digest.Digest{"", "sha256:", "sha256:../../../../etc/passwd", "md5:d41d8cd98f00b204e9800998ecf8427e", digest.Digest("sha256:" + strings.Repeat("A", 64))} {
		if _, err := d.Open(ctx, dgst, 0, -1); !errors.Is(err, errs.Invalid) {
			t.Errorf("open %.40q: %v", dgst, err)
		}
	}
}

// testConcurrent moves one value and one blob from all sides while others are deleted on conditions: nobody may ever lose the newest.
func testConcurrent(t *testing.T, _ DriverTest, d server.Driver) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var wg sync.WaitGroup
	for w := range 4 {
		wg.Go(func() {
			for i := range 25 {
				key := fmt.Sprintf("c/%d/v", w%2)
				mine := fmt.Appendf(nil, "%d-%d", w, i)
				if err := d.Put(ctx, key, mine); err != nil {
					t.Error(err)
					return
				}
				have, err := d.Get(ctx, key)
				if err != nil && !errors.Is(err, errs.NotFound) {
					t.Error(err)
				}
				if err == nil {
					if err := d.Delete(ctx, key, have); err != nil && !errors.Is(err, errs.Conflict) {
						t.Error(err)
					}
				}
				data := fmt.Appendf(nil, "blob %d", i%3)
				u, err := d.Upload(ctx, fmt.Sprintf("c-%d-%d", w, i), server.UploadOptions{Create: true})
				if err != nil {
					t.Error(err)
					return
				}
				if err := u.Append(ctx, bytes.NewReader(data)); err != nil {
					t.Error(err)
				}
				info, err := u.Commit(ctx, digest.FromBytes(data))
				if err != nil {
					t.Error(err)
					return
				}
				// Older than an hour ago: never. So it must be there.
				if err := d.DeleteBlob(ctx, info.Digest, time.Now().Add(-time.Hour)); !errors.Is(err, errs.Conflict) {
					t.Errorf("delete of a new blob: %v", err)
				}
				if _, err := d.Stat(ctx, info.Digest); err != nil {
					t.Errorf("blob is lost: %v", err)
				}
			}
		})
	}
	wg.Wait()
}
