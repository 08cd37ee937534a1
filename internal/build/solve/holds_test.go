package solve_test

import (
	"context"
	"log/slog"
	"maps"
	"slices"
	"testing"

	"corten.dev/corten/internal/build/solve"
	"corten.dev/corten/internal/snapshot"
)

// holder is the holds of a store.
type holder map[string]snapshot.ChainID

func (h holder) Hold(_ context.Context, name string, chain snapshot.ChainID) error {
	h[name] = chain
	return nil
}

func (h holder) Release(_ context.Context, name string) error {
	delete(h, name)
	return nil
}

func (h holder) Holds(_ context.Context, fn func(string, snapshot.ChainID) error) error {
	for name, chain := range h {
		if err := fn(name, chain); err != nil {
			return err
		}
	}
	return nil
}

// The holds of an engine that was killed go with the start of the next; those of others stay.
func TestHoldsOfAKilledEngineGo(t *testing.T) {
	h := holder{"builds/use/7": "sha256:old", "builds/cache/x": "sha256:kept"}
	hold, err := solve.Holds(t.Context(), h, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	one, err := hold(t.Context(), "sha256:base")
	if err != nil {
		t.Fatal(err)
	}
	two, err := hold(t.Context(), "sha256:base")
	if err != nil {
		t.Fatal(err)
	}
	if len(h) != 3 {
		t.Error(h)
	}
	one()
	two()
	if names := slices.Collect(maps.Keys(h)); len(names) != 1 || names[0] != "builds/cache/x" {
		t.Error(names)
	}
}
