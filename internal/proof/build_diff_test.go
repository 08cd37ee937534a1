package proof

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"corten.dev/corten/internal/busyboxtree"
	"corten.dev/corten/internal/enginetest"
	"corten.dev/corten/internal/tarfs"
)

// differentialContext is what the differential builds copy from.
func differentialContext(t *testing.T, dir string) {
	t.Helper()
	put(t, dir, map[string]string{
		"file": "the file", "other": "O", "a.txt": "text a", "b.txt": "B", "with space": "S", "dir/a": "1", "dir/b.txt": "2", "dir/sub/c": "3", "dir/sub/d.log": "4", "deep/x/y/z": "5", "secret": "6", "tool": "7",
		"logs/one.log": "8", "logs/keep.log": "9", "etc/passwd": "root:x:0:0::/:/bin/sh\nweb:x:33:34::/:/bin/sh\n", "etc/group": "root:x:0:\nweb:x:34:\nstaff:x:50:\n", "[x]": "10",
	})
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(os.Mkdir(dir+"/empty", 0o711))
	must(os.Chmod(dir+"/empty", 0o711))
	must(os.Chmod(dir+"/secret", 0o600))
	must(unix.Chmod(dir+"/tool", 0o4755))
	must(os.Chmod(dir+"/dir/sub", 0o750))
	must(os.Chown(dir+"/other", 1234, 1234))
	must(os.Symlink("file", dir+"/ln"))
	must(os.Symlink("../file", dir+"/dir/up"))
	must(os.Symlink("/nowhere", dir+"/dir/dangling"))
	must(os.Link(dir+"/file", dir+"/hard"))
	var raw, packed bytes.Buffer
	tw := tar.NewWriter(&raw)
	for _, h := range []tar.Header{
		{Typeflag: tar.TypeDir, Name: "./", Mode: 0o700}, {Typeflag: tar.TypeDir, Name: "in/", Mode: 0o750, Uid: 3, Gid: 4}, {Typeflag: tar.TypeReg, Name: "in/file", Mode: 0o4711, Uid: 5, Gid: 6, Size: 1},
		{Typeflag: tar.TypeLink, Name: "hard", Linkname: "in/file", Mode: 0o4711, Uid: 5, Gid: 6}, {Typeflag: tar.TypeSymlink, Name: "ln", Linkname: "in/file"}, {Typeflag: tar.TypeReg, Name: "implied/f", Mode: 0o644, Size: 1},
		{Typeflag: tar.TypeFifo, Name: "fifo", Mode: 0o600},
	} {
		must(tw.WriteHeader(&h))
		if h.Size > 0 {
			_, err := tw.Write([]byte("x"))
			must(err)
		}
	}
	must(tw.Close())
	zw := gzip.NewWriter(&packed)
	_, err := zw.Write(raw.Bytes())
	must(err)
	must(zw.Close())
	must(os.WriteFile(dir+"/arch.tar", raw.Bytes(), 0o644))
	must(os.WriteFile(dir+"/arch.tgz", packed.Bytes(), 0o640))
	must(os.WriteFile(dir+"/.dockerignore", []byte("logs/*\n!logs/keep.log\nDockerfile*\n**/*.bak\n"), 0o644))
}

// tolerated is what Docker's own builders do not agree on, so that it may differ anywhere.
var tolerated = []string{
	`+WorkingDir "/"`,   // BuildKit's frontend names the working directory of what comes from scratch
	"+ArgsEscaped true", // BuildKit's frontend marks commands in shell form
}

// differential are builds that both docker.io's classic builder and we do, with the lines in which the results differ, and why. A line begins with "-" when only docker.io has it, with "+" when
// only we do. What does not differ is not listed.
var differential = []struct {
	name, file string
	differs    []string
}{
	{name: "everything", file: "FROM scratch\nCOPY . /\n", differs: []string{setuid("-/tool", "0:0"), setuid("+/tool", "0:0")}},
	{name: "names", file: "FROM scratch\nCOPY file /f\nCOPY file /new/\nCOPY file /p/q/r\nCOPY [\"with space\", \"/sp ace/\"]\nCOPY dir /d\nCOPY dir/ /e/\nCOPY dir/sub empty /both/\n"},
	{name: "patterns", file: "FROM scratch\nCOPY *.txt /t/\nCOPY d?r/s*b /s/\nCOPY dir/*.txt file /m/\nCOPY [[]x] /x\n"},
	{name: "links", file: "FROM scratch\nCOPY ln /l\nCOPY ln /d/\nCOPY dir/up /up\n"},
	{name: "hard links", file: "FROM scratch\nCOPY file hard /h/\n"},
	{name: "workdir", file: "FROM scratch\nWORKDIR /w/x\nCOPY file .\nCOPY dir sub\nWORKDIR y\nCOPY file ./\nCOPY file ../up\n"},
	{name: "owners", file: "FROM scratch\nCOPY etc /etc\nCOPY --chown=7:8 dir /d\nCOPY --chown=web other /w/\nCOPY --chown=web:staff other secret /ws/\nCOPY --chown=9 tool /nine\n",
		differs: []string{setuid("-/nine", "9:9"), setuid("+/nine", "9:9")}},
	{name: "archives", file: "FROM scratch\nADD arch.tar /a\nADD arch.tgz /b/\nADD file /c\nCOPY arch.tar /d\nADD --chown=7:8 arch.tar /e\nADD arch.tar arch.tgz /f/\n", differs: []string{ // the classic builder forgets --chown for what it unpacks
		"-/e 040755 0:0", "-/e/fifo 010600 0:0", "-/e/hard 104711 5:6 2d711642", "-/e/implied 040755 0:0", "-/e/implied/f 100644 0:0 2d711642", "-/e/in 040750 3:4",
		"-/e/in/file 104711 5:6 2d711642 = /e/hard", "-/e/ln 120777 0:0 -> in/file",
		"+/e 040755 7:8", "+/e/fifo 010600 7:8", "+/e/hard 104711 7:8 2d711642", "+/e/implied 040755 7:8", "+/e/implied/f 100644 7:8 2d711642", "+/e/in 040750 7:8",
		"+/e/in/file 104711 7:8 2d711642 = /e/hard", "+/e/ln 120777 7:8 -> in/file",
	}},
	{name: "stages", file: "FROM scratch AS one\nCOPY --chown=5:6 dir /src/dir\nCOPY secret tool /src/\nFROM scratch\nCOPY --from=one /src /all\nCOPY --from=one /src/dir/sub/ /sub/\nCOPY --from=0 /src/tool /t\n",
		differs: []string{setuid("-/all/tool", "0:0"), setuid("+/all/tool", "0:0"), setuid("-/t", "0:0"), setuid("+/t", "0:0")}},
	{name: "over what is there", file: "FROM base\nCOPY dir /d\nCOPY file /d/a\nCOPY dir/sub /d\nCOPY a.txt /d/sub/c\nCOPY deep /d/sub\n"},
	{name: "arguments", file: "ARG v=x\nFROM scratch\nARG v\nARG w=deep\nENV e=${w:-none} f=\"$v b\" g=${nothing:-dir}\nCOPY $e /$e\nCOPY ${g}/sub /${g:+yes}\nLABEL l=$e \"m n\"='o $e' k=\"$f\"\n"},
	{name: "config", file: "FROM scratch\nMAINTAINER somebody\nENV a=1 b=\"2 3\"\nENV c 4 5\nEXPOSE 80 81/udp 90-92\nVOLUME /v /w\nVOLUME [\"/x y\"]\nUSER 7:8\nWORKDIR /w\nENTRYPOINT [\"/e\", \"x\"]\nCMD [\"c\"]\n" +
		"STOPSIGNAL SIGKILL\nHEALTHCHECK --interval=3s --timeout=4s --start-period=5s --retries=6 CMD [\"/h\"]\nSHELL [\"/s\", \"-c\"]\nONBUILD COPY x /x\nLABEL a=b\nCOPY file /\n",
		differs: []string{"-/w 040755 0:0", "+/w 040755 7:8"}}, // BuildKit makes a working directory for the user
	{name: "shell forms", file: "FROM scratch\nCOPY file /\nENTRYPOINT run this\nCMD and that\nHEALTHCHECK CMD look here\n"},
	{name: "run", file: "FROM base\nCOPY dir /d\nRUN rm -r /d/sub && mkdir /made && chmod 1777 /made && echo hi > /made/f && chown 3:4 /made/f && ln -s /made /to && ln /made/f /made/g\nCOPY file /to/\nCOPY dir /d\nRUN rm /made/f\nUSER 5\nRUN id -u > /tmp/who\nWORKDIR /by/five\nCOPY file there\n",
		differs: []string{"-/by 040755 0:0", "-/by/five 040755 0:0", "+/by 040755 5:5", "+/by/five 040755 5:5"}},
	{name: "link in the way", file: "FROM base\nRUN mkdir /real && ln -s real /rel && ln -s /real /abs && ln -s ../../../../real /out && ln -s /real/new /dangling\nCOPY file /rel/\nCOPY a.txt /abs/\nCOPY b.txt /out/\nCOPY dir /rel/dir/\n"},
}

// setuid is the line of a program with that bit: the classic builder loses it when it sets the owner after the mode, BuildKit keeps it.
func setuid(name, owner string) string {
	mode := "104755"
	if name[0] == '-' {
		mode = "100755"
	}
	return fmt.Sprintf("%s %s %s 7902699b", name, mode, owner)
}

// TestDifferentialBuild builds the same with docker.io's classic builder and with us: file trees, modes, owners and configs are equal but for what is listed.
func TestDifferentialBuild(t *testing.T) {
	if testing.Short() {
		t.Skip("the classic builder takes a second for each step")
	}
	p := newPeers(t, "docker")
	// The classic builder makes a container for every step.
	deadline, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	p.deadline = deadline
	e := enginetest.New(t)
	e.Up()
	p.dockerd()
	dir := p.dir + "/context"
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	differentialContext(t, dir)
	base, err := busyboxtree.Tar(busyboxtree.Path)
	if err != nil {
		t.Skip(err)
	}
	if err := os.WriteFile(p.dir+"/base.tar", base, 0o644); err != nil {
		t.Fatal(err)
	}
	p.run("docker", "import", p.dir+"/base.tar", "base")
	e.Corten("import", p.dir+"/base.tar", "base")
	p.env = append(p.env, "DOCKER_BUILDKIT=0")
	for i, c := range differential {
		t.Run(c.name, func(t *testing.T) {
			file := fmt.Sprintf("%s/Dockerfile.%d", dir, i)
			if err := os.WriteFile(file, []byte(c.file), 0o644); err != nil {
				t.Fatal(err)
			}
			name := fmt.Sprintf("diff:%d", i)
			if out, err := p.try("docker", "build", "--network", "none", "-f", file, "-t", name, dir); err != nil {
				t.Fatalf("docker.io: %v\n%s", err, out)
			}
			if out, err := e.Try("build", "--network", "none", "-f", file, "-t", name, dir); err != nil {
				t.Fatalf("corten: %v\n%s", err, out)
			}
			theirs, ours := fmt.Sprintf("%s/theirs.%d.tar", p.dir, i), fmt.Sprintf("%s/ours.%d.tar", p.dir, i)
			p.run("docker", "save", "-o", theirs, name)
			e.Corten("save", "-o", ours, name)
			want, got := imageLines(t, theirs), imageLines(t, ours)
			var differs []string
			for _, line := range want {
				if !slices.Contains(got, line) {
					differs = append(differs, "-"+line)
				}
			}
			for _, line := range got {
				if !slices.Contains(want, line) {
					differs = append(differs, "+"+line)
				}
			}
			for _, line := range differs {
				if !slices.Contains(c.differs, line) && !slices.Contains(tolerated, line) {
					t.Errorf("%s", line)
				}
			}
			for _, line := range c.differs {
				if !slices.Contains(differs, line) {
					t.Errorf("no longer so: %s", line)
				}
			}
		})
	}
}

// imageLines tells what is in an image of an archive, one line for each file and each setting.
func imageLines(t *testing.T, archive string) []string {
	t.Helper()
	dir, root := t.TempDir(), t.TempDir()
	f, err := os.Open(archive)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	extract(t, dir, f, tarfs.Literal)
	var manifest []struct {
		Config string
		Layers []string
	}
	data, err := os.ReadFile(dir + "/manifest.json")
	if err == nil {
		err = json.Unmarshal(data, &manifest)
	}
	if err != nil || len(manifest) != 1 {
		t.Fatal(err, manifest)
	}
	for _, layer := range manifest[0].Layers {
		l, err := os.Open(filepath.Join(dir, layer))
		if err != nil {
			t.Fatal(err)
		}
		extract(t, root, l, tarfs.ApplyTo)
		l.Close()
	}
	return append(treeLines(t, root), configLines(t, filepath.Join(dir, manifest[0].Config))...)
}

func extract(t *testing.T, dir string, f *os.File, how tarfs.Whiteouts) {
	t.Helper()
	root, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	var r io.Reader = f
	head := make([]byte, 2)
	if n, _ := f.ReadAt(head, 0); n == 2 && head[0] == 0x1f && head[1] == 0x8b {
		if r, err = gzip.NewReader(f); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := tarfs.Extract(context.Background(), root, r, tarfs.Options{Whiteouts: how}); err != nil {
		t.Fatal(err)
	}
}

func treeLines(t *testing.T, root string) (lines []string) {
	t.Helper()
	links := map[uint64]string{}
	err := filepath.WalkDir(root, func(p string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(p, &st); err != nil {
			return err
		}
		name := strings.TrimPrefix(p, root)
		line := fmt.Sprintf("%s %06o %d:%d", name, st.Mode, st.Uid, st.Gid)
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFREG:
			data, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			line += fmt.Sprintf(" %x", sha256.Sum256(data))[:9]
			if first, ok := links[st.Ino]; ok && st.Nlink > 1 {
				line += " = " + first
			}
			links[st.Ino] = name
		case unix.S_IFLNK:
			target, err := os.Readlink(p)
			if err != nil {
				return err
			}
			line += " -> " + target
		case unix.S_IFCHR, unix.S_IFBLK:
			line += fmt.Sprint(" ", st.Rdev)
		}
		if name != "" {
			lines = append(lines, line)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return lines
}

// configLines are the settings of an image, without what tells who made it and when.
func configLines(t *testing.T, name string) (lines []string) {
	t.Helper()
	var img struct {
		Architecture, OS, Author string
		Config                   map[string]json.RawMessage
	}
	data, err := os.ReadFile(name)
	if err == nil {
		err = json.Unmarshal(data, &img)
	}
	if err != nil {
		t.Fatal(err)
	}
	lines = append(lines, "architecture "+img.Architecture, "os "+img.OS, "author "+img.Author)
	for key, value := range img.Config {
		switch text := string(value); {
		case text == "null" || text == `""` || text == "[]" || text == "{}" || text == "false":
		case key == "Image" || key == "Hostname" || key == "Domainname": // of the container that the classic builder made the layer in
		case key == "Env":
			var env []string
			if err := json.Unmarshal(value, &env); err != nil {
				t.Fatal(err)
			}
			for _, v := range env {
				lines = append(lines, "Env "+v)
			}
		default:
			var sorted any
			if err := json.Unmarshal(value, &sorted); err != nil {
				t.Fatal(err)
			}
			again, err := json.Marshal(sorted)
			if err != nil {
				t.Fatal(err)
			}
			lines = append(lines, key+" "+string(again))
		}
	}
	slices.Sort(lines)
	return lines
}
