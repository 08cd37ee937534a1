package cli

import (
	"context"
	"strings"
	"sync"
	"sync/atomic"

	"corten.dev/corten/internal/cli/engineapi"
)

// How many requests about different things are under way at a time: stopping fifty containers that do not listen takes ten seconds, not five hundred. Over ssh each is a connection of its own to a
// server that lets in ten at a time.
const (
	mostAbreast    = 50
	mostAbreastSSH = 8
	inTurn         = 1 // for verbs whose order means something
)

// eachAbreast is [app.each] for requests that may take long: ask runs for several of names (by their index) at once, begun in their order, and tell, which prints, for one after the other in their order.
func (a *app) eachAbreast(ctx context.Context, api *engineapi.Client, names []string, most int, ask func(ctx context.Context, i int) error, tell func(i int, err error) error) error {
	if strings.HasPrefix(a.ep.Host, "ssh://") {
		most = min(most, mostAbreastSSH)
	}
	most = min(most, len(names))
	if most > 1 { // one connection finds the engine, or starts it, before the others
		if err := api.Settle(ctx); err != nil {
			return a.explain(err)
		}
	}
	ctx, cancel := context.WithCancel(ctx)
	answers := make([]chan error, len(names))
	for i := range answers {
		answers[i] = make(chan error, 1)
	}
	var next atomic.Int64
	var askers sync.WaitGroup
	for range most {
		askers.Go(func() {
			for i := next.Add(1) - 1; i < int64(len(names)); i = next.Add(1) - 1 {
				answers[i] <- ask(ctx, int(i))
			}
		})
	}
	defer askers.Wait()
	defer cancel()
	told := -1
	return a.each(names, func(string) error {
		told++
		return tell(told, <-answers[told])
	})
}
