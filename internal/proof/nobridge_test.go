package proof

import (
	"os"
	"path/filepath"
	"testing"

	"corten.dev/corten/internal/enginetest"
)

// An engine without a default bridge: containers and steps that name no network have the loopback alone, as with dockerd. They failed with "network bridge not found".
func TestNoDefaultBridge(t *testing.T) {
	e := enginetest.Start(t, "--bridge", "none", "--bip", "")
	if got := e.Corten("run", "--rm", enginetest.Busybox, "ls", "/sys/class/net"); got != "lo" {
		t.Errorf("interfaces of a container: %q", got)
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "Dockerfile"), []byte("FROM busybox\nRUN ls /sys/class/net > /seen\nCMD cat /seen\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	e.Corten("build", "-q", "-t", "seen", dir)
	if got := e.Corten("run", "--rm", "seen"); got != "lo" {
		t.Errorf("interfaces of a step: %q", got)
	}
}
