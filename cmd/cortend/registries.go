package main

import (
	"cmp"
	"log/slog"
	"syscall"
	"time"

	"corten.dev/corten/internal/engine/images"
	"corten.dev/corten/internal/image"
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
		Default: set.DefaultRegistry, Rules: set.Registries, Mirrors: set.RegistryMirrors, Insecure: set.InsecureRegistries, CertDirs: set.RegistryCerts, Proxy: proxy, Logger: log,
	})
	if err != nil {
		return nil, err
	}
	again := cmp.Or(set.MaxAttempts-1, -1) // the first attempt is none again
	return client.New(client.Options{Hosts: hosts, UserAgent: "Corten/" + version.Version, Logger: log, Retries: again}), nil
}

// collection is when images go by themselves.
func collection(set settings.Settings, store *image.Images) images.Collection {
	gc := set.ImageGC
	return images.Collection{
		Collector: store,
		Policy:    image.Policy{High: gc.High, Low: gc.Low, Keep: time.Duration(gc.Keep), MaxAge: time.Duration(gc.MaxAge), Tagged: gc.Tagged},
		Space: func() (free, total int64) {
			var st syscall.Statfs_t
			if err := syscall.Statfs(set.DataRoot, &st); err != nil {
				return 0, 0 // not known: nothing is collected for want of space
			}
			// As df counts: what is kept back for root is no use to anybody.
			free = int64(st.Bavail) * int64(st.Bsize)
			return free, int64(st.Blocks-st.Bfree)*int64(st.Bsize) + free
		},
	}
}
