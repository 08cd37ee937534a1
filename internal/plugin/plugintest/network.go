package plugintest

import (
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// Network is the plugin testdata/network: a network driver and an address manager.
type Network struct{ served }

// NetworkState is what such a plugin keeps.
type NetworkState struct {
	Networks  map[string]struct{ Bridge string }
	Endpoints map[string]struct {
		Network, Host, Peer string
		Joined, Open        bool
	}
	Pools map[string]struct {
		Subnet string
		Used   map[string]bool
	}
}

// StartNetwork starts a network plugin that listens on a socket, and keeps its things in a new folder; more flags may follow. Its links are removed when the test ends.
func StartNetwork(t testing.TB, program, socket string, flags ...string) *Network {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(socket), 0o755); err != nil {
		t.Fatal(err)
	}
	root := t.TempDir()
	n := &Network{served{Root: root}}
	t.Cleanup(n.unlink)
	n.Process = Start(t, program, append([]string{"-socket", socket, "-root", root}, flags...)...)
	return n
}

// State is what the plugin keeps.
func (n *Network) State() (s NetworkState) {
	n.t.Helper()
	text, err := os.ReadFile(filepath.Join(n.Root, "state.json"))
	if errors.Is(err, fs.ErrNotExist) {
		return s
	}
	if err == nil {
		err = json.Unmarshal(text, &s)
	}
	if err != nil {
		n.t.Fatal(err)
	}
	return s
}

// Misbehaved tells whether it was asked for a method and misbehaved, since Bad was last called.
func (v *served) Misbehaved(method string) bool {
	text, err := os.ReadFile(filepath.Join(v.Root, "misbehaved"))
	return err == nil && strings.Contains(string(text), method+"\n")
}

// Addresses are those that are taken, with the gateways'.
func (s NetworkState) Addresses() (all []string) {
	for _, pool := range s.Pools {
		for a := range pool.Used {
			all = append(all, a)
		}
	}
	return all
}

// unlink removes what a plugin that was killed left.
func (n *Network) unlink() {
	s := n.State()
	for _, ep := range s.Endpoints {
		_ = exec.Command("ip", "link", "delete", ep.Host).Run() // it may be gone
	}
	for _, nw := range s.Networks {
		_ = exec.Command("ip", "link", "delete", nw.Bridge).Run()
	}
}
