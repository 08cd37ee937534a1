package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"time"

	"corten.dev/corten/internal/container"
	"corten.dev/corten/internal/content"
	"corten.dev/corten/internal/engine/containers"
	"corten.dev/corten/internal/engine/hostspec"
	"corten.dev/corten/internal/engine/images"
	"corten.dev/corten/internal/engine/networks"
	"corten.dev/corten/internal/engine/system"
	"corten.dev/corten/internal/engine/volumes"
	"corten.dev/corten/internal/events"
	"corten.dev/corten/internal/image"
	"corten.dev/corten/internal/linux/cgroup"
	"corten.dev/corten/internal/metrics"
	"corten.dev/corten/internal/monitor"
	"corten.dev/corten/internal/network"
	netplugins "corten.dev/corten/internal/network/remote"
	"corten.dev/corten/internal/plugin"
	"corten.dev/corten/internal/runtime"
	"corten.dev/corten/internal/server"
	"corten.dev/corten/internal/settings"
	"corten.dev/corten/internal/snapshot"
	"corten.dev/corten/internal/snapshot/overlay"
	"corten.dev/corten/internal/snapshot/plain"
	"corten.dev/corten/internal/version"
	"corten.dev/corten/internal/volume/drivers"
)

// engine is everything joined. closers run backwards.
type engine struct {
	log     *slog.Logger
	server  *server.Server
	metrics http.Handler
	closers []func() error
	// containers is set once the service exists; monitors that are found again before have nothing to tell it yet.
	containers atomic.Pointer[containers.Service]
}

// join makes the rooms' drivers, and the services and doors on top of them.
func join(set settings.Settings, log *slog.Logger) (_ *engine, err error) {
	e := &engine{log: log}
	defer func() {
		if err != nil {
			err = errors.Join(err, e.close())
		}
	}()
	at, err := e.openRooms(set)
	if err != nil {
		return nil, err
	}
	if err := e.openServices(set, at); err != nil {
		return nil, err
	}
	lean, stop := context.WithCancel(background())
	e.closers = append(e.closers, func() error { stop(); return nil })
	go leanMemory(lean)
	return e, nil
}

// rooms are the drivers that services and doors stand on.
type rooms struct {
	systemd  bool
	trees    snapshot.Store
	blobs    *content.Store
	store    *image.Images
	imgs     *withHello
	plugins  *plugin.Set
	vols     *drivers.Store
	nets     *network.Local
	monitors *monitor.Pool
}

// openRooms makes the drivers. What it opens is closed by e.
func (e *engine) openRooms(set settings.Settings) (at rooms, err error) {
	at.systemd, err = set.SystemdCgroup()
	if err != nil {
		return at, err
	}
	at.trees, err = openSnapshots(set, e.log)
	if err != nil {
		return at, err
	}
	at.blobs, err = content.New(content.Options{Root: filepath.Join(set.DataRoot, "content"), Logger: e.log})
	if err != nil {
		return at, err
	}
	at.store, err = image.New(image.Options{Root: filepath.Join(set.DataRoot, "images"), Snapshots: at.trees, Content: at.blobs, Logger: e.log, KeepBlobs: set.ImageBlobs})
	if err != nil {
		return at, err
	}
	e.closers = append(e.closers, at.store.Close)
	at.imgs = &withHello{Images: at.store}
	at.plugins = openPlugins(set, e.log)
	at.vols, err = e.openVolumes(set, at.plugins)
	if err != nil {
		return at, err
	}
	helpers := helpersPlace(e.log)
	if helpers != nil {
		e.closers = append(e.closers, helpers.Close)
	}
	at.nets, err = openNetwork(set, helpers, at.plugins, e.log)
	if err != nil {
		return at, err
	}
	e.closers = append(e.closers, at.nets.Close)
	at.monitors, err = monitor.New(monitor.Options{Root: filepath.Join(set.ExecRoot, "monitors"), Logger: e.log, Cgroup: helpers, OnOOM: func(id string) {
		if ctrs := e.containers.Load(); ctrs != nil {
			ctrs.OOM(id)
		}
	}})
	if err != nil {
		return at, err
	}
	e.closers = append(e.closers, at.monitors.Close)
	return at, nil
}

// openServices makes the services and the doors.
func (e *engine) openServices(set settings.Settings, at rooms) error {
	bus := &events.Bus{}
	devices := hostspec.NewCDI(set.CDISpecDirs)
	ctrs, err := containers.New(containers.Options{
		Root: filepath.Join(set.DataRoot, "containers"), ExecRoot: set.ExecRoot,
		Runtime:  containers.OverRuntimes(runtime.New(runtime.Options{Root: filepath.Join(set.ExecRoot, "runtime"), Systemd: at.systemd, Logger: e.log}), otherRuntimes(set, at.systemd, e.log), settings.OwnRuntime),
		Monitors: at.monitors, Trees: at.trees, Images: at.imgs, Networks: at.nets, Volumes: at.vols, Events: bus, Log: e.log,
		ReadExit: monitor.ReadExit, CgroupParent: set.CgroupParent, Network: defaultNetwork(set), SystemdCgroup: at.systemd, Init: set.Init,
		Ulimits: ulimits(set), CDI: devices, ShmSize: int64(set.ShmSize), LogConfig: defaultLog(set), LogDrivers: findLogDriver(at.plugins), TreeSize: treeSize(set), DefaultRuntime: set.DefaultRuntime,
	})
	if err != nil {
		return err
	}
	e.containers.Store(ctrs)
	e.closers = append(e.closers, ctrs.Close)
	registries, err := openRegistries(set, e.log)
	if err != nil {
		return err
	}
	imageService := images.New(images.Options{
		Store: at.imgs, Containers: ctrs, Events: bus, Transfers: at.store, Blobs: images.OverContent(at.blobs), Registry: registries,
		MaxDownloads: set.MaxDownloads, MaxUploads: set.MaxUploads, Collection: collection(set, at.store), Log: e.log,
	})
	e.closers = append(e.closers, imageService.Close)
	building, err := e.openBuilds(building{set: set, trees: at.trees, store: at.store, images: imageService, nets: at.nets, systemd: at.systemd, bus: bus, log: e.log})
	if err != nil {
		return err
	}
	vs, ns := volumes.New(volumes.Options{Store: at.vols, Containers: ctrs, Events: bus}), networks.New(networks.Options{Networks: at.nets, Containers: ctrs, Events: bus})
	about := system.New(system.Options{
		Containers: ctrs, Images: at.imgs, Volumes: at.vols, Trees: at.trees, Events: bus, Devices: devices,
		Runtimes: shownRuntimes(set), DefaultRuntime: set.DefaultRuntime, Plugins: at.plugins.Active, DataRoot: set.DataRoot, Labels: set.Labels, AddressPools: shownPools(set), HTTPProxy: set.Proxies.HTTP, HTTPSProxy: set.Proxies.HTTPS, NoProxy: set.Proxies.No, SystemdCgroup: at.systemd, Debug: e.log.Enabled(background(), slog.LevelDebug), Version: version.Version, LogDriver: defaultLog(set).Type, LogDrivers: logDriverNames(),
	})
	e.metrics = metrics.Handler(metrics.Options{
		Containers: ctrs, Networks: ns, Volumes: vs, System: about, Events: bus.Count, Version: version.Version, Commit: version.Commit, Logger: e.log,
	})
	e.server = server.New(server.Options{
		Builds: building.service, BuildMirrors: building.mirrors, BuildKit: building.door,
		Containers:      ctrs,
		Images:          imageService,
		Registries:      imageService,
		Documents:       imageService,
		Volumes:         vs,
		Networks:        ns,
		System:          about,
		Version:         server.VersionInfo{Version: version.Version, Commit: version.Commit},
		DefaultRegistry: set.DefaultRegistry, Mirrors: set.RegistryMirrors, Insecure: set.InsecureRegistries,
		Driver: at.trees.Name(), Layers: layersOf(at.trees), CgroupV2: cgroupV2() != nil, Logger: e.log,
	})
	return nil
}

// defaultNetwork is that of containers and steps which name none.
func defaultNetwork(set settings.Settings) string {
	if set.Bridge == "none" {
		return "none"
	}
	return "bridge"
}

// layersOf is how the driver tells where layers lie, if it can.
func layersOf(trees snapshot.Store) func(snapshot.ChainID) ([]string, error) {
	if at, ok := trees.(snapshot.Locator); ok {
		return at.LocateLayers
	}
	return nil
}

// cgroupV2 is the host's control groups where they are all of version 2; nil elsewhere.
func cgroupV2() *cgroup.Host {
	host, err := cgroup.Discover()
	if err != nil || host.Mode() != cgroup.V2 {
		return nil
	}
	return host
}

// helpersPlace is a cgroup for monitors and the port proxy where the engine itself lives in a unit of systemd (its own service, or the session of who needed it first): what is in a unit
// may end with it. Nil leaves them with the engine.
func helpersPlace(log *slog.Logger) *os.File {
	host := cgroupV2()
	if host == nil {
		return nil
	}
	if unit, err := host.Unit(); err != nil || unit == "" {
		return nil
	}
	place, err := cgroup.Folder(host, cgroup.DefaultParent+"/helpers")
	if err != nil {
		log.Warn("monitors stay in the engine's unit: stopping it may end containers, unless it has KillMode=process", "err", err)
		return nil
	}
	return place
}

// skeletons are what every container, and every step of a build, gets mounted over or looks for. A step finds no mark of a container, and keeps the hostname of its image, as in BuildKit's.
func skeletons() map[string][]string {
	return map[string][]string{
		"":                    {".dockerenv", "dev/", "etc/", "etc/hostname", "etc/hosts", "etc/mtab -> /proc/mounts", "etc/resolv.conf", "proc/", "sys/"},
		snapshot.StepSkeleton: {"dev/", "etc/", "etc/hosts", "etc/resolv.conf", "proc/", "sys/"},
	}
}

// openSnapshots chooses the driver: what was asked, or overlay where the file system carries it, or plain copies.
func openSnapshots(set settings.Settings, log *slog.Logger) (snapshot.Store, error) {
	root := filepath.Join(set.DataRoot, "snapshots")
	if err := os.MkdirAll(root, 0o700); err != nil {
		return nil, err
	}
	switch set.Storage {
	case "plain", "vfs":
		return plain.New(plain.Options{Root: filepath.Join(root, "plain"), Logger: log})
	case "":
		if err := overlayWorks(root); err != nil {
			if size, serr := set.TreeSize(); serr != nil || size > 0 {
				return nil, errors.Join(fmt.Errorf("storage-opt overlay2.size: %w", err), serr)
			}
			log.Warn("overlay mounts do not work here; every container gets a full copy of its image instead", "why", err)
			return plain.New(plain.Options{Root: filepath.Join(root, "plain"), Logger: log})
		}
	default:
		if err := overlayWorks(root); err != nil {
			return nil, fmt.Errorf("storage driver overlay: %w", err)
		}
	}
	label, _ := hostspec.SharedLabel()
	if label != "" {
		if err := hostspec.LabelLayers(root); err != nil {
			return nil, fmt.Errorf("label files for SELinux: %w", err)
		}
	}
	return overlay.New(overlay.Options{Root: filepath.Join(root, "overlay"), Logger: log, Skeletons: skeletons(), Label: label})
}

// overlayWorks tells why overlay mounts do not. On a full disk it cannot be tried: there it does where it did before, so that an engine comes up with all that it had.
func overlayWorks(root string) error {
	err := overlay.Supported(root)
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		if _, before := os.Stat(filepath.Join(root, "overlay")); before == nil {
			return nil
		}
	}
	return err
}

// treeSize is checked with the settings.
func treeSize(set settings.Settings) int64 {
	size, _ := set.TreeSize()
	return size
}

// shownPools are the address pools as info tells them; they were checked with the settings.
func shownPools(set settings.Settings) []system.AddressPool {
	var all []system.AddressPool
	for _, p := range set.AddressPools {
		if base, err := netip.ParsePrefix(p.Base); err == nil {
			all = append(all, system.AddressPool{Base: base.Masked(), Size: p.Size})
		}
	}
	return all
}

func openNetwork(set settings.Settings, helpers *os.File, plugins *plugin.Set, log *slog.Logger) (*network.Local, error) {
	opts := network.Options{
		Root: set.DataRoot, ExecRoot: set.ExecRoot, Table: set.NftTable, Bridge: set.Bridge, MTU: set.MTU,
		NoForward: !set.IPForward, DNS: set.DNS, DNSSearch: set.DNSSearch, DNSOptions: set.DNSOptions, Cgroup: helpers, Plugins: netplugins.Plugins{Set: plugins}, Logger: log,
	}
	// The settings were checked when they were read.
	opts.BIP, _ = netip.ParsePrefix(set.BIP)
	opts.FixedCIDR, _ = netip.ParsePrefix(set.FixedCIDR)
	opts.HostIP, _ = netip.ParseAddr(set.PublishIP)
	opts.IPv6, opts.NoICC, opts.NoMasquerade, opts.NoRules, opts.NoRules6 = set.IPv6, !set.ICC, !set.IPMasq, !set.IPTables, !set.IP6Tables
	opts.BIP6, _ = netip.ParsePrefix(set.BIP6)
	opts.FixedCIDRv6, _ = netip.ParsePrefix(set.FixedCIDRv6)
	opts.DefaultGateway, _ = netip.ParseAddr(set.DefaultGateway)
	opts.DefaultGateway6, _ = netip.ParseAddr(set.DefaultGatewayV6)
	opts.HostGateway, _ = netip.ParseAddr(set.HostGatewayIP)
	opts.DirectRouting, opts.DriverOptions = set.DirectRouting, set.NetworkOpts
	for _, p := range set.AddressPools {
		base, _ := netip.ParsePrefix(p.Base)
		opts.Pools = append(opts.Pools, network.PoolRange{Base: base, Size: p.Size})
	}
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	if opts.Names = []string{self, "portproxy", "names"}; set.UserlandProxy {
		opts.PortProxy = []string{self, "portproxy"}
	}
	return network.New(opts)
}

func ulimits(set settings.Settings) map[string]container.Ulimit {
	m := map[string]container.Ulimit{}
	for name, u := range set.Ulimits {
		m[name] = container.Ulimit{Name: name, Soft: u.Soft, Hard: u.Hard}
	}
	return m
}

// listen opens all sockets and serves them; the channel tells when one of them fails.
func (e *engine) listen(set settings.Settings) (<-chan error, error) {
	conf, err := tlsConfig(set)
	if err != nil {
		return nil, err
	}
	failed := make(chan error, len(set.Hosts)+1)
	for _, host := range set.Hosts {
		group := set.Group
		if group == settings.Default().Group && !groupExists(group) {
			group = "" // the default group is a courtesy
		}
		l, err := server.Listen(host, group, conf)
		if err != nil {
			return nil, err
		}
		go func() {
			if err := e.server.Serve(l); err != nil {
				failed <- fmt.Errorf("serve %s: %w", host, err)
			}
		}()
	}
	if err := e.listenMetrics(set.MetricsAddr, failed); err != nil {
		return nil, err
	}
	e.closers = append(e.closers, func() error {
		ctx, cancel := context.WithTimeout(background(), 5*time.Second)
		defer cancel()
		if err := e.server.Shutdown(ctx); err != nil && !errors.Is(err, context.DeadlineExceeded) {
			return err
		}
		return nil
	})
	return failed, nil
}

func tlsConfig(set settings.Settings) (*tls.Config, error) {
	if !set.TLS && !set.TLSVerify {
		return nil, nil
	}
	cert, err := tls.LoadX509KeyPair(set.TLSCert, set.TLSKey)
	if err != nil {
		return nil, fmt.Errorf("TLS certificate: %w", err)
	}
	conf := &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12}
	if set.TLSVerify {
		pem, err := os.ReadFile(set.TLSCACert)
		if err != nil {
			return nil, err
		}
		conf.ClientCAs = x509.NewCertPool()
		if !conf.ClientCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("%s holds no certificate", set.TLSCACert)
		}
		conf.ClientAuth = tls.RequireAndVerifyClientCert
	}
	return conf, nil
}

func (e *engine) close() error {
	var all []error
	for i := len(e.closers) - 1; i >= 0; i-- {
		all = append(all, e.closers[i]())
	}
	e.closers = nil
	return errors.Join(all...)
}
