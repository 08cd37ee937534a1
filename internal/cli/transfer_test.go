package cli

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// `load -i FOLDER` said "use of closed network connection": the connection is closed when what is sent cannot be read, and nobody said why.
func TestWhatCannotBeReadIsNamed(t *testing.T) {
	f := newFake(t, nil)
	dir := t.TempDir()
	for _, args := range [][]string{{"load", "-i", dir}, {"import", dir, "x"}, {"volume", "import", "v", dir}} {
		_, errOut, code := f.run("", args...)
		if code != 1 || !strings.Contains(errOut, dir+": is a directory") || strings.Contains(errOut, "closed") {
			t.Errorf("%v: %d %s", args, code, errOut)
		}
	}
}

// Ctrl-C in the middle of `save -o` left .tmp-… beside the name, however large it was by then.
func TestInterruptedDownloadLeavesNothing(t *testing.T) {
	begun := make(chan struct{})
	engine := engineOf(t, func(w http.ResponseWriter, r *http.Request) {
		w.Write(make([]byte, 1<<20))
		w.(http.Flusher).Flush()
		close(begun)
		<-r.Context().Done()
	})
	dir := t.TempDir()
	code := make(chan int, 1)
	var errOut bytes.Buffer
	go func() {
		code <- Main(t.Context(), []string{"-H", "unix://" + engine, "export", "-o", filepath.Join(dir, "web.tar"), "web"}, Streams{In: strings.NewReader(""), Out: io.Discard, Err: &errOut})
	}()
	<-begun
	for end := time.Now().Add(30 * time.Second); len(entriesOf(t, dir)) == 0; time.Sleep(5 * time.Millisecond) { // once the file is begun, the signal is heeded
		if time.Now().After(end) {
			t.Fatal("no file was begun")
		}
	}
	if err := syscall.Kill(os.Getpid(), syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	if got := <-code; got != 130 || errOut.Len() > 0 {
		t.Errorf("%d %s", got, &errOut)
	}
	if left := entriesOf(t, dir); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

// A link that has the name of an output stays one.
func TestOutputThroughALink(t *testing.T) {
	f := newFake(t, map[string]string{"GET /containers/web/export": "archive"})
	dir := t.TempDir()
	if err := errors.Join(os.WriteFile(filepath.Join(dir, "there"), []byte("old"), 0o600), os.Symlink("there", filepath.Join(dir, "link"))); err != nil {
		t.Fatal(err)
	}
	if _, errOut, code := f.run("", "export", "-o", filepath.Join(dir, "link"), "web"); code != 0 {
		t.Fatal(errOut)
	}
	if to, err := os.Readlink(filepath.Join(dir, "link")); err != nil || to != "there" {
		t.Errorf("%q %v", to, err)
	}
	if data, err := os.ReadFile(filepath.Join(dir, "there")); err != nil || string(data) != "archive" {
		t.Errorf("%q %v", data, err)
	}
}

func entriesOf(t *testing.T, dir string) []os.DirEntry {
	t.Helper()
	list, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	return list
}
