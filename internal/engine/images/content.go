package images

import (
	"context"
	"io"

	"github.com/opencontainers/go-digest"

	"corten.dev/corten/internal/content"
)

// OverContent fits the content room to what pulls need.
func OverContent(store *content.Store) Blobs { return overContent{store} }

type overContent struct{ *content.Store }

func (o overContent) Begin(name string) (Ingest, error) {
	in, err := o.Store.Begin(name)
	if err != nil {
		return nil, err
	}
	return in, nil
}

func (o overContent) Open(ctx context.Context, d digest.Digest) (io.ReadCloser, error) {
	f, _, err := o.Store.Open(ctx, d)
	if err != nil {
		return nil, err
	}
	return f, nil
}
