package containers

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"path"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"corten.dev/corten/internal/container"
	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/network"
	"corten.dev/corten/internal/task"
)

// EditRequest changes what a container was made with; empty parts stay.
type EditRequest struct {
	UpdateRequest
	Publish     []network.Port
	Unpublish   []string // [hostPort:]containerPort[/protocol]
	Env         []string // NAME=value
	UnsetEnv    []string
	Labels      map[string]string
	UnsetLabels []string
	Annotations map[string]string // an empty one is taken away
	Binds       []string          // as -v
	Mounts      []container.MountRequest
	Unmount     []string // targets
	Connect     map[string]container.EndpointSettings
	Disconnect  []string
	LogDriver   *string           // replaces the driver and all its options; "": the engine's default
	LogOptions  map[string]string // beside them; an empty one is taken away

	Undo   bool // goes back to what was before the last change, instead of all the above
	DryRun bool // tells what would be done, and does nothing
}

// How a change takes effect.
const (
	EditLive    = "live"       // the running process goes on
	EditRestart = "restart"    // the process is started again, with the same name, id, addresses and file tree
	EditNext    = "next start" // the container does not run
)

// Edited is what an edit did, or would do.
type Edited struct {
	Changes  []string // in words; none: nothing differs
	How      string
	Warnings []string
}

// Edit changes a container's settings: live where the kernel allows that for all of them, else by starting its process again. When the new settings cannot be had, what was before runs again.
//
//	settings as they are ─▶ wanted ─▶ checked ─▶ differences ─┬─▶ none run: kept for the next start
//	                                                          ├─▶ all live: ports, networks, limits; each with its undo
//	                                                          └─▶ else: recreate (recreate.go)
func (s *Service) Edit(ctx context.Context, ref string, req EditRequest) (Edited, error) {
	ctx = context.WithoutCancel(ctx)
	ctr, done, err := s.toEdit(ctx, ref)
	if err != nil {
		return Edited{}, err
	}
	defer done()
	rec := *ctr.record()
	have := rec.Settings()
	want, warnings, err := s.wanted(rec, req)
	if err != nil {
		return Edited{}, fmt.Errorf("update container %s: %w", rec.Name, err)
	}
	diff := s.differences(have, want)
	out := Edited{How: how(rec.State.Status, diff), Warnings: warnings}
	for _, c := range diff {
		out.Changes = append(out.Changes, c.What)
	}
	if req.DryRun || len(diff) == 0 {
		return out, nil
	}
	if err := mayRestart(&rec, out.How); err != nil {
		return Edited{}, err
	}
	switch out.How {
	case EditLive:
		err = s.editLive(ctx, ctr, want, req.Resources)
	default:
		err = s.recreate(ctx, ctr, want, nil)
	}
	if err != nil {
		return Edited{}, fmt.Errorf("update container %s: %w", rec.Name, err)
	}
	s.figures.changed(ctr)
	s.emit(ctr, "update", nil)
	return out, nil
}

// toEdit finds a container whose settings are to be changed, by the caller alone until done is called.
func (s *Service) toEdit(ctx context.Context, ref string) (ctr *live, done func(), err error) {
	if ctr, err = s.find(ref); err != nil {
		return nil, nil, err
	}
	if done, err = ctr.beginEdit(); err != nil {
		return nil, nil, err
	}
	if err := ctr.settled(ctx); err != nil {
		done()
		return nil, nil, err
	}
	return ctr, done, nil
}

// mayRestart refuses to start a frozen process again, which would let it go on.
func mayRestart(rec *container.Record, how string) error {
	if how == EditRestart && rec.State.Status == container.Paused {
		return errs.New(errs.Conflict, "container %s is paused, and the change needs its process to be started again: unpause it first", rec.Name)
	}
	return nil
}

// beginEdit makes edits of one container wait for nobody: a second one is refused.
func (ctr *live) beginEdit() (done func(), err error) {
	ctr.mu.Lock()
	defer ctr.mu.Unlock()
	if ctr.editing {
		return nil, errs.New(errs.Conflict, "container %s is being changed already", ctr.record().Name)
	}
	ctr.editing = true
	return func() { ctr.mu.Lock(); ctr.editing = false; ctr.mu.Unlock() }, nil
}

func how(status container.Status, diff []container.Change) string {
	switch {
	case !status.Live() && status != container.Restarting:
		return EditNext
	case slices.ContainsFunc(diff, func(c container.Change) bool { return !c.Live }) || !status.Live():
		return EditRestart
	}
	return EditLive
}

// wanted is what the settings of a container would be after a request.
func (s *Service) wanted(rec container.Record, req EditRequest) (container.Settings, []string, error) {
	if req.Undo {
		if rec.Previous == nil {
			return container.Settings{}, nil, errs.New(errs.Conflict, "there is nothing to undo: its settings were never changed")
		}
		return *rec.Previous, nil, s.volumesThere(*rec.Previous)
	}
	have := rec.Settings()
	var all []error
	all = append(all, s.editLog(&rec, req), editPorts(&rec, req), editEnv(&rec, req), editLabels(&rec, req), editAnnotations(&rec, req), editMounts(&rec, req), editNetworks(&rec, req))
	if req.Restart != nil && req.Restart.Name != "" {
		all = append(all, checkRestart(&rec, req.Restart))
		rec.Host.Restart = *req.Restart
	}
	var warnings []string
	if req.Resources != nil {
		asked := *req.Resources
		more, err := checkResources(&asked, s.thisMachine(), true)
		warnings = append(warnings, more...)
		all = append(all, err)
		rec.Host.Resources, err = s.mergeLimits(rec.Host.Resources, asked)
		all = append(all, err)
	}
	if err := errors.Join(all...); err != nil {
		return have, nil, err
	}
	if _, err := s.validateAgain(&rec); err != nil {
		return have, nil, err
	}
	if err := s.resettle(&rec, have.Mounts); err != nil {
		return have, nil, err
	}
	return rec.Settings(), warnings, nil
}

// validateAgain checks settings of a container that there is. Its names are what they became: as if they had been asked for, they would rule out the network or the name of others, which it may have.
func (s *Service) validateAgain(rec *container.Record) (warnings []string, err error) {
	check := CreateRequest{Name: rec.Name, Config: rec.Config, Host: rec.Host, Networks: rec.Networks}
	check.Config.Hostname, check.Config.Domainname = "", ""
	return s.validate(&check)
}

// resettle resolves command and mounts of changed settings anew; anonymous volumes stay where there was one, so that what they hold is not lost.
func (s *Service) resettle(rec *container.Record, had []container.Mount) error {
	if err := s.complete(rec); err != nil {
		return err
	}
	for i, mnt := range rec.Mounts {
		for _, old := range had {
			if old.Target != mnt.Target || old.Type != mnt.Type {
				continue
			}
			fresh := mnt
			fresh.Name, fresh.Source, fresh.Driver = old.Name, old.Source, old.Driver
			if mnt.Name == "" && old.Anonymous || reflect.DeepEqual(fresh, old) && (mnt.Name == old.Name || mnt.Name == "") {
				rec.Mounts[i] = old // the volume was found then; its place and driver are not in the request
			}
		}
	}
	return nil
}

// volumesThere refuses to go back to a volume that was removed meanwhile: an empty one of its name would look like a loss.
func (s *Service) volumesThere(want container.Settings) error {
	for _, mnt := range want.Mounts {
		if mnt.Type != "volume" || mnt.Name == "" {
			continue
		}
		if _, err := s.Volumes.Get(s.ctx, mnt.Name); err != nil {
			return fmt.Errorf("undo: mount %s: %w", mnt.Target, err)
		}
	}
	return nil
}

func editPorts(rec *container.Record, req EditRequest) error {
	if len(req.Publish)+len(req.Unpublish) == 0 {
		return nil
	}
	ports := slices.Collect(network.Each(rec.Host.Ports))
	for _, text := range req.Unpublish {
		match, err := portMatcher(text)
		if err != nil {
			return err
		}
		n := len(ports)
		if ports = slices.DeleteFunc(ports, match); len(ports) == n {
			return errs.New(errs.Invalid, "port %s is not published: name the container's port, as in 80 or 8080:80", text)
		}
	}
	for p := range network.Each(req.Publish) {
		if slices.Contains(ports, p) {
			return errs.New(errs.Invalid, "port %s is published already", container.PortText(p))
		}
		ports = append(ports, p)
	}
	rec.Host.Ports = network.Runs(ports)
	if len(req.Publish) > 0 && (rec.Host.NetworkMode == "host" || rec.Host.NetworkMode == "none" || strings.HasPrefix(rec.Host.NetworkMode, "container:")) {
		return errs.New(errs.Invalid, "a container with network mode %s publishes no ports", rec.Host.NetworkMode)
	}
	return nil
}

// portMatcher reads [hostPort:]containerPort[/protocol].
func portMatcher(text string) (func(network.Port) bool, error) {
	rest, proto, given := strings.Cut(text, "/")
	if !given {
		proto = "tcp"
	}
	hostText, inside, both := strings.Cut(rest, ":")
	if !both {
		inside, hostText = hostText, ""
	}
	n, err := strconv.ParseUint(inside, 10, 16)
	if err != nil || n == 0 {
		return nil, errs.New(errs.Invalid, "invalid port %q: want [hostPort:]containerPort[/protocol]", text)
	}
	var h uint64
	if both {
		if h, err = strconv.ParseUint(hostText, 10, 16); err != nil || h == 0 {
			return nil, errs.New(errs.Invalid, "invalid port %q: want [hostPort:]containerPort[/protocol]", text)
		}
	}
	return func(p network.Port) bool {
		return p.Proto == proto && p.ContainerPort == uint16(n) && (!both || p.HostPort == uint16(h))
	}, nil
}

func editEnv(rec *container.Record, req EditRequest) error {
	env := slices.Clone(rec.Config.Env)
	named := func(name string) func(string) bool {
		return func(kv string) bool { have, _, _ := strings.Cut(kv, "="); return have == name }
	}
	for _, name := range req.UnsetEnv {
		n := len(env)
		if env = slices.DeleteFunc(env, named(name)); len(env) == n {
			return errs.New(errs.Invalid, "variable %s is not set", name)
		}
	}
	for _, kv := range req.Env {
		name, _, _ := strings.Cut(kv, "=")
		if i := slices.IndexFunc(env, named(name)); i >= 0 {
			env[i] = kv
		} else {
			env = append(env, kv)
		}
	}
	rec.Config.Env = env
	return nil
}

func editLabels(rec *container.Record, req EditRequest) error {
	labels := maps.Clone(rec.Config.Labels)
	for _, name := range req.UnsetLabels {
		if _, set := labels[name]; !set {
			return errs.New(errs.Invalid, "label %s is not set", name)
		}
		delete(labels, name)
	}
	if labels == nil {
		labels = map[string]string{}
	}
	maps.Copy(labels, req.Labels)
	rec.Config.Labels = labels
	return nil
}

func editMounts(rec *container.Record, req EditRequest) error {
	host, cfg := &rec.Host, &rec.Config
	host.Binds, host.Mounts, host.Tmpfs, cfg.Volumes = slices.Clone(host.Binds), slices.Clone(host.Mounts), maps.Clone(host.Tmpfs), maps.Clone(cfg.Volumes)
	for _, target := range req.Unmount {
		clean := path.Clean(target)
		found := slices.ContainsFunc(rec.Mounts, func(mnt container.Mount) bool { return mnt.Target == clean }) || host.Tmpfs[clean] != "" || host.Tmpfs[target] != ""
		_, tmpfs := host.Tmpfs[clean]
		if !found && !tmpfs {
			return errs.New(errs.Invalid, "nothing is mounted at %s", target)
		}
		host.Binds = slices.DeleteFunc(host.Binds, func(bind string) bool { mnt, err := ParseBind(bind); return err == nil && mnt.Target == clean })
		host.Mounts = slices.DeleteFunc(host.Mounts, func(mnt container.MountRequest) bool { return path.Clean(mnt.Target) == clean })
		maps.DeleteFunc(host.Tmpfs, func(at, _ string) bool { return path.Clean(at) == clean })
		maps.DeleteFunc(cfg.Volumes, func(at string, _ struct{}) bool { return path.Clean(at) == clean })
	}
	host.Binds, host.Mounts = append(host.Binds, req.Binds...), append(host.Mounts, req.Mounts...)
	return nil
}

func editNetworks(rec *container.Record, req EditRequest) error {
	if len(req.Connect)+len(req.Disconnect) == 0 {
		return nil
	}
	mode := rec.Host.NetworkMode
	if mode == "host" || mode == "none" || strings.HasPrefix(mode, "container:") {
		return errs.New(errs.Invalid, "a container with network mode %s is on no other network", mode)
	}
	nets := maps.Clone(rec.Networks)
	for _, name := range req.Disconnect {
		if _, on := nets[name]; !on {
			return errs.New(errs.Invalid, "container %s is not connected to network %s", rec.Name, name)
		}
		delete(nets, name)
	}
	for name, ep := range req.Connect {
		if _, on := nets[name]; on {
			return errs.New(errs.Invalid, "container %s is connected to network %s already", rec.Name, name)
		}
		nets[name] = ep
	}
	if len(nets) == 0 {
		return errs.New(errs.Invalid, "a container needs a network: connect it to another one in the same step")
	}
	if _, stays := nets[mode]; !stays { // its mode names a network that it leaves
		rec.Host.NetworkMode = slices.Sorted(maps.Keys(nets))[0]
	}
	rec.Networks = nets
	return nil
}

// editLive makes all changes while the process runs, and takes those made back when one fails.
func (s *Service) editLive(ctx context.Context, ctr *live, want container.Settings, limits *container.Resources) (err error) {
	var undo task.Undo
	defer undo.OnError(ctx, &err)
	undo.Push(func(context.Context) error { ctr.change(s.seeSandbox); return nil }) // the last thing, when all else was taken back
	rec := ctr.record()
	have := rec.Settings()
	if !reflect.DeepEqual(have.Host.Resources, want.Host.Resources) {
		if limits == nil {
			limits = &want.Host.Resources
		}
		if err := updateLive(ctx, ctr, *limits, want.Host.Resources, &undo); err != nil {
			return err
		}
	}
	if err := s.rewire(ctx, ctr, have, want, &undo); err != nil {
		return err
	}
	if err := s.limitNetworks(ctx, ctr, have, want, &undo); err != nil {
		return err
	}
	if !slices.Equal(have.Host.Ports, want.Host.Ports) {
		set := func(ctx context.Context, to container.Settings) error {
			after := *ctr.record()
			after.Set(to)
			req, err := s.joinRequest(&after)
			if err != nil {
				return err
			}
			return s.Networks.SetPorts(ctx, ctr.id, req.Ports)
		}
		if err := set(ctx, want); err != nil {
			return err
		}
		undo.Push(func(ctx context.Context) error { return set(ctx, have) })
	}
	relog, err := s.relogLive(ctx, ctr, have, want)
	if err != nil {
		return err
	}
	undo.Push(relog.back)
	before := rec.Previous
	ctr.change(func(rec *container.Record) {
		rec.Set(want)
		rec.Previous = &have
		s.seeSandbox(rec)
	})
	undo.Push(func(context.Context) error {
		ctr.change(func(rec *container.Record) { rec.Set(have); rec.Previous = before })
		return nil
	})
	if err := s.save(ctr, true); err != nil {
		return err
	}
	relog.done(ctx)
	s.dropTrees(ctx, ctr, before)
	if err := s.followNetworks(ctr.record(), rec.Sandbox); err != nil {
		s.Log.Warn("follow a change of networks", "error", err)
	}
	return nil
}

// seeSandbox notes what a running container has in its networks now: by a network more or less, its ports and its resolv.conf may have changed too.
func (s *Service) seeSandbox(rec *container.Record) {
	if rec.Sandbox == nil {
		return
	}
	if sb, ok := s.Networks.Sandbox(rec.ID); ok {
		sb.NS = nil // the descriptor is the room's
		rec.Sandbox = &sb
	}
}

// rewire connects and disconnects a running container.
func (s *Service) rewire(ctx context.Context, ctr *live, have, want container.Settings, undo *task.Undo) error {
	pid := ctr.record().State.PID
	connect := func(ctx context.Context, name string, ep container.EndpointSettings) error {
		_, err := s.Networks.Connect(ctx, ctr.id, pid, s.Endpoint(ctr.record(), name, ep))
		if err == nil {
			s.emitNetwork(ctx, ctr.id, "connect", name)
		}
		return err
	}
	disconnect := func(ctx context.Context, name string) error {
		err := s.Networks.Disconnect(ctx, ctr.id, pid, name)
		if err == nil {
			s.emitNetwork(ctx, ctr.id, "disconnect", name)
		}
		return err
	}
	for _, name := range slices.Sorted(maps.Keys(want.Networks)) {
		ep := want.Networks[name]
		old, had := have.Networks[name]
		if had && reflect.DeepEqual(old, ep) {
			continue
		}
		if had {
			if err := disconnect(ctx, name); err != nil {
				return err
			}
			undo.Push(func(ctx context.Context) error { return connect(ctx, name, old) })
		}
		if err := connect(ctx, name, ep); err != nil {
			return err
		}
		undo.Push(func(ctx context.Context) error { return disconnect(ctx, name) })
	}
	for _, name := range slices.Sorted(maps.Keys(have.Networks)) {
		if _, stays := want.Networks[name]; stays {
			continue
		}
		if err := disconnect(ctx, name); err != nil {
			return err
		}
		undo.Push(func(ctx context.Context) error { return connect(ctx, name, have.Networks[name]) })
	}
	return nil
}
