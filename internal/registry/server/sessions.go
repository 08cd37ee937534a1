package server

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"time"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/task"
)

// sessions are the uploads that a request works on just now, and how many there are in all.
//
// An upload has no record but the driver's own. Its name there is made of the session's id and the repository, so that nobody can go on with it from
// another repository:
//
//	<uuid>-<first 16 hex digits of the sha256 of the repository>
//
//	POST ──▶ there ──PATCH, PUT──▶ worked on ──end of the request──▶ there ──▶ …
//	                                   │  ▲                            │
//	        another request for it: the first is cut, what came stays  │ nobody touched it for UploadAge, or DELETE
//	                                   ▼                               ▼
//	                             PUT verified: a blob                 gone
//
// The newest request wins, because a client that lost its connection comes back before the registry has noticed that the old connection is dead.
type sessions struct {
	mu      sync.Mutex // guards the rest
	active  map[string]*session
	open    int // uploads there are, as far as known; counted is set once they were counted
	counted bool
	evicted time.Time // when a full house last made room
}

type session struct {
	interrupt func()
	ready     chan struct{} // closed when up is set, or never will be
	done      chan struct{}
	up        Upload // set once it is open; guarded by sessions.mu
}

// takeOver is how long a request waits for the one that it cuts off.
const takeOver = 15 * time.Second

func uploadID(repo, uuid string) string {
	sum := sha256.Sum256([]byte(repo))
	return uuid + "-" + hex.EncodeToString(sum[:8])
}

func newUUID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails
	b[6] = b[6]&0x0f | 0x40
	b[8] = b[8]&0x3f | 0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}

func validUUID(s string) bool {
	if len(s) != 36 {
		return false
	}
	for i := range len(s) {
		c := s[i]
		switch i {
		case 8, 13, 18, 23:
			if c != '-' {
				return false
			}
		default:
			if !(c >= '0' && c <= '9' || c >= 'a' && c <= 'f') {
				return false
			}
		}
	}
	return true
}

// claim makes this request the one that works on an upload. A request without interrupt only wants to look: it does not cut another one off, but gets nil.
func (s *sessions) claim(ctx context.Context, id string, interrupt func()) (*session, error) {
	ctx, cancel := context.WithTimeout(ctx, takeOver)
	defer cancel()
	for {
		s.mu.Lock()
		before := s.active[id]
		if before == nil {
			if s.active == nil {
				s.active = map[string]*session{}
			}
			mine := &session{interrupt: interrupt, ready: make(chan struct{}), done: make(chan struct{})}
			s.active[id] = mine
			s.mu.Unlock()
			return mine, nil
		}
		s.mu.Unlock()
		if interrupt == nil {
			return nil, nil
		}
		if before.interrupt != nil { // who only looks is done at once
			before.interrupt()
		}
		select {
		case <-before.done:
		case <-ctx.Done():
			return nil, refuse(http.StatusConflict, codeUploadInvalid, "another request is working on this upload")
		}
	}
}

func (s *sessions) release(id string, mine *session) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.active, id)
	if mine.up == nil {
		close(mine.ready)
	}
	close(mine.done)
}

func (s *sessions) opened(mine *session, up Upload) {
	s.mu.Lock()
	defer s.mu.Unlock()
	mine.up = up
	close(mine.ready)
}

// settle waits a moment for a request to end that works on an upload. Who asks for the status has mostly lost his connection just now, and what it had
// brought is still on its way into the upload: a number that grows while it is told helps nobody.
func (s *sessions) settle(ctx context.Context, id string) {
	s.mu.Lock()
	a := s.active[id]
	s.mu.Unlock()
	if a == nil {
		return
	}
	wait := time.NewTimer(300 * time.Millisecond)
	defer wait.Stop()
	select {
	case <-a.done:
	case <-wait.C:
	case <-ctx.Done():
	}
}

// peek tells how much is there of an upload that a request works on just now.
func (s *sessions) peek(ctx context.Context, id string) (size int64, busy bool) {
	s.mu.Lock()
	a := s.active[id]
	s.mu.Unlock()
	if a == nil {
		return 0, false
	}
	select {
	case <-a.ready:
	case <-ctx.Done():
		return 0, true
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if a.up == nil {
		return 0, false
	}
	return a.up.Size(), true
}

// add counts one more upload, or refuses it.
func (r *Registry) addUpload(ctx context.Context) error {
	if r.limits.Uploads < 0 {
		return nil
	}
	s := &r.sessions
	s.mu.Lock()
	counted := s.counted
	s.mu.Unlock()
	if !counted {
		if err := r.countUploads(ctx); err != nil {
			return err
		}
	}
	s.mu.Lock()
	if s.open < r.limits.Uploads {
		s.open++
		s.mu.Unlock()
		return nil
	}
	evict := time.Since(s.evicted) > time.Minute
	if evict {
		s.evicted = time.Now()
	}
	s.mu.Unlock()
	if evict {
		r.background.Go(r.makeRoom)
	}
	return refuse(http.StatusTooManyRequests, codeTooManyRequests, "there are %d uploads under way: finish or cancel some", r.limits.Uploads)
}

func (s *sessions) gone(n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.open = max(s.open-n, 0)
}

func (r *Registry) countUploads(ctx context.Context) error {
	n := 0
	err := r.d.WalkUploads(ctx, func(UploadInfo) error { n++; return nil })
	if err != nil {
		return fmt.Errorf("count uploads: %w", err)
	}
	r.sessions.mu.Lock()
	defer r.sessions.mu.Unlock()
	r.sessions.open, r.sessions.counted = n, true
	return nil
}

// roomAge is what an upload must have stood still for to be thrown away when there are too many.
const roomAge = time.Hour

// makeRoom throws uploads away that stood still, when there are too many of them: somebody may open them only to keep others out.
func (r *Registry) makeRoom() {
	defer task.Contain(r.log, "throw uploads away", nil)
	n, err := r.expireUploads(r.running, roomAge, func(UploadInfo) bool { return true })
	if err == nil {
		err = r.countUploads(r.running)
	}
	r.log.Warn("too many uploads under way", "limit", r.limits.Uploads, "removed", n, "error", err)
}

// expireUploads aborts the uploads that nobody touched for that long, and that fn wants gone.
func (r *Registry) expireUploads(ctx context.Context, age time.Duration, fn func(UploadInfo) bool) (int, error) {
	var old []UploadInfo
	err := r.d.WalkUploads(ctx, func(u UploadInfo) error {
		if time.Since(u.Changed) > age {
			old = append(old, u)
		}
		return nil
	})
	if err != nil {
		return 0, err
	}
	n := 0
	for _, u := range old {
		if _, busy := r.sessions.peek(ctx, u.ID); busy || !fn(u) {
			continue
		}
		gone, err := r.abortUpload(ctx, u)
		if err != nil {
			return n, err
		}
		if gone {
			n++
			r.sessions.gone(1)
		}
	}
	return n, nil
}

// abortUpload throws an upload away, if it is as it was seen.
func (r *Registry) abortUpload(ctx context.Context, seen UploadInfo) (bool, error) {
	up, err := r.d.Upload(ctx, seen.ID, UploadOptions{})
	if errors.Is(err, errs.NotFound) || errors.Is(err, errs.Conflict) {
		return false, nil // finished, or somebody works on it after all
	}
	if err != nil {
		return false, err
	}
	if up.Size() != seen.Size {
		return false, up.Close()
	}
	return true, up.Abort(ctx)
}
