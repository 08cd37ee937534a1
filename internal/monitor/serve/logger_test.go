package serve

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"corten.dev/corten/internal/logs/logfile"
)

// The buffer of a log that makes nobody wait has its bound, and what does not fit is counted: it could grow until the monitor had eaten the host's memory, and no test would have noticed.
func TestBufferHasItsBound(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "log")
	w, err := logfile.Open(logfile.Options{Path: dir})
	if err != nil {
		t.Fatal(err)
	}
	line := []byte(strings.Repeat("x", 99) + "\n")
	const fit = 5
	b := &background{w: w, size: fit * (itemHead + len(line))} // as newBackground makes it, but nobody writes yet
	b.more.L, b.idle.L = &b.mu, &b.mu
	for range 3 * fit {
		b.write(1, 1, line)
	}
	if got := b.fill.len(); got != b.size || b.lost != int64(2*fit*len(line)) {
		t.Errorf("%d bytes wait in a buffer of %d; %d bytes are counted as lost", got, b.size, b.lost)
	}
	go b.run()
	b.finish(false)
	b.close()
	raw, err := os.ReadFile(filepath.Join(dir, "00000001.log"))
	if err != nil {
		t.Fatal(err)
	}
	if n := bytes.Count(raw, line); n != fit || !bytes.Contains(raw, []byte("corten: 1000 bytes of output are missing here")) {
		t.Errorf("%d lines of %d are kept, and of the others is told: %q", n, fit, raw[len(raw)-80:])
	}
}
