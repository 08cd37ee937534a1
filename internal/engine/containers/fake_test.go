package containers_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"corten.dev/corten/internal/container"
	"corten.dev/corten/internal/engine/containers"
	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/events"
	"corten.dev/corten/internal/image"
	"corten.dev/corten/internal/linux/counters"
	"corten.dev/corten/internal/manifest"
	"corten.dev/corten/internal/monitor"
	"corten.dev/corten/internal/monitor/monitortest"
	"corten.dev/corten/internal/network"
	"corten.dev/corten/internal/runtime"
	"corten.dev/corten/internal/snapshot"
	"corten.dev/corten/internal/volume"
)

// world is all rooms in memory, with a ledger of what is held and a step that fails.
type world struct {
	mu     sync.Mutex
	held   map[string]int     // what was taken and not given back
	calls  []string           // steps in order
	failAt int                // the how-manieth step fails; 0 none
	bug    bool               // it panics instead
	hook   func(string) error // asked before each step, and before some things that are none; nil for nobody
	vols   map[string]volume.Volume
	users  map[string]map[string]bool
	procs  map[string]*fakeProcess
	mons   *monitortest.Fake
}

var errPlanned = errors.New("planned failure")

func newWorld() *world {
	return &world{held: map[string]int{}, vols: map[string]volume.Volume{}, users: map[string]map[string]bool{}, procs: map[string]*fakeProcess{}, mons: &monitortest.Fake{}}
}

// step notes a call and fails it when its turn has come.
func (w *world) step(name string) error {
	if err := w.hooked(name); err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.calls = append(w.calls, name)
	if len(w.calls) == w.failAt && w.bug {
		panic("planned bug")
	}
	if len(w.calls) == w.failAt {
		return fmt.Errorf("%s: %w", name, errPlanned)
	}
	return nil
}

func (w *world) hooked(name string) error {
	w.mu.Lock()
	hook := w.hook
	w.mu.Unlock()
	if hook == nil {
		return nil
	}
	return hook(name)
}

func (w *world) take(what string, n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.held[what] = n; n <= 0 { // taking something twice is taking it
		delete(w.held, what)
	}
}

func (w *world) ledger() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return fmt.Sprint(w.held)
}

type fakeTrees struct {
	*world
	dir string
}

func (f fakeTrees) Name() string { return "fake" }
func (f fakeTrees) Prepare(_ context.Context, key string, _ snapshot.ChainID, _ snapshot.Options) error {
	if err := f.step("prepare"); err != nil {
		return err
	}
	f.take("tree "+key, 1)
	return os.MkdirAll(f.dir+"/"+key+"/etc", 0o755)
}

func (f fakeTrees) Mount(_ context.Context, key string) (*snapshot.Mounted, error) {
	if err := f.step("mount"); err != nil {
		return nil, err
	}
	root, err := os.Open(f.dir + "/" + key)
	if err != nil {
		return nil, err
	}
	f.take("mount "+key, 1)
	var once sync.Once
	return &snapshot.Mounted{Root: root, Close: func() error { once.Do(func() { f.take("mount "+key, -1); root.Close() }); return nil }}, nil
}
func (f fakeTrees) Changes(context.Context, string) ([]snapshot.Change, error) { return nil, nil }
func (f fakeTrees) Usage(context.Context, string) (int64, error)               { return 0, nil }
func (f fakeTrees) Remove(_ context.Context, key string) error {
	f.take("tree "+key, -1)
	return nil
}

func (f fakeTrees) Walk(_ context.Context, fn func(string, map[string]string) error) error {
	f.mu.Lock()
	var keys []string
	for what := range f.held {
		if key, ok := strings.CutPrefix(what, "tree "); ok {
			keys = append(keys, key)
		}
	}
	f.mu.Unlock()
	for _, key := range keys {
		if err := fn(key, map[string]string{"dev.corten.container": key}); err != nil {
			return err
		}
	}
	return nil
}

type fakeImages struct{ *world }

func (f fakeImages) Get(_ context.Context, ref string) (image.Image, error) {
	if ref != "img" {
		return image.Image{}, errs.New(errs.NotFound, "No such image: %s", ref)
	}
	img := image.Image{ID: "sha256:1234", Chain: "sha256:5678"}
	img.Config.OS, img.Config.Architecture = "linux", "amd64"
	img.Config.Config = image.RunConfig{
		Env: []string{"A=image", "B=image"}, Entrypoint: []string{"/entry"}, Cmd: []string{"cmd"}, WorkingDir: "/work", Labels: map[string]string{"l": "image", "m": "image"}, Volumes: map[string]struct{}{"/anon": {}},
		StopSignal: "SIGINT",
	}
	return img, nil
}

func (f fakeImages) GetFor(_ context.Context, ref string, p manifest.Platform) (image.Image, error) {
	if ref == "img" && p.Arch == "arm64" {
		img := image.Image{ID: "sha256:arm", Chain: "sha256:5678"}
		img.Config.OS, img.Config.Architecture, img.Config.Config.Cmd = "linux", "arm64", []string{"cmd"}
		return img, nil
	}
	return image.Image{}, errs.New(errs.NotFound, "no image of that platform")
}

func (f fakeImages) Commit(context.Context, image.CommitOptions) (image.Image, error) {
	return image.Image{}, errs.New(errs.NotImplemented, "not here")
}

type fakeNetworks struct{ *world }

func (f fakeNetworks) Get(context.Context, string) (network.Network, error) {
	return network.Network{}, nil
}

func (f fakeNetworks) Join(_ context.Context, req network.JoinRequest) (*network.Sandbox, error) {
	if err := f.step("join"); err != nil {
		return nil, err
	}
	f.take("network "+req.Owner, 1)
	return &network.Sandbox{Owner: req.Owner, ResolvConf: []byte("nameserver 127.0.0.11\n")}, nil
}

func (f fakeNetworks) Restore(_ context.Context, req network.JoinRequest, _ network.Sandbox, _ int) error {
	f.take("network "+req.Owner, 1)
	return nil
}

func (f fakeNetworks) Leave(_ context.Context, owner string) error {
	f.mu.Lock()
	delete(f.held, "network "+owner)
	f.mu.Unlock()
	return nil
}
func (f fakeNetworks) Connect(context.Context, string, int, network.EndpointRequest) (network.Endpoint, error) {
	return network.Endpoint{}, f.step("connect")
}
func (f fakeNetworks) Disconnect(context.Context, string, int, string) error {
	return f.step("disconnect")
}
func (f fakeNetworks) SetPorts(context.Context, string, []network.Port) error { return f.step("ports") }
func (f fakeNetworks) SetLimits(context.Context, string, int, network.Limits) error {
	return f.step("limits of networks")
}
func (f fakeNetworks) EgressCounts(context.Context) (owners, networks map[string]network.EgressCount, err error) {
	return nil, nil, f.step("egress counts")
}
func (f fakeNetworks) Sandbox(string) (network.Sandbox, bool)       { return network.Sandbox{}, false }
func (f fakeNetworks) Rename(context.Context, string, string) error { return f.step("rename") }
func (f fakeNetworks) HostGateway() netip.Addr                      { return netip.MustParseAddr("10.0.0.1") }

type fakeVolumes struct{ *world }

func (f fakeVolumes) Create(_ context.Context, opts volume.CreateOptions) (volume.Volume, error) {
	if err := f.step("volume create"); err != nil {
		return volume.Volume{}, err
	}
	name := opts.Name
	if name == "" {
		name = fmt.Sprintf("anon%d", len(f.vols))
	}
	if err := volume.CheckName(name); err != nil {
		return volume.Volume{}, err
	}
	vol := volume.Volume{Name: name, Driver: "local", Mountpoint: "/tmp", Anonymous: opts.Name == "", Made: true}
	f.mu.Lock()
	f.vols[name] = vol
	f.mu.Unlock()
	f.take("volume "+name, 1)
	return vol, nil
}

func (f fakeVolumes) Get(_ context.Context, name string) (volume.Volume, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if vol, ok := f.vols[name]; ok {
		return vol, nil
	}
	return volume.Volume{}, errs.New(errs.NotFound, "get %s: no such volume", name)
}

func (f fakeVolumes) Remove(_ context.Context, name string, _ bool) error {
	f.mu.Lock()
	delete(f.vols, name)
	f.mu.Unlock()
	f.take("volume "+name, -1)
	return nil
}

func (f fakeVolumes) Acquire(_ context.Context, name, user string) error {
	if err := f.step("volume acquire"); err != nil {
		return err
	}
	f.take("user of "+name+" "+user, 1)
	return nil
}

func (f fakeVolumes) Release(_ context.Context, name, user string) error {
	if err := f.hooked("volume release"); err != nil {
		return err
	}
	f.take("user of "+name+" "+user, -1)
	return nil
}

func (f fakeVolumes) Mount(_ context.Context, name, user string) (string, error) {
	if err := f.step("volume mount"); err != nil {
		return "", err
	}
	f.take("mounted "+name+" "+user, 1)
	return "/tmp", nil
}

func (f fakeVolumes) Unmount(_ context.Context, name, user string) error {
	f.take("mounted "+name+" "+user, -1)
	return nil
}
func (f fakeVolumes) Fill(context.Context, string, *os.File) error { return f.step("fill") }

type fakeRuntime struct{ *world }

func (f fakeRuntime) Knows(name string) bool { return name == "corten" || name == "runc" }

func (f fakeRuntime) Create(ctx context.Context, _ string, opts runtime.RunOptions) (containers.Process, error) {
	if err := f.step("runtime create"); err != nil {
		return nil, err
	}
	pid, _, err := opts.Launcher.Launch(ctx, []byte("program"), nil)
	if err != nil {
		return nil, err
	}
	settled := false
	defer func() {
		if !settled { // as the kernel does to a process that the engine kills; a fake monitor has no pidfd
			f.mons.Monitor(opts.ID).End(monitor.Exit{Code: 137})
		}
	}()
	if err := f.step("runtime settle"); err != nil {
		return nil, err
	}
	settled = true
	p := &fakeProcess{world: f.world, id: opts.ID, pid: pid, spec: opts.Spec}
	f.mu.Lock()
	f.procs[opts.ID] = p
	f.mu.Unlock()
	f.take("process "+opts.ID, 1)
	return p, nil
}

func (f fakeRuntime) Load(_ context.Context, id string) (containers.Process, error) {
	if err := f.hooked("load " + id); err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if p := f.procs[id]; p != nil {
		return p, nil
	}
	return nil, errs.New(errs.NotFound, "container %s does not exist", id)
}

func (f fakeRuntime) List(context.Context) (ids []string, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for id := range f.procs {
		ids = append(ids, id)
	}
	return ids, nil
}

type fakeProcess struct {
	*world
	id   string
	pid  int
	spec *specs.Spec
}

func (p *fakeProcess) PID() int { return p.pid }
func (p *fakeProcess) Exec(context.Context, runtime.Exec) (int, error) {
	return 0, errs.New(errs.NotImplemented, "not here")
}

func (p *fakeProcess) Signal(_ context.Context, sig syscall.Signal, _ bool) error {
	if mon := p.mons.Monitor(p.id); mon != nil && sig != syscall.SIGUSR1 {
		select {
		case <-mon.Exited():
		default:
			mon.End(monitor.Exit{Code: 128 + int(sig), Signal: int(sig), At: time.Now()})
		}
	}
	return nil
}
func (p *fakeProcess) Pause(context.Context) error  { return p.step("pause") }
func (p *fakeProcess) Resume(context.Context) error { return p.step("resume") }
func (p *fakeProcess) Update(context.Context, *specs.LinuxResources) error {
	return p.step("update")
}
func (p *fakeProcess) Meter(*counters.Budget) containers.Meter { return fakeMeter{} }

type fakeMeter struct{}

func (fakeMeter) Read() (runtime.Stats, error)             { return runtime.Stats{Pids: 1}, nil }
func (fakeMeter) Close()                                   {}
func (p *fakeProcess) PIDs(context.Context) ([]int, error) { return []int{p.pid}, nil }
func (p *fakeProcess) Delete(context.Context) error {
	p.mu.Lock()
	_, here := p.procs[p.id]
	delete(p.procs, p.id)
	p.mu.Unlock()
	if here {
		p.take("process "+p.id, -1)
	}
	return nil
}

type fakeStarter struct {
	*world
	*monitortest.Fake
}

func (f fakeStarter) Launch(ctx context.Context, l monitor.Launch) (monitor.Monitor, error) {
	if err := f.step("launch"); err != nil {
		return nil, err
	}
	return f.Fake.Launch(ctx, l)
}

// options are those of a service over this world.
func (w *world) options(t *testing.T) containers.Options {
	dir := t.TempDir()
	return containers.Options{
		Root: dir + "/containers", ExecRoot: dir + "/exec", Runtime: fakeRuntime{w}, Monitors: fakeStarter{w, w.mons}, Trees: fakeTrees{w, dir}, Images: fakeImages{w}, Networks: fakeNetworks{w},
		Volumes: fakeVolumes{w}, Events: &events.Bus{}, BootID: "boot",
		ReadExit: func(string) (monitor.Exit, error) { return monitor.Exit{}, errs.New(errs.NotFound, "none") },
	}
}

func fakeRequest(t *testing.T) containers.CreateRequest {
	var req containers.CreateRequest
	req.Name = "ctr"
	req.Config.Image = "img"
	req.Host.Annotations = map[string]string{container.AnnotationRestartDelay: "1ms"}
	req.Host.Binds = []string{"named:/named", t.TempDir() + ":/bind"}
	return req
}

// TestEveryFailureIsTakenBack fails every step of create, start and remove in turn, and looks whether the ledger is what it was before the verb.
func TestEveryFailureIsTakenBack(t *testing.T) {
	for failAt := 1; failAt < 50; failAt++ {
		w := newWorld()
		svc, err := containers.New(w.options(t))
		must(t, err)
		req := fakeRequest(t)
		w.failAt = failAt
		made, err := svc.Create(bg, req)
		if err != nil {
			if !errors.Is(err, errPlanned) {
				t.Fatal(err)
			}
			if got := w.ledger(); got != "map[]" {
				t.Errorf("create failed at %s and left %s", w.calls[failAt-1], got)
			}
			if list, _ := svc.List(bg, containers.ListOptions{All: true}); len(list) != 0 {
				t.Errorf("create failed at %s and the container is there", w.calls[failAt-1])
			}
			w.failAt = 0
			_, err = svc.Create(bg, req) // the name is free
			must(t, err)
			must(t, svc.Close())
			continue
		}
		before := w.ledger()
		err = svc.Start(bg, made.ID, "")
		if err == nil {
			if len(w.calls) >= failAt {
				t.Fatalf("%s failed and nobody noticed", w.calls[failAt-1])
			}
			must(t, svc.Remove(bg, made.ID, containers.RemoveOptions{Force: true, Volumes: true}))
			must(t, svc.Close())
			if got := w.ledger(); got != "map[volume named:1]" {
				t.Errorf("left behind: %s", got)
			}
			t.Logf("%d steps: %s", len(w.calls), strings.Join(w.calls, ", "))
			return
		}
		if got := w.ledger(); got != before {
			t.Errorf("start failed at %s: %s, before %s", w.calls[failAt-1], got, before)
		}
		view, err := svc.Inspect(bg, made.ID, false)
		must(t, err)
		if st := view.State; st.Status != container.Created || st.ExitCode != 128 || !strings.Contains(st.Error, "planned failure") {
			t.Errorf("start failed at %s: state %+v", w.calls[failAt-1], st)
		}
		w.failAt = 0
		must(t, svc.Start(bg, made.ID, "")) // it can be tried again
		must(t, svc.Close())
	}
	t.Error("there is no end of steps")
}

// A step of a start that panicked left the container between two states: start never answered, nor did stop, rm or wait. It must be an error as any other, whichever step it
// is, also one of those that run beside.
func TestBugInAStartIsAnError(t *testing.T) {
	for step := 1; step < 50; step++ {
		w := newWorld()
		svc, err := containers.New(w.options(t))
		must(t, err)
		made, err := svc.Create(bg, fakeRequest(t))
		must(t, err)
		before := w.ledger()
		w.mu.Lock()
		w.failAt, w.bug = len(w.calls)+step, true
		w.mu.Unlock()
		err = svc.Start(bg, made.ID, "")
		if err == nil {
			if len(w.calls) >= w.failAt {
				t.Fatalf("%s panicked and nobody noticed", w.calls[w.failAt-1])
			}
			must(t, svc.Close())
			if step < 5 {
				t.Error("there are more steps than that")
			}
			return
		}
		name := w.calls[w.failAt-1]
		if !strings.Contains(err.Error(), "bug of the engine: planned bug") {
			t.Errorf("%s: %v", name, err)
		}
		if got := w.ledger(); got != before {
			t.Errorf("%s: %s, before %s", name, got, before)
		}
		if view, err := svc.Inspect(bg, made.ID, false); err != nil || view.State.Status != container.Created {
			t.Errorf("%s: state %+v, %v", name, view.State, err)
		}
		w.mu.Lock()
		w.failAt = 0
		w.mu.Unlock()
		must(t, svc.Start(bg, made.ID, "")) // it can be tried again
		must(t, svc.Remove(bg, made.ID, containers.RemoveOptions{Force: true, Volumes: true}))
		must(t, svc.Close())
	}
	t.Error("there is no end of steps")
}

// What nftables could not say took the whole answer with it, and with that every tool that looks at a container before it does something to it.
func TestInspectWithoutCounts(t *testing.T) {
	w := newWorld()
	svc, err := containers.New(w.options(t))
	must(t, err)
	req := fakeRequest(t)
	req.Host.Annotations[container.AnnotationEgress] = "none"
	made, err := svc.Create(bg, req)
	must(t, err)
	must(t, svc.Start(bg, made.ID, ""))
	w.failAt = len(w.calls) + 1
	view, err := svc.Inspect(bg, made.ID, false)
	if err != nil || view.Egress != nil || w.calls[w.failAt-1] != "egress counts" {
		t.Errorf("%v, %v after %s", err, view.Egress, w.calls[w.failAt-1])
	}
	must(t, svc.Remove(bg, made.ID, containers.RemoveOptions{Force: true}))
	must(t, svc.Close())
}

func TestImageAndRequestMerge(t *testing.T) {
	w := newWorld()
	svc, err := containers.New(w.options(t))
	must(t, err)
	req := fakeRequest(t)
	req.Config.Cmd = []string{"mine"}
	req.Config.Env = []string{"B=mine", "C=mine"}
	req.Config.Labels = map[string]string{"l": "mine"}
	made, err := svc.Create(bg, req)
	must(t, err)
	view, err := svc.Inspect(bg, made.ID, false)
	must(t, err)
	if got := fmt.Sprintf("%v %v %v %v %v %v %v", view.Path, view.Args, view.Config.Env, view.Config.Labels, view.Config.WorkingDir, view.Config.StopSignal, len(view.Mounts)); got !=
		"/entry [mine] [B=mine C=mine A=image] map[l:mine m:image] /work SIGINT 3" {
		t.Error(got)
	}
	req.Name, req.Config.Entrypoint, req.Config.Cmd = "two", []string{""}, nil
	_, err = svc.Create(bg, req)
	wants(t, err, errs.Invalid, "no command specified")
	req.Config.Entrypoint = []string{"sh"}
	made, err = svc.Create(bg, req)
	must(t, err)
	if view, _ = svc.Inspect(bg, made.ID, false); view.Path != "sh" || len(view.Args) != 0 {
		t.Errorf("an entrypoint of the user's drops the image's command: %s %v", view.Path, view.Args)
	}
	must(t, svc.Close())
}

func TestRefusals(t *testing.T) {
	w := newWorld()
	svc, err := containers.New(w.options(t))
	must(t, err)
	on := true
	for text, change := range map[string]func(*containers.CreateRequest){
		"Invalid container name (-x), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed": func(r *containers.CreateRequest) { r.Name = "-x" },
		"No such image: nope":                 func(r *containers.CreateRequest) { r.Config.Image = "nope" },
		"Minimum memory limit allowed is 6MB": func(r *containers.CreateRequest) { r.Host.Resources.Memory = 1 },
		"invalid restart policy: unknown policy 'often'; use one of 'no', 'always', 'on-failure', 'unless-stopped', or 'on-unhealthy'": func(r *containers.CreateRequest) { r.Host.Restart.Name = "often" },
		"can't create 'AutoRemove' container with restart policy":                                                                      func(r *containers.CreateRequest) { r.Host.AutoRemove, r.Host.Restart.Name = true, "always" },
		"Duplicate mount point: /bind": func(r *containers.CreateRequest) { r.Host.Tmpfs = map[string]string{"/bind": ""} },
		"container has 1022 mounts, those of its image counted, more than 1000": func(r *containers.CreateRequest) {
			r.Config.Volumes = map[string]struct{}{}
			for i := range 1019 {
				r.Config.Volumes[fmt.Sprint("/v", i)] = struct{}{}
			}
		},
		"invalid mode: sideways":                                                  func(r *containers.CreateRequest) { r.Host.Binds = []string{"/a:/b:sideways"} },
		"invalid specification: destination can't be '/'":                         func(r *containers.CreateRequest) { r.Host.Binds = []string{"/a:/"} },
		"the working directory 'rel' is invalid, it needs to be an absolute path": func(r *containers.CreateRequest) { r.Config.WorkingDir = "rel" },
		"invalid signal: SIGNONE":                                                 func(r *containers.CreateRequest) { r.Config.StopSignal = "SIGNONE" },
		"unknown or invalid runtime name: kata":                                   func(r *containers.CreateRequest) { r.Host.Runtime = "kata" },
		"logger: no log driver named 'splunk' is registered":                      func(r *containers.CreateRequest) { r.Host.Log.Type = "splunk" },
		"unknown log opt 'colour' for log driver local": func(r *containers.CreateRequest) {
			r.Host.Log = container.LogConfig{Type: "local", Config: map[string]string{"colour": "red"}}
		},
		"user namespace mode \"keep-id\" is not supported":                         func(r *containers.CreateRequest) { r.Host.UsernsMode = "keep-id" },
		`invalid CapAdd: unknown capability: "CAP_FLY"`:                            func(r *containers.CreateRequest) { r.Host.CapAdd = []string{"FLY"} },
		"conflicting options: port publishing and the container type network mode": func(r *containers.CreateRequest) { r.Host.NetworkMode, r.Host.PublishAll = "container:x", true },
		"invalid device cgroup rule format: 'x'":                                   func(r *containers.CreateRequest) { r.Host.Resources.DeviceCgroupRules = []string{"x"} },
		"invalid ulimit type: speed":                                               func(r *containers.CreateRequest) { r.Host.Resources.Ulimits = []container.Ulimit{{Name: "speed"}} },
		"invalid --security-opt 2: \"shields=up\"":                                 func(r *containers.CreateRequest) { r.Host.SecurityOpt = []string{"shields=up"} },
		`"a/b" includes invalid characters for a local volume name, only "[a-zA-Z0-9][a-zA-Z0-9_.-]" are allowed. If you intended to pass`: func(r *containers.CreateRequest) { r.Host.Binds = []string{"a/b:/c"} },
	} {
		req := fakeRequest(t)
		req.Host.Init = &on
		change(&req)
		_, err := svc.Create(bg, req)
		if err == nil || !strings.Contains(err.Error(), text) {
			t.Errorf("got %v, want %q", err, text)
		}
	}
	if w.ledger() != "map[]" {
		t.Errorf("left %s", w.ledger())
	}
	must(t, svc.Close())
}

// TestCrashes plays an engine that dies at different moments: the world stays as it was, and a new service looks at it.
func TestCrashes(t *testing.T) {
	w := newWorld()
	opts := w.options(t)
	svc, err := containers.New(opts)
	must(t, err)
	mk := func(name string, change func(*containers.CreateRequest)) string {
		req := fakeRequest(t)
		req.Name = name
		change(&req)
		made, err := svc.Create(bg, req)
		must(t, err)
		return made.ID
	}
	none := func(*containers.CreateRequest) {}
	runs := mk("runs", none)
	must(t, svc.Start(bg, runs, ""))
	auto := mk("auto", func(r *containers.CreateRequest) { r.Host.AutoRemove = true })
	must(t, svc.Start(bg, auto, ""))
	half := mk("half", none)
	halfAuto := mk("half-auto", func(r *containers.CreateRequest) { r.Host.AutoRemove = true })
	lost := mk("lost", func(r *containers.CreateRequest) { r.Host.Restart.Name = "always" })
	must(t, svc.Start(bg, lost, ""))
	must(t, svc.Close())
	// The engine died: the halves were cloned but never noted; auto and lost ended meanwhile, lost with its monitor.
	for _, id := range []string{half, halfAuto} {
		_, err = w.mons.Launch(bg, monitor.Launch{ID: id})
		must(t, err)
	}
	w.mons.Monitor(auto).End(monitor.Exit{Code: 3, At: time.Now()})
	w.mons.Monitor(lost).End(monitor.Exit{Code: 137, Lost: true, At: time.Now()})
	must(t, w.mons.Monitor(lost).Close())
	w.take("tree leftover", 1)
	for _, id := range []string{half, halfAuto} {
		w.mons.Monitor(id).End(monitor.Exit{Code: 137}) // as the kernel does on SIGKILL
	}
	svc, err = containers.New(opts)
	must(t, err)
	state := func(id string) container.Status {
		view, err := svc.Inspect(bg, id, false)
		if err != nil {
			return container.Status(err.Error())
		}
		return view.State.Status
	}
	eventually := func(ok func() bool) bool { // an engine that starts does some of it in the background
		for end := time.Now().Add(30 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
			if time.Now().After(end) {
				return false
			}
		}
		return true
	}
	for id, want := range map[string]container.Status{runs: container.Running, auto: container.Status("No such container: " + auto), half: container.Created,
		halfAuto: container.Status("No such container: " + halfAuto), lost: container.Running} {
		if !eventually(func() bool { return state(id) == want }) {
			t.Errorf("%s: %s, want %s", id[:6], state(id), want)
		}
	}
	if !eventually(func() bool {
		return !strings.Contains(w.ledger(), "leftover") && !strings.Contains(w.ledger(), auto) && !strings.Contains(w.ledger(), halfAuto)
	}) {
		t.Errorf("left over: %s", w.ledger())
	}
	must(t, svc.Close())
}
