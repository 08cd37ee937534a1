package images

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/registry/client"
	"corten.dev/corten/internal/task"
)

// flights are the blobs that are coming in now: one download for each digest, however many pulls want it.
type flights struct {
	blobs Blobs
	limit limit
	log   *slog.Logger

	base context.Context // of every download; ended by close
	stop context.CancelFunc
	ends sync.WaitGroup

	mu  sync.Mutex // guards all and the fields of flights that say so
	all map[digest.Digest]*flight
}

// phase is how far a flight is.
//
//	starting ─▶ (waiting) ─▶ downloading ─▶ verifying ─▶ landed
type phase int32

const (
	starting    phase = iota
	waiting           // for a place among the downloads
	downloading       // from a registry
	verifying         // all bytes are there
	landed            // the blob is in the content room, or the flight failed
)

// flight is one blob. It lives in flights.all as long as somebody wants it; who joins late finds it finished.
type flight struct {
	desc     ocispec.Descriptor
	from     string // the repository that it comes from
	cancel   context.CancelFunc
	phase    atomic.Int32
	current  atomic.Int64
	opened   chan struct{} // closed when in is set, or at the end
	done     chan struct{} // closed at the end; err is set then
	ingest   Ingest        // after opened; nil when the blob was there
	err      error         // after done
	kept     atomic.Bool   // the image room has the blob in its care
	users    int           // guarded by flights.mu
	unneeded bool          // guarded by flights.mu: nobody will come back for a part of it
}

func newFlights(blobs Blobs, downloads int, log *slog.Logger) *flights {
	fs := &flights{blobs: blobs, limit: newLimit(downloads), log: log, all: map[digest.Digest]*flight{}}
	fs.base, fs.stop = context.WithCancel(context.Background())
	return fs
}

// join starts the download of a blob, or takes part in the one under way. Leave must be called.
func (fs *flights) join(repo client.Repository, name string, desc ocispec.Descriptor) *flight {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	if f := fs.all[desc.Digest]; f != nil && f.desc.Size == desc.Size && !f.failed() {
		f.users++
		return f
	}
	// Not of the context of who asked first: others may want it after that one left.
	ctx, cancel := context.WithCancel(fs.base)
	f := &flight{desc: desc, from: name, cancel: cancel, opened: make(chan struct{}), done: make(chan struct{}), users: 1}
	fs.all[desc.Digest] = f
	fs.ends.Add(1)
	go func() {
		defer fs.ends.Done()
		f.err = fs.fly(ctx, f, repo)
		f.phase.Store(int32(landed))
		select {
		case <-f.opened:
		default:
			close(f.opened)
		}
		close(f.done)
	}()
	return f
}

func (f *flight) failed() bool {
	select {
	case <-f.done:
		return f.err != nil
	default:
		return false
	}
}

// What a pull leaves behind when it lets go of a blob that it was not the only one to want, or did not get to use.
type leaving int

const (
	forNext  leaving = iota // what is there of it stays for the next pull
	unneeded                // a part of it is of no use to anybody
	spoilt                  // nor is all of it: it cannot be unpacked, or fills the disk
)

// leave ends the interest of one pull. The last one to leave ends the download.
func (fs *flights) leave(f *flight, what leaving) {
	fs.mu.Lock()
	f.users--
	last := f.users == 0
	f.unneeded = what != forNext
	if last && fs.all[f.desc.Digest] == f {
		delete(fs.all, f.desc.Digest)
	}
	fs.mu.Unlock()
	if !last {
		return
	}
	f.cancel()
	if what != spoilt {
		return
	}
	<-f.done // it was cancelled
	if f.err != nil || f.ingest == nil || f.kept.Load() {
		return // it did not come by this way, or has its place
	}
	if err := fs.blobs.Delete(context.Background(), f.desc.Digest); err != nil {
		fs.log.Warn("blob of a failed pull stays", "digest", f.desc.Digest, "err", err)
	}
}

// close ends all downloads and waits until what they have is on disk.
func (fs *flights) close() {
	fs.stop()
	fs.ends.Wait()
}

// fly brings one blob in.
func (fs *flights) fly(ctx context.Context, f *flight, repo client.Repository) error {
	if err := fs.limit.take(ctx, func() { f.phase.Store(int32(waiting)) }); err != nil {
		return err
	}
	defer fs.limit.give()
	in, err := fs.begin(ctx, f)
	if err != nil || in == nil {
		return err
	}
	f.current.Store(in.Size())
	f.phase.Store(int32(downloading))
	f.ingest = in
	close(f.opened)
	resumed := in.Size()
	err = fs.fetch(ctx, f, repo, in)
	if resumed > 0 && errors.Is(err, errDamaged) {
		// What was left of an earlier download was not what it should be: once more, from the beginning.
		fs.log.Warn("part of a blob from an earlier download was damaged: it is fetched again", "digest", f.desc.Digest)
		if err = in.Restart(); err == nil {
			err = fs.fetch(ctx, f, repo, in)
		}
	}
	if err == nil {
		return nil
	}
	fs.mu.Lock()
	drop := f.users == 0 && f.unneeded
	fs.mu.Unlock()
	if drop || errors.Is(err, errDamaged) || errors.Is(err, errs.Invalid) || errors.Is(err, syscall.ENOSPC) { // what the registry lies about, or what fills the disk, helps nobody
		return errors.Join(err, in.Abort())
	}
	return errors.Join(err, in.Close())
}

// errDamaged marks a blob whose bytes are all there and are not those of its digest.
var errDamaged = errors.New("damaged")

// fetch has the wall of a flight: what was begun before it is let go of whatever happens in it.
func (fs *flights) fetch(ctx context.Context, f *flight, repo client.Repository, in Ingest) (err error) {
	defer task.Contain(fs.log, "download of "+f.desc.Digest.String(), &err)
	if err := repo.Fetch(ctx, f.desc, &counting{Ingest: in, f: f}); err != nil {
		return err
	}
	f.phase.Store(int32(verifying))
	if _, err := in.Commit(f.desc.Digest, f.desc.Size); err != nil {
		if errors.Is(err, errs.Invalid) {
			return &damaged{fmt.Errorf("%s sent bytes that are not those it named: %w", f.from, err)}
		}
		return err
	}
	return nil
}

type damaged struct{ error }

func (d *damaged) Unwrap() []error { return []error{d.error, errDamaged} }

// begin opens the ingest; nil when the blob is there already.
func (fs *flights) begin(ctx context.Context, f *flight) (Ingest, error) {
	wait := 10 * time.Millisecond
	for {
		if info, err := fs.blobs.Stat(ctx, f.desc.Digest); err == nil && info.Size == f.desc.Size {
			return nil, nil
		} else if err == nil {
			return nil, errs.New(errs.Invalid, "blob %s has %d bytes, the manifest says %d", f.desc.Digest, info.Size, f.desc.Size)
		} else if !errors.Is(err, errs.NotFound) {
			return nil, err
		}
		in, err := fs.blobs.Begin(f.desc.Digest.String())
		if !errors.Is(err, errs.Conflict) {
			return in, err
		}
		// Somebody who is no pull brings it in (or a flight that was left is about to close it).
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
		wait = min(2*wait, time.Second)
	}
}

// counting is the ingest with a count for those who watch.
type counting struct {
	Ingest
	f *flight
}

func (c *counting) Write(p []byte) (int, error) {
	n, err := c.Ingest.Write(p)
	c.f.current.Add(int64(n))
	return n, err
}

func (c *counting) Restart() error {
	c.f.current.Store(0)
	return c.Ingest.Restart()
}

// reader gives the bytes of a flight, from the beginning and while they come.
func (fs *flights) reader(ctx context.Context, f *flight) *follower {
	return &follower{open: func() (io.ReadCloser, error) {
		select {
		case <-f.opened:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
		if f.ingest != nil {
			return f.ingest.Follow(ctx), nil
		}
		if f.err != nil {
			return nil, f.err
		}
		return fs.blobs.Open(ctx, f.desc.Digest)
	}}
}

// follower opens its source with the first read, and remembers what happened to it.
type follower struct {
	open func() (io.ReadCloser, error)
	src  io.ReadCloser
	read atomic.Int64
	used atomic.Bool
	err  error // other than io.EOF; for who waited for the reader's end
}

func (r *follower) Read(p []byte) (n int, err error) {
	r.used.Store(true)
	if r.err != nil {
		return 0, r.err
	}
	if r.src == nil {
		r.src, err = r.open()
	}
	if err == nil {
		n, err = r.src.Read(p)
	}
	r.read.Add(int64(n))
	if err != nil && err != io.EOF {
		r.err = err
	}
	return n, err
}

func (r *follower) Close() error {
	if r.src == nil {
		return nil
	}
	return r.src.Close()
}
