package networks

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"strings"

	"corten.dev/corten/internal/container"
	"corten.dev/corten/internal/engine/containers"
	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/events"
	"corten.dev/corten/internal/filter"
	"corten.dev/corten/internal/network"
)

// Rooms is the part of network.Manager that this service needs.
type Rooms interface {
	Create(ctx context.Context, nw network.Network) (network.Network, error)
	Get(ctx context.Context, ref string) (network.Network, error)
	List(ctx context.Context) ([]network.Network, error)
	Remove(ctx context.Context, ref string) error
	Update(ctx context.Context, ref string, req network.NetworkChange) ([]string, error)
	Endpoints(ctx context.Context, ref string) (map[string]network.Endpoint, error)
	EgressCounts(ctx context.Context) (owners, networks map[string]network.EgressCount, err error)
	Usage(ctx context.Context, ref string) ([]network.SubnetUsage, error)
	Live
}

// Live changes the network of a running container.
type Live interface {
	Connect(ctx context.Context, owner string, pid int, req network.EndpointRequest) (network.Endpoint, error)
	Disconnect(ctx context.Context, owner string, pid int, network string) error
}

// Containers are those that may be on a network.
type Containers interface {
	Record(ref string) (container.Record, error)
	// Settled is the record once a start that is under way came to its end.
	Settled(ctx context.Context, ref string) (container.Record, error)
	Names() map[string]string
	// Endpoint is what the container asks of a network.
	Endpoint(rec *container.Record, name string, ep container.EndpointSettings) network.EndpointRequest
	// SetNetwork keeps that a container is (nil: is not) on a network. change says what it has in its networks then; nil: what the room says.
	SetNetwork(ref, name string, ep *container.EndpointSettings, change func(rec *container.Record)) error
}

// Options join the service with its rooms; all are needed.
type Options struct {
	Networks   Rooms
	Containers Containers
	Events     *events.Bus
}

// Service implements [API].
type Service struct{ Options }

var _ API = (*Service)(nil)

// New makes the service.
func New(opts Options) *Service { return &Service{opts} }

func (s *Service) emit(action string, nw network.Network, extra map[string]string) {
	attrs := map[string]string{"name": nw.Name, "type": nw.Driver}
	for k, v := range extra {
		attrs[k] = v
	}
	s.Events.Publish(events.Event{Type: "network", Action: action, ID: nw.ID, Attributes: attrs})
}

// Create implements [API].
func (s *Service) Create(ctx context.Context, nw network.Network) (network.Network, error) {
	made, err := s.Networks.Create(ctx, nw)
	if err == nil {
		s.emit("create", made, nil)
	}
	return made, err
}

// List implements [API].
func (s *Service) List(ctx context.Context, filters filter.Args) ([]View, error) {
	if err := filters.Accept("dangling", "driver", "id", "label", "name", "scope", "type"); err != nil {
		return nil, err
	}
	dangling, err := filters.Bool("dangling", false)
	if err != nil {
		return nil, err
	}
	for _, kind := range filters["type"] {
		if kind != "custom" && kind != "builtin" {
			return nil, errs.New(errs.Invalid, "invalid filter: 'type'='%s'", kind)
		}
	}
	all, err := s.Networks.List(ctx)
	if err != nil {
		return nil, err
	}
	names := s.Containers.Names()
	var list []View
	for _, nw := range all {
		kind := "custom"
		if nw.Predefined {
			kind = "builtin"
		}
		if !filters.Exact("driver", nw.Driver) || !filters.Match("id", nw.ID) || !filters.Match("name", nw.Name) || !filters.Labels("label", nw.Labels) ||
			!filters.Exact("scope", "local") || !filters.Exact("type", kind) {
			continue
		}
		view, err := s.view(ctx, nw, names)
		if errors.Is(err, errs.NotFound) {
			continue // removed meanwhile
		}
		if err != nil {
			return nil, err
		}
		if filters.Has("dangling") && dangling != (!nw.Predefined && len(view.Containers) == 0) {
			continue
		}
		list = append(list, view)
	}
	slices.SortFunc(list, func(a, b View) int { return strings.Compare(a.Name, b.Name) })
	return list, nil
}

func (s *Service) view(ctx context.Context, nw network.Network, names map[string]string) (View, error) {
	eps, err := s.Networks.Endpoints(ctx, nw.ID)
	if err != nil {
		return View{}, err
	}
	view := View{Network: nw, Containers: make(map[string]Member, len(eps))}
	for owner, ep := range eps {
		name := names[owner]
		if ep.WayOut { // as Docker
			name = "gateway_" + owner[:min(len(owner), 12)]
		}
		view.Containers[owner] = Member{Name: name, Endpoint: ep}
	}
	return view, nil
}

// Inspect implements [API].
func (s *Service) Inspect(ctx context.Context, ref string) (View, error) {
	nw, err := s.Networks.Get(ctx, ref)
	if err != nil {
		return View{}, err
	}
	view, err := s.view(ctx, nw, s.Containers.Names())
	if err != nil {
		return View{}, err
	}
	if view.Usage, err = s.Networks.Usage(ctx, nw.ID); err != nil || nw.Options[network.OptionEgress] == "" {
		return view, err
	}
	_, counts, err := s.Networks.EgressCounts(ctx)
	if c, has := counts[nw.ID]; has {
		view.Egress = &c
	}
	return view, err
}

// Remove implements [API].
func (s *Service) Remove(ctx context.Context, ref string) error {
	nw, err := s.Networks.Get(ctx, ref)
	if err != nil {
		return err
	}
	if err := s.Networks.Remove(ctx, nw.ID); err != nil {
		return err
	}
	s.emit("destroy", nw, nil)
	return nil
}

// Update implements [API].
func (s *Service) Update(ctx context.Context, ref string, change Change) ([]string, error) {
	nw, err := s.Networks.Get(ctx, ref)
	if err != nil {
		return nil, err
	}
	changes, err := s.Networks.Update(ctx, nw.ID, network.NetworkChange{Options: change.Options, Undo: change.Undo, DryRun: change.DryRun, Process: func(owner string) int {
		rec, err := s.Containers.Record(owner)
		if err != nil || !rec.State.Status.Live() {
			return 0
		}
		return rec.State.PID
	}})
	if err == nil && len(changes) > 0 && !change.DryRun {
		s.emit("update", nw, nil)
	}
	return changes, err
}

// EgressCounts tells what the egress lists of containers and networks, by id, let through and dropped.
func (s *Service) EgressCounts(ctx context.Context) (ctrs, nets map[string]EgressCount, err error) {
	return s.Networks.EgressCounts(ctx)
}

// Prune implements [API].
func (s *Service) Prune(ctx context.Context, filters filter.Args) (deleted []string, err error) {
	if err := filters.Accept("label", "label!", "until"); err != nil {
		return nil, err
	}
	until, err := containers.Until(filters)
	if err != nil {
		return nil, err
	}
	all, err := s.Networks.List(ctx)
	if err != nil {
		return nil, err
	}
	for _, nw := range all {
		unwanted := slices.ContainsFunc(filters["label!"], func(w string) bool { return (filter.Args{"l": {w}}).Labels("l", nw.Labels) })
		if nw.Predefined || nw.ConfigOnly || unwanted || !filters.Labels("label", nw.Labels) || !until.IsZero() && nw.Created.After(until) {
			continue
		}
		err := s.Networks.Remove(ctx, nw.ID)
		if errors.Is(err, errs.Forbidden) || errors.Is(err, errs.NotFound) {
			continue // in use, or gone
		}
		if err != nil {
			return deleted, err
		}
		s.emit("destroy", nw, nil)
		deleted = append(deleted, nw.Name)
	}
	s.Events.Publish(events.Event{Type: "network", Action: "prune", Attributes: map[string]string{"reclaimed": "0"}})
	return deleted, nil
}

// mayConnect refuses what cannot go together, in Docker's order: a network of somebody else has no second one, the host's is of containers that began with it, and none stands alone.
func mayConnect(rec *container.Record, nw network.Network) error {
	mode := rec.Host.NetworkMode
	_, alone := rec.Networks[networkNone]
	switch _, on := onNetwork(rec, nw); {
	case on && rec.State.Status.Live():
		return errs.New(errs.Forbidden, "endpoint with name %s already exists in network %s", rec.Name, nw.Name)
	case strings.HasPrefix(mode, "container:") || mode == networkHost:
		return errs.New(errs.Forbidden, "container sharing network namespace with another container or host cannot be connected to any other network")
	case nw.Driver == networkHost:
		return errHostFixed
	case alone && nw.Name != networkNone || !alone && nw.Name == networkNone && len(rec.Networks) > 0:
		return errs.New(errs.Forbidden, "container cannot be connected to multiple networks with one of the networks in private (none) mode")
	}
	return nil
}

// Names of the networks that nothing is made for.
const networkHost, networkNone = "host", "none"

var errHostFixed = errs.New(errs.Forbidden, "container cannot be disconnected from host network or connected to host network")

// Connect implements [API].
func (s *Service) Connect(ctx context.Context, ref, containerRef string, ep container.EndpointSettings) error {
	rec, err := s.Containers.Settled(ctx, containerRef) // looked for first, as Docker
	if err != nil {
		return err
	}
	nw, err := s.Networks.Get(ctx, ref)
	if err != nil {
		return err
	}
	if err := mayConnect(&rec, nw); err != nil {
		return err
	}
	if err := s.mayAsk(nw, ep); err != nil {
		return err
	}
	if rec.State.Status.Live() && nw.Name != networkNone {
		if _, err = s.Networks.Connect(ctx, rec.ID, rec.State.PID, s.Containers.Endpoint(&rec, nw.Name, ep)); err != nil {
			return err
		}
	}
	if err = s.Containers.SetNetwork(rec.ID, nw.Name, &ep, nil); err != nil {
		return err
	}
	if err = s.startedMeanwhile(ctx, &rec, nw, func(rec *container.Record) error {
		if rec.Sandbox != nil && slices.ContainsFunc(rec.Sandbox.Endpoints, func(ep network.Endpoint) bool { return ep.NetworkID == nw.ID }) {
			return nil
		}
		if _, err := s.Networks.Connect(ctx, rec.ID, rec.State.PID, s.Containers.Endpoint(rec, nw.Name, ep)); err != nil {
			return errors.Join(err, s.Containers.SetNetwork(rec.ID, nw.Name, nil, nil))
		}
		return s.Containers.SetNetwork(rec.ID, nw.Name, &ep, nil)
	}); err != nil {
		return err
	}
	s.emit("connect", nw, map[string]string{"container": rec.ID})
	return nil
}

// mayAsk refuses at once what would be refused when the container starts.
func (s *Service) mayAsk(nw network.Network, ep container.EndpointSettings) error {
	if nw.ConfigOnly {
		return errs.New(errs.Forbidden, "cannot create endpoint on configuration-only network")
	}
	for _, want := range []netip.Addr{ep.IPv4, ep.IPv6} {
		if !want.IsValid() {
			continue
		}
		if nw.Predefined {
			return errs.New(errs.Invalid, "user specified IP address is supported on user defined networks only")
		}
		pools := slices.DeleteFunc(slices.Clone(nw.IPAM.Pools), func(p network.Pool) bool { return p.Subnet.Addr().Is4() != want.Is4() })
		if len(pools) == 0 || pools[0].Chosen {
			return errs.New(errs.Invalid, "user specified IP address is supported only when connecting to networks with user configured subnets")
		}
		if !slices.ContainsFunc(pools, func(p network.Pool) bool { return p.Subnet.Contains(want) }) {
			return errs.New(errs.Invalid, "invalid address %s: It does not belong to any of this network's subnets", want)
		}
	}
	return nil
}

// onNetwork finds the key under which a container is on a network: the name, or the id that was asked for.
func onNetwork(rec *container.Record, nw network.Network) (string, bool) {
	for key := range rec.Networks {
		if key == nw.Name || key == nw.ID || len(key) >= 12 && strings.HasPrefix(nw.ID, key) {
			return key, true
		}
	}
	return "", false
}

// startedMeanwhile sees to a container that did not run when it was looked at: one that was started at the same moment may have read its networks before they were changed, and runs
// without what was asked. before is what was seen.
func (s *Service) startedMeanwhile(ctx context.Context, before *container.Record, nw network.Network, mend func(rec *container.Record) error) error {
	if before.State.Status.Live() || nw.Name == networkNone {
		return nil
	}
	rec, err := s.Containers.Settled(ctx, before.ID)
	if errors.Is(err, errs.NotFound) || errors.Is(err, errs.Conflict) || err == nil && !rec.State.Status.Live() {
		return nil
	}
	if err != nil {
		return err
	}
	return mend(&rec)
}

// leaveSandbox takes a network out of what a running container has.
func leaveSandbox(rec *container.Record, nw network.Network) {
	if rec.Sandbox == nil {
		return
	}
	sb := *rec.Sandbox
	sb.Endpoints = slices.DeleteFunc(slices.Clone(sb.Endpoints), func(ep network.Endpoint) bool { return ep.NetworkID == nw.ID })
	rec.Sandbox = &sb
}

// Disconnect implements [API].
func (s *Service) Disconnect(ctx context.Context, ref, containerRef string, force bool) error {
	rec, err := s.Containers.Settled(ctx, containerRef) // looked for first, as Docker
	if force && errors.Is(err, errs.NotFound) {
		err = errs.New(errs.NotFound, "endpoint %s not found", containerRef) // what it may have left is given back by the room already
	}
	if err != nil {
		return err
	}
	nw, err := s.Networks.Get(ctx, ref)
	if err != nil {
		return err
	}
	key, on := onNetwork(&rec, nw)
	switch {
	case nw.Driver == networkHost && on:
		return errHostFixed
	case !on:
		if !rec.State.Status.Live() {
			return errs.New(errs.Forbidden, "container %s is not connected to the network %s", rec.ID, nw.Name)
		}
		return errs.New(errs.Forbidden, "container %s is not connected to network %s", rec.ID, nw.Name)
	}
	// The record first: whoever finds the engine dead in between finds an interface that nobody claims, and takes it away.
	if err := s.Containers.SetNetwork(rec.ID, key, nil, func(rec *container.Record) { leaveSandbox(rec, nw) }); err != nil {
		return err
	}
	if rec.State.Status.Live() && nw.Name != networkNone {
		err := s.Networks.Disconnect(ctx, rec.ID, rec.State.PID, nw.ID)
		if err != nil && (!force || !errors.Is(err, errs.NotFound)) {
			was := rec.Networks[key]
			return errors.Join(err, s.Containers.SetNetwork(rec.ID, key, &was, nil))
		}
		if err := s.Containers.SetNetwork(rec.ID, key, nil, nil); err != nil {
			return err
		}
	}
	if err := s.startedMeanwhile(ctx, &rec, nw, func(rec *container.Record) error {
		if err := s.Networks.Disconnect(ctx, rec.ID, rec.State.PID, nw.ID); err != nil && !errors.Is(err, errs.NotFound) {
			return err
		}
		return s.Containers.SetNetwork(rec.ID, key, nil, nil)
	}); err != nil {
		return err
	}
	s.emit("disconnect", nw, map[string]string{"container": rec.ID})
	return nil
}
