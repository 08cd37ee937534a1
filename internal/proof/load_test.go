package proof

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"corten.dev/corten/internal/busyboxtree"
	"corten.dev/corten/internal/enginetest"
)

// busy is a set of clients that use every verb that makes something, until told to stop. The errors of a dying engine are expected, wrong answers are not.
type busy struct {
	e       *enginetest.Engine
	t       *testing.T
	archive string // of an image, for load
	tree    string // a root as tar, for import
	dir     string
	round   int

	stop chan struct{}
	wg   sync.WaitGroup
}

// newBusy prepares what the clients send.
func newBusy(t *testing.T, e *enginetest.Engine) *busy {
	t.Helper()
	b := &busy{e: e, t: t, dir: filepath.Join(e.Dir, "load")}
	if err := os.Mkdir(b.dir, 0o755); err != nil {
		t.Fatal(err)
	}
	b.archive, b.tree = filepath.Join(b.dir, "archive"), filepath.Join(b.dir, "tree")
	root, err := busyboxtree.Tar(busyboxtree.Path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(b.tree, root, 0o644); err != nil {
		t.Fatal(err)
	}
	e.Corten("run", "-d", "--name", "frozen", enginetest.Busybox, "sleep", "1000")
	e.Corten("run", "--name", "load-source", enginetest.Busybox, "sh", "-c", "echo more > /more")
	e.Corten("commit", "load-source", "load-archived")
	e.Corten("save", "-o", b.archive, "load-archived")
	e.Corten("rm", "load-source")
	e.Corten("rmi", "load-archived")
	b.save("first") // what the engine keeps of the forms that an image was sent in is there once
	return b
}

func (b *busy) begin(workers int) {
	b.round++
	b.stop = make(chan struct{})
	for worker := range workers {
		b.wg.Go(func() { b.work(worker) })
	}
}

func (b *busy) end() {
	close(b.stop)
	b.wg.Wait()
}

func (b *busy) work(worker int) {
	jobs := []func(name string){b.run, b.later, b.create, b.killed, b.exec, b.network, b.rename, b.copies, b.commit, b.load, b.imports, b.save}
	for i := rand.IntN(len(jobs)); ; i++ {
		select {
		case <-b.stop:
			return
		default:
			jobs[i%len(jobs)](fmt.Sprintf("load-%d-%d-%d", b.round, worker, i))
		}
	}
}

func (b *busy) run(name string) {
	_, _ = b.e.Try("run", "--rm", "--name", name, enginetest.Busybox, "true")
}

func (b *busy) later(name string) {
	_, _ = b.e.Try("run", "-d", "--name", name, enginetest.Busybox, "sh", "-c", "sleep 0.1; exit 7")
}

func (b *busy) create(name string) {
	_, _ = b.e.Try("create", "--name", name, enginetest.Busybox, "true")
}

func (b *busy) exec(string) { _, _ = b.e.Try("exec", "steady", "true") }

func (b *busy) network(name string) {
	_, _ = b.e.Try("network", "create", name)
	_, _ = b.e.Try("run", "--rm", "--network", name, "--name", name, "-v", name+":/data", enginetest.Busybox, "true")
	_, _ = b.e.Try("network", "rm", name)
}

// killed is a client that dies at a random moment.
func (b *busy) killed(name string) {
	calls := [][]string{
		{"run", "--rm", "--name", name, "-v", "/anonymous", enginetest.Busybox, "true"}, {"load", "-i", b.archive}, {"import", b.tree, name}, {"cp", b.tree, "steady:/tmp/" + name},
		{"save", "-o", filepath.Join(b.dir, name), enginetest.Busybox}, {"cp", "steady:/bin", filepath.Join(b.dir, name)},
	}
	cmd := b.e.Client(calls[rand.IntN(len(calls))]...)
	if cmd.Start() == nil {
		time.Sleep(time.Duration(rand.IntN(15)) * time.Millisecond)
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}
}

func (b *busy) rename(name string) {
	_, _ = b.e.Try("create", "--name", name, enginetest.Busybox, "true")
	if _, err := b.e.Try("rename", name, name+"-new"); err == nil {
		if out, err := b.e.Try("inspect", "-f", "{{.Name}}", name+"-new"); err == nil && out != "/"+name+"-new" {
			b.t.Errorf("%s was renamed, and is called %s", name, out)
		}
	}
}

// copies takes a file into a container and out again.
func (b *busy) copies(name string) {
	in, out := filepath.Join(b.dir, name+"-in"), filepath.Join(b.dir, name+"-out")
	want := strings.Repeat(name, 5000)
	if err := os.WriteFile(in, []byte(want), 0o644); err != nil {
		b.t.Error(err)
	}
	if _, err := b.e.Try("create", "--name", name, enginetest.Busybox, "true"); err != nil {
		return
	}
	if _, err := b.e.Try("cp", in, name+":/tmp/file"); err != nil {
		return
	}
	_, err := b.e.Try("cp", name+":/tmp/file", out)
	got, rerr := os.ReadFile(out)
	switch {
	case err == nil && string(got) != want:
		b.t.Errorf("%s: a copied file came back with %d bytes, want %d", name, len(got), len(want))
	case err != nil && rerr == nil:
		b.t.Errorf("%s: the copy failed (%v), and a file of %d bytes stands under its name", name, err, len(got))
	}
}

// commit freezes the container for a moment: it must not stay so when the engine dies then.
func (b *busy) commit(name string) { _, _ = b.e.Try("commit", "frozen", name) }

func (b *busy) load(string) { _, _ = b.e.Try("load", "-i", b.archive) }

func (b *busy) imports(name string) { _, _ = b.e.Try("import", b.tree, name) }

// save: a file that is there is whole.
func (b *busy) save(name string) {
	path := filepath.Join(b.dir, name+".tar")
	_, err := b.e.Try("save", "-o", path, enginetest.Busybox)
	f, oerr := os.Open(path)
	if oerr != nil {
		if err == nil {
			b.t.Error(oerr)
		}
		return
	}
	defer os.Remove(path)
	defer f.Close()
	if err != nil {
		b.t.Errorf("save failed (%v), and left a file under the name that was asked for", err)
	}
	for tr := tar.NewReader(f); ; {
		_, nerr := tr.Next()
		if errors.Is(nerr, io.EOF) {
			return
		}
		if nerr != nil {
			b.t.Errorf("a saved archive is broken: %v", nerr)
			return
		}
	}
}

// check waits until the short containers have ended, looks at what they and the images became, and removes all of it.
func (b *busy) check() {
	t, e := b.t, b.e
	t.Helper()
	if out, err := e.Try("exec", "frozen", "echo", "awake"); err != nil || out != "awake" {
		t.Errorf("the container that is committed: %q %v", out, err)
	}
	wait(t, "the short containers to end", func() bool { return e.Corten("ps", "-q", "--filter", "name=load-") == "" })
	list := e.Corten("ps", "-a", "--filter", "name=load-", "--format", "{{.Names}}|{{.Status}}|{{.Command}}")
	for line := range strings.Lines(list) {
		fields := strings.Split(strings.TrimSpace(line), "|")
		ended := strings.HasPrefix(fields[1], "Exited (")
		if strings.Contains(fields[2], "exit 7") && ended && !strings.HasPrefix(fields[1], "Exited (7)") {
			t.Errorf("%s: %s, want exit code 7\n%s", fields[0], fields[1], e.Log())
		}
	}
	remove := func(list, verb []string) {
		if names := e.Corten(list...); names != "" {
			e.Corten(append(verb, strings.Fields(names)...)...)
		}
	}
	remove([]string{"ps", "-aq", "--filter", "name=load-"}, []string{"rm", "-f", "-v"})
	for line := range strings.Lines(e.Corten("images", "-a", "--no-trunc", "--format", "{{.ID}} {{.Repository}}")) {
		id, name, _ := strings.Cut(strings.TrimSpace(line), " ")
		if name == enginetest.Busybox {
			continue
		}
		if out, err := e.Try("run", "--rm", id, "/bin/true"); err != nil {
			t.Errorf("image %s is not whole: %v %s", name, err, out)
		}
		if out, err := e.Try("rmi", "-f", id); err != nil && !strings.Contains(err.Error(), "No such image") {
			t.Errorf("remove image %s: %v %s", name, err, out)
		}
	}
	remove([]string{"network", "ls", "-q", "--filter", "name=load-"}, []string{"network", "rm"})
	remove([]string{"volume", "ls", "-q"}, []string{"volume", "rm"})
	if out, err := exec.Command("find", b.dir, "-mindepth", "1", "!", "-name", "archive", "!", "-name", "tree", "-delete").CombinedOutput(); err != nil {
		t.Errorf("clear: %v %s", err, out)
	}
}
