package server

import (
	"bufio"
	"context"
	"encoding/binary"
	"fmt"
	"io"

	"corten.dev/corten/internal/build"
	"corten.dev/corten/internal/build/source/mirror"
	"corten.dev/corten/internal/buildwire"
	"corten.dev/corten/internal/errs"
)

// BuildMirrors keeps copies of the directories of clients that cannot hand theirs over: those on other hosts, and archives.
type BuildMirrors interface {
	// Unpack makes a context of a tar; it is gone after release.
	Unpack(ctx context.Context, tar io.Reader, req mirror.Request) (files *build.Files, release func(), err error)
	// Update brings a copy up to date; it is the build's until release.
	Update(ctx context.Context, src mirror.Source, req mirror.Request) (files *build.Files, release func(), err error)
}

// mirrored gives the copy of a client's directory, after what changed has travelled.
func (b *buildSession) mirrored(ctx context.Context, name string, opts build.ContextOptions) (*build.Files, func(), error) {
	if b.mirrors == nil {
		return nil, nil, errs.New(errs.NotImplemented, "context %s: this engine takes directories from clients on its own host only", name)
	}
	q, err := b.ask(ctx, buildwire.Ask{What: buildwire.AskContext, Name: name, Options: &buildwire.ContextOptions{Include: opts.Include, Exclude: opts.Exclude, Follow: opts.Follow}})
	if err != nil {
		return nil, nil, err
	}
	defer q.Close()
	var tree buildwire.Tree
	if err := q.Heard(&tree); err != nil {
		return nil, nil, fmt.Errorf("context %s: %w", name, err)
	}
	// One directory is asked for in parts (.dockerignore, then the rest): each has a copy of its own.
	req := mirror.Request{SharedKey: tree.Key, Name: name, Context: opts}
	if tree.Key != "" {
		req.SharedKey += " " + opts.SharedKey
	}
	files, release, err := b.mirrors.Update(ctx, &clientTree{q: q, r: bufio.NewReaderSize(q, 64<<10)}, req)
	if err != nil {
		return nil, nil, fmt.Errorf("context %s: %w", name, err)
	}
	return files, release, nil
}

// clientTree is a directory of a client: the list of its files, then those that are wanted.
type clientTree struct {
	q *question
	r *bufio.Reader
}

// Next gives the next name.
func (t *clientTree) Next() (mirror.Entry, error) {
	e, err := buildwire.ReadEntry(t.r)
	if err != nil {
		return mirror.Entry{}, err
	}
	return mirror.Entry{Path: e.Path, Mode: e.Mode, Size: e.Size, ModTime: e.ModTime, Link: e.Link}, nil
}

// Want asks for files by their numbers, and gives the tar of them.
func (t *clientTree) Want(_ context.Context, files []uint32) (io.ReadCloser, error) {
	out := bufio.NewWriterSize(t.q.Stream, 64<<10)
	var four [4]byte
	for _, n := range files {
		binary.BigEndian.PutUint32(four[:], n)
		if _, err := out.Write(four[:]); err != nil {
			return nil, err
		}
	}
	if err := out.Flush(); err != nil {
		return nil, err
	}
	if err := t.q.End(); err != nil {
		return nil, err
	}
	return io.NopCloser(t.r), nil
}
