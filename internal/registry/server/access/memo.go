package access

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"sync"
	"time"
)

const memoSize = 4096

// memo remembers what was proved a moment ago, by a digest of the proof under a key that only this process knows.
type memo[T any] struct {
	now    func() time.Time
	secret [32]byte
	mu     sync.Mutex // guards known
	known  map[[32]byte]remembered[T]
}

type remembered[T any] struct {
	value T
	until time.Time
}

func newMemo[T any](now func() time.Time) *memo[T] {
	m := &memo[T]{now: now, known: map[[32]byte]remembered[T]{}}
	rand.Read(m.secret[:]) // never fails: the runtime ends the process instead
	return m
}

func (m *memo[T]) key(parts ...string) (key [32]byte) {
	mac := hmac.New(sha256.New, m.secret[:])
	for _, p := range parts {
		var size [8]byte
		binary.BigEndian.PutUint64(size[:], uint64(len(p)))
		mac.Write(size[:])
		mac.Write([]byte(p))
	}
	mac.Sum(key[:0])
	return key
}

func (m *memo[T]) get(key [32]byte) (T, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	r, ok := m.known[key]
	if !ok || !m.now().Before(r.until) {
		var zero T
		return zero, false
	}
	return r.value, true
}

func (m *memo[T]) put(key [32]byte, value T, until time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.known) >= memoSize {
		clear(m.known) // all of it can be proved again
	}
	m.known[key] = remembered[T]{value, until}
}
