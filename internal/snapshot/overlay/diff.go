package overlay

import (
	"context"
	"io"
	"time"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/snapshot"
	"corten.dev/corten/internal/snapshot/depot"
	"corten.dev/corten/internal/tarfs"
)

// Diff writes the tree's own directory as a layer.
func (s *Store) Diff(ctx context.Context, key string, w io.Writer) error {
	t, err := s.Get(key)
	if err != nil {
		return err
	}
	return s.write(ctx, t, w, tarfs.WriteOptions{})
}

func (s *Store) write(ctx context.Context, t depot.Tree, w io.Writer, opts tarfs.WriteOptions) error {
	upper, err := s.openUpper(t)
	if err != nil {
		return err
	}
	defer upper.Close()
	opts.Whiteouts, opts.OpaqueXattr = tarfs.Convert, s.opaque()
	if opts.Root, err = s.RootChanged(upper, t.Chain); err != nil {
		return err
	}
	return tarfs.Write(ctx, upper, w, opts)
}

// Turn makes the tree's own directory a layer's.
func (s *Store) Turn(ctx context.Context, key string, opts snapshot.TurnOptions) (snapshot.Layer, error) {
	done, ok := s.alone("tree " + key)
	if !ok {
		return snapshot.Layer{}, errs.New(errs.Conflict, "turn tree %s into a layer: it is mounted", key)
	}
	defer done()
	t, err := s.Get(key)
	if err != nil {
		return snapshot.Layer{}, err
	}
	if t.Size > 0 {
		return snapshot.Layer{}, errs.New(errs.NotImplemented, "turn tree %s into a layer: it has a size", key)
	}
	return s.Depot.Turn(ctx, key, opts, depot.Turning{Files: "upper", Rest: []string{"work"}, Free: true,
		Write: func(ctx context.Context, w io.Writer, opts tarfs.WriteOptions) error { return s.write(ctx, t, w, opts) }})
}

// Commit makes a layer of the tree's own directory.
func (s *Store) Commit(ctx context.Context, key string, without ...string) (snapshot.Layer, error) {
	return s.Depot.Commit(ctx, key, s.unpack, func(ctx context.Context, t depot.Tree, w io.Writer) error {
		return s.write(ctx, t, w, tarfs.WriteOptions{Omit: without})
	})
}

// Changes compares the tree's own directory with what is below.
func (s *Store) Changes(ctx context.Context, key string) ([]snapshot.Change, error) {
	t, err := s.Get(key)
	if err != nil {
		return nil, err
	}
	below, err := s.View(ctx, t.Chain)
	if err != nil {
		return nil, err
	}
	defer below.Close()
	upper, err := s.openUpper(t)
	if err != nil {
		return nil, err
	}
	defer upper.Close()
	var all []snapshot.Change
	err = tarfs.CompareUpper(ctx, below.Root, upper, s.opaque(), func(path string, how tarfs.Change) {
		all = append(all, snapshot.Change{Path: path, Kind: snapshot.ChangeKind(how)})
	})
	return all, err
}

// Usage counts the tree's own directory.
func (s *Store) Usage(ctx context.Context, key string) (int64, error) {
	t, err := s.Get(key)
	if err != nil {
		return 0, err
	}
	upper, err := s.openUpper(t)
	if err != nil {
		return 0, err
	}
	defer upper.Close()
	return tarfs.Usage(ctx, upper)
}

// LastUsage is what Usage said the last time it was asked in the background.
func (s *Store) LastUsage(key string) (int64, time.Time) { return s.Depot.LastUsage(key, s.Usage) }
