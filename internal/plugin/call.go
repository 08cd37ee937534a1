package plugin

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"corten.dev/corten/internal/errs"
)

// Client calls one plugin by one of its interfaces ("VolumeDriver", "NetworkDriver", "IpamDriver"). It is a name and nothing more: it needs no end, may be kept for
// as long as the engine runs, and finds the plugin anew for each call.
type Client struct {
	set   *Set
	p     *plugin
	iface string
}

// Call is one call.
type Call struct {
	Method string // without the interface: "Mount"
	In     any    // sent as JSON; nil: no body
	Out    any    // what the answer is read into; nil: only whether it is an error counts
	// Limit is how long the answer may take; zero is CallTime.
	Limit time.Duration
	// NoWait: a plugin that cannot be reached now is an error now.
	NoWait bool
	// Again tells that the call may be carried out twice without harm. Only then it is sent again after the connection broke.
	Again bool
}

// tries is how often a call is sent, at most, whose connection breaks.
const tries = 3

// Get finds a plugin, waits for it as [Call] does, and greets it. errs.NotFound tells that there is none of that name, errs.Invalid that it does not implement the interface,
// errs.Unavailable that it does not answer.
func (s *Set) Get(ctx context.Context, name, iface string) (*Client, error) {
	c, err := s.Client(name, iface)
	if err != nil {
		return nil, err
	}
	return c, c.wait(ctx, Call{}, c.ready)
}

// Client makes a client without a look at whether there is such a plugin.
func (s *Set) Client(name, iface string) (*Client, error) {
	if err := CheckName(name); err != nil {
		return nil, err
	}
	return &Client{set: s, p: s.plugin(name), iface: iface}, nil
}

// Name is the plugin's name.
func (c *Client) Name() string { return c.p.name }

// Ready greets the plugin if that was not done, without waiting for one that is away. One that lately took too long for an answer is an error at once, for RestTime or until it is started anew: this is for those who
// ask all plugins, and can do without one.
func (c *Client) Ready(ctx context.Context) error {
	at, _ := c.set.find(c.p.name) // what is wrong with it, greeting finds out as well
	c.p.mu.Lock()
	why, rests := c.p.why, time.Now().Before(c.p.rests) && c.p.at.mark.same(at.mark)
	c.p.mu.Unlock()
	if rests {
		return errs.New(errs.Unavailable, "left alone for a while: %w", why)
	}
	return c.ready(ctx)
}

func (c *Client) ready(ctx context.Context) error {
	_, err := c.greeted(ctx)
	return err
}

// Call calls a method with the usual limits: it waits for a plugin that is away, and is sent once.
func (c *Client) Call(ctx context.Context, method string, in, out any) error {
	return c.Do(ctx, Call{Method: method, In: in, Out: out})
}

// Do makes a call. Its errors: [Error] is what the plugin said; errs.Unavailable, a plugin that cannot be reached, does not answer or answers nonsense, and then [Uncertain] tells whether
// the call may have been carried out nevertheless; else those of Get.
func (c *Client) Do(ctx context.Context, call Call) error {
	return c.wait(ctx, call, func(ctx context.Context) error {
		at, err := c.greeted(ctx)
		if err != nil {
			return err
		}
		limit := call.Limit
		if limit == 0 {
			limit = CallTime
		}
		return c.p.exchange(ctx, at, exchange{method: c.iface + "." + call.Method, in: call.In, out: call.Out, limit: limit})
	})
}

// awayError is a plugin that was not reached: nothing happened there.
type awayError struct{ err error }

func (a *awayError) Error() string   { return a.err.Error() }
func (a *awayError) Unwrap() []error { return []error{a.err, errs.Unavailable} }

// brokenError is a connection that broke before the answer was there.
type brokenError struct{ err error }

func (b *brokenError) Error() string { return b.err.Error() }
func (b *brokenError) Unwrap() error { return b.err }

// wait tries until it works, or fails for good, or the time is over.
func (c *Client) wait(ctx context.Context, call Call, try func(context.Context) error) error {
	began, pause, sent, told := time.Now(), firstWait, 0, false
	for {
		err := try(ctx)
		var away *awayError
		var broken *brokenError
		var limit time.Duration
		switch {
		case err == nil || ctx.Err() != nil:
			return err
		case errors.As(err, &broken) && call.Again:
			if sent++; sent == tries {
				return err
			}
			limit = c.set.opts.Wait
		case errors.As(err, &away) && !call.NoWait:
			limit = c.set.opts.Wait
		case errors.Is(err, errs.NotFound) && !Uncertain(err) && !isSaid(err) && !call.NoWait:
			limit = c.set.opts.Look
			if c.p.known() {
				limit = c.set.opts.Wait
			}
		default:
			return err
		}
		if time.Since(began)+pause > limit {
			return err
		}
		if !told && pause > 4*firstWait {
			c.set.opts.Warn(c.p.name, err)
			told = true
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return err
		}
		pause = min(2*pause, lastWait)
	}
}

func isSaid(err error) bool {
	var said *Error
	return errors.As(err, &said)
}

// known tells whether the plugin was greeted once.
func (p *plugin) known() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.provides != nil
}

// greeted finds the plugin and greets it, if it was not greeted since it was started.
func (c *Client) greeted(ctx context.Context) (place, error) {
	at, err := c.set.find(c.p.name)
	if err != nil {
		return place{}, err
	}
	provides := c.p.providesAt(at)
	if provides == nil {
		select { // one greeting at a time
		case c.p.greet <- struct{}{}:
		case <-ctx.Done():
			return place{}, &awayError{fmt.Errorf("wait for plugin %s: %w", c.p.name, context.Cause(ctx))}
		}
		if provides = c.p.providesAt(at); provides == nil {
			provides, err = c.p.activate(ctx, at)
		}
		<-c.p.greet
		if err != nil {
			return place{}, err
		}
	}
	if !slices.Contains(provides, c.iface) {
		return place{}, errs.New(errs.Invalid, "plugin %q does not implement the requested driver %s", c.p.name, c.iface)
	}
	return at, nil
}

func (p *plugin) providesAt(at place) []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.provides == nil || !p.at.mark.same(at.mark) {
		return nil
	}
	return p.provides
}

// activate greets the plugin. Whatever goes wrong, no call was made yet.
func (p *plugin) activate(ctx context.Context, at place) ([]string, error) {
	var manifest struct{ Implements []string }
	err := p.exchange(ctx, at, exchange{method: "Plugin.Activate", out: &manifest, limit: GreetTime})
	var said *Error
	var away *awayError
	var broken *brokenError
	switch {
	case err == nil:
	case errors.As(err, &said) && said.Status < 500, !errors.As(err, &away) && !errors.As(err, &broken) && !errors.As(err, &said):
		return nil, errs.New(errs.Unavailable, "greet plugin %s: %v", p.name, err)
	case errors.As(err, &away):
		return nil, away
	default: // it may be about to come up
		return nil, &awayError{fmt.Errorf("greet plugin %s: %v", p.name, err)}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.at, p.provides = at, append([]string{}, manifest.Implements...)
	return p.provides, nil
}

// answered and silent keep how the last call went.
func (p *plugin) answered() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.rests, p.rest, p.why = time.Time{}, 0, nil
}

func (p *plugin) silent(why error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if time.Now().After(p.rests) { // not once more for each of the calls that were under way together
		p.rest = min(max(2*p.rest, RestTime), maxRest)
	}
	p.rests, p.why = time.Now().Add(p.rest), why
}
