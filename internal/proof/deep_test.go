package proof

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"corten.dev/corten/internal/enginetest"
)

// Docker ends at 125 layers. Here an image may have more than fit into one option of a mount call: 130 run, can be saved, loaded, looked into and committed.
func TestDeepImage(t *testing.T) {
	if testing.Short() {
		t.Skip("takes a while")
	}
	e := enginetest.Start(t)
	const deep = 130
	image := enginetest.Busybox
	for i := range deep {
		name := fmt.Sprintf("deep-%d", i)
		e.Corten("create", "--name", name, image, "sh", "-c", "ls /layers | wc -l; cat /layers/0 /layers/129 2>/dev/null")
		dir := t.TempDir()
		writeFile(t, filepath.Join(dir, "layers", fmt.Sprint(i)), fmt.Sprintf("layer %d\n", i))
		e.Corten("cp", filepath.Join(dir, "layers"), name+":/")
		image = fmt.Sprintf("deep:%d", i)
		e.Corten("commit", name, image)
		e.Corten("rm", name)
	}
	if n := strings.Count(e.Corten("image", "inspect", "-f", "{{range .RootFS.Layers}}{{.}} {{end}}", image), "sha256:"); n != deep+1 {
		t.Errorf("%d layers, want %d", n, deep+1)
	}
	want := "130\nlayer 0\nlayer 129"
	if got := e.Corten("run", "--rm", image); got != want {
		t.Errorf("it says %q", got)
	}
	archive := filepath.Join(t.TempDir(), "archive")
	e.Corten("save", "-o", archive, image)
	for i := range deep {
		e.Corten("rmi", fmt.Sprintf("deep:%d", i))
	}
	e.Corten("load", "-i", archive)
	if got := e.Corten("run", "--rm", image); got != want {
		t.Errorf("loaded, it says %q", got)
	}
	e.Kill9()
	e.Up()
	if got := e.Corten("run", "--rm", image); got != want {
		t.Errorf("with another engine, it says %q", got)
	}
}
