package containers

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"strings"
	"sync"

	"corten.dev/corten/internal/container"
	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/logs"
	"corten.dev/corten/internal/monitor"
)

// Attach connects a client with the first process's streams and returns when that ended. To a container that does not run, it attaches what the next start brings.
func (s *Service) Attach(ctx context.Context, ref string, opts AttachOptions) error {
	ctr, err := s.find(ref)
	if err != nil {
		return err
	}
	rec := ctr.record()
	switch rec.State.Status {
	case container.Paused:
		return errs.New(errs.Conflict, "container %s is paused. Unpause the container before attach", ref)
	case container.Restarting:
		return errs.New(errs.Conflict, "container %s is restarting, wait until the container is running", ref)
	case container.Removing, container.Dead:
		return errs.New(errs.Conflict, "container %s is marked for removal", ref)
	}
	keys, err := parseDetachKeys(opts.DetachKeys)
	if err != nil {
		return err
	}
	var early *attachment
	defer func() { early.settle(nil, monitor.AttachOptions{}) }() // unless it was
	if opts.Stream && !opts.Logs {
		if early, err = ctr.expect(); err != nil {
			return err
		}
	}
	conn, preread, err := opts.Hijack(rec.Config.Tty)
	if err != nil {
		return err
	}
	if opts.Logs {
		if err := s.history(ctx, ctr, opts, conn); err != nil {
			conn.Close()
			return err
		}
		if opts.Stream {
			if early, err = ctr.expect(); err != nil {
				conn.Close()
				return err
			}
		}
	}
	if !opts.Stream {
		return conn.Close()
	}
	s.emit(ctr, "attach", nil)
	mopts := monitor.AttachOptions{
		Stdin: opts.Stdin && rec.Config.OpenStdin, Stdout: opts.Stdout, Stderr: opts.Stderr, Framed: !rec.Config.Tty, Preread: preread, DetachKeys: keys,
	}
	ended, err := s.attach(ctx, ctr, conn, mopts, early)
	if err != nil {
		conn.Close()
		return err
	}
	if end := <-ended; end.Detached {
		s.emit(ctr, "detach", nil)
	}
	return nil
}

// attach connects a client with the run that early waits for, or, where that is nil, with the one under way.
func (s *Service) attach(ctx context.Context, ctr *live, conn net.Conn, opts monitor.AttachOptions, early *attachment) (<-chan monitor.AttachEnd, error) {
	if early != nil {
		early.settle(conn, opts)
		return early.end, nil
	}
	ctr.mu.Lock()
	mon := ctr.mon
	ctr.mu.Unlock()
	if mon == nil { // it ran when the client came, and has ended since: there is no more to see, not even of its next run
		ended := make(chan monitor.AttachEnd, 1)
		ended <- monitor.AttachEnd{}
		return ended, conn.Close()
	}
	return mon.Attach(context.WithoutCancel(ctx), conn, opts)
}

// attachLate attaches those who came between the launch and the moment the container was known to run.
func (s *Service) attachLate(ctx context.Context, ctr *live, mon monitor.Monitor) {
	for _, a := range ctr.takePending() {
		ended, err := mon.Attach(ctx, a.Conn, a.Options)
		if err != nil {
			s.Log.Warn("attach", "container", ctr.id, "error", err)
			a.Conn.Close()
			a.End <- monitor.AttachEnd{}
			continue
		}
		go func() { a.End <- <-ended }()
	}
}

// history writes what was logged so far.
func (s *Service) history(ctx context.Context, ctr *live, opts AttachOptions, w io.Writer) error {
	if !readable(ctr.record().Host.Log) {
		return nil
	}
	log, err := logs.Open(ctx, s.logDir(ctr.id), logs.ReadOptions{Tail: -1, Stdout: opts.Stdout, Stderr: opts.Stderr}, nil)
	if errors.Is(err, errs.NotFound) || errors.Is(err, fs.ErrNotExist) {
		return nil // it never ran
	}
	if err != nil {
		return err
	}
	defer log.Close()
	return log.Copy(ctx, w, logs.CopyOptions{Framed: !ctr.record().Config.Tty})
}

// maxDetachKeys bounds what no hand types.
const maxDetachKeys = 64

// parseDetachKeys reads "ctrl-p,ctrl-q"; empty is that default.
func parseDetachKeys(keys string) ([]byte, error) {
	if keys == "" {
		return []byte{16, 17}, nil
	}
	var seq []byte
	for _, key := range strings.Split(keys, ",") {
		if len(key) == 1 {
			seq = append(seq, key[0])
			continue
		}
		c, ok := strings.CutPrefix(strings.ToLower(key), "ctrl-")
		switch {
		case ok && len(c) == 1 && c[0] >= 'a' && c[0] <= 'z':
			seq = append(seq, c[0]-'a'+1)
		case ok && len(c) == 1 && strings.IndexByte("@[\\]^_", c[0]) >= 0:
			seq = append(seq, c[0]&0x1f)
		default:
			return nil, errs.New(errs.Invalid, "Invalid detach keys (%s) provided", keys)
		}
	}
	if len(seq) > maxDetachKeys {
		return nil, errs.New(errs.Invalid, "%d detach keys are more than %d", len(seq), maxDetachKeys)
	}
	return seq, nil
}

// Resize changes the size of a container's terminal.
func (s *Service) Resize(ctx context.Context, ref string, height, width uint) error {
	ctr, mon, _, err := s.running(ctx, ref)
	if err != nil {
		return err
	}
	if err := mon.Resize(ctx, uint16(height), uint16(width)); err != nil {
		return fmt.Errorf("resize the terminal of %s: %w", ref, err)
	}
	s.emit(ctr, "resize", map[string]string{"height": fmt.Sprint(height), "width": fmt.Sprint(width)})
	return nil
}

// attachment is a client that attached before the start. It is noted before the client is told that it may go on: it may start the container at once, and a short program has ended before
// the connection is at hand. Who takes the list waits for that.
type attachment struct {
	settled chan struct{} // closed when the two below are set
	once    sync.Once
	conn    net.Conn // nil: the client has gone
	opts    monitor.AttachOptions
	end     chan monitor.AttachEnd
}

func newAttachment() *attachment {
	return &attachment{settled: make(chan struct{}), end: make(chan monitor.AttachEnd, 1)}
}

// settle says which connection it is, once. The nil attachment is of somebody who attached to a running container.
func (a *attachment) settle(conn net.Conn, opts monitor.AttachOptions) {
	if a == nil {
		return
	}
	a.once.Do(func() {
		a.conn, a.opts = conn, opts
		close(a.settled)
	})
}

// maxPending is how many clients may wait for a start, at which the monitor is handed all of them in one packet (wire.MaxFiles): the start would fail for one too many.
const maxPending = 200

// expect notes a client whose connection is about to come; nil when the container runs.
func (ctr *live) expect() (*attachment, error) {
	ctr.mu.Lock()
	defer ctr.mu.Unlock()
	if ctr.mon != nil {
		return nil, nil
	}
	if len(ctr.pending) >= maxPending {
		return nil, errs.New(errs.Unavailable, "container %s: %d clients wait for it to start already, which is as many as can", ctr.record().Name, maxPending)
	}
	a := newAttachment()
	ctr.pending = append(ctr.pending, a)
	return a, nil
}

// turnAway ends the attachments that wait for a start which does not come.
func (ctr *live) turnAway() {
	for _, a := range ctr.takePending() {
		a.Conn.Close()
		a.End <- monitor.AttachEnd{}
	}
}

func (ctr *live) takePending() []monitor.AttachRequest {
	ctr.mu.Lock()
	pending := ctr.pending
	ctr.pending = nil
	ctr.mu.Unlock()
	list := make([]monitor.AttachRequest, 0, len(pending))
	for _, a := range pending {
		<-a.settled // a header is being sent
		if a.conn != nil {
			list = append(list, monitor.AttachRequest{Conn: a.conn, Options: a.opts, End: a.end})
		}
	}
	return list
}

// putBack keeps clients whose container could not be launched; startFailed will tell them.
func (ctr *live) putBack(list []monitor.AttachRequest) {
	ctr.mu.Lock()
	defer ctr.mu.Unlock()
	for _, a := range list {
		again := newAttachment()
		again.settle(a.Conn, a.Options)
		ctr.pending = append(ctr.pending, again)
		go func() { a.End <- <-again.end }()
	}
}
