// Package content is the room of blobs: bytes named by their digest.
//
// It owns the folder it is opened on:
//
//	blobs/sha256/<hex>   whole and verified; never changed
//	ingest/<name>        bytes of a blob that is still coming, kept for resuming
//
// It does not know what an image is. It promises: a blob is verified and flushed before it has its name; what a killed process
// was writing is never taken for a blob; reading gives the bytes that were put.
package content

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"corten.dev/corten/internal/errs"
)

// Info describes a blob.
type Info struct {
	Digest digest.Digest
	Size   int64
	Stored time.Time
}

// Options describe a store.
type Options struct {
	Root   string
	Logger *slog.Logger
}

// Store keeps blobs. Its methods may be called concurrently.
type Store struct {
	root string
	log  *slog.Logger

	mu     sync.Mutex
	active map[string]bool         // ingests that somebody has open
	sizes  map[digest.Digest]int64 // the blobs that are there
}

const ingestAge = 7 * 24 * time.Hour

// putName begins the names of what is written in one go.
const putName = "put-"

// New opens or makes the folder. Ingests that nobody resumed for a week are deleted.
func New(opts Options) (*Store, error) {
	s := &Store{root: opts.Root, log: opts.Logger, active: map[string]bool{}, sizes: map[digest.Digest]int64{}}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	for _, dir := range []string{s.blobs(), s.ingests()} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, fmt.Errorf("open content: %w", err)
		}
	}
	broken, err := filepath.Glob(filepath.Join(s.ingests(), putName+"*"))
	for _, path := range broken { // of an engine that was killed: nobody can go on with them
		err = errs.Also(err, os.Remove(path))
	}
	if err != nil {
		return nil, fmt.Errorf("open content: %w", err)
	}
	if _, err := s.CollectIngests(time.Now().Add(-ingestAge)); err != nil {
		return nil, fmt.Errorf("open content: %w", err)
	}
	err = s.List(context.Background(), func(info Info) error {
		s.sizes[info.Digest] = info.Size
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("open content: %w", err)
	}
	return s, nil
}

// CollectIngests deletes what came of blobs that nobody is fetching and nobody went on with since the given time, and tells the bytes. "put-" ones cannot be gone on with.
func (s *Store) CollectIngests(before time.Time) (gone []Info, err error) {
	old, err := os.ReadDir(s.ingests())
	if err != nil {
		return nil, err
	}
	for _, e := range old {
		info, err := e.Info()
		if err != nil || !info.ModTime().Before(before) {
			continue
		}
		s.mu.Lock()
		busy := s.active[e.Name()]
		if !busy {
			s.active[e.Name()] = true
		}
		s.mu.Unlock()
		if busy {
			continue
		}
		if err := os.Remove(filepath.Join(s.ingests(), e.Name())); err != nil {
			s.log.Warn("old download stays", "name", e.Name(), "error", err)
		} else {
			gone = append(gone, Info{Size: info.Size(), Stored: info.ModTime()})
		}
		s.mu.Lock()
		delete(s.active, e.Name())
		s.mu.Unlock()
	}
	return gone, nil
}

// Usage is what the store holds: blobs as counted in memory, and what came so far of those under way.
type Usage struct {
	Blobs, Ingests           int
	BlobBytes, IngestedBytes int64
}

// Usage counts without reading more than the short list of ingests.
func (s *Store) Usage() (u Usage, err error) {
	s.mu.Lock()
	for _, n := range s.sizes {
		u.Blobs++
		u.BlobBytes += n
	}
	s.mu.Unlock()
	all, err := os.ReadDir(s.ingests())
	if err != nil {
		return u, fmt.Errorf("content usage: %w", err)
	}
	for _, e := range all {
		if info, err := e.Info(); err == nil {
			u.Ingests++
			u.IngestedBytes += info.Size()
		}
	}
	return u, nil
}

func (s *Store) count(dgst digest.Digest, size int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sizes[dgst] = size
}

func (s *Store) blobs() string   { return filepath.Join(s.root, "blobs", "sha256") }
func (s *Store) ingests() string { return filepath.Join(s.root, "ingest") }

// path is where a blob is. Only sha256 is kept; the digest is checked, because it becomes a file name.
func (s *Store) path(dgst digest.Digest) (string, error) {
	if err := dgst.Validate(); err != nil || dgst.Algorithm() != digest.SHA256 {
		return "", errs.New(errs.Invalid, "%q is not a sha256 digest", string(dgst))
	}
	return filepath.Join(s.blobs(), dgst.Encoded()), nil
}

// Put stores all of r. An empty want accepts any digest, a negative size any size; else a difference is errs.Invalid and nothing is kept.
// A blob that is there already is still read and verified.
func (s *Store) Put(ctx context.Context, want digest.Digest, size int64, r io.Reader) (Info, error) {
	if want != "" {
		if _, err := s.path(want); err != nil {
			return Info{}, err
		}
	}
	f, err := os.CreateTemp(s.ingests(), putName)
	if err != nil {
		return Info{}, fmt.Errorf("store blob: %w", err)
	}
	in := newIngest(s, f, filepath.Base(f.Name()))
	s.mu.Lock()
	s.active[in.name] = true
	s.mu.Unlock()
	_, err = in.ReadFrom(&ctxReader{ctx, r})
	if err != nil {
		return Info{}, fmt.Errorf("store blob: %w", errs.Also(err, in.Abort()))
	}
	info, err := in.Commit(want, size)
	if err != nil {
		return Info{}, errs.Also(err, in.Abort())
	}
	return info, nil
}

type ctxReader struct {
	ctx context.Context
	r   io.Reader
}

func (r *ctxReader) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	return r.r.Read(p)
}

// Open opens a blob for reading.
func (s *Store) Open(_ context.Context, dgst digest.Digest) (*os.File, Info, error) {
	path, err := s.path(dgst)
	if err != nil {
		return nil, Info{}, err
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, Info{}, blobError(dgst, err)
	}
	st, err := f.Stat()
	if err != nil {
		f.Close()
		return nil, Info{}, blobError(dgst, err)
	}
	return f, Info{Digest: dgst, Size: st.Size(), Stored: st.ModTime()}, nil
}

func blobError(dgst digest.Digest, err error) error {
	if errors.Is(err, os.ErrNotExist) {
		return errs.New(errs.NotFound, "blob %s: not found", dgst)
	}
	return fmt.Errorf("blob %s: %w", dgst, err)
}

// Read returns a small blob, verified again.
func (s *Store) Read(ctx context.Context, dgst digest.Digest, limit int64) ([]byte, error) {
	f, info, err := s.Open(ctx, dgst)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if info.Size > limit {
		return nil, errs.New(errs.Invalid, "blob %s has %d bytes, more than %d", dgst, info.Size, limit)
	}
	data, err := io.ReadAll(f)
	if err != nil {
		return nil, blobError(dgst, err)
	}
	if digest.FromBytes(data) != dgst {
		return nil, fmt.Errorf("blob %s is damaged on disk", dgst)
	}
	return data, nil
}

// Stat describes a blob.
func (s *Store) Stat(_ context.Context, dgst digest.Digest) (Info, error) {
	path, err := s.path(dgst)
	if err != nil {
		return Info{}, err
	}
	st, err := os.Stat(path)
	if err != nil {
		return Info{}, blobError(dgst, err)
	}
	return Info{Digest: dgst, Size: st.Size(), Stored: st.ModTime()}, nil
}

// Delete removes a blob; one that is not there is no error. Readers that have it open go on.
func (s *Store) Delete(_ context.Context, dgst digest.Digest) error {
	path, err := s.path(dgst)
	if err != nil {
		return err
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("delete blob %s: %w", dgst, err)
	}
	s.mu.Lock()
	delete(s.sizes, dgst)
	s.mu.Unlock()
	return nil
}

// List calls fn for every blob, in the order of the digests.
func (s *Store) List(ctx context.Context, fn func(Info) error) error {
	all, err := os.ReadDir(s.blobs())
	if err != nil {
		return fmt.Errorf("list blobs: %w", err)
	}
	for _, e := range all {
		if err := ctx.Err(); err != nil {
			return err
		}
		dgst := digest.NewDigestFromEncoded(digest.SHA256, e.Name())
		info, err := e.Info()
		if err != nil || dgst.Validate() != nil {
			continue // deleted meanwhile, or not ours
		}
		if err := fn(Info{Digest: dgst, Size: info.Size(), Stored: info.ModTime()}); err != nil {
			return err
		}
	}
	return nil
}

// Collect deletes the blobs that are not live and were stored before the given time, so that blobs of a running pull survive. It
// returns what it deleted.
func (s *Store) Collect(ctx context.Context, before time.Time, live func(digest.Digest) bool) (gone []Info, err error) {
	err = s.List(ctx, func(info Info) error {
		if live(info.Digest) || !info.Stored.Before(before) {
			return nil
		}
		if err := s.Delete(ctx, info.Digest); err != nil {
			return err
		}
		gone = append(gone, info)
		return nil
	})
	return gone, err
}

func encode(sum []byte) digest.Digest {
	return digest.NewDigestFromEncoded(digest.SHA256, hex.EncodeToString(sum))
}
