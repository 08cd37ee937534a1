package server_test

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"time"

	"corten.dev/corten/internal/registry/server"
	"corten.dev/corten/internal/registry/server/disk"
)

// A registry on a folder, asked whether it is one, and told what to keep.
func Example() {
	root, err := os.MkdirTemp("", "registry")
	if err != nil {
		panic(err)
	}
	defer os.RemoveAll(root)
	driver, err := disk.New(disk.Options{Root: root})
	if err != nil {
		panic(err)
	}
	registry, err := server.New(server.Options{Driver: driver})
	if err != nil {
		panic(err)
	}
	defer registry.Close()

	ts := httptest.NewServer(registry)
	defer ts.Close()
	resp, err := http.Get(ts.URL + "/v2/")
	if err != nil {
		panic(err)
	}
	defer resp.Body.Close()
	fmt.Println(resp.StatusCode)

	// While it serves: of the tags of each team's repositories, the newest ten and those of the last month stay, and every release.
	report, err := registry.Collect(context.Background(), server.CollectOptions{
		DryRun: true,
		Rules: []server.Rule{{
			Repositories: []string{"team/**"}, Keep: []string{"v[0-9]*"}, KeepLast: 10, KeepFor: 30 * 24 * time.Hour, Untagged: 24 * time.Hour,
		}},
	})
	fmt.Println(report.Tags, report.Blobs, err)
	// Output:
	// 200
	// 0 0 <nil>
}
