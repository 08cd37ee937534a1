package config

import (
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"corten.dev/corten/internal/errs"
)

func errText(value, why string) error { return errs.New(errs.Invalid, "%q is %s", value, why) }

// checker gathers nothing: the first thing wrong is what is said.
type checker struct {
	*Config
	err error
}

// bad notes the first problem, with the line when the key came from the file.
func (c *checker) bad(key, format string, args ...any) {
	if c.err != nil {
		return
	}
	where := ""
	if line, ok := c.lines[key]; ok {
		where = fmt.Sprintf("%s line %d: ", c.file, line)
	}
	c.err = errs.New(errs.Invalid, "%s%s: %w", where, key, fmt.Errorf(format, args...))
}

// Check looks at what keys mean together.
func (c *Config) Check() error {
	k := &checker{Config: c}
	k.place()
	k.tls()
	k.auth()
	k.rules()
	k.storage()
	k.cache()
	k.retention()
	return k.err
}

func (c *checker) addr(key, addr string) {
	if _, _, err := net.SplitHostPort(addr); err != nil {
		c.bad(key, "%q is no address: write it like 127.0.0.1:5000 or :5000", addr)
	}
}

func (c *checker) oneOf(key, value string, choices ...string) {
	if !slices.Contains(choices, value) {
		c.bad(key, "%q: choose %s", value, strings.Join(choices, " or "))
	}
}

func (c *checker) url(key, value string) {
	u, err := url.Parse(value)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		c.bad(key, "%q is no URL: write it like https://registry.example.com, without a user", value)
	}
}

func (c *checker) place() {
	c.addr("addr", c.Addr)
	if c.Metrics != "" {
		c.addr("metrics-addr", c.Metrics)
	}
	if !filepath.IsAbs(c.Root) {
		c.bad("root", "%q: give an absolute path", c.Root)
	}
	if c.URL != "" {
		c.url("url", c.URL)
		if u, err := url.Parse(c.URL); err == nil && strings.Trim(u.Path, "/") != "" {
			c.bad("url", "%q: a registry has no path, clients look for /v2/ at the root", c.URL)
		}
	}
	c.oneOf("log-level", c.LogLevel, "debug", "info", "warn", "error")
	c.oneOf("log-format", c.LogForm, "text", "json")
	for i, p := range c.Proxies {
		if _, err := ParsePrefix(p); err != nil {
			c.bad(fmt.Sprintf("trusted-proxies[%d]", i), "%q is neither an address nor a network", p)
		}
	}
	if c.Limits.Requests < 0 || c.Limits.Burst < 0 || c.Limits.Uploads < 0 {
		c.bad("limits", "a limit is not negative; leave it out for none")
	}
	if c.Limits.Burst > 0 && c.Limits.Requests == 0 {
		c.bad("limits.requests-burst", "says nothing without requests-per-second")
	}
}

// ParsePrefix reads an address or a network.
func ParsePrefix(s string) (netip.Prefix, error) {
	if a, err := netip.ParseAddr(s); err == nil {
		return netip.PrefixFrom(a, a.BitLen()), nil
	}
	return netip.ParsePrefix(s)
}

func (c *checker) tls() {
	if (c.TLS.Cert == "") != (c.TLS.Key == "") {
		c.bad("tls", "a certificate needs its key, and the other way round (tls.cert and tls.key, --tls-cert and --tls-key)")
	}
	a := c.TLS.ACME
	if a == nil {
		return
	}
	if c.TLS.Cert != "" {
		c.bad("tls.acme", "there is a certificate file already: choose one")
	}
	if a.Directory != "" {
		c.url("tls.acme.directory", a.Directory)
	}
	if len(a.Domains) == 0 {
		c.bad("tls.acme", "domains is missing: certificates are asked for these names only")
	}
	for i, d := range a.Domains {
		if d == "" || strings.ContainsAny(d, "/:* ") {
			c.bad(fmt.Sprintf("tls.acme.domains[%d]", i), "%q is no plain name", d)
		}
	}
	if a.HTTPAddr != "" {
		c.addr("tls.acme.http-addr", a.HTTPAddr)
	}
}

func (c *checker) auth() {
	a := c.Auth
	c.oneOf("auth.mode", a.Mode, "token", "basic")
	if a.Htpasswd == "" {
		if len(c.Rules) > 0 {
			c.bad("rules", "rules need users: give auth.htpasswd (an empty file will do when there are only rules for anyone)")
		}
		if len(c.Groups) > 0 {
			c.bad("groups", "groups need users: give auth.htpasswd")
		}
		if a.AnonymousPull {
			c.bad("auth.anonymous-pull", "without auth.htpasswd everybody may do everything already")
		}
	}
	if a.Service == "" || strings.ContainsFunc(a.Service, func(r rune) bool { return r < ' ' || r == '"' || r == '\\' || r > '~' }) {
		c.bad("auth.service", "%q: plain characters without quotes only", a.Service)
	}
	if time.Duration(a.TokenLife) < time.Minute || time.Duration(a.TokenLife) > 24*time.Hour {
		c.bad("auth.token-lifetime", "choose from 1m to 24h")
	}
	if a.RefreshLife < a.TokenLife {
		c.bad("auth.refresh-lifetime", "is shorter than the tokens' own lifetime")
	}
}

func (c *checker) rules() {
	for name, members := range c.Groups {
		if name == "" || len(members) == 0 {
			c.bad("groups."+name, "a group has a name and members")
		}
	}
	for i, r := range c.Rules {
		key := fmt.Sprintf("rules[%d]", i)
		if len(r.Users) == 0 && len(r.Groups) == 0 && !r.Anyone {
			c.bad(key, "for whom? give users, groups or anyone")
		}
		for j, g := range r.Groups {
			if _, ok := c.Groups[g]; !ok {
				c.bad(fmt.Sprintf("%s.groups[%d]", key, j), "there is no group %q", g)
			}
		}
		if len(r.Repositories) == 0 {
			c.bad(key, "repositories is missing (\"**\" is all of them)")
		}
		c.globs(key+".repositories", r.Repositories)
		if len(r.Actions) == 0 {
			c.bad(key, "actions is missing: pull, push, delete, catalog or \"*\"")
		}
		for j, a := range r.Actions {
			c.oneOf(fmt.Sprintf("%s.actions[%d]", key, j), a, "pull", "push", "delete", "catalog", "*")
		}
	}
}

// globs checks patterns over repository names: what could never match a name is a mistake.
func (c *checker) globs(key string, globs []string) {
	for i, g := range globs {
		plain := strings.ReplaceAll(g, "${user}", "u")
		bad := plain == "" || strings.HasPrefix(plain, "/") || strings.HasSuffix(plain, "/") || strings.Contains(plain, "//")
		for _, r := range plain {
			bad = bad || !(r >= 'a' && r <= 'z' || r >= '0' && r <= '9' || strings.ContainsRune("-_./*?", r))
		}
		for part := range strings.SplitSeq(plain, "/") {
			bad = bad || part == "." || part == ".." || part != "**" && strings.Contains(part, "**")
		}
		if bad {
			c.bad(fmt.Sprintf("%s[%d]", key, i), "%q can match no repository: names are lower-case words between slashes; * stands for a part of one word, ** for any number of words", g)
		}
	}
}

func (c *checker) storage() {
	s := c.Storage
	if s.Driver != "" {
		c.oneOf("storage.driver", s.Driver, "disk", "s3")
	}
	if s.Driver != "s3" {
		if s.S3 != nil {
			c.bad("storage.s3", "is given, but storage.driver is not s3")
		}
		return
	}
	if s.S3 == nil || s.S3.Bucket == "" {
		c.bad("storage", "s3 needs storage.s3.bucket")
		return
	}
	if s.S3.Endpoint != "" {
		c.url("storage.s3.endpoint", s.S3.Endpoint)
	}
	if s.S3.Endpoint == "" && s.S3.Region == "" {
		c.bad("storage.s3", "give the region, or the endpoint of another maker's store")
	}
	if n := s.S3.PartSize; n != 0 && (n < 5<<20 || n > 1<<30) {
		c.bad("storage.s3.part-size", "choose from 5m to 1g")
	}
}

func (c *checker) cache() {
	seen := map[string]bool{}
	for i, u := range c.Cache {
		key := fmt.Sprintf("cache[%d]", i)
		if u.URL == "" {
			c.bad(key, "url is missing")
		} else {
			c.url(key+".url", u.URL)
		}
		if u.Prefix == "" && u.Namespace == "" {
			c.bad(key, "give the prefix of the repositories that come from there (\"/\" is all), or the namespace that clients ask with")
		}
		if u.Prefix != "" && u.Prefix != "/" {
			c.globs(key+".prefix", []string{u.Prefix})
			if strings.ContainsAny(u.Prefix, "*?") {
				c.bad(key+".prefix", "%q: a prefix is a plain path", u.Prefix)
			}
		}
		for _, name := range []string{"prefix " + u.Prefix, "namespace " + u.Namespace} {
			if !strings.HasSuffix(name, " ") && seen[name] {
				c.bad(key, "%s is taken by another upstream", name)
			}
			seen[name] = true
		}
		if u.PasswordFile != "" && u.PasswordEnv != "" {
			c.bad(key, "password-file and password-env: choose one")
		}
		if (u.Username == "") != (u.PasswordFile == "" && u.PasswordEnv == "") {
			c.bad(key, "a username needs password-file or password-env, and the other way round")
		}
		c.globs(key+".allow", u.Allow)
		c.globs(key+".deny", u.Deny)
	}
}

func (c *checker) retention() {
	if g := time.Duration(c.Collect.Grace); g != 0 && g < time.Minute {
		c.bad("collect.grace", "is shorter than a push may take: give a minute at least")
	}
	if e := time.Duration(c.Collect.Every); e != 0 && e < time.Minute {
		c.bad("collect.every", "give a minute at least")
	}
	for i, r := range c.Keep {
		key := fmt.Sprintf("retention[%d]", i)
		c.globs(key+".repositories", r.Repositories)
		if r.KeepLast < 0 {
			c.bad(key+".keep-last", "is negative")
		}
		if r.KeepLast == 0 && r.KeepFor == 0 && r.Untagged == 0 {
			c.bad(key, "removes nothing: give keep-last, keep-for or untagged")
		}
	}
}
