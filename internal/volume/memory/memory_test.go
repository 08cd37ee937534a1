package memory_test

import (
	"testing"

	"corten.dev/corten/internal/volume"
	"corten.dev/corten/internal/volume/memory"
	"corten.dev/corten/internal/volume/volumetest"
)

func TestSuite(t *testing.T) {
	volumetest.Run(t, volumetest.Config{New: func(*testing.T) volume.Store { return memory.New() }})
}
