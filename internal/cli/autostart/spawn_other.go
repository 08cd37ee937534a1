//go:build !linux

package autostart

import (
	"context"

	"corten.dev/corten/internal/errs"
)

// Supported tells whether this system can run an engine at all.
const Supported = false

func unsupported() error {
	return errs.New(errs.NotImplemented, "the engine runs on Linux only; name one with --host or a context")
}

func spawn(string, []string, string) (<-chan error, error) { return nil, unsupported() }

func lock(context.Context, string) (func(), error) { return nil, unsupported() }
