// Package solve gives a graph of steps its results: order, parallel work, equal work once, the keys of the cache, progress.
//
// It owns nothing on disk. It knows steps by [build.Op] only, layers by [Trees] and kept results by [build.Cache]. It promises: a vertex is done once for all who wait for it, in one
// build and across builds; it is cancelled at once when none waits any more; a result is taken only for the key of what it was really made of.
//
// # How it is made
//
// All waiting is done on one kind of thing, the [future]: work that begins with the first who asks, is shared by all who ask meanwhile, and is cancelled with the last who leaves.
//
//	Result.Evaluate ──waits──▶ node (one per vertex of a job)
//	                             │ 1. waits for the nodes of its inputs, side by side
//	                             │ 2. Op.Key of the inputs' outputs            ◀───────────────┐
//	                             │ 3. Use(key); Cache.Lookup, then imports ──hit──▶ result     │ an input has another chain now
//	                             │ 4. brings its inputs' layers here ──────────────────────────┘
//	                             └─▶ 5. flight (one per key, of all jobs): Lookup again, Op.Run, Cache.Save ──▶ result
//
// Layers of a node's output are brought by what comes first: they are in the store; Output.Fetch; an import that has them; the step is run again. A step that is run again may make other
// layers than it did when its record was kept: whoever stands on them makes its key anew (the arrow back).
//
// The kinds of ops that are only order, "build" (a definition in a file of its input) and "passthrough", are done here, without a key of their own: what they give is what others made.
package solve

import (
	"context"
	"log/slog"
	"time"

	"github.com/moby/buildkit/solver/pb"
	"github.com/opencontainers/go-digest"

	"corten.dev/corten/internal/build"
	"corten.dev/corten/internal/snapshot"
)

// Trees is what the solver needs of the store of layers; snapshot.Store has it.
type Trees interface {
	// Stat returns a layer; errs.NotFound when it is not here.
	Stat(ctx context.Context, chain snapshot.ChainID) (snapshot.Layer, error)
	// View mounts a chain read-only.
	View(ctx context.Context, chain snapshot.ChainID) (*snapshot.Mounted, error)
	// Remove removes a writable tree; removing one that is not there is no error.
	Remove(ctx context.Context, key string) error
}

// Makers make the work of a vertex, by the kind of its op. A nil one: steps of this kind are refused.
type Makers struct {
	Source, Exec, File, Merge, Diff build.Maker
}

// Options are what a solver is made of.
type Options struct {
	Cache build.Cache
	Trees Trees
	Make  Makers
	// Hold keeps a chain of layers from being removed until release; one that is not here is kept from nothing. Nil: layers are never removed.
	Hold func(chain snapshot.ChainID) (release func())
	// Parallelism is how many heavy steps run side by side, of all jobs; 0: two for each processor, at least 8, as many wait for the network.
	Parallelism int
	Log         *slog.Logger
}

// Import is a cache that was imported for a job.
type Import interface {
	// Lookup finds a record; outputs are those of rec.Outputs, with a Fetch that brings their layers here.
	Lookup(ctx context.Context, key digest.Digest) (rec build.Record, outputs []build.Output, ok bool, err error)
}

// JobOptions are what one request asks for.
type JobOptions struct {
	// Session gives what the asker offers, see build.Env.
	Session func(ctx context.Context, id string) (*build.Session, error)
	// Status is told what happens, by one goroutine at a time; nil: nobody looks.
	Status func(build.Status)
	// Entitlements that were granted, as BuildKit writes them: "network.host", "security.insecure", "device", "device=vendor.com/class=name".
	Entitlements []string
	// NoCache runs every vertex, and replaces the records.
	NoCache bool
	// SourcePolicy looks at each source before anything starts: it gives the op as it is to be, or refuses it. Nil: all are fine.
	SourcePolicy func(ctx context.Context, op *pb.Op) (*pb.Op, error)
	// Imports are asked in their order where the own cache has nothing.
	Imports []Import
}

// Step is a vertex that was evaluated.
type Step struct {
	Vertex *build.Vertex
	// Source: an identity that was looked up, without a record.
	Source bool
	Key    digest.Digest
	// Inputs are the keys of the vertices below, in the order of Vertex.Inputs.
	Inputs []digest.Digest
	// Outputs may have a Fetch: their layers need not be here.
	Outputs            []build.Output
	Cached             bool
	Started, Completed time.Time
	// Taken is how long the step took when it was run.
	Taken time.Duration
	// Loose: the outputs do not belong under the key, and no record has them.
	Loose bool
	// Imported is the record as an imported cache has it; nil: it was not taken from one.
	Imported *build.Record
}
