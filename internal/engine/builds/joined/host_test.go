package joined_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/opencontainers/go-digest"

	"corten.dev/corten/internal/build"
	"corten.dev/corten/internal/busyboxtree"
	"corten.dev/corten/internal/content"
	"corten.dev/corten/internal/engine/builds"
	"corten.dev/corten/internal/engine/builds/joined"
	"corten.dev/corten/internal/engine/builds/steps"
	"corten.dev/corten/internal/engine/hostspec"
	"corten.dev/corten/internal/engine/images"
	"corten.dev/corten/internal/enginetest"
	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/events"
	"corten.dev/corten/internal/image"
	"corten.dev/corten/internal/network"
	"corten.dev/corten/internal/reference"
	"corten.dev/corten/internal/registry/client"
	"corten.dev/corten/internal/snapshot"
	"corten.dev/corten/internal/snapshot/overlay"
)

// testCgroups is the folder of this process's cgroups.
var testCgroups = fmt.Sprintf("/corten-builds-test-%d", os.Getpid())

// host is the service over the real rooms, with folders, bridge and table of its own.
type host struct {
	t      testing.TB
	dir    string
	log    *slog.Logger
	trees  *overlay.Store
	images *image.Images
	net    *network.Local
	exec   *steps.Executor
	*joined.Joined
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func newHost(t testing.TB) *host {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	if _, err := os.Stat("/bin/busybox"); err != nil {
		t.Skip("needs busybox-static")
	}
	h := &host{t: t, dir: t.TempDir(), log: slog.New(slog.NewTextHandler(t.Output(), nil))}
	var err error
	h.trees, err = overlay.New(overlay.Options{Root: h.dir + "/snapshots", Logger: h.log, Skeletons: map[string][]string{snapshot.StepSkeleton: {"dev/", "etc/", "etc/hosts", "etc/resolv.conf", "proc/", "sys/"}}})
	must(t, err)
	t.Cleanup(func() { must(t, h.trees.Close()) })
	blobs, err := content.New(content.Options{Root: h.dir + "/content", Logger: h.log})
	must(t, err)
	h.images, err = image.New(image.Options{Root: h.dir + "/images", Snapshots: h.trees, Content: blobs, Logger: h.log})
	must(t, err)
	t.Cleanup(func() { must(t, h.images.Close()) })
	ground := enginetest.NewGround(t)
	h.net, err = network.New(network.Options{
		Root: h.dir + "/networks", ExecRoot: h.dir + "/run", Table: ground.Table, Bridge: ground.Bridge, BIP: ground.BIP, Logger: h.log,
	})
	must(t, err)
	must(t, h.net.Settle(t.Context()))
	t.Cleanup(func() { must(t, h.net.Close()) })
	h.exec, err = steps.New(t.Context(), steps.Options{
		Root: h.dir + "/run/steps", Networks: h.net, Log: h.log, Maker: &hostspec.Maker{Security: hostspec.NewSecurity("", h.log), CgroupParent: testCgroups},
	})
	must(t, err)
	t.Cleanup(func() {
		must(t, h.exec.Close())
		for _, dir := range []string{"cpu", "cpuacct", "cpuset", "memory", "devices", "freezer", "blkio", "pids", "systemd", "unified", "cpu,cpuacct", "net_cls", "perf_event", "hugetlb", "misc", "rdma", ""} {
			if err := os.Remove(filepath.Join("/sys/fs/cgroup", dir, testCgroups)); err != nil && !errors.Is(err, os.ErrNotExist) {
				t.Error(err)
			}
		}
	})
	_, err = h.images.Import(t.Context(), bytes.NewReader(busybox(t)), image.ImportOptions{Ref: "busybox:latest", Changes: []string{"ENV PATH=/bin", `CMD ["sh"]`}})
	must(t, err)
	bus := &events.Bus{}
	bases := images.NewBases(images.New(images.Options{Store: h.images, Containers: nobody{}, Events: bus, Transfers: h.images, Blobs: images.OverContent(blobs), Registry: noRegistry{}, Log: h.log}))
	h.Joined, err = joined.Open(t.Context(), joined.Rooms{
		Root: h.dir + "/builds", Trees: h.trees, Images: h.images, Bases: bases, Executor: h.exec, Snapshots: h.dir + "/snapshots",
		Entitlements: []string{"network.host"}, Events: bus, Log: h.log,
	})
	must(t, err)
	t.Cleanup(func() { must(t, h.Joined.Close()) })
	return h
}

type nobody struct{}

func (nobody) ImageUsers(digest.Digest) (stopped, running []string) { return nil, nil }

// noRegistry stands for all registries: none answers.
type noRegistry struct{ client.Registry }

func (noRegistry) Repository(ref reference.Ref, _ client.Credentials) (client.Repository, error) {
	return nil, errs.New(errs.Unavailable, "%s: no such host", ref.Domain)
}

// folder is a build context on this host.
type folder struct {
	t   testing.TB
	dir string
}

func (f folder) Open(_ context.Context, _ string, opts build.ContextOptions) (*build.Files, func(), error) {
	d, err := os.Open(f.dir)
	if err != nil {
		return nil, nil, err
	}
	return &build.Files{Root: d, Include: opts.Include, Exclude: opts.Exclude, Follow: opts.Follow, Key: f.dir, Owner: &[2]uint32{}}, func() { d.Close() }, nil
}

// context writes a build context.
func (h *host) context(files map[string]string) *build.Session {
	h.t.Helper()
	dir := h.t.TempDir()
	for name, text := range files {
		path := filepath.Join(dir, name)
		must(h.t, os.MkdirAll(filepath.Dir(path), 0o755))
		must(h.t, os.WriteFile(path, []byte(text), 0o644))
	}
	return &build.Session{Contexts: folder{h.t, dir}}
}

// output collects what a build says.
type output struct {
	mu   sync.Mutex
	logs strings.Builder
	hits map[digest.Digest]bool
	done map[digest.Digest]string
}

func (o *output) status(st build.Status) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.hits == nil {
		o.hits, o.done = map[digest.Digest]bool{}, map[digest.Digest]string{}
	}
	for _, l := range st.Logs {
		o.logs.Write(l.Data)
	}
	for _, v := range st.Vertexes {
		if v.Completed != nil {
			o.done[v.Digest] = v.Name
			o.hits[v.Digest] = v.Cached
		}
	}
}

// cached tells which steps were.
func (o *output) cached() (hit, run []string) {
	for d, name := range o.done {
		if o.hits[d] {
			hit = append(hit, name)
		} else {
			run = append(run, name)
		}
	}
	return hit, run
}

// build builds a Dockerfile into the image store.
func (h *host) build(ses *build.Session, name string, change func(*builds.Request)) (builds.Response, *output, error) {
	out := &output{}
	req := builds.Request{
		Frontend: "dockerfile.v0", FrontendAttrs: map[string]string{}, Session: ses, Status: out.status,
		Exports: []builds.Export{{Type: "image", Attrs: map[string]string{"name": name}}},
	}
	if change != nil {
		change(&req)
	}
	resp, err := h.Build(h.t.Context(), req)
	return resp, out, err
}

// cat reads a file of an image.
func (h *host) cat(img, name string) string {
	h.t.Helper()
	got, err := h.images.Get(h.t.Context(), img)
	must(h.t, err)
	m, err := h.trees.View(h.t.Context(), got.Chain)
	must(h.t, err)
	defer m.Close()
	f, err := os.Open("/proc/self/fd/" + itoa(int(m.Root.Fd())) + name)
	if err != nil {
		return err.Error()
	}
	defer f.Close()
	data, err := io.ReadAll(f)
	must(h.t, err)
	return string(data)
}

// busybox is a root file system of the host's static busybox.
func busybox(t testing.TB) []byte {
	t.Helper()
	tree, err := busyboxtree.Tar(busyboxtree.Path)
	must(t, err)
	return tree
}
