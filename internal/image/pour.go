package image

import (
	"context"
	"errors"
	"io"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Pour writes the bytes of a layer as it goes out, and tells how many they are.
func Pour(ctx context.Context, l OutgoingLayer, w io.Writer) (int64, error) {
	r, err := l.Open(ctx, 0)
	if err != nil {
		return 0, err
	}
	n, err := io.CopyBuffer(struct{ io.Writer }{w}, struct{ io.Reader }{r}, make([]byte, 256<<10))
	return n, errors.Join(err, r.Close())
}

// Settle tells what the layers of an image are when they go out, by diff id. Those that nobody compressed yet are compressed, to find out; how is remembered: who sends them makes the same bytes again.
func Settle(ctx context.Context, out Outgoing) (map[digest.Digest]ocispec.Descriptor, error) {
	all := map[digest.Digest]ocispec.Descriptor{}
	for _, l := range out.Layers() {
		d, known := l.Known()
		if !known {
			if d, known = all[l.DiffID()]; !known {
				sum := digest.Canonical.Digester()
				n, err := Pour(ctx, l, sum.Hash())
				if err != nil {
					return nil, err
				}
				d = ocispec.Descriptor{Digest: sum.Digest(), Size: n}
			}
			if err := l.Sent(d); err != nil {
				return nil, err
			}
		}
		all[l.DiffID()] = d
	}
	return all, nil
}
