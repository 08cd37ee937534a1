// Package buildtest has what tests of several rooms of builds need.
//
// It owns nothing. It promises what the contracts in package build promise, but nothing that outlives the process.
package buildtest

import (
	"context"
	"sync"

	"github.com/opencontainers/go-digest"

	"corten.dev/corten/internal/build"
)

// Records is a build.Cache in memory, empty at first. It holds no layers.
type Records struct {
	mu   sync.Mutex
	recs map[digest.Digest]build.Record
}

var _ build.Cache = (*Records)(nil)

// Lookup is build.Cache's Lookup.
func (r *Records) Lookup(_ context.Context, key digest.Digest) (build.Record, bool, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	rec, ok := r.recs[key]
	return rec, ok, nil
}

// Save is build.Cache's Save.
func (r *Records) Save(_ context.Context, rec build.Record) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.recs == nil {
		r.recs = map[digest.Digest]build.Record{}
	}
	r.recs[rec.Key] = rec
	return nil
}

// Use is build.Cache's Use. Nothing ever goes, so nothing is to be kept.
func (r *Records) Use(context.Context, ...digest.Digest) (release func()) { return func() {} }

// Forget empties it.
func (r *Records) Forget() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.recs = nil
}

// Len is how many records there are.
func (r *Records) Len() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.recs)
}
