package ops

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/moby/buildkit/client/llb"
	"golang.org/x/sys/unix"

	"corten.dev/corten/internal/build"
	"corten.dev/corten/internal/errs"
)

// dockerfile gives the options that the Dockerfile frontend gives to COPY.
func dockerfile(more ...func(*llb.CopyInfo)) *llb.CopyInfo {
	info := &llb.CopyInfo{FollowSymlinks: true, CopyDirContentsOnly: true, CreateDestPath: true, AllowWildcard: true, AllowEmptyWildcard: true}
	for _, fn := range more {
		fn(info)
	}
	return info
}

func mode(text string) func(*llb.CopyInfo) {
	return func(c *llb.CopyInfo) { c.Mode = &llb.ChmodOpt{ModeStr: text} }
}

// TestCopy is the table of what COPY and ADD do, from their documentation: source and destination are a file, a directory, a pattern, a link, there or not there.
func TestCopy(t *testing.T) {
	l := newLab(t)
	dir := t.TempDir()
	put(t, dir, "file=F", "b.txt=B", "c.txt=C", "dir/x=X", "dir/sub/y=Y", "dir/sub/z.md=Z", "empty/", "toFile=->file", "toDir=->dir", "dir/up=->../file", "out=->/etc/hostname", "deep/a/b/c.go=c")
	os.Chmod(dir+"/dir/sub", 0o711)
	ctx := l.context(dir)
	base := l.tree("have/old=O", "have/x=old", "filed=1", "real/keep=K", "ln=->/real", "dangling=->/made/here", "lnfile=->/real/keep", "esc=->../../../../real")
	const kept = "dangling -> /made/here\nesc -> ../../../../real\nfiled 644 1\nhave 755 /\nhave/old 644 O\nhave/x 644 old\nln -> /real\nlnfile -> /real/keep\nreal 755 /\nreal/keep 644 K\n"
	for _, c := range []struct {
		name, src, dst string
		info           *llb.CopyInfo
		want           string // lines with "-" are gone, others are there beside what was
		err            string
	}{
		{name: "file to new name", src: "/file", dst: "/n", want: "n 644 F"},
		{name: "file into new directory", src: "/file", dst: "/n/", want: "n 755 /\nn/file 644 F"},
		{name: "file to deep new name", src: "/file", dst: "/p/q/n", want: "p 755 /\np/q 755 /\np/q/n 644 F"},
		{name: "file into directory", src: "/file", dst: "/have", want: "have/file 644 F"},
		{name: "file over file", src: "/file", dst: "/filed", want: "-filed 644 1\nfiled 644 F"},
		{name: "file over file in directory", src: "/dir/x", dst: "/have/", want: "-have/x 644 old\nhave/x 644 X"},
		{name: "directory's content into new", src: "/dir", dst: "/n", want: "n 755 /\nn/sub 711 /\nn/sub/y 644 Y\nn/sub/z.md 644 Z\nn/up -> ../file\nn/x 644 X"},
		{name: "directory's content into directory", src: "/dir/", dst: "/have", want: "-have/x 644 old\nhave/sub 711 /\nhave/sub/y 644 Y\nhave/sub/z.md 644 Z\nhave/up -> ../file\nhave/x 644 X"},
		{name: "empty directory", src: "/empty", dst: "/n", want: "n 755 /"},
		{name: "directory over file", src: "/dir", dst: "/filed", err: "not a directory"},
		{name: "pattern", src: "/*.txt", dst: "/n/", want: "n 755 /\nn/b.txt 644 B\nn/c.txt 644 C"},
		{name: "pattern for directories takes contents", src: "/d*", dst: "/n/", want: "n 755 /\nn/a 755 /\nn/a/b 755 /\nn/a/b/c.go 644 c\nn/sub 711 /\nn/sub/y 644 Y\nn/sub/z.md 644 Z\nn/up -> ../file\nn/x 644 X"},
		{name: "pattern in the middle", src: "/d*/x", dst: "/n/", want: "n 755 /\nn/x 644 X"},
		{name: "pattern of nothing", src: "/*.none", dst: "/n/", want: ""},
		{name: "question mark and class", src: "/[bc].tx?", dst: "/have/", want: "have/b.txt 644 B\nhave/c.txt 644 C"},
		{name: "missing", src: "/none", dst: "/n", err: `"/none": not found`},
		{name: "missing below a file", src: "/file/none", dst: "/n", err: `"/file/none": not found`},
		{name: "link to file is followed", src: "/toFile", dst: "/have/", want: "have/toFile 644 F"},
		{name: "link to directory is followed", src: "/toDir", dst: "/n", want: "n 755 /\nn/sub 711 /\nn/sub/y 644 Y\nn/sub/z.md 644 Z\nn/up -> ../file\nn/x 644 X"},
		{name: "through a link", src: "/toDir/x", dst: "/n", want: "n 644 X"},
		{name: "link inside stays link", src: "/dir/up", dst: "/n", info: &llb.CopyInfo{}, want: "n -> ../file"},
		{name: "link that leads out is not there", src: "/out", dst: "/n", err: `"/out": not found`},
		{name: "destination through a link", src: "/file", dst: "/ln/", want: "real/file 644 F"},
		{name: "destination link to a file", src: "/file", dst: "/lnfile", want: "-real/keep 644 K\nreal/keep 644 F"},
		{name: "destination is a dangling link", src: "/file", dst: "/dangling/", want: "made 755 /\nmade/here 755 /\nmade/here/file 644 F"},
		{name: "destination leads out", src: "/file", dst: "/esc/", want: "real/file 644 F"},
		{name: "dots in the destination", src: "/file", dst: "/../../n", want: "n 644 F"},
		{name: "dots in the source", src: "/../../dir/../file", dst: "/n", want: "n 644 F"},
		{name: "not contents: named", src: "/dir/sub", dst: "/have", info: &llb.CopyInfo{}, want: "have/sub 711 /\nhave/sub/y 644 Y\nhave/sub/z.md 644 Z"},
		{name: "not contents: renamed", src: "/dir/sub", dst: "/n", info: &llb.CopyInfo{}, want: "n 711 /\nn/y 644 Y\nn/z.md 644 Z"},
		{name: "no way made", src: "/file", dst: "/no/n", info: &llb.CopyInfo{}, err: "/no/n"},
		{name: "pattern without permission for nothing", src: "/*.none", dst: "/n/", info: &llb.CopyInfo{AllowWildcard: true}, err: "not found"},
		{name: "chmod", src: "/file", dst: "/n", info: dockerfile(func(c *llb.CopyInfo) { c.Mode = &llb.ChmodOpt{Mode: 0o4750} }), want: "n 4750 F"},
		{name: "symbolic chmod", src: "/dir/", dst: "/n", info: dockerfile(mode("u=rwX,go=rX,g+s")), want: "n 755 /\nn/sub 2755 /\nn/sub/y 2644 Y\nn/sub/z.md 2644 Z\nn/up -> ../file\nn/x 2644 X"},
		{name: "exclude", src: "/dir", dst: "/n", info: dockerfile(func(c *llb.CopyInfo) { c.ExcludePatterns = []string{"sub/*", "!sub/y", "up"} }), want: "n 755 /\nn/sub 711 /\nn/sub/y 644 Y\nn/x 644 X"},
		{name: "include makes only what leads there", src: "/", dst: "/n", info: dockerfile(func(c *llb.CopyInfo) { c.IncludePatterns = []string{"**/*.md", "deep/*/b"} }),
			want: "n 755 /\nn/deep 755 /\nn/deep/a 755 /\nn/deep/a/b 755 /\nn/deep/a/b/c.go 644 c\nn/dir 755 /\nn/dir/sub 711 /\nn/dir/sub/z.md 644 Z"},
		{name: "required", src: "/", dst: "/n", info: dockerfile(func(c *llb.CopyInfo) {
			c.IncludePatterns, c.RequiredPaths = []string{"dir/none"}, []string{"/dir/none"}
		}), err: `"/dir/none": not found`},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := *l
			l.t = t
			info := c.info
			if info == nil {
				info = dockerfile()
			}
			out, err := l.do(l.op(llb.Copy(llb.Local("x"), c.src, c.dst, info), false), base, ctx)
			if c.err != "" {
				if err == nil || !strings.Contains(err.Error(), c.err) {
					t.Fatalf("error %v, wanted %q", err, c.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			want := map[string]bool{}
			for _, line := range strings.Split(strings.TrimSpace(kept+c.want), "\n") {
				if gone, ok := strings.CutPrefix(line, "-"); ok {
					delete(want, gone)
				} else {
					want[line] = true
				}
			}
			for _, line := range strings.Split(strings.ReplaceAll(l.show(out.Chain), " 0:0", ""), "\n") {
				if !want[line] {
					t.Errorf("there is %q", line)
				}
				delete(want, line)
			}
			for line := range want {
				t.Errorf("there is no %q", line)
			}
		})
	}
}

// Owners: numbers, names of the tree that is copied into, and of one that does not know them.
func TestOwners(t *testing.T) {
	l := newLab(t)
	dir := t.TempDir()
	put(t, dir, "d/f=F", "ln=->f")
	base := l.tree("etc/passwd=root:x:0:0::/:\nweb:x:33:34::/:\n", "etc/group=wheel:x:10:web\n")
	for user, want := range map[string]string{"7": "7:7", "7:8": "7:8", "web": "33:34", "web:wheel": "33:10", ":wheel": "0:10", "7:wheel": "7:10", "nobody": "0:0"} {
		out := l.must(l.op(llb.Copy(llb.Local("x"), "/", "/n/", dockerfile(), llb.WithUser(user)), false), base, l.context(dir))
		got := l.show(out.Chain)
		for _, line := range []string{"n 755 " + want + " /", "n/d 755 " + want + " /", "n/d/f 644 " + want + " F", "n/ln " + want + " -> f"} {
			if !strings.Contains(got+"\n", line+"\n") {
				t.Errorf("%s: no %q in\n%s", user, line, got)
			}
		}
	}
}

// What a context's files belong to on the host does not matter; what a stage's files belong to does.
func TestOwnersOfSources(t *testing.T) {
	l := newLab(t)
	dir := t.TempDir()
	put(t, dir, "f=F")
	os.Chown(dir+"/f", 1234, 1234)
	src := l.context(dir)
	out := l.must(l.op(llb.Copy(llb.Local("x"), "/f", "/f", dockerfile()), true), src)
	if got := l.show(out.Chain); got != "f 644 0:0 F" {
		t.Error(got)
	}
	src.Files.Owner = nil
	stage, _, err := l.o.Tree(context.Background(), src.Files, everything)
	if err != nil {
		t.Fatal(err)
	}
	out = l.must(l.op(llb.Copy(llb.Local("x"), "/f", "/f", dockerfile()), true), stage)
	if got := l.show(out.Chain); got != "f 644 1234:1234 F" {
		t.Error(got)
	}
}

// Hard links, holes, xattrs, capabilities, times, fifos and devices come along; sockets do not.
func TestAttributes(t *testing.T) {
	l := newLab(t)
	dir := t.TempDir()
	put(t, dir, "a=A", "x=X", "sub/")
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(os.Link(dir+"/a", dir+"/sub/b"))
	must(unix.Setxattr(dir+"/x", "user.color", []byte("red"), 0))
	capability := []byte{1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}
	must(unix.Setxattr(dir+"/x", "security.capability", capability, 0))
	must(unix.Mkfifo(dir+"/fifo", 0o622))
	must(unix.Chmod(dir+"/fifo", 0o622))
	must(unix.Mknod(dir+"/null", unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))))
	must(unix.Chmod(dir+"/null", 0o666))
	must(unix.Mknod(dir+"/socket", unix.S_IFSOCK|0o666, 0))
	f, err := os.Create(dir + "/sparse")
	must(err)
	_, err = f.WriteAt([]byte("end"), 8<<20)
	must(err)
	f.Close()
	big := bytes.Repeat([]byte("0123456789abcdef"), 40000)
	must(os.WriteFile(dir+"/big", big, 0o600))
	must(unix.Chmod(dir+"/x", 0o6711))
	old := time.Unix(1e9, 123456789)
	for _, name := range []string{"a", "sub", "fifo"} {
		must(os.Chtimes(filepath.Join(dir, name), old, old))
	}
	ctx := l.context(dir)
	stage := l.must(l.op(llb.Copy(llb.Local("x"), "/", "/", dockerfile()), true), ctx)
	for name, src := range map[string]build.Output{"context": ctx, "stage": stage} {
		out := l.must(l.op(llb.Copy(llb.Local("x"), "/", "/n/", dockerfile()), true), src)
		m, err := l.trees.View(context.Background(), out.Chain)
		must(err)
		root := "/proc/self/fd/" + itoa(int(m.Root.Fd())) + "/n/"
		stat := func(p string) (st unix.Stat_t) { must(unix.Lstat(root+p, &st)); return st }
		if a, b := stat("a"), stat("sub/b"); a.Ino != b.Ino || a.Nlink != 2 {
			t.Errorf("%s: hard links are %d and %d", name, a.Ino, b.Ino)
		}
		for _, p := range []string{"a", "sub", "fifo"} {
			if st := stat(p); st.Mtim.Nano() != old.UnixNano() {
				t.Errorf("%s: time of %s is %v", name, p, st.Mtim)
			}
		}
		var val [64]byte
		n, err := unix.Getxattr(root+"x", "user.color", val[:])
		if string(val[:max(n, 0)]) != "red" {
			t.Errorf("%s: xattr %q %v", name, val[:max(n, 0)], err)
		}
		n, err = unix.Getxattr(root+"x", "security.capability", val[:])
		if !bytes.Equal(val[:max(n, 0)], capability) {
			t.Errorf("%s: capability %x %v", name, val[:max(n, 0)], err)
		}
		if st := stat("x"); st.Mode&0o7777 != 0o6711 {
			t.Errorf("%s: mode of x %o", name, st.Mode)
		}
		if st := stat("sparse"); st.Size != 8<<20+3 || st.Blocks*512 > 1<<20 {
			t.Errorf("%s: sparse file of %d bytes takes %d", name, st.Size, st.Blocks*512)
		}
		if got, err := os.ReadFile(root + "big"); err != nil || !bytes.Equal(got, big) {
			t.Errorf("%s: big file: %d bytes, %v", name, len(got), err)
		}
		if st := stat("null"); st.Mode != unix.S_IFCHR|0o666 || st.Rdev != unix.Mkdev(1, 3) {
			t.Errorf("%s: device %o %d", name, st.Mode, st.Rdev)
		}
		if st := stat("fifo"); st.Mode != unix.S_IFIFO|0o622 {
			t.Errorf("%s: fifo %o", name, st.Mode)
		}
		if _, err := os.Lstat(root + "socket"); err == nil {
			t.Errorf("%s: a socket came along", name)
		}
		m.Close()
	}
}

func itoa(n int) string {
	return strings.TrimSpace(string(bytes.TrimLeft([]byte{byte('0' + n/1000%10), byte('0' + n/100%10), byte('0' + n/10%10), byte('0' + n%10)}, "0")))
}

// SOURCE_DATE_EPOCH: all that an action makes has the time that it is told.
func TestTimestamp(t *testing.T) {
	l := newLab(t)
	dir := t.TempDir()
	put(t, dir, "d/e/f=F", "g=G")
	at := time.Unix(1234567890, 0)
	a := llb.Mkdir("/m/n", 0o700, llb.WithParents(true), llb.WithCreatedTime(at)).Mkfile("/m/n/file", 0o600, nil, llb.WithCreatedTime(at)).
		Copy(llb.Local("x"), "/", "/a/b/", dockerfile(), llb.WithCreatedTime(at)).Symlink("x", "/s", llb.WithCreatedTime(at))
	out := l.must(l.op(a, true), l.context(dir))
	m, err := l.trees.View(context.Background(), out.Chain)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	for _, name := range []string{"m", "m/n/file", "a", "a/b", "a/b/d", "a/b/d/e", "a/b/d/e/f", "a/b/g", "s"} {
		var st unix.Stat_t
		if err := unix.Fstatat(int(m.Root.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil || st.Mtim.Sec != at.Unix() {
			t.Errorf("%s: %v, %v", name, st.Mtim, err)
		}
	}
}

func tarOf(t testing.TB, entries ...*tar.Header) []byte {
	var buf bytes.Buffer
	tw := tar.NewWriter(&buf)
	for _, h := range entries {
		body := h.Linkname
		if h.Typeflag == tar.TypeReg {
			h.Linkname, h.Size = "", int64(len(body))
		}
		if err := tw.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if h.Typeflag == tar.TypeReg {
			tw.Write([]byte(body))
		}
	}
	tw.Close()
	return buf.Bytes()
}

func entry(kind byte, name, body string) *tar.Header {
	return &tar.Header{Typeflag: kind, Name: name, Mode: 0o640, Uid: 5, Gid: 6, Linkname: body, ModTime: time.Unix(1e9, 0)}
}

// ADD unpacks local archives of all kinds, gives them to whom it is told, and copies what only looks like one.
func TestUnpack(t *testing.T) {
	l := newLab(t)
	dir := t.TempDir()
	plain := tarOf(t, entry(tar.TypeDir, "d/", ""), entry(tar.TypeReg, "d/f", "F"), entry(tar.TypeLink, "d/hard", "d/f"), entry(tar.TypeSymlink, "ln", "d"))
	var gz bytes.Buffer
	w := gzip.NewWriter(&gz)
	w.Write(plain)
	w.Close()
	enc, _ := zstd.NewWriter(nil)
	kinds := map[string][]byte{"a.tar": plain, "noname": gz.Bytes(), "a.zst": enc.EncodeAll(plain, nil)}
	for _, program := range []string{"xz", "bzip2"} {
		if p, err := exec.LookPath(program); err == nil {
			cmd := exec.Command(p, "-c")
			cmd.Stdin = bytes.NewReader(plain)
			if kinds["a."+program], err = cmd.Output(); err != nil {
				t.Fatal(err)
			}
		}
	}
	unpack := func(c *llb.CopyInfo) { c.AttemptUnpack = true }
	for name, data := range kinds {
		if err := os.WriteFile(dir+"/"+name, data, 0o644); err != nil {
			t.Fatal(err)
		}
		out := l.must(l.op(llb.Copy(llb.Local("x"), "/"+name, "/to/", dockerfile(unpack)), true), l.context(dir))
		want := "to 755 0:0 /\nto/d 640 5:6 /\nto/d/f 640 5:6 F\nto/d/hard 640 5:6 F\nto/ln 5:6 -> d"
		if got := l.show(out.Chain); got != want {
			t.Errorf("%s:\n%s", name, got)
		}
		out = l.must(l.op(llb.Copy(llb.Local("x"), "/"+name, "/", dockerfile(unpack)), true), l.context(dir)) // ADD rootfs.tar /
		if got := l.show(out.Chain); !strings.Contains(got, "d/f 640 5:6 F") {
			t.Errorf("%s into the root:\n%s", name, got)
		}
		out = l.must(l.op(llb.Copy(llb.Local("x"), "/"+name, "/to", dockerfile(unpack), llb.WithUser("9:8")), true), l.context(dir))
		if got := l.show(out.Chain); got != strings.ReplaceAll(strings.ReplaceAll(want, "5:6", "9:8"), "0:0", "9:8") {
			t.Errorf("%s, with owner:\n%s", name, got)
		}
	}
	put(t, dir, "text.tar=no archive", "gz.gz=\x1f\x8bnone", "nothing.tar=")
	for _, name := range []string{"text.tar", "gz.gz", "nothing.tar"} {
		out := l.must(l.op(llb.Copy(llb.Local("x"), "/"+name, "/to/", dockerfile(unpack)), true), l.context(dir))
		if got := l.show(out.Chain); !strings.Contains(got, "to/"+name+" 644") {
			t.Errorf("%s:\n%s", name, got)
		}
	}
	cut := append([]byte(nil), gz.Bytes()[:gz.Len()-12]...)
	os.WriteFile(dir+"/cut.gz", cut, 0o644)
	if _, err := l.do(l.op(llb.Copy(llb.Local("x"), "/cut.gz", "/to/", dockerfile(unpack)), true), l.context(dir)); err == nil {
		t.Error("a cut archive was unpacked")
	}
}

// Several outputs, an action on two others, and one that goes on with a tree that another one reads too.
func TestGraph(t *testing.T) {
	l := newLab(t)
	base := l.tree("f=F")
	a := llb.Mkfile("/one", 0o600, []byte("1"))
	out := l.must(l.op(a.Mkfile("/three", 0o600, nil).Rm("/f"), false), base)
	if got := l.show(out.Chain); got != "one 600 0:0 1\nthree 600 0:0 " {
		t.Error(got)
	}
	// a copy whose source is an action of the same op
	st := llb.Mkfile("/x", 0o600, []byte("x"))
	out = l.must(l.op(llb.Copy(st.WithState(llb.Scratch()), "/x", "/y"), false), base)
	if got := l.show(out.Chain); got != "f 644 0:0 F\ny 600 0:0 x" {
		t.Error(got)
	}
}

// Actions that fail say what they failed on, in paths of the tree.
func TestErrors(t *testing.T) {
	l := newLab(t)
	base := l.tree("f=F", "d/e=E")
	for _, c := range []struct {
		a    *llb.FileAction
		kind error
		want string
	}{
		{llb.Mkdir("/no/way", 0o755), nil, "mkdir /no/way: no such file or directory"},
		{llb.Mkdir("/f/x", 0o755, llb.WithParents(true)), nil, "/f"},
		{llb.Mkfile("/d", 0o600, nil), nil, "mkfile /d: is a directory"},
		{llb.Mkfile("/no/f", 0o600, nil), nil, "mkfile /no/f: no such file or directory"},
		{llb.Rm("/none"), errs.NotFound, "rm /none: no such file or directory"},
		{llb.Rm("/"), errs.Invalid, "rm /: the root cannot be removed"},
		{llb.Symlink("x", "/f"), nil, "symlink /f: file exists"},
		{llb.Copy(llb.Scratch().File(llb.Mkfile("/x", 0o600, nil)), "/x", "/", &llb.CopyInfo{Mode: &llb.ChmodOpt{ModeStr: "u=q"}}), errs.Invalid, `invalid mode: "u=q"`},
	} {
		in := []build.Output{base}
		if strings.Contains(c.want, "mode") {
			in = append(in, base)
			c.a = llb.Copy(llb.Local("x"), "/f", "/g", &llb.CopyInfo{Mode: &llb.ChmodOpt{ModeStr: "u=q"}})
		}
		_, err := l.do(l.op(c.a, false), in...)
		if err == nil || !strings.Contains(err.Error(), c.want) || c.kind != nil && !errors.Is(err, c.kind) {
			t.Errorf("%v, wanted %s", err, c.want)
		}
	}
	out := l.must(l.op(llb.Rm("/d*", llb.WithAllowWildcard(true)).Rm("/none", llb.WithAllowNotFound(true)).Mkdir("/f2", 0o700).Mkdir("/f2", 0o755), false), base)
	if got := l.show(out.Chain); got != "f 644 0:0 F\nf2 700 0:0 /" {
		t.Error(got)
	}
}
