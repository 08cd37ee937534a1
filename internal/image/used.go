package image

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
)

const usedFile = "used.json"

// usedSoon is how long a use may stay in memory only.
const usedSoon = time.Minute

// uses remembers when images were used last. It is on the path of every container start: a use costs a map entry; the file follows some time later,
// and a machine that goes down loses a minute of it.
type uses struct {
	path string
	fail func(error)

	mu    sync.Mutex // guards what follows
	last  map[digest.Digest]time.Time
	timer *time.Timer // set while there is something to write
	done  bool
}

func openUses(root string, fail func(error)) *uses {
	u := &uses{path: filepath.Join(root, usedFile), fail: fail, last: map[digest.Digest]time.Time{}}
	data, err := os.ReadFile(u.path)
	if err == nil {
		err = json.Unmarshal(data, &u.last)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		fail(fmt.Errorf("last uses of images are forgotten: %w", err))
	}
	if u.last == nil {
		u.last = map[digest.Digest]time.Time{}
	}
	return u
}

// Used notes that a container of the image was created, started or stopped then.
func (s *Images) Used(id digest.Digest, when time.Time) {
	s.mu.RLock()
	known := s.byID[id] != nil
	s.mu.RUnlock()
	if !known {
		return
	}
	u := s.uses
	u.mu.Lock()
	defer u.mu.Unlock()
	if !when.After(u.last[id]) || u.done {
		return
	}
	u.last[id] = when
	if u.timer == nil {
		u.timer = time.AfterFunc(usedSoon, u.write)
	}
}

func (u *uses) get(id digest.Digest) time.Time {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.last[id]
}

func (u *uses) forget(id digest.Digest) {
	u.mu.Lock()
	defer u.mu.Unlock()
	delete(u.last, id)
}

// write puts the file in place, without a flush.
func (u *uses) write() {
	u.mu.Lock()
	u.timer = nil
	data, err := json.Marshal(u.last)
	u.mu.Unlock()
	tmp := u.path + ".tmp"
	if err == nil {
		err = os.WriteFile(tmp, data, 0o600)
	}
	if err == nil {
		err = os.Rename(tmp, u.path)
	}
	if err != nil {
		u.fail(fmt.Errorf("last uses of images are not written: %w", err))
	}
}

func (u *uses) close() {
	u.mu.Lock()
	u.done = true
	pending := u.timer != nil && u.timer.Stop()
	u.mu.Unlock()
	if pending {
		u.write()
	}
}
