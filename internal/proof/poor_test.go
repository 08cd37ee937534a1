package proof

import (
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"corten.dev/corten/internal/enginetest"
)

// An engine in a container without privileges said "add bridge corten0: operation not permitted", and then the same of the bridge's name.
func TestEngineWithoutCapabilities(t *testing.T) {
	if _, err := exec.LookPath("setpriv"); err != nil {
		t.Skip("setpriv (util-linux) is not installed")
	}
	bin := filepath.Join(enginetest.Bin(t), "cortend")
	for _, drop := range []string{"sys_admin", "net_admin"} {
		dir := t.TempDir()
		out, err := exec.Command("setpriv", "--bounding-set", "-"+drop, bin, "--data-root", filepath.Join(dir, "d"), "--exec-root", filepath.Join(dir, "e"), "--pidfile", filepath.Join(dir, "p"),
			"--config-file=", "--bridge=none", "-H", "unix://"+filepath.Join(dir, "s")).CombinedOutput()
		if err == nil || strings.Count(string(out), "\n") != 1 || !strings.Contains(string(out), "cortend lacks CAP_"+strings.ToUpper(drop)+": ") {
			t.Errorf("without %s: %v\n%s", drop, err, out)
		}
	}
}
