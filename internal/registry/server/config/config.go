// Package config is what an operator says to the registry: the keys of its configuration file.
//
// It owns the list of the keys, their defaults and their checks. It reads text and touches no file that a key names. It promises that an unknown key, one
// that is given twice, a value of the wrong kind and a value that makes no sense are refused, with the file, the line and the key.
package config

import (
	"reflect"
	"strconv"
	"strings"
	"time"

	"github.com/docker/go-units"
)

// Config are all keys. Pointers and zero values are keys that were not given.
type Config struct {
	Addr     string   `json:"addr"`
	Root     string   `json:"root"`
	URL      string   `json:"url"`
	Proxies  []string `json:"trusted-proxies"`
	TLS      TLS      `json:"tls"`
	LogLevel string   `json:"log-level"`
	LogForm  string   `json:"log-format"`
	Access   bool     `json:"access-log"`
	Metrics  string   `json:"metrics-addr"`
	ReadOnly bool     `json:"read-only"`
	NoDelete bool     `json:"no-delete"`

	Auth    Auth                `json:"auth"`
	Groups  map[string][]string `json:"groups"`
	Rules   []Rule              `json:"rules"`
	Limits  Limits              `json:"limits"`
	Storage Storage             `json:"storage"`
	Cache   []Upstream          `json:"cache"`
	Collect Collect             `json:"collect"`
	Keep    []Retention         `json:"retention"`

	lines map[string]int // of the file that was read
	file  string
}

// TLS is a certificate from files, or from an ACME directory.
type TLS struct {
	Cert string `json:"cert"`
	Key  string `json:"key"`
	ACME *ACME  `json:"acme"`
}

// ACME gets certificates by itself.
type ACME struct {
	Directory string   `json:"directory"` // URL; Let's Encrypt's if empty
	Domains   []string `json:"domains"`
	Email     string   `json:"email"`
	HTTPAddr  string   `json:"http-addr"` // answers HTTP challenges there, and sends everybody else to https
	CA        string   `json:"ca"`        // certificates that sign the directory's own, for one inside a company
}

// Auth says who people are.
type Auth struct {
	Htpasswd      string   `json:"htpasswd"`
	Mode          string   `json:"mode"` // token (default) or basic
	AnonymousPull bool     `json:"anonymous-pull"`
	Service       string   `json:"service"`
	Keys          string   `json:"keys"` // folder of the signing keys; ROOT/keys if empty
	TokenLife     Duration `json:"token-lifetime"`
	RefreshLife   Duration `json:"refresh-lifetime"`
}

// Rule allows somebody something. What no rule allows is refused.
type Rule struct {
	Users        []string `json:"users"` // names; "*" is everybody who logged in
	Groups       []string `json:"groups"`
	Anyone       bool     `json:"anyone"` // also without a login
	Repositories []string `json:"repositories"`
	Actions      []string `json:"actions"` // pull, push, delete, catalog, or "*"
}

// Limits bound what one user or address may take, and what fits.
type Limits struct {
	Requests   float64 `json:"requests-per-second"`
	Burst      int     `json:"requests-burst"`
	Bandwidth  Bytes   `json:"bytes-per-second"`
	Blob       Bytes   `json:"blob-size"`
	Manifest   Bytes   `json:"manifest-size"`
	Repository Bytes   `json:"repository-size"`
	Uploads    int     `json:"open-uploads"`
}

// Storage is where the bytes are kept.
type Storage struct {
	Driver string `json:"driver"` // disk (default) or s3
	S3     *S3    `json:"s3"`
}

// S3 is a bucket.
type S3 struct {
	Endpoint  string `json:"endpoint"` // URL; Amazon's of the region if empty
	Region    string `json:"region"`
	Bucket    string `json:"bucket"`
	Prefix    string `json:"prefix"`
	PathStyle bool   `json:"path-style"`
	KeyFile   string `json:"credentials-file"` // two lines: access key, secret key; the AWS_… variables if empty
	CA        string `json:"ca"`
	Staging   string `json:"staging"` // folder for parts on their way; ROOT/staging if empty
	PartSize  Bytes  `json:"part-size"`
}

// Upstream is a registry behind this one.
type Upstream struct {
	Prefix       string   `json:"prefix"`    // repositories below it are the upstream's; "" with Namespace only, "/" is every repository
	Namespace    string   `json:"namespace"` // what clients say in ?ns=
	URL          string   `json:"url"`
	Username     string   `json:"username"`
	PasswordFile string   `json:"password-file"`
	PasswordEnv  string   `json:"password-env"`
	CA           string   `json:"ca"`
	TagTTL       Duration `json:"tag-ttl"`
	Allow        []string `json:"allow"` // globs over the upstream's names; none is all
	Deny         []string `json:"deny"`
}

// Collect says when garbage is collected by itself.
type Collect struct {
	Every Duration `json:"every"` // 0: only on demand
	Grace Duration `json:"grace"`
}

// Retention is one rule of what is kept.
type Retention struct {
	Repositories []string `json:"repositories"`
	Tags         []string `json:"tags"`
	Keep         []string `json:"keep"`
	KeepLast     int      `json:"keep-last"`
	KeepFor      Duration `json:"keep-for"`
	Untagged     Duration `json:"untagged"`
}

// Bytes is a size as people write it ("64m") or a plain number.
type Bytes int64

// UnmarshalText reads a size.
func (b *Bytes) UnmarshalText(text []byte) error {
	n, err := units.RAMInBytes(string(text))
	if err != nil || n < 0 {
		return errText(string(text), "no size: write it like 512m or 10g")
	}
	*b = Bytes(n)
	return nil
}

// Duration is a time span as Go writes it ("90m"), with days as well ("30d").
type Duration time.Duration

// UnmarshalText reads a time span.
func (d *Duration) UnmarshalText(text []byte) error {
	s := string(text)
	if days, ok := strings.CutSuffix(s, "d"); ok {
		n, err := strconv.ParseFloat(days, 64)
		if err != nil || !(n >= 0 && n <= 36500) {
			return errText(s, "no time span: write it like 90m, 12h or 30d")
		}
		*d = Duration(n * float64(24*time.Hour))
		return nil
	}
	span, err := time.ParseDuration(s)
	if err != nil || span < 0 {
		return errText(s, "no time span: write it like 90m, 12h or 30d")
	}
	*d = Duration(span)
	return nil
}

// Default are the settings of a registry that was told nothing.
func Default() Config {
	return Config{
		Addr: "127.0.0.1:5000", Root: "/var/lib/corten-registry", LogLevel: "info", LogForm: "text",
		Auth: Auth{Mode: "token", Service: "corten-registry", TokenLife: Duration(5 * time.Minute), RefreshLife: Duration(90 * 24 * time.Hour)},
	}
}

// Parse reads a configuration file over the defaults. Check is the caller's to call, once the flags are in.
func Parse(file string, text []byte) (Config, error) {
	c := Default()
	c.file, c.lines = file, map[string]int{}
	root, err := parse(file, text)
	if err != nil {
		return c, err
	}
	f := &filler{file: file, lines: c.lines}
	return c, f.fill(root, reflect.ValueOf(&c).Elem(), "")
}

// Given tells whether the file had that key.
func (c *Config) Given(key string) bool {
	_, ok := c.lines[key]
	return ok
}
