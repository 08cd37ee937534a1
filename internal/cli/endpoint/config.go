package endpoint

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"

	"corten.dev/corten/internal/errs"
)

// Config is what the client honours of docker's config.json.
type Config struct {
	Dir string `json:"-"`

	CurrentContext string            `json:"currentContext"`
	DetachKeys     string            `json:"detachKeys"`
	HTTPHeaders    map[string]string `json:"HttpHeaders"`
	PsFormat       string            `json:"psFormat"`
	ImagesFormat   string            `json:"imagesFormat"`
	NetworksFormat string            `json:"networksFormat"`
	VolumesFormat  string            `json:"volumesFormat"`
	StatsFormat    string            `json:"statsFormat"`
	Proxies        map[string]Proxy  `json:"proxies"`
	PruneFilters   []string          `json:"pruneFilters"`
}

// Proxy is a set of proxy addresses that new containers get as environment.
type Proxy struct {
	HTTP  string `json:"httpProxy"`
	HTTPS string `json:"httpsProxy"`
	No    string `json:"noProxy"`
	FTP   string `json:"ftpProxy"`
	All   string `json:"allProxy"`
}

// LoadConfig reads config.json in dir, or in $DOCKER_CONFIG or ~/.docker if dir is empty. A missing or empty file is an empty
// configuration; of a broken one it returns an empty configuration and an error that names it, in docker's words: docker warns and goes on.
func LoadConfig(dir string) (*Config, error) {
	if dir == "" {
		dir = os.Getenv("DOCKER_CONFIG")
	}
	if dir == "" {
		home, err := os.UserHomeDir()
		if err != nil {
			return &Config{}, nil // without a home there is nothing to read
		}
		dir = filepath.Join(home, ".docker")
	}
	name := filepath.Join(dir, "config.json")
	data, err := os.ReadFile(name)
	switch {
	case os.IsNotExist(err):
		return &Config{Dir: dir}, nil
	case err != nil:
		return &Config{Dir: dir}, fmt.Errorf("Error loading config file: %w", err)
	case len(bytes.TrimSpace(data)) == 0:
		return &Config{Dir: dir}, nil
	}
	cfg := &Config{}
	if err := json.Unmarshal(data, cfg); err != nil { // what was read before the fault does not count either
		return &Config{Dir: dir}, errs.New(errs.Invalid, "Error parsing config file (%s): %w", name, err)
	}
	cfg.Dir = dir
	return cfg, nil
}

// contextMeta is docker's stored description of a context: contexts/meta/<sha256 of the name>/meta.json.
type contextMeta struct {
	Name      string
	Endpoints map[string]struct {
		Host          string
		SkipTLSVerify bool
	}
}

func fromContext(name, dir string) (*Endpoint, error) {
	sum := sha256.Sum256([]byte(name))
	id := hex.EncodeToString(sum[:])
	data, err := os.ReadFile(filepath.Join(dir, "contexts", "meta", id, "meta.json"))
	if os.IsNotExist(err) {
		return nil, errs.New(errs.NotFound, "context %q: context not found: open %s: no such file or directory",
			name, filepath.Join(dir, "contexts", "meta", id, "meta.json"))
	}
	if err != nil {
		return nil, fmt.Errorf("context %q: %w", name, err)
	}
	var meta contextMeta
	if err := json.Unmarshal(data, &meta); err != nil {
		return nil, errs.New(errs.Invalid, "context %q: %w", name, err)
	}
	target, ok := meta.Endpoints["docker"]
	if !ok {
		return nil, errs.New(errs.Invalid, "context %q: no docker endpoint in it", name)
	}
	ep := &Endpoint{Context: name}
	if target.Host == "" {
		ep.Host, ep.Default = "unix://"+DefaultSocket, true
		return ep, nil
	}
	certs := filepath.Join(dir, "contexts", "tls", id, "docker")
	ep.tls, err = contextTLS(certs, target.SkipTLSVerify)
	if err != nil {
		return nil, fmt.Errorf("context %q: %w", name, err)
	}
	return ep, ep.at(target.Host)
}

func contextTLS(dir string, skip bool) (*tlsFiles, error) {
	f := &tlsFiles{skipVerify: skip}
	found := skip
	for name, into := range map[string]*[]byte{"ca.pem": &f.caPEM, "cert.pem": &f.certPEM, "key.pem": &f.keyPEM} {
		data, err := os.ReadFile(filepath.Join(dir, name))
		if os.IsNotExist(err) {
			continue
		}
		if err != nil {
			return nil, err
		}
		*into, found = data, true
	}
	if !found {
		return nil, nil
	}
	return f, nil
}
