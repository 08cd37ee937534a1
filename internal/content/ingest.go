package content

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"path/filepath"
	"sync"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"corten.dev/corten/internal/errs"
)

// Ingest is a blob that is coming in. Write appends; then Commit gives it its name, Abort throws it away, Close keeps what
// is there for a later Begin with the same name.
//
//	Begin ─▶ Write … ─▶ (Finish) ─▶ Commit
//	           │ Fail, Close, Abort: no more comes
//	           └─▶ Follow, any number: read from the first byte on while it is written
//
// One goroutine writes; any number follow. What was there at Begin is digested in the background while more comes in: never trusted, always read again,
// because a machine that went down may have kept the length of a file and lost its bytes.
type Ingest struct {
	s    *Store
	f    *os.File
	name string
	h    hash.Hash // of the writer's, unless catching is set
	done bool

	mu       sync.Mutex // guards what follows
	grown    sync.Cond  // size, end or round changed, or catching ended
	size     int64
	hashed   int64  // bytes in h
	sent     int64  // bytes whose way to the disk has begun
	round    int    // Restart counts
	catching bool   // a goroutine digests what the writer did not
	stop     bool   // it shall end
	bad      error  // what it met
	end      error  // why no more comes; io.EOF when all is there
	blob     string // path of the blob after Commit; guarded by mu
}

const (
	chunk     = 256 << 10
	writeback = 8 << 20 // bytes after which the disk is told to begin
)

// errGivenUp is what followers read when the writer goes without having finished.
var errGivenUp = errs.New(errs.Unavailable, "the download was given up")

// Begin opens the ingest of that name, new or where it was left. One at a time: else errs.Conflict.
func (s *Store) Begin(name string) (*Ingest, error) {
	// The name may be anything (a URL, a digest): on disk it is its own digest.
	file := digest.FromString(name).Encoded()
	s.mu.Lock()
	busy := s.active[file]
	s.active[file] = true
	s.mu.Unlock()
	if busy {
		return nil, errs.New(errs.Conflict, "ingest %s is under way", name)
	}
	in := newIngest(s, nil, file)
	f, err := os.OpenFile(filepath.Join(s.ingests(), file), os.O_RDWR|os.O_CREATE, 0o600)
	if err == nil {
		in.f = f
		in.size, err = f.Seek(0, io.SeekEnd)
	}
	if err != nil {
		return nil, fmt.Errorf("ingest %s: %w", name, errs.Also(err, in.Close()))
	}
	if in.size > 0 {
		in.catching = true
		go in.catchUp()
	}
	return in, nil
}

func newIngest(s *Store, f *os.File, name string) *Ingest {
	in := &Ingest{s: s, f: f, name: name, h: sha256.New()}
	in.grown.L = &in.mu
	return in
}

// catchUp digests from the file until it has reached the writer.
func (in *Ingest) catchUp() {
	buf := make([]byte, chunk)
	for {
		in.mu.Lock()
		from, to := in.hashed, in.size
		if in.stop || in.bad != nil || from == to {
			in.catching = false
			in.grown.Broadcast()
			in.mu.Unlock()
			return
		}
		in.mu.Unlock()
		n, err := in.f.ReadAt(buf[:min(to-from, chunk)], from)
		in.h.Write(buf[:n])
		in.mu.Lock()
		in.hashed += int64(n)
		if err != nil {
			in.bad = fmt.Errorf("read what came so far: %w", err)
		}
		in.mu.Unlock()
	}
}

// caughtUp waits for the background, which only reads what is in memory for the most part.
func (in *Ingest) caughtUp(stop bool) error {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.stop = stop
	for in.catching {
		in.grown.Wait()
	}
	in.stop = false
	return in.bad
}

// Size is how many bytes are there: where a download goes on.
func (in *Ingest) Size() int64 {
	in.mu.Lock()
	defer in.mu.Unlock()
	return in.size
}

// Write appends.
func (in *Ingest) Write(p []byte) (int, error) {
	n, err := in.f.WriteAt(p, in.Size())
	in.mu.Lock()
	mine := !in.catching
	in.mu.Unlock()
	if mine {
		in.h.Write(p[:n])
	}
	in.mu.Lock()
	defer in.mu.Unlock()
	in.size += int64(n)
	if mine {
		in.hashed += int64(n)
	} else if !in.catching {
		// The background ended just before these bytes: it takes them, too.
		in.catching = true
		go in.catchUp()
	}
	if in.size-in.sent >= writeback {
		// Only a hint: the flush at the end finds less to do.
		_ = unix.SyncFileRange(int(in.f.Fd()), in.sent, in.size-in.sent, unix.SYNC_FILE_RANGE_WRITE)
		in.sent = in.size
	}
	in.grown.Broadcast()
	return n, err
}

// ReadFrom appends all of r, in pieces as large as r gives them.
func (in *Ingest) ReadFrom(r io.Reader) (int64, error) {
	return io.CopyBuffer(struct{ io.Writer }{in}, struct{ io.Reader }{r}, make([]byte, chunk))
}

// Restart forgets what came so far. Who follows gets an error: what it read is not what will be there.
func (in *Ingest) Restart() error {
	if err := in.caughtUp(true); err != nil {
		in.mu.Lock()
		in.bad = nil // of bytes that go now
		in.mu.Unlock()
	}
	if err := in.f.Truncate(0); err != nil {
		return err
	}
	in.h.Reset()
	in.mu.Lock()
	defer in.mu.Unlock()
	in.size, in.hashed, in.sent, in.end = 0, 0, 0, nil
	in.round++
	in.grown.Broadcast()
	return nil
}

// Finish says that all bytes are there: who follows reads to the end, before they are verified and flushed.
func (in *Ingest) Finish() { in.over(io.EOF) }

// Fail says that no more comes, and why. Who follows gets the error; the bytes stay for a later Begin.
func (in *Ingest) Fail(err error) { in.over(err) }

func (in *Ingest) over(end error) {
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.end == nil {
		in.end = end
	}
	in.grown.Broadcast()
}

// Commit verifies, flushes and names the blob. After an error the ingest is still open. Who follows is let to its end as soon as the bytes are verified.
func (in *Ingest) Commit(want digest.Digest, size int64) (Info, error) {
	if err := in.caughtUp(false); err != nil {
		return Info{}, fmt.Errorf("store blob: %w", err)
	}
	dgst := encode(in.h.Sum(nil))
	if size >= 0 && size != in.size {
		return Info{}, errs.New(errs.Invalid, "blob has %d bytes, expected %d", in.size, size)
	}
	if want != "" && want != dgst {
		return Info{}, errs.New(errs.Invalid, "blob digest is %s, expected %s", dgst, want)
	}
	path, err := in.s.path(dgst)
	if err != nil {
		return Info{}, err
	}
	in.Finish()
	if err := in.f.Sync(); err != nil {
		return Info{}, fmt.Errorf("store blob %s: %w", dgst, err)
	}
	if err := os.Rename(in.f.Name(), path); err != nil {
		return Info{}, fmt.Errorf("store blob %s: %w", dgst, err)
	}
	in.mu.Lock()
	in.blob = path
	in.mu.Unlock()
	dir, err := os.Open(in.s.blobs())
	if err == nil {
		err = errs.Also(dir.Sync(), dir.Close())
	}
	if err != nil {
		return Info{}, fmt.Errorf("store blob %s: %w", dgst, err)
	}
	info := Info{Digest: dgst, Size: in.size}
	if st, err := in.f.Stat(); err == nil {
		info.Stored = st.ModTime()
	}
	in.s.count(dgst, in.size)
	return info, in.Close()
}

// Abort throws the bytes away.
func (in *Ingest) Abort() error {
	if in.done {
		return nil
	}
	err := os.Remove(filepath.Join(in.s.ingests(), in.name))
	if errors.Is(err, os.ErrNotExist) {
		err = nil
	}
	return errs.Also(err, in.Close())
}

// Close keeps the bytes. Safe to call again, and after Commit and Abort.
func (in *Ingest) Close() error {
	if in.done {
		return nil
	}
	in.done = true
	in.over(errGivenUp)
	_ = in.caughtUp(true) // told by Commit, if it mattered
	in.s.mu.Lock()
	delete(in.s.active, in.name)
	in.s.mu.Unlock()
	if in.f == nil {
		return nil
	}
	return in.f.Close()
}
