package networks_test

import (
	"context"
	"errors"
	"slices"
	"testing"

	"corten.dev/corten/internal/container"
	"corten.dev/corten/internal/engine/networks"
	"corten.dev/corten/internal/errs"
	"corten.dev/corten/internal/events"
	"corten.dev/corten/internal/network"
	"corten.dev/corten/internal/network/memory"
)

// nobody is an engine without containers.
type nobody struct{}

func (nobody) Record(ref string) (container.Record, error) {
	return container.Record{}, errs.New(errs.NotFound, "No such container: %s", ref)
}
func (n nobody) Settled(_ context.Context, ref string) (container.Record, error) {
	return n.Record(ref)
}
func (nobody) Names() map[string]string { return nil }
func (nobody) Endpoint(*container.Record, string, container.EndpointSettings) network.EndpointRequest {
	return network.EndpointRequest{}
}
func (nobody) SetNetwork(string, string, *container.EndpointSettings, func(*container.Record)) error {
	return nil
}

// A network in use made prune fail half way: the refusal is of another kind than it looked for.
func TestPruneSkipsWhatIsInUse(t *testing.T) {
	ctx := context.Background()
	room := memory.New()
	s := networks.New(networks.Options{Networks: room, Containers: nobody{}, Events: &events.Bus{}})
	for _, name := range []string{"a", "busy", "z"} {
		if _, err := s.Create(ctx, network.Network{Name: name}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := room.Join(ctx, network.JoinRequest{Owner: "c", Endpoints: []network.EndpointRequest{{Network: "busy"}}}); err != nil {
		t.Fatal(err)
	}
	deleted, err := s.Prune(ctx, nil)
	slices.Sort(deleted)
	if err != nil || !slices.Equal(deleted, []string{"a", "z"}) {
		t.Errorf("deleted %v, %v", deleted, err)
	}
}

func TestTheContainerIsLookedForFirst(t *testing.T) {
	s := networks.New(networks.Options{Networks: memory.New(), Containers: nobody{}, Events: &events.Bus{}})
	for _, err := range []error{
		s.Connect(context.Background(), "nothere", "c", container.EndpointSettings{}),
		s.Disconnect(context.Background(), "nothere", "c", false),
	} {
		if !errors.Is(err, errs.NotFound) || err.Error() != "No such container: c" {
			t.Errorf("got %v", err)
		}
	}
}

// docker lets go of none, too: a container on no network can be put on one while it runs.
func TestNoneGoesWithNoOther(t *testing.T) {
	ctx := context.Background()
	room := memory.New()
	ctrs := &somebody{rec: container.Record{ID: "c", Name: "c"}}
	ctrs.rec.Host.NetworkMode = "none"
	ctrs.rec.State.Status = container.Running
	ctrs.rec.Networks = map[string]container.EndpointSettings{"none": {}}
	s := networks.New(networks.Options{Networks: room, Containers: ctrs, Events: &events.Bus{}})
	for _, name := range []string{"blue", "red"} {
		if _, err := s.Create(ctx, network.Network{Name: name}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := room.Join(ctx, network.JoinRequest{Owner: "c", Endpoints: []network.EndpointRequest{{Network: "none"}}}); err != nil {
		t.Fatal(err)
	}
	const alone = "container cannot be connected to multiple networks with one of the networks in private (none) mode"
	for i, step := range []struct {
		connect, disconnect, err string
	}{
		{"blue", "", alone}, {"none", "", "endpoint with name c already exists in network none"},
		{"", "none", ""}, {"", "none", "container c is not connected to network none"},
		{"blue", "", ""}, {"red", "", ""}, {"none", "", alone}, {"host", "", "container cannot be disconnected from host network or connected to host network"},
		{"", "host", "container c is not connected to network host"},
		{"", "blue", ""}, {"", "red", ""}, {"none", "", ""}, {"red", "", alone},
	} {
		var err error
		if step.connect != "" {
			err = s.Connect(ctx, step.connect, "c", container.EndpointSettings{})
		} else {
			err = s.Disconnect(ctx, step.disconnect, "c", false)
		}
		if err == nil && step.err != "" || err != nil && err.Error() != step.err {
			t.Errorf("step %d %+v: %v", i, step, err)
		}
	}
}

// somebody is an engine with one container.
type somebody struct {
	nobody
	rec container.Record
}

func (s *somebody) Record(string) (container.Record, error) { return s.rec, nil }

func (s *somebody) Settled(context.Context, string) (container.Record, error) { return s.rec, nil }

func (*somebody) Endpoint(_ *container.Record, name string, _ container.EndpointSettings) network.EndpointRequest {
	return network.EndpointRequest{Network: name}
}

func (s *somebody) SetNetwork(_, name string, ep *container.EndpointSettings, change func(*container.Record)) error {
	if delete(s.rec.Networks, name); ep != nil {
		s.rec.Networks[name] = *ep
	}
	if change != nil {
		change(&s.rec)
	}
	return nil
}

// early is an engine with a container that is started just after it was seen stopped, with the networks that it had then.
type early struct{ somebody }

func (e *early) Settled(context.Context, string) (container.Record, error) {
	rec := e.rec
	e.rec.State.Status, e.rec.State.PID = container.Running, 1
	if e.rec.Sandbox == nil {
		e.rec.Sandbox = &network.Sandbox{}
	}
	return rec, nil
}

// A container that was connected to a network while it was being started had read its networks before: it ran without the network that inspect said it had, and kept the one it was disconnected from.
func TestStartedWhileConnected(t *testing.T) {
	rooms := &counted{}
	e := &early{somebody{rec: container.Record{ID: "c", Networks: map[string]container.EndpointSettings{}}}}
	s := networks.New(networks.Options{Networks: rooms, Containers: e, Events: &events.Bus{}})
	ctx := context.Background()
	if err := s.Connect(ctx, "blue", "c", container.EndpointSettings{}); err != nil || rooms.connected != 1 {
		t.Errorf("connect: %d connected, %v", rooms.connected, err)
	}
	e.rec.State.Status = container.Exited
	e.rec.Sandbox = &network.Sandbox{Endpoints: []network.Endpoint{{NetworkID: "blue-id"}}}
	if err := s.Disconnect(ctx, "blue", "c", false); err != nil || rooms.connected != 0 {
		t.Errorf("disconnect: %d connected, %v", rooms.connected, err)
	}
}

// counted is a network room with one network.
type counted struct {
	networks.Rooms
	connected int
}

func (*counted) Get(context.Context, string) (network.Network, error) {
	return network.Network{ID: "blue-id", Name: "blue", Driver: "bridge"}, nil
}

func (c *counted) Connect(context.Context, string, int, network.EndpointRequest) (network.Endpoint, error) {
	c.connected++
	return network.Endpoint{}, nil
}

func (c *counted) Disconnect(context.Context, string, int, string) error {
	c.connected--
	return nil
}
