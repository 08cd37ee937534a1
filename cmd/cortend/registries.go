package main

import (
	"log/slog"

	"corten.dev/corten/internal/registry/client"
	"corten.dev/corten/internal/settings"
	"corten.dev/corten/internal/version"
)

// openRegistries joins the client of registries to what the operator says of them.
func openRegistries(set settings.Settings, log *slog.Logger) (*client.Client, error) {
	proxy, err := client.ProxyFrom(client.Proxies{HTTP: set.Proxies.HTTP, HTTPS: set.Proxies.HTTPS, No: set.Proxies.No})
	if err != nil {
		return nil, err
	}
	hosts, err := client.NewHosts(client.HostsOptions{
		Rules: set.Registries, Mirrors: set.RegistryMirrors, Insecure: set.InsecureRegistries, CertDirs: set.RegistryCerts, Proxy: proxy, Logger: log,
	})
	if err != nil {
		return nil, err
	}
	return client.New(client.Options{Hosts: hosts, UserAgent: "Corten/" + version.Version, Logger: log, Retries: set.MaxAttempts}), nil
}
