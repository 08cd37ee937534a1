package proof

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"corten.dev/corten/internal/enginetest"
)

// dockerd starts Debian's docker engine with roots of its own, without a bridge and without packet rules.
func (p *peers) dockerd(env ...string) {
	p.t.Helper()
	path := "/usr/sbin/dockerd"
	if _, err := os.Stat(path); err != nil {
		if path, err = exec.LookPath("dockerd"); err != nil {
			p.t.Skip("needs dockerd")
		}
	}
	config := filepath.Join(p.dir, "daemon.json")
	if err := os.WriteFile(config, []byte("{}"), 0o644); err != nil {
		p.t.Fatal(err)
	}
	sock := p.dir + "/docker.sock"
	cmd := exec.Command(path, "-H", "unix://"+sock, "--data-root", p.dir+"/docker-data", "--exec-root", p.dir+"/docker-exec", "--pidfile", p.dir+"/docker.pid",
		"--storage-driver", "vfs", "--bridge=none", "--iptables=false", "--ip-forward=false", "--config-file", config)
	cmd.Env = env
	if err := p.daemon("unix", sock, cmd); err != nil {
		p.t.Skipf("dockerd does not start on this machine: %v", err)
	}
	p.run("docker", "version")
}

// docker.io takes what we pushed and gives what it built on it, and the digests it names are those we know.
func TestInteropDocker(t *testing.T) {
	p := newPeers(t, "docker", "skopeo")
	e := enginetest.New(t)
	e.Up()
	reg := enginetest.NewRegistry(t)
	p.dockerd()
	want := makeLayout(t, p.dir+"/in", "amd64", "arm64")
	name := reg.Addr + "/dck/one:v1"
	p.run("skopeo", "copy", "--all", "--dest-tls-verify=false", "oci:"+p.dir+"/in:v1", "docker://"+name)

	if out := p.run("docker", "pull", name); !strings.Contains(out, "Digest: "+want[0]) {
		t.Errorf("docker pulled the index as something else:\n%s", out)
	}
	e.Corten("pull", "-q", name)
	id := p.run("docker", "image", "inspect", "-f", "{{.Id}}", name)
	if ours := e.Corten("image", "inspect", "-f", "{{.Id}}", name); ours != id {
		t.Errorf("docker has %s, we have %s", id, ours)
	}
	p.run("docker", "tag", name, reg.Addr+"/dck/two:v1")
	pushed := p.run("docker", "push", reg.Addr+"/dck/two:v1")
	if got := inRegistry(t, reg.Addr, "dck/two", "v1"); !strings.Contains(pushed, "digest: "+got[0]) {
		t.Errorf("docker pushed something else than the registry has (%s):\n%s", got[0], pushed)
	}
	if !strings.Contains(pushed, "Mounted from dck/one") {
		t.Errorf("docker had to send layers that the registry has:\n%s", pushed)
	}
	e.Corten("pull", "-q", reg.Addr+"/dck/two:v1")
	if ours := e.Corten("image", "inspect", "-f", "{{.Id}}", reg.Addr+"/dck/two:v1"); ours != id {
		t.Errorf("docker pushed %s, we pulled %s", id, ours)
	}
	// What docker sent, its manifest of schema 2 too, goes out of our engine as it came.
	want = inRegistry(t, reg.Addr, "dck/two", "v1")
	e.Corten("tag", reg.Addr+"/dck/two:v1", reg.Addr+"/dck/three:v1")
	e.Corten("rmi", name)
	e.Corten("push", "-q", reg.Addr+"/dck/three:v1")
	same(t, "docker to us", want, inRegistry(t, reg.Addr, "dck/three", "v1"))
	p.run("docker", "rmi", "-f", id)
	if out := p.run("docker", "pull", reg.Addr+"/dck/three:v1"); !strings.Contains(out, "Digest: "+want[0]) {
		t.Errorf("docker pulled our push as something else:\n%s", out)
	}
	// An image that was made here.
	e.Corten("tag", importTiny(t, e), reg.Addr+"/dck/made:v1")
	e.Corten("push", "-q", reg.Addr+"/dck/made:v1")
	p.run("docker", "pull", "-q", reg.Addr+"/dck/made:v1")
	if theirs, ours := p.run("docker", "image", "inspect", "-f", "{{.Id}}", reg.Addr+"/dck/made:v1"), e.Corten("image", "inspect", "-f", "{{.Id}}", reg.Addr+"/dck/made:v1"); ours != theirs {
		t.Errorf("docker has %s, we have %s", theirs, ours)
	}
	p.run("docker", "pull", "-a", "-q", reg.Addr+"/dck/made")
	p.run("docker", "manifest", "inspect", "--insecure", reg.Addr+"/dck/one:v1")
	// docker's archives and ours are read by the other.
	p.run("docker", "save", "-o", p.dir+"/docker.tar", reg.Addr+"/dck/made:v1")
	e.Corten("rmi", reg.Addr+"/dck/made:v1")
	e.Corten("load", "-q", "-i", p.dir+"/docker.tar")
	e.Corten("save", "-o", p.dir+"/corten.tar", reg.Addr+"/dck/made:v1")
	made := p.run("docker", "image", "inspect", "-f", "{{.Id}}", reg.Addr+"/dck/made:v1")
	p.run("docker", "rmi", reg.Addr+"/dck/made:v1")
	p.run("docker", "load", "-q", "-i", p.dir+"/corten.tar")
	if again := p.run("docker", "image", "inspect", "-f", "{{.Id}}", reg.Addr+"/dck/made:v1"); again != made {
		t.Errorf("through archives %s became %s", made, again)
	}
}

// importTiny makes an image of one file; it gives its id.
func importTiny(t *testing.T, e *enginetest.Engine) string {
	t.Helper()
	cmd := exec.Command("tar", "-c", "-C", "/etc", "hostname")
	raw, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	imp := e.Client("import", "-c", `CMD ["/x"]`, "-")
	imp.Stdin = strings.NewReader(string(raw))
	out, err := imp.CombinedOutput()
	if err != nil {
		t.Fatalf("import: %v %s", err, out)
	}
	return strings.TrimSpace(string(out))
}

// Debian's docker-registry takes what we push, and gives it back as it was; what skopeo gave to it, we pull and push on.
func TestInteropDockerRegistry(t *testing.T) {
	p := newPeers(t, "docker-registry", "skopeo")
	e := enginetest.New(t)
	e.Up()
	ours := enginetest.NewRegistry(t)
	theirs := p.distribution()
	want := makeLayout(t, p.dir+"/in", "amd64", "arm64")

	p.run("skopeo", "copy", "--all", "--dest-tls-verify=false", "oci:"+p.dir+"/in:v1", "docker://"+theirs+"/dreg/one:v1")
	e.Corten("pull", "-q", "--all-platforms", theirs+"/dreg/one:v1")
	e.Corten("tag", theirs+"/dreg/one:v1", theirs+"/dreg/two:v1")
	e.Corten("push", "-q", theirs+"/dreg/two:v1")
	same(t, "docker-registry to us and back", want, inRegistry(t, theirs, "dreg/two", "v1"))
	e.Corten("tag", theirs+"/dreg/one:v1", ours.Addr+"/dreg/three:v1")
	e.Corten("push", "-q", ours.Addr+"/dreg/three:v1")
	same(t, "docker-registry to our registry", want, inRegistry(t, ours.Addr, "dreg/three", "v1"))
	p.run("skopeo", "copy", "--all", "--src-tls-verify=false", "--dest-tls-verify=false", "docker://"+ours.Addr+"/dreg/three:v1", "docker://"+theirs+"/dreg/four:v1")
	same(t, "our registry to docker-registry", want, inRegistry(t, theirs, "dreg/four", "v1"))
	if out := e.Corten("image", "tags", theirs+"/dreg/one"); out != "v1" {
		t.Errorf("tags: %s", out)
	}
	if out := e.Corten("manifest", "inspect", theirs+"/dreg/one:v1"); !strings.Contains(out, "arm64") {
		t.Errorf("manifest inspect: %s", out)
	}
	// Layers that were never compressed, both ways to compress them.
	id := importTiny(t, e)
	e.Corten("tag", id, "kept")
	for _, how := range []string{"gzip", "zstd"} {
		name := theirs + "/dreg/made:" + how
		e.Corten("tag", id, name)
		e.Corten("push", "-q", "--compression", how, name)
		e.Corten("rmi", name)
		inRegistry(t, theirs, "dreg/made", how)
	}
	if left := e.Corten("images", "-q", theirs+"/dreg/made"); left != "" {
		t.Errorf("left: %s", left)
	}
	for _, how := range []string{"zstd", "gzip"} {
		e.Corten("pull", "-q", theirs+"/dreg/made:"+how)
		if got := e.Corten("image", "inspect", "-f", "{{.Id}}", theirs+"/dreg/made:"+how); got != id {
			t.Errorf("%s: the image came back as %s", how, got)
		}
		e.Corten("rmi", theirs+"/dreg/made:"+how)
	}
	// An interrupted push to them leaves nothing that hinders the next one; a big layer goes in parts or not, as they like.
	big := make([]any, 0, 2)
	big = append(big, 5<<20, 3<<20)
	_, files := shipImage(t, ours.Addr, "dreg/big", "v1", big...)
	e.Corten("pull", "-q", ours.Addr+"/dreg/big:v1")
	e.Corten("tag", ours.Addr+"/dreg/big:v1", theirs+"/dreg/big:v1")
	push := e.Client("push", "-q", theirs+"/dreg/big:v1")
	if err := push.Start(); err != nil {
		t.Fatal(err)
	}
	_ = push.Process.Kill()
	_ = push.Wait()
	e.Corten("push", "-q", theirs+"/dreg/big:v1")
	same(t, "big layers", inRegistry(t, ours.Addr, "dreg/big", "v1"), inRegistry(t, theirs, "dreg/big", "v1"))
	e.Corten("rmi", theirs+"/dreg/big:v1", ours.Addr+"/dreg/big:v1")
	e.Corten("pull", "-q", theirs+"/dreg/big:v1")
	checkImage(t, e, theirs+"/dreg/big:v1", files)
}

// distribution starts Debian's docker-registry; it gives its address.
func (p *peers) distribution() string {
	p.t.Helper()
	addr := enginetest.Addr(p.t)
	config := filepath.Join(p.dir, "registry.yml")
	text := "version: 0.1\nstorage:\n  filesystem: {rootdirectory: " + p.dir + "/registry}\n  delete: {enabled: true}\nhttp: {addr: '" + addr + "'}\n"
	if err := os.WriteFile(config, []byte(text), 0o644); err != nil {
		p.t.Fatal(err)
	}
	if err := p.daemon("tcp", addr, exec.Command("docker-registry", "serve", config)); err != nil {
		p.t.Fatal(err)
	}
	return addr
}

// Images of podman and buildah, gzip and zstd, and an index made by buildah go through our registry and our engine without a change.
func TestInteropPodman(t *testing.T) {
	p := newPeers(t, "podman", "buildah", "skopeo")
	e := enginetest.New(t)
	e.Up()
	reg := enginetest.NewRegistry(t)
	at := "docker://" + reg.Addr + "/pod"

	if err := os.WriteFile(p.dir+"/file", []byte(strings.Repeat("some text ", 5000)), 0o644); err != nil {
		t.Fatal(err)
	}
	made := map[string]string{} // platform to id
	for _, arch := range []string{"amd64", "arm64"} {
		ctr := p.run("buildah", "from", "--arch", arch, "scratch")
		p.run("buildah", "copy", ctr, p.dir+"/file", "/"+arch)
		p.run("buildah", "config", "--cmd", "/x", "--label", "made=here", ctr)
		made[arch] = strings.TrimSpace(p.run("buildah", "commit", "-q", ctr, "localhost/made:"+arch))
		p.run("buildah", "rm", ctr)
	}
	for _, how := range []string{"gzip", "zstd"} {
		p.run("buildah", "push", "-q", "--tls-verify=false", "--compression-format", how, "localhost/made:amd64", at+"/"+how+":v1")
		want := inRegistry(t, reg.Addr, "pod/"+how, "v1")
		from, to := reg.Addr+"/pod/"+how+":v1", reg.Addr+"/pod2/"+how+":v1"
		e.Corten("pull", "-q", from)
		if got := e.Corten("image", "inspect", "-f", "{{.Id}}", from); got != "sha256:"+made["amd64"] {
			t.Errorf("buildah made %s, we have %s", made["amd64"], got)
		}
		e.Corten("tag", from, to)
		e.Corten("push", "-q", to)
		same(t, "buildah "+how+" to us", want, inRegistry(t, reg.Addr, "pod2/"+how, "v1"))
		e.Corten("rmi", from, to)
		if got := p.run("podman", "pull", "-q", "--tls-verify=false", to); got != made["amd64"] {
			t.Errorf("podman pushed %s, and pulled %s of us", made["amd64"], got)
		}
	}

	p.run("podman", "push", "-q", "--tls-verify=false", "--format", "v2s2", "localhost/made:amd64", reg.Addr+"/pod/s2:v1")
	want := inRegistry(t, reg.Addr, "pod/s2", "v1")
	e.Corten("pull", "-q", reg.Addr+"/pod/s2:v1")
	e.Corten("tag", reg.Addr+"/pod/s2:v1", reg.Addr+"/pod/s2:v2")
	e.Corten("push", "-q", reg.Addr+"/pod/s2:v2")
	same(t, "podman's schema 2 to us", want, inRegistry(t, reg.Addr, "pod/s2", "v2"))

	p.run("buildah", "manifest", "create", "localhost/both")
	for arch, id := range made {
		p.run("buildah", "manifest", "add", "--arch", arch, "localhost/both", "containers-storage:"+id)
	}
	p.run("buildah", "manifest", "push", "-q", "--all", "--tls-verify=false", "localhost/both", at+"/both:v1")
	want = inRegistry(t, reg.Addr, "pod/both", "v1")
	e.Corten("pull", "-q", "--all-platforms", reg.Addr+"/pod/both:v1")
	e.Corten("tag", reg.Addr+"/pod/both:v1", reg.Addr+"/pod/both:v2")
	e.Corten("push", "-q", reg.Addr+"/pod/both:v2")
	same(t, "buildah's index to us", want, inRegistry(t, reg.Addr, "pod/both", "v2"))
	for arch, id := range made {
		if got := p.run("podman", "pull", "-q", "--tls-verify=false", "--arch", arch, reg.Addr+"/pod/both:v2"); got != id {
			t.Errorf("podman pulled %s for %s, and made %s", got, arch, id)
		}
		if got := e.Corten("manifest", "inspect", reg.Addr+"/pod/both:v2"); !strings.Contains(got, arch) {
			t.Errorf("%s is not in %s", arch, got)
		}
	}
	// A list that we make of them, podman and skopeo take.
	list := reg.Addr + "/pod/list:v1"
	var parts []string
	for arch := range made {
		p.run("podman", "push", "-q", "--tls-verify=false", "localhost/made:"+arch, reg.Addr+"/pod/part:"+arch)
		parts = append(parts, reg.Addr+"/pod/part:"+arch)
	}
	e.Corten(append([]string{"manifest", "create", list}, parts...)...)
	e.Corten("manifest", "push", "--purge", list)
	p.run("skopeo", "copy", "--all", "--src-tls-verify=false", "docker://"+list, "oci:"+p.dir+"/list:v1")
	same(t, "our list", inRegistry(t, reg.Addr, "pod/list", "v1"), inLayout(t, p.dir+"/list"))
	for arch, id := range made {
		if got := p.run("podman", "pull", "-q", "--tls-verify=false", "--arch", arch, list); got != id {
			t.Errorf("podman pulled %s for %s of our list, and made %s", got, arch, id)
		}
	}
	p.run("podman", "rmi", "-af")
}
