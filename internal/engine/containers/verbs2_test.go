package containers_test

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"corten.dev/corten/internal/container"
	"corten.dev/corten/internal/engine/containers"
	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/filter"
	"corten.dev/corten/internal/volume"
)

var bg = context.Background()

func (h *host) inspect(ref string) containers.View {
	h.t.Helper()
	view, err := h.svc.Inspect(bg, ref, false)
	must(h.t, err)
	return view
}

func (h *host) status(ref string, want container.Status) {
	h.t.Helper()
	if got := h.inspect(ref).State.Status; got != want {
		h.t.Errorf("%s is %s, want %s", ref, got, want)
	}
}

// says waits until the log of a container has a text so many times.
func (h *host) says(id, text string, times int) {
	h.t.Helper()
	for range 3000 {
		if strings.Count(h.logs(id), text) >= times {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	h.t.Errorf("%s does not say %q", id, text)
}

func wants(t *testing.T, err, kind error, text string) {
	t.Helper()
	if !errors.Is(err, kind) || !strings.Contains(err.Error(), text) {
		t.Errorf("got error %v, want %v %q", err, kind, text)
	}
}

func (h *host) exec(id string, args ...string) string {
	h.t.Helper()
	eid, err := h.svc.ExecCreate(bg, id, containers.ExecRequest{Cmd: args, AttachStdout: true, AttachStderr: true})
	must(h.t, err)
	conn, hijack := pipe(h.t)
	must(h.t, h.svc.ExecStart(bg, eid, containers.ExecStart{Hijack: hijack}))
	b, err := io.ReadAll(conn)
	must(h.t, err)
	return unframe(h.t, b)
}

// A signal to a paused container waited until somebody let it go on, where Docker lets it: unless its configuration names the signal that stops it, and this is another.
func TestPausedContainersHearSignals(t *testing.T) {
	h := newHost(t)
	script := "trap 'echo heard' USR1; trap 'exit 5' TERM; echo ready; while :; do sleep 0.02; done"
	any := sh(script)
	any.Name = "any"
	h.says(h.run(any), "ready", 1)
	one := sh(script)
	one.Name, one.Config.StopSignal = "one", "TERM"
	h.says(h.run(one), "ready", 1)

	must(t, h.svc.Pause(bg, "any"))
	must(t, h.svc.Kill(bg, "any", "USR1"))
	h.status("any", container.Running)
	must(t, h.svc.Pause(bg, "one"))
	must(t, h.svc.Kill(bg, "one", "USR1"))
	h.status("one", container.Paused)
	must(t, h.svc.Kill(bg, "one", "TERM"))
	if ended := h.wait("one", containers.NotRunning); ended.Code != 5 {
		t.Errorf("TERM: %+v", ended)
	}
	must(t, h.svc.Kill(bg, "any", ""))
	wants(t, h.svc.Unpause(bg, "any"), errs.Conflict, "is not paused")
	wants(t, h.svc.Kill(bg, "any", "99"), errs.Invalid, "cannot kill container: any: the linux daemon does not support signal 99")
	wants(t, h.svc.Kill(bg, "nope", ""), errs.NotFound, "cannot kill container: nope: No such container: nope")
}

func TestLifeOfAContainer(t *testing.T) {
	h := newHost(t)
	req := sh("trap 'exit 5' TERM; echo ready; while :; do sleep 0.02; done")
	req.Name = "web"
	req.Config.Labels = map[string]string{"a": "b"}
	id := h.run(req)
	h.status("web", container.Running)

	_, err := h.svc.Create(bg, req)
	wants(t, err, errs.Conflict, `Conflict. The container name "/web" is already in use by container "`+id+`". You have to remove (or rename) that container to be able to reuse that name.`)
	wants(t, h.svc.Start(bg, "web", ""), errs.NotModified, "")
	wants(t, h.svc.Remove(bg, "web", containers.RemoveOptions{}), errs.Conflict, `cannot remove container "/web": container is running: stop the container before removing or force remove`)
	wants(t, h.svc.Unpause(bg, "web"), errs.Conflict, "Container "+id+" is not paused")
	must(t, h.svc.Pause(bg, id[:12]))
	h.status("web", container.Paused)
	wants(t, h.svc.Pause(bg, "web"), errs.Conflict, "Container "+id+" is already paused")
	must(t, h.svc.Unpause(bg, "web"))
	wants(t, h.svc.Rename(bg, "web", "a b"), errs.Invalid, "Error when allocating new name: Invalid container name (/a b), only")
	must(t, h.svc.Rename(bg, "web", "shop"))
	_, err = h.svc.Inspect(bg, "web", false)
	wants(t, err, errs.NotFound, "No such container: web")

	titles, rows, err := h.svc.Top(bg, "shop", nil)
	must(t, err)
	if strings.Join(titles, " ") != "UID PID PPID C STIME TTY TIME CMD" || len(rows) == 0 || len(rows[0]) != 8 || !strings.HasPrefix(rows[0][7], "sh -c trap") {
		t.Errorf("top: %v %v", titles, rows)
	}
	must(t, h.svc.Stats(bg, "shop", true, func(_, now *containers.Stats) error {
		if !now.Running || now.MemoryUsage == 0 || now.CPUTotal == 0 || now.SystemCPU == 0 || len(now.Networks) != 1 || now.Pids == 0 {
			t.Errorf("stats: %+v", now)
		}
		return nil
	}))
	n := int64(50)
	_, err = h.svc.Update(bg, "shop", containers.UpdateRequest{Resources: &container.Resources{PidsLimit: &n}})
	must(t, err)
	must(t, h.svc.Stats(bg, "shop", true, func(_, now *containers.Stats) error {
		if now.PidsLimit != 50 {
			t.Errorf("pids limit %d", now.PidsLimit)
		}
		return nil
	}))

	h.says("shop", "ready\n", 1)
	must(t, h.svc.Restart(bg, "shop", containers.StopOptions{}))
	h.says("shop", "ready\n", 2)
	h.status("shop", container.Running)
	must(t, h.svc.Stop(bg, "shop", containers.StopOptions{}))
	if st := h.inspect("shop").State; st.Status != container.Exited || st.ExitCode != 5 {
		t.Errorf("state %+v", st)
	}
	wants(t, h.svc.Stop(bg, "shop", containers.StopOptions{}), errs.NotModified, "")
	wants(t, h.svc.Kill(bg, "shop", ""), errs.Conflict, "is not running")
	must(t, h.svc.Start(bg, "shop", ""))
	must(t, h.svc.Kill(bg, "shop", "KILL"))
	if st := h.inspect("shop").State; st.ExitCode != 137 {
		t.Errorf("state %+v", st)
	}
	must(t, h.svc.Remove(bg, "shop", containers.RemoveOptions{}))
	if entries, err := os.ReadDir(h.dir + "/containers"); err != nil || len(entries) != 0 {
		t.Errorf("left behind: %v %v", entries, err)
	}
}

func TestStopKillsWhatDoesNotListen(t *testing.T) {
	h := newHost(t)
	id := h.run(sh("trap '' TERM; echo deaf; sleep 600"))
	h.says(id, "deaf\n", 1)
	now, zero := time.Now(), 0
	must(t, h.svc.Stop(bg, id, containers.StopOptions{Timeout: &zero}))
	if d := time.Since(now); d > 60*time.Second {
		t.Errorf("took %v", d)
	}
	if st := h.inspect(id).State; st.ExitCode != 137 {
		t.Errorf("state %+v", st)
	}
}

func TestMounts(t *testing.T) {
	h := newHost(t)
	dir := t.TempDir()
	must(t, os.WriteFile(dir+"/file", []byte("bound\n"), 0o644))
	req := sh("cat /b/file; echo x >/b/new; cat /data/seed; stat -c '%u %a' /data/seed; touch /ro/x; cat /proc/mounts | grep ' /tmp ' ; ls /made; echo 7 >/anon/f; cat /anon/f")
	made := filepath.Join(dir, "not", "there")
	req.Host.Binds = []string{dir + ":/b", dir + ":/ro:ro", "vol1:/data", made + ":/made"}
	req.Host.Tmpfs = map[string]string{"/tmp": "size=1m,exec"}
	req.Config.Volumes = map[string]struct{}{"/anon": {}}
	id := h.run(req)
	h.wait(id, containers.NotRunning)
	got := h.logs(id)
	for _, want := range []string{"bound\n", "seed\n500 640\n", "Read-only file system", "size=1024k", "7\n"} {
		if !strings.Contains(got, want) {
			t.Errorf("lacks %q:\n%s", want, got)
		}
	}
	if _, err := os.Stat(dir + "/new"); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(made); err != nil {
		t.Error(err)
	}
	wants(t, h.vols.Remove(bg, "vol1", false), errs.Conflict, id)
	must(t, h.svc.Remove(bg, id, containers.RemoveOptions{Volumes: true}))
	vols, err := h.vols.List(bg)
	must(t, err)
	if len(vols) != 1 || vols[0].Name != "vol1" {
		t.Errorf("volumes left: %+v", vols)
	}

	bad := sh("true")
	bad.Host.Mounts = []container.MountRequest{{Type: "bind", Source: "/does/not/exist", Target: "/x"}}
	_, err = h.svc.Create(bg, bad)
	wants(t, err, errs.Invalid, `invalid mount config for type "bind": bind source path does not exist: /does/not/exist`)
}

func TestVolumesFromAndNoCopy(t *testing.T) {
	h := newHost(t)
	_, err := h.vols.Create(bg, volume.CreateOptions{Name: "vv"})
	must(t, err)
	a := sh("ls /data | cat; echo shared >/data/s")
	a.Name = "aa"
	a.Host.Binds = []string{"vv:/data:nocopy"}
	h.wait(h.run(a), containers.NotRunning)
	b := sh("cat /data/s; echo no >/data/t")
	b.Name = "bb"
	b.Host.VolumesFrom = []string{"aa:ro"}
	h.wait(h.run(b), containers.NotRunning)
	if got := h.logs("aa") + h.logs("bb"); !strings.HasPrefix(got, "shared\n") || !strings.Contains(got, "Read-only") {
		t.Errorf("got %q", got)
	}
}

func TestSettings(t *testing.T) {
	h := newHost(t)
	req := sh("id; pwd; echo $WHERE $MORE $HOME; cat /etc/hosts; cat /proc/self/status | grep -E 'CapEff|NoNewPrivs|Seccomp:'; cat /proc/self/oom_score_adj; cat /proc/sys/net/ipv4/ip_unprivileged_port_start; cat /proc/sys/kernel/msgmax; touch /x; sh -c 'ulimit -n'; cat /etc/resolv.conf")
	req.Config.User = "web"
	req.Config.WorkingDir = "/new/dir"
	req.Config.Env = []string{"MORE=more"}
	req.Config.Hostname = "fred"
	req.Host.ExtraHosts = []string{"other:1.2.3.4", "gate:host-gateway"}
	req.Host.OomScoreAdj = 100
	req.Host.ReadonlyRootfs = true
	req.Host.SecurityOpt = []string{"no-new-privileges"}
	req.Host.Sysctls = map[string]string{"kernel.msgmax": "4096"}
	req.Host.Resources.Ulimits = []container.Ulimit{{Name: "nofile", Soft: 100, Hard: 200}}
	req.Host.DNSSearch = []string{"example.org"}
	req.Host.Resources.Memory = 64 << 20
	id := h.run(req)
	h.wait(id, containers.NotRunning)
	got := h.logs(id)
	for _, want := range []string{
		"uid=500(web) gid=501(web) groups=501(web),600(extra)", "/new/dir\n", "image more /home/web", "1.2.3.4\tother", h.ground.BIP.Addr().String() + "\tgate", "\tfred\n", "CapEff:\t0000000000000000",
		"NoNewPrivs:\t1", "Seccomp:\t2", "\n100\n0\n4096\n", "Read-only file system", "\n100\n", "search example.org",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("lacks %q:\n%s", want, got)
		}
	}
}

func TestPrivilegedInitAndShared(t *testing.T) {
	h := newHost(t)
	req := sh("cat /proc/self/status | grep -E 'CapEff|Seccomp:'; mount -t tmpfs none /tmp && echo mounted; sleep 60")
	req.Name = "first"
	req.Host.Privileged = true
	req.Host.IpcMode = "shareable"
	id := h.run(req)
	h.says(id, "mounted", 1)
	if got := h.logs(id); !strings.Contains(got, "Seccomp:\t0") || !strings.Contains(got, "mounted") {
		t.Errorf("got %s", got)
	}
	two := sh("ls /proc/1/root/bin/sh; cat /proc/1/cmdline; ip addr show eth0 | grep 'inet '; ls /dev/shm; hostname")
	two.Name = "second"
	two.Host.PidMode, two.Host.NetworkMode, two.Host.IpcMode = "container:first", "container:first", "container:first"
	h.exec("first", "touch", "/dev/shm/here")
	h.wait(h.run(two), containers.NotRunning)
	if got := h.logs("second"); !strings.Contains(got, "sleep\x0060") || !strings.Contains(got, "inet "+strings.TrimSuffix(h.ground.BIP.Masked().Addr().String(), "0")) || !strings.Contains(got, "here\n") {
		t.Errorf("got %s", got)
	}
	must(t, h.svc.Kill(bg, "first", ""))
	wait30(t, "the shared memory to go", func() bool {
		_, err := os.Stat(h.opts.ExecRoot + "/shm/" + id)
		return os.IsNotExist(err)
	})
}

func TestFailedStarts(t *testing.T) {
	h := newHost(t)
	for _, c := range []struct {
		cmd  string
		code int
		kind error
		text string
	}{
		{"nosuch", 127, errs.NoCommand, `exec: "nosuch": executable file not found in $PATH`},
		{"/etc/passwd", 126, errs.NotExecutable, "permission denied"},
		{"/no/file", 127, errs.NoCommand, "no such file or directory"},
	} {
		req := sh("")
		req.Config.Cmd = []string{c.cmd}
		made, err := h.svc.Create(bg, req)
		must(t, err)
		wants(t, h.svc.Start(bg, made.ID, ""), c.kind, c.text)
		if st := h.inspect(made.ID).State; st.Status != container.Created || st.ExitCode != c.code || st.Error == "" {
			t.Errorf("%s: %+v", c.cmd, st)
		}
		must(t, h.svc.Remove(bg, made.ID, containers.RemoveOptions{}))
	}
	req := sh("true")
	req.Config.User = "nobody-here"
	req.Host.AutoRemove = true
	made, err := h.svc.Create(bg, req)
	must(t, err)
	wants(t, h.svc.Start(bg, made.ID, ""), errs.Invalid, "unable to find user nobody-here: no matching entries in passwd file")
	if _, err := h.svc.Inspect(bg, made.ID, false); !errors.Is(err, errs.NotFound) {
		t.Errorf("still there: %v", err)
	}
	req = sh("true")
	req.Host.NetworkMode = "nosuch"
	made, err = h.svc.Create(bg, req)
	must(t, err)
	wants(t, h.svc.Start(bg, made.ID, ""), errs.NotFound, "network nosuch not found")
}

func TestFilesOfAContainer(t *testing.T) {
	h := newHost(t)
	req := sh("echo new >/tmp/f; echo changed >/data/seed; sleep 60")
	req.Host.Binds = []string{"cpvol:/vol"}
	id := h.run(req)
	for range 3000 {
		if ch, err := h.svc.Changes(bg, id); err == nil && len(ch) >= 4 {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	ch, err := h.svc.Changes(bg, id)
	must(t, err)
	var list []string
	for _, c := range ch {
		list = append(list, string("CAD"[c.Kind])+" "+c.Path)
	}
	if got := strings.Join(list, "; "); got != "C /data; C /data/seed; C /tmp; A /tmp/f; A /vol" {
		t.Errorf("changes: %s; it says %q", got, h.logs(id))
	}
	check := func(when string) {
		st, err := h.svc.StatPath(bg, id, "/bin/sh")
		must(t, err)
		if st.Name != "sh" || st.LinkTarget != "/bin/busybox" {
			t.Errorf("%s: stat %+v", when, st)
		}
		_, err = h.svc.StatPath(bg, id, "/nothing")
		wants(t, err, errs.NotFound, "Could not find the file /nothing in container "+id)
		var b bytes.Buffer
		must(t, h.svc.ArchivePath(bg, id, "/tmp", func(containers.PathStat) io.Writer { return &b }))
		if names := tarNames(t, &b); !slices.Equal(names, []string{"tmp/", "tmp/f"}) {
			t.Errorf("%s: %v", when, names)
		}
		b.Reset()
		must(t, h.svc.ArchivePath(bg, id, "/tmp/f", func(containers.PathStat) io.Writer { return &b }))
		archive := bytes.Clone(b.Bytes())
		if names := tarNames(t, &b); !slices.Equal(names, []string{"f"}) {
			t.Errorf("%s: %v", when, names)
		}
		must(t, h.svc.ExtractTo(bg, id, "/vol", bytes.NewReader(archive), false, false))
		vol, err := h.vols.Get(bg, "cpvol")
		must(t, err)
		if got, err := os.ReadFile(vol.Mountpoint + "/f"); err != nil || string(got) != "new\n" {
			t.Errorf("%s: %q %v", when, got, err)
		}
		must(t, os.Remove(vol.Mountpoint+"/f"))
	}
	check("running")
	img, err := h.svc.Commit(bg, containers.CommitRequest{Container: id, Ref: "mine:1", Pause: true, Changes: []string{`CMD ["cat","/tmp/f"]`}})
	must(t, err)
	h.status(id, container.Running)
	must(t, h.svc.Kill(bg, id, ""))
	check("stopped")
	var b bytes.Buffer
	must(t, h.svc.Export(bg, id, func() io.Writer { return &b }))
	if names := tarNames(t, &b); !slices.Contains(names, "tmp/f") {
		t.Errorf("export: %v", names)
	}
	req = containers.CreateRequest{}
	req.Config.Image = img
	id2 := h.run(req)
	h.wait(id2, containers.NotRunning)
	if got := h.logs(id2); got != "new\n" {
		t.Errorf("committed image says %q", got)
	}
	stopped, _ := h.svc.ImageUsers(h.inspect(id2).Image)
	if !slices.Equal(stopped, []string{id2}) {
		t.Errorf("users %v", stopped)
	}
}

func tarNames(t *testing.T, r io.Reader) (names []string) {
	t.Helper()
	tr := tar.NewReader(r)
	for {
		hdr, err := tr.Next()
		if err == io.EOF {
			return names
		}
		must(t, err)
		names = append(names, hdr.Name)
	}
}

func TestPs(t *testing.T) {
	h := newHost(t)
	a, b := sh("exit 4"), sh("sleep 60")
	a.Name, b.Name = "alpha", "beta"
	b.Config.Labels = map[string]string{"k": "v"}
	b.Host.Annotations = map[string]string{"org.example.team": "blue"}
	b.Host.Binds = []string{"psvol:/v"}
	b.Config.ExposedPorts = map[string]struct{}{"80/tcp": {}}
	aid := h.run(a)
	h.wait(aid, containers.NotRunning)
	bid := h.run(b)
	for _, c := range []struct {
		all  bool
		args filter.Args
		want string
	}{
		{false, nil, "beta"}, {true, nil, "beta alpha"},
		{true, filter.Args{"name": {"alph"}}, "alpha"}, {true, filter.Args{"id": {bid[:7]}}, "beta"}, {false, filter.Args{"status": {"exited"}}, "alpha"},
		{false, filter.Args{"exited": {"4"}}, "alpha"}, {true, filter.Args{"exited": {"0"}}, ""}, {true, filter.Args{"label": {"k=v"}}, "beta"}, {true, filter.Args{"label": {"k=w"}}, ""},
		{false, filter.Args{"before": {"beta"}}, "alpha"}, {false, filter.Args{"since": {"alpha"}}, "beta"}, {true, filter.Args{"ancestor": {"busybox"}}, "beta alpha"},
		{true, filter.Args{"annotation": {"org.example.team"}}, "beta"}, {true, filter.Args{"annotation": {"org.example.team=blue"}}, "beta"},
		{true, filter.Args{"annotation": {"org.example.team=red"}}, ""}, {true, filter.Args{"annotation": {"k"}}, ""},
		{true, filter.Args{"ancestor": {"nosuch"}}, ""}, {true, filter.Args{"volume": {"psvol"}}, "beta"}, {true, filter.Args{"volume": {"/v"}}, "beta"}, {true, filter.Args{"expose": {"80"}}, "beta"},
		{true, filter.Args{"network": {"bridge"}}, "beta alpha"}, {true, filter.Args{"network": {"none"}}, ""}, {true, filter.Args{"health": {"none"}}, "beta alpha"}, {true, filter.Args{"is-task": {"true"}}, ""},
	} {
		list, err := h.svc.List(bg, containers.ListOptions{All: c.all, Filters: c.args})
		must(t, err)
		var names []string
		for _, v := range list {
			names = append(names, v.Name)
		}
		if got := strings.Join(names, " "); got != c.want {
			t.Errorf("%v: %q, want %q", c.args, got, c.want)
		}
	}
	_, err := h.svc.List(bg, containers.ListOptions{Filters: filter.Args{"nonsense": {"1"}}})
	wants(t, err, errs.Invalid, "invalid filter 'nonsense'")
	must(t, h.svc.Kill(bg, "beta", ""))
	pruned, err := h.svc.Prune(bg, nil)
	must(t, err)
	if len(pruned.Deleted) != 2 {
		t.Errorf("pruned %v", pruned)
	}
}

func TestRestartPolicies(t *testing.T) {
	h := newHost(t)
	req := sh("echo run; exit 2")
	req.Host.Restart = container.RestartPolicy{Name: "on-failure", MaxRetries: 2}
	id := h.run(req)
	for range 3000 {
		if st := h.inspect(id); st.State.Status == container.Exited && st.RestartCount == 2 {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	if st := h.inspect(id); st.State.Status != container.Exited || st.RestartCount != 2 || strings.Count(h.logs(id), "run\n") != 3 {
		t.Errorf("%+v: %q", st.State, h.logs(id))
	}
	req = sh("exit 0")
	req.Host.Restart = container.RestartPolicy{Name: "always"}
	id = h.run(req)
	for range 3000 {
		if h.inspect(id).RestartCount > 0 {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	if err := h.svc.Stop(bg, id, containers.StopOptions{}); err != nil && !errors.Is(err, errs.NotModified) {
		t.Fatal(err)
	}
	n := h.inspect(id).RestartCount
	time.Sleep(300 * time.Millisecond)
	if st := h.inspect(id); st.State.Status != container.Exited || st.RestartCount != n || n == 0 {
		t.Errorf("after stop: %+v, %d restarts", st.State, st.RestartCount-n)
	}
}

func TestEngineComesBack(t *testing.T) {
	h := newHost(t)
	run := sh("sleep 0.1; echo before; while ! test -e /go; do sleep 0.02; done; echo after; exit 9")
	run.Name = "runs"
	id := h.run(run)
	ended := sh("while ! test -e /end; do sleep 0.02; done; exit 6")
	ended.Name = "ends"
	eid := h.run(ended)
	rm := sh("while ! test -e /end; do sleep 0.02; done")
	rm.Name, rm.Host.AutoRemove = "rm", true
	h.run(rm)
	lost := sh("sleep 60")
	lost.Name = "lost"
	h.run(lost)
	always := sh("sleep 60")
	always.Name, always.Host.Restart.Name = "always", "always"
	h.run(always)
	stopped := sh("sleep 60")
	stopped.Name, stopped.Host.Restart.Name = "stopped", "unless-stopped"
	h.run(stopped)
	zero := 0
	must(t, h.svc.Stop(bg, "stopped", containers.StopOptions{Timeout: &zero}))
	made, err := h.svc.Create(bg, sh("true"))
	must(t, err)
	away := []int{h.inspect(eid).State.PID, h.inspect("rm").State.PID}
	alwaysPid := h.inspect("always").State.PID
	lostPid := h.inspect("lost").State.PID
	runsPid := h.inspect(id).State.PID
	must(t, h.svc.Rename(bg, "ends", "ends-anew"))
	h.close()
	freeze(t, runsPid) // as the last engine did when it was killed in the middle of a commit
	killMonitorOf(t, lostPid)
	killMonitorOf(t, alwaysPid)
	for _, pid := range away {
		must(t, os.WriteFile("/proc/"+itoa(pid)+"/root/end", nil, 0o600))
	}
	for _, pid := range away {
		waitFor(t, "the end of a container while the engine is away", func() bool { _, err := os.Stat("/proc/" + itoa(pid)); return err != nil })
	}
	for _, pid := range []int{lostPid, alwaysPid} { // who is nobody's any more ends at once, not when the next engine finds it
		waitFor(t, "the end of a container whose monitor was killed while the engine is away", func() bool {
			b, err := os.ReadFile("/proc/" + itoa(pid) + "/stat")
			return err != nil || strings.Contains(string(b), ") Z ")
		})
	}
	must(t, os.MkdirAll(h.dir+"/containers/0123456789ab", 0o700)) // half made
	h.open()

	h.status("runs", container.Running)
	hasEnded := func(v containers.View) bool { return v.State.Status == container.Exited } // a monitor may be about to write it down
	if name := h.inspect(eid).Name; name != "ends-anew" {
		t.Errorf("it was renamed, and is called %s", name)
	}
	if st := h.until(eid, "ended", hasEnded).State; st.ExitCode != 6 {
		t.Errorf("ended while away: %+v", st)
	}
	waitFor(t, "the end of what was started with --rm", func() bool { _, err := h.svc.Inspect(bg, "rm", false); return errors.Is(err, errs.NotFound) })
	if st := h.until("lost", "ended", hasEnded).State; st.Status != container.Exited || st.ExitCode != 137 || st.Error == "" {
		t.Errorf("lost: %+v", st)
	}
	if b, err := os.ReadFile("/proc/" + itoa(lostPid) + "/stat"); err == nil && !strings.Contains(string(b), ") Z ") {
		t.Errorf("the lost container's process lives: %s", b)
	}
	for range 3000 {
		if h.inspect("always").State.Status == container.Running {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	h.status("always", container.Running)
	h.status("stopped", container.Exited)
	h.status(made.ID, container.Created)
	if _, err := os.Stat(h.dir + "/containers/0123456789ab"); err == nil {
		t.Error("the half made container is still there")
	}
	h.exec("runs", "touch", "/go")
	if end := h.wait(id, containers.NotRunning); end.Code != 9 {
		t.Errorf("code %d", end.Code)
	}
	if got := h.logs(id); got != "before\nafter\n" {
		t.Errorf("logs %q", got)
	}
}

// freeze stops all processes of a container behind the engine's back.
func freeze(t *testing.T, pid int) {
	t.Helper()
	groups, err := os.ReadFile("/proc/" + itoa(pid) + "/cgroup")
	must(t, err)
	for line := range strings.Lines(string(groups)) {
		f := strings.SplitN(strings.TrimSpace(line), ":", 3)
		file, word := "/sys/fs/cgroup/freezer"+f[2]+"/freezer.state", "FROZEN"
		if f[1] == "" {
			file, word = "/sys/fs/cgroup"+f[2]+"/cgroup.freeze", "1"
		}
		if _, err := os.Stat(file); err == nil && (f[1] == "" || f[1] == "freezer") {
			must(t, os.WriteFile(file, []byte(word), 0))
			return
		}
	}
	t.Fatalf("no freezer for process %d: %s", pid, groups)
}

func killMonitorOf(t *testing.T, pid int) {
	t.Helper()
	b, err := os.ReadFile("/proc/" + itoa(pid) + "/stat")
	must(t, err)
	f := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
	ppid := 0
	for _, c := range f[1] {
		ppid = ppid*10 + int(c-'0')
	}
	comm, err := os.ReadFile("/proc/" + itoa(ppid) + "/cmdline")
	must(t, err)
	if !strings.HasPrefix(string(comm), "corten-monitor") {
		t.Fatalf("parent of %d is %s", pid, comm)
	}
	must(t, syscall.Kill(ppid, syscall.SIGKILL))
}

func TestMonitorIsKilled(t *testing.T) {
	h := newHost(t)
	id := h.run(sh("echo said; sleep 60"))
	for range 3000 {
		if strings.Contains(h.logs(id), "said") {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	pid := h.inspect(id).State.PID
	killMonitorOf(t, pid)
	if end := h.wait(id, containers.NotRunning); end.Code != 137 || h.inspect(id).State.Error == "" {
		t.Errorf("end %+v", end)
	}
	if h.logs(id) != "said\n" {
		t.Errorf("logs %q", h.logs(id))
	}
	must(t, h.svc.Start(bg, id, ""))
	h.status(id, container.Running)
}

func itoa(n int) string {
	if n < 10 {
		return string(rune('0' + n))
	}
	return itoa(n/10) + itoa(n%10)
}

func TestOutOfMemory(t *testing.T) {
	h := newHost(t)
	req := sh("exec dd if=/dev/zero of=/dev/null bs=60M count=1")
	req.Host.Resources.Memory = 10 << 20
	id := h.run(req)
	h.wait(id, containers.NotRunning)
	if st := h.inspect(id).State; !st.OOMKilled || st.ExitCode != 137 {
		t.Errorf("%+v", st)
	}
	// The next engine knows it, too, when it happens while none runs.
	req = sh("while ! test -e /go; do sleep 0.02; done; exec dd if=/dev/zero of=/dev/null bs=60M count=1")
	req.Host.Resources.Memory = 10 << 20
	id = h.run(req)
	pid := itoa(h.inspect(id).State.PID)
	h.close()
	must(t, os.WriteFile("/proc/"+pid+"/root/go", nil, 0o600))
	waitFor(t, "the end of a container while the engine is away", func() bool { _, err := os.Stat("/proc/" + pid); return err != nil })
	h.open()
	ended := h.until(id, "ended", func(v containers.View) bool { return v.State.Status == container.Exited })
	if st := ended.State; !st.OOMKilled || st.ExitCode != 137 {
		t.Errorf("while the engine was away: %+v", st)
	}
}
