package disk_test

import (
	"testing"

	"corten.dev/corten/internal/registry/server"
	"corten.dev/corten/internal/registry/server/disk"
	"corten.dev/corten/internal/registry/server/servertest"
)

func TestDriver(t *testing.T) {
	servertest.Driver(t, func(t *testing.T) servertest.DriverTest {
		root := t.TempDir()
		return servertest.DriverTest{Open: func(t *testing.T) server.Driver {
			d, err := disk.New(disk.Options{Root: root})
			if err != nil {
				t.Fatal(err)
			}
			return d
		}}
	})
}
