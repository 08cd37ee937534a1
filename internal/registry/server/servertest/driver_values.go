package servertest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/registry/server"
)

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
	var wg sync.WaitGroup
	for w := range 10 {
		wg.Go(func() {
			for i := w; i < 1500; i += 10 { // more than one page of anything
				if err := d.Put(ctx, fmt.Sprintf("many/%04d", i), []byte("x")); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
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
