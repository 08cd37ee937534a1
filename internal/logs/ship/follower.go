package ship

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"corten.dev/corten/internal/logs"
	"corten.dev/corten/internal/task"
)

// Options make a follower.
type Options struct {
	Dir     string // the container's log
	State   string // file of the place in it; its folder is made
	Driver  Driver
	Info    Info
	Join    *Join // lines that become one message; nil: none
	Watches *logs.Watches
	Log     *slog.Logger
	// Moved, if set, is called when everything in a file of the log was handed over.
	Moved func()
}

// Status is how a follower is doing.
type Status struct {
	Driver string
	// State is "connected", "away" (it tries again), "idle" (everything was sent and the container does not run) or "waiting" (not opened yet).
	State string
	Error string `json:",omitempty"` // why it is away
	Sent  int64  // messages
	// Lost counts lines that the log's bound took before they could be sent; Refused messages that were given up, or that the destination cannot take.
	Lost, Refused int64
}

// Follower hands one container's log to one destination.
type Follower struct {
	opts   Options
	policy Policy

	mu      sync.Mutex // guards what follows
	done    <-chan struct{}
	turns   chan struct{} // closed and renewed when done changes
	rest    chan struct{} // closed when it is to stop behind what it is sending
	running bool
	closing bool
	ended   chan struct{} // closes when the goroutine has ended
	cancel  context.CancelFunc
	status  Status
	ready   Destination // opened before the start
	passed  int64       // number of the file that it reads
}

// New makes a follower that does nothing yet.
func New(opts Options) *Follower {
	p := opts.Driver.Policy(opts.Info.Config)
	p.Wait, p.MaxWait, p.Batch = cmp.Or(p.Wait, 500*time.Millisecond), cmp.Or(p.MaxWait, 30*time.Second), cmp.Or(p.Batch, 256<<10)
	return &Follower{opts: opts, policy: p, turns: make(chan struct{}), rest: make(chan struct{}), status: Status{Driver: opts.Driver.Name(), State: "waiting"}}
}

// Reach opens the destination before a container's process starts, unless that may be late or it is open.
func (f *Follower) Reach(ctx context.Context) error {
	f.mu.Lock()
	have := f.policy.Lazy || f.ready != nil || f.running && f.status.State == "connected"
	f.mu.Unlock()
	if have {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, reachTimeout)
	defer cancel()
	dest, err := f.opts.Driver.Open(ctx, &f.opts.Info)
	if err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.running || f.ready != nil {
		return dest.Close()
	}
	f.ready = dest
	return nil
}

const reachTimeout = 10 * time.Second

// Run follows the log until done closes and everything is handed over. A follower that runs goes on with the new done: the container was started again.
func (f *Follower) Run(done <-chan struct{}) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closing {
		return
	}
	f.done = done
	close(f.turns)
	f.turns = make(chan struct{})
	if f.running {
		return
	}
	var ctx context.Context
	ctx, f.cancel = context.WithCancel(context.Background())
	f.running, f.ended = true, make(chan struct{})
	go f.run(ctx, f.ended)
}

// Unreach closes what Reach opened, when the start fails after it.
func (f *Follower) Unreach() {
	f.mu.Lock()
	ready := f.ready
	f.ready = nil
	f.mu.Unlock()
	if ready != nil {
		ready.Close()
	}
}

// Busy tells whether it runs, or has its destination open already.
func (f *Follower) Busy() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.running || f.ready != nil
}

// Running tells whether there is more to do.
func (f *Follower) Running() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.running
}

// Passed is the number of the file of the log below which everything was handed over; 0 while that is not known.
func (f *Follower) Passed() int64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.passed
}

// Status tells how it is doing.
func (f *Follower) Status() Status {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.status
}

// Drain waits until everything was handed over after done closed, as long as the destination takes it; a destination that is away is given up on after grace.
func (f *Follower) Drain(ctx context.Context, grace time.Duration) {
	t := time.NewTicker(drainLook)
	defer t.Stop()
	away := time.Now()
	sent := int64(-1)
	for {
		f.mu.Lock()
		running, ended, st := f.running, f.ended, f.status
		f.mu.Unlock()
		if !running {
			return
		}
		if st.Sent != sent {
			sent, away = st.Sent, time.Now()
		}
		if time.Since(away) > grace {
			return
		}
		select {
		case <-ended:
			return
		case <-ctx.Done():
			return
		case <-t.C:
		}
	}
}

const drainLook = 50 * time.Millisecond

// Stop is Close for a follower whose destination can be waited for, as long as grace: what is on its way arrives, and is not sent again by the next one on the same state.
func (f *Follower) Stop(ctx context.Context, grace time.Duration) {
	f.mu.Lock()
	ended, running := f.ended, f.running && f.status.State != "away"
	if !f.closing {
		f.closing = true
		close(f.rest)
	}
	f.mu.Unlock()
	if running {
		t := time.NewTimer(grace)
		defer t.Stop()
		select {
		case <-ended:
		case <-ctx.Done():
		case <-t.C:
		}
	}
	f.Close()
}

// errResting ends a course between two batches.
var errResting = errors.New("to be stopped")

// Close stops the follower where it is. What was not handed over goes on with the next one on the same state.
func (f *Follower) Close() {
	f.mu.Lock()
	f.closing = true
	cancel, ended := f.cancel, f.ended
	f.mu.Unlock()
	f.Unreach()
	if cancel != nil {
		cancel()
		<-ended
	}
}

// run is the follower's goroutine. A bug in a driver ends this follower, not the engine; it starts again after a while.
func (f *Follower) run(ctx context.Context, ended chan struct{}) {
	defer close(ended)
	for {
		err := f.contained(ctx)
		if ctx.Err() != nil || errors.Is(err, errResting) || err == nil && f.finish() {
			return
		}
		if err == nil { // the container was started again
			continue
		}
		f.away(err)
		select {
		case <-ctx.Done():
			return
		case <-time.After(f.policy.MaxWait):
		}
	}
}

// finish ends the goroutine unless the container was started again meanwhile.
func (f *Follower) finish() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	select {
	case <-f.done:
	default:
		return false
	}
	f.running = false
	f.status.State, f.status.Error = "idle", ""
	return true
}

func (f *Follower) contained(ctx context.Context) (err error) {
	defer task.Contain(f.opts.Log, "log driver "+f.opts.Driver.Name(), &err)
	return f.follow(ctx)
}

// over tells whether the container's process has ended, and with it the log.
func (f *Follower) over() (bool, <-chan struct{}) {
	f.mu.Lock()
	defer f.mu.Unlock()
	select {
	case <-f.done:
		return true, f.turns
	default:
		return false, f.turns
	}
}

// How often a follower looks when nothing tells it: where the folder cannot be watched, and where it can, in case an event was lost.
const (
	lookUnwatched = 100 * time.Millisecond
	lookWatched   = 5 * time.Second
)

func (f *Follower) wait(ctx context.Context, held *joiner, changed, turns <-chan struct{}) error {
	f.mu.Lock()
	done := f.done
	f.mu.Unlock()
	look := lookWatched
	if changed == nil {
		look = lookUnwatched
	}
	if due, ok := held.due(); ok {
		look = min(look, due)
	}
	t := time.NewTimer(look)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-changed:
	case <-done:
	case <-turns:
	case <-f.rest:
	case <-t.C:
	}
	return nil
}

// count shows the counters.
func (f *Follower) count(state *kept) {
	f.mu.Lock()
	f.status.Sent, f.status.Lost, f.status.Refused = state.Sent, state.Lost, state.Refused
	moved := f.passed != state.Base.File
	f.passed = state.Base.File
	f.mu.Unlock()
	if moved && f.opts.Moved != nil {
		f.opts.Moved()
	}
}

// away notes that the destination is away; the log is told once.
func (f *Follower) away(err error) {
	f.mu.Lock()
	was := f.status.State
	f.status.State, f.status.Error = "away", err.Error()
	f.mu.Unlock()
	if was != "away" {
		f.opts.Log.Warn("a log's destination is away; what the container says meanwhile is sent later", "container", f.opts.Info.Name(), "driver", f.opts.Driver.Name(), "error", err)
	}
}

// back notes that the destination took something.
func (f *Follower) back() {
	f.mu.Lock()
	was := f.status.State
	f.status.State, f.status.Error = "connected", ""
	f.mu.Unlock()
	if was == "away" {
		f.opts.Log.Info("a log's destination is back", "container", f.opts.Info.Name(), "driver", f.opts.Driver.Name())
	}
}
