package volume_test

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"

	"corten.dev/corten/internal/volume"
)

// A volume outlives who uses it, and is not removed while someone does.
func Example() {
	root, err := os.MkdirTemp("", "volumes")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer os.RemoveAll(root) //nolint:errcheck // example
	ctx := context.Background()
	store, err := volume.New(volume.Options{Root: root, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer store.Close() //nolint:errcheck // example
	vol, err := store.Create(ctx, volume.CreateOptions{Name: "data"})
	fmt.Println(filepath.Base(vol.Mountpoint), err)
	fmt.Println(store.Acquire(ctx, "data", "web"))
	fmt.Println(store.Remove(ctx, "data", false))
	fmt.Println(store.Release(ctx, "data", "web"), store.Remove(ctx, "data", false))
	// Output:
	// _data <nil>
	// <nil>
	// remove data: volume is in use - [web]
	// <nil> <nil>
}
