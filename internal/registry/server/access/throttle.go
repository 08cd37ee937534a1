package access

import (
	"context"
	"net/netip"
	"sync"
	"time"

	"corten.dev/corten/internal/errs"
)

// Failed logins cost time: from the third one on, each attempt of that address (or for that user) waits its turn, twice as long each time.
const (
	freeFailures = 3
	firstDelay   = 250 * time.Millisecond
	addrDelay    = 16 * time.Second
	userDelay    = 2 * time.Second  // an attacker must not lock the user out
	longestWait  = 10 * time.Second // who would wait longer is told to come back
	forget       = 15 * time.Minute
	throttleSize = 10000
)

// TooMany is a refusal for now; RetryAfter says until when.
type TooMany struct{ RetryAfter time.Duration }

func (e *TooMany) Error() string { return "too many failed logins: try again later" }

// Unwrap makes it an errs.Unavailable.
func (e *TooMany) Unwrap() error { return errs.Unavailable }

type failures struct {
	count int
	next  time.Time // when the next attempt may be made
	last  time.Time
}

type throttle struct {
	now func() time.Time
	mu  sync.Mutex // guards by
	by  map[string]*failures
}

func newThrottle(now func() time.Time) *throttle {
	return &throttle{now: now, by: map[string]*failures{}}
}

// Network names an address for counting: itself, or the network that one customer has in IPv6.
func Network(addr netip.Addr) string {
	addr = addr.Unmap()
	if addr.Is6() {
		if p, err := addr.WithZone("").Prefix(64); err == nil {
			return p.String()
		}
	}
	return addr.String()
}

func delay(count int, longest time.Duration) time.Duration {
	if count < freeFailures {
		return 0
	}
	return min(firstDelay<<min(count-freeFailures, 10), longest)
}

// admit waits until an attempt may be made, or refuses it. settle must be told how it went.
func (t *throttle) admit(ctx context.Context, user string, addr netip.Addr) (settle func(good bool), err error) {
	byAddr, byUser := "a "+Network(addr), "u "+user
	wait := t.reserve(byAddr, byUser)
	if wait > longestWait {
		return nil, &TooMany{RetryAfter: wait}
	}
	if wait > 0 {
		timer := time.NewTimer(wait)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	return func(good bool) { t.settle(good, byAddr, byUser) }, nil
}

// reserve takes the next turn of both. Attempts side by side queue up behind each other, instead of all coming before the first has failed.
func (t *throttle) reserve(byAddr, byUser string) time.Duration {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := t.now()
	var wait time.Duration
	for _, key := range []string{byAddr, byUser} {
		if f := t.by[key]; f != nil && now.Sub(f.last) < forget {
			wait = max(wait, f.next.Sub(now))
		}
	}
	if wait > longestWait {
		return wait
	}
	for key, longest := range map[string]time.Duration{byAddr: addrDelay, byUser: userDelay} {
		if f := t.by[key]; f != nil && now.Sub(f.last) < forget {
			f.next = now.Add(wait + delay(f.count, longest))
		}
	}
	return wait
}

func (t *throttle) settle(good bool, byAddr, byUser string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if good {
		delete(t.by, byUser) // not the address: a guesser's own login must not clear it
		return
	}
	now := t.now()
	if len(t.by) >= throttleSize {
		for key, f := range t.by {
			if now.Sub(f.last) >= forget || len(t.by) >= throttleSize {
				delete(t.by, key)
			}
		}
	}
	for key, longest := range map[string]time.Duration{byAddr: addrDelay, byUser: userDelay} {
		f := t.by[key]
		if f == nil || now.Sub(f.last) >= forget {
			f = &failures{}
			t.by[key] = f
		}
		f.count++
		f.last = now
		if next := now.Add(delay(f.count, longest)); next.After(f.next) {
			f.next = next
		}
	}
}
