package network_test

import (
	"os"
	"testing"

	"corten.dev/corten/internal/network"
	"corten.dev/corten/internal/network/networktest"
)

func TestContract(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	networktest.Run(t, func(t *testing.T) network.Manager {
		l, err := network.New(network.Options{Root: t.TempDir(), ExecRoot: t.TempDir(), Table: "cortencontract", Bridge: "cc0", Names: []string{"/proc/self/exe", "portproxy", "names"}})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := l.Close(); err != nil {
				t.Error(err)
			}
		})
		return l
	})
}
