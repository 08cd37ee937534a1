package ops

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"testing"

	"github.com/moby/buildkit/client/llb"
	"github.com/moby/buildkit/solver/pb"
	"golang.org/x/sys/unix"

	"corten.dev/corten/internal/build"
	"corten.dev/corten/internal/build/checksum"
	"corten.dev/corten/internal/snapshot"
	"corten.dev/corten/internal/snapshot/overlay"
	"corten.dev/corten/internal/snapshot/plain"
)

// store is a driver of the snapshot room.
type store interface {
	snapshot.Store
	Close() error
}

// drivers are those that ops are tried on.
var drivers = map[string]func(dir string) (store, error){
	"overlay": func(dir string) (store, error) {
		return overlay.New(overlay.Options{Root: dir, Skeletons: map[string][]string{"": {"app/", "n/", "n/sub/", "etc/", "etc/hosts", "proc/"}}})
	}, // as the engine has it
	"plain": func(dir string) (store, error) { return plain.New(plain.Options{Root: dir}) },
}

// lab is a store with ops on it.
type lab struct {
	t     testing.TB
	trees store
	sums  *checksum.Sums
	o     *Ops
}

func newLab(t testing.TB) *lab { return newLabOn(t, "overlay") }

func newLabOn(t testing.TB, driver string) *lab {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root, for overlay mounts and owners")
	}
	dir := t.TempDir()
	trees, err := drivers[driver](dir + "/snapshots")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { trees.Close() })
	sums, err := checksum.New(checksum.Options{Dir: dir + "/checksums", Trees: trees})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { sums.Close() })
	o, err := New(context.Background(), Options{Trees: trees, Sums: sums})
	if err != nil {
		t.Fatal(err)
	}
	return &lab{t, trees, sums, o}
}

// context makes a build context of dir.
func (l *lab) context(dir string) build.Output {
	l.t.Helper()
	f, err := os.Open(dir)
	if err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(func() { f.Close() })
	return build.Output{Files: &build.Files{Root: f, Key: dir, Owner: &[2]uint32{}}}
}

// op makes an op of an LLB file action on inputs: base is the first, if it is not scratch.
func (l *lab) op(a *llb.FileAction, scratch bool) build.Op {
	l.t.Helper()
	st := llb.Image("base")
	if scratch {
		st = llb.Scratch()
	}
	def, err := st.File(a).Marshal(context.Background())
	if err != nil {
		l.t.Fatal(err)
	}
	for _, data := range def.Def {
		var op pb.Op
		if err := op.Unmarshal(data); err != nil {
			l.t.Fatal(err)
		}
		if op.GetFile() == nil {
			continue
		}
		v := &build.Vertex{Op: &op, Name: "test", Inputs: make([]build.Edge, len(op.Inputs))}
		made, err := l.o.File(v)
		if err != nil {
			l.t.Fatal(err)
		}
		return made
	}
	l.t.Fatal("no file op")
	return nil
}

// do runs an op and gives its only output.
func (l *lab) do(op build.Op, in ...build.Output) (build.Output, error) {
	ctx := context.Background()
	if _, err := op.Key(ctx, build.Env{}, in); err != nil {
		return build.Output{}, err
	}
	made, err := op.Run(ctx, build.Env{}, in)
	if err != nil {
		return build.Output{}, err
	}
	if made.Volatile {
		l.t.Error("the result is volatile")
	}
	return made.Outputs[0], nil
}

func (l *lab) must(op build.Op, in ...build.Output) build.Output {
	l.t.Helper()
	out, err := l.do(op, in...)
	if err != nil {
		l.t.Fatal(err)
	}
	return out
}

// show lists a chain's tree: "path mode uid:gid content-or-target".
func (l *lab) show(chain snapshot.ChainID) string {
	l.t.Helper()
	m, err := l.trees.View(context.Background(), chain)
	if err != nil {
		l.t.Fatal(err)
	}
	defer m.Close()
	return list(l.t, fmt.Sprintf("/proc/self/fd/%d/", m.Root.Fd()))
}

func list(t testing.TB, root string) string {
	var lines []string
	err := filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name := strings.TrimPrefix(p, root)
		if name == "" {
			return nil
		}
		var st unix.Stat_t
		if err := unix.Lstat(p, &st); err != nil {
			return err
		}
		line := fmt.Sprintf("%s %o %d:%d", name, st.Mode&0o7777, st.Uid, st.Gid)
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFREG:
			data, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			if len(data) > 40 {
				data = fmt.Appendf(nil, "%d bytes", len(data))
			}
			line += " " + string(data)
		case unix.S_IFLNK:
			target, _ := os.Readlink(p)
			line = fmt.Sprintf("%s %d:%d -> %s", name, st.Uid, st.Gid, target)
		case unix.S_IFDIR:
			line += " /"
		default:
			line += fmt.Sprintf(" %o %d", st.Mode&unix.S_IFMT, st.Rdev)
		}
		lines = append(lines, line)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	sort.Strings(lines)
	return strings.Join(lines, "\n")
}

func put(t testing.TB, dir string, files ...string) {
	t.Helper()
	for _, f := range files {
		name, body, _ := strings.Cut(f, "=")
		p := filepath.Join(dir, name)
		os.MkdirAll(filepath.Dir(p), 0o755)
		var err error
		switch {
		case strings.HasSuffix(name, "/"):
			err = os.MkdirAll(p, 0o755)
		case strings.HasPrefix(body, "->"):
			err = os.Symlink(body[2:], p)
		default:
			err = os.WriteFile(p, []byte(body), 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// tree makes a chain of files.
func (l *lab) tree(files ...string) build.Output {
	l.t.Helper()
	dir := l.t.TempDir()
	put(l.t, dir, files...)
	in := l.context(dir)
	out, _, err := l.o.Tree(context.Background(), in.Files, everything)
	if err != nil {
		l.t.Fatal(err)
	}
	return out
}

// All kinds of actions in one op, on each driver.
func TestActions(t *testing.T) {
	for driver := range drivers {
		t.Run(driver, func(t *testing.T) { testActions(t, newLabOn(t, driver)) })
	}
}

func testActions(t *testing.T, l *lab) {
	base := l.tree("etc/passwd=root:x:0:0::/:\nweb:x:33:34::/:\n", "srv/old=1", "link=->/srv")
	dir := t.TempDir()
	put(t, dir, "a=A", "sub/b=B", "sub/c=->b")
	ctx := l.context(dir)
	src := llb.Local("x")
	out := l.must(l.op(llb.Mkdir("/app/data", 0o750, llb.WithParents(true)).
		Mkfile("/app/hello", 0o640, []byte("hi"), llb.WithUser("web")).
		Copy(src, "/", "/link/", &llb.CopyInfo{CopyDirContentsOnly: true, CreateDestPath: true, FollowSymlinks: true}).
		Rm("/srv/old").Symlink("hello", "/app/hi"), false), base, ctx)
	if got := l.show(out.Chain); !strings.Contains(got, "srv/sub/c 0:0 -> b") || !strings.Contains(got, "app/hello 640 33:34 hi") || strings.Contains(got, "srv/old") {
		t.Error(got)
	}
}
