package snapshottest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/snapshot"
)

// row are layers that stand on each other and need what is below: its directories, its files for hard links, its deletions.
func row(t testing.TB, n int) (tars [][]byte, chains []snapshot.ChainID) {
	for i := range n {
		list := []Entry{File(fmt.Sprintf("d/f%d", i), strings.Repeat(fmt.Sprint(i), 5000))}
		if i == 0 {
			list = append([]Entry{Dir(".", 0o710), Dir("d", 0o750)}, list...)
		} else {
			list = append(list, Hard(fmt.Sprintf("h%d", i), fmt.Sprintf("d/f%d", i-1)), File(fmt.Sprintf("d/.wh.f%d", i-1), ""))
		}
		tars = append(tars, Tar(t, list...))
		chain := digest.FromBytes(tars[i])
		if i > 0 {
			chain = digest.FromString(string(chains[i-1]) + " " + string(chain))
		}
		chains = append(chains, chain)
	}
	return tars, chains
}

// stackAll stacks a row in any order, side by side.
func stackAll(ctx context.Context, s snapshot.Store, tars [][]byte, chains []snapshot.ChainID) []error {
	failed := make([]error, len(tars))
	done := make([]chan struct{}, len(tars))
	for i := range done {
		done[i] = make(chan struct{})
	}
	var wg sync.WaitGroup
	for _, i := range rand.Perm(len(tars)) {
		wg.Go(func() {
			defer close(done[i])
			var parent snapshot.ChainID
			var opts snapshot.Stacking
			if i > 0 {
				parent = chains[i-1]
				opts.Ready = func(ctx context.Context) error {
					select {
					case <-done[i-1]:
						return failed[i-1]
					case <-ctx.Done():
						return ctx.Err()
					}
				}
			}
			_, failed[i] = s.Stack(ctx, parent, digest.FromBytes(tars[i]), bytes.NewReader(tars[i]), opts)
		})
	}
	wg.Wait()
	return failed
}

// Layers come in any order, several images with the same ones at a time: all get what they would have got one after the other.
func stackRow(t *testing.T, open Open) {
	root := t.TempDir()
	s := open(t, root)
	tars, chains := row(t, 6)
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(func() {
			if err := errors.Join(stackAll(context.Background(), s, tars, chains)...); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	other := open(t, t.TempDir())
	for i, tar := range tars {
		var parent snapshot.ChainID
		if i > 0 {
			parent = chains[i-1]
		}
		if l := Apply(t, other, parent, tar); l.Chain != chains[i] {
			t.Fatal(l)
		}
	}
	last := chains[len(chains)-1]
	one, two := view(t, s, last), view(t, other, last)
	for i := range tars {
		for _, name := range []string{fmt.Sprintf("d/f%d", i), fmt.Sprintf("h%d", i)} {
			if a, b := read(t, one, name), read(t, two, name); a != b {
				t.Errorf("%s: %.10q, one after the other %.10q", name, a, b)
			}
		}
	}
	for _, m := range []*snapshot.Mounted{one, two} {
		for name, want := range map[string]uint32{"": 0o710, "d": 0o750} {
			if got := mode(t, m, name); got != want {
				t.Errorf("/%s has mode %o, want %o", name, got, want)
			}
		}
		m.Close()
	}
	for i := len(chains) - 1; i >= 0; i-- {
		if err := s.RemoveLayer(context.Background(), chains[i]); err != nil {
			t.Fatal(err)
		}
	}
	noLeftovers(t, s, root)
}

// A layer that fails takes those above with it, and nothing of them stays.
func stackFails(t *testing.T, open Open) {
	root := t.TempDir()
	s := open(t, root)
	tars, chains := row(t, 4)
	broken := append([][]byte(nil), tars...)
	broken[1] = tars[1][:len(tars[1])/2]
	failed := stackAll(context.Background(), s, broken, chains)
	for i, err := range failed {
		if (err == nil) != (i == 0) || i > 0 && (!errors.Is(err, errs.Invalid) || strings.Contains(err.Error(), "\n")) {
			t.Errorf("layer %d: %v", i, err)
		}
	}
	// The parent does not come at all: the wait ends with the call.
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	never := snapshot.Stacking{Ready: func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }}
	if _, err := s.Stack(ctx, chains[2], digest.FromBytes(tars[3]), bytes.NewReader(tars[3]), never); !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
	if _, err := s.Stack(context.Background(), chains[2], digest.FromBytes(tars[3]), bytes.NewReader(tars[3]), snapshot.Stacking{}); !errors.Is(err, errs.NotFound) {
		t.Errorf("on a parent that is not there: %v", err)
	}
	for name, opts := range map[string]snapshot.Stacking{"bytes": {MaxBytes: 1000}, "entries": {MaxEntries: 2}} {
		if _, err := s.Stack(context.Background(), "", digest.FromString(name), bytes.NewReader(tars[0]), opts); !errors.Is(err, errs.Invalid) || !strings.Contains(err.Error(), "bound") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if all, _ := s.Layers(context.Background()); len(all) != 1 {
		t.Errorf("%v", all)
	}
	noLeftovers(t, s, root)
}

// A diff that is known is not read again, on whatever it stands, several times in one chain, at a time, and after its first owner is gone.
func stackKnown(t *testing.T, open Open) {
	ctx := context.Background()
	root := t.TempDir()
	s := open(t, root)
	free := Tar(t, Dir(".", 0o700), Dir("x", 0o711), File("x/f", strings.Repeat("f", 4000)), Hard("x/h", "x/f"), Link("x/l", "f"), File(".wh.gone", ""))
	bound := Tar(t, File("d/y", "y"))
	var first []snapshot.Layer
	base := Apply(t, s, "", Tar(t, Dir("d", 0o705), File("gone", "1")))
	for _, tar := range [][]byte{free, bound} {
		first = append(first, Apply(t, s, base.Chain, tar))
	}
	bases := []snapshot.Layer{
		Apply(t, s, "", Tar(t, Dir("d", 0o750), File("gone", "1"), File("a", "a"))),
		Apply(t, s, "", Tar(t, Dir(".", 0o755), Dir("d", 0o751), File("gone", "1"), File("b", "b"))),
	}
	var wg sync.WaitGroup
	for n := range 8 {
		wg.Go(func() {
			b := bases[n%2]
			l, err := s.Stack(ctx, b.Chain, first[0].DiffID, nil, snapshot.Stacking{})
			if err == nil {
				l, err = s.Stack(ctx, l.Chain, first[1].DiffID, nil, snapshot.Stacking{})
			}
			if err == nil {
				_, err = s.Stack(ctx, l.Chain, first[0].DiffID, nil, snapshot.Stacking{}) // once more in one chain
			}
			if err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if _, err := s.Stack(ctx, base.Chain, digest.FromString("unknown"), nil, snapshot.Stacking{}); !errors.Is(err, errs.NotFound) {
		t.Error(err)
	}
	if l, err := s.ByDiff(ctx, first[0].DiffID); err != nil || l.DiffID != first[0].DiffID {
		t.Error(l, err)
	}
	for _, l := range []snapshot.Layer{first[1], first[0], base} {
		if err := s.RemoveLayer(ctx, l.Chain); err != nil {
			t.Fatal(err)
		}
	}
	if c, ok := s.(io.Closer); ok {
		c.Close()
	}
	s = open(t, root)
	all, err := s.Layers(ctx)
	if err != nil || len(all) != 8 {
		t.Fatal(all, err)
	}
	for _, l := range all {
		if err := s.LayerTar(ctx, l.Chain, io.Discard); err != nil {
			t.Error(err)
		}
		if l.DiffID != first[0].DiffID {
			continue
		}
		m := view(t, s, l.Chain)
		if read(t, m, "gone") != "-" || read(t, m, "x/l") != strings.Repeat("f", 4000) || mode(t, m, "x") != 0o711 || mode(t, m, "") != 0o700 {
			t.Errorf("%s is not what it should be", l.Chain)
		}
		if read(t, m, "d/y") == "y" && mode(t, m, "d") != map[string]uint32{"a": 0o750, "-": 0o751}[read(t, m, "a")] {
			t.Errorf("%s: directory d has the mode of another parent", l.Chain)
		}
		m.Close()
	}
}

// What a tree holds is told at once, and is right a moment later.
func lastUsage(t *testing.T, open Open) {
	s := open(t, t.TempDir())
	ctx := context.Background()
	l := Apply(t, s, "", Tar(t, File("a", "1")))
	if err := s.Prepare(ctx, "k", l.Chain, snapshot.Options{}); err != nil {
		t.Fatal(err)
	}
	m := mount(t, s, "k")
	write(t, m, "new", "12345")
	m.Close()
	if n, when := s.LastUsage("k"); n != 0 || !when.IsZero() {
		t.Errorf("%d %v", n, when)
	}
	for end := time.Now().Add(5 * time.Second); ; time.Sleep(time.Millisecond) {
		if n, when := s.LastUsage("k"); !when.IsZero() {
			if n != 5 {
				t.Errorf("%d bytes", n)
			}
			break
		}
		if time.Now().After(end) {
			t.Fatal("never counted")
		}
	}
	if err := s.Remove(ctx, "k"); err != nil {
		t.Fatal(err)
	}
	if _, when := s.LastUsage("k"); !when.IsZero() {
		t.Error("a removed tree is known")
	}
}
