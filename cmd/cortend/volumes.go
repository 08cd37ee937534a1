package main

import (
	"log/slog"
	"path/filepath"

	"corten.dev/corten/internal/plugin"
	"corten.dev/corten/internal/settings"
	"corten.dev/corten/internal/volume"
	"corten.dev/corten/internal/volume/drivers"
	"corten.dev/corten/internal/volume/remote"
)

// openPlugins knows where plugins are looked for. None is.
func openPlugins(set settings.Settings, log *slog.Logger) *plugin.Set {
	folders := set.PluginDirs
	if len(folders) == 0 {
		folders = plugin.Folders(set.ExecRoot)
	}
	return plugin.New(plugin.Options{Folders: folders, Warn: func(name string, err error) {
		log.Warn("waiting for a plugin", "plugin", name, "error", err)
	}})
}

// openVolumes joins the local store and the plugins to one.
func (e *engine) openVolumes(set settings.Settings, plugins *plugin.Set) (*drivers.Store, error) {
	root := filepath.Join(set.DataRoot, "volumes")
	local, err := volume.New(volume.Options{Root: root, Logger: e.log})
	if err != nil {
		return nil, err
	}
	e.closers = append(e.closers, local.Close)
	vols, err := drivers.New(drivers.Options{Root: root, Local: local, Plugins: remote.Plugins{Set: plugins}, Logger: e.log})
	if err != nil {
		return nil, err
	}
	e.closers = append(e.closers, vols.Close)
	return vols, nil
}
