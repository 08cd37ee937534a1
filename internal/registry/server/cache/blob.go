package cache

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"sync"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/registry/client"
	"corten.dev/corten/internal/task"
)

// blobs are those that are coming.
//
//	upstream ──▶ spool (a file without a name) ──▶ reader of who asked first
//	                                          └──▶ reader of who came later, from the beginning
//
// The first reader's first byte starts the download, the last reader's Close ends it.
type blobs struct {
	mu     sync.Mutex // guards coming, and the readers of each
	coming map[string]*spool
}

// spool is a client.Sink.
type spool struct {
	file    *os.File
	size    int64 // that it will have
	readers int   // guarded by blobs.mu
	start   sync.Once
	cancel  context.CancelFunc
	fetch   func(ctx context.Context, dst client.Sink) error

	mu     sync.Mutex // guards what follows
	moved  *sync.Cond
	have   int64
	handed int64 // how far somebody has read
	sum    digest.Digester
	ended  bool
	err    error
}

// Blob opens a blob of an upstream. One that comes already is shared.
func (c *Cache) Blob(ctx context.Context, repository string, d digest.Digest) (io.ReadCloser, int64, error) {
	up, name, ok := c.route(repository)
	if !ok {
		return nil, 0, errs.New(errs.NotFound, "no upstream has %s", repository)
	}
	size, err := c.size(ctx, d)
	if err != nil {
		return nil, 0, err
	}
	repo, err := up.repository(name)
	if err != nil {
		return nil, 0, err
	}
	key := up.Domain + "\x00" + string(d)
	s := c.blobs.join(key, nil)
	if s == nil {
		file, err := tempFile(c.opts.Staging)
		if err != nil {
			return nil, 0, err
		}
		own := &spool{file: file, size: size, sum: d.Algorithm().Digester(), fetch: func(ctx context.Context, dst client.Sink) (err error) {
			defer task.Contain(c.log, "download of "+d.String(), &err)
			err = repo.Fetch(ctx, ocispec.Descriptor{Digest: d, Size: size}, dst)
			if err != nil {
				c.log.Warn("a blob did not come", "upstream", up.Domain, "repository", repository, "digest", d, "err", err)
			}
			return err
		}}
		own.moved = sync.NewCond(&own.mu)
		if s = c.blobs.join(key, own); s != own { // somebody was faster
			if err := file.Close(); err != nil {
				c.log.Warn("a staging file that nobody needs", "err", err)
			}
		}
	}
	return &reader{b: &c.blobs, key: key, s: s, ctx: ctx, stop: context.AfterFunc(ctx, s.wake)}, size, nil
}

// join adds a reader to the spool of a key; where there is none that is good, to fresh, which becomes it. Nil when that is nil.
func (b *blobs) join(key string, fresh *spool) *spool {
	b.mu.Lock()
	defer b.mu.Unlock()
	s := b.coming[key]
	if s == nil || s.failed() {
		if fresh == nil {
			return nil
		}
		if b.coming == nil {
			b.coming = map[string]*spool{}
		}
		s = fresh
		b.coming[key] = s
	}
	s.readers++
	return s
}

func checkStaging(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("staging folder: %w", err)
	}
	f, err := tempFile(dir)
	if err != nil {
		return err
	}
	return f.Close()
}

// tempFile has no name, so that nothing of it is left, however the process ends.
func tempFile(dir string) (*os.File, error) {
	f, err := os.CreateTemp(dir, "blob-*")
	if err != nil {
		return nil, fmt.Errorf("staging file: %w", err)
	}
	if err := os.Remove(f.Name()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, errors.Join(fmt.Errorf("staging file: %w", err), f.Close())
	}
	return f, nil
}

func (s *spool) wake() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.moved.Broadcast()
}

// failed tells that nobody else should wait for this one.
func (s *spool) failed() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.ended && s.err != nil
}

// begin starts the download, which belongs to no single request.
func (s *spool) begin(ctx context.Context) {
	s.start.Do(func() {
		own, cancel := context.WithCancel(context.WithoutCancel(ctx))
		s.mu.Lock()
		s.cancel = cancel
		s.mu.Unlock()
		go func() {
			defer cancel()
			err := s.fetch(own, s)
			s.mu.Lock()
			defer s.mu.Unlock()
			s.ended = true
			if err != nil {
				s.err = errs.New(errs.Unavailable, "the upstream's blob did not come: %w", err)
			} else if s.have != s.size {
				s.err = errs.New(errs.Unavailable, "the upstream's blob has %d bytes, not %d", s.have, s.size)
			}
			s.moved.Broadcast()
		}()
	})
}

// Write adds what came.
func (s *spool) Write(p []byte) (int, error) {
	s.mu.Lock()
	at := s.have
	s.mu.Unlock()
	n, err := s.file.WriteAt(p, at) // one writer
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sum.Hash().Write(p[:n])
	s.have += int64(n)
	s.moved.Broadcast()
	return n, err
}

// Size is how much came.
func (s *spool) Size() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.have
}

// Restart forgets what came, as long as nobody has seen it.
func (s *spool) Restart() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.handed > 0 {
		return errs.New(errs.Unavailable, "the upstream sent something else in the middle")
	}
	s.have = 0
	s.sum.Hash().Reset()
	return s.file.Truncate(0)
}

// Sum is the digest of what came, for the client to compare.
func (s *spool) Sum() digest.Digest {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.sum.Digest()
}

// reader is one who wants the blob. ctx is the context of what it is read for.
type reader struct {
	b    *blobs
	key  string
	s    *spool
	ctx  context.Context
	stop func() bool
	at   int64
	once sync.Once
}

func (r *reader) Read(p []byte) (int, error) {
	r.s.begin(r.ctx)
	s := r.s
	s.mu.Lock()
	for r.at >= s.have && !s.ended && r.ctx.Err() == nil {
		s.moved.Wait()
	}
	have, ended, err := s.have, s.ended, s.err
	// The last piece is not handed on before the whole is known to be good.
	if !ended && have == s.size && r.at < have {
		have--
	}
	s.handed = max(s.handed, min(have, r.at+int64(len(p))))
	s.mu.Unlock()
	switch {
	case r.ctx.Err() != nil:
		return 0, r.ctx.Err()
	case r.at < have:
		n, err := s.file.ReadAt(p[:min(int64(len(p)), have-r.at)], r.at)
		r.at += int64(n)
		if n > 0 {
			err = nil
		}
		return n, err
	case ended && err != nil:
		return 0, err
	case ended:
		return 0, io.EOF
	}
	return r.wait(p)
}

// wait is for the last byte, which comes with the end of the download.
func (r *reader) wait(p []byte) (int, error) {
	s := r.s
	s.mu.Lock()
	for !s.ended && r.ctx.Err() == nil && s.have == s.size {
		s.moved.Wait()
	}
	s.mu.Unlock()
	return r.Read(p)
}

// Close lets go; the last one ends the download and drops the file.
func (r *reader) Close() (err error) {
	r.once.Do(func() {
		r.stop()
		r.b.mu.Lock()
		r.s.readers--
		last := r.s.readers == 0
		if last && r.b.coming[r.key] == r.s {
			delete(r.b.coming, r.key)
		}
		r.b.mu.Unlock()
		if !last {
			return
		}
		r.s.start.Do(func() { r.s.ended = true }) // it never began
		s := r.s
		s.mu.Lock()
		if s.cancel != nil {
			s.cancel()
		}
		for !s.ended {
			s.moved.Wait()
		}
		s.mu.Unlock()
		err = s.file.Close()
	})
	return err
}
