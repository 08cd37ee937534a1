package image

import (
	"encoding/json"

	"github.com/opencontainers/go-digest"

	"corten.dev/corten/internal/errs"
)

// ParseConfig reads a config blob and checks what the rest of the house relies on.
func ParseConfig(raw []byte) (Config, error) {
	var cfg Config
	if len(raw) > maxConfig {
		return cfg, errs.New(errs.Invalid, "image config has %d bytes, more than %d", len(raw), maxConfig)
	}
	if err := json.Unmarshal(raw, &cfg); err != nil {
		return cfg, errs.New(errs.Invalid, "image config: %w", err)
	}
	if cfg.RootFS.Type != "" && cfg.RootFS.Type != "layers" {
		return cfg, errs.New(errs.Invalid, "image config: rootfs of type %q is not known", cfg.RootFS.Type)
	}
	if cfg.RootFS.Type == "" {
		return cfg, errs.New(errs.Invalid, "image config: names no rootfs")
	}
	for _, d := range cfg.RootFS.DiffIDs {
		if err := d.Validate(); err != nil || d.Algorithm() != digest.SHA256 {
			return cfg, errs.New(errs.Invalid, "image config: layer %q is not a sha256 digest", string(d))
		}
	}
	return cfg, nil
}
