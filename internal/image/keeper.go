package image

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"sort"
	"sync"
	"time"

	"corten.dev/corten/internal/linux/ns"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/image/recipe"
	"corten.dev/corten/internal/task"
)

// keeper does away with the compressed blobs that can be made again. It takes one after the other, on a thread of the lowest priority, and stands still while
// images come in or go out.
//
//	guess from the first megabyte ─▶ make the whole again and compare it with the blob ─▶ recipe on disk, flushed ─▶ blob deleted ─▶ form no longer kept
//	                └─ none ─▶ tried: the blob stays         └─ other bytes: the next guess
//
// It may be killed anywhere: the blob goes only after the recipe is durable, and what is done half is done again. A recipe with its blob still there is one that was
// killed just before the deletion.
type keeper struct {
	s    *Images
	ctx  context.Context
	stop context.CancelFunc
	wake chan struct{}
	work sync.WaitGroup
}

// waits tells whether nobody has looked for a recipe yet that this version might find.
func (f form) waits() bool { return f.Kept && (f.Recipe != nil || f.Tried < recipe.Version) }

func newKeeper(s *Images) *keeper {
	k := &keeper{s: s, wake: make(chan struct{}, 1)}
	k.ctx, k.stop = context.WithCancel(context.Background())
	if s.keep == KeepAlways {
		return k
	}
	k.work.Go(k.run)
	k.look()
	return k
}

// look says that there may be something to do.
func (k *keeper) look() {
	select {
	case k.wake <- struct{}{}:
	default:
	}
}

func (k *keeper) close() {
	k.stop()
	k.work.Wait()
}

func (k *keeper) run() { ns.OnOwnThread(k.recompress) }

// recompress works at the lowest priority, which is its thread's.
func (k *keeper) recompress() {
	lowest()
	for {
		select {
		case <-k.wake:
		case <-k.ctx.Done():
			return
		}
		for _, it := range k.list() {
			if err := k.rest(); err != nil {
				return
			}
			if err := k.one(it.diff, it.form); err != nil && k.ctx.Err() == nil {
				k.s.log.Warn("compressed layer stays, although it might be made again", "layer", it.diff, "digest", it.form.Digest, "error", err)
			}
		}
	}
}

func lowest() {
	_ = unix.Setpriority(unix.PRIO_PROCESS, 0, 19)
	const whoProcess, bestEffort, last = 1, 2 << 13, 7
	_, _, _ = unix.Syscall(unix.SYS_IOPRIO_SET, whoProcess, 0, bestEffort|last)
}

type keptForm struct {
	diff digest.Digest
	form form
}

// list is what is to be looked at, small blobs first: those that are kept, and recipes that were compared with other compressors.
func (k *keeper) list() (all []keptForm) {
	k.s.forms.each(func(diff digest.Digest, f form) {
		if f.waits() || f.Kept && k.s.keep == KeepNever || f.stale(k.s.compressors) {
			all = append(all, keptForm{diff, f})
		}
	})
	sort.Slice(all, func(i, j int) bool { return all[i].form.Size < all[j].form.Size })
	return all
}

// rest waits until nothing else is to do.
func (k *keeper) rest() error {
	for k.s.busy.Load() > 0 {
		select {
		case <-k.ctx.Done():
		case <-time.After(50 * time.Millisecond):
		}
		if k.ctx.Err() != nil {
			break
		}
	}
	return k.ctx.Err()
}

func (k *keeper) one(diff digest.Digest, f form) (err error) {
	s := k.s
	defer task.Contain(s.log, "look at the compression of layer "+diff.String(), &err)
	held := []loose{{form: true, name: diff}}
	s.gate.hold(held)
	defer func() {
		s.gate.release(held)
		s.Sweep()
	}()
	// It may be gone since it was listed.
	f, ok := s.forms.find(diff, f.Digest)
	if ok && f.stale(s.compressors) {
		if err := k.again(diff, f); err != nil {
			return err
		}
		f, ok = s.forms.find(diff, f.Digest)
	}
	if !ok || !f.Kept {
		return nil
	}
	if f.Recipe == nil && s.keep != KeepNever {
		rec, err := k.find(diff, f)
		if err != nil {
			return err
		}
		if rec == nil {
			return s.forms.edit(diff, f.descriptor(), false, func(f *form) { f.Tried = recipe.Version })
		}
		if err := s.forms.edit(diff, f.descriptor(), true, func(f *form) { f.Recipe, f.By = rec, s.compressors }); err != nil {
			return err
		}
	}
	_, err = s.gate.unlessHeld(f.Digest, func() error { // when a pull counts on it, the next look finds it again
		if !s.Live()(f.Digest) { // it may be an artifact's as well
			if err := s.blobs.Delete(k.ctx, f.Digest); err != nil {
				return err
			}
		}
		return s.forms.edit(diff, f.descriptor(), false, func(f *form) { f.Kept = false })
	})
	return err
}

// again compares a recipe with the digest of its blob, before somebody needs it.
func (k *keeper) again(diff digest.Digest, f form) error {
	layer, err := k.s.snaps.ByDiff(k.ctx, diff)
	if errors.Is(err, errs.NotFound) {
		return nil // it goes with the layer
	}
	if err != nil {
		return err
	}
	_, err = k.s.prove(diff, f, func(rec recipe.Recipe, w io.Writer) error {
		zw, err := rec.NewWriter(resting{k, w}, 1)
		if err != nil {
			return err
		}
		return errs.Also(k.s.snaps.LayerTar(k.ctx, layer.Chain, zw), zw.Close())
	})
	return err
}

// resting passes on what is written, when nothing else is to do.
type resting struct {
	k *keeper
	w io.Writer
}

func (r resting) Write(p []byte) (int, error) {
	if err := r.k.rest(); err != nil {
		return 0, err
	}
	return r.w.Write(p)
}

// find returns a recipe that gives the whole blob, or nil.
func (k *keeper) find(diff digest.Digest, f form) (*recipe.Recipe, error) {
	if f.Digest == diff {
		return &recipe.Recipe{Algo: recipe.Plain}, nil
	}
	layer, err := k.s.snaps.ByDiff(k.ctx, diff)
	if err != nil {
		return nil, err
	}
	blob, info, err := k.s.blobs.Open(k.ctx, f.Digest)
	if errors.Is(err, errs.NotFound) {
		return nil, k.s.forms.edit(diff, f.descriptor(), false, func(f *form) { f.Kept = false })
	}
	if err != nil {
		return nil, err
	}
	defer blob.Close()
	head := make([]byte, min(info.Size, recipe.Head))
	if _, err := io.ReadFull(blob, head); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(k.ctx)
	pr, pw := io.Pipe()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		var err error
		defer func() { pw.CloseWithError(err) }()
		defer task.Contain(k.s.log, "read layer "+diff.String(), &err)
		err = k.s.snaps.LayerTar(ctx, layer.Chain, pw)
	}()
	guesses, err := recipe.Find(ctx, head, int64(len(head)) == info.Size, pr)
	cancel()
	pr.CloseWithError(context.Canceled)
	<-ended // it holds the layer
	if err != nil {
		return nil, err
	}
	for _, rec := range guesses {
		same, err := k.compare(layer.Chain, rec, blob)
		if err != nil {
			return nil, err
		}
		if same {
			return &rec, nil
		}
	}
	return nil, nil
}

// compare makes the whole blob again, into a comparison with the one that is there.
func (k *keeper) compare(chain digest.Digest, rec recipe.Recipe, blob *os.File) (bool, error) {
	if _, err := blob.Seek(0, io.SeekStart); err != nil {
		return false, err
	}
	same := &comparer{k: k, r: bufio.NewReaderSize(blob, 256<<10)}
	zw, err := rec.NewWriter(same, 1)
	if err != nil {
		return false, err
	}
	err = errs.Also(k.s.snaps.LayerTar(k.ctx, chain, zw), zw.Close())
	if errors.Is(err, errOther) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	_, err = same.r.Peek(1)
	return err == io.EOF, nil // else the blob goes on
}

var errOther = errors.New("other bytes")

// comparer takes what is written only as long as it is what the blob has.
type comparer struct {
	k   *keeper
	r   *bufio.Reader
	buf []byte
}

func (c *comparer) Write(p []byte) (int, error) {
	if err := c.k.rest(); err != nil {
		return 0, err
	}
	if cap(c.buf) < len(p) {
		c.buf = make([]byte, len(p))
	}
	have := c.buf[:len(p)]
	_, err := io.ReadFull(c.r, have)
	if err == io.EOF || err == io.ErrUnexpectedEOF || err == nil && !bytes.Equal(have, p) {
		return 0, errOther
	}
	if err != nil {
		return 0, err
	}
	return len(p), nil
}
