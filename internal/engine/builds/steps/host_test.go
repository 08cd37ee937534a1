package steps_test

import (
	"archive/tar"
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/moby/buildkit/solver/pb"
	"github.com/opencontainers/go-digest"

	"corten.dev/corten/internal/build"
	"corten.dev/corten/internal/build/step"
	"corten.dev/corten/internal/busyboxtree"
	"corten.dev/corten/internal/engine/builds/steps"
	"corten.dev/corten/internal/engine/hostspec"
	"corten.dev/corten/internal/enginetest"
	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/network"
	"corten.dev/corten/internal/snapshot"
	"corten.dev/corten/internal/snapshot/overlay"
)

// testCgroups is the folder of the cgroups of this process, and of the engines that it starts and kills.
var testCgroups = cmp.Or(os.Getenv("CORTEN_TEST_CGROUPS"), fmt.Sprintf("/corten-steps-test-%d", os.Getpid()))

// host is the executor and the ops over the real rooms, with folders, bridge and table of its own.
type host struct {
	t     testing.TB
	dir   string
	log   *slog.Logger
	trees store
	net   *network.Local
	exec  *steps.Executor
	steps *step.Steps
	base  snapshot.ChainID

	ground enginetest.Ground
}

// store is a driver of the snapshot room.
type store interface {
	snapshot.Store
	Close() error
}

func newHost(t testing.TB) *host {
	t.Helper()
	return newHostOn(t, func(root string, log *slog.Logger) (store, error) {
		return overlay.New(overlay.Options{Root: root, Logger: log, Skeletons: map[string][]string{"": {".dockerenv"}, snapshot.StepSkeleton: {"dev/", "etc/", "etc/hosts", "etc/resolv.conf", "proc/", "sys/"}}})
	})
}

func newHostOn(t testing.TB, open func(root string, log *slog.Logger) (store, error)) *host {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	if _, err := os.Stat("/bin/busybox"); err != nil {
		t.Skip("needs busybox-static")
	}
	h := &host{t: t, dir: t.TempDir(), log: slog.New(slog.NewTextHandler(t.Output(), nil))}
	var err error
	h.trees, err = open(h.dir+"/snapshots", h.log)
	must(t, err)
	t.Cleanup(func() { must(t, h.trees.Close()) })
	h.ground = enginetest.NewGround(t)
	h.net, err = network.New(network.Options{
		Root: h.dir + "/networks", ExecRoot: h.dir + "/run", Table: h.ground.Table, Bridge: h.ground.Bridge, BIP: h.ground.BIP, Logger: h.log,
	})
	must(t, err)
	must(t, h.net.Settle(t.Context()))
	t.Cleanup(func() { must(t, h.net.Close()) })
	h.open()
	t.Cleanup(func() {
		must(t, h.exec.Close())
		for _, dir := range []string{"cpu", "cpuacct", "cpuset", "memory", "devices", "freezer", "blkio", "pids", "systemd", "unified", "cpu,cpuacct", "net_cls", "perf_event", "hugetlb", "misc", "rdma", ""} {
			if err := os.Remove(filepath.Join("/sys/fs/cgroup", dir, testCgroups)); err != nil && !errors.Is(err, os.ErrNotExist) {
				t.Error(err)
			}
		}
	})
	layer, err := h.trees.Apply(t.Context(), "", "", bytes.NewReader(busybox(t)))
	must(t, err)
	h.base = layer.Chain
	return h
}

// open is what an engine does when it starts.
func (h *host) open() {
	h.t.Helper()
	var err error
	h.exec, err = steps.New(h.t.Context(), steps.Options{
		Root: h.dir + "/run/steps", Networks: h.net, Log: h.log, Maker: &hostspec.Maker{Security: hostspec.NewSecurity("", h.log), CgroupParent: testCgroups},
	})
	must(h.t, err)
	h.steps, err = step.New(h.t.Context(), step.Options{Executor: h.exec, Trees: h.trees, Caches: &caches{trees: h.trees}, Log: h.log})
	must(h.t, err)
}

// gateway is the host as containers see it.
func (h *host) gateway() string { return h.ground.BIP.Addr().String() }

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// caches are cache mounts, all shared.
type caches struct {
	trees step.Trees
	mu    sync.Mutex
}

func (c *caches) Acquire(ctx context.Context, id string, base snapshot.ChainID, _ pb.CacheSharingOpt) (string, func(), error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	key := "cache-" + digest.FromString(id+"\x00"+string(base)).Encoded()
	err := c.trees.Prepare(ctx, key, base, snapshot.Options{})
	if errors.Is(err, errs.Conflict) {
		err = nil
	}
	return key, func() {}, err
}

// progress keeps what a step says.
type progress struct {
	mu  sync.Mutex
	out bytes.Buffer
}

func (p *progress) Log(_ int, data []byte) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.out.Write(data)
}
func (p *progress) Status(string, int64, int64, bool) {}
func (p *progress) Warn(build.Warning)                {}
func (p *progress) String() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.out.String()
}

// run is one exec op that is made for a test.
type run struct {
	exec    *pb.ExecOp
	in      []build.Output
	session *build.Session
	ctx     context.Context
}

// sh is a step that runs a shell command on the base.
func (h *host) sh(script string, mounts ...*pb.Mount) *run {
	return &run{
		ctx: h.t.Context(),
		exec: &pb.ExecOp{
			Meta:   &pb.Meta{Args: []string{"/bin/sh", "-c", script}, Cwd: "/", RemoveMountStubsRecursive: true},
			Mounts: append([]*pb.Mount{{Dest: "/", Input: 0, Output: 0}}, mounts...),
		},
		in: []build.Output{{Chain: h.base}},
	}
}

func (h *host) vertex(r *run) *build.Vertex {
	return &build.Vertex{Name: "RUN", Op: &pb.Op{Op: &pb.Op_Exec{Exec: r.exec}}, Inputs: make([]build.Edge, len(r.in))}
}

func (r *run) env(p build.Progress) build.Env {
	return build.Env{Progress: p, Session: func(context.Context, string) (*build.Session, error) {
		if r.session == nil {
			return nil, errs.New(errs.NotFound, "no session")
		}
		return r.session, nil
	}}
}

func (h *host) try(r *run) (build.Made, string, error) {
	h.t.Helper()
	op, err := h.steps.Make(h.vertex(r))
	must(h.t, err)
	var p progress
	made, err := op.Run(r.ctx, r.env(&p), r.in)
	return made, p.String(), err
}

// do runs a step that must succeed, and gives its chain and output.
func (h *host) do(r *run) (snapshot.ChainID, string) {
	h.t.Helper()
	made, out, err := h.try(r)
	if err != nil {
		h.t.Fatalf("%v\n%s", err, out)
	}
	if len(made.Outputs) == 0 {
		return "", out
	}
	return made.Outputs[0].Chain, out
}

// files lists a layer: names with their types and sizes.
func (h *host) files(chain snapshot.ChainID) string {
	h.t.Helper()
	var b bytes.Buffer
	must(h.t, h.trees.LayerTar(h.t.Context(), chain, &b))
	var names []string
	tr := tar.NewReader(&b)
	for {
		hdr, err := tr.Next()
		if err != nil {
			break
		}
		names = append(names, fmt.Sprintf("%s:%d", hdr.Name, hdr.Size))
	}
	return strings.Join(names, " ")
}

// busybox is a root file system of the host's static busybox.
func busybox(t testing.TB) []byte {
	t.Helper()
	tree, err := busyboxtree.Tar(busyboxtree.Path)
	must(t, err)
	return tree
}
