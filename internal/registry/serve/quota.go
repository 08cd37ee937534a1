package serve

import (
	"context"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/docker/go-units"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/registry/server"
	"corten.dev/corten/internal/task"
)

// quota bounds what one repository may hold. It is a guard behind the guard: whoever may push is refused once the repository is full. What is under way
// then is let finish, so that a repository may be larger than its limit by the pushes of one moment.
//
// How much a repository holds is what the registry counts, and what is pushed is added until the next count.
type quota struct {
	inner server.Guard // nil: everybody may do everything
	limit int64
	count func(ctx context.Context, repository string) (int64, error) // [server.Registry.Usage]; set before the first request
	log   *slog.Logger

	mu    sync.Mutex // guards known
	known map[string]*used
}

type used struct {
	bytes    int64
	at       time.Time
	counting bool
}

const (
	countAge   = 5 * time.Minute
	maxCounted = 10000
)

// Allow asks the guard, then looks how full the repository is.
func (q *quota) Allow(ctx context.Context, authorization, repository string, actions ...server.Action) error {
	if q.inner != nil {
		if err := q.inner.Allow(ctx, authorization, repository, actions...); err != nil {
			return err
		}
	}
	if !slices.Contains(actions, server.Push) {
		return nil
	}
	bytes, err := q.usage(ctx, repository)
	if err != nil {
		return err
	}
	if bytes >= q.limit {
		return errs.New(errs.Forbidden, "repository %s is full: it holds %s, and %s are allowed", repository, units.BytesSize(float64(bytes)), units.BytesSize(float64(q.limit)))
	}
	return nil
}

// Challenge and User are the guard's.
func (q *quota) Challenge(host, repository string, actions ...server.Action) string {
	if q.inner == nil {
		return ""
	}
	return q.inner.Challenge(host, repository, actions...)
}

// User names who is asking.
func (q *quota) User(authorization string) string {
	if q.inner == nil {
		return ""
	}
	return q.inner.User(authorization)
}

// finished adds what a push brought.
func (q *quota) finished(info server.RequestInfo) {
	if info.In == 0 || info.Status >= 300 || info.Route != "upload" && info.Route != "uploads" {
		return
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	if u := q.known[info.Repository]; u != nil {
		u.bytes += info.In
	}
}

// usage gives the last count; one that is old is renewed beside the request.
func (q *quota) usage(ctx context.Context, repository string) (int64, error) {
	q.mu.Lock()
	u := q.known[repository]
	if u == nil {
		q.mu.Unlock()
		bytes, err := q.count(ctx, repository)
		if err != nil {
			return 0, err
		}
		q.mu.Lock()
		defer q.mu.Unlock()
		if q.known == nil || len(q.known) >= maxCounted {
			q.known = map[string]*used{}
		}
		q.known[repository] = &used{bytes: bytes, at: time.Now()}
		return bytes, nil
	}
	defer q.mu.Unlock()
	// A full one is counted at once: somebody may have deleted something.
	if !u.counting && (time.Since(u.at) > countAge || u.bytes >= q.limit && time.Since(u.at) > time.Second) {
		u.counting = true
		go q.recount(context.WithoutCancel(ctx), repository, u)
	}
	return u.bytes, nil
}

func (q *quota) recount(ctx context.Context, repository string, u *used) {
	defer task.Contain(q.log, "count "+repository, nil)
	ctx, cancel := context.WithTimeout(ctx, countAge)
	defer cancel()
	bytes, err := q.count(ctx, repository)
	if err != nil {
		q.log.Warn("a repository's size could not be counted", "repository", repository, "err", err)
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	if u.counting, u.at = false, time.Now(); err == nil {
		u.bytes = bytes
	}
}

// observers tell several of one request.
type observers []func(server.RequestInfo)

// Finished tells all of them.
func (o observers) Finished(info server.RequestInfo) {
	for _, f := range o {
		f(info)
	}
}
