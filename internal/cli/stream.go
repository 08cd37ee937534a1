package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"

	"corten.dev/corten/internal/cli/engineapi"
	"corten.dev/corten/internal/cli/term"
	"corten.dev/corten/internal/http1"
)

// session joins our standard streams with those of a container or an exec, through one hijacked connection:
//
//	our stdin ──(keys that detach are caught here)──▶ connection ──▶ container
//	our stdout, stderr ◀──(split, unless it is a terminal)── connection ◀── container
type session struct {
	app        *app
	conn       *http1.Upgraded
	tty        bool
	stdin      bool
	out, err   io.Writer
	detachKeys []byte
	resize     func(term.Size) // tells the engine; nil without a terminal
	redraw     bool            // the program is to draw its screen anew: it is told of another size first
	atOnce     bool            // the connection is that of a run in one request
	last       []byte          // its last word, once run returned
}

// errDetached is the end of a session by the detach keys.
var errDetached = errors.New("read escape sequence")

const defaultDetachKeys = "ctrl-p,ctrl-q"

// parseDetachKeys reads a list of keys such as ctrl-p,ctrl-q: a character, or ctrl- with a letter or one of @[\]^_.
func parseDetachKeys(s string) ([]byte, error) {
	if s == "" {
		s = defaultDetachKeys
	}
	var keys []byte
	for _, k := range strings.Split(s, ",") {
		name, ctrl := strings.CutPrefix(k, "ctrl-")
		switch {
		case ctrl && len(name) == 1 && (name[0] >= 'a' && name[0] <= 'z' || name[0] >= 'A' && name[0] <= 'Z'):
			keys = append(keys, name[0]|0x20-'a'+1)
		case ctrl && len(name) == 1 && strings.Contains("@[\\]^_", name):
			keys = append(keys, name[0]-'@')
		case !ctrl && len(k) == 1:
			keys = append(keys, k[0])
		default:
			return nil, invalid("invalid detach keys (%s): unknown key %q", s, k)
		}
	}
	return keys, nil
}

// detachKeys are the keys that leave a session.
type detachKeys struct {
	text string // as the engine is told them; empty are the usual ones
	keys []byte
}

// detachKeys takes the flag, then docker's config file.
func (a *app) detachKeys(flag string) (d detachKeys, err error) {
	if d.text = flag; flag == "" {
		d.text = a.config().DetachKeys
	}
	d.keys, err = parseDetachKeys(d.text)
	return d, err
}

// stdinFd gives stdin's descriptor if it is a terminal.
func (a *app) stdinFd() (uintptr, bool) { return terminalFd(a.In) }

func terminalFd(stream any) (uintptr, bool) {
	if out, ok := stream.(*output); ok {
		stream = out.Writer
	}
	f, ok := stream.(*os.File)
	if !ok || !term.IsTerminal(f.Fd()) {
		return 0, false
	}
	return f.Fd(), true
}

// needTTY refuses -i -t without a terminal, in docker's words.
func (a *app) needTTY(tty, stdin bool) error {
	if !tty || !stdin {
		return nil
	}
	if _, ok := a.stdinFd(); !ok {
		return &exitError{code: 1, text: "the input device is not a TTY"}
	}
	return nil
}

// winsize is the size of the terminal on stdout, zero if there is none.
func (a *app) winsize() term.Size {
	fd, ok := terminalFd(a.Out)
	if !ok {
		return term.Size{}
	}
	size, err := term.GetSize(fd)
	if err != nil {
		return term.Size{} // a terminal that does not know its size
	}
	return size
}

// raw puts the terminal into raw mode and takes care that every way out restores it: also a deadly signal, and an output that nobody reads any more, whose SIGPIPE is an error of the write then.
func (s *session) raw() (restore func(), err error) {
	fd, ok := s.app.stdinFd()
	if !s.tty || !s.stdin || !ok {
		return func() {}, nil
	}
	state, err := term.RawInput(fd)
	if err != nil {
		return nil, fmt.Errorf("put terminal into raw mode: %w", err)
	}
	sigs, pipes := make(chan os.Signal, 1), make(chan os.Signal, 1)
	done := make(chan struct{})
	signal.Notify(sigs, heeded(os.Interrupt, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT)...)
	signal.Notify(pipes, syscall.SIGPIPE)
	go func() {
		select {
		case sig := <-sigs:
			state.Restore()
			signal.Reset(sig)
			if p, err := os.FindProcess(os.Getpid()); err == nil {
				p.Signal(sig)
			}
		case <-done:
		}
	}()
	return func() { signal.Stop(sigs); signal.Stop(pipes); close(done); state.Restore() }, nil
}

// heeded leaves out the signals that whoever started us wants ignored, as nohup does. To ask for them would undo that.
func heeded(sigs ...os.Signal) []os.Signal {
	return slices.DeleteFunc(sigs, signal.Ignored)
}

// run copies until the container's output ends, or until the user detaches.
func (s *session) run(ctx context.Context) error {
	restore, err := s.raw()
	if err != nil {
		s.conn.Close()
		return err
	}
	defer restore()
	stop := context.AfterFunc(ctx, func() { s.conn.Close() })
	defer stop()
	defer s.followSize()()
	detached := make(chan error, 1)
	if s.stdin {
		go func() {
			if err := s.sendInput(); err != nil {
				detached <- err
			}
		}()
	}
	ended := make(chan error, 1)
	go func() { ended <- s.receive() }()
	select {
	case err := <-ended:
		s.conn.Close()
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return err
	case err := <-detached:
		s.conn.Close()
		return err
	}
}

// receive copies the container's output to ours.
func (s *session) receive() (err error) {
	if s.atOnce {
		s.last, err = engineapi.DemuxRun(s.out, s.err, s.conn)
		return err
	}
	if !s.tty {
		return engineapi.Demux(s.out, s.err, s.conn)
	}
	buf := make([]byte, 128<<10)
	for {
		n, err := s.conn.Read(buf)
		if n > 0 {
			if _, werr := s.out.Write(buf[:n]); werr != nil {
				return &engineapi.OutputError{Err: werr}
			}
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// sendInput copies our input to the container. Only a detach is an error: when the container has gone, its output
// tells so.
func (s *session) sendInput() error {
	var in io.Reader = s.app.In
	if s.tty {
		in = &escapeReader{r: in, keys: s.detachKeys}
	}
	buf := make([]byte, 32<<10)
	for {
		n, err := in.Read(buf)
		if n > 0 {
			if _, werr := s.conn.Write(buf[:n]); werr != nil {
				return nil
			}
		}
		if errors.Is(err, errDetached) {
			return err
		}
		if err != nil {
			s.conn.CloseWrite()
			return nil
		}
	}
}

// followSize tells the engine the terminal's size now and at each change, until the returned function is called.
func (s *session) followSize() (stop func()) {
	if !s.tty || s.resize == nil {
		return func() {}
	}
	changes, done := make(chan os.Signal, 1), make(chan struct{})
	term.NotifyResize(changes)
	go func() {
		if size := s.app.winsize(); s.redraw && size.Height > 0 && size.Width > 0 {
			s.resize(term.Size{Height: size.Height + 1, Width: size.Width + 1})
		}
		for {
			if size := s.app.winsize(); size.Height > 0 && size.Width > 0 {
				s.resize(size)
			}
			select {
			case <-changes:
			case <-done:
				return
			}
		}
	}()
	return func() { signal.Stop(changes); close(done) }
}

// escapeReader watches for the detach keys. A beginning of the sequence is held back until the next key decides.
type escapeReader struct {
	r    io.Reader
	keys []byte
	seen int    // how many keys of the sequence lie behind us
	rest []byte // decided bytes that did not fit
	err  error
	one  [1024]byte
}

func (e *escapeReader) Read(p []byte) (int, error) {
	for len(e.rest) == 0 {
		if e.err != nil {
			return 0, e.err
		}
		n, err := e.r.Read(e.one[:])
		e.err = err
		e.take(e.one[:n])
	}
	n := copy(p, e.rest)
	e.rest = e.rest[n:]
	return n, nil
}

func (e *escapeReader) take(in []byte) {
	for _, b := range in {
		if len(e.keys) > 0 && b == e.keys[e.seen] {
			if e.seen++; e.seen == len(e.keys) {
				e.err = errDetached
				return
			}
			continue
		}
		e.rest = append(e.rest, e.keys[:e.seen]...)
		e.seen = 0
		if len(e.keys) > 0 && b == e.keys[0] {
			e.seen = 1
			if len(e.keys) == 1 {
				e.err = errDetached
				return
			}
			continue
		}
		e.rest = append(e.rest, b)
	}
	if e.err != nil && e.err != errDetached {
		e.rest = append(e.rest, e.keys[:e.seen]...)
		e.seen = 0
	}
}

// allSignalsAfter is when the rarer signals are caught as well. Catching all of them takes a millisecond, which a container that ends at once need not pay.
const allSignalsAfter = 50 * time.Millisecond

// proxySignals sends the signals that we get to the container, until the returned function is called. The command ends then, so that nothing is given back.
func (a *app) proxySignals(ctx context.Context, api *engineapi.Client, id string) func() {
	sigs := make(chan os.Signal, 128)
	signal.Notify(sigs, heeded(os.Interrupt, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT)...)
	rest := time.AfterFunc(allSignalsAfter, func() { signal.Notify(sigs, heeded(proxied()...)...) })
	done := make(chan struct{})
	go func() {
		for {
			select {
			case sig := <-sigs:
				name, ok := signalName(sig)
				if !ok {
					continue
				}
				err := api.Post(ctx, "/containers/"+esc(id)+"/kill", query("signal", name), nil, nil)
				if err != nil {
					a.debugf("send %s: %v", name, err)
				}
			case <-done:
				return
			}
		}
	}()
	return func() { rest.Stop(); close(done) }
}

// proxied are the signals that go to the container. The others must not be asked for, or they would not do any more what they do to every process: Ctrl-Z stops us, an output that nobody
// reads ends us, and a background job that reads the terminal is stopped instead of trying for ever.
func proxied() (sigs []os.Signal) {
	const last = 64
	for n := syscall.Signal(1); n <= last; n++ {
		if _, ok := signalName(n); ok {
			sigs = append(sigs, n)
		}
	}
	return sigs
}
