package buildprogress

import (
	"encoding/json"
	"fmt"
	"io"
	"sync"
	"time"

	"corten.dev/corten/internal/errs"
)

// The modes of a display.
const (
	Auto    = "auto"
	TTY     = "tty"
	Text    = "plain"
	RawJSON = "rawjson"
	Quiet   = "quiet"
)

// Options say where and how to show.
type Options struct {
	Out  io.Writer
	Mode string
	// Size asks the terminal: columns and rows. Nil: there is none.
	Size   func() (width, height int)
	Colour bool
	Title  string           // "Building" when empty
	Clock  func() time.Time // nil: time.Now
}

// Between two frames of the live view lies at least this; a build that ends sooner has one or two frames.
const frameEvery = 100 * time.Millisecond

// Display shows builds while they run. Its methods may be called concurrently.
type Display struct {
	o     Options
	mode  string
	mu    sync.Mutex // guards all below, and the output
	model *Model
	plain *Plain
	live  *Live
	drawn time.Time
	timer *time.Timer
	ended bool
	news  bool // since the last frame
	err   error
}

// New makes a display. The mode auto is tty on a terminal, else plain.
func New(o Options) (*Display, error) {
	if o.Clock == nil {
		o.Clock = time.Now
	}
	if o.Title == "" {
		o.Title = "Building"
	}
	d := &Display{o: o, mode: o.Mode}
	switch {
	case o.Mode == "" || o.Mode == Auto:
		if d.mode = Text; o.Size != nil {
			d.mode = TTY
		}
	case o.Mode == TTY && o.Size == nil:
		return nil, errs.New(errs.Invalid, "--progress tty: the error output is not a terminal")
	case o.Mode == TTY, o.Mode == Text, o.Mode == RawJSON, o.Mode == Quiet:
	default:
		return nil, errs.New(errs.Invalid, "invalid progress mode %s: use auto, plain, tty, rawjson or quiet", o.Mode)
	}
	switch d.mode {
	case TTY:
		d.model = NewModel(200)
		d.live = NewLive(d.model, o.Title, o.Colour)
	case Text:
		d.model = NewModel(plainTail)
		d.plain = NewPlain(d.model)
	default:
		d.model = NewModel(0)
	}
	return d, nil
}

// Mode is what auto became.
func (d *Display) Mode() string { return d.mode }

// Update takes a frame of status as JSON.
func (d *Display) Update(raw []byte, prefix string) error {
	var st Status
	if d.mode != RawJSON {
		if err := json.Unmarshal(raw, &st); err != nil {
			return fmt.Errorf("read the status of the build: %w", err)
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.ended {
		return nil
	}
	now := d.o.Clock()
	switch d.mode {
	case RawJSON:
		d.write(append(append([]byte(nil), raw...), '\n'))
	case Quiet:
		d.model.Apply(&st, prefix, now)
	case Text:
		d.model.Apply(&st, prefix, now)
		d.write(d.plain.Next(now))
	case TTY:
		d.model.Apply(&st, prefix, now)
		d.news = true
		d.later(now)
	}
	return d.err
}

func (d *Display) write(p []byte) {
	if d.err != nil || len(p) == 0 {
		return
	}
	_, d.err = d.o.Out.Write(p)
}

// later draws now, or when it is time again.
func (d *Display) later(now time.Time) {
	if now.Sub(d.drawn) >= frameEvery {
		d.frame(now, false)
		return
	}
	d.wake(frameEvery - now.Sub(d.drawn))
}

// wake draws again after a while, for times that pass without anything happening.
func (d *Display) wake(after time.Duration) {
	if d.timer != nil {
		return
	}
	d.timer = time.AfterFunc(after, func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.timer = nil
		if !d.ended {
			d.frame(d.o.Clock(), false)
		}
	})
}

func (d *Display) frame(now time.Time, last bool) {
	width, height := d.o.Size()
	d.write(d.live.Frame(now, width, height, last))
	d.drawn, d.news = now, false
	if !last {
		d.wake(frameEvery)
	}
}

// Cancel shows what runs as cancelled.
func (d *Display) Cancel() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.model.Cancel(d.o.Clock())
	d.news = true
}

// Pause draws what there is, and what failed steps said, and draws no more until the returned function is called: somebody else has the terminal.
func (d *Display) Pause() (resume func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.settle()
	if d.mode == TTY {
		d.write(d.model.Failures(tailLines))
	}
	return func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.ended = false
		if d.live != nil {
			d.live.drawn = nil
		}
	}
}

// settle draws the last frame.
func (d *Display) settle() {
	if d.ended {
		return
	}
	d.ended = true
	if d.timer != nil {
		d.timer.Stop()
		d.timer = nil
	}
	now := d.o.Clock()
	switch d.mode {
	case Text:
		d.write(d.plain.Next(now))
	case TTY:
		// After a pause the last frame stands above what others wrote: it is drawn again only if something happened since.
		if !d.model.began.IsZero() && (d.news || len(d.live.drawn) > 0) {
			d.frame(now, true)
		}
	}
}

// Finish draws the end, and what failed steps said at last.
func (d *Display) Finish() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.settle()
	switch d.mode {
	case Text:
		d.write(d.model.Failures(plainTail))
	case TTY:
		d.write(d.model.Failures(d.model.Keep))
	}
	return d.err
}

// Warnings are all that came, each once.
func (d *Display) Warnings() []Warning {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.model.Warnings()
}

// Warned draws, below the end of a build that succeeded or failed, what the linter found; all is told with details. Programs, and who asked for quiet, find it elsewhere.
func (d *Display) Warned(details bool) error {
	if d.mode != TTY && d.mode != Text {
		return nil
	}
	return printWarnings(d.o.Out, d.Warnings(), details, d.mode == TTY && d.o.Colour)
}
