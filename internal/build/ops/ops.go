// Package ops is the part of the build room that works on files without running a program: copy, mkdir, mkfile, rm, symlink (COPY, ADD, WORKDIR), trees merged and their differences,
// and build contexts made layers.
//
// It owns the writable trees whose keys begin with "ops-", from the start of an op until its outputs are layers; New takes away those that a killed engine left.
//
// It promises: no path of a source or a target leaves its tree, whatever links are there or are put there meanwhile: each is a descriptor and one single name. Devices and fifos are
// copied as such and never opened; sockets are left out. What is read of a directory in place is digested as it is copied; when that is not what the key says, the result is
// volatile. Equal content that comes from different steps gives equal keys.
//
// # What a file op does
//
//	input chain ─▶ Prepare, Mount ─▶ actions, one after the other ─▶ Turn ─▶ output chain
//	                                    ▲
//	   sources: a chain (View), a directory in place, the output of another action
package ops

import (
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"log/slog"

	"github.com/moby/buildkit/solver/pb"
	"github.com/opencontainers/go-digest"

	"corten.dev/corten/internal/build"
	"corten.dev/corten/internal/build/checksum"
	"corten.dev/corten/internal/build/checksum/pick"
	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/snapshot"
)

// Trees is what ops need of the snapshot room; snapshot.Store has it. It is wider than most because making, reading and stacking layers are three verbs each.
type Trees interface {
	Prepare(ctx context.Context, key string, chain snapshot.ChainID, opts snapshot.Options) error
	Mount(ctx context.Context, key string) (*snapshot.Mounted, error)
	Turn(ctx context.Context, key string, opts snapshot.TurnOptions) (snapshot.Layer, error)
	Remove(ctx context.Context, key string) error
	Walk(ctx context.Context, fn func(key string, labels map[string]string) error) error
	Layers
}

// Layers is the part of Trees that has to do with layers that are there.
type Layers interface {
	View(ctx context.Context, chain snapshot.ChainID) (*snapshot.Mounted, error)
	Stat(ctx context.Context, chain snapshot.ChainID) (snapshot.Layer, error)
	Stack(ctx context.Context, parent snapshot.ChainID, want digest.Digest, layer io.Reader, opts snapshot.Stacking) (snapshot.Layer, error)
}

// Options join this part to its neighbours.
type Options struct {
	Trees Trees
	Sums  *checksum.Sums
	Log   *slog.Logger
}

// Ops makes the ops of kind file, merge and diff.
type Ops struct {
	trees Trees
	sums  *checksum.Sums
	log   *slog.Logger
	made  madeTrees
}

// label marks the trees of ops.
const label = "corten.build.ops"

// New takes away what ops of an engine that was killed left behind, and gives makers of ops.
func New(ctx context.Context, opts Options) (*Ops, error) {
	if opts.Trees == nil || opts.Sums == nil {
		return nil, errs.New(errs.Invalid, "ops: trees and checksums are needed")
	}
	o := &Ops{trees: opts.Trees, sums: opts.Sums, log: opts.Log}
	if o.log == nil {
		o.log = slog.New(slog.DiscardHandler)
	}
	var old []string
	err := o.trees.Walk(ctx, func(key string, labels map[string]string) error {
		if _, ok := labels[label]; ok {
			old = append(old, key)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	for _, key := range old {
		if err := o.trees.Remove(ctx, key); err != nil {
			o.log.Warn("remove the tree of a file operation that was cut off", "tree", key, "error", err)
		}
	}
	return o, nil
}

// Checksum is that of the file or directory at path of an output, links followed, with all below it; errs.NotFound.
func (o *Ops) Checksum(ctx context.Context, _ build.Env, in build.Output, path string) (digest.Digest, error) {
	return o.sums.Of(ctx, in, pick.Selection{Path: path, Follow: true})
}

// work is a writable tree while actions work on it.
type work struct {
	o    *Ops
	key  string
	m    *snapshot.Mounted
	root int
}

// begin makes a writable tree on a chain.
func (o *Ops) begin(ctx context.Context, chain snapshot.ChainID) (*work, error) {
	w := &work{o: o, key: "ops-" + rand.Text()}
	if err := o.trees.Prepare(ctx, w.key, chain, snapshot.Options{Labels: map[string]string{label: ""}, Bare: true}); err != nil {
		return nil, err
	}
	m, err := o.trees.Mount(ctx, w.key)
	if err != nil {
		w.drop(ctx)
		return nil, err
	}
	w.m, w.root = m, int(m.Root.Fd())
	return w, nil
}

// finish makes the tree a layer; the tree is gone then in any case.
func (w *work) finish(ctx context.Context) (snapshot.ChainID, error) {
	if err := w.close(); err != nil {
		w.drop(ctx)
		return "", err
	}
	l, err := w.o.trees.Turn(ctx, w.key, snapshot.TurnOptions{Relaxed: true, Empty: true})
	if err != nil {
		w.drop(ctx)
		return "", fmt.Errorf("make a layer: %w", err)
	}
	return l.Chain, nil
}

func (w *work) close() error {
	if w.m == nil {
		return nil
	}
	err := w.m.Close()
	w.m = nil
	return err
}

// drop throws the tree away, also when the build was cancelled.
func (w *work) drop(ctx context.Context) {
	if err := w.close(); err != nil {
		w.o.log.Warn("take down the tree of a file operation", "tree", w.key, "error", err)
	}
	if err := w.o.trees.Remove(context.WithoutCancel(ctx), w.key); err != nil {
		w.o.log.Warn("remove the tree of a file operation", "tree", w.key, "error", err)
	}
}

// File is the maker of file ops.
func (o *Ops) File(v *build.Vertex) (build.Op, error) {
	op, ok := v.Op.GetOp().(*pb.Op_File)
	if !ok || op.File == nil {
		return nil, errs.New(errs.Invalid, "%s is no file operation", v.Name)
	}
	return newFileOp(o, v, op.File)
}
