package content

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"path/filepath"

	"github.com/opencontainers/go-digest"

	"corten.dev/corten/internal/errs"
)

// Ingest is a blob that is coming in. Write appends; then Commit gives it its name, Abort throws it away, Close keeps what
// is there for a later Begin with the same name.
type Ingest struct {
	s    *Store
	f    *os.File
	name string
	h    hash.Hash
	size int64
	done bool
}

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
	in := &Ingest{s: s, name: file, h: sha256.New()}
	f, err := os.OpenFile(filepath.Join(s.ingests(), file), os.O_RDWR|os.O_CREATE, 0o600)
	if err == nil {
		in.f = f
		in.size, err = io.CopyBuffer(in.h, struct{ io.Reader }{f}, make([]byte, 256<<10))
	}
	if err != nil {
		return nil, fmt.Errorf("ingest %s: %w", name, also(err, in.Close()))
	}
	return in, nil
}

// Size is how many bytes are there: where a download goes on.
func (in *Ingest) Size() int64 { return in.size }

// Write appends.
func (in *Ingest) Write(p []byte) (int, error) {
	n, err := in.f.Write(p)
	in.h.Write(p[:n])
	in.size += int64(n)
	return n, err
}

// Restart forgets what came so far.
func (in *Ingest) Restart() error {
	if err := in.f.Truncate(0); err != nil {
		return err
	}
	if _, err := in.f.Seek(0, io.SeekStart); err != nil {
		return err
	}
	in.h.Reset()
	in.size = 0
	return nil
}

// Commit verifies, flushes and names the blob. After an error the ingest is still open.
func (in *Ingest) Commit(want digest.Digest, size int64) (Info, error) {
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
	if err := in.f.Sync(); err != nil {
		return Info{}, fmt.Errorf("store blob %s: %w", dgst, err)
	}
	if err := os.Rename(in.f.Name(), path); err != nil {
		return Info{}, fmt.Errorf("store blob %s: %w", dgst, err)
	}
	dir, err := os.Open(in.s.blobs())
	if err == nil {
		err = also(dir.Sync(), dir.Close())
	}
	if err != nil {
		return Info{}, fmt.Errorf("store blob %s: %w", dgst, err)
	}
	info := Info{Digest: dgst, Size: in.size}
	if st, err := in.f.Stat(); err == nil {
		info.Stored = st.ModTime()
	}
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
	return also(err, in.Close())
}

// Close keeps the bytes. Safe to call again, and after Commit and Abort.
func (in *Ingest) Close() error {
	if in.done {
		return nil
	}
	in.done = true
	in.s.mu.Lock()
	delete(in.s.active, in.name)
	in.s.mu.Unlock()
	if in.f == nil {
		return nil
	}
	return in.f.Close()
}

// also adds what else went wrong while cleaning up, on the same line.
func also(err error, more ...error) error {
	for _, m := range more {
		switch {
		case m == nil:
		case err == nil:
			err = m
		default:
			err = fmt.Errorf("%w; %w", err, m)
		}
	}
	return err
}
