// Package version says which Corten this is.
//
// It owns two strings that the linker sets. It promises nothing else.
package version

// Version and Commit are set by `make build`.
var (
	Version = "0.1.0-dev"
	Commit  = "unknown"
)

// API versions of the Docker Engine API that the engine serves.
const (
	API    = "1.56"
	MinAPI = "1.24"
)
