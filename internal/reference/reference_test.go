package reference

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	_ "crypto/sha256"
	_ "crypto/sha512"
	theirs "github.com/distribution/reference"

	"corten.dev/corten/internal/errs"
)

var hex = strings.Repeat("0123456789abcdef", 4)

var names = []string{
	"busybox", "busybox:1", "library/busybox", "docker.io/busybox", "docker.io/library/busybox", "index.docker.io/busybox", "index.docker.io/library/a:b", "docker.io/a/b/c",
	"localhost/x", "localhost:5000/x", "LOCALHOST/x", "Host/x", "reg.io/x", "reg.io:5000/team/app:1.2@sha256:" + hex, "app@sha256:" + hex, "[::1]/x", "[::1]:5000/x", "[fe80::1%25eth0]/x", "[]/x", "[::g]/x",
	"", ":", "/", "a:", "a@", "a/", "/a", "a//b", "a b", "a..b", "a._b", "a__b", "a___b", "a--b", "a-", "-a", "_a", "a.b-c_d", "A", "a/B", "a:T", "a:-t", "a:.t", "a:_t", "a:" + strings.Repeat("t", 128), "a:" + strings.Repeat("t", 129),
	hex, hex + ":tag", "x/" + hex, "sha256:" + hex, "a@sha256:0", "a@md5:" + hex, "a@sha512:" + hex + hex, "a@sha256:" + strings.ToUpper(hex), "a:b:c", "a@b@c", "a:1@sha256:" + hex + ":x",
	strings.Repeat("a", 255), strings.Repeat("a", 256), "reg.io/" + strings.Repeat("a", 250), "a.b.c:99999999/x", "a.b:/x", "a.b:x/y", "-a.b/x", "a-.b/x", "a..b/x", "a.b./x", "docker.io", "docker.io/", "docker.io/library/", "http://a/b", "a/b:c/d", "ä", "a\n", "a:\x00",
	"xn--n3h.com/a", "127.0.0.1:80/a", "a.b/c:d@sha384:" + hex + hex[:32], "my_host/x", "my_host.com/x", "a/_b",
}

func compare(t *testing.T, s string) {
	t.Helper()
	ours, err := Parse(s)
	other, oerr := theirs.ParseNormalizedNamed(s)
	if (err == nil) != (oerr == nil) {
		t.Errorf("%q: %v, theirs %v", s, err, oerr)
		return
	}
	if err != nil {
		if err.Error() != oerr.Error() || !errors.Is(err, errs.Invalid) {
			t.Errorf("%q: %q, theirs %q", s, err, oerr)
		}
		return
	}
	if ours.String() != other.String() || ours.Familiar() != theirs.FamiliarString(other) || ours.FamiliarName() != theirs.FamiliarName(other) || ours.Name() != other.Name() {
		t.Errorf("%q: %q %q, theirs %q %q", s, ours, ours.Familiar(), other, theirs.FamiliarString(other))
	}
	if a, b := ours.WithDefaultTag().String(), theirs.TagNameOnly(other).String(); a != b {
		t.Errorf("%q with its tag: %q, theirs %q", s, a, b)
	}
	if again, err := Parse(ours.String()); err != nil || again != ours {
		t.Errorf("%q: %q does not read as itself: %v", s, ours, err)
	}
}

func TestAsTheirs(t *testing.T) {
	for _, s := range names {
		compare(t, s)
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range names {
		f.Add(s)
	}
	f.Fuzz(compare)
}

func ExampleParse() {
	ref, err := Parse("busybox")
	fmt.Println(ref, ref.WithDefaultTag().Familiar(), err)
	// Output: docker.io/library/busybox busybox:latest <nil>
}

func BenchmarkParse(b *testing.B) {
	for b.Loop() {
		if _, err := Parse("reg.io:5000/team/app:1.2"); err != nil {
			b.Fatal(err)
		}
	}
}
