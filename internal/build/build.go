// Package build is the room of builds: a graph of steps (LLB, github.com/moby/buildkit/solver/pb) in, file trees and images out.
//
// This file is the contract between its parts; each lies in a folder of its own and knows the others only through it:
//
//	frontend   Dockerfile, or another frontend, to LLB; the gateway that frontends ask
//	solve      a graph to results: order, parallel work, equal work once, the cache's keys, progress
//	source     image, local, git, http, oci-layout
//	step       RUN: a process in a tree, its mounts
//	ops        file operations, merge, diff
//	checksum   the content of files as digests
//	cache      what was built, by key; cache mounts; collection
//	travel     the cache to and from registries and folders
//	export     results to the image store, registries, archives and folders; attestations
//
// It owns <data-root>/builds. It does not know HTTP, gRPC or the engine. It promises: a result is named by what it was made of, so that equal work is done once and a cached result is
// never a wrong or partial one; a cancelled or killed build leaves nothing running and nothing that the next start does not collect.
//
// # How a graph is solved
//
// From the sources up. A vertex' [Op] makes its key of its own definition and of the identities of its inputs, and an identity is content: the chain id of layers, or the checksum of
// those files of an input that the step reads. A record under that key answers with the chains that the step made; its layers need not be here:
//
//	inputs' Outputs ──Op.Key──▶ key ──Cache──▶ record: Outputs, nothing is run
//	                                  └─ none ─▶ layers of the inputs are brought here (Output.Fetch, else their step is run again)
//	                                             ──Op.Run──▶ Outputs ──▶ record
package build

import (
	"context"
	"io"
	"time"

	"github.com/moby/buildkit/solver/pb"
	"github.com/opencontainers/go-digest"

	"corten.dev/corten/internal/snapshot"
)

// Output is a file tree that a vertex gives. It is a value; who uses its layers holds them (Trees).
type Output struct {
	// Chain names the tree's layers, when Files is nil. The empty chain is the empty tree ("scratch").
	Chain snapshot.ChainID
	// Fetch brings the layers of Chain to this host; calling it again is no harm. Nil: they are here, or only running the step again makes them.
	Fetch func(ctx context.Context, p Progress) error
	// Files is a directory outside of the store: a build context. Its identity is the checksum of what is read of it.
	Files *Files
	// Image is the manifest that the tree came with, for provenance and for pushing layers under their old digests; may be empty.
	Image digest.Digest
	// Pin is what a source was found to be, when its address does not say: a git commit, the checksum of a download. For provenance; may be empty.
	Pin string
}

// Files is a directory that is read in place. The files may change while they are read: who reads them for a result that is kept compares what was read with the checksum in the key.
type Files struct {
	Root Directory
	// Include, Exclude and Follow choose the files, as fsutil.FilterOpt does (patterns of .dockerignore; Follow names paths whose link targets belong to it).
	Include, Exclude, Follow []string
	// Key names this directory over builds, for the cache of its checksums.
	Key string
	// Owner, when set, owns all files, whatever the disk says: uid and gid. Contexts that come from an asker are 0:0, transferred or read in place. Who takes a checksum and who copies
	// both honour it.
	Owner *[2]uint32
}

// Directory is an open directory. Dup gives a descriptor that the caller closes.
type Directory interface {
	// Fd is the descriptor; valid until the session that gave it ends.
	Fd() uintptr
}

// Op is the work of one vertex.
type Op interface {
	// Key names the results: equal keys have interchangeable results. It may read inputs, and fetch what it must read. in has the vertex' inputs in their order.
	Key(ctx context.Context, env Env, in []Output) (digest.Digest, error)
	// Run does the work. The layers of the inputs are here, unless Lazy.
	Run(ctx context.Context, env Env, in []Output) (Made, error)
	// Traits tell the solver how to treat the vertex.
	Traits() Traits
}

// Traits are what the solver must know of an op.
type Traits struct {
	// Source: the result is an identity that was looked up (an image, a context); no record is kept, Run is always called, after Key.
	Source bool
	// Lazy: Run does not need the layers of its inputs.
	Lazy bool
	// Heavy: counts against the limit of steps that run side by side.
	Heavy bool
}

// Made is what a run made.
type Made struct {
	Outputs []Output
	// Volatile: inputs changed while they were read, so that the results do not belong under the key. They are used, and not recorded.
	Volatile bool
	// Cached: nothing had to be done or fetched; people are told so (a source that was here already).
	Cached bool
}

// Env is what an op gets from the build that it works for.
type Env struct {
	Vertex *Vertex
	// Session gives what the asker of the build offers; "" is the build's own session. errs.NotFound when it is gone.
	Session  func(ctx context.Context, id string) (*Session, error)
	Progress Progress
	// NoCache: the vertex must be run (--no-cache), and cache mounts stay.
	NoCache bool
	// Bring brings the layers of an input here, for a Key that reads them and for the Run of a Lazy op, and gives the input as it is then: where its step had to be run again, its
	// chain may be another than in has. An input that is here costs nothing.
	Bring func(ctx context.Context, input int) (Output, error)
}

// Vertex is one step of a graph.
type Vertex struct {
	// Digest is that of the marshalled op, as the definition has it: the vertex' name in progress.
	Digest digest.Digest
	Op     *pb.Op
	Meta   *pb.OpMetadata
	Name   string // for people: "[2/6] RUN make"
	Inputs []Edge
}

// Edge is one output of a vertex.
type Edge struct {
	Vertex *Vertex
	Index  int
}

// Maker makes the work of a vertex, or refuses it (errs.Invalid, errs.Unsupported).
type Maker func(v *Vertex) (Op, error)

// Progress is where a step tells how it goes. All methods may be called concurrently.
type Progress interface {
	// Log takes output: stream 1 or 2.
	Log(stream int, data []byte)
	// Status tells how far a part of the step is ("sha256:… extracting", "exporting layers"). A done part is complete.
	Status(id string, current, total int64, done bool)
	// Warn adds a warning.
	Warn(Warning)
}

// Runs is what a Progress offers besides, if somebody wants to know of processes.
type Runs interface {
	// Running tells the id of the process that the step is about to run: its tree, its cgroups and its place on the network bear it.
	Running(id string)
}

// Status is what happened in a build since the last one; doors translate it. Nil slices are nothing new.
type Status struct {
	Vertexes []VertexStatus `json:"vertexes,omitempty"`
	Parts    []PartStatus   `json:"statuses,omitempty"`
	Logs     []LogStatus    `json:"logs,omitempty"`
	Warnings []Warning      `json:"warnings,omitempty"`
}

// VertexStatus is the state of one vertex. A vertex may start and complete more than once (progress of a group, a second look).
type VertexStatus struct {
	Digest    digest.Digest     `json:"digest"`
	Inputs    []digest.Digest   `json:"inputs,omitempty"`
	Name      string            `json:"name,omitempty"`
	Started   *time.Time        `json:"started,omitempty"`
	Completed *time.Time        `json:"completed,omitempty"`
	Cached    bool              `json:"cached,omitempty"`
	Error     string            `json:"error,omitempty"`
	Group     *pb.ProgressGroup `json:"progressGroup,omitempty"`
	// Result names what a completed vertex gave, for doors that tell of it: the manifest of an image, else the key of the step's record.
	Result digest.Digest `json:"-"`
	// Process names the process that a step runs, once there is one.
	Process string `json:"-"`
}

// PartStatus is the state of a part of a vertex.
type PartStatus struct {
	ID        string        `json:"id"`
	Vertex    digest.Digest `json:"vertex"`
	Name      string        `json:"name,omitempty"`
	Current   int64         `json:"current"`
	Total     int64         `json:"total,omitempty"`
	Timestamp time.Time     `json:"timestamp"`
	Started   *time.Time    `json:"started,omitempty"`
	Completed *time.Time    `json:"completed,omitempty"`
}

// LogStatus is a piece of output.
type LogStatus struct {
	Vertex    digest.Digest `json:"vertex"`
	Stream    int           `json:"stream"`
	Data      []byte        `json:"data"`
	Timestamp time.Time     `json:"timestamp"`
}

// Warning is a finding of the linter or of a step.
type Warning struct {
	Vertex     digest.Digest  `json:"vertex"`
	Level      int            `json:"level,omitempty"`
	Short      []byte         `json:"short,omitempty"`
	Detail     [][]byte       `json:"detail,omitempty"`
	URL        string         `json:"url,omitempty"`
	SourceInfo *pb.SourceInfo `json:"sourceInfo,omitempty"`
	Range      []*pb.Range    `json:"range,omitempty"`
}

// Session is what the asker of a build offers while it runs. A nil field is not offered.
type Session struct {
	ID          string
	Contexts    Contexts
	Secrets     Secrets
	SSH         SSH
	Credentials Credentials
	Outputs     Outputs
	Blobs       Blobs
	Uploads     Uploads
	// OnEnd has f called when the session ends: what a source opened for it (a context) is let go then. Nil is allowed: the asker lets go of it by itself.
	OnEnd func(f func())
}

// Contexts gives directories by name ("context", "dockerfile", a named context).
type Contexts interface {
	// Open gives a directory; errs.NotFound when the asker has none of this name. The directory may hold more than opts choose. It is valid until release.
	Open(ctx context.Context, name string, opts ContextOptions) (files *Files, release func(), err error)
}

// ContextOptions choose what is wanted of a context; fields as the local source of LLB has them.
type ContextOptions struct {
	Include, Exclude, Follow []string
	// SharedKey lets builds of equal key share what was transferred before.
	SharedKey string
	// MetadataOnly asks for names and attributes; files that match MetadataExceptions come whole.
	MetadataOnly       bool
	MetadataExceptions []string
	// Differ says what travels of a context that was transferred before: "" or "metadata" is what differs by name, size, time or attributes; "none" is all of it.
	Differ   string
	Progress Progress
}

// Secrets gives secrets; errs.NotFound.
type Secrets interface {
	Secret(ctx context.Context, id string) ([]byte, error)
}

// SSH forwards to agents of the asker.
type SSH interface {
	// Offers tells whether there is an agent of this id ("default").
	Offers(ctx context.Context, id string) error
	// Dial opens a new connection to it.
	Dial(ctx context.Context, id string) (io.ReadWriteCloser, error)
}

// Credentials gives what the asker is known by at registries.
type Credentials interface {
	// Credentials of a registry host as names have it ("docker.io", "host:5000"); zero values: none. An empty user with a secret is an identity token.
	Credentials(ctx context.Context, host string) (user, secret string, err error)
}

// Outputs takes results of exporters to the asker, by the exporter's id (the position in the request).
type Outputs interface {
	// File opens a stream for an archive (types tar, oci, docker).
	File(ctx context.Context, id string, meta map[string]string) (io.WriteCloser, error)
	// Tree hands over a directory as an uncompressed tar (type local).
	Tree(ctx context.Context, id string, tar io.Reader) error
}

// Uploads gives what the asker sends once, when it is asked for: an archive on its standard input, which BuildKit's clients name http://buildkit-session/<path>.
type Uploads interface {
	Upload(ctx context.Context, path string) (io.ReadCloser, error)
}

// Blobs reads and writes OCI layouts at the asker (oci-layout contexts, local caches).
type Blobs interface {
	// Reader opens a blob of a store; the digest is verified by the reader.
	Reader(ctx context.Context, store string, dgst digest.Digest) (io.ReadCloser, int64, error)
	// Write puts a blob.
	Write(ctx context.Context, store string, dgst digest.Digest, size int64, r io.Reader) error
	// Ref reads, and SetRef writes, what a name ("latest") or digest of the store leads to: the descriptor as JSON (OCI layout, index.json).
	Ref(ctx context.Context, store, name string) ([]byte, error)
	SetRef(ctx context.Context, store, name string, descriptor []byte) error
}

// Record is a kept result.
type Record struct {
	Key     digest.Digest
	Outputs []snapshot.ChainID
	// Inputs are the keys of the vertices below, for export of the cache.
	Inputs      []digest.Digest
	Description string // the vertex' name
	Kind        string // "regular", "source.local", "source.git.checkout", "exec.cachemount", "frontend", "internal"
	Created     time.Time
	// Taken is how long the step took: what a hit saves.
	Taken time.Duration
}

// Cache is where the solver looks for results, and leaves them.
type Cache interface {
	// Lookup finds a record; ok is false when there is none. A record whose layers are gone is still found: its chains are identities.
	Lookup(ctx context.Context, key digest.Digest) (rec Record, ok bool, err error)
	// Save keeps a record and holds its layers until it is pruned; one whose layers are not here is kept as an identity. It is durable before it returns, unless a later call of Flush makes it so.
	Save(ctx context.Context, rec Record) error
	// Use marks records as used by a build that runs, until release: their layers are not collected meanwhile. A key without a record is marked as well: the record that is saved
	// under it is held from its first moment. The solver calls it before Lookup, for every vertex of every build: it must be cheap.
	Use(ctx context.Context, keys ...digest.Digest) (release func())
}

// StepError is a step that failed. What it left is there until the build ends.
type StepError struct {
	Vertex *Vertex
	// ExitCode of the process; -1 when it never ran.
	ExitCode int
	// Inputs and Mounts are the trees as the step found and left them, in the order of Op.Inputs and of its mounts; for a shell in the failed step.
	Inputs []Output
	Mounts []string // keys of writable trees (snapshot.Store)
	Err    error
}

// Error is the text that people know: process "/bin/sh -c make" did not complete successfully: exit code: 2.
func (e *StepError) Error() string { return e.Err.Error() }

// Unwrap gives the cause.
func (e *StepError) Unwrap() error { return e.Err }
