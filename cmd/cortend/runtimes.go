package main

import (
	"log/slog"
	"path/filepath"

	"corten.dev/corten/internal/engine/system"
	"corten.dev/corten/internal/runtime/foreign"
	"corten.dev/corten/internal/settings"
)

// otherRuntimes are the OCI runtimes that the settings name.
func otherRuntimes(set settings.Settings, systemd bool, log *slog.Logger) *foreign.Runtimes {
	opts := foreign.Options{Root: filepath.Join(set.ExecRoot, "runtimes"), Systemd: systemd, Logger: log}
	for name, rt := range set.Runtimes {
		opts.Commands = append(opts.Commands, foreign.Command{Name: name, Path: rt.Path, Args: rt.Args})
	}
	return foreign.New(opts)
}

func shownRuntimes(set settings.Settings) map[string]system.Runtime {
	all := map[string]system.Runtime{}
	for name, rt := range set.Runtimes {
		all[name] = system.Runtime{Path: rt.Path, Args: rt.Args}
	}
	return all
}
