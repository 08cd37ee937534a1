package containers_test

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"corten.dev/corten/internal/busyboxtree"
	"corten.dev/corten/internal/content"
	"corten.dev/corten/internal/engine/containers"
	"corten.dev/corten/internal/enginetest"
	"corten.dev/corten/internal/image"
	"corten.dev/corten/internal/monitor"
	"corten.dev/corten/internal/monitor/monitortest"
	"corten.dev/corten/internal/network"
	"corten.dev/corten/internal/runtime"
	"corten.dev/corten/internal/runtime/foreign"
	"corten.dev/corten/internal/snapshot/overlay"
	"corten.dev/corten/internal/volume"
)

// host is the service over the real rooms, with folders, bridge and table of its own.
type host struct {
	t        testing.TB
	dir      string
	execRoot string
	program  string
	opts     containers.Options
	svc      *containers.Service
	net      *network.Local
	mons     *monitor.Pool
	vols     *volume.LocalStore
	imgs     *image.Images
	ground   enginetest.Ground
}

// program is the path of a monitor that is built from the source as it is; without a Go tool it is the embedded one (empty).
func newHost(t testing.TB) *host {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	if _, err := os.Stat("/bin/busybox"); err != nil {
		t.Skip("needs busybox-static")
	}
	h := &host{t: t, program: monitortest.Binary(t), dir: t.TempDir(), execRoot: t.TempDir(), ground: enginetest.NewGround(t)}
	log := slog.New(slog.NewTextHandler(t.Output(), nil))
	trees, err := overlay.New(overlay.Options{Root: h.dir + "/snapshots", Logger: log})
	must(t, err)
	t.Cleanup(func() { must(t, trees.Close()) })
	blobs, err := content.New(content.Options{Root: h.dir + "/content", Logger: log})
	must(t, err)
	h.imgs, err = image.New(image.Options{Root: h.dir + "/images", Snapshots: trees, Content: blobs, Logger: log})
	must(t, err)
	t.Cleanup(func() { must(t, h.imgs.Close()) })
	h.vols, err = volume.New(volume.Options{Root: h.dir + "/volumes", Logger: log})
	must(t, err)
	t.Cleanup(func() { must(t, h.vols.Close()) })
	h.opts = containers.Options{
		Root: h.dir + "/containers", ExecRoot: h.execRoot, Trees: trees, Images: h.imgs, Volumes: h.vols, Log: log, CgroupParent: "/" + h.ground.Table,
		Runtime: containers.OverRuntimes(runtime.New(runtime.Options{Root: h.execRoot + "/runtime", Logger: log}), foreign.New(foreign.Options{Root: h.execRoot + "/runtimes"}), func(name string) bool { return name == "corten" }),
	}
	h.open()
	t.Cleanup(h.end)
	_, err = h.imgs.Import(t.Context(), bytes.NewReader(busybox(t)), image.ImportOptions{Ref: "busybox", Changes: []string{`CMD ["sh"]`, `ENV WHERE=image`}})
	must(t, err)
	return h
}

// open is what an engine does when it starts.
func (h *host) open() {
	h.t.Helper()
	log := h.opts.Log
	var err error
	h.net, err = network.New(network.Options{
		Root: h.dir + "/networks", ExecRoot: h.execRoot, Table: h.ground.Table, Bridge: h.ground.Bridge, BIP: h.ground.BIP, Pools: []network.PoolRange{{Base: h.ground.Pool, Size: 24}}, Logger: log,
	})
	must(h.t, err)
	h.mons, err = monitor.New(monitor.Options{Root: h.execRoot + "/monitors", Program: h.program, Logger: log})
	must(h.t, err)
	h.opts.Networks, h.opts.Monitors = h.net, h.mons
	h.svc, err = containers.New(h.opts)
	must(h.t, err)
}

// close is what an engine does when it ends in order.
func (h *host) close() {
	h.t.Helper()
	must(h.t, h.svc.Close())
	must(h.t, h.mons.Close())
	must(h.t, h.net.Close())
}

func (h *host) end() {
	list, err := h.svc.List(context.Background(), containers.ListOptions{All: true})
	if err != nil {
		h.t.Error(err)
	}
	for _, view := range list {
		if err := h.svc.Remove(context.Background(), view.ID, containers.RemoveOptions{Force: true, Volumes: true}); err != nil {
			h.t.Error(err)
		}
	}
	h.close()
	for _, dir := range []string{"cpu", "cpuacct", "cpuset", "memory", "devices", "freezer", "blkio", "pids", "systemd", "unified", "cpu,cpuacct", "net_cls", "perf_event", "hugetlb", "misc", "rdma", ""} {
		_ = os.Remove(filepath.Join("/sys/fs/cgroup", dir, h.ground.Table))
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// run creates and starts a container and returns its id.
func (h *host) run(req containers.CreateRequest) string {
	h.t.Helper()
	made, err := h.svc.Create(context.Background(), req)
	must(h.t, err)
	must(h.t, h.svc.Start(context.Background(), made.ID, ""))
	return made.ID
}

func (h *host) wait(id string, cond containers.WaitCondition) containers.Ended {
	h.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	c, err := h.svc.Wait(ctx, id, cond)
	must(h.t, err)
	select {
	case end := <-c:
		return end
	case <-ctx.Done():
		h.t.Fatalf("%s: not %s after a minute", id, cond)
		return containers.Ended{}
	}
}

// sh asks for a container that runs a shell command.
func sh(script string) containers.CreateRequest {
	var req containers.CreateRequest
	req.Config.Image = "busybox"
	req.Config.Cmd = []string{"sh", "-c", script}
	return req
}

func (h *host) logs(id string) string {
	h.t.Helper()
	var b bytes.Buffer
	must(h.t, h.svc.Logs(context.Background(), id, containers.LogOptions{Stdout: true, Stderr: true, Tail: -1}, func(bool) (io.Writer, error) { return &b, nil }))
	return unframe(h.t, b.Bytes())
}

func unframe(t testing.TB, b []byte) string {
	t.Helper()
	var out []byte
	for len(b) >= 8 {
		n := int(b[4])<<24 | int(b[5])<<16 | int(b[6])<<8 | int(b[7])
		out = append(out, b[8:8+n]...)
		b = b[8+n:]
	}
	return string(out)
}

// pipe gives a connection for Hijack, and the other end.
func pipe(t testing.TB) (ours net.Conn, hijack func(bool) (net.Conn, []byte, error)) {
	t.Helper()
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	must(t, err)
	defer l.Close()
	ours, err = net.Dial("unix", l.Addr().String())
	must(t, err)
	theirs, err := l.Accept()
	must(t, err)
	t.Cleanup(func() { ours.Close() })
	return ours, func(bool) (net.Conn, []byte, error) { return theirs, nil, nil }
}

// busybox is a root file system of the host's static busybox.
func busybox(t testing.TB) []byte {
	t.Helper()
	tree, err := busyboxtree.Tar(busyboxtree.Path)
	must(t, err)
	return tree
}
