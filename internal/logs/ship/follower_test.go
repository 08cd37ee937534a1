package ship

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"corten.dev/corten/internal/logs"
	"corten.dev/corten/internal/logs/logfile"
)

// receiver is a driver whose destination is this test.
type receiver struct {
	policy Policy

	mu    sync.Mutex // guards what follows
	away  bool
	takes int // messages that one Send takes; 0: all
	have  []string
	again int    // how often a message came twice
	bad   string // a message that is refused
	block chan struct{}
	sends int // calls of Send
}

func (r *receiver) Name() string                    { return "test" }
func (r *receiver) Options() []string               { return []string{"test-opt"} }
func (r *receiver) Check(map[string]string) error   { return nil }
func (r *receiver) Policy(map[string]string) Policy { return r.policy }
func (r *receiver) Close() error                    { return nil }
func (r *receiver) set(fn func())                   { r.mu.Lock(); defer r.mu.Unlock(); fn() }
func (r *receiver) Open(context.Context, *Info) (Destination, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.away {
		return nil, errors.New("nobody listens")
	}
	return r, nil
}

func (r *receiver) Send(ctx context.Context, msgs []Message) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.sends++
	if block := r.block; block != nil {
		r.mu.Unlock()
		select {
		case <-block:
		case <-ctx.Done():
		}
		r.mu.Lock()
	}
	for i := range msgs {
		switch text := string(msgs[i].Line); {
		case ctx.Err() != nil:
			return i, ctx.Err()
		case r.away:
			return i, errors.New("the line is dead")
		case r.bad != "" && text == r.bad:
			return i, fmt.Errorf("%w: too ugly", ErrRefused)
		case r.takes > 0 && i == r.takes:
			return i, nil
		default:
			if slices.Contains(r.have, text) {
				r.again++
			}
			r.have = append(r.have, text)
		}
	}
	return len(msgs), nil
}

func (r *receiver) count() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.have)
}

// a course of a container: its log, a follower, and the end.
type desk struct {
	t       *testing.T
	dir     string
	w       *logfile.Writer
	n       int
	watches *logs.Watches
	r       *receiver
}

func newDesk(t *testing.T) *desk {
	d := &desk{t: t, dir: t.TempDir(), watches: logs.NewWatches(), r: &receiver{policy: Policy{Wait: time.Millisecond, MaxWait: 10 * time.Millisecond}}}
	var err error
	if d.w, err = logfile.Open(logfile.Options{Path: filepath.Join(d.dir, "log")}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.w.Close(); d.watches.Close() })
	return d
}

func (d *desk) follower() *Follower {
	return New(Options{Dir: filepath.Join(d.dir, "log"), State: filepath.Join(d.dir, "ship", "test"), Driver: d.r, Info: Info{ContainerName: "/c"}, Watches: d.watches,
		Log: slog.New(slog.NewTextHandler(io.Discard, nil))})
}

func (d *desk) say(n int) {
	d.t.Helper()
	for range n {
		d.n++
		if err := d.w.Write(logs.Stdout, int64(d.n), fmt.Appendf(nil, "line %d\n", d.n)); err != nil {
			d.t.Fatal(err)
		}
	}
}

func (d *desk) eventually(what string, fn func() bool) {
	d.t.Helper()
	for end := time.Now().Add(30 * time.Second); !fn(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			d.t.Fatalf("waited in vain: %s", what)
		}
	}
}

// all checks that every line came, in order and once.
func (d *desk) all() {
	d.t.Helper()
	d.r.mu.Lock()
	defer d.r.mu.Unlock()
	if len(d.r.have) != d.n || d.r.again != 0 {
		d.t.Fatalf("%d lines came (%d twice), said %d", len(d.r.have), d.r.again, d.n)
	}
	for i, text := range d.r.have {
		if text != fmt.Sprintf("line %d", i+1) {
			d.t.Fatalf("line %d is %q", i+1, text)
		}
	}
}

func TestFollower(t *testing.T) {
	d := newDesk(t)
	d.r.takes = 7
	done := make(chan struct{})
	f := d.follower()
	if err := f.Reach(t.Context()); err != nil {
		t.Fatal(err)
	}
	f.Run(done)
	d.say(100)
	d.eventually("the lines", func() bool { return d.r.count() == 100 })
	d.r.set(func() { d.r.away = true })
	d.say(100)
	d.eventually("away", func() bool { return f.Status().State == "away" && f.Status().Error == "nobody listens" })
	d.r.set(func() { d.r.away = false })
	d.say(100)
	close(done)
	f.Drain(t.Context(), 30*time.Second)
	d.all()
	if st := f.Status(); st.State != "idle" || st.Sent != 300 || f.Running() {
		t.Errorf("%+v", st)
	}
	// The container is started again.
	done = make(chan struct{})
	f.Run(done)
	d.say(50)
	d.eventually("the second run", func() bool { return d.r.count() == 350 })
	f.Close()
	d.all()
}

// An engine that is killed goes on where the last one stopped: nothing is lost, and nothing is doubled that was told to be there.
func TestFollowerOfTheNextEngine(t *testing.T) {
	d := newDesk(t)
	d.r.takes = 3
	for range 20 {
		f := d.follower()
		f.Run(make(chan struct{}))
		d.say(20)
		want := d.n - 10
		d.eventually("some lines", func() bool { return d.r.count() >= want })
		f.Close()
	}
	over := make(chan struct{})
	close(over)
	f := d.follower()
	f.Run(over)
	f.Drain(t.Context(), 30*time.Second)
	d.all()
}

func TestFollowerGivesUpWhatNobodyTakes(t *testing.T) {
	d := newDesk(t)
	d.r.bad = "line 5"
	done := make(chan struct{})
	f := d.follower()
	f.Run(done)
	d.say(10)
	d.eventually("the others", func() bool { return d.r.count() == 9 })
	d.eventually("the count", func() bool { return f.Status().Refused == 1 && f.Status().Sent == 9 })
	f.Close()

	d.r.set(func() { d.r.away = true })
	d.r.policy.Tries = 3
	f = d.follower()
	f.Run(done)
	d.say(5)
	d.eventually("giving up", func() bool { return f.Status().Refused == 6 })
	d.r.set(func() { d.r.away = false })
	d.say(1)
	d.eventually("the next one", func() bool { return d.r.count() == 10 })
	f.Close()
}

// A destination that is away at the start fails it, unless its driver says that it may come later.
func TestReach(t *testing.T) {
	d := newDesk(t)
	d.r.away = true
	if err := d.follower().Reach(t.Context()); err == nil || !strings.Contains(err.Error(), "nobody listens") {
		t.Errorf("got %v", err)
	}
	d.r.policy.Lazy = true
	if err := d.follower().Reach(t.Context()); err != nil {
		t.Errorf("lazy: %v", err)
	}
}

// Close ends a follower whose destination takes nothing, and the removal of a container does not wait for it long.
func TestCloseWhileTheDestinationHangs(t *testing.T) {
	d := newDesk(t)
	d.r.block = make(chan struct{})
	done := make(chan struct{})
	f := d.follower()
	f.Run(done)
	d.say(5)
	close(done)
	f.Drain(t.Context(), 10*time.Millisecond)
	f.Close()
	if d.r.count() != 0 {
		t.Error("it took something")
	}
	d.r.set(func() { d.r.block = nil })
	f = d.follower()
	f.Run(done)
	f.Drain(t.Context(), 30*time.Second)
	f.Close()
	d.all()
}

// A follower that another one takes over from has its batch delivered first: its messages do not come twice.
func TestStopBehindWhatIsSent(t *testing.T) {
	d := newDesk(t)
	block := make(chan struct{})
	d.r.block = block
	d.say(100)
	done := make(chan struct{})
	defer close(done)
	first := d.follower()
	first.Run(done)
	d.eventually("a batch on its way", func() bool { sends := 0; d.r.set(func() { sends = d.r.sends }); return sends > 0 })
	stopped := make(chan struct{})
	go func() { first.Stop(t.Context(), time.Minute); close(stopped) }()
	select {
	case <-stopped:
		t.Error("stopped while its destination has the messages")
	case <-time.After(20 * time.Millisecond):
	}
	d.r.set(func() { d.r.block = nil })
	close(block)
	<-stopped
	d.say(10)
	next := d.follower()
	next.Run(done)
	defer next.Close()
	d.eventually("all messages", func() bool { return d.r.count() >= 110 })
	d.all()
}

// A driver that panics ends neither the engine nor the others.
func TestDriverPanics(t *testing.T) {
	d := newDesk(t)
	f := New(Options{Dir: filepath.Join(d.dir, "log"), State: filepath.Join(d.dir, "ship", "x"), Driver: panics{d.r}, Watches: d.watches, Log: slog.New(slog.NewTextHandler(io.Discard, nil))})
	f.Run(make(chan struct{}))
	d.say(1)
	d.eventually("away", func() bool { return f.Status().State == "away" })
	f.Close()
}

type panics struct{ *receiver }

func (panics) Open(context.Context, *Info) (Destination, error) {
	panic("planned bug")
}
