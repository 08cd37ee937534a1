package record

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"corten.dev/corten/internal/errs"
)

type rec struct {
	Version int
	Filler  string
}

func quiet() *slog.Logger { return slog.New(slog.NewTextHandler(io.Discard, nil)) }

func open(t testing.TB, dir string, log *slog.Logger) *Dir[rec] {
	t.Helper()
	d, err := Open[rec](dir, log)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	})
	return d
}

func TestPutGetDelete(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "made", "here")
	d := open(t, dir, quiet())
	if _, err := d.Get("web"); !errors.Is(err, errs.NotFound) {
		t.Fatalf("a record that was never put: %v", err)
	}
	for i, durable := range []bool{true, false, true} {
		if err := d.Put("web", rec{Version: i}, durable); err != nil {
			t.Fatal(err)
		}
		if got, err := d.Get("web"); err != nil || got.Version != i {
			t.Fatalf("got %+v, %v", got, err)
		}
	}
	if err := d.Delete("web", true); err != nil {
		t.Fatal(err)
	}
	if err := d.Delete("web", false); err != nil {
		t.Fatalf("deleting twice: %v", err)
	}
	for _, name := range []string{"", ".", "..", ".hidden", "a/b", "/abs", "nul\x00", strings.Repeat("x", 201)} {
		if err := d.Put(name, rec{}, false); !errors.Is(err, errs.Invalid) {
			t.Errorf("put %q: %v", name, err)
		}
		if _, err := d.Get(name); !errors.Is(err, errs.Invalid) {
			t.Errorf("get %q: %v", name, err)
		}
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
		t.Errorf("left over: %v, %v", left, err)
	}
}

// A crash may leave a half-written file aside, and an empty or torn record where a Put without flush was; neither may keep the engine from starting.
func TestAllSetsBrokenAside(t *testing.T) {
	dir := t.TempDir()
	for name, body := range map[string]string{
		"good.json": `{"Version":7}`, "empty.json": "", "torn.json": `{"Version":7,"Fil`, "wrong.json": `[1,2]`, ".good.3.tmp": "{", "notes.txt": "not ours",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(body), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(filepath.Join(dir, "folder.json"), 0o700); err != nil {
		t.Fatal(err)
	}
	var said bytes.Buffer
	d := open(t, dir, slog.New(slog.NewTextHandler(&said, nil)))
	all, err := d.All()
	if err != nil {
		t.Fatal(err)
	}
	if len(all) != 1 || all["good"].Version != 7 {
		t.Errorf("all: %+v", all)
	}
	for _, name := range []string{"empty", "torn", "wrong", "folder"} {
		if _, err := os.Stat(filepath.Join(dir, name+".json.broken")); err != nil {
			t.Error(err)
		}
		if !strings.Contains(said.String(), "record="+name) {
			t.Errorf("nothing was said of %s:\n%s", name, said.String())
		}
	}
	if _, err := os.Stat(filepath.Join(dir, ".good.3.tmp")); err == nil {
		t.Error("the interrupted write is still there")
	}
	if all, err := d.All(); err != nil || len(all) != 1 {
		t.Errorf("a second time: %+v, %v", all, err)
	}
}

// checked is good only under its own name.
type checked struct{ Name string }

func (c *checked) Check(name string) error {
	if c.Name != name {
		return errors.New("it is another's")
	}
	return nil
}

func TestAllSetsAsideWhatIsNoGood(t *testing.T) {
	dir := t.TempDir()
	d, err := Open[checked](dir, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	for name, rec := range map[string]checked{"one": {"one"}, "two": {"one"}} {
		if err := d.Put(name, rec, false); err != nil {
			t.Fatal(err)
		}
	}
	if all, err := d.All(); err != nil || len(all) != 1 || all["one"].Name != "one" {
		t.Errorf("all: %+v %v", all, err)
	}
	if _, err := os.Stat(filepath.Join(dir, "two.json.broken")); err != nil {
		t.Error(err)
	}
}

func TestFlushIsShared(t *testing.T) {
	var flushes atomic.Int32
	started, release := make(chan struct{}, 16), make(chan struct{})
	f := flusher{sync: func() error {
		flushes.Add(1)
		started <- struct{}{}
		<-release
		return nil
	}}
	var wg sync.WaitGroup
	wait := func() {
		wg.Go(func() {
			if err := f.wait(); err != nil {
				t.Error(err)
			}
		})
	}
	wait()
	<-started // the first flush runs; all who come now share the second
	for range 8 {
		wait()
	}
	for f.waiting() < 8 {
		time.Sleep(time.Millisecond)
	}
	close(release)
	wg.Wait()
	if n := flushes.Load(); n != 2 {
		t.Errorf("%d flushes for 9 waiters, want 2", n)
	}
}

// waiting is how many wait for the flush that has not begun.
func (f *flusher) waiting() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.next == nil {
		return 0
	}
	return f.next.waiters
}

func TestFailedFlushIsTold(t *testing.T) {
	f := flusher{sync: func() error { return os.ErrClosed }}
	if err := f.wait(); !errors.Is(err, os.ErrClosed) {
		t.Error(err)
	}
	f.sync = func() error { return nil }
	if err := f.wait(); err != nil {
		t.Errorf("the next flush: %v", err)
	}
}

const writerEnv = "CORTEN_TEST_RECORD_WRITER"

// TestWriter is no test: it is the process that TestKilledWriter kills.
func TestWriter(t *testing.T) {
	dir := os.Getenv(writerEnv)
	if dir == "" {
		t.Skip("run by TestKilledWriter")
	}
	d := open(t, dir, quiet())
	all, err := d.All()
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	var mu sync.Mutex
	for w := range 4 {
		name := fmt.Sprintf("r%d", w)
		wg.Go(func() {
			for v := all[name].Version + 1; ; v++ {
				if err := d.Put(name, rec{v, strings.Repeat("x", rand.IntN(20000))}, v%3 != 0); err != nil {
					return
				}
				mu.Lock()
				fmt.Printf("put %s %d\n", name, v)
				mu.Unlock()
			}
		})
	}
	wg.Wait()
}

// Kill the writer at random moments: whatever it said it had put is there, whole, and nothing else is in the folder.
func TestKilledWriter(t *testing.T) {
	dir := t.TempDir()
	told := make(map[string]int)
	for range 25 {
		cmd := exec.Command(os.Args[0], "-test.run=^TestWriter$")
		cmd.Env = append(os.Environ(), writerEnv+"="+dir)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		timer := time.AfterFunc(time.Duration(10+rand.IntN(60))*time.Millisecond, func() { _ = cmd.Process.Kill() })
		for sc := bufio.NewScanner(out); sc.Scan(); {
			var name string
			var v int
			if n, _ := fmt.Sscanf(sc.Text(), "put %s %d", &name, &v); n == 2 {
				told[name] = v
			}
		}
		_ = cmd.Wait() // killed
		timer.Stop()
		d, err := Open[rec](dir, quiet())
		if err != nil {
			t.Fatal(err)
		}
		all, err := d.All()
		if err != nil {
			t.Fatal(err)
		}
		for name, v := range told {
			if got := all[name].Version; got < v || got > v+1 {
				t.Errorf("%s is at %d, the writer told %d", name, got, v)
			}
		}
		for name, r := range all {
			told[name] = r.Version // one more than told may have been put
		}
		if err := d.Close(); err != nil {
			t.Fatal(err)
		}
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if !strings.HasSuffix(e.Name(), ".json") {
			t.Errorf("left over: %s", e.Name())
		}
	}
	t.Log("puts:", told)
}

func FuzzAll(f *testing.F) {
	f.Add([]byte(`{"Version":1}`))
	f.Add([]byte(`{"Version":`))
	f.Add([]byte("\x00\xff"))
	f.Fuzz(func(t *testing.T, body []byte) {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "a.json"), body, 0o600); err != nil {
			t.Fatal(err)
		}
		d := open(t, dir, quiet())
		all, err := d.All()
		if err != nil {
			t.Fatal(err)
		}
		if got, ok := all["a"]; ok { // what could be read can be put again and is the same
			if err := d.Put("b", got, false); err != nil {
				t.Fatal(err)
			}
			if again, err := d.Get("b"); err != nil || again != got {
				t.Fatalf("%+v became %+v, %v", got, again, err)
			}
		}
	})
}

func BenchmarkPut(b *testing.B) {
	for _, bc := range []struct {
		name    string
		durable bool
		writers int
	}{{"plain", false, 1}, {"durable", true, 1}, {"durable16", true, 16}} {
		b.Run(bc.name, func(b *testing.B) {
			d := open(b, b.TempDir(), quiet())
			r := rec{Filler: strings.Repeat("x", 2000)}
			var n atomic.Int64
			var wg sync.WaitGroup
			for w := range bc.writers {
				wg.Go(func() {
					for n.Add(1) <= int64(b.N) {
						if err := d.Put(fmt.Sprintf("r%d", w), r, bc.durable); err != nil {
							b.Error(err)
							return
						}
					}
				})
			}
			wg.Wait()
		})
	}
}
