package volumes_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"corten.dev/corten/internal/engine/volumes"
	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/events"
	"corten.dev/corten/internal/filter"
	"corten.dev/corten/internal/volume"
	"corten.dev/corten/internal/volume/memory"
)

// crew is an engine whose containers run with the volumes that are named.
type crew struct {
	running map[string][]string
	held    []string
	resumed int
}

func (c *crew) RunningWith(name string) []string { return c.running[name] }
func (c *crew) HoldWriters(_ context.Context, name string) (func(), error) {
	c.held = append(c.held, name)
	return func() { c.resumed++ }, nil
}

type bench struct {
	*volumes.Service
	room *memory.Store
	crew *crew
	told func() []string
}

func newBench(t *testing.T, store volume.Store) *bench {
	t.Helper()
	b := &bench{room: memory.New(), crew: &crew{running: map[string][]string{}}}
	if store == nil {
		store = b.room
	}
	bus := &events.Bus{}
	b.told = func() (all []string) {
		past, l := bus.Subscribe(time.Unix(1, 0))
		defer l.Close()
		for _, e := range past {
			all = append(all, strings.TrimSpace(e.Action+" "+e.ID))
		}
		return all
	}
	b.Service = volumes.New(volumes.Options{Store: store, Containers: b.crew, Events: bus})
	return b
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func (b *bench) make(t *testing.T, name string, labels map[string]string) volume.Volume {
	t.Helper()
	vol, err := b.Create(t.Context(), volume.CreateOptions{Name: name, Labels: labels})
	must(t, err)
	return vol
}

func names(list []volume.Volume) string {
	var all []string
	for _, vol := range list {
		all = append(all, vol.Name)
	}
	return strings.Join(all, " ")
}

// A volume that is there already is the answer, and no news.
func TestCreateTellsOnce(t *testing.T) {
	b := newBench(t, nil)
	b.make(t, "vol", nil)
	b.make(t, "vol", nil)
	if got := b.told(); !slices.Equal(got, []string{"create vol"}) {
		t.Errorf("%q", got)
	}
	if _, err := b.Create(t.Context(), volume.CreateOptions{Name: "x", Driver: "nosuch"}); err == nil {
		t.Error("a driver that is not there made a volume")
	}
}

func TestListFilters(t *testing.T) {
	b := newBench(t, nil)
	ctx := t.Context()
	b.make(t, "red", map[string]string{"tier": "front"})
	b.make(t, "blue", map[string]string{"tier": "back"})
	b.make(t, "used", nil)
	must(t, b.room.Acquire(ctx, "used", "ctr"))
	for _, c := range []struct {
		filters filter.Args
		want    string
	}{
		{nil, "blue red used"},
		{filter.Args{"name": {"re"}}, "red"},
		{filter.Args{"label": {"tier"}}, "blue red"},
		{filter.Args{"label": {"tier=back"}}, "blue"},
		{filter.Args{"dangling": {"true"}}, "blue red"},
		{filter.Args{"dangling": {"false"}}, "used"},
		{filter.Args{"driver": {"local"}}, "blue red used"},
		{filter.Args{"driver": {"nfs"}}, ""},
		{filter.Args{"driver": {"local"}, "label": {"tier"}, "name": {"b"}}, "blue"},
	} {
		list, warnings, err := b.List(ctx, c.filters)
		if got := names(list); err != nil || got != c.want || len(warnings) > 0 {
			t.Errorf("%v: %q, %q, %v; want %q", c.filters, got, warnings, err, c.want)
		}
	}
	for _, bad := range []filter.Args{{"colour": {"red"}}, {"dangling": {"perhaps"}}} {
		if _, _, err := b.List(ctx, bad); !errors.Is(err, errs.Invalid) {
			t.Errorf("%v: %v", bad, err)
		}
	}
}

func TestRemove(t *testing.T) {
	b := newBench(t, nil)
	ctx := t.Context()
	b.make(t, "vol", nil)
	must(t, b.room.Acquire(ctx, "vol", "ctr"))
	if n := b.Users("vol"); n != 1 {
		t.Errorf("%d users", n)
	}
	for _, force := range []bool{false, true} {
		if err := b.Remove(ctx, "vol", force); !errors.Is(err, errs.Conflict) {
			t.Errorf("in use, force %t: %v", force, err)
		}
	}
	must(t, b.room.Release(ctx, "vol", "ctr"))
	must(t, b.Remove(ctx, "vol", false))
	if err := b.Remove(ctx, "vol", false); !errors.Is(err, errs.NotFound) {
		t.Errorf("twice: %v", err)
	}
	must(t, b.Remove(ctx, "vol", true))
	if got := b.told(); !slices.Equal(got, []string{"create vol", "destroy vol"}) {
		t.Errorf("%q", got)
	}
}

func TestPrune(t *testing.T) {
	b := newBench(t, nil)
	ctx := t.Context()
	nameless := b.make(t, "", nil)
	kept := b.make(t, "", map[string]string{"keep": "1"})
	used := b.make(t, "", nil)
	b.make(t, "named", nil)
	must(t, b.room.Acquire(ctx, used.Name, "ctr"))
	pruned, err := b.Prune(ctx, filter.Args{"label!": {"keep"}})
	if err != nil || !slices.Equal(pruned.Deleted, []string{nameless.Name}) {
		t.Errorf("%+v, %v", pruned, err)
	}
	pruned, err = b.Prune(ctx, filter.Args{"all": {"true"}})
	slices.Sort(pruned.Deleted)
	want := []string{kept.Name, "named"}
	slices.Sort(want)
	if err != nil || !slices.Equal(pruned.Deleted, want) {
		t.Errorf("%+v, %v", pruned, err)
	}
	if _, err := b.Prune(ctx, filter.Args{"dangling": {"true"}}); !errors.Is(err, errs.Invalid) {
		t.Error(err)
	}
	if got := b.told(); got[len(got)-1] != "prune" {
		t.Errorf("%q", got)
	}
}

// away is a store whose driver does not answer for one volume.
type away struct{ *memory.Store }

func (a away) Get(ctx context.Context, name string) (volume.Volume, error) {
	if name == "far" {
		return volume.Volume{Name: name, Driver: "net"}, errs.New(errs.Unavailable, "get far: nobody answers")
	}
	return a.Store.Get(ctx, name)
}

func (a away) Remove(ctx context.Context, name string, force bool) error {
	if name == "far" && force {
		return nil
	}
	if name == "far" {
		return errs.New(errs.Unavailable, "remove far: nobody answers")
	}
	return a.Store.Remove(ctx, name, force)
}

func (a away) ListWarned(ctx context.Context) ([]volume.Volume, []string, error) {
	list, err := a.Store.List(ctx)
	return append(list, volume.Volume{Name: "far", Driver: "net"}), []string{"volumes of driver net are listed from memory"}, err
}

// What a driver that is away keeps is shown, with a warning, and can be forgotten by force.
func TestDriverThatIsAway(t *testing.T) {
	b := newBench(t, away{memory.New()})
	ctx := t.Context()
	b.make(t, "near", nil)
	list, warnings, err := b.List(ctx, nil)
	if err != nil || names(list) != "far near" || len(warnings) != 1 {
		t.Errorf("%s, %q, %v", names(list), warnings, err)
	}
	if err := b.Remove(ctx, "far", false); !errors.Is(err, errs.Unavailable) {
		t.Error(err)
	}
	must(t, b.Remove(ctx, "far", true))
	if got := b.told(); !slices.Equal(got, []string{"create near", "destroy far"}) {
		t.Errorf("%q", got)
	}
	for what, err := range map[string]error{
		"snapshot": func() error { _, err := b.Snapshot(ctx, volumes.Source{Volume: "near"}, ""); return err }(),
		"import": func() error {
			_, err := b.Import(ctx, volume.CreateOptions{Name: "x"}, strings.NewReader(""))
			return err
		}(),
	} {
		if !errors.Is(err, errs.NotImplemented) {
			t.Errorf("%s with a store that copies nothing: %v", what, err)
		}
	}
}

// The verbs that copy hold those who write, and only them; what they make is told.
func TestCopies(t *testing.T) {
	local, err := volume.New(volume.Options{Root: t.TempDir()})
	must(t, err)
	defer func() { must(t, local.Close()) }()
	b := newBench(t, local)
	ctx := t.Context()
	b.make(t, "vol", nil)
	snap, err := b.Snapshot(ctx, volumes.Source{Volume: "vol"}, "first")
	must(t, err)
	if snap.Name != "first" || len(b.crew.held) != 0 {
		t.Errorf("%+v, held %v", snap, b.crew.held)
	}
	b.crew.running["vol"] = []string{"ctr"}
	if _, err := b.Clone(ctx, volumes.Source{Volume: "vol"}, volume.CreateOptions{Name: "twin"}); err != nil || b.crew.resumed != len(b.crew.held) {
		t.Errorf("%v, held %v, resumed %d", err, b.crew.held, b.crew.resumed)
	}
	before := len(b.crew.held)
	var tar bytes.Buffer
	must(t, b.Export(ctx, volumes.Source{Volume: "vol", Live: true}, &tar))
	must(t, b.Export(ctx, volumes.Source{Volume: "vol", Snapshot: "first"}, &bytes.Buffer{}))
	if len(b.crew.held) != before {
		t.Errorf("held for what nobody changes, or may change: %v", b.crew.held)
	}
	if err := b.Restore(ctx, "vol", "first"); !errors.Is(err, errs.Conflict) || !strings.Contains(fmt.Sprint(err), "running containers - [ctr]") {
		t.Errorf("restore below a running container: %v", err)
	}
	delete(b.crew.running, "vol")
	must(t, b.Restore(ctx, "vol", "first"))
	if _, err := b.Import(ctx, volume.CreateOptions{Name: "twin"}, bytes.NewReader(tar.Bytes())); !errors.Is(err, errs.Conflict) {
		t.Errorf("import over another: %v", err)
	}
	_, err = b.Import(ctx, volume.CreateOptions{Name: "again"}, &tar)
	must(t, err)
	if _, err := b.Rename(ctx, "again", "vol"); !errors.Is(err, errs.Conflict) {
		t.Errorf("rename to a name that is taken: %v", err)
	}
	_, err = b.Rename(ctx, "again", "other")
	must(t, err)
	if _, err := b.Clone(ctx, volumes.Source{Volume: "vol"}, volume.CreateOptions{Name: "far", Driver: "net"}); !errors.Is(err, errs.NotImplemented) {
		t.Errorf("clone into a driver: %v", err)
	}
	must(t, b.RemoveSnapshot(ctx, "vol", "first"))
	if all, err := b.Snapshots(ctx, "vol"); err != nil || len(all) != 0 {
		t.Errorf("%v, %v", all, err)
	}
	want := []string{"create vol", "snapshot vol", "create twin", "restore vol", "create again", "rename other"}
	if got := b.told(); !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
	if _, err := b.Snapshot(ctx, volumes.Source{Volume: "nosuch"}, ""); !errors.Is(err, errs.NotFound) {
		t.Error(err)
	}
}
