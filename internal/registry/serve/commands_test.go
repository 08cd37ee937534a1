package serve

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func command(args ...string) (int, string, string) {
	var out, errs bytes.Buffer
	code := Main(context.Background(), args, IO{In: strings.NewReader(""), Out: &out, Err: &errs, Version: "test"})
	return code, out.String(), errs.String()
}

func TestBadCommandLines(t *testing.T) {
	dir := t.TempDir()
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	file := func(name, text string) string { return writeFile(t, filepath.Join(dir, name), text) }
	plain := file("plain", "ann:$apr1$x$y\n")
	badKeys := filepath.Join(dir, "bad")
	if err := os.MkdirAll(filepath.Join(badKeys, "keys"), 0o700); err != nil {
		t.Fatal(err)
	}
	writeFile(t, filepath.Join(badKeys, "keys", "a.pem"), "no key")
	root := []string{"--root", filepath.Join(dir, "root"), "--addr", "127.0.0.1:0"}
	for _, c := range []struct {
		code int
		want string
		args []string
	}{
		{2, "Usage: cortend registry COMMAND", nil},
		{2, `unknown command "sevre"`, []string{"sevre"}},
		{2, "unknown flag: --adr", []string{"serve", "--adr", "x"}},
		{2, `unknown argument "x"`, []string{"serve", "x"}},
		{2, "htpasswd takes one argument", []string{"htpasswd"}},
		{2, "htpasswd takes one argument", []string{"htpasswd", "ann", "secret"}},
		{1, "the password is missing", []string{"htpasswd", "ann"}},
		{1, "configuration file: open", []string{"serve", "--config", filepath.Join(dir, "none")}},
		{1, "c1 line 2: unknown key \"adr\"", []string{"serve", "--config", file("c1", "{\n\"adr\": 1}")}},
		{1, "given both there and as a flag: addr", append([]string{"serve", "--config", file("c2", `{"addr": ":1"}`)}, root...)},
		{1, "c3 line 3: rules[0]: for whom?", append([]string{"serve", "--config", file("c3", "{\"auth\": {\"htpasswd\": \"/x\"},\n\"rules\": [\n{\"actions\": [\"pull\"]}]}")}, root...)},
		{1, "address already in use", []string{"serve", "--root", filepath.Join(dir, "root"), "--addr", taken.Addr().String()}},
		{1, "not a directory", []string{"serve", "--root", "/dev/null/x", "--addr", "127.0.0.1:0"}},
		{1, "users: open", append([]string{"serve", "--htpasswd", filepath.Join(dir, "none")}, root...)},
		{1, "plain line 1: the hash of ann is not bcrypt's", append([]string{"serve", "--htpasswd", plain}, root...)},
		{1, "is no PEM private key", []string{"serve", "--htpasswd", users(t, "a:b"), "--root", badKeys, "--addr", "127.0.0.1:0"}},
		{1, "a certificate needs its key", append([]string{"serve", "--tls-cert", "x"}, root...)},
		{1, "TLS certificate", append([]string{"serve", "--tls-cert", filepath.Join(dir, "none"), "--tls-key", "x"}, root...)},
		{1, "choose token or basic", append([]string{"serve", "--auth", "digest"}, root...)},
		{1, "credentials of the bucket are missing", append([]string{"serve", "--config", file("c4", `{"storage": {"driver": "s3", "s3": {"bucket": "b", "region": "r"}}}`)}, root...)},
		{1, "password of the upstream", append([]string{"serve", "--config", file("c5", `{"cache": [{"prefix": "a", "url": "https://a", "username": "u", "password-file": "/nowhere"}]}`)}, root...)},
		{1, "storage: ", []string{"collect", "--root", "/dev/null/x"}},
		{0, "", append([]string{"serve", "--validate"}, root...)},
		{0, "", []string{"serve", "--help"}},
		{0, "", []string{"--help"}},
	} {
		if strings.Contains(c.want, "bucket") {
			t.Setenv("AWS_ACCESS_KEY_ID", "")
		}
		code, _, errText := command(c.args...)
		if code != c.code || !strings.Contains(errText, c.want) {
			t.Errorf("%v: %d %q, want %d %q", c.args, code, errText, c.code, c.want)
		}
		if code == 1 {
			lines := strings.Split(strings.TrimSpace(errText), "\n")
			if last := lines[len(lines)-1]; !strings.HasPrefix(last, "cortend registry: ") {
				t.Errorf("%v: the last line is %q", c.args, last)
			}
		}
	}
}

func TestHtpasswd(t *testing.T) {
	file := filepath.Join(t.TempDir(), "users")
	run := func(password string, args ...string) (int, string) {
		var out, errs bytes.Buffer
		code := Main(t.Context(), append([]string{"htpasswd"}, args...), IO{In: strings.NewReader(password), Out: &out, Err: &errs})
		return code, out.String() + errs.String()
	}
	if code, out := run("secret\n", "ann"); code != 0 || !strings.HasPrefix(out, "ann:$2a$") || strings.Contains(out, "secret") {
		t.Errorf("%d %s", code, out)
	}
	for _, user := range []string{"ann", "bob", "ann"} {
		if code, out := run("secret of "+user, "-f", file, user); code != 0 || out != "" {
			t.Fatalf("%d %s", code, out)
		}
	}
	text, err := os.ReadFile(file)
	if err != nil || strings.Count(string(text), "\n") != 2 || strings.Count(string(text), "ann:") != 1 {
		t.Errorf("the file is %s, %v", text, err)
	}
	if code, out := run("", "-f", file, "--remove", "ann"); code != 0 {
		t.Errorf("remove: %s", out)
	}
	if code, out := run("", "-f", file, "--remove", "ann"); code != 1 || !strings.Contains(out, "there is no user ann") {
		t.Errorf("remove again: %d %s", code, out)
	}
	for _, bad := range []string{"a:b", "a b", "*", strings.Repeat("x", 129)} {
		if code, _ := run("x", bad); code != 1 {
			t.Errorf("user %q is taken", bad)
		}
	}
	if code, out := run(strings.Repeat("x", 73), "ann"); code != 1 || !strings.Contains(out, "1 to 72 bytes") {
		t.Errorf("a long password: %d %s", code, out)
	}
}

// collect works while a registry serves the same folder.
func TestCollectOnline(t *testing.T) {
	r := start(t, nil)
	for i := range 3 {
		if _, err := r.push(fmt.Sprintf("app:%d", i), ""); err != nil {
			t.Fatal(err)
		}
	}
	conf := writeFile(t, filepath.Join(t.TempDir(), "conf.json"), `{"retention": [{"repositories": ["app"], "keep-last": 1}]}`)
	args := []string{"collect", "--root", filepath.Join(r.dir, "root"), "--config", conf}
	code, out, errText := command(append(args, "--dry-run")...)
	if code != 0 || !strings.Contains(out, "would remove 2 tags") || !strings.Contains(out, "tag       app 0 (") {
		t.Fatalf("%d %s %s", code, out, errText)
	}
	if code, out, errText = command(append(args, "--json")...); code != 0 || strings.Count(out, `"kind":"tag"`) != 2 {
		t.Fatalf("%d %s %s", code, out, errText)
	}
	wantError(t, "what stays", r.pull("app:2", ""), "")
	wantError(t, "what went", r.pull("app:0", ""), "MANIFEST_UNKNOWN")
}
