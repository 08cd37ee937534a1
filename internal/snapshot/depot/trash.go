package depot

import (
	"errors"
	"os"
	"path/filepath"
	"sync"
	"time"

	"corten.dev/corten/internal/errs"
)

// trash deletes folders one after the other in the background. Its goroutine lives only while there is work.
type trash struct {
	mu    sync.Mutex
	queue []string
	busy  bool
	over  bool
	done  sync.WaitGroup
}

// patience is how long an engine that is told to end works on its trash. What is left then waits for the next start, as after a kill.
const patience = 3 * time.Second

// stop lets the work go on for a moment, and ends it after the folder at hand.
func (t *trash) stop() {
	defer time.AfterFunc(patience, func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		t.over = true
	}).Stop()
	t.done.Wait()
}

// delete removes a folder that nothing refers to any more, some time soon.
func (d *Depot) delete(path string) {
	t := &d.trash
	t.mu.Lock()
	defer t.mu.Unlock()
	t.queue = append(t.queue, path)
	if t.busy {
		return
	}
	t.busy = true
	t.done.Add(1)
	go d.empty()
}

func (d *Depot) empty() {
	t := &d.trash
	defer t.done.Done()
	for {
		t.mu.Lock()
		if len(t.queue) == 0 || t.over {
			t.busy, t.queue = false, nil
			t.mu.Unlock()
			return
		}
		path := t.queue[0]
		t.queue = t.queue[1:]
		t.mu.Unlock()
		if err := os.RemoveAll(path); err != nil {
			d.log.Warn("leftover of a snapshot stays until the next start", "path", path, "error", err)
		}
	}
}

// discard takes a folder out of sight at once and deletes it in the background.
func (d *Depot) discard(path string) error {
	to := filepath.Join(d.root, trashDir, filepath.Base(path))
	if err := os.Rename(path, to); err != nil {
		if errors.Is(err, os.ErrNotExist) {
			return nil
		}
		return err
	}
	d.delete(to)
	return nil
}

// syncDir makes the names in a directory durable.
func syncDir(path string) error {
	dir, err := os.Open(path)
	if err != nil {
		return err
	}
	return errs.Also(dir.Sync(), dir.Close())
}
