package export

import (
	"strings"

	"github.com/containerd/platforms"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"corten.dev/corten/internal/reference"
)

// imageURL names an image as a package URL (purl-spec, type docker): pkg:docker/team/app@1.2?platform=linux%2Famd64.
func imageURL(r reference.Ref, p *ocispec.Platform) string {
	r = r.WithDefaultTag()
	url := "pkg:docker/" + escapePath(r.FamiliarName())
	if r.Tag != "" {
		url += "@" + escape(r.Tag)
	}
	var qualifiers []string // sorted by their names
	if r.Digest != "" {
		qualifiers = append(qualifiers, "digest="+escape(r.Digest))
	}
	if p != nil {
		qualifiers = append(qualifiers, "platform="+escape(platforms.Format(platforms.Normalize(*p))))
	}
	if len(qualifiers) > 0 {
		url += "?" + strings.Join(qualifiers, "&")
	}
	return url
}

func escapePath(path string) string {
	parts := strings.Split(path, "/")
	for i := range parts {
		parts[i] = escape(parts[i])
	}
	return strings.Join(parts, "/")
}

// escape is percent-encoding as the purl specification has it: letters, digits and ".-_~" stay.
func escape(s string) string {
	const hex = "0123456789ABCDEF"
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		c := s[i]
		if c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.IndexByte(".-_~", c) >= 0 {
			b.WriteByte(c)
			continue
		}
		b.Write([]byte{'%', hex[c>>4], hex[c&15]})
	}
	return b.String()
}
