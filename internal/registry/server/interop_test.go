package server_test

import (
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	ggcr "github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/validate"
)

// tool runs a program that others wrote, and skips the test if it is not installed.
func tool(t *testing.T, args ...string) string {
	t.Helper()
	path, err := exec.LookPath(args[0])
	if err != nil {
		t.Skip(args[0], " is not installed")
	}
	cmd := exec.CommandContext(t.Context(), path, args[1:]...)
	cmd.Dir = t.TempDir()
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v: %s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// TestSkopeo copies an index between an OCI layout and the registry, both ways: the digests stay.
func TestSkopeo(t *testing.T) {
	_, ts := newRegistry(t, nil)
	host := hostOf(t, ts.URL)
	index := must[v1.ImageIndex](t)(ggcr.Index(50<<10, 3, 2))
	dir := t.TempDir()
	want := must[v1.Hash](t)(index.Digest())
	tag := must[name.Tag](t)(name.NewTag(host + "/skopeo/index:v1"))
	ok(t, remote.WriteIndex(tag, index))
	tool(t, "skopeo", "copy", "--all", "--preserve-digests", "--src-tls-verify=false", "docker://"+host+"/skopeo/index:v1", "oci:"+filepath.Join(dir, "to")+":v1")
	tool(t, "skopeo", "copy", "--all", "--preserve-digests", "--dest-tls-verify=false", "oci:"+filepath.Join(dir, "to")+":v1", "docker://"+host+"/skopeo/back:v2")
	back := must[v1.ImageIndex](t)(remote.Index(must[name.Tag](t)(name.NewTag(host + "/skopeo/back:v2"))))
	if got := must[v1.Hash](t)(back.Digest()); got != want {
		t.Errorf("went out as %s, came back as %s", want, got)
	}
	ok(t, validate.Index(back))
	if out := tool(t, "skopeo", "list-tags", "--tls-verify=false", "docker://"+host+"/skopeo/back"); !strings.Contains(out, `"v2"`) {
		t.Errorf("tags are %s", out)
	}
	tool(t, "skopeo", "inspect", "--raw", "--tls-verify=false", "docker://"+host+"/skopeo/back@"+want.String())
	tool(t, "skopeo", "delete", "--tls-verify=false", "docker://"+host+"/skopeo/back:v2")
	if _, err := remote.Index(must[name.Tag](t)(name.NewTag(host + "/skopeo/back:v2"))); err == nil {
		t.Error("it is still there after skopeo deleted it")
	}
}

func TestPodman(t *testing.T) {
	if testing.Short() {
		t.Skip("podman takes seconds")
	}
	_, ts := newRegistry(t, nil)
	host := hostOf(t, ts.URL)
	img := must[v1.Image](t)(ggcr.Image(50<<10, 2))
	ok(t, remote.Write(must[name.Tag](t)(name.NewTag(host+"/podman/image:v1")), img))
	dir := t.TempDir()
	podman := func(args ...string) string {
		t.Helper()
		return tool(t, append([]string{"podman", "--root", filepath.Join(dir, "root"), "--runroot", filepath.Join(dir, "run"), "--storage-driver", "vfs"}, args...)...)
	}
	podman("pull", "-q", "--tls-verify=false", host+"/podman/image:v1")
	podman("push", "-q", "--tls-verify=false", host+"/podman/image:v1", host+"/podman/other:v2")
	back := must[v1.Image](t)(remote.Image(must[name.Tag](t)(name.NewTag(host + "/podman/other:v2"))))
	ok(t, validate.Image(back))
	if a, b := must[v1.Hash](t)(img.ConfigName()), must[v1.Hash](t)(back.ConfigName()); a != b {
		t.Errorf("the image was %s and is %s", a, b)
	}
}
