package mirror

import (
	"context"
	"fmt"
	"os"
	"strings"

	"github.com/moby/patternmatcher"
	"github.com/tonistiigi/fsutil"
	"github.com/tonistiigi/fsutil/types"

	"corten.dev/corten/internal/build"
	"corten.dev/corten/internal/errs"
)

// Receive brings a mirror up to date from a stream of BuildKit's file synchronization (fsutil), as buildx and docker send it. The sender has been told the patterns of req.Context.
// The copy is the build's until release.
func (m *Mirrors) Receive(ctx context.Context, stream fsutil.Stream, req Request) (*build.Files, func(), error) {
	if req.Context.MetadataOnly {
		req.Name += ":metadata" // another tree
	}
	c, err := m.take(req)
	if err != nil {
		return nil, nil, err
	}
	if err := c.receive(ctx, stream, req); err != nil {
		c.give()
		return nil, nil, fmt.Errorf("transfer of %s: %w", req.Name, err)
	}
	return c.files(req)
}

func (c *copyOf) receive(ctx context.Context, stream fsutil.Stream, req Request) error {
	osRoot, err := os.OpenRoot(c.tree)
	if err != nil {
		return err
	}
	root := fsutil.NewRoot(osRoot)
	defer root.Close()
	bound := &bounds{max: c.m.opts.MaxBytes, entries: c.m.opts.MaxEntries}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	opt := fsutil.ReceiveOpt{
		Filter: func(_ string, st *types.Stat) bool {
			st.Uid, st.Gid = 0, 0 // what a client's users are called there means nothing here
			for name := range st.Xattrs {
				if name != "security.capability" && !strings.HasPrefix(name, "user.") || strings.HasPrefix(name, "user.overlay.") {
					delete(st.Xattrs, name)
				}
			}
			return true
		},
		ProgressCb: func(n int, done bool) {
			if p := req.Context.Progress; p != nil {
				p.Status("transferring "+req.Name+":", int64(n), 0, done)
			}
		},
	}
	if req.Context.Differ == "none" {
		opt.Differ = fsutil.DiffNone
	}
	if req.Context.MetadataOnly {
		whole, err := patternmatcher.New(req.Context.MetadataExceptions)
		if err != nil {
			return errs.As(errs.Invalid, err)
		}
		opt.MetadataOnly = func(p string, _ *types.Stat) bool {
			ok, err := whole.MatchesOrParentMatches(p)
			return err == nil && ok
		}
	}
	err = fsutil.ReceiveRoot(ctx, &boundedStream{stream, bound, ctx, cancel}, root, opt)
	if cause := context.Cause(ctx); err != nil && cause != nil {
		return cause
	}
	return err
}

// bounds counts what comes.
type bounds struct{ max, entries, bytes, seen int64 }

// boundedStream ends a transfer that is larger than any context may be.
type boundedStream struct {
	fsutil.Stream
	b      *bounds
	ctx    context.Context
	cancel context.CancelCauseFunc
}

func (s *boundedStream) Context() context.Context { return s.ctx }

// RecvMsg is called by one goroutine.
func (s *boundedStream) RecvMsg(msg any) error {
	if err := s.Stream.RecvMsg(msg); err != nil {
		return err
	}
	p, ok := msg.(*types.Packet)
	if !ok {
		return nil
	}
	s.b.bytes += int64(len(p.Data))
	if p.Type == types.PACKET_STAT && p.Stat != nil {
		s.b.seen++
	}
	if s.b.bytes > s.b.max || s.b.seen > s.b.entries {
		err := errs.New(errs.Invalid, "the context is larger than %d bytes or %d files", s.b.max, s.b.entries)
		s.cancel(err)
		return err
	}
	return nil
}
