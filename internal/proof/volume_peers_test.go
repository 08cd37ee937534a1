package proof

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"corten.dev/corten/internal/enginetest"
)

// volumeScript are commands of the docker client, which say the same at dockerd and at us.
var volumeScript = []string{
	"volume create pa --label a=b --label c",
	"volume create pa --label other=1", // as it is, whatever is asked
	"volume inspect -f {{json.Labels}} pa",
	"volume create --opt foo=bar pb", "volume create --opt type=tmpfs pb", "volume create --opt device=tmpfs pb", "volume create a/b", "volume create x", "volume create -d nowhere pb",
	"volume create --opt type=tmpfs --opt device=tmpfs --opt o=size=1m,uid=5 pt",
	"volume inspect -f {{json.Options}}{{json.Status}}{{.Scope}}{{.Driver}}{{json.UsageData}}{{.Mountpoint}} pt",
	"volume inspect nowhere",
	"volume ls -q --filter label=a", "volume ls -q --filter label=a=c", "volume ls -q --filter name=p", "volume ls -q --filter dangling=true", "volume ls --filter driver=local --format {{.Name}}:{{.Driver}}:{{.Scope}}",
	"volume rm nowhere", "volume rm -f nowhere",
	// Refused before anything is made.
	"create -v /foo:rw img", "create -v /foo:/bar:rw,ro img", "create -v :/bar img", "create -v a:b:c:d img", "create -v pa:bb img", "create -v pa:/ img", "create -v /etc:/ img",
	"create -v pa:/x:shared img", "create -v /etc:/x:nocopy img", "create -v pa:/x:what img", "create -v pa:/x -v pa:/x img", "create -v pa:/x --tmpfs /x img",
	"create --mount type=bind,src=/nowhere,dst=/x img", "create --mount type=bind,src=/tmp,dst=x img", "create --mount type=bind,dst=/x img", "create --mount type=bind,src=/tmp,dst=/ img",
	"create --mount type=tmpfs,src=/tmp,dst=/x img", "create --mount type=npipe,src=/tmp,dst=/x img", "create --mount type=cluster,src=a,dst=/x img", "create --mount type=what,dst=/x img",
	"create --mount type=bind,src=/tmp,dst=/x,bind-propagation=what img", "create --mount type=volume,dst=/x,readonly img", "create --mount type=volume,src=/abs,dst=/x img",
	"create --tmpfs x img", "create --volumes-from pnone img", "create -v pa:/x --mount type=volume,src=pa,dst=/x/ img",
	// What a container sees.
	`run --name one -v pa:/data -v /anon -v /etc:/t:ro,z --mount type=volume,src=pm,dst=/m,volume-label=q=r --tmpfs /tm:size=1m,mode=700,exec -v pt:/pt img sh -c "stat -c '%u:%g %a %n' /data /data/f /data/sub /data/sub/x /vol /vol/v /anon; echo two >/vol/v; touch /t/x 2>&1; df -k /pt | tail -n 1 | awk '{print $2, $6}'; stat -c '%u %n' /pt; grep -E ' /(tm|pt) ' /proc/mounts"`,
	"volume inspect -f {{json.Labels}} pm",
	"inspect one -f {{json.HostConfig.Binds}}{{json.HostConfig.Mounts}}{{json.Config.Volumes}}{{json.HostConfig.Tmpfs}}",
	"SORTED inspect one -f {{range.Mounts}}{{.Type}}:{{.Name}}:{{.Destination}}:{{.Driver}}:{{.Mode}}:{{.RW}}:{{.Propagation}}{{println}}{{end}}",
	"create --name two --volumes-from one:ro img cat /vol/v",
	"SORTED inspect two -f {{range.Mounts}}{{.Type}}:{{.Name}}:{{.Destination}}:{{.Driver}}:{{.Mode}}:{{.RW}}:{{.Propagation}}{{println}}{{end}}",
	"create --volumes-from one:what img", "create --volumes-from one:shared img", "create --volumes-from one:nocopy img",
	"start -a two",
	"volume rm pa",
	"rm -v one", "volume ls -q --filter dangling=true", "rm -v two", "volume ls -q --filter dangling=true",
	"volume prune -f --filter label=none", "volume rm pa pm pt", "volume ls -q",
}

// The same commands, by one client, at dockerd 20.10 and at us. What differs on purpose is not in the list:
//   - `volume create` and `--mount volume-opt=` for a volume that exists with other options: dockerd takes the options for nothing, we refuse them;
//   - `-o size=` without quotas: dockerd refuses, we make an image;
//   - volume-subpath, image mounts, prune --all, volume update: dockerd 20.10 does not know them, or takes them for nothing;
//   - U, idmap: ours alone;
//   - --volumes-from a container with --mount type=tmpfs: dockerd looks for a volume without a name;
//   - refusals of filters and of a directory over a file, whose words changed after 20.10, to those that we use.
func TestPeersVolumes(t *testing.T) {
	p := newPeers(t, "docker")
	image := peersImage(t)
	e := enginetest.New(t, "--bridge", "none", "--bip", "")
	e.Up()
	p.dockerd()
	moving := []struct {
		re   *regexp.Regexp
		with string
	}{
		{regexp.MustCompile(`\b[0-9a-f]{64}\b`), "ID"}, {regexp.MustCompile(regexp.QuoteMeta(p.dir + "/docker-data")), "ROOT"}, {regexp.MustCompile(regexp.QuoteMeta(filepath.Join(e.Dir, "d"))), "ROOT"},
	}
	run := func(socket string, stdin []byte, line string) string {
		line, sorted := strings.CutPrefix(line, "SORTED ")
		cmd := exec.CommandContext(p.deadline, "docker", append([]string{"-H", socket}, words(line)...)...)
		cmd.Env, cmd.Dir = p.env, p.dir
		if stdin != nil {
			cmd.Stdin = bytes.NewReader(stdin)
		}
		out, err := cmd.CombinedOutput()
		text := string(out)
		if err != nil {
			text += err.Error()
		}
		for _, m := range moving {
			text = m.re.ReplaceAllString(text, m.with)
		}
		if sorted {
			lines := strings.Split(text, "\n")
			slices.Sort(lines)
			text = strings.Join(lines, "\n")
		}
		return text
	}
	theirs, ours := "unix://"+p.dir+"/docker.sock", e.Socket()
	both := func(stdin []byte, line string) (a, b string) { // side by side: a client takes longer than what it asks for
		done := make(chan string, 1)
		go func() { done <- run(theirs, stdin, line) }()
		b = run(ours, stdin, line)
		return <-done, b
	}
	if a, b := both(image, "import -c 'VOLUME /vol' -c 'CMD [\"true\"]' - img"); strings.Contains(a+b, "exit status") {
		t.Fatal(a, b)
	}
	for _, line := range volumeScript {
		if a, b := both(nil, line); a != b {
			t.Errorf("docker %s\n  dockerd: %s\n  cortend: %s", line, a, b)
		}
	}
}

// words splits a command line: quotes as a shell's, without escapes.
func words(line string) (out []string) {
	var word strings.Builder
	quote, in := rune(0), false
	for _, c := range line {
		switch {
		case quote != 0 && c == quote:
			quote = 0
		case quote == 0 && (c == '\'' || c == '"'):
			quote, in = c, true
		case quote == 0 && c == ' ':
			if in {
				out = append(out, word.String())
			}
			word.Reset()
			in = false
		default:
			word.WriteRune(c)
			in = true
		}
	}
	if in {
		out = append(out, word.String())
	}
	return out
}

// peersImage is a file tree with busybox and a folder of somebody's.
func peersImage(t *testing.T) []byte {
	t.Helper()
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		t.Skip("needs a static busybox")
	}
	program, err := os.ReadFile(busybox)
	if err != nil {
		t.Fatal(err)
	}
	root := t.TempDir()
	for name, body := range map[string]string{"bin/busybox": string(program), "data/f": "hello\n", "data/sub/x": "x", "vol/v": "one\n", "etc/passwd": "root:x:0:0::/:/bin/sh\n"} {
		at := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(at), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(at, []byte(body), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, applet := range []string{"sh", "cat", "ls", "stat", "touch", "true", "echo", "awk", "df", "tail", "grep"} {
		if err := os.Symlink("busybox", filepath.Join(root, "bin", applet)); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"data", "data/f"} {
		if err := os.Chown(filepath.Join(root, name), 1000, 1001); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(filepath.Join(root, "data"), 0o750); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("tar", "-C", root, "-c", ".").Output()
	if err != nil {
		t.Fatal(err)
	}
	return out
}
