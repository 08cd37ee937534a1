package memory

import (
	"testing"

	"corten.dev/corten/internal/volume/driver/drivertest"
)

func TestDriver(t *testing.T) { drivertest.Run(t, New("memory", t.TempDir())) }
