package containers

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"corten.dev/corten/internal/container"
	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/linux/mount"
	"corten.dev/corten/internal/linux/pidfd"
	"corten.dev/corten/internal/network"
	"corten.dev/corten/internal/task"
)

// joinNetwork makes or finds the network namespace of a run, and writes the files that depend on it.
func (s *Service) joinNetwork(ctx context.Context, r *run) error {
	if ref, ok := strings.CutPrefix(r.rec.Host.NetworkMode, "container:"); ok {
		ns, err := s.namespaceOf(ref, "net", "cannot join network of a non running container: %s")
		if err != nil {
			return err
		}
		r.sandbox = &network.Sandbox{Owner: r.ctr.id, NS: ns}
		return nil
	}
	req, err := s.joinRequest(r.rec)
	if err != nil {
		return err
	}
	sb, err := s.Networks.Join(ctx, req)
	if err != nil {
		return err
	}
	r.sandbox = sb
	return s.writeGenerated(r.rec, sb)
}

// joinRequest is what a container asks of the network room.
func (s *Service) joinRequest(rec *container.Record) (network.JoinRequest, error) {
	cfg, host := &rec.Config, &rec.Host
	asked, err := container.ReadAnnotations(host.Annotations)
	if err != nil {
		return network.JoinRequest{}, err
	}
	req := network.JoinRequest{Owner: rec.ID, Name: rec.Name, Hostname: cfg.Hostname, DNSSearch: host.DNSSearch, DNSOptions: host.DNSOptions, Openings: s.openings(rec), Egress: asked.Egress, Rates: asked.Rates}
	for _, addr := range host.DNS {
		req.DNS = append(req.DNS, addr.String())
	}
	names := slices.SortedFunc(maps.Keys(rec.Networks), func(a, b string) int { // the mode's network first
		if (a == host.NetworkMode) != (b == host.NetworkMode) {
			if a == host.NetworkMode {
				return -1
			}
			return 1
		}
		return strings.Compare(a, b)
	})
	for _, name := range names {
		req.Endpoints = append(req.Endpoints, s.Endpoint(rec, name, rec.Networks[name]))
	}
	if len(req.Endpoints) == 0 { // it was disconnected from all of them
		req.Endpoints = []network.EndpointRequest{{Network: "none"}}
	}
	if host.NetworkMode == "host" {
		return req, nil
	}
	req.Ports = slices.Clone(host.Ports)
	if req.Exposed, err = exposed(cfg.ExposedPorts, nil); err != nil {
		return req, err
	}
	if host.PublishAll {
		more, err := exposed(cfg.ExposedPorts, host.Ports)
		if err != nil {
			return req, err
		}
		req.Ports = append(req.Ports, more...)
	}
	return req, nil
}

// Endpoint is what a container asks of one network.
func (s *Service) Endpoint(rec *container.Record, name string, ep container.EndpointSettings) network.EndpointRequest {
	return network.EndpointRequest{
		Network: name, IPv4: ep.IPv4, IPv6: ep.IPv6, LinkLocal: ep.LinkLocal, MAC: ep.MAC, Aliases: append(slices.Clone(ep.Aliases), rec.ID[:12]), Priority: ep.GwPriority, Options: ep.DriverOpts,
		Links: s.aliasLinks(ep.Links),
	}
}

// exposed lists the ports that -P publishes: all that are exposed and not published by hand.
func exposed(ports map[string]struct{}, have []network.Port) ([]network.Port, error) {
	type key struct {
		proto string
		port  uint16
	}
	taken := map[key]bool{}
	for p := range network.Each(have) {
		taken[key{p.Proto, p.ContainerPort}] = true
	}
	var list []network.Port
	for _, spec := range slices.Sorted(maps.Keys(ports)) {
		first, last, proto, ok := portRange(spec)
		if !ok {
			return nil, errs.New(errs.Invalid, "invalid exposed port %q", spec)
		}
		for p := first; p <= last; p++ {
			if !taken[key{proto, uint16(p)}] {
				list = append(list, network.Port{Proto: proto, ContainerPort: uint16(p), HostIP: netip.Addr{}})
			}
		}
	}
	return list, nil
}

// portRange reads FIRST[-LAST][/PROTOCOL].
func portRange(text string) (first, last uint64, proto string, ok bool) {
	numbers, proto, _ := strings.Cut(text, "/")
	if proto == "" {
		proto = "tcp"
	}
	lo, hi, isRange := strings.Cut(numbers, "-")
	if !isRange {
		hi = lo
	}
	first, err := strconv.ParseUint(lo, 10, 16)
	if err != nil {
		return 0, 0, "", false
	}
	last, err = strconv.ParseUint(hi, 10, 16)
	return first, last, proto, err == nil && last >= first
}

// joinOthers opens the pid and ipc namespaces of other containers, and the shared memory that goes with ipc.
func (s *Service) joinOthers(r *run, undo *task.Undo) error {
	host := &r.rec.Host
	join := func(mode, name string, kind specs.LinuxNamespaceType) error {
		ref, ok := strings.CutPrefix(mode, "container:")
		if !ok {
			return nil
		}
		ns, err := s.namespaceOf(ref, name, "container %s is not running")
		if err != nil {
			return err
		}
		r.held = append(r.held, ns)
		r.joins[kind] = procPath(ns)
		return nil
	}
	if err := join(host.PidMode, "pid", specs.PIDNamespace); err != nil {
		return err
	}
	if ref, ok := strings.CutPrefix(host.IpcMode, "container:"); ok {
		other, err := s.find(ref)
		if err != nil {
			return err
		}
		if !other.record().State.Status.Live() {
			return errs.New(errs.Conflict, "can't join IPC of container %s: container %s is not running", other.id, other.id)
		}
		if mode := other.record().Host.IpcMode; mode != "shareable" {
			return errs.New(errs.Conflict, "can't join IPC of container %s: non-shareable IPC (hint: use IpcMode:shareable for the donor container)", other.id)
		}
		r.shm = s.shmDir(other.id)
	}
	if err := join(host.IpcMode, "ipc", specs.IPCNamespace); err != nil {
		return err
	}
	switch host.IpcMode {
	case "host":
		r.shm = "/dev/shm"
	case "shareable":
		return s.mountShm(r, undo)
	}
	return nil
}

// namespaceOf opens a namespace of a running container; notRunning is what to say of another. The pidfd tells afterwards that the process was still the same.
func (s *Service) namespaceOf(ref, kind, notRunning string) (*os.File, error) {
	ctr, err := s.find(ref)
	if err != nil {
		return nil, err
	}
	mon, _, err := ctr.handles()
	if err != nil {
		return nil, errs.New(errs.Conflict, notRunning, ctr.id)
	}
	ns, err := pidfd.Open(mon.PIDFD(), mon.PID(), "ns/"+kind)
	if errors.Is(err, errs.Conflict) { // it has ended meanwhile
		return nil, errs.New(errs.Conflict, notRunning, ctr.id)
	}
	if err != nil {
		return nil, fmt.Errorf("join the %s namespace of container %s: %w", kind, ctr.id, err)
	}
	return ns, nil
}

func (s *Service) shmDir(id string) string { return filepath.Join(s.ExecRoot, "shm", id) }

// mountShm makes the /dev/shm that other containers may join: the one mount of this service that the host's table shows.
func (s *Service) mountShm(r *run, undo *task.Undo) error {
	dir := s.shmDir(r.ctr.id)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	if err := mount.Tmpfs("shm", dir, fmt.Sprintf("mode=1777,size=%d", r.rec.Host.ShmSize)); err != nil {
		return fmt.Errorf("mount shared memory: %w", err)
	}
	undo.Push(func(context.Context) error { return s.unmountShm(r.ctr.id) })
	r.shm = dir
	return nil
}

func (s *Service) unmountShm(id string) error {
	dir := s.shmDir(id)
	if err := mount.Detach(dir); err != nil {
		return fmt.Errorf("unmount shared memory of %s: %w", id, err)
	}
	if err := os.Remove(dir); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// sweepMounts takes away the mounts of runs that are no more: an engine was killed after the mount and before the run, or after the container and before the mount.
func (s *Service) sweepMounts() error {
	dirs, err := filepath.Glob(s.shmDir("*"))
	if err != nil {
		return err
	}
	var all []error
	for _, dir := range dirs {
		if ctr, err := s.find(filepath.Base(dir)); err != nil || !ctr.record().State.Status.Live() {
			all = append(all, s.unmountShm(filepath.Base(dir)))
		}
	}
	if dirs, err = filepath.Glob(s.partDir("*")); err != nil {
		return err
	}
	for _, dir := range dirs { // of a moment in a start
		if id := strings.TrimSuffix(filepath.Base(dir), partMark); len(id) == idLength {
			all = append(all, mount.Detach(dir), os.Remove(dir))
		}
	}
	return errors.Join(all...)
}

// procPath names an open file for those in this process who take a path; it is good while the file is open.
func procPath(f *os.File) string { return fmt.Sprintf("/proc/self/fd/%d", f.Fd()) }
