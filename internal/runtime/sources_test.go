package runtime

import (
	"os"
	"testing"

	"corten.dev/corten/internal/linux/mount"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// A mount without a path on the host, such as a secret in memory, is attached as any bind mount is, with its options.
func TestDetachedSources(t *testing.T) {
	needRoot(t)
	fs, err := mount.FS("tmpfs", "tmpfs", mount.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer fs.Close()
	fd, err := unix.Openat(int(fs.Fd()), "secret", unix.O_CREAT|unix.O_WRONLY|unix.O_CLOEXEC, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	file := os.NewFile(uintptr(fd), "secret")
	defer file.Close()
	if _, err := file.WriteString("hush\n"); err != nil {
		t.Fatal(err)
	}
	var holder mount.Holder
	sources := map[string]*os.File{}
	for name, at := range map[string]*os.File{"a file": file, "a directory": fs} {
		tree, release, err := holder.Clone(fs, at)
		if err != nil {
			t.Fatal(err)
		}
		defer release()
		defer tree.Close()
		sources[name] = tree
	}
	spec := dockerSpec(rootfs(t), "/bin/sh", "-c", "cat /run/secret /whole/secret; touch /run/secret 2>/dev/null || echo read-only; touch /whole/new && echo writable")
	spec.Mounts = append(spec.Mounts,
		specs.Mount{Type: "bind", Source: "a file", Destination: "/run/secret", Options: []string{"bind", "ro"}},
		specs.Mount{Type: "bind", Source: "a directory", Destination: "/whole", Options: []string{"bind"}})
	b, err := create(t, newRuntime(Options{Root: t.TempDir()}), RunOptions{Spec: spec, Bundle: "/", Sources: sources})
	if err != nil {
		t.Fatal(err)
	}
	if out, code := b.wait(t); code != 0 || out != "hush\nhush\nread-only\nwritable\n" {
		t.Errorf("%d %q", code, out)
	}
}
