// Package reference is the names of images: what people write ("busybox", "localhost:5000/team/app:1.2@sha256:…") and the full
// names behind it. A value type, no state; small enough for the command line client.
//
// It owns the grammar. It promises to accept and to refuse exactly what github.com/distribution/reference does (its tests compare the
// two), with the same texts, without that package's regular expressions at start-up.
package reference

import (
	"strings"

	"corten.dev/corten/internal/errs"
)

// DefaultDomain and DefaultTag are what a short name leaves out; official images live below "library/".
const (
	DefaultDomain = "docker.io"
	DefaultTag    = "latest"
	legacyDomain  = "index.docker.io"
	officialPath  = "library/"
	maxName       = 255
	maxTag        = 128
)

// Ref is a parsed name. Tag and Digest may be empty.
type Ref struct {
	Domain string // "docker.io"
	Path   string // "library/busybox"
	Tag    string
	Digest string // "sha256:…"
}

// Parse reads a name as people write it and fills in the domain (and "library/"), but no tag.
func Parse(s string) (Ref, error) {
	if isID(s) {
		return Ref{}, errs.New(errs.Invalid, "invalid repository name (%s), cannot specify 64-byte hexadecimal strings", s)
	}
	domain, rest := splitDomain(s)
	name := rest
	if i := strings.IndexByte(name, ':'); i >= 0 {
		name = name[:i]
	}
	if strings.ToLower(name) != name {
		return Ref{}, errs.New(errs.Invalid, "invalid reference format: repository name (%s) must be lowercase", name)
	}
	r, err := parse(domain, rest)
	if err != nil {
		return Ref{}, err
	}
	return r, nil
}

// splitDomain decides what a first part without dot, colon or upper case is: part of the path.
func splitDomain(s string) (domain, rest string) {
	i := strings.IndexByte(s, '/')
	if i < 0 || !strings.ContainsAny(s[:i], ".:") && s[:i] != "localhost" && strings.ToLower(s[:i]) == s[:i] {
		domain, rest = DefaultDomain, s
	} else {
		domain, rest = s[:i], s[i+1:]
	}
	if domain == legacyDomain {
		domain = DefaultDomain
	}
	if domain == DefaultDomain && !strings.Contains(rest, "/") {
		rest = officialPath + rest
	}
	return domain, rest
}

func parse(domain, rest string) (Ref, error) {
	r, ok := match(domain, rest)
	if !ok {
		if _, ok := match(strings.ToLower(domain), strings.ToLower(rest)); ok {
			return r, errs.New(errs.Invalid, "repository name must be lowercase")
		}
		return r, errs.New(errs.Invalid, "invalid reference format")
	}
	if len(r.Path) > maxName {
		return r, errs.New(errs.Invalid, "repository name must not be more than %d characters", maxName)
	}
	if r.Digest != "" {
		return r, checkDigest(r.Digest)
	}
	return r, nil
}

// match is the grammar: [domain "/"] path [":" tag] ["@" digest].
func match(domain, rest string) (Ref, bool) {
	r := Ref{Domain: domain}
	name, dgst, hasDigest := strings.Cut(rest, "@")
	if hasDigest && !looksLikeDigest(dgst) {
		return r, false
	}
	name, tag, hasTag := strings.Cut(name, ":")
	if hasTag && !ValidTag(tag) || !validPath(name) {
		return r, false
	}
	r.Path, r.Tag, r.Digest = name, tag, dgst
	if !validDomain(domain) {
		// "my_host.com/x" cannot be a host, but it can be a path without one.
		r.Domain, r.Path = "", domain+"/"+name
	}
	return r, validPath(name) && (r.Domain != "" || validPath(r.Path))
}

// Name is the full name without tag and digest.
func (r Ref) Name() string {
	if r.Domain == "" {
		return r.Path
	}
	return r.Domain + "/" + r.Path
}

// String is the full name.
func (r Ref) String() string { return r.Name() + r.suffix() }

// Familiar is the short form people know: "busybox:latest".
func (r Ref) Familiar() string { return r.FamiliarName() + r.suffix() }

// FamiliarName is Familiar without tag and digest.
func (r Ref) FamiliarName() string {
	if r.Domain != DefaultDomain {
		return r.Name()
	}
	if short, ok := strings.CutPrefix(r.Path, officialPath); ok && !strings.Contains(short, "/") {
		return short
	}
	return r.Path
}

func (r Ref) suffix() string {
	s := ""
	if r.Tag != "" {
		s = ":" + r.Tag
	}
	if r.Digest != "" {
		s += "@" + r.Digest
	}
	return s
}

// WithDefaultTag adds ":latest" to a name that has neither tag nor digest.
func (r Ref) WithDefaultTag() Ref {
	if r.Tag == "" && r.Digest == "" {
		r.Tag = DefaultTag
	}
	return r
}

// isID tells a full image id without its algorithm.
func isID(s string) bool { return len(s) == 64 && isHex(s) }

func isHex(s string) bool {
	for i := range len(s) {
		if c := s[i]; !(c >= '0' && c <= '9' || c >= 'a' && c <= 'f') {
			return false
		}
	}
	return true
}

func lower(c byte) bool  { return c >= 'a' && c <= 'z' || c >= '0' && c <= '9' }
func letter(c byte) bool { return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' }
func digit(c byte) bool  { return c >= '0' && c <= '9' }

// ValidTag tells whether s can be a tag.
func ValidTag(s string) bool {
	if s == "" || len(s) > maxTag {
		return false
	}
	for i := range len(s) {
		c := s[i]
		if !(letter(c) || digit(c) || c == '_' || i > 0 && (c == '.' || c == '-')) {
			return false
		}
	}
	return true
}

// validPath: components of lower case letters and digits, separated inside by one '.', one or two '_', or any number of '-'.
func validPath(s string) bool {
	for part := range strings.SplitSeq(s, "/") {
		if !validComponent(part) {
			return false
		}
	}
	return true
}

func validComponent(s string) bool {
	if s == "" || !lower(s[0]) || !lower(s[len(s)-1]) {
		return false
	}
	for i := 0; i < len(s); {
		if lower(s[i]) {
			i++
			continue
		}
		j := i
		for j < len(s) && s[j] == s[i] {
			j++
		}
		switch n := j - i; s[i] {
		case '.':
			if n > 1 {
				return false
			}
		case '_':
			if n > 2 {
				return false
			}
		case '-':
		default:
			return false
		}
		if !lower(s[j]) { // in range: the last byte is a letter or digit
			return false
		}
		i = j
	}
	return true
}

// validDomain: a host name, an address, or an IPv6 address in brackets, with or without a port.
func validDomain(s string) bool {
	host, port := s, ""
	if strings.HasPrefix(s, "[") {
		end := strings.IndexByte(s, ']')
		if end < 2 {
			return false
		}
		for _, c := range []byte(s[1:end]) {
			if !(digit(c) || c >= 'a' && c <= 'f' || c >= 'A' && c <= 'F' || c == ':') {
				return false
			}
		}
		if end == len(s)-1 {
			return true
		}
		if s[end+1] != ':' {
			return false
		}
		return validPort(s[end+2:])
	}
	if i := strings.IndexByte(s, ':'); i >= 0 {
		host, port = s[:i], s[i+1:]
		if !validPort(port) {
			return false
		}
	}
	for part := range strings.SplitSeq(host, ".") {
		if part == "" || part[0] == '-' || part[len(part)-1] == '-' {
			return false
		}
		for _, c := range []byte(part) {
			if !(letter(c) || digit(c) || c == '-') {
				return false
			}
		}
	}
	return true
}

func validPort(s string) bool {
	for _, c := range []byte(s) {
		if !digit(c) {
			return false
		}
	}
	return s != ""
}

// looksLikeDigest: an algorithm of parts separated by one of "-_+.", each beginning with a letter, a colon, and at least 32 hex digits.
func looksLikeDigest(s string) bool {
	alg, hex, ok := strings.Cut(s, ":")
	if !ok || len(hex) < 32 || !isHex(strings.ToLower(hex)) {
		return false
	}
	start := true
	for i := range len(alg) {
		c := alg[i]
		switch {
		case letter(c):
			start = false
		case digit(c) && !start:
		case strings.IndexByte("-_+.", c) >= 0 && !start:
			start = true
		default:
			return false
		}
	}
	return !start
}

// checkDigest knows three algorithms.
func checkDigest(s string) error {
	alg, hex, _ := strings.Cut(s, ":")
	size, ok := map[string]int{"sha256": 64, "sha384": 96, "sha512": 128}[alg]
	switch {
	case !ok && strings.ToLower(alg) != alg:
		return errs.New(errs.Invalid, "invalid checksum digest format")
	case !ok:
		return errs.New(errs.Invalid, "unsupported digest algorithm")
	case len(hex) != size:
		return errs.New(errs.Invalid, "invalid checksum digest length")
	case !isHex(hex):
		return errs.New(errs.Invalid, "invalid checksum digest format")
	}
	return nil
}
