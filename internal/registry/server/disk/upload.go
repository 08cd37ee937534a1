package disk

import (
	"context"
	_ "crypto/sha512"
	"encoding"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/registry/server"
)

// hashAttr keeps the state of the hash beside the bytes: how many are hashed (8 bytes, big endian), then the boot's id, the algorithm's name, a 0, and the
// state as encoding.BinaryMarshaler gives it. It is a shortcut: without it (a file system without attributes, a killed process), the bytes are read
// again. So they are after a boot: a power cut may have taken bytes that were hashed.
const hashAttr = "user.corten.hash"

// writeBack is after how many bytes the kernel is asked to begin writing, so that the flush at the end is short.
const writeBack = 8 << 20

// upload is one file of uploads. All but Size belongs to whoever has it open.
type upload struct {
	d      *Driver
	id     string
	f      *os.File
	alg    digest.Algorithm
	size   atomic.Int64
	h      hash.Hash // of the first hashed bytes; nil: not begun
	hashed int64
	dirty  int64 // bytes since the kernel was last asked to write
	ended  bool
}

// Upload opens or makes the file of an upload.
func (d *Driver) Upload(_ context.Context, id string, opts server.UploadOptions) (server.Upload, error) {
	alg, err := d.open.Claim(id, opts)
	if err != nil {
		return nil, err
	}
	u := &upload{d: d, id: id, alg: alg}
	if err := u.openFile(opts.Create); err != nil {
		d.open.Release(id)
		return nil, fmt.Errorf("upload %s: %w", id, err)
	}
	return u, nil
}

func (u *upload) openFile(create bool) error {
	flags := os.O_RDWR
	if create {
		flags |= os.O_CREATE | os.O_EXCL
	}
	f, err := os.OpenFile(u.d.upload(u.id), flags, 0o600)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return errs.New(errs.NotFound, "not found")
	case errors.Is(err, os.ErrExist):
		return errs.New(errs.Conflict, "it is there already")
	case err != nil:
		return err
	}
	if err := u.adopt(f); err != nil {
		return errors.Join(err, f.Close())
	}
	u.f = f
	return nil
}

// adopt locks the file against other processes and sees how long it is. What was committed or aborted between opening and locking is no upload any more:
// the same file may be a blob now, so its name is looked at again under the lock.
func (u *upload) adopt(f *os.File) error {
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		if errors.Is(err, unix.EWOULDBLOCK) {
			return errs.New(errs.Conflict, "another process is writing to it")
		}
		if !errors.Is(err, unix.ENOLCK) && !errors.Is(err, unix.EOPNOTSUPP) { // without locks there is only one process, see shards
			return err
		}
	}
	mine, err := f.Stat()
	if err != nil {
		return err
	}
	named, err := os.Lstat(u.d.upload(u.id))
	if errors.Is(err, os.ErrNotExist) || err == nil && !os.SameFile(mine, named) {
		return errs.New(errs.NotFound, "not found")
	}
	if err != nil {
		return err
	}
	u.size.Store(mine.Size())
	return nil
}

// Size is how much is there.
func (u *upload) Size() int64 { return u.size.Load() }

// buffers are what bytes come through. 128 KiB is where a larger one gains nothing and a smaller one costs.
var buffers = sync.Pool{New: func() any { b := make([]byte, 128<<10); return &b }}

// Append writes and hashes what comes.
func (u *upload) Append(ctx context.Context, r io.Reader) error {
	buf := buffers.Get().(*[]byte)
	defer buffers.Put(buf)
	if err := u.hashUpTo(ctx, u.alg, *buf); err != nil {
		return fmt.Errorf("upload %s: %w", u.id, err)
	}
	for {
		n, rerr := r.Read(*buf)
		if n > 0 {
			if err := u.write((*buf)[:n]); err != nil {
				return fmt.Errorf("upload %s: %w", u.id, err)
			}
		}
		if rerr == io.EOF {
			return nil
		}
		if rerr == nil {
			rerr = ctx.Err()
		}
		if rerr != nil {
			return fmt.Errorf("upload %s: %w", u.id, rerr)
		}
	}
}

func (u *upload) write(p []byte) error {
	size := u.size.Load()
	n, err := u.f.WriteAt(p, size)
	u.h.Write(p[:n])
	u.hashed += int64(n)
	u.size.Store(size + int64(n))
	u.dirty += int64(n)
	if err == nil && u.dirty >= writeBack {
		start := size + int64(n) - u.dirty
		// A hint: a file system that does not know it writes at the flush.
		_ = unix.SyncFileRange(int(u.f.Fd()), start, u.dirty, unix.SYNC_FILE_RANGE_WRITE)
		u.dirty = 0
	}
	return err
}

// hashUpTo makes h the hash of all that is there, from the saved state or by reading.
func (u *upload) hashUpTo(ctx context.Context, alg digest.Algorithm, buf []byte) error {
	if u.h == nil || u.alg != alg {
		u.alg, u.hashed = alg, 0
		u.h = alg.Hash()
		if u.size.Load() > 0 {
			u.loadState()
		}
	}
	for u.hashed < u.size.Load() {
		if err := ctx.Err(); err != nil {
			return err
		}
		n, err := u.f.ReadAt(buf[:min(int64(len(buf)), u.size.Load()-u.hashed)], u.hashed)
		u.h.Write(buf[:n])
		u.hashed += int64(n)
		if err != nil && n == 0 {
			return fmt.Errorf("read what is there: %w", err)
		}
	}
	return nil
}

func (u *upload) loadState() {
	var raw [512]byte
	n, err := unix.Fgetxattr(int(u.f.Fd()), hashAttr, raw[:])
	if err != nil || n < 9 {
		return
	}
	hashed := int64(binary.BigEndian.Uint64(raw[:8]))
	name := u.d.boot + string(u.alg) + "\x00"
	rest := raw[8:n]
	state, ok := u.h.(encoding.BinaryUnmarshaler)
	if !ok || u.d.boot == "" || hashed > u.size.Load() || len(rest) < len(name) || string(rest[:len(name)]) != name {
		return
	}
	if err := state.UnmarshalBinary(rest[len(name):]); err != nil {
		u.h = u.alg.Hash()
		return
	}
	u.hashed = hashed
}

func (u *upload) saveState() {
	state, ok := u.h.(encoding.BinaryAppender)
	if !ok {
		return
	}
	raw := binary.BigEndian.AppendUint64(make([]byte, 0, 256), uint64(u.hashed))
	raw = append(append(append(raw, u.d.boot...), u.alg...), 0)
	raw, err := state.AppendBinary(raw)
	if err != nil {
		return
	}
	if err := unix.Fsetxattr(int(u.f.Fd()), hashAttr, raw, 0); err != nil && !errors.Is(err, unix.EOPNOTSUPP) {
		u.d.log.Debug("state of a hash is not kept, the bytes will be read again", "upload", u.id, "error", err)
	}
}

// Commit flushes the file and moves it to its name.
func (u *upload) Commit(ctx context.Context, want digest.Digest) (server.BlobInfo, error) {
	path, err := u.d.path(want)
	if err != nil {
		return server.BlobInfo{}, errors.Join(err, u.Abort(ctx))
	}
	buf := buffers.Get().(*[]byte)
	defer buffers.Put(buf)
	if err := u.hashUpTo(ctx, want.Algorithm(), *buf); err != nil {
		return server.BlobInfo{}, fmt.Errorf("upload %s: %w", u.id, err)
	}
	if got := digest.NewDigest(u.alg, u.h); got != want {
		err := errs.New(errs.Invalid, "upload %s is %s, not %s", u.id, got, want)
		return server.BlobInfo{}, errors.Join(err, u.Abort(ctx))
	}
	if err := u.seal(); err != nil {
		return server.BlobInfo{}, fmt.Errorf("upload %s: %w", u.id, err)
	}
	if err := u.d.place(u.d.upload(u.id), path, string(want)); err != nil {
		return server.BlobInfo{}, fmt.Errorf("upload %s: %w", u.id, err)
	}
	info := server.BlobInfo{Digest: want, Size: u.size.Load(), Stored: time.Now()}
	if err := u.end(); err != nil {
		return server.BlobInfo{}, fmt.Errorf("upload %s: %w", u.id, err)
	}
	return info, nil
}

// seal makes the file what a blob is: without the saved state, stored now, flushed.
func (u *upload) seal() error {
	fd := int(u.f.Fd())
	if err := unix.Fremovexattr(fd, hashAttr); err != nil && !errors.Is(err, unix.ENODATA) && !errors.Is(err, unix.EOPNOTSUPP) {
		return err
	}
	now := unix.NsecToTimeval(time.Now().UnixNano())
	if err := unix.Futimes(fd, []unix.Timeval{now, now}); err != nil {
		return err
	}
	return u.f.Sync()
}

func (u *upload) end() error {
	u.ended = true
	err := u.f.Close()
	u.d.open.Release(u.id)
	return err
}

// Close keeps what is there for later.
func (u *upload) Close() error {
	if u.ended {
		return nil
	}
	if u.h != nil && u.hashed > 0 && u.hashed == u.size.Load() {
		u.saveState()
	}
	return u.end()
}

// Abort throws the bytes away.
func (u *upload) Abort(context.Context) error {
	if u.ended {
		return nil
	}
	err := removed(u.d.upload(u.id))
	return errors.Join(err, u.end())
}

// WalkUploads lists the files of uploads.
func (d *Driver) WalkUploads(ctx context.Context, fn func(server.UploadInfo) error) error {
	entries, err := os.ReadDir(filepath.Join(d.root, "uploads"))
	if err != nil {
		return fmt.Errorf("list uploads: %w", err)
	}
	for _, e := range entries {
		if err := ctx.Err(); err != nil {
			return err
		}
		info, err := e.Info()
		if err != nil {
			continue // finished meanwhile
		}
		if err := fn(server.UploadInfo{ID: e.Name(), Size: info.Size(), Changed: info.ModTime()}); err != nil {
			return err
		}
	}
	return nil
}
