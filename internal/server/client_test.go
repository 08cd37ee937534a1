package server_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os/exec"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/pkg/stdcopy"
	wirec "github.com/moby/moby/api/types/container"
	wiremount "github.com/moby/moby/api/types/mount"
	wirenet "github.com/moby/moby/api/types/network"
	"github.com/moby/moby/client"

	"corten.dev/corten/internal/container"
	"corten.dev/corten/internal/engine/containers"
	"corten.dev/corten/internal/image"
	"corten.dev/corten/internal/network"
)

func dial(t *testing.T, e *engine, opts ...client.Opt) (*client.Client, context.Context) {
	t.Helper()
	c, err := client.New(append([]client.Opt{client.WithHost("unix://" + serve(t, e))}, opts...)...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	return c, ctx
}

// The reference client creates a container with a bit of everything; the engine must be asked for just that.
func TestClientCreate(t *testing.T) {
	e := &engine{}
	c, ctx := dial(t, e)
	res, err := c.ContainerCreate(ctx, client.ContainerCreateOptions{
		Name: "web", Config: &wirec.Config{
			Image: "busybox", Cmd: []string{"sh"}, Env: []string{"A=1"}, Labels: map[string]string{"l": "v"},
			ExposedPorts: wirenet.PortSet{wirenet.MustParsePort("80/tcp"): {}},
			Healthcheck:  &wirec.HealthConfig{Test: []string{"CMD", "true"}, Interval: time.Second, StartInterval: time.Second},
		},
		HostConfig: &wirec.HostConfig{
			Binds: []string{"/a:/b:ro", "vol:/c"}, NetworkMode: "default", AutoRemove: true, MaskedPaths: []string{}, ConsoleSize: [2]uint{24, 80},
			PortBindings: wirenet.PortMap{
				wirenet.MustParsePort("80/tcp"): {{HostIP: netip.MustParseAddr("127.0.0.1"), HostPort: "8000-8010"}, {HostPort: ""}},
				wirenet.MustParsePort("53/udp"): {{HostPort: "53"}},
			},
			Resources: wirec.Resources{Memory: 1 << 26, Ulimits: []*wirec.Ulimit{{Name: "nofile", Soft: 10, Hard: 20}}},
			Mounts:    []wiremount.Mount{{Type: wiremount.TypeTmpfs, Target: "/t", TmpfsOptions: &wiremount.TmpfsOptions{SizeBytes: 9, Mode: 0o700}}},
		},
		NetworkingConfig: &wirenet.NetworkingConfig{EndpointsConfig: map[string]*wirenet.EndpointSettings{
			"blue": {Aliases: []string{"www"}, IPAMConfig: &wirenet.EndpointIPAMConfig{IPv4Address: netip.MustParseAddr("10.1.0.9")}, GwPriority: 3},
		}},
	})
	if err != nil || res.ID != webID {
		t.Fatal(res, err)
	}
	req := e.got("create").(containers.CreateRequest)
	if req.Name != "web" || req.Config.Image != "busybox" || req.Host.NetworkMode != "default" || !req.Host.AutoRemove || req.Host.ConsoleSize != [2]uint{24, 80} {
		t.Errorf("asked for %+v", req)
	}
	wantPorts := []network.Port{
		{Proto: "udp", ContainerPort: 53, HostPort: 53, HostPortEnd: 53},
		{Proto: "tcp", ContainerPort: 80},
		{Proto: "tcp", ContainerPort: 80, HostIP: netip.MustParseAddr("127.0.0.1"), HostPort: 8000, HostPortEnd: 8010},
	}
	if !reflect.DeepEqual(req.Host.Ports, wantPorts) {
		t.Errorf("ports %+v", req.Host.Ports)
	}
	if req.Host.MaskedPaths == nil || len(req.Host.MaskedPaths) != 0 || req.Host.ReadonlyPaths != nil {
		t.Errorf("masked %#v readonly %#v: empty means none, nil means the default", req.Host.MaskedPaths, req.Host.ReadonlyPaths)
	}
	wantNets := map[string]container.EndpointSettings{
		"default": {}, "blue": {Aliases: []string{"www"}, IPv4: netip.MustParseAddr("10.1.0.9"), GwPriority: 3},
	}
	if !reflect.DeepEqual(req.Networks, wantNets) {
		t.Errorf("networks %+v", req.Networks)
	}
	if m := req.Host.Mounts; len(m) != 1 || m[0].TmpfsSize != 9 || m[0].TmpfsMode != 0o700 {
		t.Errorf("mounts %+v", m)
	}
	if req.Config.Healthcheck.StartInterval != time.Second {
		t.Error("the health check lost its start interval")
	}
	_, err = c.ContainerCreate(ctx, client.ContainerCreateOptions{Config: &wirec.Config{Image: "nosuch"}})
	if !errdefs.IsNotFound(err) || !strings.Contains(err.Error(), "No such image: nosuch") {
		t.Errorf("create without image: %v", err)
	}
}

// Every verb once, through the reference client.
func TestClientVerbs(t *testing.T) {
	e := &engine{}
	c, ctx := dial(t, e)
	five := 5
	for name, call := range map[string]func() error{
		"ping":    func() error { _, err := c.Ping(ctx, client.PingOptions{NegotiateAPIVersion: true}); return err },
		"version": func() error { _, err := c.ServerVersion(ctx, client.ServerVersionOptions{}); return err },
		"info":    func() error { _, err := c.Info(ctx, client.InfoOptions{}); return err },
		"df": func() error {
			r, err := c.DiskUsage(ctx, client.DiskUsageOptions{Verbose: true})
			if err == nil && (r.Images.TotalCount != 2 || len(r.Containers.Items) != 2) {
				t.Errorf("df %+v", r)
			}
			return err
		},
		"start":    func() error { _, err := c.ContainerStart(ctx, "job", client.ContainerStartOptions{}); return err },
		"start304": func() error { _, err := c.ContainerStart(ctx, "web", client.ContainerStartOptions{}); return err },
		"stop": func() error {
			_, err := c.ContainerStop(ctx, "web", client.ContainerStopOptions{Timeout: &five, Signal: "INT"})
			return err
		},
		"restart": func() error { _, err := c.ContainerRestart(ctx, "web", client.ContainerRestartOptions{}); return err },
		"kill":    func() error { _, err := c.ContainerKill(ctx, "web", client.ContainerKillOptions{}); return err },
		"pause":   func() error { _, err := c.ContainerPause(ctx, "web", client.ContainerPauseOptions{}); return err },
		"unpause": func() error { _, err := c.ContainerUnpause(ctx, "web", client.ContainerUnpauseOptions{}); return err },
		"rename": func() error {
			_, err := c.ContainerRename(ctx, "web", client.ContainerRenameOptions{NewName: "www"})
			return err
		},
		"resize": func() error {
			_, err := c.ContainerResize(ctx, "web", client.ContainerResizeOptions{Height: 24, Width: 80})
			return err
		},
		"update": func() error {
			_, err := c.ContainerUpdate(ctx, "web", client.ContainerUpdateOptions{RestartPolicy: &wirec.RestartPolicy{Name: "always"}})
			return err
		},
		"remove": func() error {
			_, err := c.ContainerRemove(ctx, "job", client.ContainerRemoveOptions{Force: true})
			return err
		},
		"top":   func() error { _, err := c.ContainerTop(ctx, "web", client.ContainerTopOptions{}); return err },
		"diff":  func() error { _, err := c.ContainerDiff(ctx, "web", client.ContainerDiffOptions{}); return err },
		"prune": func() error { _, err := c.ContainerPrune(ctx, client.ContainerPruneOptions{}); return err },
		"tag": func() error {
			_, err := c.ImageTag(ctx, client.ImageTagOptions{Source: "busybox", Target: "localhost:5000/a/b:v1"})
			return err
		},
		"rmi": func() error {
			_, err := c.ImageRemove(ctx, "busybox", client.ImageRemoveOptions{Force: true})
			return err
		},
		"images": func() error {
			_, err := c.ImageList(ctx, client.ImageListOptions{All: true, SharedSize: true})
			return err
		},
		"image":   func() error { _, err := c.ImageInspect(ctx, "lib/busybox:latest"); return err },
		"history": func() error { _, err := c.ImageHistory(ctx, "busybox"); return err },
		"volume":  func() error { _, err := c.VolumeCreate(ctx, client.VolumeCreateOptions{Name: "data"}); return err },
		"volumes": func() error { _, err := c.VolumeList(ctx, client.VolumeListOptions{}); return err },
		"network": func() error {
			_, err := c.NetworkCreate(ctx, "blue", client.NetworkCreateOptions{Driver: "bridge"})
			return err
		},
		"networks": func() error { _, err := c.NetworkList(ctx, client.NetworkListOptions{}); return err },
		"connect": func() error {
			_, err := c.NetworkConnect(ctx, "blue", client.NetworkConnectOptions{Container: "web"})
			return err
		},
		"disconnect": func() error {
			_, err := c.NetworkDisconnect(ctx, "blue", client.NetworkDisconnectOptions{Container: "web"})
			return err
		},
		"commit": func() error {
			_, err := c.ContainerCommit(ctx, "web", client.ContainerCommitOptions{Reference: "a/b:c", Changes: []string{"CMD x"}})
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			if err := call(); err != nil {
				t.Error(err)
			}
		})
	}
	if o := e.got("stop").(containers.StopOptions); o.Signal != "INT" || *o.Timeout != 5 {
		t.Errorf("stop %+v", o)
	}
	if tag := e.got("tag").([]string); tag[1] != "localhost:5000/a/b:v1" {
		t.Errorf("tag %v", tag)
	}
	if req := e.got("commit").(containers.CommitRequest); req.Ref != "docker.io/a/b:c" || !req.Pause || req.Config != nil || len(req.Changes) != 1 {
		t.Errorf("commit %+v", req)
	}
}

func TestClientStreams(t *testing.T) {
	e := &engine{}
	c, ctx := dial(t, e)

	r, err := c.ContainerLogs(ctx, "web", client.ContainerLogsOptions{ShowStdout: true, ShowStderr: true, Follow: true, Tail: "5", Since: "10m"})
	if err != nil {
		t.Fatal(err)
	}
	var out, errOut bytes.Buffer
	if _, err := stdcopy.StdCopy(&out, &errOut, r); err != nil || out.String() != "out\n" || errOut.String() != "err\n" {
		t.Errorf("logs %q %q %v", &out, &errOut, err)
	}
	if o := e.got("logs").(containers.LogOptions); !o.Follow || o.Tail != 5 || time.Since(o.Since) < 9*time.Minute {
		t.Errorf("logs asked %+v", o)
	}

	for _, ref := range []string{"web", "job"} {
		att, err := c.ContainerAttach(ctx, ref, client.ContainerAttachOptions{Stream: true, Stdin: true, Stdout: true, Stderr: true})
		if err != nil {
			t.Fatal(err)
		}
		io.WriteString(att.Conn, "hello bye")
		out.Reset()
		errOut.Reset()
		if media, _ := att.MediaType(); (media == "application/vnd.docker.raw-stream") != (ref == "job") {
			t.Errorf("attach to %s: media type %q", ref, media)
		}
		if ref == "job" {
			b, _ := io.ReadAll(att.Reader)
			out.Write(b)
			if out.String() != "out\nerr\nhello bye" {
				t.Errorf("attach to a terminal: %q", &out)
			}
		} else if _, err := stdcopy.StdCopy(&out, &errOut, att.Reader); err != nil || out.String() != "out\nhello bye" || errOut.String() != "err\n" {
			t.Errorf("attach %q %q %v", &out, &errOut, err)
		}
		att.Close()
	}

	wait := c.ContainerWait(ctx, "job", client.ContainerWaitOptions{Condition: wirec.WaitConditionRemoved})
	select {
	case res := <-wait.Result:
		if res.StatusCode != 1 {
			t.Errorf("wait %+v", res)
		}
	case err := <-wait.Error:
		t.Error(err)
	}
	if cond := e.got("wait"); cond != containers.Removed {
		t.Errorf("waited for %v", cond)
	}

	ev := c.Events(ctx, client.EventsListOptions{})
	select {
	case m := <-ev.Messages:
		if m.Actor.ID != webID || m.Action != "start" {
			t.Errorf("event %+v", m)
		}
	case err := <-ev.Err:
		t.Error(err)
	}

	stats, err := c.ContainerStats(ctx, "web", client.ContainerStatsOptions{Stream: false, IncludePreviousSample: true})
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(stats.Body)
	if err != nil || bytes.Count(b, []byte("\n")) != 1 || !bytes.Contains(b, []byte(`"preread":"2026-01-02T03:04:06.6Z"`)) {
		t.Errorf("one reading with the one before: %s %v", b, err)
	}
}

func TestClientExec(t *testing.T) {
	c, ctx := dial(t, &engine{})
	made, err := c.ExecCreate(ctx, "web", client.ExecCreateOptions{Cmd: []string{"sh"}, AttachStdout: true})
	if err != nil || made.ID != execID {
		t.Fatal(made, err)
	}
	att, err := c.ExecAttach(ctx, made.ID, client.ExecAttachOptions{})
	if err != nil {
		t.Fatal(err)
	}
	io.WriteString(att.Conn, "bye")
	var out, errOut bytes.Buffer
	if _, err := stdcopy.StdCopy(&out, &errOut, att.Reader); err != nil || out.String() != "out\nbye" {
		t.Errorf("exec %q %v", &out, err)
	}
	att.Close()
	// A command that is not there is told inside the session, because the client asks for the exit code only after one.
	att, err = c.ExecAttach(ctx, "nocmd", client.ExecAttachOptions{})
	if err != nil {
		t.Fatal(err)
	}
	out.Reset()
	if _, err := stdcopy.StdCopy(&out, &errOut, att.Reader); err != nil || !strings.Contains(out.String(), "executable file not found in $PATH") {
		t.Errorf("exec of nothing: %q %v", &out, err)
	}
	att.Close()
	if _, err := c.ExecAttach(ctx, "gone", client.ExecAttachOptions{}); err == nil {
		t.Error("an exec that is not there was started")
	}
}

func TestClientArchives(t *testing.T) {
	e := &engine{}
	c, ctx := dial(t, e)
	if _, err := c.CopyToContainer(ctx, "web", client.CopyToContainerOptions{DestinationPath: "/tmp", Content: strings.NewReader("tar")}); err != nil {
		t.Error(err)
	}
	if got := e.got("extract").([]any); !reflect.DeepEqual(got, []any{"/tmp", "tar", true, false}) {
		t.Errorf("extract %v", got)
	}
	from, err := c.CopyFromContainer(ctx, "web", client.CopyFromContainerOptions{SourcePath: "/etc"})
	if err != nil {
		t.Fatal(err)
	}
	b, _ := io.ReadAll(from.Content)
	if string(b) != "tar of /etc" || !from.Stat.Mode.IsDir() || from.Stat.Name != "f" {
		t.Errorf("copy %q %+v", b, from.Stat)
	}
	if _, err := c.ContainerStatPath(ctx, "web", client.ContainerStatPathOptions{Path: "/gone"}); !errdefs.IsNotFound(err) {
		t.Errorf("stat of nothing: %v", err)
	}
	r, err := c.ImageSave(ctx, []string{"a", "b"})
	if err != nil {
		t.Fatal(err)
	}
	if b, _ := io.ReadAll(r); string(b) != "tar of a b" {
		t.Errorf("save %q", b)
	}
	if _, err := c.ImageSave(ctx, []string{"nosuch"}); !errdefs.IsNotFound(err) {
		t.Errorf("save of nothing: %v", err)
	}
	l, err := c.ImageLoad(ctx, strings.NewReader("tar"))
	if err != nil {
		t.Fatal(err)
	}
	b, _ = io.ReadAll(l)
	if !bytes.Contains(b, []byte(`{"stream":"Loaded image: busybox:latest\n"}`)) || !bytes.Contains(b, []byte("Loaded image ID: sha256:1111")) {
		t.Errorf("load %s", b)
	}
	i, err := c.ImageImport(ctx, client.ImageImportSource{Source: strings.NewReader("root"), SourceName: "-"}, "made:v1", client.ImageImportOptions{Message: "m", Changes: []string{"CMD x"}})
	if err != nil {
		t.Fatal(err)
	}
	if b, _ = io.ReadAll(i); string(b) != "{\"status\":\""+imgID.String()+"\"}\n" {
		t.Errorf("import %s", b)
	}
	if got := e.got("import").([]any); !reflect.DeepEqual(got, []any{"root", image.ImportOptions{Ref: "made:v1", Message: "m", Changes: []string{"CMD x"}}}) {
		t.Errorf("import %v", got)
	}
	if _, err := c.ImagePull(ctx, "nosuch", client.ImagePullOptions{}); err == nil || !strings.Contains(err.Error(), "pull access denied for nosuch") {
		t.Errorf("pull: %v", err)
	}
	// An answer that breaks in the middle must not look complete.
	r, err = c.ContainerExport(ctx, "job", client.ContainerExportOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadAll(r); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("a broken export ended with %v", err)
	}
}

func TestWebsocketAttach(t *testing.T) {
	sock := serve(t, &engine{})
	hc := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", sock)
	}}}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	ws, _, err := websocket.Dial(ctx, "http://docker/v1.50/containers/web/attach/ws?stream=1&stdin=1&stdout=1&stderr=1", &websocket.DialOptions{HTTPClient: hc})
	if err != nil {
		t.Fatal(err)
	}
	if err := ws.Write(ctx, websocket.MessageBinary, []byte("bye")); err != nil {
		t.Fatal(err)
	}
	var all []byte
	for {
		kind, b, err := ws.Read(ctx)
		if err != nil {
			break
		}
		if kind != websocket.MessageBinary {
			t.Errorf("kind %v", kind)
		}
		all = append(all, b...)
	}
	if string(all) != "out\nerr\nbye" {
		t.Errorf("got %q", all)
	}
	_, resp, err := websocket.Dial(ctx, "http://docker/containers/web/attach/ws", &websocket.DialOptions{HTTPClient: hc, HTTPHeader: http.Header{"Origin": {"http://evil.example"}}})
	if err == nil || resp == nil || resp.StatusCode != http.StatusForbidden {
		t.Errorf("a foreign origin: %v %v", resp, err)
	}
	// What is no websocket was answered twice, once by the library: text and JSON in one body, with the length of the second.
	resp, err = hc.Get("http://docker/containers/web/attach/ws?stream=1")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var told struct{ Message string }
	if err := json.NewDecoder(resp.Body).Decode(&told); err != nil || resp.StatusCode != http.StatusUpgradeRequired || !strings.Contains(told.Message, "WebSocket") || resp.Header.Get("Content-Type") != "application/json" {
		t.Errorf("%s: %+v, %v", resp.Status, told, err)
	}
}

// The docker command line of the distribution, where it is installed.
func TestDockerCommand(t *testing.T) {
	docker, err := exec.LookPath("docker")
	if err != nil {
		t.Skip("docker is not installed")
	}
	sock := serve(t, &engine{})
	for _, c := range []struct{ args, want string }{
		{"version --format {{.Server.Version}}", "1.2.3"},
		{"info --format {{.Containers}}/{{.Driver}}", "2/overlay"},
		{"ps -a --no-trunc --format {{.Names}}:{{.Command}}:{{.Ports}}", "web:\"httpd -f 'two words'\":443/tcp, 0.0.0.0:8081->80/tcp, [::]:8081->80/tcp"},
		{"inspect web --format {{.NetworkSettings.IPAddress}}", "172.17.0.2"},
		{"images --format {{.Repository}}:{{.Tag}}", "busybox:latest"},
		{"network ls --format {{.Name}}/{{.Driver}}", "blue/bridge"},
		{"volume ls -q", "data"},
		{"port web 80/tcp", "0.0.0.0:8081"},
		{"logs web", "out"},
		{"exec web sh", "out"},
		{"diff web", "A /etc/new"},
		{"top web", "httpd"},
		{"wait job", "1"},
		{"stats --no-stream --format {{.Name}}:{{.MemUsage}} web", "web:1MiB / 64MiB"},
		{"system df", "Images"},
		{"events --until 2026-01-03T00:00:00Z", "container start " + webID},
		{"history busybox", "CMD"},
		{"create --name xx -p 80 busybox", webID},
		{"run --rm nosuch", "pull access denied for nosuch, repository does not exist"},
		{"pull busybox", "Status: Downloaded newer image for busybox:latest\ndocker.io/library/busybox:latest"},
		{"pull -q busybox:1", "docker.io/library/busybox:1"},
		{"pull broken", "the registry went away"},
		{"push a:1", "The push refers to repository [docker.io/library/a]"},
		{"search --format {{.Name}}/{{.StarCount}}/{{.IsOfficial}} busy", "busy/3/[OK]"},
	} {
		t.Run(c.args, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
			defer cancel()
			out, err := exec.CommandContext(ctx, docker, append([]string{"-H", "unix://" + sock}, strings.Fields(c.args)...)...).CombinedOutput()
			if !strings.Contains(string(out), c.want) {
				t.Errorf("%v: %s", err, out)
			}
		})
	}
}
