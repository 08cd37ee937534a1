package drivers

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/volume"
	"corten.dev/corten/internal/volume/driver"
	"corten.dev/corten/internal/volume/driver/memory"
	"corten.dev/corten/internal/volume/volumetest"
)

// host is what outlives an engine: a data root, and drivers.
type host struct {
	t    *testing.T
	root string

	mu      sync.Mutex
	drivers map[string]*memory.Driver
	away    map[string]error
}

func newHost(t *testing.T, names ...string) *host {
	t.Helper()
	h := &host{t: t, root: t.TempDir(), drivers: map[string]*memory.Driver{}, away: map[string]error{}}
	for _, name := range names {
		h.drivers[name] = memory.New(name, t.TempDir())
	}
	return h
}

// setAway makes a driver unreachable, or reachable again.
func (h *host) setAway(name string, err error) {
	h.drivers[name].Fail(false, func(string, string) error { return err }) // first: who is Ready does not fail
	h.mu.Lock()
	h.away[name] = err
	h.mu.Unlock()
}

var errAway = errs.New(errs.Unavailable, "connection refused")

func (h *host) Driver(name string) (driver.Driver, error) {
	if d := h.drivers[name]; d != nil {
		return d, nil
	}
	return nil, errs.New(errs.NotFound, "plugin %q not found", name)
}

func (h *host) Names() ([]string, error) { return slices.Sorted(maps.Keys(h.drivers)), nil }

func (h *host) Ready(_ context.Context, name string) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.drivers[name] == nil {
		return errs.New(errs.NotFound, "plugin %q not found", name)
	}
	return h.away[name]
}

// Await waits for at most ten seconds.
func (h *host) Await(ctx context.Context, name string) (err error) {
	for until := time.Now().Add(10 * time.Second); time.Now().Before(until); time.Sleep(5 * time.Millisecond) {
		if err = h.Ready(ctx, name); err == nil {
			return nil
		}
	}
	return err
}

// engine opens a store, as an engine that starts does.
func (h *host) engine(boot string) (s *Store, kill func()) {
	h.t.Helper()
	local, err := volume.New(volume.Options{Root: h.root})
	if err != nil {
		h.t.Fatal(err)
	}
	s, err = New(Options{Root: h.root, Local: local, Plugins: h, Logger: slog.New(slog.DiscardHandler), Boot: boot})
	if err != nil {
		h.t.Fatal(err)
	}
	kill = sync.OnceFunc(func() {
		if err := errors.Join(s.Close(), local.Close()); err != nil {
			h.t.Error(err)
		}
	})
	h.t.Cleanup(kill)
	if boot == "" { // one that found nothing
		must(h.t, s.Settle(h.t.Context()))
	}
	return s, kill
}

func wants(t *testing.T, err, kind error, text string) {
	t.Helper()
	if !errors.Is(err, kind) || !strings.Contains(err.Error(), text) {
		t.Errorf("got the error %v, want %v with the text %q", err, kind, text)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func create(t *testing.T, s *Store, name, driver string) volume.Volume {
	t.Helper()
	vol, err := s.Create(t.Context(), volume.CreateOptions{Name: name, Driver: driver, Labels: map[string]string{"k": "v"}})
	must(t, err)
	return vol
}

// With no driver but the local one, the store is the local store.
func TestSuite(t *testing.T) {
	volumetest.Run(t, volumetest.Config{Files: true, New: func(t *testing.T) volume.Store {
		s, _ := newHost(t).engine("")
		return s
	}})
}

func TestLifeOfAVolume(t *testing.T) {
	h := newHost(t, "net")
	d := h.drivers["net"]
	s, _ := h.engine("")
	ctx := t.Context()
	vol := create(t, s, "pool/vol", "net")
	if !vol.Made || vol.Driver != "net" || vol.Scope != "global" || vol.Labels["k"] != "v" || vol.Mountpoint != "" || vol.Created.IsZero() {
		t.Errorf("created %+v", vol)
	}
	if again := create(t, s, "pool/vol", "net"); again.Made {
		t.Error("made twice")
	}
	if again := create(t, s, "pool/vol", ""); again.Made || again.Driver != "net" {
		t.Errorf("without a driver's name: %+v", again)
	}
	must(t, s.Acquire(ctx, "pool/vol", "ctr"))
	path, err := s.Mount(ctx, "pool/vol", "ctr")
	must(t, err)
	if again, err := s.Mount(ctx, "pool/vol", "ctr"); err != nil || again != path || d.Mounted("pool/vol")["ctr"] != 1 {
		t.Errorf("mounted again: %s, %v, %v", again, err, d.Mounted("pool/vol"))
	}
	src := volumetest.Source(t)
	for range 2 {
		must(t, s.Fill(ctx, "pool/vol", src))
		must(t, os.RemoveAll(filepath.Join(path, "sub"))) // what the user throws away stays away
	}
	if text, err := os.ReadFile(filepath.Join(path, "a")); err != nil || string(text) != "first" {
		t.Errorf("filled with %q, %v", text, err)
	}
	if _, err := os.Stat(filepath.Join(path, "sub")); err == nil {
		t.Error("filled twice")
	}
	got, err := s.Get(ctx, "pool/vol")
	if err != nil || got.Mountpoint != path || got.Status["options"] != 0 || got.Labels["k"] != "v" {
		t.Errorf("get %+v, %v", got, err)
	}
	wants(t, s.Remove(ctx, "pool/vol", true), errs.Conflict, "volume is in use - [ctr]")
	must(t, s.Unmount(ctx, "pool/vol", "ctr"))
	must(t, s.Unmount(ctx, "pool/vol", "ctr"))
	must(t, s.Release(ctx, "pool/vol", "ctr"))
	must(t, s.Remove(ctx, "pool/vol", false))
	if list, err := s.List(ctx); err != nil || len(list) != 0 {
		t.Errorf("list %+v, %v", list, err)
	}
	if n := len(slices.DeleteFunc(d.Calls(), func(c string) bool { return !strings.Contains(c, "ount ") })); n != 2 {
		t.Errorf("calls: %q", d.Calls())
	}
}

func TestRefusals(t *testing.T) {
	h := newHost(t, "net", "other")
	s, _ := h.engine("")
	ctx := t.Context()
	_, err := s.Create(ctx, volume.CreateOptions{Name: "vol", Driver: "nope"})
	wants(t, err, errs.NotFound, `create vol: error looking up volume plugin nope: plugin "nope" not found`)
	create(t, s, "here", "local")
	create(t, s, "there", "net")
	_, err = s.Create(ctx, volume.CreateOptions{Name: "here", Driver: "net"})
	wants(t, err, errs.Conflict, "driver 'local' already has volume 'here'")
	for _, owner := range []string{"local", "other"} {
		_, err = s.Create(ctx, volume.CreateOptions{Name: "there", Driver: owner})
		wants(t, err, errs.Conflict, "driver 'net' already has volume 'there'")
	}
	_, err = s.Create(ctx, volume.CreateOptions{Name: "big", Driver: "net", Options: map[string]string{"size": "2"}})
	must(t, err)
	_, err = s.Create(ctx, volume.CreateOptions{Name: "big", Driver: "net", Options: map[string]string{"size": "1"}})
	wants(t, err, errs.Conflict, "it exists with other options")
	h.drivers["net"].Fail(false, func(string, string) error { return errors.New("no room left") })
	_, err = s.Create(ctx, volume.CreateOptions{Name: "more", Driver: "net"})
	if err == nil || err.Error() != "create more: no room left" {
		t.Error(err)
	}
	h.drivers["net"].Fail(false, nil)
	_, err = s.Get(ctx, "more")
	wants(t, err, errs.NotFound, "get more: no such volume")
	for _, name := range []string{"a\nb", "/abs", strings.Repeat("x", 300)} {
		if _, err := s.Create(ctx, volume.CreateOptions{Name: name, Driver: "net"}); !errors.Is(err, errs.Invalid) {
			t.Errorf("%q: %v", name, err)
		}
	}
}

// What is made and removed in a driver behind the engine's back is seen; a name belongs to one.
func TestBehindOurBack(t *testing.T) {
	h := newHost(t, "net", "other")
	s, _ := h.engine("")
	ctx := t.Context()
	must(t, h.drivers["net"].Create(ctx, "theirs", nil))
	must(t, h.drivers["net"].Create(ctx, "twice", nil))
	must(t, h.drivers["other"].Create(ctx, "twice", nil))
	create(t, s, "mine", "local")
	must(t, h.drivers["net"].Create(ctx, "mine", nil))
	list, warnings, err := s.ListWarned(ctx)
	if err != nil || len(list) != 3 || list[0].Driver != "local" || list[1].Name != "theirs" || list[2].Driver != "net" || len(warnings) != 2 ||
		!strings.Contains(warnings[0], "volume name mine already exists for driver local") {
		t.Errorf("%+v, %q, %v", list, warnings, err)
	}
	vol, err := s.Get(ctx, "theirs")
	if err != nil || vol.Driver != "net" {
		t.Errorf("%+v, %v", vol, err)
	}
	must(t, s.Acquire(ctx, "theirs", "ctr"))
	if _, err := s.Mount(ctx, "theirs", "ctr"); err != nil {
		t.Error(err)
	}
	must(t, s.Unmount(ctx, "theirs", "ctr"))
	must(t, s.Release(ctx, "theirs", "ctr"))
	must(t, h.drivers["net"].Remove(ctx, "theirs"))
	_, err = s.Get(ctx, "theirs")
	wants(t, err, errs.NotFound, "no such volume")
	create(t, s, "theirs", "other") // net has it no more
	if vol, err := s.Get(ctx, "theirs"); err != nil || vol.Driver != "other" {
		t.Errorf("%+v, %v", vol, err)
	}
	must(t, h.drivers["other"].Remove(ctx, "theirs"))
	wants(t, s.Remove(ctx, "theirs", false), errs.NotFound, "no such volume")
	must(t, s.Remove(ctx, "twice", false)) // one that never had a record
	if vol, err := s.Get(ctx, "twice"); err != nil || vol.Driver != "other" {
		t.Errorf("%+v, %v", vol, err)
	}
}

// A driver that is away keeps nobody from other volumes, and its own are known.
func TestAway(t *testing.T) {
	h := newHost(t, "net")
	s, _ := h.engine("")
	ctx := t.Context()
	create(t, s, "local1", "")
	create(t, s, "vol", "net")
	h.setAway("net", errAway)
	list, warnings, err := s.ListWarned(ctx)
	if err != nil || len(list) != 2 || list[1].Driver != "net" || len(warnings) != 1 || !strings.Contains(warnings[0], "connection refused") {
		t.Errorf("%+v, %q, %v", list, warnings, err)
	}
	asked := len(h.drivers["net"].Calls())
	if list, err := s.Known(ctx); err != nil || len(list) != 2 || list[1].Driver != "net" || len(h.drivers["net"].Calls()) != asked {
		t.Errorf("%+v, %v", list, err)
	}
	vol, err := s.Get(ctx, "vol")
	wants(t, err, errs.Unavailable, "connection refused")
	if vol.Driver != "net" || vol.Labels["k"] != "v" {
		t.Errorf("what is known of it: %+v", vol)
	}
	_, err = s.Mount(ctx, "vol", "ctr")
	wants(t, err, errs.Unavailable, "mount volume vol")
	must(t, s.Unmount(ctx, "vol", "ctr")) // nothing happened there
	wants(t, s.Remove(ctx, "vol", false), errs.Unavailable, "rm -f")
	must(t, s.Remove(ctx, "vol", true))
	h.setAway("net", nil)
	if vol, err := s.Get(ctx, "vol"); err != nil || len(vol.Labels) != 0 { // the driver still has it
		t.Errorf("%+v, %v", vol, err)
	}
}

// The story: an engine is killed while containers run, and its successor must neither mount again what is mounted nor forget what nobody uses any more.
func TestMountsOverEngines(t *testing.T) {
	h := newHost(t, "net")
	d := h.drivers["net"]
	ctx := t.Context()
	s, kill := h.engine("boot")
	create(t, s, "vol", "net")
	for _, id := range []string{"runs", "died", "copy"} {
		if _, err := s.Mount(ctx, "vol", id); err != nil {
			t.Fatal(err)
		}
	}
	kill()
	s, kill = h.engine("boot")
	if _, err := s.Mount(ctx, "vol", "runs"); err != nil {
		t.Error(err)
	}
	must(t, s.Unmount(ctx, "vol", "died"))
	must(t, s.Settle(ctx))
	eventually(t, "only the container that runs is counted", func() bool { return maps.Equal(d.Mounted("vol"), map[string]int{"runs": 1}) })
	kill()
	s, _ = h.engine("next boot") // the host was started anew: nothing is mounted
	if _, err := s.Mount(ctx, "vol", "runs"); err != nil {
		t.Error(err)
	}
	if d.Mounted("vol")["runs"] != 2 {
		t.Errorf("after a boot: %v", d.Mounted("vol"))
	}
}

func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	for until := time.Now().Add(30 * time.Second); !is(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(until) {
			t.Fatal("never: " + what)
		}
	}
}

// A mount of which nobody knows whether it was made is taken back, before the next one for the same user and also if there is none.
func TestUncertainMount(t *testing.T) {
	h := newHost(t, "net")
	d := h.drivers["net"]
	ctx := t.Context()
	s, _ := h.engine("")
	create(t, s, "vol", "net")
	d.Fail(true, func(method, _ string) error {
		if method == "Mount" {
			return errs.As(driver.Uncertain, errs.New(errs.Unavailable, "the connection broke"))
		}
		return nil
	})
	_, err := s.Mount(ctx, "vol", "ctr")
	wants(t, err, errs.Unavailable, "the connection broke")
	eventually(t, "taken back", func() bool { return len(d.Mounted("vol")) == 0 })
	_, err = s.Mount(ctx, "vol", "ctr")
	wants(t, err, driver.Uncertain, "the connection broke")
	d.Fail(false, nil)
	if _, err := s.Mount(ctx, "vol", "ctr"); err != nil || d.Mounted("vol")["ctr"] != 1 {
		t.Errorf("%v: %v", err, d.Mounted("vol"))
	}
}

// An unmount while the driver is away is owed, also by the next engine, and made up for when the driver is back.
func TestOwedUnmount(t *testing.T) {
	h := newHost(t, "net")
	d := h.drivers["net"]
	ctx := t.Context()
	s, kill := h.engine("boot")
	must(t, s.Settle(ctx))
	create(t, s, "vol", "net")
	if _, err := s.Mount(ctx, "vol", "ctr"); err != nil {
		t.Fatal(err)
	}
	h.setAway("net", errAway)
	wants(t, s.Unmount(ctx, "vol", "ctr"), errs.Unavailable, "connection refused")
	kill()
	s, _ = h.engine("boot")
	must(t, s.Settle(ctx))
	h.setAway("net", nil)
	eventually(t, "unmounted", func() bool { return len(d.Mounted("vol")) == 0 })
	eventually(t, "forgotten", func() bool { return len(s.owed()) == 0 })
	must(t, s.Remove(ctx, "vol", false))
}

// A driver that never answers an unmount holds nobody up, and its other volumes neither.
func TestUnmountThatHangs(t *testing.T) {
	h := newHost(t, "net")
	d := h.drivers["net"]
	ctx := t.Context()
	s, _ := h.engine("")
	create(t, s, "vol", "net")
	create(t, s, "vol2", "net")
	if _, err := s.Mount(ctx, "vol", "ctr"); err != nil {
		t.Fatal(err)
	}
	free := make(chan struct{})
	d.Fail(false, func(method, name string) error {
		if method == "Unmount" {
			<-free
		}
		return nil
	})
	short, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
	defer cancel()
	if err := s.Unmount(short, "vol", "ctr"); err == nil {
		t.Error("it did not hang")
	}
	if _, err := s.Mount(ctx, "vol2", "ctr"); err != nil {
		t.Error(err)
	}
	close(free)
	eventually(t, "unmounted", func() bool { return len(d.Mounted("vol")) == 0 })
}

// The story: an unmount waited for a driver, the container was started again meanwhile, was given the mount that was there, and lost it when the unmount got its turn.
func TestMountBeforeAnUnmountGotItsTurn(t *testing.T) {
	h := newHost(t, "net")
	d := h.drivers["net"]
	ctx := t.Context()
	s, kill := h.engine("")
	create(t, s, "vol", "net")
	if _, err := s.Mount(ctx, "vol", "ctr"); err != nil {
		t.Fatal(err)
	}
	unlock, err := s.names.Lock(ctx, "vol") // another user's mount takes its time
	must(t, err)
	short, cancel := context.WithTimeout(ctx, 20*time.Millisecond)
	defer cancel()
	if err := s.Unmount(short, "vol", "ctr"); err == nil {
		t.Error("it did not wait")
	}
	mounted := make(chan error, 1)
	go func() {
		_, err := s.Mount(ctx, "vol", "ctr")
		mounted <- err
	}()
	unlock()
	must(t, <-mounted)
	kill()
	if got := d.Mounted("vol"); got["ctr"] != 1 {
		t.Errorf("after a mount: %v; calls %q", got, d.Calls())
	}
}

// An engine that starts waits for no driver, however many containers died that had its volumes.
func TestStartWaitsForNobody(t *testing.T) {
	h := newHost(t, "net")
	d := h.drivers["net"]
	ctx := t.Context()
	s, kill := h.engine("boot")
	create(t, s, "vol", "net")
	ids := []string{"a", "b", "c", "d"}
	for _, id := range ids {
		if _, err := s.Mount(ctx, "vol", id); err != nil {
			t.Fatal(err)
		}
	}
	kill()
	free := make(chan struct{})
	d.Fail(false, func(string, string) error { <-free; return nil })
	s, _ = h.engine("boot")
	for _, id := range ids[1:] {
		must(t, s.Unmount(ctx, "vol", id)) // who waits for the driver gets an error after unmountTime
	}
	settled := make(chan error, 1)
	go func() { settled <- s.Settle(ctx) }()
	select {
	case err := <-settled:
		must(t, err)
	case <-time.After(time.Minute):
		t.Error("the start waits for the driver")
	}
	close(free)
	eventually(t, "all are unmounted", func() bool { return len(d.Mounted("vol")) == 0 })
}

// The story: host and plugin came up together, the plugin a little later, and a container that was to be started again failed at once, because an unmount was owed from before.
func TestMountWaitsAlsoWhenAnUnmountIsOwed(t *testing.T) {
	h := newHost(t, "net")
	d := h.drivers["net"]
	ctx := t.Context()
	s, _ := h.engine("")
	create(t, s, "vol", "net")
	if _, err := s.Mount(ctx, "vol", "ctr"); err != nil {
		t.Fatal(err)
	}
	h.setAway("net", errAway)
	wants(t, s.Unmount(ctx, "vol", "ctr"), errs.Unavailable, "connection refused")
	mounted := make(chan error, 1)
	go func() {
		_, err := s.Mount(ctx, "vol", "ctr")
		mounted <- err
	}()
	time.Sleep(20 * time.Millisecond) // so that it has to wait; if it did not begin yet, nothing is tested, and nothing breaks
	h.setAway("net", nil)
	must(t, <-mounted)
	if got := d.Mounted("vol"); got["ctr"] != 1 {
		t.Errorf("mounted: %v", got)
	}
}
