package settings

import (
	"net/url"
	"strings"

	"github.com/spf13/pflag"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/registry/client/rules"
)

// Proxies are what the engine reaches registries through; empty fields leave it to the environment (HTTP_PROXY, HTTPS_PROXY, NO_PROXY).
type Proxies struct {
	HTTP  string `json:"http-proxy,omitempty"`
	HTTPS string `json:"https-proxy,omitempty"`
	No    string `json:"no-proxy,omitempty"`
}

func proxyFlags() []string { return []string{"http-proxy", "https-proxy", "no-proxy"} }

// registryFlags are the flags of how registries are reached. The rules ("registries") stand in the file only.
func (s *Settings) registryFlags(set *pflag.FlagSet) {
	set.StringArrayVar(&s.InsecureRegistries, "insecure-registry", nil, "Registry, or network of registries, that may be reached without TLS or a known certificate")
	set.StringArrayVar(&s.RegistryMirrors, "registry-mirror", nil, "Mirror of Docker Hub, asked first (mirrors of other registries: see registries.md)")
	set.StringVar(&s.DefaultRegistry, "default-registry", "", "Registry of names that name none (empty: docker.io)")
	set.StringArrayVar(&s.RegistryCerts, "registry-certs-dir", s.RegistryCerts, "Folder with certificates for registries, as HOST[:PORT]/{*.crt,*.cert,*.key}; the first that has a host counts")
	set.StringVar(&s.Proxies.HTTP, "http-proxy", "", "Proxy for registries that are reached by http")
	set.StringVar(&s.Proxies.HTTPS, "https-proxy", "", "Proxy for registries that are reached by https")
	set.StringVar(&s.Proxies.No, "no-proxy", "", "Hosts, domains and networks that are reached without a proxy")
	set.IntVar(&s.MaxDownloads, "max-concurrent-downloads", s.MaxDownloads, "Layers of a pull that come at a time")
	set.IntVar(&s.MaxUploads, "max-concurrent-uploads", s.MaxUploads, "Layers of a push that go at a time")
	set.IntVar(&s.MaxAttempts, "max-download-attempts", s.MaxAttempts, "Attempts at a download that breaks without getting on")
}

func (s *Settings) checkRegistries() error {
	for _, r := range s.InsecureRegistries {
		if _, _, err := rules.ParseInsecure(r); err != nil {
			return err
		}
	}
	for _, m := range s.RegistryMirrors {
		if err := rules.CheckMirror(m); err != nil {
			return err
		}
	}
	for _, r := range s.Registries {
		if err := r.Check(); err != nil {
			return err
		}
	}
	if s.DefaultRegistry != "" && !rules.ValidHost(s.DefaultRegistry) {
		return errs.New(errs.Invalid, "default registry %q: give HOST[:PORT]", s.DefaultRegistry)
	}
	if s.DefaultRegistry != "" && len(s.RegistryMirrors) > 0 {
		return errs.New(errs.Invalid, "registry-mirrors are asked for Docker Hub, which default-registry replaces: give one of the two, or a rule in registries")
	}
	for _, dir := range s.RegistryCerts {
		if !strings.HasPrefix(dir, "/") {
			return errs.New(errs.Invalid, "folder %q: give an absolute path", dir)
		}
	}
	for _, p := range []string{s.Proxies.HTTP, s.Proxies.HTTPS} {
		if err := checkProxy(p); err != nil {
			return err
		}
	}
	if s.MaxDownloads < 1 || s.MaxUploads < 1 || s.MaxAttempts < 1 {
		return errs.New(errs.Invalid, "max-concurrent-downloads, max-concurrent-uploads and max-download-attempts: give 1 or more")
	}
	return nil
}

// checkProxy never shows the proxy: it may hold a password.
func checkProxy(p string) error {
	if p == "" {
		return nil
	}
	if !strings.Contains(p, "://") {
		p = "http://" + p
	}
	u, err := url.Parse(p)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" && u.Scheme != "socks5" && u.Scheme != "socks5h" {
		return errs.New(errs.Invalid, "proxy: give http://HOST:PORT (or https, socks5, socks5h)")
	}
	return nil
}
