package solve

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync/atomic"

	"corten.dev/corten/internal/snapshot"
)

// holdPrefix begins the names of the holds of builds under way.
const holdPrefix = "builds/use/"

// Holder is what the store of layers has for Holds; snapshot.Store has it.
type Holder interface {
	Hold(ctx context.Context, name string, chain snapshot.ChainID) error
	Release(ctx context.Context, name string) error
	Holds(ctx context.Context, fn func(name string, chain snapshot.ChainID) error) error
}

// Holds makes [Options.Hold] of a store's holds. Those that builds of a killed engine left are let go first.
func Holds(ctx context.Context, store Holder, log *slog.Logger) (func(ctx context.Context, chain snapshot.ChainID) (release func(), err error), error) {
	var old []string
	err := store.Holds(ctx, func(name string, _ snapshot.ChainID) error {
		if strings.HasPrefix(name, holdPrefix) {
			old = append(old, name)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	for _, name := range old {
		if err := store.Release(ctx, name); err != nil {
			return nil, err
		}
	}
	var last atomic.Int64
	return func(ctx context.Context, chain snapshot.ChainID) (func(), error) {
		name := fmt.Sprint(holdPrefix, last.Add(1))
		if err := store.Hold(ctx, name, chain); err != nil {
			return nil, err
		}
		return func() {
			if err := store.Release(context.WithoutCancel(ctx), name); err != nil {
				log.Error("let go of layers that a build stood on", "chain", chain, "err", err)
			}
		}, nil
	}, nil
}
