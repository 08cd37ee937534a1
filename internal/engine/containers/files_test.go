package containers

import (
	"net/netip"
	"os"
	"testing"

	"corten.dev/corten/internal/container"
	"corten.dev/corten/internal/network"
)

// What the program wrote into its hosts file stays, also its empty lines: they were taken for a part of what the engine had written. The file is changed in place, since it is mounted.
func TestHostsAreChangedInPlace(t *testing.T) {
	s := &Service{Options: Options{Root: t.TempDir()}}
	at := func(addr string) *network.Sandbox {
		return &network.Sandbox{Endpoints: []network.Endpoint{{IPv4: netip.MustParsePrefix(addr)}}}
	}
	rec := &container.Record{ID: "c", Config: container.Config{Hostname: "web"}, Sandbox: at("10.0.0.3/24")}
	path := s.generatedFiles(rec).Hosts
	if err := os.Mkdir(s.dir("c"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte("127.0.0.1\tlocalhost\n\n10.0.0.222\tweb\n2\tweb\n10.0.0.222\tits own\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	before, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.editHosts(rec, at("10.0.0.222/24")); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(path)
	if want := "127.0.0.1\tlocalhost\n\n2\tweb\n10.0.0.222\tits own\n10.0.0.3\tweb\n"; err != nil || string(b) != want {
		t.Errorf("%q, %v, want %q", b, err, want)
	}
	if after, err := os.Stat(path); err != nil || !os.SameFile(before, after) {
		t.Error("it is another file", err)
	}
	if err := overwrite(path, []byte("short\n")); err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(path); err != nil || string(b) != "short\n" {
		t.Errorf("%q, %v", b, err)
	}
}
