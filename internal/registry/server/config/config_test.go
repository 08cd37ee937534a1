package config

import (
	"errors"
	"os"
	"reflect"
	"strings"
	"testing"
	"time"

	"corten.dev/corten/internal/errs"
)

const full = `{
  "addr": ":5000",
  "root": "/srv/registry",
  "url": "https://registry.example.com",
  "trusted-proxies": ["10.0.0.0/8", "::1"],
  "tls": {"acme": {"directory": "https://acme.example.com/dir", "domains": ["registry.example.com"], "email": "ops@example.com"}},
  "log-level": "debug", "log-format": "json", "access-log": true, "metrics-addr": "127.0.0.1:5001",
  "auth": {"htpasswd": "/etc/registry/users", "mode": "token", "anonymous-pull": false, "token-lifetime": "10m", "refresh-lifetime": "30d"},
  "groups": {"dev": ["ann", "bob"]},
  "rules": [
    {"groups": ["dev"], "repositories": ["team/**"], "actions": ["pull", "push"]},
    {"users": ["*"], "repositories": ["home/${user}/**"], "actions": ["*"]},
    {"anyone": true, "repositories": ["public/*"], "actions": ["pull"]}
  ],
  "limits": {"requests-per-second": 50, "requests-burst": 200, "bytes-per-second": "100m", "blob-size": "10g", "manifest-size": 4194304, "repository-size": "1t"},
  "storage": {"driver": "s3", "s3": {"endpoint": "https://s3.example.com", "bucket": "images", "path-style": true, "part-size": "16m"}},
  "cache": [{"prefix": "docker.io", "namespace": "docker.io", "url": "https://registry-1.docker.io", "tag-ttl": "1h", "allow": ["library/*"]}],
  "collect": {"every": "1d", "grace": "2h"},
  "retention": [{"repositories": ["team/**"], "tags": ["pr-*"], "keep": ["v*"], "keep-last": 10, "keep-for": "30d", "untagged": "7d"}]
}`

func TestEverything(t *testing.T) {
	c, err := Parse("registry.json", []byte(full))
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Check(); err != nil {
		t.Fatal(err)
	}
	if time.Duration(c.Auth.RefreshLife) != 30*24*time.Hour || c.Limits.Manifest != 4<<20 || c.Limits.Repository != 1<<40 || c.Storage.S3.PartSize != 16<<20 {
		t.Errorf("values: %+v", c)
	}
	if !c.Given("storage.s3.bucket") || c.Given("read-only") {
		t.Error("Given does not tell what the file has")
	}
}

// Each complaint names the file, the line and the key.
// An empty file, such as /dev/null, was refused as one that ends in the middle.
func TestEmptyFile(t *testing.T) {
	want, err := Parse("registry.json", []byte("{}"))
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{"", "\n", " \t\r\n"} {
		if got, err := Parse("registry.json", []byte(text)); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%q: %v, %v", text, got, err)
		}
	}
}

func TestBadLines(t *testing.T) {
	for _, c := range []struct{ text, want string }{
		{"{\n \"adr\": \":5000\"\n}", `registry.json line 2: unknown key "adr" (known here: addr, root`},
		{"{\n \"auth\": {\n  \"htpaswd\": \"x\"\n }\n}", `line 3: unknown key "auth.htpaswd" (known here: htpasswd, mode`},
		{"{\n\n \"rules\": [\n  {\"anyone\": true},\n  {\"user\": [\"x\"]}\n ]\n}", `line 5: unknown key "rules[1].user"`},
		{"{\n \"addr\": \":1\",\n \"addr\": \":2\"\n}", `line 3: "addr" is given twice`},
		{"{\n \"addr\": 5\n}", "line 2: addr: expected a text"},
		{"{\n \"read-only\": \"yes\"\n}", "line 2: read-only: expected true or false"},
		{"{\n \"rules\": {}\n}", "line 2: rules: expected a list"},
		{"{\n \"tls\": []\n}", "line 2: tls: expected an object"},
		{"{\n \"collect\": {\"every\": \"soon\"}\n}", `line 2: collect.every: "soon" is no time span: write it like 90m, 12h or 30d`},
		{"{\n \"limits\": {\"blob-size\": \"big\"}\n}", `line 2: limits.blob-size: "big" is no size`},
		{"{\n \"limits\": {\"blob-size\": true}\n}", `line 2: limits.blob-size: expected a text`},
		{"{\n \"addr\": \":5000\",\n}", "registry.json line 3: invalid character '}'"},
		{"{\n \"addr\": \":5000\"\n", "the file ends in the middle"},
		{"{\"\": {}}", `line 1: unknown key ""`}, // the empty key was taken for a field without a name
		{"[]", "line 1: expected an object"},
		{"{}\n{}", "line 2: there is something behind"},
		{strings.Repeat("[", 100), "line 1: "},
		{"{\n\"x\": " + strings.Repeat("[", 100), "line 2: nested deeper"},
	} {
		_, err := Parse("registry.json", []byte(c.text))
		if err == nil || !strings.Contains(err.Error(), c.want) || !errors.Is(err, errs.Invalid) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%q:\n got %v\nwant %s", c.text, err, c.want)
		}
	}
}

func TestBadMeaning(t *testing.T) {
	const auth = `"auth":{"htpasswd":"/u"},`
	for _, c := range []struct{ text, want string }{
		{`{"addr": "5000"}`, "registry.json line 1: addr: \"5000\" is no address"},
		{`{"root": "data"}`, "root: \"data\": give an absolute path"},
		{`{"url": "registry.example.com"}`, "url: "},
		{`{"url": "https://u:p@example.com"}`, "without a user"},
		{`{"url": "https://example.com/registry"}`, "has no path"},
		{`{"log-level": "loud"}`, "choose debug or info or warn or error"},
		{`{"trusted-proxies": ["::1", "gateway"]}`, `trusted-proxies[1]: "gateway"`},
		{`{"tls": {"cert": "/c"}}`, "a certificate needs its key"},
		{`{"tls": {"acme": {"email": "x"}}}`, "domains is missing"},
		{`{"tls": {"acme": {"domains": ["*.example.com"]}}}`, "is no plain name"},
		{`{"auth": {"mode": "digest"}}`, "choose token or basic"},
		{`{"auth": {"htpasswd": "/u", "token-lifetime": "1s"}}`, "choose from 1m to 24h"},
		{`{"auth": {"anonymous-pull": true}}`, "without auth.htpasswd everybody"},
		{`{"rules": [{"anyone": true, "repositories": ["a"], "actions": ["pull"]}]}`, "rules need users"},
		{`{` + auth + `"rules": [{"repositories": ["a"], "actions": ["pull"]}]}`, "for whom?"},
		{`{` + auth + `"rules": [{"users": ["a"], "actions": ["pull"]}]}`, "repositories is missing"},
		{`{` + auth + `"rules": [{"users": ["a"], "repositories": ["a"], "actions": ["write"]}]}`, `rules[0].actions[0]: "write": choose`},
		{`{` + auth + `"rules": [{"groups": ["x"], "repositories": ["a"], "actions": ["pull"]}]}`, `there is no group "x"`},
		{`{` + auth + `"rules": [{"users": ["a"], "repositories": ["../a"], "actions": ["pull"]}]}`, "can match no repository"},
		{`{` + auth + `"rules": [{"users": ["a"], "repositories": ["/a"], "actions": ["pull"]}]}`, "can match no repository"},
		{`{` + auth + `"rules": [{"users": ["a"], "repositories": ["Team/x"], "actions": ["pull"]}]}`, "can match no repository"},
		{`{` + auth + `"rules": [{"users": ["a"], "repositories": ["a/***"], "actions": ["pull"]}]}`, "can match no repository"},
		{`{"storage": {"driver": "swift"}}`, "choose disk or s3"},
		{`{"storage": {"driver": "s3"}}`, "s3 needs storage.s3.bucket"},
		{`{"storage": {"s3": {"bucket": "b"}}}`, "storage.driver is not s3"},
		{`{"storage": {"driver": "s3", "s3": {"bucket": "b"}}}`, "give the region"},
		{`{"storage": {"driver": "s3", "s3": {"bucket": "b", "region": "r", "part-size": "1m"}}}`, "choose from 5m to 1g"},
		{`{"cache": [{"prefix": "a"}]}`, "url is missing"},
		{`{"cache": [{"url": "https://a"}]}`, "give the prefix"},
		{`{"cache": [{"prefix": "a", "url": "https://a"}, {"prefix": "a", "url": "https://b"}]}`, "prefix a is taken"},
		{`{"cache": [{"prefix": "a", "url": "https://a", "username": "u"}]}`, "a username needs password-file"},
		{`{"limits": {"requests-burst": 5}}`, "says nothing without"},
		{`{"collect": {"grace": "1s"}}`, "shorter than a push"},
		{`{"retention": [{"tags": ["x"]}]}`, "removes nothing"},
	} {
		conf, err := Parse("registry.json", []byte(c.text))
		if err == nil {
			err = conf.Check()
		}
		if err == nil || !strings.Contains(err.Error(), c.want) || !errors.Is(err, errs.Invalid) {
			t.Errorf("%s:\n got %v\nwant %s", c.text, err, c.want)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add(full)
	f.Add(`{"auth": {"token-lifetime": "1e3d"}}`)
	f.Fuzz(func(t *testing.T, text string) {
		c, err := Parse("f", []byte(text))
		if err == nil {
			err = c.Check()
		}
		if err != nil && !errors.Is(err, errs.Invalid) {
			t.Errorf("%q: %v is not of the kind Invalid", text, err)
		}
	})
}

// What the manual shows can be copied.
func TestManual(t *testing.T) {
	text, err := os.ReadFile("../../../../docs/registry.md")
	if err != nil {
		t.Fatal(err)
	}
	blocks := strings.Split(string(text), "```json\n")
	for i, block := range blocks[1:] {
		block, _, _ = strings.Cut(block, "```")
		c, err := Parse("docs/registry.md", []byte(block))
		if err == nil {
			err = c.Check()
		}
		if err != nil {
			t.Errorf("block %d: %v", i+1, err)
		}
	}
	if len(blocks) < 8 {
		t.Errorf("the manual has %d blocks", len(blocks)-1)
	}
}
