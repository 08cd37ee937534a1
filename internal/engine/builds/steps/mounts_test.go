package steps_test

import (
	"bytes"
	"context"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/moby/buildkit/solver/pb"

	"corten.dev/corten/internal/build"
	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/snapshot/plain"
)

func TestBinds(t *testing.T) {
	h := newHost(t)
	other, _ := h.do(h.sh("mkdir -p /src/sub; echo inside >/src/sub/file; ln -s /src/sub /link"))
	two := []build.Output{{Chain: h.base}, {Chain: other}}
	ro := h.sh("cat /in/file /one; touch /in/new 2>/dev/null || echo read-only",
		&pb.Mount{Dest: "/in", Input: 1, Output: -1, Readonly: true, Selector: "/link"}, &pb.Mount{Dest: "/one", Input: 1, Output: -1, Readonly: true, Selector: "src/sub/file"})
	ro.in = two
	chain, out := h.do(ro)
	if out != "inside\ninside\nread-only\n" {
		t.Errorf("read-only: %q", out)
	}
	if got := h.files(chain); got != "" {
		t.Errorf("mounts left %s", got)
	}
	rw := h.sh("echo more >>/in/sub/file; cat /in/sub/file; touch /made", &pb.Mount{Dest: "in", Input: 1, Output: -1, Selector: "/src"})
	rw.in = two
	rw.exec.Meta.Cwd = "/"
	chain, out = h.do(rw)
	if out != "inside\nmore\n" || h.files(chain) != "made:0" {
		t.Errorf("writable: %q, %s", out, h.files(chain))
	}
	own := h.sh("echo more >>/in/sub/file; touch /made", &pb.Mount{Dest: "/in", Input: 1, Output: 1, Selector: "/src"}, &pb.Mount{Dest: "/keep", Input: 1, Output: 2, Readonly: true},
		&pb.Mount{Dest: "/empty", Input: -1, Output: 3})
	own.exec.Meta.Args[2] += "; echo x >/empty/x"
	own.in = two
	made, _, err := h.try(own)
	must(t, err)
	if len(made.Outputs) != 4 || h.files(made.Outputs[0].Chain) != "made:0" || h.files(made.Outputs[1].Chain) != "src/:0 src/sub/:0 src/sub/file:12" || made.Outputs[2].Chain != other || h.files(made.Outputs[3].Chain) != "x:2" {
		t.Errorf("outputs: %+v", made.Outputs)
	}
	for _, sel := range []string{"/none", "/link/../../none"} {
		gone := h.sh("true", &pb.Mount{Dest: "/in", Input: 1, Output: -1, Readonly: true, Selector: sel})
		gone.in = two
		if _, _, err := h.try(gone); err == nil || !strings.Contains(err.Error(), "not found") {
			t.Errorf("%s: %v", sel, err)
		}
	}
	readOnlyRoot := h.sh("touch /x 2>/dev/null || echo read-only; touch /in/y && echo mounts are not", &pb.Mount{Dest: "/in", Input: -1, Output: -1})
	readOnlyRoot.exec.Mounts[0].Readonly = true
	if _, out := h.do(readOnlyRoot); out != "read-only\nmounts are not\n" {
		t.Error(out)
	}
}

func TestTmpfsAndCache(t *testing.T) {
	h := newHost(t)
	tmpfs := func(size int64) *pb.Mount {
		return &pb.Mount{Dest: "/scratch/deep", Input: -1, Output: -1, MountType: pb.MountType_TMPFS, TmpfsOpt: &pb.TmpfsOpt{Size: size}}
	}
	chain, out := h.do(h.sh("dd if=/dev/zero of=/scratch/deep/big bs=64k count=32 2>/dev/null || echo full", tmpfs(1<<20)))
	if out != "full\n" || h.files(chain) != "" {
		t.Errorf("%q, %s", out, h.files(chain))
	}
	cache := func(sel string) *pb.Mount {
		return &pb.Mount{Dest: "/root/.cache", Input: -1, Output: -1, MountType: pb.MountType_CACHE, Selector: sel, CacheOpt: &pb.CacheOpt{ID: "go"}}
	}
	chain, _ = h.do(h.sh("mkdir /root/.cache/sub; echo kept >/root/.cache/sub/x", cache("")))
	if got := h.files(chain); got != "root/:0" && got != "" { // the directory around is the same as before
		t.Errorf("a cache mount left %s", got)
	}
	if _, out := h.do(h.sh("cat /root/.cache/x", cache("/sub"))); out != "kept\n" {
		t.Error(out)
	}
	var all sync.WaitGroup
	for range 4 { // side by side they share one tree
		all.Go(func() {
			if _, out, err := h.try(h.sh("echo mine >>/root/.cache/all; cat /root/.cache/sub/x", cache(""))); err != nil || out != "kept\n" {
				t.Errorf("%v %q", err, out)
			}
		})
	}
	all.Wait()
	if _, out := h.do(h.sh("wc -l </root/.cache/all", cache(""))); strings.TrimSpace(out) != "4" {
		t.Error(out)
	}
}

const password = "correct-horse-battery-staple"

func TestSecrets(t *testing.T) {
	h := newHost(t)
	mounts := []*pb.Mount{
		{Dest: "/run/secrets/token", Input: -1, Output: -1, MountType: pb.MountType_SECRET, SecretOpt: &pb.SecretOpt{ID: "token", Uid: 500, Gid: 501, Mode: 0o440}},
		{Dest: "/run/secrets/none", Input: -1, Output: -1, MountType: pb.MountType_SECRET, SecretOpt: &pb.SecretOpt{ID: "none", Optional: true}},
	}
	r := h.sh("stat -c '%u:%g %a %s' /run/secrets/token; ls /run/secrets; case $(cat /run/secrets/token) in correct-*-staple) echo right; esac; case $TOKEN in correct-*-staple) echo too; esac; echo x 2>/dev/null >/run/secrets/token || echo no; exit 1", mounts...)
	r.exec.Secretenv = []*pb.SecretEnv{{ID: "token", Name: "TOKEN"}, {ID: "none", Name: "NONE", Optional: true}}
	r.session = &build.Session{Secrets: secrets{"token": password}}
	r.exec.Meta.ValidExitCodes = []int32{1}
	chain, out := h.do(r)
	if out != "500:501 440 28\ntoken\nright\ntoo\nno\n" || h.files(chain) != "" {
		t.Errorf("%q, %s", out, h.files(chain))
	}
	r.exec.Meta.ValidExitCodes = nil
	_, _, err := h.try(r)
	if err == nil || strings.Contains(err.Error(), password) {
		t.Error(err)
	}
	must(t, filepath.WalkDir(h.dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		data, err := os.ReadFile(path)
		if bytes.Contains(data, []byte(password)) {
			t.Errorf("%s holds the secret", path)
		}
		return err
	}))
	op, err := h.steps.Make(h.vertex(r))
	must(t, err)
	one, err := op.Key(t.Context(), r.env(nil), r.in)
	must(t, err)
	r.session = &build.Session{Secrets: secrets{"token": "another"}}
	two, err := op.Key(t.Context(), r.env(nil), r.in)
	must(t, err)
	if one != two {
		t.Error("the value of a secret is part of the key")
	}
	r.session = &build.Session{Secrets: secrets{"token": strings.Repeat("x", 600<<10)}}
	if _, _, err := h.try(r); err == nil || !strings.Contains(err.Error(), "are more than") {
		t.Error(err)
	}
}

// agent answers each connection with its number, and then with what it is told.
type agent struct {
	mu sync.Mutex
	n  int
}

func (a *agent) Offers(_ context.Context, id string) error {
	if id != "default" {
		return errs.New(errs.NotFound, "no agent %s", id)
	}
	return nil
}

func (a *agent) Dial(_ context.Context, id string) (io.ReadWriteCloser, error) {
	ours, theirs := net.Pipe()
	a.mu.Lock()
	a.n++
	n := a.n
	a.mu.Unlock()
	go func() {
		defer ours.Close()
		_, _ = ours.Write([]byte{'#', byte('0' + n), '\n'})
		_, _ = io.Copy(ours, ours)
	}()
	return theirs, nil
}

func TestSSH(t *testing.T) {
	h := newHost(t)
	mount := &pb.Mount{Dest: "/run/buildkit/ssh_agent.0", Input: -1, Output: -1, MountType: pb.MountType_SSH, SSHOpt: &pb.SSHOpt{ID: "default", Uid: 500, Gid: 501, Mode: 0o600}}
	r := h.sh("stat -c '%u:%g %a %F' /run/buildkit/ssh_agent.0; for i in 1 2; do /self dial /run/buildkit/ssh_agent.0 hello; done", mount)
	r.in[0].Chain = h.withSelf()
	r.session = &build.Session{SSH: &agent{}}
	chain, out := h.do(r)
	if out != "500:501 600 socket\n#1\nhello#2\nhello" || h.files(chain) != "" {
		t.Errorf("%q %s", out, h.files(chain))
	}
	// The frontend leaves the id of RUN --mount=type=ssh empty, and its mount is optional: with a client that knew its agent as "default" only, the step ran without one and nobody was told.
	mount.SSHOpt.ID, mount.SSHOpt.Optional = "", true
	r.exec.Meta.Args[2] = "/self dial /run/buildkit/ssh_agent.0 unnamed"
	if _, out := h.do(r); !strings.HasSuffix(out, "\nunnamed") {
		t.Errorf("%q", out)
	}
	mount.SSHOpt.ID = "other"
	r.exec.Meta.Args[2] = "ls /run 2>/dev/null || echo nothing"
	if _, out := h.do(r); out != "nothing\n" {
		t.Errorf("%q", out)
	}
}

// A driver without overlay mounts, whose trees are directories of the host, and a root that lacks everything: what the engine puts in leaves no trace there either.
func TestPlainTrees(t *testing.T) {
	h := newHostOn(t, func(root string, log *slog.Logger) (store, error) {
		return plain.New(plain.Options{Root: root, Logger: log})
	})
	other, _ := h.do(h.sh("mkdir -p /src/sub; echo inside >/src/sub/file; rm -r /etc; ln -s /run/systemd/resolv.conf /data/resolv.conf; ln -s /data /etc"))
	r := h.sh("cat /in/file; grep -c nameserver /etc/resolv.conf; touch /in/x 2>/dev/null || echo read-only; echo y >/c/y; touch /new",
		&pb.Mount{Dest: "/in", Input: 0, Output: -1, Readonly: true, Selector: "/src/sub"},
		&pb.Mount{Dest: "/c", Input: -1, Output: -1, MountType: pb.MountType_CACHE, CacheOpt: &pb.CacheOpt{ID: "c"}},
		&pb.Mount{Dest: "/c2", Input: -1, Output: -1, MountType: pb.MountType_CACHE, CacheOpt: &pb.CacheOpt{ID: "c"}})
	r.in[0].Chain = other
	chain, out := h.do(r)
	if !strings.HasPrefix(out, "inside\n") || !strings.HasSuffix(out, "read-only\n") || strings.HasPrefix(out, "inside\n0") {
		t.Error(out)
	}
	if got := h.files(chain); got != "new:0" {
		t.Errorf("the layer has %s", got)
	}
}
