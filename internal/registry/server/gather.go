package server

import (
	"log/slog"
	"sync"

	"corten.dev/corten/internal/task"
)

// gather runs a number of small questions to the driver side by side and keeps their answers.
type gather struct {
	log   *slog.Logger
	slots chan struct{}
	wg    sync.WaitGroup

	mu      sync.Mutex // guards the rest
	answers []any
	err     error
}

func newGather(width int, log *slog.Logger) *gather {
	return &gather{log: log, slots: make(chan struct{}, width)}
}

// run asks one question, waiting for a free place. A nil answer is not kept; after an error no more questions are asked.
func (g *gather) run(ask func() (any, error)) {
	g.slots <- struct{}{}
	g.mu.Lock()
	failed := g.err != nil
	g.mu.Unlock()
	if failed {
		<-g.slots
		return
	}
	g.wg.Go(func() {
		defer func() { <-g.slots }()
		answer, err := g.one(ask)
		g.mu.Lock()
		defer g.mu.Unlock()
		if err != nil && g.err == nil {
			g.err = err
		}
		if answer != nil {
			g.answers = append(g.answers, answer)
		}
	})
}

func (g *gather) one(ask func() (any, error)) (answer any, err error) {
	defer task.Contain(g.log, "ask the driver", &err)
	return ask()
}

func (g *gather) wait() ([]any, error) {
	g.wg.Wait()
	return g.answers, g.err
}
