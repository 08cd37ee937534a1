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
