package containers

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"time"

	"corten.dev/corten/internal/container"
	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/events"
	"corten.dev/corten/internal/image"
	"corten.dev/corten/internal/manifest"
	"corten.dev/corten/internal/network"
	"corten.dev/corten/internal/task"
)

const labelOwner = "dev.corten.container" // on a tree: the container it belongs to

var (
	nameRule = regexp.MustCompile(`^/?[a-zA-Z0-9][a-zA-Z0-9_.-]+$`)
)

// Create makes a container: name, mounts, tree, folder, record; each step is taken back when a later one fails.
func (s *Service) Create(ctx context.Context, req CreateRequest) (created Created, err error) {
	if req.Name != "" && !nameRule.MatchString(req.Name) {
		return created, errs.New(errs.Invalid, "Invalid container name (%s), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed", req.Name)
	}
	if req.Config.Image == "" {
		return created, errs.New(errs.Invalid, "no image given: a container is made from an image")
	}
	img, err := s.Images.Get(ctx, req.Config.Image)
	if err != nil {
		return created, err
	}
	if img, err = s.forPlatform(ctx, req.Config.Image, req.Platform, img); err != nil {
		return created, err
	}
	warnings, err := s.validate(&req)
	if err != nil {
		return created, err
	}
	rec := container.Record{
		ID: newID(), Created: time.Now().UTC(), Image: img.ID, ImageRef: req.Config.Image, Platform: platform(img),
		Config: merge(req.Config, img.Config.Config), Host: req.Host, Networks: maps.Clone(req.Networks),
		State: container.State{Status: container.Created},
	}
	s.firstNetwork(&rec)
	if err := s.complete(&rec); err != nil {
		return created, err
	}
	if err := errors.Join(ownAddresses(&rec), s.ownLinks(&rec)); err != nil {
		return created, err
	}

	var undo task.Undo
	defer undo.OnError(ctx, &err)
	if err := s.takeLabels(&rec); err != nil {
		return created, err
	}
	undo.Push(func(context.Context) error { s.maker.Security.ReleaseLabels(rec.ProcessLabel); return nil })
	rec.Networks = s.plain.share(rec.Networks)
	ctr := newLive(rec)
	if err := s.takeName(ctr, strings.TrimPrefix(req.Name, "/")); err != nil {
		return created, err
	}
	undo.Push(func(context.Context) error { s.table.free(ctr.record().Name, ctr); return nil })
	if err := s.claimMounts(ctx, ctr, &undo); err != nil {
		return created, err
	}
	opts, err := s.treeOptions(&rec)
	if err != nil {
		return created, err
	}
	if err := s.Trees.Prepare(ctx, rec.ID, img.Chain, opts); err != nil {
		return created, fmt.Errorf("make the file tree of container %s: %w", ctr.record().Name, err)
	}
	undo.Push(func(ctx context.Context) error { return s.Trees.Remove(ctx, rec.ID) })
	if err := s.folders.Mkdir(rec.ID, 0o700); err != nil {
		return created, err
	}
	undo.Push(func(context.Context) error { return os.RemoveAll(s.dir(rec.ID)) })
	if err := s.save(ctr, true); err != nil {
		return created, err
	}
	if !rec.Host.AutoRemove {
		if err := syncDir(s.Root); err != nil {
			return created, err
		}
	}
	s.table.add(ctr)
	s.emit(ctr, "create", nil)
	return Created{ID: rec.ID, Warnings: warnings}, nil
}

// idLength is how many letters the id of a container has.
const idLength = 64

func newID() string {
	var b [idLength / 2]byte
	for {
		rand.Read(b[:]) // never fails
		id := hex.EncodeToString(b[:])
		// The short form must not look like a number: tools and shells would read it as one.
		if strings.ContainsAny(id[:12], "abcdef") {
			return id
		}
	}
}

// takeName reserves the wished name, or makes one up.
func (s *Service) takeName(ctr *live, wish string) error {
	if wish != "" {
		ctr.change(func(rec *container.Record) { rec.Name = wish })
		return s.table.reserve(wish, ctr)
	}
	for try := range 20 {
		name := madeUpName(try)
		ctr.change(func(rec *container.Record) { rec.Name = name })
		if s.table.reserve(name, ctr) == nil {
			return nil
		}
	}
	name := "ctr_" + ctr.id[:12]
	ctr.change(func(rec *container.Record) { rec.Name = name })
	return s.table.reserve(name, ctr)
}

func platform(img image.Image) string {
	p := img.Config.OS + "/" + img.Config.Architecture
	if img.Config.Variant != "" {
		p += "/" + img.Config.Variant
	}
	return p
}

// forPlatform is the image for the platform asked for: the one that the name leads to, or one that came with it.
func (s *Service) forPlatform(ctx context.Context, ref, want string, img image.Image) (image.Image, error) {
	if want == "" {
		return img, nil
	}
	os, arch, _ := strings.Cut(want, "/")
	if arch == "" && (os == img.Config.OS || os == img.Config.Architecture) || want == platform(img) || want == img.Config.OS+"/"+img.Config.Architecture {
		return img, nil
	}
	p, err := manifest.ParsePlatform(want)
	if err != nil {
		return img, err
	}
	other, err := s.Images.GetFor(ctx, ref, p)
	if errors.Is(err, errs.NotFound) {
		err = errs.New(errs.NotFound, "image with reference %s was found but its platform (%s) does not match the specified platform (%s)", ref, platform(img), want)
	}
	return other, err
}

// merge completes what the user asked for by what the image says.
func merge(cfg container.Config, img image.RunConfig) container.Config {
	if cfg.User == "" {
		cfg.User = img.User
	}
	cfg.ExposedPorts = union(cfg.ExposedPorts, img.ExposedPorts)
	cfg.Volumes = union(cfg.Volumes, img.Volumes)
	cfg.Env = slices.Clone(cfg.Env)
	for _, kv := range img.Env {
		key, _, _ := strings.Cut(kv, "=")
		if !slices.ContainsFunc(cfg.Env, func(have string) bool { k, _, _ := strings.Cut(have, "="); return k == key }) {
			cfg.Env = append(cfg.Env, kv)
		}
	}
	labels := maps.Clone(img.Labels)
	if labels == nil {
		labels = map[string]string{}
	}
	maps.Copy(labels, cfg.Labels)
	cfg.Labels = labels
	if len(cfg.Entrypoint) == 0 {
		if len(cfg.Cmd) == 0 {
			cfg.Cmd, cfg.ArgsEscaped = img.Cmd, img.ArgsEscaped
		}
		if cfg.Entrypoint == nil {
			cfg.Entrypoint = img.Entrypoint
		}
	}
	if len(cfg.Entrypoint) == 1 && cfg.Entrypoint[0] == "" { // --entrypoint "" clears the image's
		cfg.Entrypoint = nil
	}
	if cfg.WorkingDir == "" {
		cfg.WorkingDir = img.WorkingDir
	}
	if cfg.StopSignal == "" {
		cfg.StopSignal = img.StopSignal
	}
	if cfg.StopTimeout == nil {
		cfg.StopTimeout = img.StopTimeout
	}
	cfg.Healthcheck = mergeHealth(cfg.Healthcheck, img.Healthcheck)
	if cfg.Shell == nil {
		cfg.Shell = img.Shell
	}
	return cfg
}

// mergeHealth fills what a request leaves open of a health check from the image's.
func mergeHealth(asked, img *image.Healthcheck) *image.Healthcheck {
	if asked == nil || img == nil {
		return cmp.Or(asked, img)
	}
	h := *asked
	if len(h.Test) == 0 {
		h.Test = img.Test
	}
	h.Interval, h.Timeout = cmp.Or(h.Interval, img.Interval), cmp.Or(h.Timeout, img.Timeout)
	h.StartPeriod, h.StartInterval = cmp.Or(h.StartPeriod, img.StartPeriod), cmp.Or(h.StartInterval, img.StartInterval)
	h.Retries = cmp.Or(h.Retries, img.Retries)
	return &h
}

func union(a, b map[string]struct{}) map[string]struct{} {
	if len(b) == 0 {
		return a
	}
	all := maps.Clone(b)
	maps.Copy(all, a)
	return all
}

// firstNetwork is the network that a new container is on. One that there is may have left it since, which no change of something else takes back.
func (s *Service) firstNetwork(rec *container.Record) {
	host := &rec.Host
	if host.NetworkMode == "" || host.NetworkMode == "default" {
		host.NetworkMode = s.Network
		if ep, ok := rec.Networks["default"]; ok {
			delete(rec.Networks, "default")
			rec.Networks[s.Network] = ep
		}
	}
	if rec.Config.NetworkDisabled {
		host.NetworkMode = "none"
	}
	if rec.Networks == nil {
		rec.Networks = map[string]container.EndpointSettings{}
	}
	if _, ok := rec.Networks[host.NetworkMode]; !ok && !strings.HasPrefix(host.NetworkMode, "container:") {
		rec.Networks[host.NetworkMode] = container.EndpointSettings{}
	}
}

// complete fills in defaults and resolves the command, the mounts, and whose network it shares. Maps of rec are those of a record that others read: none is changed in place.
func (s *Service) complete(rec *container.Record) error {
	cfg, host := &rec.Config, &rec.Host
	command := append(slices.Clone(cfg.Entrypoint), cfg.Cmd...)
	if len(command) == 0 {
		return errs.New(errs.Invalid, "no command specified")
	}
	rec.Path, rec.Args = command[0], command[1:]
	if ref, ok := strings.CutPrefix(host.NetworkMode, "container:"); ok { // who shares a network shares its names
		other, err := s.find(ref)
		if err != nil {
			return noOther(err)
		}
		host.NetworkMode = "container:" + other.id
		cfg.Hostname, cfg.Domainname = other.record().Config.Hostname, other.record().Config.Domainname
	}
	if cfg.Hostname == "" && host.UTSMode != "host" && host.NetworkMode != "host" {
		cfg.Hostname = rec.ID[:12]
	}
	if cfg.Hostname == "" {
		name, err := os.Hostname()
		if err != nil {
			return err
		}
		cfg.Hostname = name
	}
	s.defaultLog(&host.Log)
	if host.Restart.Name == "" {
		host.Restart.Name = "no"
	}
	if n := host.Resources.PidsLimit; n != nil && *n <= 0 { // both mean no limit, and inspect shows none
		host.Resources.PidsLimit = nil
	}
	if n := host.Resources.MemorySwappiness; n != nil && *n == -1 {
		host.Resources.MemorySwappiness = nil
	}
	if host.ShmSize == 0 {
		host.ShmSize = s.ShmSize
	}
	if host.IpcMode == "" {
		host.IpcMode = "private"
	}
	if host.CgroupnsMode == "" {
		host.CgroupnsMode = "private"
		if !cgroup2() {
			host.CgroupnsMode = "host"
		}
	}
	if host.Runtime == "" {
		host.Runtime = s.DefaultRuntime
	}
	if host.PidMode == "host" || host.IpcMode == "host" { // what it shares with the host has the host's labels
		labelled := func(opt string) bool { return strings.HasPrefix(opt, "label=") || strings.HasPrefix(opt, "label:") }
		if !slices.ContainsFunc(host.SecurityOpt, labelled) {
			host.SecurityOpt = append(slices.Clone(host.SecurityOpt), "label=disable")
		}
	}
	if host.Resources.Memory > 0 && host.Resources.MemorySwap == 0 {
		host.Resources.MemorySwap = 2 * host.Resources.Memory
	}
	return s.resolveMounts(rec)
}

// emit publishes an event about a container, with its labels, image and name as attributes.
func (s *Service) emit(ctr *live, action string, extra map[string]string) {
	rec := ctr.record()
	if uses, ok := s.Images.(imageUses); ok {
		uses.Used(rec.Image, time.Now())
	}
	attrs := make(map[string]string, len(rec.Config.Labels)+len(extra)+2)
	maps.Copy(attrs, rec.Config.Labels)
	attrs["image"], attrs["name"] = rec.ImageRef, rec.Name
	maps.Copy(attrs, extra)
	s.Events.Publish(events.Event{Type: "container", Action: action, ID: ctr.id, Attributes: attrs})
}

// emitNetworks publishes that a container came to, or left, its networks.
func (s *Service) emitNetworks(ctx context.Context, rec *container.Record, action string, sb *network.Sandbox) {
	if mode := rec.Host.NetworkMode; mode == "none" || mode == "host" { // no endpoint in them, but listeners count on being told
		s.emitNetwork(ctx, rec.ID, action, mode)
	}
	if sb == nil {
		return
	}
	for _, ep := range sb.Endpoints {
		if ep.WayOut {
			continue // as Docker: nobody asked for it
		}
		driver := ""
		if nw, err := s.Networks.Get(ctx, ep.NetworkID); err == nil {
			driver = nw.Driver
		}
		s.tellNetwork(rec.ID, action, network.Network{ID: ep.NetworkID, Name: ep.Network, Driver: driver})
	}
}

// emitNetwork publishes the same of one network, when a running container is edited.
func (s *Service) emitNetwork(ctx context.Context, id, action, ref string) {
	nw, err := s.Networks.Get(ctx, ref)
	if err != nil { // removed meanwhile
		return
	}
	s.tellNetwork(id, action, nw)
}

func (s *Service) tellNetwork(id, action string, nw network.Network) {
	s.Events.Publish(events.Event{Type: "network", Action: action, ID: nw.ID, Attributes: map[string]string{"container": id, "name": nw.Name, "type": nw.Driver}})
}
