package main

import (
	"cmp"
	"fmt"
	"maps"
	"slices"

	"corten.dev/corten/internal/container"
	"corten.dev/corten/internal/logs/fluentd"
	"corten.dev/corten/internal/logs/gelf"
	"corten.dev/corten/internal/logs/journald"
	"corten.dev/corten/internal/logs/jsonfile"
	"corten.dev/corten/internal/logs/remote"
	"corten.dev/corten/internal/logs/ship"
	"corten.dev/corten/internal/logs/syslog"
	"corten.dev/corten/internal/plugin"
	"corten.dev/corten/internal/settings"
)

// findLogDriver is how containers find what their logs are handed on by: our own drivers, then plugins.
func findLogDriver(plugins *plugin.Set) ship.Drivers {
	all := logDrivers()
	return func(name string) ship.Driver {
		if d := all[name]; d != nil {
			return d
		}
		return remote.Find(plugins, name)
	}
}

// logDrivers are our own drivers.
func logDrivers() map[string]ship.Driver {
	all := map[string]ship.Driver{}
	for _, d := range []ship.Driver{jsonfile.Driver{}, syslog.Driver{}, journald.Driver{}, fluentd.Driver{}, gelf.Driver{}} {
		all[d.Name()] = d
	}
	return all
}

// logDriverNames are all names that --log-driver takes.
func logDriverNames() []string {
	names := append(slices.Collect(maps.Keys(logDrivers())), ship.Local, ship.None)
	slices.Sort(names)
	return names
}

// defaultLog is the log configuration of containers that name no driver. Clients are shown json-file when the operator named none either: they read logs back of drivers they know only.
func defaultLog(set settings.Settings) container.LogConfig {
	return container.LogConfig{Type: cmp.Or(set.LogDriver, "json-file"), Config: set.LogOpts, Own: set.LogDriver == ""}
}

// checkLogs refuses a default that no container could be started with.
func checkLogs(set settings.Settings, plugins *plugin.Set) error {
	log := defaultLog(set)
	if _, err := ship.Parse(findLogDriver(plugins), ship.Request{Names: log.Type, Options: log.Config, Own: log.Own}); err != nil {
		return fmt.Errorf("default log driver: %w", err)
	}
	return nil
}
