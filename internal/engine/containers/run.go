package containers

import (
	"context"
	"errors"
	"net"
	"time"

	"corten.dev/corten/internal/monitor"
)

// errLeft is a client that went away before its container ended.
var errLeft = errors.New("the client left")

// lastWords is how long a client may take to read the end of a run.
const lastWords = 10 * time.Second

// Run implements [API]. It is attach, wait and start in one, in the order in which a client would ask for them:
//
//	note who waits ─▶ note the client ─▶ take the connection ─▶ start ─▶ … output delivered ─▶ ended (or removed) ─▶ the last word
func (s *Service) Run(ctx context.Context, ref string, opts AttachOptions, last func(Ended, error) []byte) error {
	ctr, err := s.find(ref)
	if err != nil {
		return err
	}
	keys, err := parseDetachKeys(opts.DetachKeys)
	if err != nil {
		return err
	}
	rec := ctr.record()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	cond := NextExit
	if rec.Host.AutoRemove {
		cond = Removed
	}
	ended, err := s.Wait(ctx, ref, cond)
	if err != nil {
		return err
	}
	early, err := ctr.expect()
	if err != nil {
		return err
	}
	defer early.settle(nil, monitor.AttachOptions{}) // unless it was
	conn, preread, err := opts.Hijack(rec.Config.Tty)
	if err != nil {
		return err
	}
	ours, err := monitor.CopyOf(conn)
	if err != nil {
		conn.Close()
		return err
	}
	defer ours.Close()
	s.emit(ctr, "attach", nil)
	attached, err := s.attach(ctx, ctr, conn, monitor.AttachOptions{
		Stdin: opts.Stdin && rec.Config.OpenStdin, Stdout: opts.Stdout, Stderr: opts.Stderr, Framed: !rec.Config.Tty, Shared: true, Preread: preread, DetachKeys: keys,
	}, early)
	if err != nil {
		conn.Close()
		return err
	}
	end := Ended{}
	if err = s.startFound(ctx, ctr); err == nil {
		end, err = s.follow(ctx, ctr, attached, ended)
		if err != nil {
			return err
		}
	}
	if err := ours.Finish(last(end, err), lastWords); err != nil && !errors.Is(err, net.ErrClosed) {
		return errors.Join(errLeft, err)
	}
	return nil
}

// follow waits for the end of a run and of its output.
func (s *Service) follow(ctx context.Context, ctr *live, attached <-chan monitor.AttachEnd, ended <-chan Ended) (Ended, error) {
	select {
	case <-attached:
	case <-ctx.Done():
		return Ended{}, ctx.Err()
	}
	select {
	case end := <-ended:
		return end, nil
	default:
	}
	// A monitor tells the exit before the end of the output, so that a process which still runs has no client any more.
	ctr.mu.Lock()
	mon := ctr.mon
	ctr.mu.Unlock()
	if mon != nil {
		select {
		case <-mon.Exited():
		default:
			return Ended{}, errLeft
		}
	}
	select {
	case end := <-ended:
		return end, nil
	case <-ctx.Done():
		return Ended{}, ctx.Err()
	}
}
