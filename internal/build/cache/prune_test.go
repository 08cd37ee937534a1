package cache

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"corten.dev/corten/internal/build"
	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/filter"
)

func TestPruneAll(t *testing.T) {
	h := open(t, t.TempDir())
	a := h.step(t, "a", 1000)
	b := h.step(t, "b", 2000, a)
	c := h.step(t, "c", 4000, b)
	img := h.step(t, "img", 8000)
	h.image(t, "img", img)
	release := h.Use(ctx, b.Key)
	var gone []string
	space, err := h.Prune(ctx, PruneOptions{}, func(u Usage) { gone = append(gone, u.Description) })
	if err != nil || space != 4000 || fmt.Sprint(gone) != "[RUN c]" {
		t.Errorf("%d %v %v", space, gone, err)
	}
	h.want(t, c, false, false)
	h.want(t, b, true, true)
	h.want(t, a, true, true)
	h.want(t, img, true, true)
	release()
	release()
	if space, err = h.Prune(ctx, PruneOptions{All: true}, nil); err != nil || space != 3000 {
		t.Error(space, err)
	}
	h.want(t, a, false, false)
	h.want(t, b, false, false)
	h.want(t, img, false, true) // the image's own
	if list, err := h.Usage(ctx, nil); err != nil || len(list) > 0 {
		t.Error(list, err)
	}
	if _, err := h.images.Remove(ctx, "img", false, true, nil); err != nil {
		t.Fatal(err)
	}
	if left, err := h.snaps.Layers(ctx); err != nil || len(left) > 0 {
		t.Error(left, err)
	}
}

// What is collected to make room stays findable as an identity; what was pruned by hand does not.
func TestPruneBounds(t *testing.T) {
	h := open(t, t.TempDir())
	var all []build.Record
	for i := range 5 {
		all = append(all, h.step(t, fmt.Sprint("s", i), 1000))
	}
	top := h.step(t, "top", 1000, all[0]) // keeps the oldest
	h.Use(ctx, all[1].Key)()
	h.Use(ctx, top.Key)() // used last, and with it what it was made of
	if space, err := h.Prune(ctx, PruneOptions{MaxUsed: 1 << 40, MinFree: 1}, nil); err != nil || space != 0 {
		t.Error(space, err)
	}
	if space, err := h.Prune(ctx, PruneOptions{MaxUsed: 3500}, nil); err != nil || space != 3000 {
		t.Error(space, err)
	}
	for i, layers := range []bool{true, true, false, false, false} {
		h.want(t, all[i], true, layers)
	}
	h.want(t, top, true, true)
	h.clock.pass(time.Hour)
	h.Use(ctx, top.Key)()
	if space, err := h.Prune(ctx, PruneOptions{KeepDuration: 30 * time.Minute, Reserved: 1}, nil); err != nil || space != 1000 {
		t.Error(space, err)
	}
	h.want(t, all[1], true, false)
	h.want(t, top, true, true)
	if space, err := h.Prune(ctx, PruneOptions{MinFree: 1 << 62, Reserved: 1500}, nil); err != nil || space != 1000 {
		t.Error(space, err)
	}
	h.want(t, top, true, false)
	h.want(t, all[0], true, true)
	h = open(t, h.reopen(t))
	h.want(t, top, true, false)
	h.want(t, all[0], true, true)
	h.clock.pass(IdentityAge + 2*time.Hour)
	h.trim()
	h.want(t, top, false, false)
	h.want(t, all[0], true, true)
}

func (h house) reopen(t testing.TB) string {
	t.Helper()
	if err := h.Close(); err != nil {
		t.Fatal(err)
	}
	return h.root
}

func TestPruneFilters(t *testing.T) {
	h := open(t, t.TempDir())
	a := h.step(t, "a", 1000)
	b := h.step(t, "b", 1000, a)
	for _, f := range []filter.Args{{"size": {"1"}}, {"type~": {"("}}, {"inuse": {"perhaps"}}, {"until": {"soon"}}, {"until~": {"1h"}}, {"shared~": {"true"}}} {
		if _, err := h.Prune(ctx, PruneOptions{Filters: f}, nil); !errors.Is(err, errs.Invalid) {
			t.Errorf("%v: %v", f, err)
		}
	}
	// What another one was made of goes after it, also when only the first was asked for.
	if space, err := h.Prune(ctx, PruneOptions{Filters: filter.Args{"id": {idOf(a.Key)}}}, nil); err != nil || space != 0 {
		t.Error(space, err)
	}
	for _, c := range []struct {
		filter filter.Args
		want   string
	}{
		{nil, "RUN a RUN b"}, {filter.Args{"id~": {"^" + idOf(a.Key)[:5]}}, "RUN a"}, {filter.Args{"id!": {idOf(a.Key)}}, "RUN b"}, {filter.Args{"parent": {idOf(a.Key)}}, "RUN b"},
		{filter.Args{"type": {"=regular"}, "description": {"b"}}, "RUN b"}, {filter.Args{"type!": {"regular"}}, ""}, {filter.Args{"description~": {"[ab]$"}}, "RUN a RUN b"},
		{filter.Args{"description": {"a", "b"}}, "RUN a RUN b"}, {filter.Args{"description!": {"a", "b"}}, ""}, {filter.Args{"inuse": {""}}, ""}, {filter.Args{"inuse!": {"true"}}, "RUN a RUN b"},
		{filter.Args{"mutable": {"true"}}, ""}, {filter.Args{"immutable": {"1"}}, "RUN a RUN b"}, {filter.Args{"shared": {"false"}}, "RUN a RUN b"}, {filter.Args{"private": {}}, "RUN a RUN b"},
		{filter.Args{"until": {"1h"}}, ""}, {filter.Args{"until": {h.clock.Now().Add(time.Hour).Format(time.RFC3339)}}, "RUN a RUN b"}, {filter.Args{"unused-for": {"0s"}}, "RUN a RUN b"},
	} {
		list, err := h.Usage(ctx, c.filter)
		var got []string
		for _, u := range list {
			got = append(got, u.Description)
		}
		if err != nil || strings.Join(got, " ") != c.want {
			t.Errorf("%v: %v %v", c.filter, got, err)
		}
	}
	if space, err := h.Prune(ctx, PruneOptions{Filters: filter.Args{"type": {"regular"}}}, nil); err != nil || space != 2000 {
		t.Error(space, err)
	}
	h.want(t, b, false, false)
}

func TestRules(t *testing.T) {
	rules := Rules(50e9)
	if last := rules[3]; !last.All || last.Reserved != 5e9 || last.MaxUsed != 30e9 || last.MinFree != 10e9 {
		t.Errorf("%+v", last)
	}
	h := open(t, t.TempDir())
	h.step(t, "a", 1000)
	if space, err := h.Prune(ctx, Rules(1e12)[0], nil); err != nil || space != 0 {
		t.Error(space, err)
	}
	if total, err := h.Disk(); err != nil || total <= 0 {
		t.Error(total, err)
	}
}

func FuzzFilters(f *testing.F) {
	f.Add("until", "24h")
	f.Add("id~", "^a(b|c)")
	f.Add("type!", "=regular")
	f.Add("until", "1e300")
	f.Fuzz(func(t *testing.T, key, value string) {
		m, err := compile(filter.Args{key: {value}}, time.Unix(1700000000, 0))
		if err != nil {
			if !errors.Is(err, errs.Invalid) {
				t.Error(err)
			}
			return
		}
		m.match(&Usage{ID: "abc", Parents: []string{"x"}, Kind: "regular", Description: "RUN"})
	})
}

// keeper keeps things for builds by itself.
type keeper map[string]Usage

func (k keeper) Kept(context.Context) (list []Usage, err error) {
	for _, u := range k {
		list = append(list, u)
	}
	return list, nil
}

func (k keeper) Drop(_ context.Context, id string) error {
	if k[id].InUse {
		return errs.New(errs.Conflict, "in use")
	}
	delete(k, id)
	return nil
}

// Git repositories and copies of contexts took space that `du` did not tell and `prune` did not free.
func TestOthersArePruned(t *testing.T) {
	h := open(t, t.TempDir())
	k := keeper{"git": {ID: "git", Kind: "source.git.checkout", Size: 10, Mutable: true}, "busy": {ID: "busy", Kind: "source.local", Size: 7, Mutable: true, InUse: true}}
	h.Join(k)
	list, err := h.Usage(ctx, nil)
	if err != nil || len(list) != 2 {
		t.Fatal(list, err)
	}
	if list, err := h.Usage(ctx, filter.Args{"type": {"source.git.checkout"}}); err != nil || len(list) != 1 || list[0].ID != "git" {
		t.Error(list, err)
	}
	space, err := h.Prune(ctx, PruneOptions{}, nil)
	if err != nil || space != 10 || len(k) != 1 {
		t.Error(space, err, k)
	}
}
