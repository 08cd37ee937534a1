package image

import (
	"encoding/json"
	"runtime"
	"strings"

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

// Platform says what a program was built for.
type Platform struct{ OS, Arch, Variant string }

// ParsePlatform reads "os/arch[/variant]", "arch" or "os", with the usual other names of architectures.
func ParsePlatform(s string) (Platform, error) {
	p := Platform{OS: "linux", Arch: runtime.GOARCH}
	parts := strings.Split(strings.ToLower(s), "/")
	for _, part := range parts {
		if part == "" || strings.Trim(part, "abcdefghijklmnopqrstuvwxyz0123456789_.-") != "" {
			return p, errs.New(errs.Invalid, "platform %q is not os/arch[/variant]", s)
		}
	}
	switch len(parts) {
	case 1:
		switch parts[0] {
		case "linux", "windows", "darwin", "freebsd":
			p.OS = parts[0]
		default:
			p.Arch = parts[0]
		}
	case 2:
		p.OS, p.Arch = parts[0], parts[1]
	case 3:
		p.OS, p.Arch, p.Variant = parts[0], parts[1], parts[2]
	default:
		return p, errs.New(errs.Invalid, "platform %q is not os/arch[/variant]", s)
	}
	return p.normal(), nil
}

func (p Platform) normal() Platform {
	switch p.Arch {
	case "x86_64", "x86-64":
		p.Arch = "amd64"
	case "aarch64":
		p.Arch = "arm64"
	case "i386", "i486", "i586", "i686":
		p.Arch = "386"
	case "armhf":
		p.Arch, p.Variant = "arm", "v7"
	case "armel":
		p.Arch, p.Variant = "arm", "v6"
	}
	if p.Arch == "arm64" && (p.Variant == "v8" || p.Variant == "8") || p.Arch == "amd64" && p.Variant == "v1" {
		p.Variant = ""
	}
	return p
}

// match tells how well an image for have runs here; 0 is not at all.
func (p Platform) match(have Platform) int {
	have = have.normal()
	if have.OS != p.OS && have.OS != "" || have.Arch != p.Arch && have.Arch != "" {
		return 0
	}
	if have.OS == "" || have.Arch == "" {
		return 1
	}
	if have.Variant == p.Variant {
		return 3
	}
	if p.Variant == "" || have.Variant == "" {
		return 2
	}
	return 0
}

// String is os/arch[/variant].
func (p Platform) String() string {
	s := p.OS + "/" + p.Arch
	if p.Variant != "" {
		s += "/" + p.Variant
	}
	return s
}
