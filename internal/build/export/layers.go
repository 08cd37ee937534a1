package export

import (
	"context"
	"errors"
	"io"
	"log/slog"

	"corten.dev/corten/internal/image"
	"corten.dev/corten/internal/manifest"
	"corten.dev/corten/internal/task"
)

// outgoing prepares the image of a target, whose config is finished, for going out.
func (x *exporting) outgoing(ctx context.Context, t *target) (image.Outgoing, error) {
	how := image.Compression{Type: x.opts.compression, Level: x.opts.level, Force: x.opts.force}
	return x.Images.SendBuilt(ctx, image.CreateOptions{Config: t.config, Chain: t.chain}, how)
}

func compressionOf(mediaType string) string {
	switch mediaType {
	case manifest.OCILayerZstd, manifest.DockerLayerTar + ".zstd":
		return "zstd"
	case manifest.OCILayer, manifest.DockerLayerTar:
		return "uncompressed"
	}
	return "gzip"
}

// stream turns a writer into a reader. Close ends it and waits.
func (x *Exporter) stream(ctx context.Context, write func(ctx context.Context, w io.Writer) error) io.ReadCloser {
	ctx, cancel := context.WithCancel(ctx)
	pr, pw := io.Pipe()
	done := make(chan struct{})
	go func() {
		defer close(done)
		var err error
		defer func() { pw.CloseWithError(err) }()
		defer task.Contain(x.log(), "write a layer", &err)
		err = write(ctx, pw)
	}()
	return &streaming{pr, cancel, done}
}

func (x *Exporter) log() *slog.Logger {
	if x.Log == nil {
		return slog.New(slog.DiscardHandler)
	}
	return x.Log
}

type streaming struct {
	*io.PipeReader
	cancel context.CancelFunc
	done   chan struct{}
}

func (s *streaming) Close() error {
	s.cancel()
	err := s.CloseWithError(errors.New("closed by the reader"))
	<-s.done
	return err
}
