package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"

	"corten.dev/corten/internal/buildwire"
	"corten.dev/corten/internal/cli/term"
	"corten.dev/corten/internal/errs"
)

// shell opens a shell in the step that failed, on our terminal. The engine keeps the step's tree until it ends.
func (s *buildSession) shell(ctx context.Context, q *buildwire.Stream, ask buildwire.Ask) error {
	if !s.plan.req.Shell || ask.Step == nil {
		return nil
	}
	a := s.app
	resume := s.display.Pause()
	defer resume()
	fmt.Fprintf(a.Err, "\nThe step failed: %s\n%s\nA shell opens where it ran; exit ends it, and the build.\n", ask.Step.Name, ask.Step.Error)
	start := buildwire.Terminal{}
	fd, tty := a.stdinFd()
	if tty {
		size := a.winsize()
		start.TTY, start.Columns, start.Rows = true, uint16(size.Width), uint16(size.Height)
		state, err := s.raw(fd)
		if err != nil {
			return err
		}
		defer state.Restore()
	}
	if err := q.Answer(start); err != nil {
		return err
	}
	if tty {
		done := make(chan struct{})
		defer close(done)
		go s.resizes(q, done)
	}
	go func() {
		_, _ = io.Copy(q, a.In) // the shell's end is what counts
		_ = q.End()
	}()
	if _, err := io.Copy(a.Out, q); err != nil && ctx.Err() == nil {
		return err
	}
	var exit buildwire.Exit
	if err := q.Heard(&exit); err != nil && !errors.Is(err, io.EOF) {
		return errs.New(errs.Unavailable, "the shell ended: %w", err)
	}
	return nil
}

// raw puts the terminal into raw mode, until the session ends at the latest: a build that is cancelled does not wait for its shell.
func (s *buildSession) raw(fd uintptr) (*term.State, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.over {
		return nil, errBuildOver
	}
	state, err := term.RawInput(fd)
	if err != nil {
		return nil, fmt.Errorf("put terminal into raw mode: %w", err)
	}
	s.stops = append(s.stops, func() { state.Restore() })
	return state, nil
}

// resizes tells the engine new sizes of the terminal.
func (s *buildSession) resizes(q *buildwire.Stream, done <-chan struct{}) {
	changes := make(chan os.Signal, 1)
	term.NotifyResize(changes)
	defer signal.Stop(changes)
	for {
		select {
		case <-changes:
			size := s.app.winsize()
			if q.Answer(buildwire.Terminal{TTY: true, Columns: uint16(size.Width), Rows: uint16(size.Height)}) != nil {
				return
			}
		case <-done:
			return
		}
	}
}
