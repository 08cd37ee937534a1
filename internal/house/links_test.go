package house

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// What each binary links is committed (testdata/<binary>.links), so that nobody makes one heavier by accident. UPDATE=1 rewrites the lists.
func TestLinkedPackages(t *testing.T) {
	root := repoRoot(t)
	for _, name := range []string{"corten", "cortend", "corten-monitor", "corten-init", "corten-hello", "corten-registry"} {
		cmd := exec.Command("go", "list", "-tags", "grpcnotrace", "-deps", "-f", "{{if not .Standard}}{{.ImportPath}}{{end}}", "./cmd/"+name)
		cmd.Dir = root
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH=amd64")
		out, err := cmd.Output()
		if err != nil {
			t.Errorf("go list %s: %v", name, err)
			continue
		}
		var foreign []string
		for _, p := range strings.Fields(string(out)) {
			if !strings.HasPrefix(p, module) {
				foreign = append(foreign, p)
			}
		}
		slices.Sort(foreign)
		got := strings.Join(foreign, "\n") + "\n"
		golden := filepath.Join("testdata", name+".links")
		if os.Getenv("UPDATE") != "" {
			if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
				t.Fatal(err)
			}
			continue
		}
		want, err := os.ReadFile(golden)
		if err != nil {
			t.Error(err)
			continue
		}
		if got != string(want) {
			old := strings.Fields(string(want))
			has := func(list []string) func(string) bool { return func(p string) bool { return slices.Contains(list, p) } }
			t.Errorf("%s links other packages than testdata/%s.links says; look at the difference, then run UPDATE=1 go test ./internal/house\nnew: %q\ngone: %q",
				name, name, slices.DeleteFunc(slices.Clone(foreign), has(old)), slices.DeleteFunc(old, has(foreign)))
		}
	}
}
