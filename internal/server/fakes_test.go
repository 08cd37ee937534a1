package server_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"corten.dev/corten/internal/container"
	"corten.dev/corten/internal/engine/containers"
	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/filter"
	"corten.dev/corten/internal/network"
	"corten.dev/corten/internal/runtime"
	"corten.dev/corten/internal/server"
	"corten.dev/corten/internal/snapshot"
)

const (
	webID  = "4fa6e0f0c6786287e131c3852c58a2e01cc697a68231826813597e4994f1d6e2"
	jobID  = "9cd87474be90b9a1c1e1e1e1e1e1e1e1e1e1e1e1e1e1e1e1e1e1e1e1e1e1e1e1"
	execID = "bbbb0f0c6786287e131c3852c58a2e01cc697a68231826813597e4994f1d6e2a"
	netID  = "7d86d31b1478e7cca9ebed7e73aa0fdeec46c5ca29497431d3007d2d9e15ed99"
	imgID  = digest.Digest("sha256:1111111111111111111111111111111111111111111111111111111111111111")
	diffA  = digest.Digest("sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa")
	diffB  = digest.Digest("sha256:bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb")
)

var birth = time.Date(2026, 1, 2, 3, 4, 5, 600000000, time.UTC)

// engine is a whole engine in memory: a running container "web", an exited "job", one image, volume and user network. It notes what it was asked.
type engine struct {
	mu    sync.Mutex
	asked map[string]any
	err   error // given by every verb when set
	// refused is given by Run once it has the connection.
	refused error
}

func (e *engine) note(verb string, what any) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.asked == nil {
		e.asked = map[string]any{}
	}
	e.asked[verb] = what
	return e.err
}

func (e *engine) got(verb string) any {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.asked[verb]
}

func options(e *engine) server.Options {
	return server.Options{
		Containers: fakeContainers{e}, Images: fakeImages{e}, Registries: fakeRegistries{e}, Volumes: fakeVolumes{e}, Networks: fakeNetworks{e}, System: fakeSystem{e},
		Version: server.VersionInfo{Version: "1.2.3", Commit: "abc", BuildTime: "2026-01-02T03:04:05Z", Kernel: "6.1.0"}, Driver: "overlay",
	}
}

// serve starts a server on a unix socket and returns its path.
func serve(t testing.TB, e *engine) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "srv") // t.TempDir may be too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	path := dir + "/s"
	l, err := server.Listen("unix://"+path, "", nil)
	if err != nil {
		t.Fatal(err)
	}
	s := server.New(options(e))
	done := make(chan error, 1)
	go func() { done <- s.Serve(l) }()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := s.Shutdown(ctx); err != nil {
			t.Errorf("shutdown: %v", err)
		}
		if err := <-done; err != nil {
			t.Errorf("serve: %v", err)
		}
		if _, err := os.Lstat(path); err == nil {
			t.Error("the socket is left behind")
		}
		os.RemoveAll(dir)
	})
	return path
}

func web() containers.View {
	init, rw, root := true, int64(12), int64(4096)
	stop := 5
	v := containers.View{Driver: "overlay", LogPath: "/data/containers/web/log", HostnamePath: "/data/web/hostname", HostsPath: "/data/web/hosts", ResolvConfPath: "/data/web/resolv.conf"}
	v.ID, v.Name, v.Created, v.Image, v.ImageRef, v.Platform = webID, "web", birth, imgID, "busybox", "linux/amd64"
	v.Path, v.Args = "httpd", []string{"-f", "two words"}
	v.Config = container.Config{Hostname: "4fa6e0f0c678", Image: "busybox", AttachStdout: true}
	v.Config.Env, v.Config.Cmd = []string{"PATH=/bin"}, []string{"httpd", "-f", "two words"}
	v.Config.Labels = map[string]string{"tier": "front"}
	v.Config.ExposedPorts = map[string]struct{}{"80/tcp": {}, "443/tcp": {}}
	v.Config.StopTimeout = &stop
	v.Host = container.Host{
		NetworkMode: "bridge", Binds: []string{"/src:/dst:ro"}, Init: &init, ShmSize: 64 << 20, IpcMode: "private", CgroupnsMode: "private", Runtime: "corten",
		Log: container.LogConfig{Type: "local"}, Restart: container.RestartPolicy{Name: "on-failure", MaxRetries: 3},
		Ports:       []network.Port{{Proto: "tcp", ContainerPort: 80, HostPort: 8080, HostPortEnd: 8090}},
		Annotations: map[string]string{"a": "b"},
		Mounts:      []container.MountRequest{{Type: "volume", Source: "data", Target: "/data", NoCopy: true}},
	}
	v.Host.Resources.Memory = 1 << 26
	v.Networks = map[string]container.EndpointSettings{"bridge": {}, "blue": {Aliases: []string{"www"}, IPv4: netip.MustParseAddr("10.1.0.9")}}
	v.Sandbox = &network.Sandbox{
		Owner: webID,
		Endpoints: []network.Endpoint{
			{Network: "bridge", NetworkID: strings.Repeat("b", 64), ID: strings.Repeat("e", 64), Interface: "eth0", MAC: "02:42:ac:11:00:02",
				IPv4: netip.MustParsePrefix("172.17.0.2/16"), Gateway4: netip.MustParseAddr("172.17.0.1")},
			{Network: "blue", NetworkID: netID, ID: strings.Repeat("f", 64), Interface: "eth1", MAC: "02:42:0a:01:00:09",
				IPv4: netip.MustParsePrefix("10.1.0.9/24"), DNSNames: []string{"web", "www", "4fa6e0f0c678"}},
		},
		Ports: []network.Port{{Proto: "tcp", ContainerPort: 80, HostIP: netip.MustParseAddr("0.0.0.0"), HostPort: 8081}, {Proto: "tcp", ContainerPort: 80, HostIP: netip.MustParseAddr("::"), HostPort: 8081}},
	}
	v.Mounts = []container.Mount{
		{Type: "bind", Source: "/src", Target: "/dst", Mode: "ro", Propagation: "rprivate"},
		{Type: "volume", Name: "data", Source: "/data/volumes/data/_data", Target: "/data", Driver: "local", Mode: "z", RW: true},
	}
	v.State = container.State{Status: container.Running, PID: 4711, StartedAt: birth.Add(time.Second)}
	v.SizeRw, v.SizeRootFs = &rw, &root
	return v
}

func job() containers.View {
	v := containers.View{Driver: "overlay"}
	v.ID, v.Name, v.Created, v.Image, v.ImageRef, v.Platform = jobID, "job", birth, imgID, "busybox:latest", "linux/amd64"
	v.Path = "false"
	v.Config = container.Config{Tty: true, OpenStdin: true}
	v.Config.Cmd = []string{"false"}
	v.Host = container.Host{NetworkMode: "none"}
	v.Networks = map[string]container.EndpointSettings{"none": {}}
	v.State = container.State{Status: container.Exited, ExitCode: 1, StartedAt: birth, FinishedAt: birth.Add(time.Second), Error: "boom"}
	return v
}

type fakeContainers struct{ e *engine }

var _ containers.API = fakeContainers{}

func find(ref string) (containers.View, error) {
	switch ref {
	case "web", webID, webID[:12]:
		return web(), nil
	case "job", jobID, jobID[:12]:
		return job(), nil
	}
	return containers.View{}, errs.New(errs.NotFound, "No such container: %s", ref)
}

func (f fakeContainers) verb(verb, ref string, what any) error {
	if err := f.e.note(verb, what); err != nil {
		return err
	}
	_, err := find(ref)
	return err
}

func (f fakeContainers) Create(_ context.Context, req containers.CreateRequest) (containers.Created, error) {
	if err := f.e.note("create", req); err != nil {
		return containers.Created{}, err
	}
	if req.Config.Image == "nosuch" {
		return containers.Created{}, errs.New(errs.NotFound, "No such image: nosuch:latest")
	}
	return containers.Created{ID: webID, Warnings: nil}, nil
}
func (f fakeContainers) Start(_ context.Context, ref string, keys string) error {
	if ref == "web" {
		return errs.New(errs.NotModified, "container web is running")
	}
	if ref == "nocmd" {
		return errs.New(errs.NoCommand, "start nocmd: exec: \"nope\": executable file not found in $PATH")
	}
	return f.verb("start", ref, keys)
}
func (f fakeContainers) Stop(_ context.Context, ref string, o containers.StopOptions) error {
	return f.verb("stop", ref, o)
}
func (f fakeContainers) Restart(_ context.Context, ref string, o containers.StopOptions) error {
	return f.verb("restart", ref, o)
}
func (f fakeContainers) Kill(_ context.Context, ref, sig string) error {
	return f.verb("kill", ref, sig)
}
func (f fakeContainers) Pause(_ context.Context, ref string) error { return f.verb("pause", ref, nil) }
func (f fakeContainers) Unpause(_ context.Context, ref string) error {
	return f.verb("unpause", ref, nil)
}
func (f fakeContainers) Rename(_ context.Context, ref, name string) error {
	return f.verb("rename", ref, name)
}
func (f fakeContainers) Remove(_ context.Context, ref string, o containers.RemoveOptions) error {
	return f.verb("remove", ref, o)
}
func (f fakeContainers) Wait(ctx context.Context, ref string, cond containers.WaitCondition) (<-chan containers.Ended, error) {
	if err := f.verb("wait", ref, cond); err != nil {
		return nil, err
	}
	c := make(chan containers.Ended, 1)
	if ref == "job" {
		c <- containers.Ended{Code: 1}
	}
	return c, nil
}
func (f fakeContainers) Edit(_ context.Context, ref string, req containers.EditRequest) (containers.Edited, error) {
	if ref != "web" {
		return containers.Edited{}, errs.New(errs.NotFound, "No such container: %s", ref)
	}
	return containers.Edited{Changes: []string{fmt.Sprintf("%v %v %v %v %v", req.Publish, req.Env, req.Binds, req.Undo, req.Restart)}, How: containers.EditLive}, nil
}

func (f fakeContainers) Upgrade(_ context.Context, _ string, req containers.UpgradeRequest) (containers.Edited, error) {
	return containers.Edited{Changes: []string{req.Image + " " + req.Grace.String()}, How: containers.EditRestart}, nil
}

func (f fakeContainers) Update(_ context.Context, ref string, req containers.UpdateRequest) ([]string, error) {
	return nil, f.verb("update", ref, req)
}
func (f fakeContainers) Prune(_ context.Context, args filter.Args) (containers.Pruned, error) {
	return containers.Pruned{Deleted: []string{jobID}, Space: 12}, f.e.note("prune", args)
}
func (f fakeContainers) List(_ context.Context, o containers.ListOptions) ([]containers.View, error) {
	list := []containers.View{web()}
	if o.All {
		list = append(list, job())
	}
	if !o.Size {
		for i := range list {
			list[i].SizeRw, list[i].SizeRootFs = nil, nil
		}
	}
	return list, f.e.note("list", o)
}
func (f fakeContainers) Inspect(_ context.Context, ref string, size bool) (containers.View, error) {
	v, err := find(ref)
	if !size {
		v.SizeRw, v.SizeRootFs = nil, nil
	}
	return v, err
}
func (f fakeContainers) Top(_ context.Context, ref string, args []string) ([]string, [][]string, error) {
	return []string{"PID", "CMD"}, [][]string{{"4711", "httpd"}}, f.verb("top", ref, args)
}
func (f fakeContainers) Stats(ctx context.Context, ref string, once bool, fn func(prior, now *containers.Stats) error) error {
	if err := f.verb("stats", ref, once); err != nil {
		return err
	}
	prior := &containers.Stats{}
	for i := uint64(1); i <= 3; i++ {
		now := &containers.Stats{ID: webID, Name: "web", Read: birth.Add(time.Duration(i) * time.Second), Running: true, OnlineCPUs: 2, SystemCPU: i * 1e9,
			Stats:    runtime.Stats{CPUTotal: i * 1e8, MemoryUsage: 1 << 20, MemoryLimit: 1 << 26, Pids: 3, BlkioServiceBytes: []runtime.BlkioEntry{{Major: 8, Op: "read", Value: 4096}}},
			Networks: []containers.NetStats{{Name: "eth0", RxBytes: 100 * i, TxBytes: 200 * i}}}
		if err := fn(prior, now); err != nil {
			return err
		}
		if once {
			return nil
		}
		prior = now
	}
	return nil
}

// talk plays the monitor: it greets on both streams, then echoes until the client is done writing.
func talk(hijack func(bool) (net.Conn, []byte, error), tty bool) error {
	conn, preread, err := hijack(tty)
	if err != nil {
		return err
	}
	go func() {
		defer conn.Close()
		say := func(stream byte, text string) {
			if !tty {
				conn.Write([]byte{stream, 0, 0, 0, 0, 0, 0, byte(len(text))})
			}
			conn.Write([]byte(text))
		}
		say(1, "out\n")
		say(2, "err\n")
		buf := make([]byte, 200)
		n := copy(buf, preread)
		for {
			if n > 0 {
				say(1, string(buf[:n]))
			}
			if strings.Contains(string(buf[:n]), "bye") {
				return
			}
			var err error
			if n, err = conn.Read(buf); err != nil {
				return
			}
		}
	}()
	return nil
}
func (f fakeContainers) Attach(_ context.Context, ref string, o containers.AttachOptions) error {
	v, err := find(ref)
	if err != nil {
		return err
	}
	hijack := o.Hijack
	o.Hijack = nil
	f.e.note("attach", o)
	return talk(hijack, v.Config.Tty)
}
func (f fakeContainers) Run(_ context.Context, ref string, o containers.AttachOptions, last func(containers.Ended, error) []byte) error {
	conn, _, err := o.Hijack(false)
	if err != nil {
		return err
	}
	o.Hijack = nil
	f.e.note("run", o)
	io.WriteString(conn, "\x01\x00\x00\x00\x00\x00\x00\x04out\n")
	conn.Write(last(containers.Ended{Code: 3}, f.e.refused))
	return conn.Close()
}
func (f fakeContainers) Logs(_ context.Context, ref string, o containers.LogOptions, begin func(bool) (io.Writer, error)) error {
	v, err := find(ref)
	if err != nil {
		return err
	}
	f.e.note("logs", o)
	w, err := begin(v.Config.Tty)
	if err != nil {
		return err
	}
	if v.Config.Tty {
		_, err = io.WriteString(w, "plain\r\n")
		return err
	}
	for i, text := range []string{"out\n", "err\n"} {
		if _, err := w.Write(append([]byte{byte(i + 1), 0, 0, 0, 0, 0, 0, 4}, text...)); err != nil {
			return err
		}
	}
	return nil
}
func (f fakeContainers) Resize(_ context.Context, ref string, h, w uint) error {
	return f.verb("resize", ref, [2]uint{h, w})
}
func (f fakeContainers) ExecCreate(_ context.Context, ref string, req containers.ExecRequest) (string, error) {
	return execID, f.verb("exec", ref, req)
}
func (f fakeContainers) ExecStart(_ context.Context, id string, o containers.ExecStart) error {
	switch id {
	case "nocmd":
		return errs.New(errs.NoCommand, "exec: \"nope\": executable file not found in $PATH")
	case execID:
	default:
		return errs.New(errs.NotFound, "No such exec instance: %s", id)
	}
	if o.Detach {
		return nil
	}
	return talk(o.Hijack, o.Tty)
}
func (f fakeContainers) ExecInspect(_ context.Context, id string) (containers.ExecView, error) {
	code := 7
	return containers.ExecView{ID: id, Container: webID, ExitCode: &code, ExecRequest: containers.ExecRequest{Cmd: []string{"sh", "-c", "x"}, AttachStdout: true}}, nil
}
func (f fakeContainers) ExecResize(_ context.Context, id string, h, w uint) error {
	return f.e.note("exec-resize", [2]uint{h, w})
}
func (f fakeContainers) Changes(_ context.Context, ref string) ([]snapshot.Change, error) {
	return []snapshot.Change{{Path: "/etc", Kind: snapshot.Modified}, {Path: "/etc/new", Kind: snapshot.Added}, {Path: "/gone", Kind: snapshot.Deleted}}, f.verb("changes", ref, nil)
}
func (f fakeContainers) Export(_ context.Context, ref string, begin func() io.Writer) error {
	if err := f.verb("export", ref, nil); err != nil {
		return err
	}
	w := begin()
	fmt.Fprint(w, "tar of "+ref)
	if ref == "job" {
		return fmt.Errorf("disk broke")
	}
	return nil
}
func (f fakeContainers) Commit(_ context.Context, req containers.CommitRequest) (string, error) {
	return imgID.String(), f.e.note("commit", req)
}
func (f fakeContainers) StatPath(_ context.Context, ref, path string) (containers.PathStat, error) {
	if path == "/gone" {
		return containers.PathStat{}, errs.New(errs.NotFound, "Could not find the file %s in container %s", path, ref)
	}
	return containers.PathStat{Name: "f", Size: 3, Mode: uint32(os.ModeDir | 0o755), Mtime: birth}, f.verb("stat", ref, path)
}
func (f fakeContainers) ArchivePath(ctx context.Context, ref, path string, begin func(containers.PathStat) io.Writer) error {
	st, err := f.StatPath(ctx, ref, path)
	if err != nil {
		return err
	}
	_, err = io.WriteString(begin(st), "tar of "+path)
	return err
}
func (f fakeContainers) ExtractTo(_ context.Context, ref, path string, r io.Reader, no, copyIDs bool) error {
	b, err := io.ReadAll(r)
	if err != nil {
		return err
	}
	return f.verb("extract", ref, []any{path, string(b), no, copyIDs})
}
