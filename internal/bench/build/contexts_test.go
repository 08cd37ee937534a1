package build

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// What is changed is never what it was before: a contestant that was measured with it unchanged would win.
func TestChangesDiffer(t *testing.T) {
	c := &contexts{dir: t.TempDir()}
	seen := map[string]bool{}
	for _, format := range []string{"plain", "const word = %q\n", "plain", "const word = %q\n"} {
		path := filepath.Join(c.dir, "f")
		if err := c.change(path, format); err != nil {
			t.Fatal(err)
		}
		raw, err := os.ReadFile(path)
		if err != nil || seen[string(raw)] || strings.Contains(string(raw), "%") {
			t.Errorf("%q: %q, %v", format, raw, err)
		}
		seen[string(raw)] = true
	}
}

func TestFilesLieInTheirFolders(t *testing.T) {
	c := &contexts{dir: t.TempDir()}
	dir, err := c.files("go/x", goFiles("golang", ""))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"Dockerfile", "say/all.go", "part19/part.go"} {
		if _, err := os.Stat(filepath.Join(dir, name)); err != nil {
			t.Error(err)
		}
	}
}
