package settings

import (
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestRegistries(t *testing.T) {
	file := filepath.Join(t.TempDir(), "daemon.json")
	for _, tc := range []struct{ file, flags, want string }{
		{`{"insecure-registries":["10.0.0.0/8","reg.example:5000"],"registry-mirrors":["https://mirror.example"],"proxies":{"http-proxy":"http://u:p@p:1"},
		   "registries":[{"match":"*.example.com/team/*","mirrors":[{"url":"https://m.example/x","rewrite":"{1}/{rest}"}]}]}`, "", ""},
		{`{"default-registry":"reg.example:5000"}`, "", ""},
		{`{"default-registry":"reg.example:5000","registry-mirrors":["https://mirror.example"]}`, "", "default-registry replaces"},
		{`{"insecure-registries":["a/b"]}`, "", "insecure registry"},
		{`{"registry-mirrors":["https://mirror.example/path"]}`, "", "has a path"},
		{`{"registry-mirrors":["https://me:hidden@mirror.example"]}`, "", "no place in a URL"},
		{`{"registries":[{"match":"a b"}]}`, "", "match"},
		{`{"registries":[{"match":"x.example"}]}`, "", "says nothing"},
		{`{"registries":[{"match":"x.example","mirorrs":[]}]}`, "", "mirorrs"},
		{`{"registries":[{"match":"x.example","location":"https://y.example","rewrite":"{1}"}]}`, "", "{1} is not known"},
		{`{"registries":[{"match":"x.example","location":"ftp://y.example"}]}`, "", "location"},
		{`{"registries":[{"match":"x.example","mirrors-only":true,"insecure":true}]}`, "", "needs mirrors"},
		{`{"default-registry":"https://x"}`, "", "default registry"},
		{`{"registry-certs":["x"]}`, "", "absolute"},
		{`{"proxies":{"http-proxy":"http://me:hidden@a b"}}`, "", "proxy: give"},
		{`{"proxies":{"no-proxy":"x"}}`, "--no-proxy y", "given both there and as a flag: proxies"},
		{``, "--max-concurrent-downloads 0", "1 or more"},
	} {
		if err := os.WriteFile(file, []byte(tc.file), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := Parse(append([]string{"--config-file", file}, strings.Fields(tc.flags)...), io.Discard)
		if tc.want == "" && err != nil || tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)) {
			t.Errorf("file %s flags %q: got %v, want %q", tc.file, tc.flags, err, tc.want)
		}
		if err != nil && strings.Contains(err.Error(), "hidden") {
			t.Errorf("a password is shown: %v", err)
		}
	}
}
