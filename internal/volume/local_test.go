package volume_test

import (
	"io"
	"log/slog"
	"testing"

	"corten.dev/corten/internal/volume"
	"corten.dev/corten/internal/volume/volumetest"
)

func quiet() *slog.Logger { return slog.New(slog.NewTextHandler(io.Discard, nil)) }

func open(t testing.TB, root string, log *slog.Logger) *volume.LocalStore {
	t.Helper()
	s, err := volume.New(volume.Options{Root: root, Logger: log})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func TestSuite(t *testing.T) {
	volumetest.Run(t, volumetest.Config{Files: true, New: func(t *testing.T) volume.Store { return open(t, t.TempDir(), quiet()) }})
}
