package monitor

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/linux/spread"
)

// Options say where monitors live and how many wait beforehand.
type Options struct {
	Root   string // <exec-root>/monitors; made if missing
	Logger *slog.Logger
	Pool   int // monitors started beforehand; 0 is 4, negative none
	// Program is the path of the monitor's program, for tests; empty is the embedded one.
	Program string
	// Cgroup is an open cgroup v2 that monitors are born in, so that they do not end with the engine's service; nil leaves them in the engine's. It stays open as long as the pool.
	Cgroup *os.File
	// Started is called with each monitor process before it gets work, so that the engine can put it into a cgroup of its own; nil does nothing.
	Started func(pid int) error
	// OnOOM is called when the kernel killed for memory in a container, also when the first process survived; nil does nothing.
	OnOOM func(id string)
}

// Pool starts monitors and finds them again.
//
// A monitor takes 1 to 2 ms to start, so a few wait beforehand, each on its socket for its Launch; when one was taken, the next is started a moment later, off the
// hot path. One whose container ended comes back, if there is room. A waiting monitor ends with its engine; one that has a container does not.
type Pool struct {
	opts    Options
	folders *spread.Folder // opts.Root
	prog    *program
	poller  *poller
	ready   spares
	refill  chan struct{}
	stop    context.CancelFunc
	stopped sync.WaitGroup
}

// spare is a started monitor without work.
type spare struct {
	pid  int
	link *link
}

// spares are the monitors that wait. The one that came last goes first: its memory is the likeliest to be in the processor's caches.
type spares struct {
	mu   sync.Mutex // guards list
	list []*spare
	most int
}

// put keeps s, if there is room.
func (r *spares) put(s *spare) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.list) >= r.most {
		return false
	}
	r.list = append(r.list, s)
	return true
}

// take gives one out, or nil.
func (r *spares) take() (s *spare) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if n := len(r.list); n > 0 {
		s, r.list[n-1] = r.list[n-1], nil
		r.list = r.list[:n-1]
	}
	return s
}

func (r *spares) count() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.list)
}

func (r *spares) full() bool { return r.count() >= r.most }

// refillAfter is how long after a start the pool is filled again: a burst of starts is not slowed down by it. While some wait still, there is more time: many a container ends soon, and
// its monitor comes back.
const refillAfter, refillCalm = 25 * time.Millisecond, time.Second

// New makes the pool. Close ends the waiting monitors; those with containers go on.
func New(opts Options) (*Pool, error) {
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	switch {
	case opts.Pool == 0:
		opts.Pool = 4
	case opts.Pool < 0:
		opts.Pool = 0
	}
	if err := os.MkdirAll(opts.Root, 0o700); err != nil {
		return nil, fmt.Errorf("monitors: %w", err)
	}
	folders, err := spread.Below(opts.Root)
	if err != nil {
		opts.Logger.Warn("folders of monitors are kept near each other, which can be slow", "err", err)
	}
	prog, err := newProgram(opts.Root, opts.Program)
	if err != nil {
		return nil, err
	}
	poll, err := newPoller()
	if err != nil {
		return nil, errors.Join(err, prog.close())
	}
	ctx, cancel := context.WithCancel(context.Background())
	p := &Pool{opts: opts, folders: folders, prog: prog, poller: poll, ready: spares{most: opts.Pool}, refill: make(chan struct{}, 1), stop: cancel}
	p.stopped.Add(1)
	go p.fill(ctx)
	p.refill <- struct{}{}
	return p, nil
}

// fill keeps the pool full until ctx ends.
func (p *Pool) fill(ctx context.Context) {
	defer p.stopped.Done()
	for first := true; ; first = false {
		select {
		case <-ctx.Done():
			return
		case <-p.refill:
		}
		for !first { // wait for the burst to end
			after := refillAfter
			if p.ready.count() > 1 {
				after = refillCalm
			}
			select {
			case <-ctx.Done():
				return
			case <-p.refill:
				if p.ready.count() > 1 { // a long row of starts must not find the pool empty
					continue
				}
			case <-time.After(after):
			}
			break
		}
		for !p.ready.full() && ctx.Err() == nil {
			s, err := p.start()
			if err != nil {
				p.opts.Logger.Warn("start a monitor beforehand", "err", err)
				break
			}
			p.keep(s)
		}
	}
}

// take gives a monitor that waits, or starts one.
func (p *Pool) take() (*spare, error) {
	defer func() {
		select {
		case p.refill <- struct{}{}:
		default:
		}
	}()
	for s := p.ready.take(); s != nil; s = p.ready.take() {
		if alive(s.link) {
			return s, nil
		}
		s.end()
	}
	return p.start()
}

// keep has a monitor wait, or end where enough wait already.
func (p *Pool) keep(s *spare) {
	if !p.ready.put(s) {
		s.end()
	}
}

// keepLater is keep for the poller, which must not wait for an end. Close waits for the poller, so that nothing comes here after it looked.
func (p *Pool) keepLater(s *spare) {
	if p.ready.put(s) {
		return
	}
	p.stopped.Add(1)
	go func() {
		defer p.stopped.Done()
		s.end()
	}()
}

// alive reports whether the other side of the socket is still there.
func alive(l *link) bool {
	n := 0
	err := l.with(func(fd int) (err error) {
		n, _, err = unix.Recvfrom(fd, make([]byte, 1), unix.MSG_PEEK|unix.MSG_DONTWAIT)
		return err
	})
	return err == unix.EAGAIN || n > 0
}

// environment tunes the monitor's Go runtime: one processor, and no collector of its own accord (see serve.Server.tend).
func environment() []string {
	// The runtime must not look at the cgroup's CPU bound either: it would keep its files open.
	// Debian's and Ubuntu's kernels give huge pages to whoever touches memory: a heap of 100 kB would take 2 MB.
	// The loop is one goroutine that runs for as long as bytes flow: to be told by a signal, every 10 ms, that it should give way would only interrupt its calls.
	return []string{"GOMAXPROCS=1", "GOGC=off", "GOMEMLIMIT=8MiB", "GOTRACEBACK=none", "GODEBUG=asyncpreemptoff=1,containermaxprocs=0,updatemaxprocs=0,disablethp=1"}
}

func (p *Pool) start() (*spare, error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("start a monitor: %w", err)
	}
	defer unix.Close(pair[1])
	null, err := os.OpenFile("/dev/null", os.O_RDWR, 0)
	if err != nil {
		unix.Close(pair[0])
		return nil, fmt.Errorf("start a monitor: %w", err)
	}
	defer null.Close()
	n := null.Fd()
	sys := &syscall.SysProcAttr{Setsid: true}
	if p.opts.Cgroup != nil {
		sys.UseCgroupFD, sys.CgroupFD = true, int(p.opts.Cgroup.Fd())
	}
	pid, err := syscall.ForkExec(p.prog.path, []string{"corten-monitor"}, &syscall.ProcAttr{
		Dir: "/", Env: environment(), Files: []uintptr{n, n, n, uintptr(pair[1])}, Sys: sys,
	})
	if err != nil {
		unix.Close(pair[0])
		return nil, fmt.Errorf("start a monitor: %w", err)
	}
	s := &spare{pid: pid, link: newLink(pair[0])}
	if p.opts.Started != nil {
		if err := p.opts.Started(pid); err != nil {
			s.end()
			return nil, fmt.Errorf("start a monitor: %w", err)
		}
	}
	return s, nil
}

// end ends a monitor that has no work: it leaves when its socket closes.
func (s *spare) end() {
	_ = s.link.sock.Close()
	wait(s.pid)
}

// wait reaps a monitor that is about to end.
func wait(pid int) {
	for {
		if _, err := unix.Wait4(pid, nil, 0, nil); err != unix.EINTR {
			return
		}
	}
}

// Close ends the waiting monitors.
func (p *Pool) Close() error {
	p.stop()
	err := p.poller.close() // from here on none comes back
	p.stopped.Wait()
	for s := p.ready.take(); s != nil; s = p.ready.take() {
		s.end()
	}
	return errors.Join(err, p.prog.close())
}

func (p *Pool) folder(id string) (string, error) {
	if id == "" || strings.ContainsAny(id, "/\x00") || id[0] == '.' {
		return "", errs.New(errs.Invalid, "monitor id %q", id)
	}
	return filepath.Join(p.opts.Root, id), nil
}

// makeFolder makes the folder of id; one that a dead monitor left is taken away first.
func (p *Pool) makeFolder(id string) (string, error) {
	folder, err := p.folder(id)
	if err != nil {
		return "", err
	}
	err = p.folders.Mkdir(id, 0o700)
	if errors.Is(err, os.ErrExist) {
		l, derr := dial(folder)
		if derr == nil {
			_ = l.sock.Close()
			return "", errs.New(errs.Conflict, "%s has a monitor already", id)
		}
		if err = removeFolder(folder); err == nil {
			err = p.folders.Mkdir(id, 0o700)
		}
	}
	if err != nil {
		return "", err
	}
	return folder, nil
}

func removeFolder(folder string) error {
	if err := os.Remove(filepath.Join(folder, "socket")); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if err := os.Remove(folder); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// Launch implements [Starter].
func (p *Pool) Launch(ctx context.Context, l Launch) (Monitor, error) {
	folder, err := p.makeFolder(l.ID)
	if err != nil {
		return nil, fmt.Errorf("monitor of %s: %w", l.ID, err)
	}
	s, err := p.take()
	if err != nil {
		removeFolder(folder)
		return nil, fmt.Errorf("monitor of %s: %w", l.ID, err)
	}
	m, err := newMonitor(p, l.ID, folder, s.link, s.pid)
	if err != nil {
		wait(s.pid) // its socket is closed
	} else if err = m.launch(ctx, l); err != nil {
		err = errors.Join(err, m.link.shut())
		<-m.gone
	}
	if err != nil {
		removeFolder(folder)
		return nil, fmt.Errorf("monitor of %s: %w", l.ID, err)
	}
	return m, nil
}

// dial connects to the monitor in folder. A refused connection means that the monitor is dead: the socket listens exactly as long as it lives.
func dial(folder string) (*link, error) {
	dir, err := os.Open(folder)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	// Through the descriptor, because the path of a socket may have only 107 bytes.
	name := fmt.Sprintf("/proc/self/fd/%d/socket", dir.Fd())
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	for {
		if err = unix.Connect(fd, &unix.SockaddrUnix{Name: name}); err != unix.EINTR {
			break
		}
	}
	if err != nil {
		unix.Close(fd)
		return nil, err
	}
	return newLink(fd), nil
}

// Open implements [Starter].
func (p *Pool) Open(ctx context.Context, id string) (Monitor, error) {
	folder, err := p.folder(id)
	if err != nil {
		return nil, err
	}
	l, err := dial(folder)
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED) {
		if err := removeFolder(folder); err != nil {
			p.opts.Logger.Warn("remove what a dead monitor left", "id", id, "err", err)
		}
		return nil, errs.New(errs.NotFound, "monitor of %s: not found", id)
	}
	if err != nil {
		return nil, fmt.Errorf("monitor of %s: %w", id, err)
	}
	m, err := newMonitor(p, id, folder, l, 0)
	if err != nil {
		return nil, fmt.Errorf("monitor of %s: %w", id, err)
	}
	if err := m.open(ctx); err != nil {
		err = errors.Join(err, m.link.shut())
		<-m.gone
		return nil, fmt.Errorf("monitor of %s: %w", id, err)
	}
	return m, nil
}

// List implements [Starter].
func (p *Pool) List() ([]string, error) {
	entries, err := os.ReadDir(p.opts.Root)
	if err != nil {
		return nil, fmt.Errorf("monitors: %w", err)
	}
	var ids []string
	for _, e := range entries {
		if e.IsDir() && !strings.HasPrefix(e.Name(), ".") {
			ids = append(ids, e.Name())
		}
	}
	return ids, nil
}
