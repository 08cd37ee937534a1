// Package settings is what an operator says to cortend: dockerd's flag names and the same keys in the configuration file.
//
// It owns the list of settings, their defaults and their checks. It reads one file and touches nothing else. It promises that an unknown flag or key, and a setting
// that is given both as flag and in the file, is refused with its name.
package settings

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/docker/go-units"
	"github.com/spf13/pflag"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/registry/client/rules"
)

// Settings are all settings; the JSON names are the keys of the configuration file, which are also the flags' names where the two agree.
type Settings struct {
	Hosts     []string `json:"hosts,omitempty"`
	DataRoot  string   `json:"data-root,omitempty"`
	ExecRoot  string   `json:"exec-root,omitempty"`
	Pidfile   string   `json:"pidfile,omitempty"`
	LogLevel  string   `json:"log-level,omitempty"`
	LogFormat string   `json:"log-format,omitempty"`
	Debug     bool     `json:"debug,omitempty"`
	Group     string   `json:"group,omitempty"`
	Labels    []string `json:"labels,omitempty"`
	Bridge    string   `json:"bridge,omitempty"`
	BIP       string   `json:"bip,omitempty"`
	FixedCIDR string   `json:"fixed-cidr,omitempty"`
	NetworkSettings
	AddressPools   []AddressPool      `json:"default-address-pools,omitempty"`
	MTU            int                `json:"mtu,omitempty"`
	NftTable       string             `json:"nft-table,omitempty"`
	IPForward      bool               `json:"ip-forward,omitempty"`
	PublishIP      string             `json:"ip,omitempty"`
	DNS            []string           `json:"dns,omitempty"`
	DNSSearch      []string           `json:"dns-search,omitempty"`
	DNSOptions     []string           `json:"dns-opts,omitempty"`
	LogDriver      string             `json:"log-driver,omitempty"`
	LogOpts        map[string]string  `json:"log-opts,omitempty"`
	ShmSize        Bytes              `json:"default-shm-size,omitempty"`
	Ulimits        map[string]*Ulimit `json:"default-ulimits,omitempty"`
	CDISpecDirs    []string           `json:"cdi-spec-dirs,omitempty"`
	MetricsAddr    string             `json:"metrics-addr,omitempty"`
	PluginDirs     []string           `json:"plugin-dirs,omitempty"`
	ExecOpts       []string           `json:"exec-opts,omitempty"`
	CgroupParent   string             `json:"cgroup-parent,omitempty"`
	Storage        string             `json:"storage-driver,omitempty"`
	StorageOpts    []string           `json:"storage-opts,omitempty"`
	Runtimes       map[string]Runtime `json:"runtimes,omitempty"`
	DefaultRuntime string             `json:"default-runtime,omitempty"`
	Init           bool               `json:"init,omitempty"`
	TLS            bool               `json:"tls,omitempty"`
	TLSVerify      bool               `json:"tlsverify,omitempty"`
	TLSCACert      string             `json:"tlscacert,omitempty"`
	TLSCert        string             `json:"tlscert,omitempty"`
	TLSKey         string             `json:"tlskey,omitempty"`

	InsecureRegistries []string     `json:"insecure-registries,omitempty"`
	RegistryMirrors    []string     `json:"registry-mirrors,omitempty"`
	Registries         []rules.Rule `json:"registries,omitempty"`
	DefaultRegistry    string       `json:"default-registry,omitempty"`
	RegistryCerts      []string     `json:"registry-certs,omitempty"`
	Proxies            Proxies      `json:"proxies,omitzero"`
	MaxDownloads       int          `json:"max-concurrent-downloads,omitempty"`
	MaxUploads         int          `json:"max-concurrent-uploads,omitempty"`
	MaxAttempts        int          `json:"max-download-attempts,omitempty"`
	ImageGC            ImageGC      `json:"image-gc,omitzero"`
	ImageBlobs         string       `json:"image-blobs,omitempty"`
	Builder            Builder      `json:"builder,omitzero"`

	// Only on the command line.
	ConfigFile string `json:"-"`
	Validate   bool   `json:"-"`
	Version    bool   `json:"-"`
}

// AddressPool is one pool that networks without a subnet take theirs from.
type AddressPool struct {
	Base string `json:"base"`
	Size int    `json:"size"` // prefix length of each network
}

// Ulimit is a default ulimit; soft and hard in the limit's own unit.
type Ulimit struct {
	Name string `json:"Name"`
	Soft int64  `json:"Soft"`
	Hard int64  `json:"Hard"`
}

// Bytes is a size as people write it ("64m") or a plain number of bytes.
type Bytes int64

// UnmarshalJSON reads a number or a size with a unit.
func (b *Bytes) UnmarshalJSON(raw []byte) error {
	var n int64
	if err := json.Unmarshal(raw, &n); err == nil {
		*b = Bytes(n)
		return nil
	}
	var s string
	if err := json.Unmarshal(raw, &s); err != nil {
		return err
	}
	return b.Set(s)
}

// Set, String and Type make Bytes a flag.
func (b *Bytes) Set(s string) error {
	n, err := units.RAMInBytes(s)
	*b = Bytes(n)
	return err
}

func (b *Bytes) String() string { return units.BytesSize(float64(*b)) }

// Type is the word shown in help.
func (b *Bytes) Type() string { return "bytes" }

// Default returns the settings of an engine that was told nothing, for root or an ordinary user.
func Default() Settings {
	return Settings{
		Hosts: nil, DataRoot: "/var/lib/corten", ExecRoot: "/run/corten", LogLevel: "info", LogFormat: "text",
		Group: "docker", NftTable: "", IPForward: true, MTU: 0, ShmSize: 64 << 20, CDISpecDirs: []string{"/etc/cdi", "/var/run/cdi"},
		RegistryCerts: []string{"/etc/corten/certs.d", "/etc/docker/certs.d"}, MaxDownloads: 6, MaxUploads: 5, MaxAttempts: 5,
		NetworkSettings: defaultNetwork(),
		ImageGC:         ImageGC{High: 85, Low: 75, Keep: Duration(7 * 24 * time.Hour)}, ImageBlobs: "auto",
	}
}

// Socket is the socket that an engine of these roots listens on by default.
func (s *Settings) Socket() string { return "unix://" + s.ExecRoot + "/corten.sock" }

// Parse reads flags, then the configuration file, and checks the whole. help is written to w when asked (the error is then [pflag.ErrHelp]).
func Parse(args []string, w io.Writer) (Settings, error) {
	s := Default()
	set := s.flags(w)
	if err := set.Parse(args); err != nil {
		return s, err
	}
	if set.NArg() > 0 {
		return s, errs.New(errs.Invalid, "unknown argument %q: cortend takes flags only (and the command \"runtime\")", set.Arg(0))
	}
	if err := s.readFile(set); err != nil {
		return s, err
	}
	if len(s.Hosts) == 0 {
		s.Hosts = []string{s.Socket()}
	}
	if s.Pidfile == "" {
		s.Pidfile = s.ExecRoot + "/cortend.pid"
	}
	return s, s.check()
}

func (s *Settings) flags(w io.Writer) *pflag.FlagSet {
	set := pflag.NewFlagSet("cortend", pflag.ContinueOnError)
	set.SetOutput(w)
	set.SortFlags = true
	set.Usage = func() {
		fmt.Fprintf(w, "Usage: cortend [flags]\n       cortend runtime COMMAND\n\nThe engine of Corten. Flags are dockerd's; the same keys may stand in the configuration file.\n\n%s", set.FlagUsages())
	}
	set.StringArrayVarP(&s.Hosts, "host", "H", nil, "Socket to listen on (unix://, tcp://, fd://); may be given several times")
	set.StringVar(&s.DataRoot, "data-root", s.DataRoot, "Folder of everything that is kept")
	set.StringVar(&s.ExecRoot, "exec-root", s.ExecRoot, "Folder of what a reboot may take away")
	set.StringVarP(&s.Pidfile, "pidfile", "p", "", "File for the engine's process id")
	set.StringVar(&s.ConfigFile, "config-file", "/etc/corten/daemon.json", "Configuration file; an empty name for none")
	set.StringVarP(&s.LogLevel, "log-level", "l", s.LogLevel, "Least important messages to log (debug, info, warn, error)")
	set.StringVar(&s.LogFormat, "log-format", s.LogFormat, "Form of the messages (text, json)")
	set.BoolVarP(&s.Debug, "debug", "D", false, "Same as --log-level debug")
	set.StringVarP(&s.Group, "group", "G", s.Group, "Group that may use the unix socket")
	set.StringArrayVar(&s.Labels, "label", nil, "Label of the engine (key=value)")
	set.StringVarP(&s.Bridge, "bridge", "b", "", "Name of the default bridge (\"none\" for no default network)")
	set.StringVar(&s.BIP, "bip", "", "Address and prefix of the default bridge")
	set.StringVar(&s.FixedCIDR, "fixed-cidr", "", "Part of the default bridge's subnet that containers get addresses from")
	set.Var(&poolFlag{s}, "default-address-pool", "Pool for networks without a subnet (base=CIDR,size=BITS)")
	set.IntVar(&s.MTU, "mtu", s.MTU, "MTU of the default bridge (0: that of the host's default route)")
	set.StringVar(&s.NftTable, "nft-table", "", "Name of the engine's nftables table")
	set.BoolVar(&s.IPForward, "ip-forward", s.IPForward, "Enable net.ipv4.ip_forward")
	set.StringVar(&s.PublishIP, "ip", "", "Host address for published ports that name none")
	set.StringArrayVar(&s.DNS, "dns", nil, "DNS server for containers")
	set.StringArrayVar(&s.DNSSearch, "dns-search", nil, "DNS search domain for containers")
	set.StringArrayVar(&s.DNSOptions, "dns-opt", nil, "DNS option for containers")
	set.StringVar(&s.LogDriver, "log-driver", s.LogDriver, "Default log driver, or several with commas between them (local, json-file, syslog, journald, fluentd, gelf, none); without one the engine keeps logs in its own format, which clients are shown as json-file")
	set.Var(&optionsFlag{&s.LogOpts}, "log-opt", "Option of the default log driver (name=value); containers that choose the same driver get it too")
	set.Var(&s.ShmSize, "default-shm-size", "Size of /dev/shm")
	set.Var(&ulimitFlag{s}, "default-ulimit", "Default ulimit (name=soft[:hard])")
	set.StringArrayVar(&s.CDISpecDirs, "cdi-spec-dir", s.CDISpecDirs, "Folder with descriptions of devices (Container Device Interface); an empty one for none")
	set.StringArrayVar(&s.PluginDirs, "plugin-dir", nil, "Folder in which plugins are looked for, instead of \"plugins\" in the exec root, /run/docker/plugins, and \"plugins\" in /etc/corten, /usr/lib/corten, /etc/docker, /usr/lib/docker; may be given several times")
	set.StringVar(&s.MetricsAddr, "metrics-addr", "", "TCP address (host:port) to serve metrics on, at /metrics, as OpenMetrics or Prometheus text; none by default")
	set.StringArrayVar(&s.ExecOpts, "exec-opt", nil, "Runtime option native.cgroupdriver=cgroupfs|systemd; cgroupfs is the default on every host, systemd or not: a start needs no round trip to systemd, and its daemon-reload cannot take devices away from containers")
	set.StringVar(&s.CgroupParent, "cgroup-parent", "", "Parent cgroup of all containers")
	set.StringVarP(&s.Storage, "storage-driver", "s", "", "Snapshot driver (overlay, plain)")
	set.StringArrayVar(&s.StorageOpts, "storage-opt", nil, "Storage option overlay2.size=SIZE: how many bytes of its own every container may write that says nothing else (--storage-opt size=SIZE of run)")
	set.Var(&runtimesFlag{&s.Runtimes}, "add-runtime", "OCI runtime that containers may name (name=path); the key \"runtimes\" also takes arguments")
	set.StringVar(&s.DefaultRuntime, "default-runtime", "", "Runtime of containers that name none; corten, the built-in one, by default")
	set.BoolVar(&s.Init, "init", false, "Run an init in every container")
	set.BoolVar(&s.TLS, "tls", false, "Use TLS on tcp sockets")
	set.BoolVar(&s.TLSVerify, "tlsverify", false, "Use TLS and ask clients for a certificate")
	set.StringVar(&s.TLSCACert, "tlscacert", "", "Certificates that sign clients")
	set.StringVar(&s.TLSCert, "tlscert", "", "Certificate of the engine")
	set.StringVar(&s.TLSKey, "tlskey", "", "Key of the engine")
	s.networkFlags(set)
	s.registryFlags(set)
	s.imageFlags(set)
	set.BoolVar(&s.Validate, "validate", false, "Check the settings and exit")
	set.BoolVarP(&s.Version, "version", "v", false, "Print the version and exit")
	return set
}

// flagKeys are the keys whose flag has another name.
var flagKeys = map[string]string{
	"hosts": "host", "labels": "label", "default-address-pools": "default-address-pool", "dns-opts": "dns-opt",
	"log-opts": "log-opt", "cdi-spec-dirs": "cdi-spec-dir", "plugin-dirs": "plugin-dir", "default-ulimits": "default-ulimit", "exec-opts": "exec-opt", "storage-opts": "storage-opt", "runtimes": "add-runtime",
	"default-network-opts": "default-network-opt",
	"insecure-registries":  "insecure-registry", "registry-mirrors": "registry-mirror", "registry-certs": "registry-certs-dir",
}

func (s *Settings) readFile(set *pflag.FlagSet) error {
	if s.ConfigFile == "" {
		return nil
	}
	raw, err := os.ReadFile(s.ConfigFile)
	if errors.Is(err, fs.ErrNotExist) && !set.Changed("config-file") {
		return nil
	}
	if err != nil {
		return errs.As(errs.Invalid, fmt.Errorf("configuration file: %w", err))
	}
	return s.merge(raw, set.Changed)
}

// merge adds the keys of a configuration file to what the flags said.
func (s *Settings) merge(raw []byte, changed func(flag string) bool) error {
	if len(bytes.TrimSpace(raw)) == 0 {
		return nil
	}
	var keys map[string]json.RawMessage
	if err := json.Unmarshal(raw, &keys); err != nil {
		return errs.New(errs.Invalid, "configuration file %s: %w", s.ConfigFile, err)
	}
	var twice []string
	for key := range keys {
		flag := key
		if other, ok := flagKeys[key]; ok {
			flag = other
		}
		if changed(flag) || key == "proxies" && slices.ContainsFunc(proxyFlags(), changed) {
			twice = append(twice, key)
		}
	}
	if len(twice) > 0 {
		slices.Sort(twice)
		return errs.New(errs.Invalid, "configuration file %s: given both there and as a flag: %s", s.ConfigFile, strings.Join(twice, ", "))
	}
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.DisallowUnknownFields()
	if err := dec.Decode(s); err != nil {
		return errs.New(errs.Invalid, "configuration file %s: %w", s.ConfigFile, err)
	}
	return nil
}

func (s *Settings) check() error {
	if !slices.Contains([]string{"debug", "info", "warn", "error"}, s.LogLevel) {
		return errs.New(errs.Invalid, "log level %q: choose debug, info, warn or error", s.LogLevel)
	}
	if s.LogFormat != "text" && s.LogFormat != "json" {
		return errs.New(errs.Invalid, "log format %q: choose text or json", s.LogFormat)
	}
	if !slices.Contains([]string{"", "overlay", "overlay2", "plain", "vfs"}, s.Storage) {
		return errs.New(errs.Invalid, "storage driver %q: choose overlay or plain", s.Storage)
	}
	for _, folder := range append([]string{s.DataRoot, s.ExecRoot}, s.PluginDirs...) {
		if !strings.HasPrefix(folder, "/") {
			return errs.New(errs.Invalid, "folder %q: give an absolute path", folder)
		}
	}
	if s.BIP != "" {
		if _, err := netip.ParsePrefix(s.BIP); err != nil {
			return errs.New(errs.Invalid, "bip %q: give an address with a prefix length, like 172.17.0.1/16", s.BIP)
		}
	}
	if s.FixedCIDR != "" {
		if _, err := netip.ParsePrefix(s.FixedCIDR); err != nil {
			return errs.New(errs.Invalid, "fixed-cidr %q: give a subnet, like 172.17.8.0/24", s.FixedCIDR)
		}
	}
	for _, p := range s.AddressPools {
		base, err := netip.ParsePrefix(p.Base)
		if err != nil || p.Size < base.Bits() || p.Size > base.Addr().BitLen() {
			return errs.New(errs.Invalid, "default address pool base=%s,size=%d: the size is the prefix length of each network, at least the base's", p.Base, p.Size)
		}
	}
	for _, a := range append(slices.Clone(s.DNS), s.PublishIP) {
		if a == "" {
			continue
		}
		if _, err := netip.ParseAddr(a); err != nil {
			return errs.New(errs.Invalid, "%q is no IP address", a)
		}
	}
	if _, err := s.SystemdCgroup(); err != nil {
		return err
	}
	if _, err := s.TreeSize(); err != nil {
		return err
	}
	if err := s.checkRuntimes(); err != nil {
		return err
	}
	if err := s.checkDevicesAndMetrics(); err != nil {
		return err
	}
	if err := s.checkNetwork(); err != nil {
		return err
	}
	if err := s.checkRegistries(); err != nil {
		return err
	}
	if err := s.checkImages(); err != nil {
		return err
	}
	if err := s.checkBuilder(); err != nil {
		return err
	}
	return s.checkTLS()
}

func (s *Settings) checkTLS() error {
	if !s.TLS && !s.TLSVerify {
		return nil
	}
	if s.TLSCert == "" || s.TLSKey == "" {
		return errs.New(errs.Invalid, "TLS needs --tlscert and --tlskey")
	}
	if s.TLSVerify && s.TLSCACert == "" {
		return errs.New(errs.Invalid, "--tlsverify needs --tlscacert")
	}
	return nil
}

// SystemdCgroup tells whether cgroups are made through systemd (native.cgroupdriver).
func (s *Settings) SystemdCgroup() (bool, error) {
	systemd := false
	for _, o := range s.ExecOpts {
		key, value, _ := strings.Cut(o, "=")
		switch {
		case key == "native.cgroupdriver" && value == "systemd":
			systemd = true
		case key == "native.cgroupdriver" && value == "cgroupfs":
			systemd = false
		default:
			return false, errs.New(errs.Invalid, "exec-opt %q: only native.cgroupdriver=cgroupfs or systemd is known", o)
		}
	}
	return systemd, nil
}
