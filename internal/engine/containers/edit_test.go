package containers_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"corten.dev/corten/internal/container"
	"corten.dev/corten/internal/engine/containers"
	"corten.dev/corten/internal/enginetest"
	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/image"
	"corten.dev/corten/internal/network"
	"corten.dev/corten/internal/volume"
)

func (h *host) edit(id string, req containers.EditRequest, how string, changes ...string) {
	h.t.Helper()
	done, err := h.svc.Edit(bg, id, req)
	if err != nil || done.How != how || !slices.Equal(done.Changes, changes) {
		h.t.Errorf("%q %s %v, want %q %s", done.Changes, done.How, err, changes, how)
	}
}

// answers tells what a server at a port of this machine says; "" when there is none.
func answers(port uint16) string {
	conn, err := net.DialTimeout("tcp", fmt.Sprintf("127.0.0.1:%d", port), 10*time.Second)
	if err != nil {
		return ""
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(30 * time.Second))
	b, _ := io.ReadAll(conn)
	return string(b)
}

func TestEditLive(t *testing.T) {
	h := newHost(t)
	id := h.run(sh("while :; do echo hello | /bin/busybox nc -l -p 80; done"))
	before := h.inspect(id)
	port := network.Port{Proto: "tcp", ContainerPort: 80, HostPort: enginetest.Ports(t, 1), HostIP: netip.MustParseAddr("127.0.0.1")}
	req := containers.EditRequest{Publish: []network.Port{port}, Labels: map[string]string{"tier": "front"}}
	req.Restart = &container.RestartPolicy{Name: "always"}
	dry := req
	dry.DryRun = true
	changes := []string{"publish " + container.PortText(port), "add label tier", "restart policy always"}
	h.edit(id, dry, containers.EditLive, changes...)
	if answers(port.HostPort) != "" || h.inspect(id).Config.Labels["tier"] != "" {
		t.Error("a dry run did something")
	}
	h.edit(id, req, containers.EditLive, changes...)
	wait30(t, "the published port to answer", func() bool { return answers(port.HostPort) == "hello\n" })
	view := h.inspect(id)
	if view.State.PID != before.State.PID || view.Config.Labels["tier"] != "front" || len(view.Sandbox.Ports) != 1 || view.Host.Restart.Name != "always" {
		t.Errorf("after the edit: pid %d, was %d: %+v", view.State.PID, before.State.PID, view.Sandbox.Ports)
	}
	// The next engine knows, too.
	h.close()
	h.open()
	wait30(t, "the published port to answer after a restart of the engine", func() bool { return answers(port.HostPort) == "hello\n" })
	h.edit(id, containers.EditRequest{Undo: true}, containers.EditLive, "unpublish "+container.PortText(port), "remove label tier", "restart policy no")
	if answers(port.HostPort) != "" {
		t.Error("the port answers after undo")
	}
	if view := h.inspect(id); view.State.PID != before.State.PID || view.Config.Labels["tier"] != "" || len(view.Host.Ports)+len(view.Sandbox.Ports) != 0 {
		t.Errorf("after undo: %+v %+v", view.Host.Ports, view.Sandbox.Ports)
	}
	// A port that cannot be had changes nothing.
	l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port.HostPort))
	must(t, err)
	defer l.Close()
	_, err = h.svc.Edit(bg, id, req)
	if err == nil || h.inspect(id).Config.Labels["tier"] != "" || h.inspect(id).State.PID != before.State.PID {
		t.Errorf("a port in use: %v", err)
	}
}

func wait30(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for range 600 {
		if ok() {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Fatalf("waited 30 s for %s", what)
}

// A range is kept as one port of many: taking one of its ports away cuts it, and leaves the others.
func TestEditCutsARange(t *testing.T) {
	h := newHost(t)
	first := enginetest.Ports(t, 6)
	fifth := first + 4
	req := sh(fmt.Sprintf("for p in 0 1 2 3 4 5; do (while :; do echo port $p | /bin/busybox nc -l -p $((%d+p)); done) & done; wait", first))
	loopback := netip.MustParseAddr("127.0.0.1")
	var all []network.Port
	for p := first; p <= fifth+1; p++ {
		all = append(all, network.Port{Proto: "tcp", ContainerPort: p, HostPort: p, HostIP: loopback})
	}
	req.Host.Ports = network.Runs(all)
	if len(req.Host.Ports) != 1 {
		t.Fatalf("six neighbours are %d ports", len(req.Host.Ports))
	}
	id := h.run(req)
	wait30(t, "a port of the range to answer", func() bool { return answers(first+2) == "port 2\n" })
	whole, four, one := portsText(first, fifth+1), portsText(first, fifth-1), portsText(fifth+1, fifth+1)
	h.edit(id, containers.EditRequest{Unpublish: []string{fmt.Sprint(fifth)}}, containers.EditLive, "publish "+four, "publish "+one, "unpublish "+whole)
	for p := first; p <= fifth+1; p++ {
		if p == fifth {
			continue
		}
		wait30(t, fmt.Sprintf("port %d to answer", p), func() bool { return answers(p) == fmt.Sprintf("port %d\n", p-first) })
	}
	if answers(fifth) != "" {
		t.Error("the port that was taken away answers")
	}
	h.edit(id, containers.EditRequest{Undo: true}, containers.EditLive, "publish "+whole, "unpublish "+four, "unpublish "+one)
	wait30(t, "the port to answer again", func() bool { return answers(fifth) == "port 4\n" })
}

// portsText is how an edit names ports of loopback that are published as themselves.
func portsText(first, last uint16) string {
	ports := fmt.Sprint(first)
	if last > first {
		ports = fmt.Sprintf("%d-%d", first, last)
	}
	return "127.0.0.1:" + ports + ":" + ports + "/tcp"
}

func TestEditByRestart(t *testing.T) {
	h := newHost(t)
	vol, err := h.vols.Create(bg, volume.CreateOptions{Name: "kept"})
	must(t, err)
	req := sh("echo $COLOUR; trap 'exit 0' TERM; sleep 1000 & wait")
	req.Config.Env = []string{"COLOUR=red"}
	req.Config.Volumes = map[string]struct{}{"/anon": {}}
	id := h.run(req)
	h.exec(id, "sh", "-c", "echo mine > /file; echo data > /anon/f")
	before := h.inspect(id)
	h.edit(id, containers.EditRequest{Env: []string{"COLOUR=blue"}, Binds: []string{"kept:/data"}}, containers.EditRestart, "change variable COLOUR", "add mount /data")
	h.says(id, "blue", 1)
	view := h.inspect(id)
	if view.State.PID == before.State.PID || view.Name != before.Name || view.Sandbox.Endpoints[0].IPv4 != before.Sandbox.Endpoints[0].IPv4 || view.Trial || view.Next != nil || view.RestartCount != 0 {
		t.Errorf("%+v", view.State)
	}
	if out := h.exec(id, "cat", "/file", "/anon/f"); out != "mine\ndata\n" {
		t.Errorf("what it had written: %q", out)
	}
	if users := h.vols.Users(vol.Name); !slices.Equal(users, []string{id}) {
		t.Errorf("users of the new volume: %v", users)
	}
	// A start that fails leaves what was.
	_, err = h.svc.Edit(bg, id, containers.EditRequest{Binds: []string{"/etc/passwd:/bin"}})
	if err == nil || !strings.Contains(err.Error(), "what was before runs again") {
		t.Errorf("a mount that cannot be: %v", err)
	}
	h.status(id, container.Running)
	h.says(id, "blue", 2)
	h.edit(id, containers.EditRequest{Undo: true}, containers.EditRestart, "change variable COLOUR", "remove mount /data")
	h.says(id, "red", 2)
	if users := h.vols.Users(vol.Name); len(users) != 0 {
		t.Errorf("users of the volume after undo: %v", users)
	}
	must(t, h.vols.Remove(bg, vol.Name, false))
	// To go back to a volume that is gone would be to lose what it held.
	_, err = h.svc.Edit(bg, id, containers.EditRequest{Undo: true})
	wants(t, err, errs.NotFound, "undo: mount /data")
	h.status(id, container.Running)
}

func TestEditRefusals(t *testing.T) {
	h := newHost(t)
	id := h.run(sh("sleep 1000"))
	for text, req := range map[string]containers.EditRequest{
		"port 80 is not published":            {Unpublish: []string{"80"}},
		"want [hostPort:]containerPort":       {Unpublish: []string{"x"}},
		"variable A is not set":               {UnsetEnv: []string{"A"}},
		"label a is not set":                  {UnsetLabels: []string{"a"}},
		"nothing is mounted at /x":            {Unmount: []string{"/x"}},
		"is not connected to network blue":    {Disconnect: []string{"blue"}},
		"a container needs a network":         {Disconnect: []string{"bridge"}},
		"invalid volume specification":        {Binds: []string{"a:b:c:d"}},
		"invalid environment variable: =x":    {Env: []string{"=x"}},
		"settings were never changed":         {Undo: true},
		"network nowhere not found":           {Connect: map[string]container.EndpointSettings{"nowhere": {}}},
		"Duplicate mount point: /a":           {Binds: []string{"first:/a", "second:/a"}},
		"connected to network bridge already": {Connect: map[string]container.EndpointSettings{"bridge": {}}},
	} {
		if _, err := h.svc.Edit(bg, id, req); err == nil || !strings.Contains(err.Error(), text) {
			t.Errorf("got %v, want %q", err, text)
		}
	}
	h.status(id, container.Running)
	must(t, h.svc.Pause(bg, id))
	_, err := h.svc.Edit(bg, id, containers.EditRequest{Env: []string{"A=1"}})
	wants(t, err, errs.Conflict, "is paused")
	h.status(id, container.Paused)
}

// newer imports another image under the name of the first.
func (h *host) newer(changes ...string) {
	h.t.Helper()
	_, err := h.imgs.Import(bg, bytes.NewReader(busybox(h.t)), image.ImportOptions{Ref: "busybox", Changes: changes})
	must(h.t, err)
}

func TestUpgrade(t *testing.T) {
	h := newHost(t)
	req := sh("echo $WHERE $MINE $(cat /file 2>/dev/null); trap 'exit 0' TERM; sleep 1000 & wait")
	req.Config.Env = []string{"MINE=1"}
	req.Host.Binds = []string{"kept:/data"}
	req.Config.Healthcheck = &image.Healthcheck{Test: []string{"CMD", "ls", "/bin/sh"}, Interval: 20 * time.Millisecond}
	id := h.run(req)
	h.says(id, "image 1", 1)
	h.exec(id, "sh", "-c", "echo old > /file; echo data > /data/f")
	before := h.inspect(id)
	if done, err := h.svc.Upgrade(bg, id, containers.UpgradeRequest{}); err != nil || len(done.Changes) != 0 {
		t.Errorf("to the same image: %v %v", done, err)
	}
	h.newer("ENV WHERE=newer", "LABEL new=1")
	done, err := h.svc.Upgrade(bg, id, containers.UpgradeRequest{})
	if err != nil || !slices.Equal(done.Changes, []string{"image busybox", "add label new", "change variable WHERE"}) {
		t.Fatalf("%q %v", done.Changes, err)
	}
	h.says(id, "newer 1", 1)
	view := h.inspect(id)
	if view.Image == before.Image || view.Sandbox.Endpoints[0].IPv4 != before.Sandbox.Endpoints[0].IPv4 || view.Config.Labels["new"] != "1" || view.Trial {
		t.Errorf("%+v", view.Record)
	}
	if out := h.exec(id, "sh", "-c", "cat /data/f; ls /file"); !strings.HasPrefix(out, "data\n") || !strings.Contains(out, "No such file") {
		t.Errorf("its volume and its tree: %q", out)
	}
	// What is committed is what it runs on now.
	h.exec(id, "touch", "/since")
	made, err := h.svc.Commit(bg, containers.CommitRequest{Container: id, Ref: "made"})
	must(t, err)
	other := sh("ls /since /file")
	other.Config.Image = made
	look := h.run(other)
	h.says(look, "/since\n", 1)
	h.says(look, "/file: No such file", 1)
	// Undo goes back to the old image with the tree that it had, and undo of that forth again.
	h.exec(id, "sh", "-c", "echo second > /file")
	good := h.inspect(id).Image
	_, err = h.svc.Upgrade(bg, id, containers.UpgradeRequest{Image: "nothing"})
	wants(t, err, errs.NotFound, "nothing")
	h.edit(id, containers.EditRequest{Undo: true}, containers.EditRestart, "image busybox", "remove label new", "change variable WHERE")
	h.says(id, "image 1 old", 1)
	h.edit(id, containers.EditRequest{Undo: true}, containers.EditRestart, "image busybox", "add label new", "change variable WHERE")
	h.says(id, "newer 1 second", 1)
	if h.inspect(id).Image != good {
		t.Error("undo of undo is another image")
	}
}

func TestUpgradeThatFails(t *testing.T) {
	h := newHost(t)
	req := sh("echo at $WHERE; trap 'exit 0' TERM; [ $WHERE = image ] || exit 3; sleep 1000 & wait")
	id := h.run(req)
	h.says(id, "at image", 1)
	h.exec(id, "sh", "-c", "echo mine > /file")
	before := h.inspect(id)
	h.newer("ENV WHERE=broken")
	_, err := h.svc.Upgrade(bg, id, containers.UpgradeRequest{Grace: 10 * time.Second})
	wants(t, err, errs.Unavailable, "it ended with exit code 3; what was before runs again")
	view := h.inspect(id)
	if view.Image != before.Image || view.Trial || view.Previous != nil || view.State.Status != container.Running {
		t.Errorf("%+v", view.Record)
	}
	if out := h.exec(id, "cat", "/file"); out != "mine\n" {
		t.Errorf("its tree: %q", out)
	}
	var trees []string
	must(t, h.opts.Trees.Walk(bg, func(key string, _ map[string]string) error { trees = append(trees, key); return nil }))
	if !slices.Equal(trees, []string{id}) {
		t.Errorf("trees left: %v", trees)
	}
}

// A container of --rm was removed, with its files, when settings that it was to be started with again could not be had; and when an engine ended in the middle of a change.
func TestEditOfWhatGoesByItself(t *testing.T) {
	h := newHost(t)
	req := sh("echo at $WHERE; trap 'exit 0' TERM; sleep 1000 & wait")
	req.Host.AutoRemove = true
	id := h.run(req)
	h.says(id, "at image", 1)
	h.exec(id, "sh", "-c", "echo mine > /file")
	_, err := h.vols.Create(bg, volume.CreateOptions{Name: "vol"})
	must(t, err)
	bad := container.MountRequest{Type: "volume", Source: "vol", Target: "/vol", Subpath: "nothing"}
	_, err = h.svc.Edit(bg, id, containers.EditRequest{Mounts: []container.MountRequest{bad}})
	if err == nil || !strings.HasSuffix(err.Error(), "no such file or directory; what was before runs again") {
		t.Errorf("a mount that cannot be had: %v", err)
	}
	h.edit(id, containers.EditRequest{Env: []string{"WHERE=env"}}, containers.EditRestart, "change variable WHERE")
	h.says(id, "at env", 1)
	h.newer("ENV NEW=1")
	done := make(chan error, 1)
	svc := h.svc
	go func() { _, err := svc.Upgrade(bg, id, containers.UpgradeRequest{Grace: time.Hour}); done <- err }()
	pid := h.until(id, "on trial", func(v containers.View) bool { return v.Trial && v.State.Status == container.Running }).State.PID
	h.close()
	<-done
	must(t, syscall.Kill(pid, syscall.SIGKILL))
	h.open()
	h.until(id, "what it was", func(v containers.View) bool { return !v.Trial && v.State.Status == container.Running })
	if out := h.exec(id, "cat", "/file"); out != "mine\n" {
		t.Errorf("its files: %q", out)
	}
	// It still goes by itself.
	must(t, h.svc.Stop(bg, id, containers.StopOptions{}))
	wait30(t, "the container to be gone", func() bool { _, err := h.svc.Inspect(bg, id, false); return errors.Is(err, errs.NotFound) })
}

// A container with the network of another one, or with the host's name, could not be changed: its hostname, which it has from there, was taken for one that was asked for.
func TestEditWithTheNameOfOthers(t *testing.T) {
	h := newHost(t)
	other := h.run(sh("trap 'exit 0' TERM; sleep 1000 & wait"))
	for i, set := range []func(*containers.CreateRequest){
		func(r *containers.CreateRequest) { r.Host.NetworkMode, r.Networks = "container:"+other, nil },
		func(r *containers.CreateRequest) { r.Host.UTSMode = "host" },
		func(r *containers.CreateRequest) { r.Host.NetworkMode = "host" },
	} {
		req := sh("echo at $OWN; trap 'exit 0' TERM; sleep 1000 & wait")
		set(&req)
		id := h.run(req)
		name := h.exec(id, "hostname")
		h.edit(id, containers.EditRequest{Labels: map[string]string{"tier": "front"}}, containers.EditLive, "add label tier")
		h.edit(id, containers.EditRequest{Env: []string{"OWN=env"}}, containers.EditRestart, "add variable OWN")
		h.says(id, "at env", 1)
		h.newer(fmt.Sprintf("LABEL newer=%d", i))
		done, err := h.svc.Upgrade(bg, id, containers.UpgradeRequest{Grace: time.Millisecond})
		if must(t, err); len(done.Changes) == 0 {
			t.Error("the upgrade changed nothing")
		}
		if now := h.exec(id, "hostname"); now != name {
			t.Errorf("its hostname was %q and is %q", name, now)
		}
	}
}

// The engine ends while a container has to prove itself: the next one goes on with that, and goes back when it fails.
func TestEngineEndsInAnUpgrade(t *testing.T) {
	h := newHost(t)
	req := sh("echo at $WHERE; trap 'exit 3' TERM; sleep 1000 & wait")
	req.Config.Healthcheck = &image.Healthcheck{Test: []string{"CMD", "false"}, Interval: time.Hour}
	id := h.run(req)
	h.says(id, "at image", 1)
	h.newer("ENV WHERE=worse")
	done := make(chan error, 1)
	svc := h.svc
	go func() { _, err := svc.Upgrade(bg, id, containers.UpgradeRequest{}); done <- err }()
	h.says(id, "at worse", 1)
	h.until(id, "on trial", func(v containers.View) bool { return v.Trial && v.State.Status == container.Running })
	h.close()
	if err := <-done; err == nil {
		t.Error("the upgrade was said to be done")
	}
	h.open()
	if view := h.inspect(id); !view.Trial || view.State.Status != container.Running {
		t.Errorf("after the engine came back: trial %v, %s", view.Trial, view.State.Status)
	}
	h.exec(id, "kill", "1")
	view := h.until(id, "what it was", func(v containers.View) bool { return !v.Trial && v.State.Status == container.Running })
	if !slices.Contains(view.Config.Env, "WHERE=image") {
		t.Errorf("%v", view.Config.Env)
	}
	h.says(id, "at image", 2)
}
