package credentials

import (
	"encoding/base64"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func write(t *testing.T, dir, text string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, "config.json"), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func open(t *testing.T, dir string) *File {
	t.Helper()
	f, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func TestFile(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "new", "docker")
	f := open(t, dir)
	if auth, err := f.Get(t.Context(), "reg.example"); err != nil || !auth.Empty() {
		t.Error(auth, err)
	}
	if err := f.Put(t.Context(), "reg.example", Auth{Username: "me", Password: "a:b"}); err != nil {
		t.Fatal(err)
	}
	if auth, err := open(t, dir).Get(t.Context(), "reg.example"); err != nil || auth != (Auth{Username: "me", Password: "a:b", ServerAddress: "reg.example"}) {
		t.Error(auth, err)
	}
	st, err := os.Stat(f.Path())
	if err != nil || st.Mode() != 0o600 {
		t.Error(st.Mode(), err)
	}
	// What else is in the file stays, also what we do not know; a link stays a link.
	elsewhere := t.TempDir()
	write(t, elsewhere, `{"psFormat":"x","later":{"a":[1,2]},"auths":{"https://old.example/v1/":{"auth":"`+base64.StdEncoding.EncodeToString([]byte("old:pw"))+`","email":"e"},"tok.example":{"identitytoken":"T"}}}`)
	dir = t.TempDir()
	if err := os.Symlink(filepath.Join(elsewhere, "config.json"), filepath.Join(dir, "config.json")); err != nil {
		t.Fatal(err)
	}
	f = open(t, dir)
	if auth, err := f.Get(t.Context(), "old.example"); err != nil || auth.Username != "old" || auth.Password != "pw" {
		t.Error(auth, err)
	}
	if auth, err := f.Get(t.Context(), "tok.example"); err != nil || auth.IdentityToken != "T" {
		t.Error(auth, err)
	}
	if err := f.Put(t.Context(), DefaultServer, Auth{Username: "hub", IdentityToken: "I"}); err != nil {
		t.Fatal(err)
	}
	if err := f.Delete(t.Context(), "old.example"); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(filepath.Join(elsewhere, "config.json"))
	if err != nil {
		t.Fatal(err)
	}
	var got map[string]any
	if err := json.Unmarshal(data, &got); err != nil || got["psFormat"] != "x" || got["later"] == nil || len(got["auths"].(map[string]any)) != 2 {
		t.Errorf("%s %v", data, err)
	}
	if left, _ := filepath.Glob(filepath.Join(elsewhere, "*.*.*")); len(left) > 0 {
		t.Error(left)
	}
}

func TestBroken(t *testing.T) {
	for _, text := range []string{"{", `{"auths":[]}`, `{"auths":{"a":"s3cret"}}`, `{"credHelpers":7}`} {
		dir := t.TempDir()
		write(t, dir, text)
		if _, err := Open(dir); err == nil || strings.Contains(err.Error(), "s3cret") {
			t.Errorf("%s: %v", text, err)
		}
	}
	dir := t.TempDir()
	write(t, dir, `{"auths":{"a.example":{"auth":"s3cret"}}}`)
	if _, err := open(t, dir).Get(t.Context(), "a.example"); err == nil || strings.Contains(err.Error(), "s3cret") {
		t.Error(err)
	}
	write(t, dir, " \n")
	if _, err := Open(dir); err != nil {
		t.Error(err)
	}
}

func TestServer(t *testing.T) {
	for in, want := range map[string]string{"": DefaultServer, "docker.io": DefaultServer, "https://index.docker.io/v1/": DefaultServer, "registry-1.docker.io": DefaultServer,
		"reg.example:5000": "reg.example:5000", "https://reg.example/v2/": "reg.example", "http://[::1]:5000": "[::1]:5000"} {
		if got := Server(in); got != want {
			t.Errorf("%s: %s", in, got)
		}
	}
}

// A helper keeps what it is told in a file; it fails when it is asked to.
func helper(t *testing.T) (dir string) {
	dir = t.TempDir()
	script := `#!/bin/sh
echo "$0 $@" >> ` + dir + `/calls
case $1 in
get) read server; [ "$server" = broken.example ] && { echo "the keychain is locked"; exit 1; }
     [ -e ` + dir + `/kept ] || { echo "credentials not found in native keychain"; exit 1; }; cat ` + dir + `/kept ;;
store) cat > ` + dir + `/kept; grep -q evil ` + dir + `/kept && { echo "cannot store $(cat ` + dir + `/kept)"; exit 1; }; exit 0 ;;
erase) rm -f ` + dir + `/kept ;;
esac
`
	if err := os.WriteFile(filepath.Join(dir, "docker-credential-test"), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	return dir
}

func TestHelper(t *testing.T) {
	bin := helper(t)
	dir := t.TempDir()
	write(t, dir, `{"credsStore":"test","credHelpers":{"gone.example":"nosuch","path.example":"../../bin/sh"}}`)
	f := open(t, dir)
	if auth, err := f.Get(t.Context(), "reg.example"); err != nil || !auth.Empty() {
		t.Error(auth, err)
	}
	for _, auth := range []Auth{{Username: "me", Password: "pw"}, {IdentityToken: "T"}} {
		if err := f.Put(t.Context(), "reg.example", auth); err != nil {
			t.Fatal(err)
		}
		auth.ServerAddress = "reg.example"
		if got, err := f.Get(t.Context(), "reg.example"); err != nil || got != auth {
			t.Error(got, err)
		}
	}
	data, err := os.ReadFile(f.Path())
	if err != nil || strings.Contains(string(data), "pw") || !strings.Contains(string(data), `"reg.example": {}`) {
		t.Errorf("%s %v", data, err)
	}
	if err := f.Delete(t.Context(), "reg.example"); err != nil {
		t.Error(err)
	}
	if _, err := f.Get(t.Context(), "broken.example"); err == nil || err.Error() != "credential helper docker-credential-test: the keychain is locked" {
		t.Error(err)
	}
	if err := f.Put(t.Context(), "x.example", Auth{Username: "evil", Password: "s3cret"}); err == nil || strings.Contains(err.Error(), "s3cret") {
		t.Error(err)
	}
	if _, err := f.Get(t.Context(), "gone.example"); err == nil || !strings.Contains(err.Error(), "docker-credential-nosuch: not found in PATH") {
		t.Error(err)
	}
	if _, err := f.Get(t.Context(), "path.example"); err == nil || !strings.Contains(err.Error(), "cannot be a path") {
		t.Error(err)
	}
	calls, err := os.ReadFile(filepath.Join(bin, "calls"))
	if err != nil || strings.Contains(string(calls), "s3cret") || strings.Contains(string(calls), "pw") {
		t.Errorf("secrets in arguments: %s %v", calls, err)
	}
}

func FuzzFile(f *testing.F) {
	f.Add([]byte(`{"auths":{"a":{"auth":"YTpi"}},"credsStore":""}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "config.json"), data, 0o600); err != nil {
			t.Fatal(err)
		}
		file, err := Open(dir)
		if err != nil || file.store != "" || len(file.helpers) > 0 {
			return
		}
		for server := range file.auths {
			_, _ = file.Get(t.Context(), Server(server)) // an error is an answer
		}
		if err := file.Put(t.Context(), "x.example", Auth{Username: "u", Password: "p"}); err != nil {
			t.Fatal(err)
		}
		again, err := Open(dir)
		if err != nil {
			t.Fatal(err)
		}
		if auth, err := again.Get(t.Context(), "x.example"); err != nil || auth.Password != "p" {
			t.Error(auth, err)
		}
	})
}
