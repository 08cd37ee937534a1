// Package version says which Corten this is.
//
// It owns two strings that the linker sets. It promises nothing else.
package version

// Version and Commit are set by `make build`.
var (
	Version = "0.1.0-dev"
	Commit  = "unknown"
)
