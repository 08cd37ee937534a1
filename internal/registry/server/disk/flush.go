package disk

import (
	"errors"
	"log/slog"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// flushes groups the flushes of folders: of all that wait for one folder, one flushes for everybody.
//
//	a: rename, dir() ──▶ runs ───────────┐
//	b: rename, dir() ──▶ waits for a ────┴─▶ runs ─┐
//	c: rename, dir() ──▶ joins b (not yet begun) ──┴─▶ done
type flushes struct {
	mu      sync.Mutex // guards the maps only
	running map[string]*flush
	next    map[string]*flush
}

type flush struct {
	done chan struct{}
	err  error
}

// dir returns when a flush of the folder that began after the call has ended.
func (g *flushes) dir(path string) error {
	g.mu.Lock()
	if f := g.next[path]; f != nil {
		g.mu.Unlock()
		<-f.done
		return f.err
	}
	if g.next == nil {
		g.next, g.running = map[string]*flush{}, map[string]*flush{}
	}
	f := &flush{done: make(chan struct{})}
	before := g.running[path]
	if before != nil {
		g.next[path] = f
		g.mu.Unlock()
		<-before.done
		g.mu.Lock()
		delete(g.next, path)
	}
	g.running[path] = f
	g.mu.Unlock()

	f.err = flushDir(path)

	g.mu.Lock()
	if g.running[path] == f {
		delete(g.running, path)
	}
	g.mu.Unlock()
	close(f.done)
	return f.err
}

func flushDir(path string) error {
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil // removed as empty meanwhile: what it had is gone on purpose
	}
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// shards are the locks over names: within this process a mutex, between processes a locked byte of a file. A holder renames, touches, or compares and
// removes one small file, and never waits for anything else.
type shards struct {
	f     *os.File
	alone bool // the file system has no locks: no other process may use the folder
	mu    [64]sync.Mutex
}

func openShards(path string, log *slog.Logger) (*shards, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	s := &shards{f: f}
	err = s.with("", func() error { return nil })
	if errors.Is(err, unix.ENOLCK) || errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EINVAL) {
		log.Warn("this file system has no locks: run only one registry on it", "path", path, "error", err)
		s.alone = true
		return s, nil
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return s, nil
}

func (s *shards) close() error { return s.f.Close() }

// with runs fn under the lock of a name.
func (s *shards) with(name string, fn func() error) error {
	i := shardOf(name)
	s.mu[i].Lock()
	defer s.mu[i].Unlock()
	if s.alone {
		return fn()
	}
	lock := unix.Flock_t{Type: unix.F_WRLCK, Start: int64(i), Len: 1}
	for {
		err := unix.FcntlFlock(s.f.Fd(), unix.F_OFD_SETLKW, &lock)
		if err == nil {
			break
		}
		if !errors.Is(err, unix.EINTR) {
			return &os.PathError{Op: "lock", Path: s.f.Name(), Err: err}
		}
	}
	err := fn()
	lock.Type = unix.F_UNLCK
	if uerr := unix.FcntlFlock(s.f.Fd(), unix.F_OFD_SETLK, &lock); uerr != nil {
		return errors.Join(err, &os.PathError{Op: "unlock", Path: s.f.Name(), Err: uerr})
	}
	return err
}

// shardOf must be the same in all processes: FNV-1a.
func shardOf(name string) int {
	h := uint32(2166136261)
	for i := range len(name) {
		h = (h ^ uint32(name[i])) * 16777619
	}
	return int(h % 64)
}
