package settings

import (
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestFileAndFlags(t *testing.T) {
	file := filepath.Join(t.TempDir(), "daemon.json")
	write := func(s string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(s), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(`{"data-root":"/x","default-shm-size":"128m","default-address-pools":[{"base":"10.0.0.0/8","size":24}],"debug":true}`)
	s, err := Parse([]string{"--config-file", file, "--exec-root", "/y", "--default-ulimit", "nofile=10:20"}, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	if s.DataRoot != "/x" || s.ShmSize != 128<<20 || !s.Debug || s.AddressPools[0].Size != 24 || s.Ulimits["nofile"].Hard != 20 {
		t.Fatalf("got %+v", s)
	}
	if s.Hosts[0] != "unix:///y/corten.sock" || s.Pidfile != "/y/cortend.pid" {
		t.Fatalf("defaults that follow the roots: %v %v", s.Hosts, s.Pidfile)
	}
	for _, tc := range []struct{ file, flags, want string }{
		{`{"data-root":"/x"}`, "--data-root /z", "given both there and as a flag: data-root"},
		{`{"hosts":["unix:///a"]}`, "-H unix:///b", "given both there and as a flag: hosts"},
		{`{"no-such-key":1}`, "", "no-such-key"},
		{`{`, "", "unexpected end"},
		{`{"bip":"10.0.0.1"}`, "", "prefix length"},
		{`{"default-address-pools":[{"base":"10.0.0.0/8","size":4}]}`, "", "prefix length"},
		{``, "--log-level loud", "log level"},
		{``, "--exec-opt native.cgroupdriver=x", "native.cgroupdriver"},
		{``, "--tls", "--tlscert"},
		{``, "--no-such-flag", "unknown flag"},
		{``, "extra", "unknown argument"},
		{``, "--data-root relative", "absolute"},
		{``, "--storage-driver zfs", "storage driver"},
		{`{"storage-opts":["overlay2.size=many"]}`, "", "invalid size: 'many'"},
		{`{"storage-opts":["dm.basesize=1G"]}`, "", "unknown option dm.basesize"},
		{`{"runtimes":{"corten":{"path":"x"}}}`, "", "runtime name 'corten' is reserved"},
		{`{"runtimes":{"kata":{"runtimeType":"io.containerd.kata.v2"}}}`, "", "shims of containerd"},
		{`{"runtimes":{"crun":{}}}`, "", "runtime crun: a path must be configured"},
		{`{"default-runtime":"crun"}`, "", "specified default runtime 'crun' does not exist"},
		{``, "--add-runtime crun", "invalid runtime argument: crun"},
		{``, "--add-runtime a=b --add-runtime a=c", "runtime 'a' was already defined"},
		{``, "--storage-opt size", "name=value"},
		{``, "--storage-driver plain --storage-opt overlay2.size=1G", "plain has no sizes"},
	} {
		write(tc.file)
		_, err := Parse(append([]string{"--config-file", file}, strings.Fields(tc.flags)...), io.Discard)
		if err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("file %s flags %q: got %v, want %q", tc.file, tc.flags, err, tc.want)
		}
	}
}

func FuzzConfigFile(f *testing.F) {
	f.Add([]byte(`{"data-root":"/x","default-ulimits":{"nofile":{"Name":"nofile","Hard":1,"Soft":1}}}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		s := Default()
		if s.merge(raw, func(string) bool { return false }) == nil {
			_ = s.check()
		}
	})
}

// The reference page is made of the flags; UPDATE=1 rewrites it.
func TestReferencePageIsCurrent(t *testing.T) {
	const page = "../../docs/cortend.md"
	if os.Getenv("UPDATE") != "" {
		if err := os.WriteFile(page, []byte(Markdown()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != Markdown() {
		t.Error("docs/cortend.md differs from the flags: run UPDATE=1 go test ./internal/settings")
	}
}

// Options of log drivers hold commas: dockerd takes --log-opt labels=a,b for one option.
func TestLogOptions(t *testing.T) {
	s, err := Parse([]string{"--config-file", writeConfig(t, `{"log-driver": "json-file,syslog"}`), "--log-opt", "labels=a,b", "--log-opt", "syslog.tag={{.Name}}"}, io.Discard)
	if err != nil || s.LogDriver != "json-file,syslog" || s.LogOpts["labels"] != "a,b" || s.LogOpts["syslog.tag"] != "{{.Name}}" {
		t.Errorf("%v %v", s.LogOpts, err)
	}
	s, err = Parse([]string{"--config-file", writeConfig(t, `{"log-opts": {"max-size": "1m"}}`)}, io.Discard)
	if err != nil || s.LogDriver != "" || s.LogOpts["max-size"] != "1m" {
		t.Errorf("%v %v", s.LogOpts, err)
	}
	if _, err = Parse([]string{"--config-file", writeConfig(t, `{}`), "--log-opt", "labels"}, io.Discard); err == nil {
		t.Error("an option without a value")
	}
}

func writeConfig(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "daemon.json")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// --config-file "" is how scripts say that the host's file is not meant; it was taken for a file without a name.
func TestNoConfigFile(t *testing.T) {
	s, err := Parse([]string{"--config-file", "", "--exec-root", "/y"}, io.Discard)
	if err != nil || s.ExecRoot != "/y" {
		t.Errorf("%+v %v", s, err)
	}
	if _, err := Parse([]string{"--config-file", filepath.Join(t.TempDir(), "none")}, io.Discard); err == nil {
		t.Error("a file that was named and is not there is no error")
	}
}
