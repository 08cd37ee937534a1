package step

import (
	"maps"
	"runtime"
	"slices"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Platforms are those that steps can run for now, the host's own first: emulators come and go while the engine runs.
func Platforms() []ocispec.Platform {
	all := []ocispec.Platform{{OS: "linux", Architecture: runtime.GOARCH}}
	for _, arch := range slices.Sorted(maps.Keys(machines)) {
		if arch != runtime.GOARCH && (arch == native[runtime.GOARCH] || emulates(arch)) {
			all = append(all, ocispec.Platform{OS: "linux", Architecture: arch})
		}
	}
	return all
}
