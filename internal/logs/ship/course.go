package ship

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"
)

// course is one pass of a follower, from opening its state to the end of the log.
type course struct {
	f      *Follower
	keeper *keeper
	state  kept
	cut    *joiner
	dest   Destination
	batch  batch
}

func (f *Follower) follow(ctx context.Context) error {
	if err := os.MkdirAll(filepath.Dir(f.opts.State), 0o700); err != nil {
		return err
	}
	keeper, state, err := openKeeper(f.opts.State)
	if err != nil {
		return err
	}
	c := &course{f: f, keeper: keeper, state: state, cut: &joiner{cutter: newCutter(f.opts.Dir, state.place), join: f.opts.Join}}
	c.batch.limit = f.policy.Batch
	f.count(&state)
	defer c.close()
	changed, remove := f.opts.Watches.Add(f.opts.Dir)
	defer remove()
	for {
		over, turns := f.over()
		c.cut.ended = over
		if err := c.drain(ctx); err != nil {
			return err
		}
		if over {
			return nil
		}
		c.cut.tape.Idle()
		c.batch = batch{limit: c.batch.limit}
		if err := f.wait(ctx, c.cut, changed, turns); err != nil {
			return err
		}
	}
}

func (c *course) close() {
	c.cut.tape.Close()
	if c.dest != nil {
		c.dest.Close()
	}
	if err := c.keeper.close(); err != nil {
		c.f.opts.Log.Warn("close the place in a log", "container", c.f.opts.Info.Name(), "error", err)
	}
}

// drain hands over what there is.
func (c *course) drain(ctx context.Context) error {
	for {
		select {
		case <-c.f.rest:
			return errResting
		default:
		}
		if err := c.batch.collect(c.cut); err != nil {
			return err
		}
		c.tellMissed()
		if len(c.batch.msgs) == 0 {
			return nil
		}
		if err := c.deliver(ctx); err != nil {
			return err
		}
	}
}

// tellMissed counts lines that are gone.
func (c *course) tellMissed() {
	if c.cut.missed == 0 {
		return
	}
	f := c.f
	f.opts.Log.Warn("lines of a log were dropped by its bound (max-size, max-file) before they could be sent", "container", f.opts.Info.Name(), "driver", f.opts.Driver.Name(), "lines", c.cut.missed)
	c.state.Lost += c.cut.missed
	c.cut.missed = 0
	f.count(&c.state)
}

// deliver hands the batch over, however long it takes. It returns early only when ctx ends.
func (c *course) deliver(ctx context.Context) error {
	f := c.f
	wait, tries := f.policy.Wait, 0
	for len(c.batch.msgs) > 0 {
		n, err := c.send(ctx)
		if n > 0 {
			c.state.place = c.batch.places[n-1]
			c.state.Sent += int64(n)
			c.batch.drop(n)
			wait, tries = f.policy.Wait, 0
			if kerr := c.kept(); kerr != nil {
				return kerr
			}
		}
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case err == nil:
			f.back()
			continue
		case errors.Is(err, ErrRefused) && len(c.batch.msgs) > 0:
			if err := c.giveUp(1, err); err != nil {
				return err
			}
			continue
		}
		if c.dest != nil {
			c.dest.Close()
			c.dest = nil
		}
		if errors.Is(err, errAgain) {
			continue
		}
		f.away(err)
		if tries++; f.policy.Tries > 0 && tries >= f.policy.Tries {
			if err := c.giveUp(len(c.batch.msgs), err); err != nil {
				return err
			}
			tries = 0
			continue
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(wait):
		}
		wait = min(2*wait, f.policy.MaxWait)
	}
	return nil
}

// giveUp passes over messages that cannot be delivered.
func (c *course) giveUp(n int, why error) error {
	c.f.opts.Log.Warn("messages of a log were given up", "container", c.f.opts.Info.Name(), "driver", c.f.opts.Driver.Name(), "messages", n, "error", why)
	c.state.place = c.batch.places[n-1]
	c.state.Refused += int64(n)
	c.batch.drop(n)
	return c.kept()
}

func (c *course) kept() error {
	if m, ok := c.dest.(Marked); ok {
		c.state.Mark = m.Mark()
	}
	if err := c.keeper.keep(&c.state); err != nil {
		return err
	}
	c.f.count(&c.state)
	return nil
}

func (c *course) send(ctx context.Context) (int, error) {
	if c.dest == nil {
		if err := c.open(ctx); err != nil {
			return 0, err
		}
	}
	return c.dest.Send(ctx, c.batch.msgs)
}

func (c *course) open(ctx context.Context) error {
	f := c.f
	f.mu.Lock()
	dest := f.ready
	f.ready = nil
	f.mu.Unlock()
	if dest == nil {
		octx, cancel := context.WithTimeout(ctx, reachTimeout)
		defer cancel()
		var err error
		if dest, err = f.opts.Driver.Open(octx, &f.opts.Info); err != nil {
			return err
		}
	}
	c.dest = dest
	if m, ok := dest.(Marked); ok {
		if err := m.Resume(c.state.Mark); err != nil {
			return fmt.Errorf("go on where the last engine stopped: %w", err)
		}
	}
	return nil
}
