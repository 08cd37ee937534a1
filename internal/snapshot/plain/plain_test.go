package plain

import (
	"os"
	"testing"

	"corten.dev/corten/internal/snapshot"
	"corten.dev/corten/internal/snapshot/snapshottest"
)

func TestSuite(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: layers have owners")
	}
	snapshottest.Run(t, func(t *testing.T, root string) snapshot.Store {
		s, err := New(Options{Root: root})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { s.Close() })
		return s
	})
}
