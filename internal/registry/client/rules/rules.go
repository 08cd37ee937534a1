// Package rules is how an operator says where registries are reached: pure values, as they stand in the configuration file.
//
// It owns the patterns, the rewriting and their checks. It promises that rules which passed Check always give names that the distribution
// protocol allows, or an error that names the rule.
package rules

import (
	"net/netip"
	"net/url"
	"strconv"
	"strings"

	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/reference"
)

// Rule says where the repositories that Match names are reached.
//
//	match     = host [ "/" path ]
//	host      = "*" / [ "*." ] name [ ":" port ]         "*." stands for one label or more; after it, no port means any port
//	path      = part *( "/" part ), part = word / "*"    "*" stands for one part
//
// A path matches whole parts from the beginning: "docker.io/library" matches docker.io/library/busybox. Each "*" is kept for the rewriting as
// {1}, {2}, …; {host} is the host without its port, {path} the whole path, {rest} what follows the part of the path that Match names.
type Rule struct {
	Match   string   `json:"match"`
	Mirrors []Mirror `json:"mirrors,omitempty"`
	// Location is where the registry itself is, when it is not at its own name; then Rewrite gives the path there.
	Location string `json:"location,omitempty"`
	Rewrite  string `json:"rewrite,omitempty"`
	// Insecure allows http, and certificates that nobody signed, at the registry itself (or its Location).
	Insecure bool `json:"insecure,omitempty"`
	// MirrorsOnly never asks the registry itself for what can be read.
	MirrorsOnly bool `json:"mirrors-only,omitempty"`
	// Blocked refuses everything.
	Blocked bool `json:"blocked,omitempty"`
}

// Mirror is a place that is asked before the registry itself, for reading.
type Mirror struct {
	URL     string `json:"url"`               // http:// or https://, a path is put before /v2/
	Rewrite string `json:"rewrite,omitempty"` // the path there; "" is {path}
	// Insecure allows http too, and certificates that nobody signed.
	Insecure bool `json:"insecure,omitempty"`
	// Namespace adds ?ns=HOST, for a cache that keeps several registries apart by it.
	Namespace bool `json:"namespace,omitempty"`
	// Credentials is a file in the form of docker's config.json, with the mirror's own user.
	Credentials string `json:"credentials,omitempty"`
}

// Check tells whether a rule can be used.
func (r Rule) Check() error {
	host, path, hasPath := strings.Cut(r.Match, "/")
	name, wild := strings.CutPrefix(host, "*.")
	stars := 0
	if wild || host == "*" {
		stars++
	}
	if host != "*" && !ValidHost(name) {
		return errs.New(errs.Invalid, "registries: match %q: give HOST[:PORT][/PATH], where HOST may begin with \"*.\" or be \"*\"", r.Match)
	}
	if hasPath {
		for part := range strings.SplitSeq(path, "/") {
			if part == "*" {
				stars++
			} else if !validPath(part) {
				return errs.New(errs.Invalid, "registries: match %q: %q is no part of a repository name", r.Match, part)
			}
		}
	}
	if len(r.Mirrors) == 0 && r.Location == "" && r.Rewrite == "" && !r.Insecure && !r.Blocked {
		return errs.New(errs.Invalid, "registries: match %q says nothing: give mirrors, location, rewrite, insecure or blocked", r.Match)
	}
	if r.MirrorsOnly && len(r.Mirrors) == 0 {
		return errs.New(errs.Invalid, "registries: match %q: mirrors-only needs mirrors", r.Match)
	}
	if r.Location != "" {
		if err := checkURL(r.Location); err != nil {
			return errs.New(errs.Invalid, "registries: match %q: location: %w", r.Match, err)
		}
	}
	if err := checkRewrite(r.Rewrite, stars); err != nil {
		return errs.New(errs.Invalid, "registries: match %q: %w", r.Match, err)
	}
	for _, m := range r.Mirrors {
		if err := checkURL(m.URL); err != nil {
			return errs.New(errs.Invalid, "registries: match %q: mirror: %w", r.Match, err)
		}
		if err := checkRewrite(m.Rewrite, stars); err != nil {
			return errs.New(errs.Invalid, "registries: match %q: mirror %s: %w", r.Match, m.URL, err)
		}
		if m.Credentials != "" && !strings.HasPrefix(m.Credentials, "/") {
			return errs.New(errs.Invalid, "registries: match %q: mirror %s: credentials %q: give an absolute path", r.Match, m.URL, m.Credentials)
		}
	}
	return nil
}

// CheckMirror tells whether s can be one of docker's registry-mirrors: a place without a path.
func CheckMirror(s string) error {
	if err := checkURL(s); err != nil {
		return errs.New(errs.Invalid, "invalid mirror: %w", err)
	}
	if u, err := url.Parse(s); err != nil || strings.Trim(u.Path, "/") != "" {
		return errs.New(errs.Invalid, "invalid mirror: %q has a path: give it in \"registries\", as the url of a mirror", s)
	}
	return nil
}

// ParseInsecure reads one of docker's insecure-registries: a network, or a host with or without a port (in lower case).
func ParseInsecure(s string) (host string, network netip.Prefix, err error) {
	if network, err = netip.ParsePrefix(s); err == nil {
		return "", network.Masked(), nil
	}
	s = strings.TrimPrefix(strings.TrimPrefix(s, "http://"), "https://") // docker takes them too
	if !ValidHost(s) {
		return "", netip.Prefix{}, errs.New(errs.Invalid, "insecure registry %q is not valid: give HOST[:PORT] or a network like 10.0.0.0/8", s)
	}
	return strings.ToLower(s), netip.Prefix{}, nil
}

// checkURL never shows what could be a password.
func checkURL(s string) error {
	u, err := url.Parse(s)
	switch {
	case err != nil:
		return errs.New(errs.Invalid, "not a URL: give https://HOST[:PORT][/PATH]")
	case u.User != nil:
		return errs.New(errs.Invalid, "%s: a user name or password has no place in a URL", u.Host)
	case u.Scheme != "http" && u.Scheme != "https" || !ValidHost(u.Host) || u.RawQuery != "" || u.Fragment != "" || u.ForceQuery:
		return errs.New(errs.Invalid, "%q: give https://HOST[:PORT][/PATH]", s)
	}
	return nil
}

// ValidHost tells whether s is a host: a name, an address, or an IPv6 address in brackets, with or without a port.
func ValidHost(s string) bool {
	host, port, hasPort := cutPort(s)
	if hasPort {
		if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
			return false
		}
	}
	if inner, ok := strings.CutPrefix(host, "["); ok {
		addr, err := netip.ParseAddr(strings.TrimSuffix(inner, "]"))
		return err == nil && addr.Is6() && addr.Zone() == "" && strings.HasSuffix(host, "]")
	}
	for label := range strings.SplitSeq(host, ".") {
		if label == "" || label[0] == '-' || label[len(label)-1] == '-' || strings.Trim(strings.ToLower(label), "abcdefghijklmnopqrstuvwxyz0123456789-") != "" {
			return false
		}
	}
	return true
}

func validPath(s string) bool {
	ref, err := reference.Parse("localhost/" + s)
	return err == nil && ref.Path == s && ref.Tag == "" && ref.Digest == ""
}

// checkRewrite tries a rewriting with words that are allowed everywhere.
func checkRewrite(s string, stars int) error {
	if s == "" {
		return nil
	}
	m := Match{Host: "host", Path: "path", Rest: "rest"}
	for range stars {
		m.Stars = append(m.Stars, "x")
	}
	_, err := m.Rewrite(s)
	return err
}

// Match is how a rule fitted a repository.
type Match struct {
	Host, Path, Rest string
	Stars            []string
}

// Fit tells whether the rule is about a repository.
func (r Rule) Fit(domain, path string) (Match, bool) {
	host, pattern, hasPath := strings.Cut(r.Match, "/")
	m := Match{Host: bare(domain), Path: path, Rest: path}
	switch suffix, wild := strings.CutPrefix(host, "*."); {
	case host == "*":
		m.Stars = append(m.Stars, m.Host)
	case wild:
		name := strings.ToLower(domain)
		if _, _, ported := cutPort(suffix); !ported {
			name, _, _ = cutPort(name)
		}
		label, ok := strings.CutSuffix(name, "."+strings.ToLower(suffix))
		if !ok || label == "" {
			return m, false
		}
		m.Stars = append(m.Stars, label)
	case !strings.EqualFold(host, domain):
		return m, false
	}
	if !hasPath {
		return m, true
	}
	parts := strings.Split(path, "/")
	for i, want := range strings.Split(pattern, "/") {
		if i >= len(parts) || want != "*" && want != parts[i] {
			return m, false
		}
		if want == "*" {
			m.Stars = append(m.Stars, parts[i])
		}
		_, m.Rest, _ = strings.Cut(m.Rest, "/")
	}
	return m, true
}

// bare is a host without its port, as it can stand in a path.
func bare(domain string) string {
	if host, port, ok := cutPort(domain); ok && port != "" {
		domain = host
	}
	return strings.ToLower(strings.NewReplacer("[", "", "]", "", ":", "-").Replace(domain))
}

func cutPort(s string) (host, port string, ok bool) {
	i := strings.LastIndexByte(s, ':')
	if i < 0 || strings.HasSuffix(s, "]") {
		return s, "", false
	}
	return s[:i], s[i+1:], true
}

// Rewrite fills a template in and checks that the result is a repository name.
func (m Match) Rewrite(template string) (string, error) {
	if template == "" {
		return m.Path, nil
	}
	var b strings.Builder
	rest := template
	for {
		text, after, ok := strings.Cut(rest, "{")
		b.WriteString(text)
		if !ok {
			break
		}
		word, after, ok := strings.Cut(after, "}")
		if !ok {
			return "", errs.New(errs.Invalid, "rewrite %q: a brace is not closed", template)
		}
		value, err := m.word(word)
		if err != nil {
			return "", errs.New(errs.Invalid, "rewrite %q: %w", template, err)
		}
		b.WriteString(value)
		rest = after
	}
	path := strings.Trim(strings.ReplaceAll(b.String(), "//", "/"), "/") // {rest} may be empty
	if !validPath(path) {
		return "", errs.New(errs.Invalid, "rewrite %q gives %q, which is no repository name", template, path)
	}
	return path, nil
}

func (m Match) word(word string) (string, error) {
	switch word {
	case "host":
		return m.Host, nil
	case "path":
		return m.Path, nil
	case "rest":
		return m.Rest, nil
	}
	n, err := strconv.Atoi(word)
	if err != nil || n < 1 || n > len(m.Stars) {
		return "", errs.New(errs.Invalid, "{%s} is not known: there are {host}, {path}, {rest}, and {1} to {%d}", word, len(m.Stars))
	}
	return m.Stars[n-1], nil
}
