package manifest

import (
	"runtime"
	"strings"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"corten.dev/corten/internal/errs"
)

// Platform says what a program was built for.
type Platform struct{ OS, Arch, Variant string }

// isSystem and isArch tell what one word alone can mean: the systems and architectures that Go programs are built for.
func isSystem(s string) bool {
	switch s {
	case "aix", "android", "darwin", "dragonfly", "freebsd", "hurd", "illumos", "ios", "js", "linux", "nacl", "netbsd", "openbsd", "plan9", "solaris", "wasip1", "windows", "zos":
		return true
	}
	return false
}

func isArch(s string) bool {
	switch (Platform{Arch: s}).normal().Arch {
	case "386", "amd64", "arm", "arm64", "loong64", "mips", "mipsle", "mips64", "mips64le", "ppc64", "ppc64le", "riscv64", "s390x", "wasm":
		return true
	}
	return false
}

// ParsePlatform reads "os/arch[/variant]", "arch", "arm/v7" or "os", with the usual other names of architectures.
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
		switch {
		case isSystem(parts[0]):
			p.OS = parts[0]
		case isArch(parts[0]):
			p.Arch = parts[0]
		default: // a word that slipped in would be looked for in vain, in images here and in registries
			return p, errs.New(errs.Invalid, "error parsing specified platform: %q: unknown operating system or architecture", s)
		}
	case 2:
		p.OS, p.Arch = parts[0], parts[1]
		if parts[0] == "arm" || parts[0] == "arm64" || parts[0] == "amd64" { // arch/variant, "arm/v7"
			p = Platform{OS: "linux", Arch: parts[0], Variant: parts[1]}
		}
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

// Match tells how well an image for have runs here; 0 is not at all.
func (p Platform) Match(have Platform) int {
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

// Choose finds the entry of an index that fits a platform best. Attestations and other things that are no images never fit.
// errs.NotFound names the platforms that there are.
func Choose(index *ocispec.Index, p Platform) (ocispec.Descriptor, error) {
	var best ocispec.Descriptor
	score := 0
	var others []string
	for _, d := range index.Manifests {
		if d.MediaType != "" && !IsDocument(d.MediaType) || d.Platform != nil && d.Platform.OS == "unknown" {
			continue
		}
		var have Platform
		if d.Platform != nil {
			have = Platform{OS: d.Platform.OS, Arch: d.Platform.Architecture, Variant: d.Platform.Variant}
			others = append(others, have.String())
		}
		if n := p.Match(have); n > score {
			best, score = d, n
		}
	}
	if score == 0 {
		return best, errs.New(errs.NotFound, "no matching manifest for %s in the manifest list entries; there are: %s", p, strings.Join(others, ", "))
	}
	return best, nil
}
